//! A small file system in memory, for scripts.

use crate::{
    backend::Reply,
    wire::{Opcode, Request, dirent},
};
use fuse_abi::linux::{
    fuse_attr, fuse_attr_out, fuse_entry_out, fuse_init_out, fuse_kstatfs, fuse_open_out,
    fuse_statfs_out,
};

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file with this content.
    File(Vec<u8>),
    /// A file of that many bytes, each the low byte of its offset divided by 251.
    Pattern(u64),
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Link(Vec<u8>),
    /// Something else, by its mode.
    Other(u32),
}

/// A tree of nodes. Node IDs are 1 for the root and then as they were added.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Parent, name and kind; the root is first.
    nodes: Vec<(u64, Vec<u8>, Node)>,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            nodes: vec![(1, Vec::new(), Node::Dir)],
        }
    }
}

impl Tree {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more node in the root.
    #[must_use]
    pub fn with(self, name: impl AsRef<[u8]>, node: Node) -> Self {
        self.with_in(1, name, node)
    }

    /// With one more node in a directory.
    #[must_use]
    pub fn with_in(mut self, parent: u64, name: impl AsRef<[u8]>, node: Node) -> Self {
        self.nodes.push((parent, name.as_ref().to_vec(), node));
        self
    }

    /// The byte at `offset` of a [`Node::Pattern`].
    #[must_use]
    pub fn pattern(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    fn node(&self, id: u64) -> Option<&Node> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        self.nodes.get(index).map(|(_, _, node)| node)
    }

    fn attr(&self, id: u64) -> Option<fuse_attr> {
        let (mode, size) = match self.node(id)? {
            Node::File(content) => (0o100_644, content.len() as u64),
            Node::Pattern(size) => (0o100_644, *size),
            Node::Dir => (0o040_755, 4096),
            Node::Link(target) => (0o120_777, target.len() as u64),
            Node::Other(mode) => (*mode, 0),
        };
        Some(fuse_attr {
            ino: id,
            size,
            mode,
            nlink: 1,
            ..fuse_attr::default()
        })
    }

    fn children(&self, parent: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let nodes = self.nodes.iter().enumerate().skip(1);
        nodes.filter_map(move |(index, (of, name, _))| {
            (*of == parent).then_some((index as u64 + 1, name.as_slice()))
        })
    }

    fn read(&self, request: &Request) -> Option<Vec<u8>> {
        let (offset, size) = (request.offset(), u64::from(request.size()));
        match self.node(request.node)? {
            Node::File(content) => {
                let start = content.len().min(offset as usize);
                let end = content.len().min(start + size as usize);
                Some(content[start..end].to_vec())
            }
            Node::Pattern(length) => {
                let end = (*length).min(offset.saturating_add(size));
                Some((offset..end).map(Self::pattern).collect())
            }
            _ => None,
        }
    }

    fn list(&self, request: &Request) -> Vec<u8> {
        let mut out = Vec::new();
        let children = self.children(request.node).enumerate();
        for (index, (id, name)) in children.skip(request.offset() as usize) {
            let mode = self.attr(id).map_or(0, |attr| attr.mode);
            let entry = dirent(id, index as u64 + 1, mode >> 12, name);
            if out.len() + entry.len() > request.size() as usize {
                break;
            }
            out.extend_from_slice(&entry);
        }
        out
    }

    /// The reply of an honest server.
    #[must_use]
    pub fn reply(&self, request: &Request) -> Reply {
        let reply = match request.opcode {
            Opcode::Init => Some(Reply::ok(
                request,
                &fuse_init_out {
                    major: 7,
                    minor: 38,
                    max_write: 1 << 20,
                    ..fuse_init_out::default()
                },
            )),
            Opcode::Forget | Opcode::Destroy => Some(Reply::none()),
            Opcode::Lookup => {
                let mut children = self.children(request.node);
                let Some((id, _)) = children.find(|(_, name)| *name == request.name()) else {
                    return Reply::error(request, libc::ENOENT);
                };
                self.attr(id).map(|attr| {
                    let entry = fuse_entry_out {
                        nodeid: id,
                        attr,
                        ..fuse_entry_out::default()
                    };
                    Reply::ok(request, &entry)
                })
            }
            Opcode::GetAttr => self.attr(request.node).map(|attr| {
                let out = fuse_attr_out {
                    attr,
                    ..fuse_attr_out::default()
                };
                Reply::ok(request, &out)
            }),
            Opcode::ReadLink => match self.node(request.node) {
                Some(Node::Link(target)) => Some(Reply::ok(request, target.as_slice())),
                _ => None,
            },
            Opcode::Open | Opcode::OpenDir => self.node(request.node).map(|_| {
                let out = fuse_open_out {
                    // Each handle is another: the request's own number.
                    fh: request.unique,
                    ..fuse_open_out::default()
                };
                Reply::ok(request, &out)
            }),
            Opcode::Read => self
                .read(request)
                .map(|data| Reply::ok(request, data.as_slice())),
            Opcode::ReadDir => Some(Reply::ok(request, self.list(request).as_slice())),
            Opcode::StatFs => Some(Reply::ok(
                request,
                &fuse_statfs_out {
                    st: fuse_kstatfs {
                        blocks: 1000,
                        bfree: 100,
                        bsize: 4096,
                        namelen: 255,
                        frsize: 512,
                        ..fuse_kstatfs::default()
                    },
                },
            )),
            Opcode::Release | Opcode::ReleaseDir => Some(Reply::ok(request, &[0u8; 0])),
        };
        reply.unwrap_or_else(|| Reply::error(request, libc::EBADF))
    }
}
