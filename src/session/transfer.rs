//! Large reads: parts of files, divided into chunks, of which several are in flight.
//!
//! This module contains `unsafe`: a caller's buffer is cut into chunks for the device here.

use super::{
    Client, Epoch, MAX_DEPTH, Session, Ticket,
    client::{RETRIES, is_again},
    memory::or_abort,
};
use crate::{
    error::Error,
    fuse::{Handle, NodeId, OFFSET_MAX, Read},
    hal::{Clock, Hal},
};
use core::{fmt, marker::PhantomData, ops::ControlFlow, ptr::NonNull, time::Duration};
use heapless::Vec;
use virtio_drivers::transport::Transport;

/// A part of an open file, and the buffer to read it into: see
/// [`File::part`](crate::fs::File::part).
pub struct Part<'a> {
    epoch: Epoch,
    node: NodeId,
    handle: Handle,
    /// Offset in the file of the start of the buffer.
    offset: u64,
    /// Size of the file in bytes, as far as known.
    size: u64,
    data: NonNull<u8>,
    /// End of the data in the buffer, as far as known: the buffer's size, or less once the end of the
    /// file was reached.
    end: usize,
    /// Start of the bytes that were not requested yet.
    next: usize,
    /// End of the bytes that are filled: before the first byte that failed, is in flight or was not
    /// requested.
    filled: usize,
    /// The error that came first, and the start of the failed chunk with the lowest position.
    failed: Option<(Error, usize)>,
    buffer: PhantomData<&'a mut [u8]>,
}

