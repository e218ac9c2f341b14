//! Large reads: parts of files, cut into chunks, with chunks kept in flight across them.
//!
//! A room of this floor that holds `unsafe`: where a caller's buffer is cut up for the device.

use super::{Epoch, Session, Ticket, Until, slots};
use crate::{
    error::Error,
    fuse::{Handle, NodeId, OFFSET_MAX, Read, ReplyError},
    hal::{Clock, Hal},
};
use core::{fmt, marker::PhantomData, ptr::NonNull};
use virtio_drivers::transport::Transport;

/// A part of an open file, and the buffer that it is to be read into: see
/// [`File::part`](crate::fs::File::part).
pub struct Part<'a> {
    epoch: Epoch,
    node: NodeId,
    handle: Handle,
    /// Of the start of the buffer in the file.
    offset: u64,
    /// Of the file, as far as is known.
    size: u64,
    data: NonNull<u8>,
    /// Where the data ends, as far as is known: the buffer's size, or less once the file ended.
    end: usize,
    /// What was not asked for yet starts here.
    next: usize,
    /// What has come ends here: all before what failed, is in flight or was not asked for.
    come: usize,
    /// The first failure, and where the first chunk that failed starts.
    failed: Option<(Error, usize)>,
    buffer: PhantomData<&'a mut [u8]>,
}

impl<'a> Part<'a> {
    /// What is at `offset` of the file that `node` and `handle` are of, into `buf`.
    ///
    /// A short answer that ends at `size`, the file's size in bytes as far as is known, is taken
    /// for its end without another question.
    pub fn new(
        epoch: Epoch,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u64,
        buf: &'a mut [u8],
    ) -> Self {
        Self {
            epoch,
            node,
            handle,
            offset,
            size,
            end: buf.len(),
            next: 0,
            come: 0,
            failed: None,
            data: NonNull::from(buf).cast(),
            buffer: PhantomData,
        }
    }

    /// How many bytes at the start of the buffer have come. After a read without an error, fewer
    /// than the buffer's only at the end of the file.
    #[must_use]
    pub fn come(&self) -> usize {
        self.come
    }

    /// What has come: the start of the buffer.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: these bytes are the start of the buffer, borrowed for `'a`. The device has given
        // back the chunks that they came in, and gets none of them again.
        unsafe { NonNull::slice_from_raw_parts(self.data, self.come).as_ref() }
    }

    /// Why it could not be read, if that was this part's own fault and not another one's.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.failed.map(|(error, _)| error)
    }

    /// Readies it for a read in the session `epoch`, from where an earlier one has stopped.
    fn start(&mut self, epoch: Epoch) {
        self.next = self.come;
        let last = self.offset.checked_add(self.end as u64);
        let error = if self.epoch != epoch {
            Some(Error::Disconnected)
        } else if last.is_none_or(|last| last > OFFSET_MAX) {
            Some(Error::InvalidOffset)
        } else {
            None
        };
        self.failed = error.map(|error| (error, self.come));
    }

    fn fail(&mut self, error: Error, position: usize) {
        let (error, first) = self.failed.unwrap_or((error, position));
        self.failed = Some((error, first.min(position)));
    }

    /// Takes an answer of `size` bytes to `chunk`. What is still missing of it, to be asked for.
    fn complete(&mut self, chunk: &Chunk, size: usize) -> Option<(usize, usize)> {
        let end = chunk.position.saturating_add(chunk.read.size as usize);
        let come = chunk.position.saturating_add(size);
        let is_end = self.offset.saturating_add(come as u64) == self.size;
        if size == 0 || (come < end && is_end) {
            self.end = self.end.min(come);
            return None;
        }
        // A server may give less than asked before the end of the file.
        (come < end && come < self.end).then_some((come, end))
    }
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("node", &self.node)
            .field("offset", &self.offset)
            .field("come", &self.come)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// Parts on their way.
pub(super) struct Transfer<'t, 'a> {
    parts: &'t mut [Part<'a>],
    /// Those before it were asked for to their ends.
    current: usize,
    /// Chunks in flight, by slot.
    chunks: [Option<Chunk>; slots::COUNT],
}

#[derive(Clone, Copy)]
struct Chunk {
    /// Of which part.
    part: usize,
    /// Where in its buffer.
    position: usize,
    read: Read,
    ticket: Ticket,
}

