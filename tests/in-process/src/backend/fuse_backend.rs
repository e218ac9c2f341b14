//! fuse-backend-rs's request handler.

use super::address_space::address_space;
use super::{Answer, Backend, one_chain::OneChain};
use crate::{chain::Chain, wire::Request};
use fuse_backend_rs::{
    api::server::Server,
    passthrough::{Config, PassthroughFs},
    transport::{Reader, VirtioFsWriter},
};
use std::{io, path::Path};
use vm_memory::GuestMemoryMmap;

/// fuse-backend-rs's `PassthroughFs`.
pub struct FuseBackend {
    server: Server<PassthroughFs>,
    memory: GuestMemoryMmap<()>,
}

impl FuseBackend {
    /// Serves `root`.
    ///
    /// # Errors
    ///
    /// If it can't be opened.
    pub fn new(root: &Path) -> io::Result<Self> {
        let config = Config {
            root_dir: root.to_str().expect("a path in UTF-8").to_owned(),
            ..Config::default()
        };
        Ok(Self {
            server: Server::new(PassthroughFs::new(config)?),
            memory: address_space(),
        })
    }
}

impl Backend for FuseBackend {
    fn answer(&self, chain: &Chain, _request: &Request) -> Answer {
        let ring = OneChain::new(chain);
        let descriptors = ring.take(&self.memory);
        let (reader, writer) = (
            Reader::from_descriptor_chain(&self.memory, descriptors.clone()),
            VirtioFsWriter::new(&self.memory, descriptors),
        );
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            return Answer::died("a buffer is not in guest memory");
        };
        match self
            .server
            .handle_message(reader, writer.into(), None, None)
        {
            Ok(used) => Answer::used(used as u32),
            Err(error) => Answer::died(error),
        }
    }
}
