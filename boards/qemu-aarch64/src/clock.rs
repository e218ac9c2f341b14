//! The architectural timer's virtual count.

use crate::cpu;
use bootshare::{hal, loader::ExitStatus};
use core::time::Duration;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// The virtual counter, at the frequency that its own register tells.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

impl Clock {
    /// When the counter was at `count`, as [`now`](hal::Clock::now) tells time.
    pub fn at(count: u64) -> Duration {
        let frequency = cpu::counter_frequency_hz().max(1);
        // The frequency is a 32-bit number, so this fits, and the quotient is below a second.
        let nanoseconds = count % frequency * NANOSECONDS_PER_SECOND / frequency;
        Duration::new(count / frequency, nanoseconds as u32)
    }
}

impl hal::Clock for Clock {
    fn now(&self) -> Duration {
        Self::at(cpu::counter())
    }

    fn relax(&self) {
        // `isb` on this architecture: a short pause, where `yield` is nothing on most processors.
        core::hint::spin_loop();
    }

    fn rest(&self, at_most: Duration) {
        crate::rest::rest(at_most);
    }

    fn stop(&self, why: &str) -> ! {
        log::error!("{why}");
        crate::exit::exit(ExitStatus::Failure)
    }
}
