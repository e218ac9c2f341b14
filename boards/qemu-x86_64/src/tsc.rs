//! The arithmetic of the time-stamp counter: its frequency, and the conversion of counts to time.
//! Pure; [`clock`](crate::clock) reads the counters.
#![forbid(unsafe_code)]

use core::time::Duration;

/// The frequency of the PIT's counters in Hz: on every PC, a twelfth of 14.318181 MHz.
pub const PIT_HZ: u64 = 1_193_182;

/// The duration and the precision of a measurement of the time-stamp counter against another
/// counter.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// The duration, as the number of such measurements in a second.
    pub per_second: u64,
    /// The precision: the relative error is at most one part in this number.
    pub parts: u64,
}

/// One millisecond, which is precise enough for deadlines.
pub const ROUGH: Measurement = Measurement {
    per_second: 1000,
    parts: 128,
};
/// Ten milliseconds, which is precise enough for a kernel's clock.
pub const FINE: Measurement = Measurement {
    per_second: 100,
    parts: 512,
};
/// The precision that [`refined`] must reach: one part in this number.
const REFINED_PARTS: u64 = 4096;

/// The plausible frequencies, in Hz.
const PLAUSIBLE_HZ: core::ops::RangeInclusive<u64> = 100_000_000..=20_000_000_000;

/// The frequency in Hz, if it is plausible.
pub fn plausible(hz: u64) -> Option<u64> {
    PLAUSIBLE_HZ.contains(&hz).then_some(hz)
}

/// A sample of both counters.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The time-stamp counter before the other counter was read.
    pub before: u64,
    /// The other counter, counting down.
    pub left: u32,
    /// The time-stamp counter after the other counter was read.
    pub after: u64,
}

impl Sample {
    /// The duration of the sample in time-stamp counts, which bounds its error.
    pub fn width(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    fn middle(&self) -> u64 {
        self.before + self.width() / 2
    }
}

/// The time-stamp counter's frequency in Hz from two samples of a counter of `reference_hz` that
/// did not reach zero between them. `None` if that counter did not change, or if the relative error
/// exceeds one part in `parts`.
pub fn frequency(start: Sample, end: Sample, reference_hz: u64, parts: u64) -> Option<u64> {
    let ticks = start.left.checked_sub(end.left)?;
    between(start, end, ticks.into(), reference_hz, parts)
}

/// The frequency from two samples of the PIT that are further apart: the PIT has wrapped around an
/// unknown number of times, which follows from `hz`, the result of a [rough](ROUGH) measurement.
/// `None` if the number is ambiguous.
pub fn refined(start: Sample, end: Sample, hz: u64) -> Option<u64> {
    /// The number of ticks from one zero to the next.
    const ROUND: u64 = 1 << 16;

    let counts = end.middle().checked_sub(start.middle())?;
    let about = counts.checked_mul(PIT_HZ)?.checked_div(hz)?;
    // A quarter of a round, so that the number of rounds is unambiguous.
    if about / ROUGH.parts > ROUND / 4 {
        return None;
    }
    let last = u64::from(start.left.wrapping_sub(end.left)) % ROUND;
    let rounds = (about + ROUND / 2).saturating_sub(last) / ROUND;
    between(start, end, rounds * ROUND + last, PIT_HZ, REFINED_PARTS)
}

/// The frequency in Hz, if so many counts, shifted to the left by `shift` (to the right if it is
/// negative) and multiplied by `multiplier`, are nanoseconds in units of 2^-32: the format of KVM's
/// clock.
pub fn of_kvm_clock(multiplier: u32, shift: i8) -> Option<u64> {
    let a_second = (1_000_000_000_u64 << 32).checked_div(multiplier.into())?;
    let (shift, left) = (u32::from(shift.unsigned_abs()), shift < 0);
    plausible(if left {
        a_second.checked_mul(1_u64.checked_shl(shift)?)?
    } else {
        a_second.checked_shr(shift)?
    })
}

/// The frequency in Hz, if `ticks` of a counter of `reference_hz` lie between two samples.
fn between(start: Sample, end: Sample, ticks: u64, reference_hz: u64, parts: u64) -> Option<u64> {
    let counts = end.middle().checked_sub(start.middle())?;
    let uncertain = start.width().max(end.width());
    if ticks < 128 || counts / parts < uncertain {
        return None;
    }
    plausible(counts.checked_mul(reference_hz)? / ticks)
}

/// Converts time-stamp counts to time without a division: nanoseconds for each count, in units of
/// 2^-32 ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale(u64);

impl Scale {
    /// The conversion for a counter of this frequency in Hz.
    pub fn new(hz: u64) -> Self {
        const NANOSECONDS: u64 = 1_000_000_000;
        Self((NANOSECONDS << 32) / hz.max(1))
    }

