//! INIT: the first request, which negotiates the version (`fuse_init_in`, `fuse_init_out`).

use super::{Operation, Violation, fuse_opcode, structure};
use fuse_abi::linux::{
    FUSE_KERNEL_MINOR_VERSION, FUSE_KERNEL_VERSION, fuse_init_in, fuse_init_out,
};

/// The oldest minor version that the client accepts: virtio-fs was introduced with 7.31.
pub(super) const OLDEST_MINOR: u32 = 31;

/// Opens a session. A second INIT on the same device invalidates all nodes and handles of the
/// first.
#[derive(Clone, Copy, Debug)]
pub struct Init;

/// The result of the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The minor version that both sides support; the major version is 7.
    pub minor: u32,
}

impl Operation for Init {
    type Body = fuse_init_in;
    type Reply = Negotiated;
    const REPLY_SIZE: usize = size_of::<fuse_init_out>();

    fn opcode(&self) -> fuse_opcode {
        fuse_opcode::FUSE_INIT
    }

    fn body(&self) -> fuse_init_in {
        fuse_init_in {
            major: FUSE_KERNEL_VERSION,
            minor: FUSE_KERNEL_MINOR_VERSION,
            // No flag is set: a read-only client needs none. Without FUSE_INIT_EXT the fields from
            // `flags2` on are padding.
            ..fuse_init_in::default()
        }
    }

    fn decode(&self, fixed: &[u8], _data: usize) -> Result<Negotiated, Violation> {
        let reply: fuse_init_out = structure(fixed)?;
        if reply.major != FUSE_KERNEL_VERSION || reply.minor < OLDEST_MINOR {
            return Err(Violation::Version {
                major: reply.major,
                minor: reply.minor,
            });
        }
        Ok(Negotiated {
            minor: reply.minor.min(FUSE_KERNEL_MINOR_VERSION),
        })
    }
}
