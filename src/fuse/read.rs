//! READ and READDIR: bytes of an open file, entries of an open directory (`fuse_read_in`).

use super::{Handle, NodeId, Operation, Violation, fuse_opcode};
use fuse_abi::linux::fuse_read_in;

/// Reads from `offset` on into a buffer of exactly `size` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The file.
    pub node: NodeId,
    /// Its handle.
    pub handle: Handle,
    /// The offset in bytes; the end of the read must not exceed 2^63 - 1. For a directory 0, or the
    /// offset of the last entry, which is a number without an order.
    pub offset: u64,
    /// The number of bytes, and also the size of the buffer: if the two differed, servers would
    /// react differently.
    pub size: u32,
    /// Whether it is a directory.
    pub is_dir: bool,
}

impl Operation for Read {
    type Body = fuse_read_in;
    /// The number of bytes read; for a file, less than requested only at its end. For a directory,
    /// the bytes are decoded by [`Dirents`](super::Dirents), and there are none at its end.
    type Reply = usize;

    fn opcode(&self) -> fuse_opcode {
        if self.is_dir {
            fuse_opcode::FUSE_READDIR
        } else {
            fuse_opcode::FUSE_READ
        }
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_read_in {
        fuse_read_in {
            fh: self.handle.0,
            offset: self.offset,
            size: self.size,
            ..fuse_read_in::default()
        }
    }

    fn decode(&self, _fixed: &[u8], data: usize) -> Result<usize, Violation> {
        Ok(data)
    }
}
