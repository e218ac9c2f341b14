//! The clock of the boot flow: the architectural timer's virtual count.

use crate::{counter, exit, rest};
use bootshare::{hal, loader::ExitStatus};
use core::time::Duration;

/// The clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

impl hal::Clock for Clock {
    fn now(&self) -> Duration {
        counter::now()
    }

    fn relax(&self) {
        // An `isb` on this architecture: a short pause. `yield` does nothing on most processors.
        core::hint::spin_loop();
    }

    fn rest(&self, at_most: Duration) {
        rest::rest(at_most);
    }

    fn stop(&self, why: &str) -> ! {
        log::error!("{why}");
        exit::exit(ExitStatus::Failure)
    }
}
