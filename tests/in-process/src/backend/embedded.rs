//! The host tool's own server.

use super::{address_space::address_space, one_chain::OneChain};
use bootshare_host::serve::{Handler, Options};
use bootshare_test_device::{
    Reply, Request,
    raw::{Backend, Buffer, Chain},
};
use std::path::PathBuf;
use vm_memory::GuestMemoryMmap;

/// `bootshare-host`'s embedded server.
pub struct Embedded {
    handler: Handler,
    memory: GuestMemoryMmap<()>,
}

impl Embedded {
    /// Serves directories with these options.
    ///
    /// # Panics
    ///
    /// If a directory can't be read.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self {
            handler: Handler::new(options).expect("directories that can be read"),
            memory: address_space(),
        }
    }

    /// Serves directories as layers: earlier ones are above later ones.
    ///
    /// # Panics
    ///
    /// As [`Embedded::new`].
    #[must_use]
    pub fn of(dirs: Vec<PathBuf>) -> Self {
        Self::new(&Options::new("test", dirs))
    }
}

impl Embedded {
    /// Sends a request that may be malformed, with any buffers. Returns the bytes of the reply, in the length
    /// that the used ring reports.
    #[must_use]
    pub fn ask(&self, request: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut reply = vec![0; room];
        let buffer = |address: usize, length: usize| Buffer {
            address: address as u64,
            length: length as u32,
        };
        let chain = Chain::of(
            vec![buffer(request.as_ptr().expose_provenance(), request.len())],
            vec![buffer(reply.as_mut_ptr().expose_provenance(), room)],
        );
        let ring = OneChain::new(&chain);
        let used = self.handler.answer(&ring.take(&self.memory))?;
        reply.truncate(used as usize);
        Some(reply)
    }
}

impl Backend for Embedded {
    fn answer(&self, chain: &Chain, _request: &Request) -> Reply {
        let ring = OneChain::new(chain);
        let descriptors = ring.take(&self.memory);
        match self.handler.answer(&descriptors) {
            Some(used) => Reply::written(used),
            None => Reply::none().never(),
        }
    }
}
