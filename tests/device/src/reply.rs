//! Replies: the bytes in the buffers, and the entry of the used ring.

use crate::{
    request::{REPLY_HEADER, Request},
    time::ticks,
};
use bootshare::fuse::Errno;
use std::time::Duration;

/// The time of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// At once.
    #[default]
    Now,
    /// This number of ticks later.
    After(u64),
    /// Never: not before a reset of the device, and not after it.
    Never,
}

/// A reply of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Header and body, which the device writes when it returns the chain.
    pub(crate) bytes: Vec<u8>,
    /// The length in the used ring.
    pub(crate) used: u32,
    /// The chain's id in the used ring, if it is not the right one.
    pub(crate) id: Option<u32>,
    /// How often the chain is returned.
    pub(crate) times: u32,
    /// How far the used index advances in addition, without entries.
    pub(crate) jump: u16,
    pub(crate) when: When,
    /// The reason why a real server would have ended.
    pub(crate) fault: Option<String>,
}

fn with_header(length: u32, error: i32, unique: u64, body: &[u8]) -> Reply {
    let mut bytes = Vec::with_capacity(REPLY_HEADER + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&error.to_le_bytes());
    bytes.extend_from_slice(&unique.to_le_bytes());
    bytes.extend_from_slice(body);
    raw(bytes)
}

pub fn success(request: &Request, body: &[u8]) -> Reply {
    with_header((REPLY_HEADER + body.len()) as u32, 0, request.unique, body)
}

/// A reply with these bytes and the right length.
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
    /// The reply to a READ of a file with this content, whatever the tree contains.
    #[must_use]
    pub fn content(request: &Request, content: &[u8]) -> Self {
        success(request, request.part_of(content))
    }

    /// An error of the host.
    #[must_use]
    pub fn error(request: &Request, errno: Errno) -> Self {
        error_number(request, errno.get().into())
    }

    /// A reply without bytes, as for FORGET; the client refuses it for all other requests.
    #[must_use]
    pub fn none() -> Self {
        raw(Vec::new())
    }

    /// This reply after this time, rounded down to a multiple of [`VirtualClock::TICK`](crate::VirtualClock::TICK).
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.when = When::After(ticks(time));
        self
    }

    /// No reply: the client waits until its deadline.
    #[must_use]
    pub fn never(mut self) -> Self {
        self.when = When::Never;
        self
    }
}

/// Replies with arbitrary bytes, also such that no correct server sends.
#[cfg(feature = "raw")]
impl Reply {
    /// Success, with this body after the reply's header.
    #[must_use]
    pub fn ok(request: &Request, body: &[u8]) -> Self {
        success(request, body)
    }

    /// The body, after the header.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.bytes.get(REPLY_HEADER..).unwrap_or_default()
    }

    /// A reply of `used` bytes that the server wrote to the chain itself.
    #[must_use]
    pub fn written(used: u32) -> Self {
        Self::none().used(used)
    }

    /// The reply of a server whose process would have ended.
    #[must_use]
    pub fn died(why: impl std::fmt::Debug) -> Self {
        let mut reply = Self::none().never();
        reply.fault = Some(format!("the server ends: {why:?}"));
        reply
    }

    /// A header with these fields, and a body.
    #[must_use]
    pub fn with_header(length: u32, error: i32, unique: u64, body: &[u8]) -> Self {
        with_header(length, error, unique, body)
    }

    /// An error with any number, which is positive here.
    #[must_use]
    pub fn error_number(request: &Request, number: i32) -> Self {
        error_number(request, number)
    }

    /// The length of header and body in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Writes only the first `size` bytes; the length in the used ring stays the same.
    #[must_use]
    pub fn cut(mut self, size: usize) -> Self {
        self.bytes.truncate(size);
        self
    }

    /// Sets another length in the used ring.
    #[must_use]
    pub fn used(mut self, used: u32) -> Self {
        self.used = used;
        self
    }

    /// Sets another chain id in the used ring.
    #[must_use]
    pub fn id(mut self, id: u32) -> Self {
        self.id = Some(id);
        self
    }

    /// Returns the chain this often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// Advances the used index by `by` more.
    #[must_use]
    pub fn jump(mut self, by: u16) -> Self {
        self.jump = by;
        self
    }

    /// Replaces the bytes at offset `at`.
    #[must_use]
    pub fn patch(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}