    /// The time of so many counts; it saturates after 584 years.
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
            left: pit.into(),
            after: at + width,
        }
    }

    #[test]
    fn kvm_reports_the_frequency_as_two_factors() {
        // Linux uses these values for 2.1 GHz, 1 GHz and 500 MHz.
        for (multiplier, shift, hz) in [
            (4_090_445_043, -1, 2_100_000_000),
            (0x8000_0000, 1, 1_000_000_000),
            (0x8000_0000, 2, 500_000_000),
        ] {
            let found = of_kvm_clock(multiplier, shift).unwrap();
            assert!(found.abs_diff(hz) < 100, "{found}");
        }
        for (multiplier, shift) in [(0, 0), (1, 0), (u32::MAX, 100), (u32::MAX, -128), (1, -40)] {
            assert_eq!(of_kvm_clock(multiplier, shift), None);
        }
    }

    #[test]
    fn ten_milliseconds_of_the_pit_give_the_frequency() {
        let hz = frequency(
            sample(1_000_000, 2000, 0xfff0),
            sample(
                1_000_000 + 21_000_000,
                2000,
                0xfff0 - (PIT_HZ / FINE.per_second) as u16,
            ),
            PIT_HZ,
            FINE.parts,
        )
        .unwrap();
        assert!(hz.abs_diff(2_100_000_000) < 300_000, "{hz}");
    }

    #[test]
    fn without_a_pit_there_is_no_frequency() {
        let stuck = |at| sample(at, 2000, 0xffff);
        assert_eq!(frequency(stuck(0), stuck(50_000_000), PIT_HZ, 512), None);
        let wrapped = sample(50_000_000, 2000, 0xfff0);
        assert_eq!(frequency(sample(0, 2000, 5), wrapped, PIT_HZ, 512), None);
    }

    #[test]
    fn a_sample_that_took_too_long_is_dropped() {
        let end = sample(21_000_000, 2_000_000, 0xfff0 - 11_932);
        assert_eq!(frequency(sample(0, 2000, 0xfff0), end, PIT_HZ, 512), None);
    }

    #[test]
    fn an_estimated_frequency_becomes_exact_with_time() {
        const HZ: u64 = 2_100_000_000;
        let at = |ticks: u64| {
            let pit = 0xfff0_u16.wrapping_sub(ticks as u16);
            sample(1_000_000 + ticks * HZ / PIT_HZ, 2000, pit)
        };
        let start = at(0);
        // One part in 128 off, either way; after 10 ms, and around the PIT's zeros.
        for about in [HZ - HZ / 128, HZ, HZ + HZ / 128] {
            for ticks in [12_000, 65_519, 65_520, 65_521, 98_000, 131_072, 1_900_000] {
                let hz = refined(start, at(ticks), about).unwrap();
                assert!(hz.abs_diff(HZ) < HZ / REFINED_PARTS, "{ticks}: {hz}");
            }
        }
        assert_eq!(
            refined(start, at(2_200_000), HZ),
            None,
            "it may be any round"
        );
        assert_eq!(refined(start, at(1_000), HZ), None, "too soon");
        assert_eq!(refined(start, start, HZ), None);
    }

    #[test]
    fn implausible_frequencies_are_refused() {
        assert_eq!(plausible(0), None);
        assert_eq!(plausible(u64::MAX), None);
        assert_eq!(plausible(2_000_000_000), Some(2_000_000_000));
        let slow = sample(1_000_000, 1, 0xfff0 - 20_000);
        assert_eq!(frequency(sample(0, 1, 0xfff0), slow, PIT_HZ, 512), None);
    }

    #[test]
    fn counts_are_converted_without_overflow_for_years() {
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
