//! READLINK: the target of a symbolic link.

use super::{NodeId, Operation, TARGET_MAX, Violation, fuse_opcode};

/// Reads the target of `node` into a caller's buffer, without a NUL.
#[derive(Clone, Copy, Debug)]
pub struct ReadLink {
    /// The symbolic link.
    pub node: NodeId,
}

impl Operation for ReadLink {
    type Body = [u8; 0];
    /// The length of the target in bytes, 1 to 4095. The caller has to check the bytes.
    type Reply = usize;

    fn opcode(&self) -> fuse_opcode {
        fuse_opcode::FUSE_READLINK
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> [u8; 0] {
        []
    }

    fn decode(&self, _fixed: &[u8], data: usize) -> Result<usize, Violation> {
        if (1..=TARGET_MAX).contains(&data) {
            Ok(data)
        } else {
            Err(Violation::LinkTarget)
        }
    }
}
