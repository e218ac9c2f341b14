//! READ: bytes of an open file (`fuse_read_in`).

use super::{Handle, NodeId, Operation, Violation, fuse_opcode};
use fuse_abi::linux::fuse_read_in;

/// Reads `size` bytes at `offset` into a caller's buffer of exactly that size.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The file.
    pub node: NodeId,
    /// Its handle.
    pub handle: Handle,
    /// Where to start, in bytes; the end must not pass 2^63 - 1.
    pub offset: u64,
    /// How much, in bytes, and the size of the buffer: servers differ in what they make of a
    /// difference.
    pub size: u32,
}

impl Read {
    pub(super) fn wire(handle: Handle, offset: u64, size: u32) -> fuse_read_in {
        fuse_read_in {
            fh: handle.0,
            offset,
            size,
            ..fuse_read_in::default()
        }
    }
}

impl Operation for Read {
    const OPCODE: fuse_opcode = fuse_opcode::FUSE_READ;
    type Body = fuse_read_in;
    /// Bytes read; fewer than asked at the end of the file only.
    type Reply = usize;
    const REPLY_SIZE: usize = 0;

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_read_in {
        Self::wire(self.handle, self.offset, self.size)
    }

    fn decode(&self, _fixed: &[u8], data: usize) -> Result<usize, Violation> {
        Ok(data)
    }
}
