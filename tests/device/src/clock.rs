//! Clocks: the real time, and a virtual time that drives the device.

use crate::{device::Device, time};
use bootshare::hal::Clock;
use std::{
    panic::panic_any,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The payload of the panic when the client stops the machine ([`Clock::stop`]). The client does not let a panic
/// unwind while the device may still write to a caller's buffer. [`VirtualClock`] switches the device off first;
/// with another clock, the test's process aborts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped(pub String);

/// The system's time. It does not advance the device.
#[derive(Clone, Copy, Debug)]
pub struct RealClock(Instant);

impl Default for RealClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn stop(&self, why: &str) -> ! {
        panic_any(Stopped(why.to_owned()));
    }
}

/// Time that passes only while the client waits: a deadline of ten seconds takes no real time, and the times are
/// the same in each run.
///
/// Each poll advances the device by one tick.
#[derive(Debug)]
pub struct VirtualClock {
    ticks: AtomicU32,
    device: Device,
}

impl VirtualClock {
    /// The virtual time of one poll of the device. It is longer under Miri, which is slow.
    pub const TICK: Duration = time::TICK;

    /// A clock that starts at 0 and drives `device`.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Self {
            ticks: AtomicU32::new(0),
            device: device.clone(),
        }
    }

    /// The number of polls of the device in `time`.
    #[must_use]
    pub const fn ticks(time: Duration) -> u64 {
        time::ticks(time)
    }

    /// Advances the time by a tick, and returns it.
    fn pass(&self) -> Duration {
        Self::TICK * (self.ticks.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        self.pass()
    }

    fn relax(&self) {
        self.pass();
        self.device.tick();
    }

    /// Switches the device off, as when a machine is stopped: it no longer accesses memory.
    fn stop(&self, why: &str) -> ! {
        self.device.switch_off();
        panic_any(Stopped(why.to_owned()));
    }
}
