//! virtiofsd's own request handler.

use super::{address_space::address_space, one_chain::OneChain};
use bootshare_test_device::{
    Reply, Request,
    raw::{Backend, Chain},
};
use std::{io, path::Path};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtiofsd::{
    descriptor_utils::{Reader, Writer},
    passthrough::{Config, PassthroughFs},
    server::Server,
};
use vm_memory::GuestMemoryMmap;

/// virtiofsd, as a library.
pub struct Virtiofsd {
    server: Server<PassthroughFs>,
    memory: GuestMemoryMmap<BitmapMmapRegion>,
}

impl Virtiofsd {
    /// Serves `root`.
    ///
    /// # Errors
    ///
    /// If it can't be opened.
    pub fn new(root: &Path) -> io::Result<Self> {
        Self::with_fd_limit(root, u64::MAX)
    }

    /// As [`Virtiofsd::new`], but with no more than `limit` file descriptors for nodes and
    /// handles.
    ///
    /// # Errors
    ///
    /// As [`Virtiofsd::new`].
    pub fn with_fd_limit(root: &Path, limit: u64) -> io::Result<Self> {
        let config = Config {
            root_dir: root.to_str().expect("a path in UTF-8").to_owned(),
            guest_fd_limit: limit,
            ..Config::default()
        };
        Ok(Self {
            server: Server::new(PassthroughFs::new(config)?),
            memory: address_space(),
        })
    }
}

impl Backend for Virtiofsd {
    fn answer(&self, chain: &Chain, _request: &Request) -> Reply {
        let ring = OneChain::new(chain);
        let descriptors = ring.take(&self.memory);
        let (reader, writer) = (
            Reader::new(&self.memory, descriptors.clone()),
            Writer::new(&self.memory, descriptors),
        );
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            return Reply::died("a buffer is not in guest memory");
        };
        match self.server.handle_message(reader, writer, None::<&mut ()>) {
            Ok(used) => Reply::written(used as u32),
            Err(error) => Reply::died(error),
        }
    }
}
