//! Time since the start of the architectural timer's virtual count.

use crate::cpu;
use core::time::Duration;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// The time at which the counter had this value.
pub fn at(count: u64) -> Duration {
    let frequency = cpu::counter_frequency_hz().max(1);
    // The frequency is a 32-bit number, so this fits, and the quotient is below a second.
    let nanoseconds = count % frequency * NANOSECONDS_PER_SECOND / frequency;
    Duration::new(count / frequency, nanoseconds as u32)
}

/// The time now.
pub fn now() -> Duration {
    at(cpu::counter())
}
