//! LOOKUP: one name in one directory (`fuse_entry_out`).

use super::{Attr, NodeId, Operation, Violation, fuse_opcode, structure};
use fuse_abi::linux::fuse_entry_out;

/// Looks `name` up in `parent`. Each reply with a node adds one to the node's lookup count, which
/// one FORGET must give back.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    /// The directory.
    pub parent: NodeId,
    /// One name: no `/`, no NUL, 1 to 255 bytes.
    pub name: &'a [u8],
}

/// A file that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its node. The server has counted the lookup even if the attributes are malformed.
    pub node: NodeId,
    /// Its attributes, or the violation in them.
    pub attr: Result<Attr, Violation>,
}

impl Operation for Lookup<'_> {
    type Body = [u8; 0];
    /// `None` if the server answers with node 0: there is no such name (a negative entry).
    type Reply = Option<Entry>;
    const REPLY_SIZE: usize = size_of::<fuse_entry_out>();

    fn opcode(&self) -> fuse_opcode {
        fuse_opcode::FUSE_LOOKUP
    }

    fn node(&self) -> NodeId {
        self.parent
    }

    fn body(&self) -> [u8; 0] {
        []
    }

    fn name(&self) -> Option<&[u8]> {
        Some(self.name)
    }

    fn decode(&self, fixed: &[u8], _data: usize) -> Result<Option<Entry>, Violation> {
        let reply: fuse_entry_out = structure(fixed)?;
        let Some(node) = NodeId::new(reply.nodeid) else {
            return Ok(None);
        };
        if node == NodeId::ROOT {
            // The root is no directory's entry, and its lookup count must not be given back.
            return Err(Violation::NodeId);
        }
        let attr = reply.attr.try_into();
        Ok(Some(Entry { node, attr }))
    }
}
