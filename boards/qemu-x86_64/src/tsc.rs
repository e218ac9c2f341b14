//! The arithmetic of the time-stamp counter: its frequency, and counts as time. Pure;
//! [`clock`](crate::clock) reads the counters.
#![forbid(unsafe_code)]

use core::time::Duration;

/// Frequency of the PIT's counters in Hz: on every PC, a twelfth of 14.318181 MHz.
pub const PIT_HZ: u64 = 1_193_182;

/// Frequencies that are believed, in Hz.
const PLAUSIBLE_HZ: core::ops::RangeInclusive<u64> = 100_000_000..=20_000_000_000;

/// The frequency in Hz, if it can be one.
pub fn plausible(hz: u64) -> Option<u64> {
    PLAUSIBLE_HZ.contains(&hz).then_some(hz)
}

/// One look at both counters.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The time-stamp counter before the look at the PIT.
    pub before: u64,
    /// The PIT's counter, counting down.
    pub pit: u16,
    /// The time-stamp counter after it.
    pub after: u64,
}

impl Sample {
    /// How long the look took, in time-stamp counts: how far it may be off.
    pub fn width(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    fn middle(&self) -> u64 {
        self.before + self.width() / 2
    }
}

/// The time-stamp counter's frequency in Hz from two samples, the PIT not having reached zero
/// between them. `None` if it did not move, or is not known to one part in 512.
pub fn frequency(start: Sample, end: Sample) -> Option<u64> {
    let pit_ticks = u64::from(start.pit.checked_sub(end.pit)?);
    let counts = end.middle().checked_sub(start.middle())?;
    let uncertain = start.width().max(end.width());
    if pit_ticks < 128 || counts / 512 < uncertain {
        return None;
    }
    plausible(counts.checked_mul(PIT_HZ)? / pit_ticks)
}

/// Turns time-stamp counts into time without a division: nanoseconds a count, in 2^-32 ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale(u64);

impl Scale {
    /// For a counter of that frequency, in Hz.
    pub fn new(hz: u64) -> Self {
        const NANOSECONDS: u64 = 1_000_000_000;
        Self((NANOSECONDS << 32) / hz.max(1))
    }

    /// The time that `counts` are; it saturates after 584 years.
    pub fn duration(self, counts: u64) -> Duration {
        let nanoseconds = (u128::from(counts) * u128::from(self.0)) >> 32;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, width: u64, pit: u16) -> Sample {
        Sample {
            before: at,
            pit,
            after: at + width,
        }
    }

    #[test]
    fn ten_milliseconds_of_the_pit_give_the_frequency() {
        let hz = frequency(
            sample(1_000_000, 2000, 0xfff0),
            sample(1_000_000 + 21_000_000, 2000, 0xfff0 - 11_932),
        )
        .unwrap();
        assert!(hz.abs_diff(2_100_000_000) < 100_000, "{hz}");
    }

    #[test]
    fn a_pit_that_is_not_there_gives_none() {
        let stuck = |at| sample(at, 2000, 0xffff);
        assert_eq!(frequency(stuck(0), stuck(50_000_000)), None);
        let wrapped = sample(50_000_000, 2000, 0xfff0);
        assert_eq!(frequency(sample(0, 2000, 5), wrapped), None);
    }

    #[test]
    fn a_sample_that_took_too_long_gives_none() {
        let end = sample(21_000_000, 2_000_000, 0xfff0 - 11_932);
        assert_eq!(frequency(sample(0, 2000, 0xfff0), end), None);
    }

    #[test]
    fn frequencies_out_of_this_world_are_not_believed() {
        assert_eq!(plausible(0), None);
        assert_eq!(plausible(u64::MAX), None);
        assert_eq!(plausible(2_000_000_000), Some(2_000_000_000));
        let slow = sample(1_000_000, 1, 0xfff0 - 20_000);
        assert_eq!(frequency(sample(0, 1, 0xfff0), slow), None);
    }

    #[test]
    fn counts_become_time_for_years() {
        let scale = Scale::new(2_000_000_000);
        assert_eq!(scale.duration(0), Duration::ZERO);
        assert_eq!(scale.duration(3_000_000_000), Duration::from_millis(1500));
        let year = 365 * 24 * 3600;
        let off = Duration::from_secs(year).abs_diff(scale.duration(year * 2_000_000_000));
        assert!(off < Duration::from_secs(1), "{off:?}");
        let odd = Scale::new(2_345_678_901).duration(2_345_678_901);
        assert!(odd.abs_diff(Duration::from_secs(1)) < Duration::from_micros(1));
        let _no_panic = Scale::new(0).duration(u64::MAX);
    }
}
