//! When a boot got how far: one line for a person, or a script, who wants it to be faster.

use super::Board;
use crate::hal::Clock;
use core::{cell::Cell, fmt, time::Duration};

/// What a boot gets to, in this order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// The machine was searched for devices.
    Devices,
    /// The shares are mounted: each host has answered to INIT.
    Mounted,
    /// An entry is to be loaded, after menu and shell if they were asked for.
    Chosen,
    /// Everything of it is in memory.
    Loaded,
    /// The shares are unmounted: the payload is next.
    HandOff,
}

impl Stage {
    const NAMES: [&str; 5] = ["devices", "mounted", "chosen", "loaded", "hand-off"];
}

/// When the latest of each was. After an entry that could not be loaded comes another.
pub(super) struct TimeLine<C> {
    clock: C,
    /// What the clock showed at the firmware's first instruction.
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

    /// `stage` was reached just now.
    pub fn reach(&self, stage: Stage) {
        self.reached[stage as usize].set(self.clock.now());
    }
}

impl<C: Clock> fmt::Display for TimeLine<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("time line in us: entry 0")?;
        for (name, at) in Stage::NAMES.iter().zip(&self.reached) {
            let since = at.get().saturating_sub(self.entry).as_micros();
            write!(f, ", {name} {since}")?;
        }
        let before = self.entry.as_micros();
        write!(f, "; the machine's clock was at {before} on entry")
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Stage, TimeLine};
    use core::{cell::Cell, time::Duration};
    use std::string::ToString;

    /// Some time passes at each look.
    struct Ticking(Cell<u64>);

    impl Clock for Ticking {
        fn now(&self) -> Duration {
            self.0.set(self.0.get() + 10);
            Duration::from_micros(self.0.get())
        }
    }

    #[test]
    fn stages_are_told_in_their_order_and_by_their_latest_time() {
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
