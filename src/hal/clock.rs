//! The platform's clock, and how it stops the machine.

use core::time::Duration;

/// The platform's clock, polled while the client waits for the host.
pub trait Clock {
    /// The time since a fixed moment; it never decreases. A resolution of a microsecond is enough.
    fn now(&self) -> Duration;

    /// Called between two polls of the device, for an instruction like `pause` or `yield`.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// Called between two polls of the device while the host still needs at least `at_most` to read
    /// the data in flight. A platform may put the processor to sleep for up to that time, so that
    /// the host can use it. The default calls [`Clock::relax`], which is right where the host has
    /// processors to spare.
    fn rest(&self, at_most: Duration) {
        let _ = at_most;
        self.relax();
    }

    /// Stops the machine, because it would be unsound to continue.
    ///
    /// The client calls this in one case only: the device holds descriptors of a borrowed buffer
    /// and does not confirm its reset, so it may write to that buffer at any time. `why` is a
    /// sentence for the person at the console. If this function unwinds, the program is aborted,
    /// unless the device has confirmed its reset in the meantime.
    fn stop(&self, why: &str) -> ! {
        log::error!("{why}");
        loop {
            self.relax();
        }
    }
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now(&self) -> Duration {
        (**self).now()
    }

    fn relax(&self) {
        (**self).relax();
    }

    fn rest(&self, at_most: Duration) {
        (**self).rest(at_most);
    }

    fn stop(&self, why: &str) -> ! {
        (**self).stop(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// A clock whose time in milliseconds is the number of calls of `relax`.
    struct Counting(Cell<u64>);

    impl Clock for Counting {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.get())
        }

        fn relax(&self) {
            self.0.update(|calls| calls + 1);
        }
    }

    #[test]
    fn a_reference_to_a_clock_is_a_clock_and_rest_defaults_to_relax() {
        let clock = Counting(Cell::new(0));
        let by_ref = &&clock;
        Clock::relax(by_ref);
        Clock::rest(by_ref, Duration::MAX);
        clock.rest(Duration::MAX);
        assert_eq!(Clock::now(by_ref), Duration::from_millis(3));
    }
}
