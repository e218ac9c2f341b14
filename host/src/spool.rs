//! A queue between the console and our standard output, whose reader may be slow or stopped.
//!
//! A thread of its own writes to standard output, so a blocked standard output delays nothing else.
//! Pending data is kept in memory and, beyond a limit, in an unnamed temporary file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use crate::fd::{AT_A_TIME, write_all};

/// How much is kept in memory.
const IN_MEMORY: usize = 1 << 20;

/// Console output that standard output has not taken yet.
pub(crate) struct Spool {
    queue: Arc<Queue>,
    /// The thread holds the other end.
    news: UnixStream,
}

struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Pending data in order: first the part in memory, then the file, then `rest`.
#[derive(Default)]
struct Waiting {
    memory: Vec<u8>,
    file: Option<File>,
    /// The part of the file that is not written yet.
    start: u64,
    end: u64,
    /// Data that could not be written to the file because the disk is full.
    behind: Vec<u8>,
    /// The total size of the pending data.
    unshown: u64,
    is_closed: bool,
    failure: Option<io::Error>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spool {
    /// Starts the thread that writes to standard output.
    pub(crate) fn start() -> Result<Self> {
        Self::to(rustix::stdio::stdout())
    }

    fn to(out: impl AsFd + Send + 'static) -> Result<Self> {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            changed: Condvar::new(),
        });
        let (news, notifier) = UnixStream::pair().context("cannot make a socket")?;
        for end in [&news, &notifier] {
            end.set_nonblocking(true).context("cannot make a socket")?;
        }
        let theirs = Arc::clone(&queue);
        thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                if let Err(error) = write_all_of(&theirs, &out, &notifier) {
                    theirs.lock().failure = Some(error);
                }
            })
            .context("cannot start a thread")?;
        Ok(Self { queue, news })
    }

    /// Appends `bytes` to the pending data.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut waiting = self.queue.lock();
        if waiting.failure.is_some() {
            return;
        }
        waiting.unshown += bytes.len() as u64;
        waiting.add(bytes);
        self.queue.changed.notify_one();
    }

    /// Whether there is room for more; if not, [`news`](Self::news) becomes readable when there is.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.lock().behind.is_empty()
    }

    /// Declares that no more will be pushed: the thread ends when everything is written.
    pub(crate) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.queue.changed.notify_one();
    }

    /// Becomes readable when there is room again, and stays readable once the thread has ended.
    pub(crate) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Clears [`news`](Self::news) and returns whether the thread has ended: everything is written,
    /// or standard output has failed.
    pub(crate) fn has_ended(&self) -> bool {
        matches!((&self.news).read(&mut [0; 64]), Ok(0))
    }

    /// How many bytes were pushed but not written.
    pub(crate) fn unshown(&self) -> u64 {
        self.queue.lock().unshown
    }

    /// The error of standard output, returned once.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.queue.lock().failure.take()
    }
}

