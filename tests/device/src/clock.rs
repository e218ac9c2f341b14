//! Clocks: one that shows the time, and one that makes it.

use crate::Device;
use bootshare::hal::Clock;
use std::{
    panic::panic_any,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// What a test clock panics with when the client asks it to stop the machine. The client lets no panic
/// through while the device may still write to a caller's buffer: [`VirtualClock`] switches the
/// device off first, and with another clock the test's process aborts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped(pub String);

/// The system's time. The device does not move on with it.
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

/// Time that passes only while the client waits: a deadline of ten seconds takes no time, and a
/// test sees the same each time it runs.
///
/// With each look the device moves on by one tick.
#[derive(Debug)]
pub struct VirtualClock {
    ticks: AtomicU32,
    device: Device,
}

impl VirtualClock {
    /// What one look at the device takes. An interpreter takes a thousand times as long for it.
    pub const TICK: Duration = Duration::from_millis(if cfg!(miri) { 20 } else { 1 });

    /// A clock that starts at 0 and drives `device`.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Self {
            ticks: AtomicU32::new(0),
            device: device.clone(),
        }
    }

    /// How often a device is looked at in that time.
    #[must_use]
    pub const fn ticks(time: Duration) -> u64 {
        (time.as_millis() / Self::TICK.as_millis()) as u64
    }

    /// Another tick is over; the time.
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

    /// The machine is off, and the device with it: what it had of memory it no longer touches.
    fn stop(&self, why: &str) -> ! {
        self.device.switch_off();
        panic_any(Stopped(why.to_owned()));
    }
}
