//! FORGET: decreases a lookup count (`fuse_forget_in`). It has no reply.

use super::{NodeId, Operation, Violation, fuse_opcode};
use fuse_abi::linux::fuse_forget_in;

/// Decreases the lookup count of `node` by `nlookup`. The server drops the node at zero.
#[derive(Clone, Copy, Debug)]
pub struct Forget {
    /// The node.
    pub node: NodeId,
    /// The number of lookups.
    pub nlookup: u64,
}

impl Operation for Forget {
    type Body = fuse_forget_in;
    type Reply = ();

    fn opcode(&self) -> fuse_opcode {
        fuse_opcode::FUSE_FORGET
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_forget_in {
        fuse_forget_in {
            nlookup: self.nlookup,
        }
    }

    fn decode(&self, _fixed: &[u8], _data: usize) -> Result<(), Violation> {
        Ok(())
    }
}
