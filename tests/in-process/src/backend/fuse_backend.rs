//! fuse-backend-rs's request handler.

use super::{address_space::address_space, one_chain::OneChain};
use bootshare_test_device::{
    Reply, Request,
    raw::{Backend, Chain},
};
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
    fn answer(&self, chain: &Chain, _request: &Request) -> Reply {
        let ring = OneChain::new(chain);
        let descriptors = ring.take(&self.memory);
        let (reader, writer) = (
            Reader::from_descriptor_chain(&self.memory, descriptors.clone()),
            VirtioFsWriter::new(&self.memory, descriptors),
        );
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            return Reply::died("a buffer is not in guest memory");
        };
        match self
            .server
            .handle_message(reader, writer.into(), None, None)
        {
            Ok(used) => Reply::written(used as u32),
            Err(error) => Reply::died(error),
        }
    }
}
