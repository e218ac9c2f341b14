//! Answers a request in guest memory: refuses modifying operations, injects faults, records the
//! trace, and passes the rest to fuse-backend-rs's decoder and the file system.

use std::any::Any;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::fault::{Injector, Verdict, mix};
use super::fs::Share;
use super::opcode;
use super::trace::{self, Exchange, REQUEST_HEAD, Trace};

/// `fuse_in_header`.
const HEADER: usize = 40;

/// `fuse_out_header`.
const REPLY_HEADER: usize = 16;

/// A reference to the guest's memory, as a descriptor chain holds it.
pub trait MemoryRef: Deref<Target = GuestMemoryMmap> + Clone {}

impl<M: Deref<Target = GuestMemoryMmap> + Clone> MemoryRef for M {}

/// Answers the requests of one share.
pub(super) struct Service {
    tag: String,
    share: Arc<Share>,
    server: Server<Arc<Share>>,
    injector: Option<Injector>,
    trace: Option<Arc<Trace>>,
}

/// A request that was taken from the queue and is not answered yet. Requests are taken in the order
/// of the queue, so that faults are reproducible.
pub(super) struct Taken {
    /// The first [`REQUEST_HEAD`] bytes; fewer if the request is shorter.
    head: [u8; REQUEST_HEAD],
    head_len: usize,
    len: usize,
    start: Instant,
    pub(super) verdict: Verdict,
}

/// The result of answering a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The length for the used ring; `None` if the request must not be returned to the driver.
    pub(super) used: Option<u32>,
    /// The message of a panic while it was answered.
    pub(super) panic: Option<String>,
}

impl Service {
    pub(super) fn new(
        tag: String,
        share: Share,
        injector: Option<Injector>,
        trace: Option<Arc<Trace>>,
    ) -> Self {
        let share = Arc::new(share);
        Self {
            tag,
            server: Server::new(Arc::clone(&share)),
            share,
            injector,
            trace,
        }
    }

    /// The first file that a guest could not read because of the host's permissions, and the
    /// reason.
    pub(super) fn denied(&self) -> Option<String> {
        self.share.denied()
    }

    /// The last request that succeeded and the last one that failed, on one line.
    pub(super) fn last_requests(&self) -> Option<String> {
        self.share.last_requests()
    }

    /// Closes all handles of a guest that has disconnected, and forgets its nodes.
    pub(super) fn forget_all(&self) {
        self.share.forget_all();
    }

    /// Reads the head of a request and determines its faults.
    pub(super) fn take(&self, chain: &DescriptorChain<impl MemoryRef>) -> Taken {
        let start = Instant::now();
        let mut head = [0; REQUEST_HEAD];
        let (mut head_len, mut len) = (0, 0_usize);
        for part in chain.clone().readable() {
            len = len.saturating_add(part.len() as usize);
            let rest = &mut head[head_len..];
            let size = rest.len().min(part.len() as usize);
            // An address outside guest memory: stop here, the decoder rejects the short request.
            if chain
                .memory()
                .read_slice(&mut rest[..size], part.addr())
                .is_err()
            {
                break;
            }
            head_len += size;
        }
        let mut taken = Taken {
            head,
            head_len,
            len,
            start,
            verdict: Verdict::default(),
        };
        if let Some(injector) = &self.injector {
            taken.verdict = injector.judge(taken.opcode());
        }
        taken
    }

    /// Answers a request. `wait` is called for an injected delay.
    pub(super) fn answer(
        &self,
        chain: &DescriptorChain<impl MemoryRef>,
        taken: &Taken,
        wait: Option<&dyn Fn(Duration)>,
    ) -> Answer {
        let verdict = &taken.verdict;
        if let (Some(time), Some(wait)) = (verdict.delay, wait) {
            wait(time);
        }
        let mut answer = Answer::default();
        if !verdict.drop && !verdict.disconnect {
            answer = self.reply(chain, taken);
            spoil(chain, verdict, &mut answer);
        }
        if let Some(used) = answer.used
            && !opcode::is_silent(taken.opcode())
        {
            let bytes = used.saturating_sub(REPLY_HEADER as u32);
            self.share
                .last
                .note(taken.head(), error_of(chain, used), bytes);
        }
        if let Some(recorder) = &self.trace {
            let limit = trace::reply_head(taken.opcode());
            let reply = answer.used.map(|used| (reply(chain, limit, used), used));
            recorder.record(&Exchange {
                tag: &self.tag,
                start: taken.start,
                request: taken.head(),
                request_len: taken.len,
                reply: reply.as_ref().map(|(bytes, used)| (&**bytes, *used)),
                verdict: *verdict,
            });
        }
        answer
    }

