//! Clocks: one that shows the time, and one that makes it.

use crate::Device;
use bootshare::hal::Clock;
use std::{
    cell::Cell,
    panic::panic_any,
    time::{Duration, Instant},
};

/// What a test clock panics with when the client asks it to stop the machine.
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
    now: Cell<Duration>,
    device: Device,
}

impl VirtualClock {
    /// What one look at the device takes. An interpreter takes a thousand times as long for it.
    pub const TICK: Duration = Duration::from_millis(if cfg!(miri) { 20 } else { 1 });

    /// A clock that starts at 0 and drives `device`.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Self {
            now: Cell::new(Duration::ZERO),
            device: device.clone(),
        }
    }

    /// How often a device is looked at in that time.
    #[must_use]
    pub const fn ticks(time: Duration) -> u64 {
        (time.as_millis() / Self::TICK.as_millis()) as u64
    }

    fn pass(&self) {
        self.now.set(self.now.get() + Self::TICK);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        self.pass();
        self.now.get()
    }

    fn relax(&self) {
        self.pass();
        self.device.tick();
    }

    fn stop(&self, why: &str) -> ! {
        panic_any(Stopped(why.to_owned()));
    }
}
