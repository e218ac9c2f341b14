//! Bytes on their way between a port and the command.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::{Errno, read, write};

/// The kernel's pipes hold as much.
const SIZE: usize = 64 << 10;

/// A way from one descriptor to another, both not blocking.
pub struct Flow {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// What of the buffer was written already.
    done: usize,
    /// How many bytes have gone through.
    pub sent: u64,
}

impl Flow {
    pub fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self {
            from: Some(from),
            to: Some(to),
            buffer: Vec::with_capacity(SIZE),
            done: 0,
            sent: 0,
        }
    }

    /// Whether nothing more will come.
    pub fn is_over(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    /// What to wait for: something to read while nothing waits to be written, or else room.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let (fd, flags) = if self.buffer.is_empty() {
            (&self.from, PollFlags::IN)
        } else {
            (&self.to, PollFlags::OUT)
        };
        Some((fd.as_ref()?.as_fd(), flags))
    }

    /// Moves what can be moved; `flags` is what poll(2) told of the descriptor waited for.
    pub fn advance(&mut self, flags: PollFlags) {
        if !self.buffer.is_empty() && flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            // Nobody takes it: who writes is told so, by SIGPIPE.
            self.end();
            return;
        }
        while self.fill() && self.drain() {}
        if self.from.is_none() && self.buffer.is_empty() {
            self.to = None;
        }
    }

    /// Reads unless something waits; whether there is something to write.
    fn fill(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return true;
        }
        let Some(from) = &self.from else {
            return false;
        };
        self.buffer.resize(SIZE, 0);
        let result = read(from, &mut self.buffer[..]);
        self.buffer.truncate(*result.as_ref().unwrap_or(&0));
        if !matches!(result, Ok(1..) | Err(Errno::AGAIN | Errno::INTR)) {
            // The end; of a terminal whose last user has gone it is EIO.
            self.from = None;
        }
        !self.buffer.is_empty()
    }

    /// Writes; whether all was taken.
    fn drain(&mut self) -> bool {
        let Some(to) = &self.to else {
            self.end();
            return false;
        };
        while self.done < self.buffer.len() {
            match write(to, &self.buffer[self.done..]) {
                Ok(count) => {
                    self.done += count;
                    self.sent += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => {
                    self.end();
                    return false;
                }
            }
        }
        self.buffer.clear();
        self.done = 0;
        true
    }

    fn end(&mut self) {
        self.buffer.clear();
        (self.from, self.to) = (None, None);
    }
}
