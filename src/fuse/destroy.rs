//! DESTROY: ends the session on the server.

use super::{NodeId, Operation, Violation, fuse_opcode};

/// Ends the session: the server drops all nodes and handles. Some servers send no reply.
#[derive(Clone, Copy, Debug)]
pub struct Destroy;

impl Operation for Destroy {
    const OPCODE: fuse_opcode = fuse_opcode::FUSE_DESTROY;
    type Body = [u8; 0];
    type Reply = ();
    const REPLY_SIZE: usize = 0;

    fn node(&self) -> NodeId {
        NodeId::ROOT
    }

    fn body(&self) -> [u8; 0] {
        []
    }

    fn decode(&self, _fixed: &[u8], _data: usize) -> Result<(), Violation> {
        Ok(())
    }
}
