//! Streams of bits that are read from their end to their start (RFC 8878, 4.1).

use crate::{Error, number};

/// The bits of a stream that are still to be read.
pub(crate) struct Bits<'a> {
    data: &'a [u8],
    /// The first eight bytes, as far as there are as many.
    first: u64,
    /// How many bits are left; less than none if too many were taken.
    left: isize,
    /// The next of them, from the highest bit down. Behind the last one are zeros.
    window: u64,
    /// How many of the window's bits are ready to be taken.
    ready: u32,
}

impl<'a> Bits<'a> {
    /// What [`Self::refill`] provides at least.
    pub const REFILL: u32 = 57;

    /// The highest bit that is set in the last byte is the end mark.
    pub fn new(data: &'a [u8]) -> Result<Self, Error> {
        let mark = data.last().and_then(|last| last.checked_ilog2());
        let mark = mark.ok_or(Error::Damaged("a stream of bits has no end mark"))?;
        let before = data.len().saturating_sub(1).saturating_mul(8);
        let mut bits = Self {
            data,
            first: number(data, data.len().min(8)).unwrap_or_default(),
            left: before.saturating_add(mark as usize).cast_signed(),
            window: 0,
            ready: 0,
        };
        bits.refill()?;
        Ok(bits)
    }

    /// Makes the next [`Self::REFILL`] bits ready to be taken; an error if more were taken than
    /// there are.
    #[inline(always)]
    pub fn refill(&mut self) -> Result<(), Error> {
        let Ok(left) = usize::try_from(self.left) else {
            return Err(Error::Damaged("a stream of bits is too short"));
        };
        let end = left.div_ceil(8);
        let eight = end
            .checked_sub(8)
            .and_then(|start| self.data.get(start..)?.first_chunk());
        let (word, bytes) = match eight {
            Some(bytes) => (u64::from_le_bytes(*bytes), 8),
            None => (self.first, end),
        };
        // What is behind the bits that are left is shifted out: bytes, then bits.
        let whole = (bytes as u32).wrapping_mul(8);
        let used = (end.wrapping_mul(8).wrapping_sub(left)) as u32;
        self.window = match whole {
            0 => 0,
            _ => word
                .wrapping_shl(64_u32.wrapping_sub(whole))
                .wrapping_shl(used),
        };
        self.ready = Self::REFILL;
        Ok(())
    }

    /// Makes `count` bits ready, [`Self::REFILL`] at most.
    #[inline(always)]
    pub fn ensure(&mut self, count: u32) -> Result<(), Error> {
        if self.ready < count {
            self.refill()?;
        }
        Ok(())
    }

    /// The next `count` bits, 63 at most.
    #[inline(always)]
    pub fn peek(&self, count: u32) -> u64 {
        (self.window >> 1).wrapping_shr(63_u32.wrapping_sub(count))
    }

    /// Leaves out the next `count` bits.
    #[inline(always)]
    pub fn skip(&mut self, count: u32) {
        self.window = self.window.wrapping_shl(count);
        self.left = self.left.wrapping_sub(count as isize);
        self.ready = self.ready.wrapping_sub(count);
    }

    /// Takes the next `count` bits.
    #[inline(always)]
    pub fn take(&mut self, count: u32) -> u32 {
        let bits = self.peek(count) as u32;
        self.skip(count);
        bits
    }

    /// Whether `count` bits are left.
    pub fn has(&self, count: u32) -> bool {
        self.left >= count as isize
    }

    /// All of a stream has to be read, else it is `damaged` (4.1).
    pub fn finish(&self, damaged: &'static str) -> Result<(), Error> {
        match self.left {
            0 => Ok(()),
            _ => Err(Error::Damaged(damaged)),
        }
    }
}
