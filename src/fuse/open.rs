//! OPEN and OPENDIR (`fuse_open_in`, `fuse_open_out`).

use super::{Handle, NodeId, Operation, Violation, fuse_opcode, structure};
use fuse_abi::linux::{fuse_open_in, fuse_open_out};

/// Opens a regular file or a directory for reading.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// The file.
    pub node: NodeId,
    /// Whether it is a directory.
    pub is_dir: bool,
}

impl Operation for Open {
    type Body = fuse_open_in;
    type Reply = Handle;
    const REPLY_SIZE: usize = size_of::<fuse_open_out>();

    fn opcode(&self) -> fuse_opcode {
        if self.is_dir {
            fuse_opcode::FUSE_OPENDIR
        } else {
            fuse_opcode::FUSE_OPEN
        }
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_open_in {
        // The flags are 0, which is O_RDONLY on every architecture; the host interprets them.
        fuse_open_in::default()
    }

    fn decode(&self, fixed: &[u8], _data: usize) -> Result<Handle, Violation> {
        Ok(Handle(structure::<fuse_open_out>(fixed)?.fh))
    }
}
