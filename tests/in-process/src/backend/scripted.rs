//! Replies as a test wants them.

use super::{Answer, Backend, When};
use crate::{
    chain::Chain,
    tree::Tree,
    wire::{Opcode, REPLY_HEADER, Request},
};
use std::sync::{Mutex, PoisonError};
use zerocopy::{Immutable, IntoBytes};

/// A reply: the bytes in the buffers, and what the used ring says about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Header and body.
    pub bytes: Vec<u8>,
    /// What the used ring says.
    pub answer: Answer,
}

impl Reply {
    /// Any bytes, honestly reported.
    #[must_use]
    pub fn raw(bytes: Vec<u8>) -> Self {
        Self {
            answer: Answer::used(bytes.len() as u32),
            bytes,
        }
    }

    /// A header with these figures, and a body.
    #[must_use]
    pub fn with_header(length: u32, error: i32, unique: u64, body: &[u8]) -> Self {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&error.to_le_bytes());
        bytes.extend_from_slice(&unique.to_le_bytes());
        bytes.extend_from_slice(body);
        Self::raw(bytes)
    }

    /// Success.
    #[must_use]
    pub fn ok(request: &Request, body: &(impl IntoBytes + Immutable + ?Sized)) -> Self {
        let body = body.as_bytes();
        Self::with_header((REPLY_HEADER + body.len()) as u32, 0, request.unique, body)
    }

    /// An error number, positive here.
    #[must_use]
    pub fn error(request: &Request, errno: i32) -> Self {
        Self::with_header(REPLY_HEADER as u32, -errno, request.unique, &[])
    }

    /// No bytes at all, as for FORGET.
    #[must_use]
    pub fn none() -> Self {
        Self::raw(Vec::new())
    }

    /// With another length in the used ring.
    #[must_use]
    pub fn used(mut self, used: u32) -> Self {
        self.answer.used = used;
        self
    }

    /// With another chain in the used ring.
    #[must_use]
    pub fn id(mut self, id: u32) -> Self {
        self.answer.id = Some(id);
        self
    }

    /// Given back that often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.answer.times = times;
        self
    }

    /// With a used index that moves on farther.
    #[must_use]
    pub fn jump(mut self, by: u16) -> Self {
        self.answer.jump = by;
        self
    }

    /// Not before so many ticks.
    #[must_use]
    pub fn after(mut self, ticks: u64) -> Self {
        self.answer.when = When::After(ticks);
        self
    }

    /// Not at all.
    #[must_use]
    pub fn never(mut self) -> Self {
        self.answer.when = When::Never;
        self
    }

    /// With other bytes at `at`.
    #[must_use]
    pub fn patch(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

type Script = dyn FnMut(&Request, Reply) -> Reply + Send;

/// A server of a [`Tree`] in memory, whose good replies a script may spoil.
pub struct Scripted {
    tree: Tree,
    script: Mutex<Box<Script>>,
}

impl Scripted {
    /// Serves `tree` as it is.
    #[must_use]
    pub fn honest(tree: Tree) -> Self {
        Self::new(tree, |_, good| good)
    }

    /// Serves `tree`; `script` gets each request and the good reply to it, and says what is
    /// answered.
    #[must_use]
    pub fn new(tree: Tree, script: impl FnMut(&Request, Reply) -> Reply + Send + 'static) -> Self {
        Self {
            tree,
            script: Mutex::new(Box::new(script)),
        }
    }

    /// Serves `tree`, but answers each `opcode` as `script` says.
    #[must_use]
    pub fn spoiling(
        tree: Tree,
        opcode: Opcode,
        mut script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
    ) -> Self {
        Self::new(tree, move |request, good| {
            if request.opcode == opcode {
                script(request, good)
            } else {
                good
            }
        })
    }
}

impl Backend for Scripted {
    fn answer(&self, _chain: &Chain, request: &Request) -> Answer {
        let good = self.tree.reply(request);
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reply = script(request, good);
        reply.answer.bytes = Some(reply.bytes);
        reply.answer
    }
}
