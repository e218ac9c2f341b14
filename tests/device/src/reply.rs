//! Replies: the bytes in the buffers, and what the used ring says about them.

use crate::{
    clock::VirtualClock,
    request::{REPLY_HEADER, Request},
};
use bootshare::fuse::Errno;
use std::time::Duration;

/// When a reply is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// At once.
    #[default]
    Now,
    /// That many ticks later.
    After(u64),
    /// Not before the device is reset, and not after that either.
    Never,
}

/// What the host answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Header and body, which the device writes when it gives the chain back.
    pub(crate) bytes: Vec<u8>,
    /// The length reported.
    pub(crate) used: u32,
    /// The chain named, where it is not the right one.
    pub(crate) id: Option<u32>,
    /// How often it is given back.
    pub(crate) times: u32,
    /// How far the used index moves on, with nothing behind it.
    pub(crate) jump: u16,
    pub(crate) when: When,
    /// Why a real server would have ended.
    pub(crate) fault: Option<String>,
}

fn with_header(length: u32, error: i32, unique: u64, body: &[u8]) -> Reply {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&error.to_le_bytes());
    bytes.extend_from_slice(&unique.to_le_bytes());
    bytes.extend_from_slice(body);
    raw(bytes)
}

pub fn success(request: &Request, body: &[u8]) -> Reply {
    with_header((REPLY_HEADER + body.len()) as u32, 0, request.unique, body)
}

/// Any bytes, honestly reported.
fn raw(bytes: Vec<u8>) -> Reply {
    Reply {
        used: bytes.len() as u32,
        bytes,
        id: None,
        times: 1,
        jump: 0,
        when: When::Now,
        fault: None,
    }
}

fn error_number(request: &Request, number: i32) -> Reply {
    with_header(REPLY_HEADER as u32, -number, request.unique, &[])
}

impl Reply {
    /// The reply to a READ of a file that has this content, whatever the tree says.
    #[must_use]
    pub fn content(request: &Request, content: &[u8]) -> Self {
        success(request, request.part_of(content))
    }

    /// An error of the host.
    #[must_use]
    pub fn error(request: &Request, errno: Errno) -> Self {
        error_number(request, errno.get().into())
    }

    /// No bytes at all, as for FORGET; to any other request it is none that the client takes.
    #[must_use]
    pub fn none() -> Self {
        raw(Vec::new())
    }

    /// This reply, but not before so much time. It is rounded down to [`VirtualClock::TICK`].
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.when = When::After(VirtualClock::ticks(time));
        self
    }

    /// Not at all: the client waits until its deadline.
    #[must_use]
    pub fn never(mut self) -> Self {
        self.when = When::Never;
        self
    }
}

/// Replies by their bytes, of which no server should give some.
#[cfg(feature = "raw")]
impl Reply {
    /// Success, with these bytes behind the reply's header.
    #[must_use]
    pub fn ok(request: &Request, body: &[u8]) -> Self {
        success(request, body)
    }

    /// The bytes behind the header.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.bytes.get(REPLY_HEADER..).unwrap_or_default()
    }

    /// One that the server wrote to the chain itself, of so many bytes.
    #[must_use]
    pub fn written(used: u32) -> Self {
        Self::none().used(used)
    }

    /// The server would have ended its process.
    #[must_use]
    pub fn died(why: impl std::fmt::Debug) -> Self {
        let mut reply = Self::none().never();
        reply.fault = Some(format!("the server ends: {why:?}"));
        reply
    }

    /// A header with these figures, and a body.
    #[must_use]
    pub fn with_header(length: u32, error: i32, unique: u64, body: &[u8]) -> Self {
        with_header(length, error, unique, body)
    }

    /// Any error number, positive here.
    #[must_use]
    pub fn error_number(request: &Request, number: i32) -> Self {
        error_number(request, number)
    }

    /// Bytes of header and body.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// With its first `size` bytes alone, and the length in the used ring as it was.
    #[must_use]
    pub fn cut(mut self, size: usize) -> Self {
        self.bytes.truncate(size);
        self
    }

    /// With another length in the used ring.
    #[must_use]
    pub fn used(mut self, used: u32) -> Self {
        self.used = used;
        self
    }

    /// With another chain in the used ring.
    #[must_use]
    pub fn id(mut self, id: u32) -> Self {
        self.id = Some(id);
        self
    }

    /// Given back that often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// With a used index that moves on farther.
    #[must_use]
    pub fn jump(mut self, by: u16) -> Self {
        self.jump = by;
        self
    }

    /// With other bytes at `at`.
    #[must_use]
    pub fn patch(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}