impl Waiting {
    fn add(&mut self, bytes: &[u8]) {
        let file_is_empty = self.start == self.end;
        if !self.behind.is_empty() {
            self.behind.extend_from_slice(bytes);
        } else if file_is_empty && self.memory.len() + bytes.len() <= IN_MEMORY {
            self.memory.extend_from_slice(bytes);
        } else if self.write(bytes).is_err() {
            self.behind.extend_from_slice(bytes);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// The next bytes to write; empty if nothing is pending.
    fn take(&mut self) -> io::Result<Vec<u8>> {
        if !self.memory.is_empty() {
            return Ok(std::mem::take(&mut self.memory));
        }
        if let Some(file) = &self.file
            && self.start < self.end
        {
            let left = usize::try_from(self.end - self.start).unwrap_or(usize::MAX);
            let mut bytes = vec![0; left.min(AT_A_TIME)];
            file.read_exact_at(&mut bytes, self.start)?;
            self.start += bytes.len() as u64;
            if self.start == self.end {
                file.set_len(0)?;
                (self.start, self.end) = (0, 0);
            }
            return Ok(bytes);
        }
        Ok(std::mem::take(&mut self.behind))
    }
}

/// Writes the pending data until the spool is closed and empty.
fn write_all_of(queue: &Queue, out: &impl AsFd, notifier: &UnixStream) -> io::Result<()> {
    loop {
        let mut waiting = queue.lock();
        let bytes = loop {
            let had_room = waiting.behind.is_empty();
            let bytes = waiting.take()?;
            if !had_room && waiting.behind.is_empty() {
                // If the pipe is full, the reader has been notified already.
                let _ = rustix::io::write(notifier, &[0]);
            }
            if !bytes.is_empty() || waiting.is_closed {
                break bytes;
            }
            let woken = queue.changed.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        };
        drop(waiting);
        if bytes.is_empty() {
            return Ok(());
        }
        write_all(out.as_fd(), &bytes, |count| {
            queue.lock().unshown -= count as u64;
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd::ready;
    use rustix::event::PollFlags;
    use std::time::Duration;

    fn text(length: usize) -> Vec<u8> {
        let mut number = 1_u32;
        let bytes = std::iter::repeat_with(|| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            number.to_be_bytes()[0]
        });
        bytes.take(length).collect()
    }

    /// Waits until the thread has ended.
    fn end(spool: &Spool) {
        while !spool.has_ended() {
            ready(&[(spool.news(), PollFlags::IN)], None).unwrap();
        }
    }

    #[test]
    fn unread_text_is_kept_in_a_file_and_stays_in_order() {
        for is_nonblocking in [false, true] {
            let (mut reader, writer) = io::pipe().unwrap();
            rustix::io::ioctl_fionbio(&writer, is_nonblocking).unwrap();
            let spool = Spool::to(writer).unwrap();
            let text = text(5 << 20);
            let (first, rest) = text.split_at(3 << 20);
            for part in first.chunks(10_000) {
                spool.push(part);
            }
            assert!(spool.queue.lock().memory.len() <= IN_MEMORY);
            assert!(spool.queue.lock().end > 0);
            assert!(spool.unshown() > 2 << 20);
            let mut came = vec![0; 1 << 20];
            reader.read_exact(&mut came).unwrap();
            rest.chunks(10_000).for_each(|part| spool.push(part));
            spool.close();
            reader.read_to_end(&mut came).unwrap();
            end(&spool);
            assert!(came == text, "it is not the same");
            assert_eq!(spool.unshown(), 0);
            assert_eq!(
                spool
                    .queue
                    .lock()
                    .file
                    .as_ref()
                    .unwrap()
                    .metadata()
                    .unwrap()
                    .len(),
                0
            );
        }
    }

    #[test]
    fn a_full_disk_asks_the_caller_to_wait_and_loses_nothing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let spool = Spool::to(writer).unwrap();
        let full = File::options().read(true).write(true).open("/dev/full");
        spool.queue.lock().file = Some(full.unwrap());
        // More than what the memory and the pipe take.
        let text = text(4 << 20);
        let mut parts = text.chunks(AT_A_TIME);
        while spool.has_room() {
            spool.push(parts.next().unwrap());
        }
        assert!(!spool.has_ended());
        let reading = thread::spawn(move || {
            let mut came = Vec::new();
            reader.read_to_end(&mut came).map(|_| came).unwrap()
        });
        ready(&[(spool.news(), PollFlags::IN)], None).unwrap();
        assert!(!spool.has_ended() && spool.has_room());
        for part in parts {
            spool.push(part);
            while !spool.has_room() {
                ready(&[(spool.news(), PollFlags::IN)], None).unwrap();
                assert!(!spool.has_ended());
            }
        }
        spool.close();
        assert!(reading.join().unwrap() == text, "it is not the same");
    }

    #[test]
    fn a_closed_pipe_ends_the_spool_with_the_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let spool = Spool::to(writer).unwrap();
        spool.push(b"text");
        end(&spool);
        let failure = spool.failure().unwrap();
        assert_eq!(failure.kind(), io::ErrorKind::BrokenPipe);
        // After a failure nothing is kept.
        spool.push(&[0; 1 << 20]);
        assert!(ready(&[(spool.news(), PollFlags::IN)], Some(Duration::ZERO)).unwrap()[0]);
    }
}
