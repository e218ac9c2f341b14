//! What tests share.

/// Seeds of `count` cases. Miri gets a few of them: it is a thousand times slower, and there for the
/// pointers, of which the last of many cases has no others than the first.
pub(crate) fn seeds(count: u64) -> core::ops::Range<u64> {
    0..if cfg!(miri) { 2 } else { count }
}

/// How far apart the lengths are that are tried where all of them count: Miri gets some.
pub(crate) const STRIDE: usize = if cfg!(miri) { 61 } else { 1 };

/// A small generator of repeatable numbers (xorshift64*): a failing case comes back with its seed.
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

    /// Overwrites a few bytes, mostly with values that sit at the edge of something.
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