    fn reply(&self, chain: &DescriptorChain<impl MemoryRef>, taken: &Taken) -> Answer {
        let silent = opcode::is_silent(taken.opcode());
        let refuse = |errno: i32| Answer {
            used: Some(if silent {
                0
            } else {
                write_error(chain, taken, errno)
            }),
            panic: None,
        };
        let Some(body) = taken.head().get(HEADER..) else {
            return refuse(libc::EINVAL);
        };
        if let Some(errno) = opcode::refusal(taken.opcode(), body) {
            return refuse(errno.raw_os_error());
        }
        if let Some(errno) = taken.verdict.error {
            return refuse(errno);
        }
        if !self.share.is_mounted() && !opcode::is_init(taken.opcode()) {
            return refuse(libc::EIO);
        }
        let memory = chain.memory();
        let (Ok(reader), Ok(writer)) = (
            Reader::from_descriptor_chain(memory, chain.clone()),
            VirtioFsWriter::new(memory, chain.clone()),
        ) else {
            return refuse(libc::EFAULT);
        };
        let handle = || {
            assert!(!taken.verdict.panic, "as the fault asks");
            self.server
                .handle_message(reader, writer.into(), None, None)
        };
        match catch_unwind(AssertUnwindSafe(handle)) {
            Ok(Ok(used)) => Answer {
                used: Some(u32::try_from(used).unwrap_or(u32::MAX)),
                panic: None,
            },
            // A malformed request.
            Ok(Err(_)) => refuse(libc::EINVAL),
            Err(panic) => Answer {
                panic: Some(message(&*panic)),
                ..refuse(libc::EIO)
            },
        }
    }
}

impl Taken {
    fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    fn opcode(&self) -> u32 {
        opcode::word(self.head(), 4).unwrap_or(0)
    }

    /// The size that a READ asks for.
    pub(super) fn read_size(&self) -> Option<u32> {
        let is_read = opcode::name(self.opcode()) == Some("READ");
        // `fuse_read_in`: after the handle and the offset.
        opcode::word(self.head(), HEADER + 16).filter(|_| is_read)
    }
}

/// Writes a reply that consists of a header only; returns its length, 0 if it does not fit.
fn write_error(chain: &DescriptorChain<impl MemoryRef>, taken: &Taken, errno: i32) -> u32 {
    let mut bytes = (REPLY_HEADER as u32).to_le_bytes().to_vec();
    bytes.extend((-errno).to_le_bytes());
    bytes.extend(taken.head().get(8..16).unwrap_or(&[0; 8]));
    let mut rest = &bytes[..];
    for part in chain.clone().writable() {
        let (now, later) = rest.split_at(rest.len().min(part.len() as usize));
        if chain.memory().write_slice(now, part.addr()).is_err() {
            return 0;
        }
        rest = later;
    }
    if rest.is_empty() {
        REPLY_HEADER as u32
    } else {
        0
    }
}

/// Applies the faults that change a reply.
fn spoil(chain: &DescriptorChain<impl MemoryRef>, verdict: &Verdict, answer: &mut Answer) {
    let Some(used) = &mut answer.used else {
        return;
    };
    if let Some(seed) = verdict.corrupt
        && *used > 0
    {
        // Flip one bit: in half of the corrupted replies in the header, otherwise anywhere.
        let place = mix(seed);
        let end = if place & 1 == 0 {
            REPLY_HEADER as u32
        } else {
            *used
        };
        flip(
            chain,
            (place >> 8) % u64::from(end.min(*used)),
            1 << (place >> 4 & 7),
        );
    }
    if let Some(bytes) = verdict.truncate {
        *used = (*used).min(bytes);
    }
}

fn flip(chain: &DescriptorChain<impl MemoryRef>, mut offset: u64, bits: u8) {
    for part in chain.clone().writable() {
        if let Some(next) = offset.checked_sub(part.len().into()) {
            offset = next;
            continue;
        }
        let memory = chain.memory();
        let address = part.addr();
        if let Some(address) = vm_memory::Address::checked_add(&address, offset)
            && let Ok(byte) = memory.read_obj::<u8>(address)
        {
            // The byte could be read, so it can be written.
            let _ = memory.write_obj(byte ^ bits, address);
        }
        return;
    }
}

/// The errno of a reply, or 0. Only a reply without a body has one.
fn error_of(chain: &DescriptorChain<impl MemoryRef>, used: u32) -> i32 {
    let header = chain.clone().writable().next();
    let header = header.filter(|_| used == REPLY_HEADER as u32);
    let error = header
        .and_then(|part| vm_memory::Address::checked_add(&part.addr(), 4))
        .and_then(|address| chain.memory().read_obj::<i32>(address).ok());
    error.map_or(0, i32::wrapping_neg)
}

/// The first bytes of a reply, no more than `limit`.
fn reply(chain: &DescriptorChain<impl MemoryRef>, limit: usize, used: u32) -> Vec<u8> {
    let mut head = Vec::new();
    let wanted = limit.min(used as usize);
    for part in chain.clone().writable() {
        let mut bytes = vec![0; (wanted - head.len()).min(part.len() as usize)];
        if chain.memory().read_slice(&mut bytes, part.addr()).is_err() {
            break;
        }
        head.extend(bytes);
    }
    head
}

/// The message of a panic.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_read_has_a_size_to_read() {
        let size = |opcode: u32, len: usize| {
            // READ is 15; its size is at 56, after the header, the handle and the offset.
            let mut head = [0xee; REQUEST_HEAD];
            head[4..8].copy_from_slice(&opcode.to_le_bytes());
            head[56..60].copy_from_slice(&4096_u32.to_le_bytes());
            let taken = Taken {
                head,
                head_len: len,
                len,
                start: Instant::now(),
                verdict: Verdict::default(),
            };
            taken.read_size()
        };
        assert_eq!(size(15, 80), Some(4096));
        assert_eq!(size(15, 59), None, "it is cut short");
        assert_eq!(size(28, 80), None, "READDIR");
    }
}
