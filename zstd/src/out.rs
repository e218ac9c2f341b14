//! The content of a block on its way into place.

use crate::Error;

/// As many bytes are copied at once where it does not matter what is behind the wanted ones: most
/// literals and matches are not longer.
const CHUNK: usize = 8;

/// The output, as far as a block may write it.
pub(crate) struct Out<'o> {
    bytes: &'o mut [u8],
    /// Where the frame starts: matches are not from before.
    start: usize,
    end: usize,
    /// What the block may grow to, or the output, whichever is less.
    limit: usize,
}

impl<'o> Out<'o> {
    pub fn new(bytes: &'o mut [u8], start: usize, end: usize, block_bytes: usize) -> Self {
        let limit = bytes.len().min(end.saturating_add(block_bytes));
        Self {
            bytes,
            start,
            end,
            limit,
        }
    }

    pub const fn end(&self) -> usize {
        self.end
    }

    /// What was written from there on.
    pub fn since(&self, start: usize) -> &[u8] {
        self.bytes.get(start..self.end).unwrap_or_default()
    }

    /// How many of `count` more bytes there is room for.
    #[inline(always)]
    fn fitting(&self, count: usize) -> usize {
        count.min(self.limit.wrapping_sub(self.end))
    }

    /// After `written` of `count` bytes.
    #[inline(always)]
    fn advance(&mut self, written: usize, count: usize) -> Result<(), Error> {
        self.end = self.end.wrapping_add(written);
        if written == count {
            Ok(())
        } else if self.end == self.bytes.len() {
            Err(Error::TooLarge)
        } else {
            Err(Error::Damaged("a block unpacks to more than a block has"))
        }
    }

    /// Writes the first `count` of `literals`.
    #[inline(always)]
    pub fn literals(&mut self, literals: &[u8], count: usize) -> Result<(), Error> {
        if count == 0 {
            return Ok(());
        }
        let fitting = self.fitting(count);
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        if fitting <= CHUNK
            && let (Some(from), Some(to)) = (
                literals.first_chunk::<CHUNK>(),
                room.first_chunk_mut::<CHUNK>(),
            )
        {
            *to = *from;
        } else if let (Some(from), Some(to)) = (literals.get(..fitting), room.get_mut(..fitting)) {
            to.copy_from_slice(from);
        }
        self.advance(fitting, count)
    }

    /// Writes `byte` as often.
    pub fn fill(&mut self, byte: u8, count: usize) -> Result<(), Error> {
        let fitting = self.fitting(count);
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        room.get_mut(..fitting).unwrap_or_default().fill(byte);
        self.advance(fitting, count)
    }

    /// Repeats `count` bytes from `offset` bytes before on; these may be some that it writes.
    #[inline(always)]
    pub fn repeat(&mut self, offset: usize, count: usize) -> Result<(), Error> {
        if offset == 0 || offset > self.end.wrapping_sub(self.start) {
            return Err(Error::Damaged("a match is from before the frame"));
        }
        let from = self.end.wrapping_sub(offset);
        let fitting = self.fitting(count);
        if fitting <= CHUNK
            && offset >= CHUNK
            && let Some((before, room)) = self.bytes.split_at_mut_checked(self.end)
            && let (Some(from), Some(to)) = (
                before
                    .get(from..)
                    .and_then(|from| from.first_chunk::<CHUNK>()),
                room.first_chunk_mut::<CHUNK>(),
            )
        {
            *to = *from;
        } else {
            self.copy(from, fitting);
        }
        self.advance(fitting, count)
    }

    /// In pieces that do not overlap what they are copied from: each may be twice as long as the
    /// one before.
    fn copy(&mut self, from: usize, count: usize) {
        let (mut to, end) = (self.end, self.end.wrapping_add(count));
        while to < end {
            let Some((before, room)) = self.bytes.split_at_mut_checked(to) else {
                return;
            };
            let before = before.get(from..).unwrap_or_default();
            let piece = before.len().min(end.wrapping_sub(to));
            if let (Some(from), Some(to)) = (before.get(..piece), room.get_mut(..piece)) {
                to.copy_from_slice(from);
            }
            to = to.wrapping_add(piece);
        }
    }
}
