//! RELEASE and RELEASEDIR (`fuse_release_in`).

use super::{Handle, NodeId, Operation, Violation, fuse_opcode};
use fuse_abi::linux::fuse_release_in;

/// Closes an open file or directory.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// The file.
    pub node: NodeId,
    /// Its handle.
    pub handle: Handle,
    /// Whether it is a directory.
    pub is_dir: bool,
}

impl Operation for Release {
    type Body = fuse_release_in;
    type Reply = ();

    fn opcode(&self) -> fuse_opcode {
        if self.is_dir {
            fuse_opcode::FUSE_RELEASEDIR
        } else {
            fuse_opcode::FUSE_RELEASE
        }
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_release_in {
        fuse_release_in {
            fh: self.handle.0,
            ..fuse_release_in::default()
        }
    }

    fn decode(&self, _fixed: &[u8], _data: usize) -> Result<(), Violation> {
        Ok(())
    }
}