impl<'a> Part<'a> {
    /// The bytes at `offset` of the open file `node` and `handle`, to be read into `buf`.
    ///
    /// `size` is the file's size in bytes, as far as known. A short reply that ends there is taken for
    /// the end of the file, without another READ.
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
            filled: 0,
            failed: None,
            data: NonNull::from(buf).cast(),
            buffer: PhantomData,
        }
    }

    /// Number of bytes at the start of the buffer that are filled. After a read without an error, less
    /// than the buffer's size only at the end of the file.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The filled bytes at the start of the buffer.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: these bytes are the start of the buffer, borrowed for `'a`. The device has completed
        // the chunks that contain them, and they are not lent to it again.
        unsafe { NonNull::slice_from_raw_parts(self.data, self.filled).as_ref() }
    }

    /// Why this part could not be read. `None` if another part's error ended the read.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.failed.map(|(error, _)| error)
    }

    fn read(&self) -> Read {
        Read {
            node: self.node,
            handle: self.handle,
            offset: self.offset,
            size: 0,
            is_dir: false,
        }
    }

    /// Prepares a read in the session `epoch`, which continues where an earlier one stopped.
    fn start(&mut self, epoch: Epoch) {
        self.next = self.filled;
        // No file has bytes after the largest offset.
        let most = OFFSET_MAX.checked_sub(self.offset);
        let error = match most {
            _ if self.epoch != epoch => Some(Error::Disconnected),
            None => Some(Error::InvalidOffset),
            Some(most) => {
                self.end = usize::try_from(most).map_or(self.end, |most| self.end.min(most));
                None
            }
        };
        self.failed = error.map(|error| (error, self.filled));
    }

    fn fail(&mut self, error: Error, position: usize) {
        let (error, first) = self.failed.unwrap_or((error, position));
        self.failed = Some((error, first.min(position)));
    }
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("node", &self.node)
            .field("offset", &self.offset)
            .field("filled", &self.filled)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl<T: Transport, C: Clock, H: Hal> Client<T, C, H> {
    /// Reads all `parts` straight into their buffers, with several chunks in flight. The chunks are
    /// requested in the order of the parts; those of the next part follow without a gap.
    ///
    /// `progress` is called with the parts from time to time, and before the return. If it returns
    /// `Break`, no more requests are sent, and the read ends when those in flight have completed.
    ///
    /// # Errors
    ///
    /// The error of the first part that failed; no more requests are sent then.
    /// [`Error::Disconnected`] for a part of another session, [`Error::Cancelled`] if `progress`
    /// returned `Break`. [`Part::filled`] tells how much of each part is filled.
    pub fn read(
        &self,
        parts: &mut [Part<'_>],
        progress: &mut dyn FnMut(&[Part<'_>]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        Transfer::new(self, parts).run(progress)
    }
}

/// A read of several parts in progress. If it is dropped early, by an error or a panic, it resets the
/// device, so that the buffers can go back to their owner.
struct Transfer<'t, 'a, T: Transport, C: Clock, H: Hal> {
    client: &'t Client<T, C, H>,
    parts: &'t mut [Part<'a>],
    /// Index of the first part that is not completely requested.
    current: usize,
    chunks: Vec<Chunk, MAX_DEPTH>,
    /// No more chunks are to be requested.
    is_cancelled: bool,
}

/// A range of a part that is requested, or about to be.
struct Chunk {
    /// Index of the part.
    part: usize,
    /// Start of the range in the part's buffer.
    position: usize,
    end: usize,
    /// The READ in flight for the start of the range, if any.
    asked: Option<Ticket>,
    /// When the chunk was first seen in flight. It is kept over several READs, so that replies of one
    /// byte each cannot make the chunk take for ever.
    since: Option<Duration>,
    retries: u32,
}

/// The result of one poll of the device.
enum Step {
    /// No chunk is in flight any more.
    Finished(Result<(), Error>),
    Progress,
    Nothing,
}

impl<'t, 'a, T: Transport, C: Clock, H: Hal> Transfer<'t, 'a, T, C, H> {
    pub fn new(client: &'t Client<T, C, H>, parts: &'t mut [Part<'a>]) -> Self {
        Self {
            client,
            parts,
            current: 0,
            chunks: Vec::new(),
            is_cancelled: false,
        }
    }

    /// Runs until no chunk is in flight any more.
    pub fn run(
        mut self,
        progress: &mut dyn FnMut(&[Part<'_>]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let epoch = self.client.epoch();
        for part in &mut *self.parts {
            part.start(epoch);
        }
        let mut looks = 0;
        let result = loop {
            let mut session = self.client.lock();
            let step = self.step(&mut session, epoch);
            drop(session);
            match step {
                Ok(Step::Finished(result)) => break result,
                Ok(Step::Progress) => {
                    self.note_filled();
                    self.is_cancelled |= progress(self.parts).is_break();
                }
                Ok(Step::Nothing) => self.client.pause(&mut looks),
                Err(error) => {
                    self.client.settle();
                    break Err(error);
                }
            }
        };
        self.take_back();
        self.note_filled();
        // Nothing is left to cancel.
        _ = progress(self.parts);
        result
    }

    /// Takes the completed chunks, and requests as many as the options allow.
    fn step(&mut self, session: &mut Session<T, H>, epoch: Epoch) -> Result<Step, Error> {
        let progress = self.take(session, epoch)?;
        let failed = self.parts.iter().find_map(Part::error);
        let failed = failed.or(self.is_cancelled.then_some(Error::Cancelled));
        if failed.is_some() {
            // The chunks in flight must complete before the buffers are given back.
            self.chunks.retain(|chunk| chunk.asked.is_some());
        } else {
            self.fill(session, epoch)?;
        }
        // `chunks` may be empty only because other users of the share have all the room.
        let is_all_asked = failed.is_some() || self.current >= self.parts.len();
        if self.chunks.is_empty() && is_all_asked {
            return Ok(Step::Finished(failed.map_or(Ok(()), Err)));
        }
        session.kick();
        Ok(if session.poll() || progress {
            Step::Progress
        } else {
            Step::Nothing
        })
    }

    /// Takes the completed chunks; returns whether there were any.
    fn take(&mut self, session: &mut Session<T, H>, epoch: Epoch) -> Result<bool, Error> {
        if !self.chunks.is_empty() && session.check(epoch).is_err() {
            return Err(session.failure());
        }
        let mut progress = false;
        let parts = &mut *self.parts;
        self.chunks.retain_mut(|chunk| {
            let (Some(ticket), Some(part)) = (chunk.asked, parts.get_mut(chunk.part)) else {
                return true;
            };
            chunk.since = session.since(ticket);
            let answer = session.take(&part.read(), ticket).transpose();
            answer.is_none_or(|answer| {
                chunk.asked = None;
                progress = true;
                chunk.goes_on(part, answer, ticket.lent())
            })
        });
        Ok(progress)
    }

    /// Requests as many chunks as the options and the rings allow.
    fn fill(&mut self, session: &mut Session<T, H>, epoch: Epoch) -> Result<(), Error> {
        for chunk in &mut self.chunks {
            if chunk.asked.is_none()
                && let Some(part) = self.parts.get_mut(chunk.part)
                && !chunk.ask(part, session, epoch)?
            {
                return Ok(());
            }
        }
        let chunk_size = session.options.chunk_size as usize;
        while self.chunks.len() < session.options.depth
            && let Some(part) = self.parts.get_mut(self.current)
        {
            let position = part.next;
            if position >= part.end {
                self.current = self.current.saturating_add(1);
                continue;
            }
            let mut chunk = Chunk {
                part: self.current,
                position,
                end: part.end.min(position.saturating_add(chunk_size)),
                asked: None,
                since: None,
                retries: RETRIES,
            };
            if !chunk.ask(part, session, epoch)? {
                return Ok(());
            }
            part.next = chunk.end;
            // This cannot fail: the depth is at most `MAX_DEPTH`.
            _ = self.chunks.push(chunk);
        }
        Ok(())
    }

    /// Resets the device if it still has a chunk of the buffers.
    fn take_back(&self) {
        self.client.recall(|session| {
            let mut tickets = self.chunks.iter().filter_map(|chunk| chunk.asked);
            !tickets.any(|ticket| session.has(ticket))
        });
    }

    /// Updates how much of each part is filled.
    fn note_filled(&mut self) {
        for part in &mut *self.parts {
            let failed = part.failed.map_or(usize::MAX, |(_, position)| position);
            part.filled = part.next.min(part.end).min(failed);
        }
        for chunk in &self.chunks {
            if let Some(part) = self.parts.get_mut(chunk.part) {
                part.filled = part.filled.min(chunk.position);
            }
        }
    }
}

impl<T: Transport, C: Clock, H: Hal> Drop for Transfer<'_, '_, T, C, H> {
    fn drop(&mut self) {
        // An unwind from here would end the borrow of the buffers too early.
        or_abort(|| self.take_back());
    }
}

impl Chunk {
    /// Requests the chunk, or the start of it. `false` if there is no room now.
    fn ask<T: Transport, H: Hal>(
        &mut self,
        part: &mut Part<'_>,
        session: &mut Session<T, H>,
        epoch: Epoch,
    ) -> Result<bool, Error> {
        // SAFETY: `position` is inside the buffer that `data` points to.
        let to = unsafe { part.data.add(self.position) };
        let read = Read {
            // At most 2^63 - 1, as checked by `Part::start`.
            offset: part.offset.saturating_add(self.position as u64),
            ..part.read()
        };
        let size = self.end.saturating_sub(self.position);
        let to = NonNull::slice_from_raw_parts(to, size);
        // SAFETY: these bytes are a part of the buffer, which is borrowed for `'a`. No other chunk
        // contains them, they are not read before they are filled, and `Transfer` does not give the
        // buffer back while the session has the ticket.
        match unsafe { session.submit_read(epoch, read, to) } {
            Ok(asked) => {
                self.asked = asked;
                if let Some(ticket) = asked {
                    session.set_since(ticket, self.since);
                }
                Ok(asked.is_some())
            }
            Err(error) => {
                part.fail(error, self.position);
                Err(error)
            }
        }
    }

    /// Processes the reply to a READ of `lent` bytes; returns whether the chunk needs another READ.
    fn goes_on(&mut self, part: &mut Part<'_>, answer: Result<usize, Error>, lent: usize) -> bool {
        if is_again(&answer) && self.retries > 0 {
            self.retries = self.retries.saturating_sub(1);
            return true;
        }
        match answer {
            Ok(size) => {
                let end = self.position.saturating_add(lent);
                self.position = self.position.saturating_add(size);
                let is_end = part.offset.saturating_add(self.position as u64) == part.size;
                if size == 0 || (self.position < end && is_end) {
                    part.end = part.end.min(self.position);
                }
                // A server may return less than requested before the end of the file.
                self.position < self.end.min(part.end)
            }
            Err(error) => {
                part.fail(error, self.position);
                false
            }
        }
    }
}
