//! RELEASE and RELEASEDIR (`fuse_release_in`).

use super::{Handle, NodeId, Operation, Violation, fuse_opcode};
use fuse_abi::linux::fuse_release_in;

/// Closes an open file.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// The file.
    pub node: NodeId,
    /// Its handle.
    pub handle: Handle,
}

/// Closes an open directory.
#[derive(Clone, Copy, Debug)]
pub struct ReleaseDir {
    /// The directory.
    pub node: NodeId,
    /// Its handle.
    pub handle: Handle,
}

fn wire(handle: Handle) -> fuse_release_in {
    fuse_release_in {
        fh: handle.0,
        ..fuse_release_in::default()
    }
}

impl Operation for Release {
    const OPCODE: fuse_opcode = fuse_opcode::FUSE_RELEASE;
    type Body = fuse_release_in;
    type Reply = ();
    const REPLY_SIZE: usize = 0;

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_release_in {
        wire(self.handle)
    }

    fn decode(&self, _fixed: &[u8], _data: usize) -> Result<(), Violation> {
        Ok(())
    }
}

impl Operation for ReleaseDir {
    const OPCODE: fuse_opcode = fuse_opcode::FUSE_RELEASEDIR;
    type Body = fuse_release_in;
    type Reply = ();
    const REPLY_SIZE: usize = 0;

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_release_in {
        wire(self.handle)
    }

    fn decode(&self, _fixed: &[u8], _data: usize) -> Result<(), Violation> {
        Ok(())
    }
}
