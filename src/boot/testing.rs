//! Helpers for tests.

use super::memory::{MemoryKind, MemoryRegion, Range};

/// A region of a memory map.
pub(crate) fn region(start: u64, end: u64, kind: MemoryKind) -> MemoryRegion {
    let range = Range { start, end };
    MemoryRegion { range, kind }
}

/// Seeds for `count` random cases. Under Miri there are only two: it is a thousand times slower, and it
/// checks pointers, which all cases use in the same way.
pub(crate) fn seeds(count: u64) -> core::ops::Range<u64> {
    0..if cfg!(miri) { 2 } else { count }
}

/// Step between the lengths to try in tests that try all lengths. Under Miri they try only some.
pub(crate) const STRIDE: usize = if cfg!(miri) { 61 } else { 1 };

/// A small generator of pseudo-random numbers (xorshift64*). A failing case can be repeated by its seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    /// Overwrites a few bytes, mostly with boundary values.
    pub(crate) fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len() as u64) as usize;
            bytes[at] = match self.below(4) {
                0 => 0,
                1 => 0xff,
                2 => 0x7f,
                _ => self.next() as u8,
            };
        }
    }
}
