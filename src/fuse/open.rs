//! OPEN and OPENDIR (`fuse_open_in`, `fuse_open_out`).

use super::{Handle, NodeId, Operation, Violation, fuse_opcode, structure};
use fuse_abi::linux::{fuse_open_in, fuse_open_out};

/// Opens a regular file for reading.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// The file.
    pub node: NodeId,
}

/// Opens a directory for reading.
#[derive(Clone, Copy, Debug)]
pub struct OpenDir {
    /// The directory.
    pub node: NodeId,
}

/// Flags 0 are O_RDONLY on every architecture; the host reads them as its own.
fn read_only() -> fuse_open_in {
    fuse_open_in::default()
}

fn handle(fixed: &[u8]) -> Result<Handle, Violation> {
    Ok(Handle(structure::<fuse_open_out>(fixed)?.fh))
}

impl Operation for Open {
    const OPCODE: fuse_opcode = fuse_opcode::FUSE_OPEN;
    type Body = fuse_open_in;
    type Reply = Handle;
    const REPLY_SIZE: usize = size_of::<fuse_open_out>();

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_open_in {
        read_only()
    }

    fn decode(&self, fixed: &[u8], _data: usize) -> Result<Handle, Violation> {
        handle(fixed)
    }
}

impl Operation for OpenDir {
    const OPCODE: fuse_opcode = fuse_opcode::FUSE_OPENDIR;
    type Body = fuse_open_in;
    type Reply = Handle;
    const REPLY_SIZE: usize = size_of::<fuse_open_out>();

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_open_in {
        read_only()
    }

    fn decode(&self, fixed: &[u8], _data: usize) -> Result<Handle, Violation> {
        handle(fixed)
    }
}
