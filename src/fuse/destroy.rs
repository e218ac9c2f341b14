//! DESTROY: ends the session on the server.

use super::{Operation, Violation, fuse_opcode};

/// Ends the session: the server releases all nodes and handles. Some servers send no reply.
#[derive(Clone, Copy, Debug)]
pub struct Destroy;

impl Operation for Destroy {
    type Body = [u8; 0];
    type Reply = ();

    fn opcode(&self) -> fuse_opcode {
        fuse_opcode::FUSE_DESTROY
    }

    fn body(&self) -> [u8; 0] {
        []
    }

    fn decode(&self, _fixed: &[u8], _data: usize) -> Result<(), Violation> {
        Ok(())
    }
}
