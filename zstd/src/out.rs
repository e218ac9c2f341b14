//! Writes the content of a block to the output.

use crate::Error;

/// Short copies always copy this many bytes, which is faster: the bytes after the wanted ones do not matter. Most
/// literals and matches are not longer.
const CHUNK: usize = 8;

/// The output, and the limits of a block in it.
pub(crate) struct Out<'o> {
    bytes: &'o mut [u8],
    /// The start of the frame, which is also the lowest start of a match.
    start: usize,
    end: usize,
    /// The end of the output, or the largest end of the block if that is lower.
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

    /// The bytes written from `start` on.
    pub fn since(&self, start: usize) -> &[u8] {
        self.bytes.get(start..self.end).unwrap_or_default()
    }

    /// How many of the next `count` bytes fit.
    #[inline(always)]
    fn fitting(&self, count: usize) -> usize {
        count.min(self.limit.wrapping_sub(self.end))
    }

    /// Records that `written` of `count` bytes were written; an error if that is not all of them.
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

    /// Writes `byte` `count` times.
    pub fn fill(&mut self, byte: u8, count: usize) -> Result<(), Error> {
        let fitting = self.fitting(count);
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        room.get_mut(..fitting).unwrap_or_default().fill(byte);
        self.advance(fitting, count)
    }

    /// Copies `count` bytes from `offset` bytes before the end; the source may include bytes written by this call.
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

    /// Copies in pieces that do not overlap their source: each piece can be twice as long as the one before.
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
