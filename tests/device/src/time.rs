//! The virtual time, which is counted in ticks.

use std::time::Duration;

/// The virtual time of one poll of the device. It is longer under Miri, which is slow.
pub(crate) const TICK: Duration = Duration::from_millis(if cfg!(miri) { 20 } else { 1 });

/// The number of ticks in `time`.
pub(crate) const fn ticks(time: Duration) -> u64 {
    (time.as_millis() / TICK.as_millis()) as u64
}
