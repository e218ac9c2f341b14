//! GETATTR: attributes of a node (`fuse_getattr_in`, `fuse_attr_out`).

use super::{Attr, NodeId, Operation, Violation, fuse_opcode, structure};
use fuse_abi::linux::{fuse_attr_out, fuse_getattr_in};

/// Asks for the attributes of `node` as they are now.
#[derive(Clone, Copy, Debug)]
pub struct GetAttr {
    /// The node.
    pub node: NodeId,
}

impl Operation for GetAttr {
    type Body = fuse_getattr_in;
    type Reply = Attr;
    const REPLY_SIZE: usize = size_of::<fuse_attr_out>();

    fn opcode(&self) -> fuse_opcode {
        fuse_opcode::FUSE_GETATTR
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_getattr_in {
        fuse_getattr_in::default()
    }

    fn decode(&self, fixed: &[u8], _data: usize) -> Result<Attr, Violation> {
        structure::<fuse_attr_out>(fixed)?.attr.try_into()
    }
}
