//! Bit streams, which are read from their end to their start (RFC 8878, 4.1).

use crate::{Error, number};

/// The unread bits of a stream.
pub(crate) struct Bits<'a> {
    data: &'a [u8],
    /// The first eight bytes, or fewer if the stream is shorter.
    first: u64,
    /// Number of bits left; negative if too many were taken.
    left: isize,
    /// The next bits, from the highest bit down. After the last bit of the stream it is zero.
    window: u64,
    /// Number of bits in the window that may be taken.
    ready: u32,
}

impl<'a> Bits<'a> {
    /// The smallest number of bits that [`Self::refill`] provides.
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

    /// Loads the next [`Self::REFILL`] bits into the window; an error if more bits were taken than there are.
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
        // Shift the unread bits to the top of the window: first by bytes, then by bits.
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

    /// Ensures that the window has `count` bits, at most [`Self::REFILL`].
    #[inline(always)]
    pub fn ensure(&mut self, count: u32) -> Result<(), Error> {
        if self.ready < count {
            self.refill()?;
        }
        Ok(())
    }

    /// The next `count` bits, at most 63.
    #[inline(always)]
    pub fn peek(&self, count: u32) -> u64 {
        (self.window >> 1).wrapping_shr(63_u32.wrapping_sub(count))
    }

    /// Skips the next `count` bits.
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

    /// Checks that the whole stream was read; otherwise the error is `damaged` (4.1).
    pub fn finish(&self, damaged: &'static str) -> Result<(), Error> {
        match self.left {
            0 => Ok(()),
            _ => Err(Error::Damaged(damaged)),
        }
    }
}
