//! STATFS: figures of the whole share (`fuse_statfs_out`).

use super::{NodeId, Operation, Violation, fuse_opcode, structure};
use fuse_abi::linux::fuse_statfs_out;

/// Asks for the figures of the file system that `node` is on.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Any node.
    pub node: NodeId,
}

/// Figures of a file system (statfs(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of one block.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

impl Operation for StatFs {
    type Body = [u8; 0];
    type Reply = Statistics;
    const REPLY_SIZE: usize = size_of::<fuse_statfs_out>();

    fn opcode(&self) -> fuse_opcode {
        fuse_opcode::FUSE_STATFS
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> [u8; 0] {
        []
    }

    fn decode(&self, fixed: &[u8], _data: usize) -> Result<Statistics, Violation> {
        let reply = structure::<fuse_statfs_out>(fixed)?.st;
        Ok(Statistics {
            // The unit of `blocks` is the fragment size where there is one (statvfs(3)).
            block_size: if reply.frsize == 0 {
                reply.bsize
            } else {
                reply.frsize
            },
            blocks: reply.blocks,
            blocks_free: reply.bfree,
            name_max: reply.namelen,
        })
    }
}
