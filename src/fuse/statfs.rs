//! STATFS: statistics of a file system (`fuse_statfs_out`).

use super::{NodeId, Operation, Violation, fuse_opcode, structure};
use fuse_abi::linux::fuse_statfs_out;

/// Asks for the statistics of the file system that contains `node`.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Any node.
    pub node: NodeId,
}

/// Statistics of a file system (statfs(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of one block.
    pub block_size: u32,
    /// Total number of blocks.
    pub blocks: u64,
    /// Number of free blocks.
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
            // `blocks` counts fragments if the fragment size is not 0 (statvfs(3)).
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
