//! The times at which a boot has reached its stages, in one line, for users who want to make it faster.

use super::Board;
use crate::hal::Clock;
use core::{cell::Cell, fmt, time::Duration};

/// The stages of a boot, in order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// The devices were found.
    Devices,
    /// The shares are mounted: each host has answered INIT.
    Mounted,
    /// An entry was chosen, possibly in the menu or the shell.
    Chosen,
    /// The entry is in memory.
    Loaded,
    /// The shares are unmounted, and the payload is about to be started.
    HandOff,
}

impl Stage {
    const NAMES: [&str; 5] = ["devices", "mounted", "chosen", "loaded", "hand-off"];
}

/// The latest time of each stage: a stage is repeated if an entry could not be loaded.
pub(super) struct TimeLine<C> {
    clock: C,
    /// The time of the firmware's first instruction.
    entry: Duration,
    reached: [Cell<Duration>; Stage::NAMES.len()],
}

impl<C: Clock> TimeLine<C> {
    pub fn of<B: Board<Clock = C>>(board: &B) -> Self {
        Self {
            clock: board.clock(),
            entry: board.entered(),
            reached: Default::default(),
        }
    }

    /// Records that `stage` was reached.
    pub fn reach(&self, stage: Stage) {
        self.reached[stage as usize].set(self.clock.now());
    }
}

impl<C: Clock> fmt::Display for TimeLine<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("time line in us: entry 0")?;
        for (name, at) in Stage::NAMES.iter().zip(&self.reached) {
            let since = at.get().saturating_sub(self.entry).as_micros() as u64;
            write!(f, ", {name} {since}")?;
        }
        let before = self.entry.as_micros() as u64;
        write!(f, "; the machine's clock was at {before} on entry")
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Stage, TimeLine};
    use core::{cell::Cell, time::Duration};
    use std::string::ToString;

    /// A clock that advances whenever it is read.
    struct Ticking(Cell<u64>);

    impl Clock for Ticking {
        fn now(&self) -> Duration {
            self.0.set(self.0.get() + 10);
            Duration::from_micros(self.0.get())
        }
    }

    #[test]
    fn stages_are_shown_in_order_with_their_latest_times() {
        let time_line = TimeLine {
            clock: Ticking(Cell::new(100)),
            entry: Duration::from_micros(100),
            reached: Default::default(),
        };
        for stage in [
            Stage::Devices,
            Stage::Mounted,
            Stage::Chosen,
            Stage::Chosen,
            Stage::Loaded,
            Stage::HandOff,
        ] {
            time_line.reach(stage);
        }
        assert_eq!(
            time_line.to_string(),
            "time line in us: entry 0, devices 10, mounted 20, chosen 40, loaded 50, hand-off 60; \
             the machine's clock was at 100 on entry"
        );
    }
}
