//! The last requests that a share answered, for the report of a boot test that failed.
//!
//! A request is recorded as it was received. Its path is determined when it is reported, or before
//! the guest forgets its node.

use std::fmt::Write as _;
use std::io;
use std::sync::Mutex;

use rustix::io::Errno;

use super::kernels::Kernels;
use crate::lock::lock;
use crate::prepare::Part;
use crate::serve::opcode::{self, long};

/// How much of a request is recorded: its header, and the body of READ or the longest name.
const HEAD: usize = 40 + 256;

/// A request that was answered.
struct Answered {
    head: [u8; HEAD],
    head_len: usize,
    /// The errno of the reply, or 0.
    error: i32,
    /// The size of the reply's body.
    bytes: u32,
    /// The path of its node, if the guest has forgotten that since.
    path: Option<Vec<u8>>,
}

/// The last request that succeeded, and the last one that failed.
pub(in crate::serve) struct Last(Mutex<[Answered; 2]>);

impl Default for Last {
    fn default() -> Self {
        let none = || Answered {
            head: [0; HEAD],
            head_len: 0,
            error: 0,
            bytes: 0,
            path: None,
        };
        Self(Mutex::new([none(), none()]))
    }
}

impl Last {
    /// Records a request by its first bytes, the errno of its reply and the size of its reply's
    /// body. Requests that only close a handle are left out, and so are failures that are no fault:
    /// an operation or an attribute that does not exist, and a kernel that is not prepared.
    pub(in crate::serve) fn note(&self, head: &[u8], error: i32, bytes: u32) {
        let opcode = opcode::word(head, 4).unwrap_or(0);
        let is_usual = error == Errno::NOSYS.raw_os_error()
            || error == Errno::NODATA.raw_os_error()
            || name(head).is_some_and(|name| Part::of(name).is_some());
        if opcode::is_closing(opcode) || is_usual {
            return;
        }
        let head_len = head.len().min(HEAD);
        let slot = &mut lock(&self.0)[usize::from(error != 0)];
        slot.head[..head_len].copy_from_slice(&head[..head_len]);
        (slot.head_len, slot.error, slot.bytes) = (head_len, error, bytes);
        slot.path = None;
    }

    /// Called before the guest forgets a node, or all nodes (`None`). `path` returns the path of a
    /// node.
    pub(super) fn forget(&self, forgotten: Option<u64>, path: impl Fn(u64) -> Option<Vec<u8>>) {
        for slot in &mut *lock(&self.0) {
            if forgotten.is_none_or(|id| id == slot.node()) && slot.path.is_none() {
                slot.path = path(slot.node());
            }
        }
    }

    /// The requests on one line; `None` if there was none. `path` returns the path of a node.
    pub(super) fn describe(&self, path: impl Fn(u64) -> Option<Vec<u8>>) -> Option<String> {
        let both = lock(&self.0);
        let [served, failed] = both.each_ref().map(|slot| {
            let known = slot.path.clone().or_else(|| path(slot.node()));
            Some(slot.describe(known)).filter(|_| slot.head_len > 0)
        });
        match (served, failed) {
            (Some(served), Some(failed)) => Some(format!("{served}; its last failure: {failed}")),
            (served, failed) => served.or(failed),
        }
    }
}

/// The name that a LOOKUP asks for.
fn name(head: &[u8]) -> Option<&[u8]> {
    let is_lookup = opcode::word(head, 4).is_some_and(opcode::is_lookup);
    let name = head.get(40..).filter(|_| is_lookup)?;
    name.split(|&byte| byte == 0).next()
}

impl Answered {
    fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    /// The node that it names; of a prepared kernel, the node of the kernel's own file.
    fn node(&self) -> u64 {
        Kernels::file(long(self.head(), 16).unwrap_or(0))
    }

    /// `path` is its node's path, if the node is known.
    fn describe(&self, path: Option<Vec<u8>>) -> String {
        let opcode = opcode::word(self.head(), 4).unwrap_or(0);
        let known = opcode::name(opcode);
        let mut text = known.map_or_else(|| format!("operation {opcode}"), str::to_owned);
        if let Some(mut path) = path {
            let name = name(self.head());
            if name.is_some() || path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.unwrap_or_default());
            let _infallible = write!(text, " {}", path.escape_ascii());
        }
        if self.error != 0 {
            let error = io::Error::from_raw_os_error(self.error);
            let _infallible = write!(text, ": {error}");
        } else if opcode::is_read(opcode) {
            let offset = long(self.head(), 48).unwrap_or(0);
            let _infallible = write!(text, ": {} bytes at {offset}", self.bytes);
        }
        text
    }
}
