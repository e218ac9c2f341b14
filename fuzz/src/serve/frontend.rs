//! The front end's socket, and descriptors of all kinds that can be passed over it.

use super::LIMIT;
use crate::source::Source;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll},
    fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open},
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg},
    pipe::{PipeFlags, pipe_with},
};
use std::{
    io::IoSlice,
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{SocketAddr, UnixStream},
    },
    time::{Duration, Instant},
};

/// Linux refuses more descriptors in one message (SCM_MAX_FD).
const MOST_FDS: usize = 253;

/// A connection to the server.
pub struct Frontend {
    stream: UnixStream,
    /// How long it waits for something that a server need not send.
    pub patience: Duration,
    /// Whether the connection has ended for sending.
    pub over: bool,
}

impl Frontend {
    pub fn connect(address: &SocketAddr, patience: Duration) -> Self {
        let stream = UnixStream::connect_addr(address).expect("the server listens");
        Self {
            stream,
            patience,
            over: false,
        }
    }

    /// Sends bytes, with descriptors. A hostile front end never waits for the server.
    pub fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let fds = &fds[..fds.len().min(MOST_FDS)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let bytes = [IoSlice::new(bytes)];
        self.over |= sendmsg(&self.stream, &bytes, &mut control, flags).is_err();
    }

    /// Sends a message of version 1 without descriptors.
    pub fn say(&mut self, request: u32, body: &[u8]) {
        self.send(&message(request, 1, body), &[]);
    }

    /// The next reply, if it comes.
    pub fn reply(&mut self) -> Option<Vec<u8>> {
        self.reply_within(self.patience)
    }

    /// The next reply, if it comes within the limit.
    pub fn reply_within(&mut self, limit: Duration) -> Option<Vec<u8>> {
        if self.over || !is_ready(&self.stream, PollFlags::IN, limit) {
            return None;
        }
        let mut bytes = vec![0; 4096];
        match recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, size @ 1..)) => {
                bytes.truncate(size);
                Some(bytes)
            }
            _ => {
                self.over = true;
                None
            }
        }
    }

    /// Shuts the sending side down, and waits until the server has closed the connection.
    pub fn wait_for_end(&mut self) {
        // The server may have closed the connection.
        let _ = self.stream.shutdown(Shutdown::Write);
        loop {
            assert!(
                is_ready(&self.stream, PollFlags::IN, LIMIT),
                "the server never ends the connection"
            );
            match recv(&self.stream, &mut [0; 4096][..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => return,
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A duplicate of the socket's own descriptor.
    fn itself(&self) -> OwnedFd {
        self.stream.try_clone().expect("a descriptor").into()
    }
}

/// A message: its header and its body.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = [request, flags, body.len() as u32];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(body);
    bytes
}

pub fn is_ready(fd: &impl AsFd, what: PollFlags, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a short time");
        match poll(&mut [PollFd::new(fd, what)], Some(&left)) {
            // libFuzzer interrupts with its alarm.
            Err(Errno::INTR) => {}
            ready => return ready.is_ok_and(|count| count > 0),
        }
    }
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

pub fn memory(size: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("guest", flags).expect("memory");
    ftruncate(&file, size).expect("a size");
    file
}

/// A descriptor of any kind.
pub fn odd(source: &mut Source<'_>, frontend: &Frontend) -> OwnedFd {
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = |path: &str, more| open(path, flags | more, Mode::empty()).expect("a file");
    match source.below(16) {
        0 => event(),
        // A blocking eventfd that is full.
        1 => {
            let full = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
            rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("it is empty");
            full
        }
        // An eventfd that stays readable for several reads.
        2 => eventfd(9, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE).expect("an eventfd"),
        3 => pipe_with(PipeFlags::CLOEXEC).expect("a pipe").0,
        // The writing end of a pipe without a reader.
        4 => pipe_with(PipeFlags::CLOEXEC).expect("a pipe").1,
        5 => UnixStream::pair().expect("a socket").0.into(),
        6 => frontend.itself(),
        7 => file("/dev/null", OFlags::RDWR),
        8 => file("/dev/zero", OFlags::RDONLY),
        9 => file("/dev/full", OFlags::WRONLY),
        10 => file("/", OFlags::PATH),
        11 => file("/proc/self/fd", OFlags::RDONLY),
        12 => file("/proc/self/exe", OFlags::RDONLY),
        13 => epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll"),
        14 => {
            let sealed = memory(0x1_0000);
            fcntl_add_seals(&sealed, SealFlags::WRITE).expect("it may be sealed");
            sealed
        }
        _ => memory(source.edge() & 0xf_ffff),
    }
}
