//! The time-stamp counter.

use core::arch::x86_64::_rdtsc;

/// The counter's current value.
pub fn timestamp() -> u64 {
    // SAFETY: every CPU with a 64-bit mode has the instruction, and CR4.TSD is clear, so that it
    // is not privileged either.
    unsafe { _rdtsc() }
}
