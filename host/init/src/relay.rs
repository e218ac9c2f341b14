//! Forwards bytes between a port and the command.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::{Errno, read, write};

/// The size of the kernel's pipes.
const SIZE: usize = 64 << 10;

/// A connection from one descriptor to another, both in nonblocking mode.
pub struct Flow {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// The number of bytes of the buffer that are already written.
    done: usize,
    /// The number of forwarded bytes.
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

    /// Whether both sides have ended.
    pub fn is_over(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    /// The descriptor and event to wait for: to write if the buffer has data, else to read.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let (fd, flags) = if self.buffer.is_empty() {
            (&self.from, PollFlags::IN)
        } else {
            (&self.to, PollFlags::OUT)
        };
        Some((fd.as_ref()?.as_fd(), flags))
    }

    /// Forwards what is possible; `flags` are the events of the descriptor that was waited for.
    pub fn advance(&mut self, flags: PollFlags) {
        if !self.buffer.is_empty() && flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            // The reader has closed its end. The writer gets SIGPIPE.
            self.end();
            return;
        }
        while self.fill() && self.drain() {}
        if self.from.is_none() && self.buffer.is_empty() {
            self.to = None;
        }
    }

    /// Reads if the buffer is empty. Returns whether it has data now.
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
            // The end of the data; a terminal without users gives EIO.
            self.from = None;
        }
        !self.buffer.is_empty()
    }

    /// Writes. Returns whether the buffer is empty now.
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