impl<'t, 'a> Transfer<'t, 'a> {
    pub fn new(parts: &'t mut [Part<'a>]) -> Self {
        Self {
            parts,
            current: 0,
            chunks: [const { None }; slots::COUNT],
        }
    }

    /// Runs until nothing is in flight any more. The caller's `Lent` watches over the buffers.
    pub fn run<T: Transport, C: Clock, H: Hal>(
        mut self,
        session: &mut Session<T, C, H>,
        progress: &mut dyn FnMut(&[Part<'_>]),
    ) -> Result<(), Error> {
        for part in &mut *self.parts {
            part.start(session.epoch);
        }
        let result = loop {
            let failed = self.parts.iter().find_map(Part::error);
            // What is in flight must come back before the buffers do.
            let filled = failed.map_or_else(|| self.fill(session), |_| Ok(()));
            if self.chunks.iter().flatten().next().is_none() {
                break filled.and(failed.map_or(Ok(()), Err));
            }
            if let Err(error) = filled.and_then(|()| self.wait(session)) {
                break Err(error);
            }
            self.note_come();
            progress(self.parts);
        };
        self.note_come();
        progress(self.parts);
        result
    }

    /// Puts as many chunks in flight as there may be.
    fn fill<T: Transport, C: Clock, H: Hal>(
        &mut self,
        session: &mut Session<T, C, H>,
    ) -> Result<(), Error> {
        let chunk_size = session.options.chunk_size as usize;
        let in_flight = self.chunks.iter().flatten().count();
        let mut room = session.options.depth.saturating_sub(in_flight);
        while room > 0
            && let Some(part) = self.parts.get_mut(self.current)
        {
            let position = part.next;
            if position >= part.end {
                self.current = self.current.saturating_add(1);
                continue;
            }
            part.next = part.end.min(position.saturating_add(chunk_size));
            let end = part.next;
            self.submit(session, self.current, position, end)?;
            room = room.saturating_sub(1);
        }
        Ok(())
    }

    /// Asks for `position..end` of a part.
    fn submit<T: Transport, C: Clock, H: Hal>(
        &mut self,
        session: &mut Session<T, C, H>,
        index: usize,
        position: usize,
        end: usize,
    ) -> Result<(), Error> {
        let Some(part) = self.parts.get_mut(index) else {
            return Ok(());
        };
        let size = end.saturating_sub(position);
        let read = Read {
            node: part.node,
            handle: part.handle,
            // Below 2^63, as `Part::start` checked.
            offset: part.offset.saturating_add(position as u64),
            size: size as u32,
        };
        // SAFETY: `position` is inside the buffer that `data` points to.
        let start = unsafe { part.data.add(position) };
        let data = NonNull::slice_from_raw_parts(start, size);
        let ticket = match session.submit(&read, Some(data)) {
            Ok(ticket) => ticket,
            Err(error) => {
                part.fail(error, position);
                return Err(error);
            }
        };
        // As many places as slots.
        if let Some(place) = self.chunks.get_mut(ticket.slot.index()) {
            *place = Some(Chunk {
                part: index,
                position,
                read,
                ticket,
            });
        }
        Ok(())
    }

    /// Waits for a chunk, and takes all that are there.
    fn wait<T: Transport, C: Clock, H: Hal>(
        &mut self,
        session: &mut Session<T, C, H>,
    ) -> Result<(), Error> {
        let tickets = self.chunks.iter().flatten().map(|chunk| chunk.ticket.slot);
        session.wait(Until::Done(tickets.collect()))?;
        for index in 0..self.chunks.len() {
            let Some(chunk) = self.chunks.get(index).copied().flatten() else {
                continue;
            };
            if session.link()?.slots.done(chunk.ticket.slot).is_none() {
                continue;
            }
            let answer = session.finish(&chunk.read, chunk.ticket);
            if let Err(ReplyError::Malformed(violation)) = answer {
                // A host that lies about one is not waited for: `Lent` resets the device.
                return Err(violation.into());
            }
            if let Some(place) = self.chunks.get_mut(index) {
                *place = None;
            }
            let Some(part) = self.parts.get_mut(chunk.part) else {
                continue;
            };
            match answer {
                Ok(size) => {
                    if let Some((position, end)) = part.complete(&chunk, size) {
                        self.submit(session, chunk.part, position, end)?;
                    }
                }
                Err(error) => part.fail(error.into(), chunk.position),
            }
        }
        Ok(())
    }

    /// Notes for each part how far it has come.
    fn note_come(&mut self) {
        for part in &mut *self.parts {
            let failed = part.failed.map_or(usize::MAX, |(_, position)| position);
            part.come = part.next.min(part.end).min(failed);
        }
        for chunk in self.chunks.iter().flatten() {
            if let Some(part) = self.parts.get_mut(chunk.part) {
                part.come = part.come.min(chunk.position);
            }
        }
    }
}
