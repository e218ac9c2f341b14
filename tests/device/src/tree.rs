//! A small file system in memory.

use crate::{
    reply::{Reply, success},
    request::{Opcode, Request},
};
use bootshare::fuse::Errno;
use fuse_abi::linux::{
    fuse_attr, fuse_attr_out, fuse_entry_out, fuse_init_out, fuse_kstatfs, fuse_open_out,
    fuse_statfs_out,
};
use std::{fs, io, path::Path};
use zerocopy::IntoBytes;

/// The root's node ID.
const ROOT: u64 = 1;

/// The content of a node.
#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>),
    /// A file of this size, see [`Tree::pattern`].
    Pattern(u64),
    Dir,
    Link(Vec<u8>),
    /// A device, FIFO or socket, by its mode.
    Other(u32),
}

#[derive(Clone, Debug)]
struct Entry {
    parent: u64,
    name: Vec<u8>,
    node: Node,
}

/// A tree of files, directories and symbolic links, readable for everybody.
///
/// Paths are bytes and relative to the root, with or without a leading `/`. Missing parent directories are made.
///
/// ```
/// use bootshare_test_device::Tree;
/// let tree = Tree::new()
///     .file("/boot/vmlinuz-6.1", [0x5a; 5000])
///     .link("/vmlinuz", "boot/vmlinuz-6.1")
///     .dir("/empty");
/// ```
#[derive(Clone, Debug)]
pub struct Tree {
    /// Node `n` is the entry at index `n - 1`; the root is the first.
    entries: Vec<Entry>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Entry {
            parent: ROOT,
            name: Vec::new(),
            node: Node::Dir,
        };
        Self {
            entries: vec![root],
        }
    }
}

impl Tree {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file with this content.
    ///
    /// # Panics
    ///
    /// If something exists at `path`, a parent is not a directory, or a name is invalid.
    #[must_use]
    #[track_caller]
    pub fn file(self, path: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Self {
        self.with(path.as_ref(), Node::File(content.into()))
    }

    /// Adds a directory, unless it exists.
    ///
    /// # Panics
    ///
    /// As [`Tree::file`].
    #[must_use]
    #[track_caller]
    pub fn dir(mut self, path: impl AsRef<[u8]>) -> Self {
        self.make_dirs(path.as_ref());
        self
    }

    /// Adds a symbolic link at `path` to `target`.
    ///
    /// # Panics
    ///
    /// As [`Tree::file`].
    #[must_use]
    #[track_caller]
    pub fn link(self, path: impl AsRef<[u8]>, target: impl Into<Vec<u8>>) -> Self {
        self.with(path.as_ref(), Node::Link(target.into()))
    }

    /// A copy of a directory of this machine: files are read, symbolic links are kept.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or that is neither a file nor a directory nor a link. The text has its path.
    pub fn from_dir(path: impl AsRef<Path>) -> io::Result<Self> {
        let mut tree = Self::new();
        tree.add_dir(ROOT, path.as_ref())?;
        Ok(tree)
    }

    fn add_dir(&mut self, parent: u64, path: &Path) -> io::Result<()> {
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(|error| named(path, error))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let node = read_node(&path).map_err(|error| named(&path, error))?;
            let is_dir = matches!(node, Node::Dir);
            let id = self.add(parent, entry.file_name().as_encoded_bytes(), node);
            if is_dir {
                self.add_dir(id, &path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, parent: u64, name: &[u8], node: Node) -> u64 {
        let name = name.to_vec();
        self.entries.push(Entry { parent, name, node });
        self.entries.len() as u64
    }

    #[track_caller]
    fn with(mut self, path: &[u8], node: Node) -> Self {
        let (dir, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let parent = self.make_dirs(dir);
        let shown = path.escape_ascii();
        assert!(is_name(name), "{shown}: not a valid path of a file");
        assert!(
            self.child(parent, name).is_none(),
            "{shown}: it exists already"
        );
        self.add(parent, name, node);
        self
    }

    #[track_caller]
    fn make_dirs(&mut self, path: &[u8]) -> u64 {
        let names = path.split(|&byte| byte == b'/');
        names
            .filter(|name| !name.is_empty())
            .fold(ROOT, |at, name| {
                let shown = path.escape_ascii();
                assert!(is_name(name), "{shown}: not a valid path of a directory");
                let Some(id) = self.child(at, name) else {
                    return self.add(at, name, Node::Dir);
                };
                let is_dir = matches!(self.node(id), Some(Node::Dir));
                assert!(is_dir, "{shown}: not a directory");
                id
            })
    }

    /// The path that a request is about.
    pub(crate) fn path(&self, request: &Request) -> Vec<u8> {
        let mut names = Vec::new();
        if request.opcode == Opcode::Lookup {
            names.push(request.looked_up());
        }
        let mut at = request.node;
        while let Some(entry) = self.entry(at).filter(|_| at != ROOT) {
            names.push(&entry.name);
            at = entry.parent;
        }
        names.push(&[]);
        names.reverse();
        match &names[..] {
            [_] => b"/".to_vec(),
            names => names.join(&b'/'),
        }
    }

    fn entry(&self, id: u64) -> Option<&Entry> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        self.entries.get(index)
    }

    fn node(&self, id: u64) -> Option<&Node> {
        self.entry(id).map(|entry| &entry.node)
    }

    fn child(&self, parent: u64, name: &[u8]) -> Option<u64> {
        let mut children = self.children(parent);
        children.find(|(_, of)| *of == name).map(|(id, _)| id)
    }

    fn children(&self, parent: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let entries = self.entries.iter().enumerate().skip(1);
        entries.filter_map(move |(index, entry)| {
            (entry.parent == parent).then_some((index as u64 + 1, entry.name.as_slice()))
        })
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

    fn read(&self, request: &Request) -> Option<Vec<u8>> {
        let (offset, size) = (request.offset(), u64::from(request.size()));
        match self.node(request.node)? {
            Node::File(content) => Some(request.part_of(content).to_vec()),
            Node::Pattern(length) => {
                let end = (*length).min(offset.saturating_add(size));
                Some((offset..end).map(pattern).collect())
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

    /// The reply of a correct server.
    pub(crate) fn reply(&self, request: &Request) -> Reply {
        match request.opcode {
            Opcode::Forget | Opcode::Destroy => Reply::none(),
            Opcode::Lookup if self.child(request.node, request.looked_up()).is_none() => {
                Reply::error(request, Errno::ENOENT)
            }
            _ => match self.body(request) {
                Some(body) => success(request, &body),
                None => Reply::error(request, Errno::EBADF),
            },
        }
    }

    /// The body of a good reply; `None` if there is no such node, or it has another type.
    fn body(&self, request: &Request) -> Option<Vec<u8>> {
        let id = request.node;
        Some(match request.opcode {
            Opcode::Init => bytes(&fuse_init_out {
                major: 7,
                minor: 38,
                max_write: 1 << 20,
                ..fuse_init_out::default()
            }),
            Opcode::Lookup => {
                let nodeid = self.child(id, request.looked_up())?;
                bytes(&fuse_entry_out {
                    nodeid,
                    attr: self.attr(nodeid)?,
                    ..fuse_entry_out::default()
                })
            }
            Opcode::GetAttr => bytes(&fuse_attr_out {
                attr: self.attr(id)?,
                ..fuse_attr_out::default()
            }),
            Opcode::ReadLink => match self.node(id)? {
                Node::Link(target) => target.clone(),
                _ => return None,
            },
            Opcode::Open | Opcode::OpenDir => {
                self.node(id)?;
                bytes(&fuse_open_out {
                    // Each handle is different: it is the request's unique number.
                    fh: request.unique,
                    ..fuse_open_out::default()
                })
            }
            Opcode::Read => self.read(request)?,
            Opcode::ReadDir => self.list(request),
            Opcode::StatFs => bytes(&fuse_statfs_out {
                st: fuse_kstatfs {
                    blocks: 1000,
                    bfree: 100,
                    bsize: 4096,
                    namelen: 255,
                    frsize: 512,
                    ..fuse_kstatfs::default()
                },
            }),
            Opcode::Release | Opcode::ReleaseDir | Opcode::Forget | Opcode::Destroy => Vec::new(),
        })
    }
}

/// For the tests of this project: also invalid trees and entries.
#[cfg(feature = "raw")]
impl Tree {
    /// Adds a file of this size that takes no memory; see [`Tree::pattern`].
    #[must_use]
    #[track_caller]
    pub fn large_file(self, path: impl AsRef<[u8]>, size: u64) -> Self {
        self.with(path.as_ref(), Node::Pattern(size))
    }

    /// Adds a device, FIFO or socket, by its mode.
    #[must_use]
    #[track_caller]
    pub fn special(self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.with(path.as_ref(), Node::Other(mode))
    }

    /// The byte at `offset` of a [`Tree::large_file`].
    #[must_use]
    pub fn pattern(offset: u64) -> u8 {
        pattern(offset)
    }

    /// The reply of a correct server.
    #[must_use]
    pub fn good_reply(&self, request: &Request) -> Reply {
        self.reply(request)
    }
}

fn pattern(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains(&0) && name != b"." && name != b".."
}

fn read_node(path: &Path) -> io::Result<Node> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_file() {
        fs::read(path).map(Node::File)
    } else if kind.is_dir() {
        Ok(Node::Dir)
    } else if kind.is_symlink() {
        let target = fs::read_link(path)?;
        Ok(Node::Link(target.as_os_str().as_encoded_bytes().to_vec()))
    } else {
        Err(io::Error::other(
            "neither a file nor a directory nor a link",
        ))
    }
}

fn bytes(body: &(impl IntoBytes + zerocopy::Immutable)) -> Vec<u8> {
    body.as_bytes().to_vec()
}

/// A directory entry in the format of a READDIR reply.
#[must_use]
pub fn dirent(ino: u64, offset: u64, file_type: u32, name: &[u8]) -> Vec<u8> {
    let mut out = [ino.to_le_bytes(), offset.to_le_bytes()].concat();
    out.extend_from_slice(&(name.len() as u32).to_le_bytes());
    out.extend_from_slice(&file_type.to_le_bytes());
    out.extend_from_slice(name);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use bootshare::{Error, Options};
    use std::{
        panic::catch_unwind,
        sync::{Arc, Mutex},
    };

    #[test]
    fn missing_parents_are_made_once() {
        let tree = Tree::new()
            .file("/a/b/one", "1")
            .dir("a//b/")
            .file("a/b/two", "22")
            .link("up", "a");
        let device = Device::new(tree);
        let share = device.mount(Options::default()).unwrap();
        let names = share.read_dir("/a/b").unwrap();
        let names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().to_vec())
            .collect();
        assert_eq!(names, [b"one", b"two"]);
        assert_eq!(share.metadata("up/b/two").unwrap().len(), 2);
        share.unmount().unwrap();
    }

    #[test]
    fn invalid_names_and_parents_are_refused() {
        type Case = (fn() -> Tree, &'static str);
        let cases: [Case; 6] = [
            (|| Tree::new().file("", ""), "not a valid path of a file"),
            (
                || Tree::new().file("dir/", ""),
                "not a valid path of a file",
            ),
            (
                || Tree::new().file("../x", ""),
                "not a valid path of a directory",
            ),
            (
                || Tree::new().file("x", "").file("/x", ""),
                "it exists already",
            ),
            (
                || Tree::new().file("x", "").link("x/y", ""),
                "not a directory",
            ),
            (|| Tree::new().dir("x\0"), "not a valid path of a directory"),
        ];
        for (build, why) in cases {
            let panic = catch_unwind(build).expect_err(why);
            let text = panic.downcast_ref::<String>().expect("a formatted text");
            assert!(text.ends_with(why), "{text}");
        }
    }

    #[test]
    fn a_script_gets_the_path() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        let tree = Tree::new().file("dir/file", "content");
        let device = Device::with_script(tree, move |request, good| {
            let path = String::from_utf8(request.path().to_vec()).unwrap();
            record.lock().unwrap().push((request.opcode(), path));
            good
        });
        let share = device.mount(Options::default()).unwrap();
        let file = share.open("dir/file").unwrap();
        assert_eq!(file.read_at(0, &mut [0; 16]), Ok(7));
        drop(file);
        assert_eq!(share.metadata("dir/none").err(), Some(Error::NotFound));
        share.unmount().unwrap();
        let asked = asked.lock().unwrap();
        let paths = |opcode| {
            let asked = asked.iter().filter(move |(of, _)| *of == opcode);
            asked.map(|(_, path)| path.as_str()).collect::<Vec<_>>()
        };
        let looked_up = ["/dir", "/dir/file", "/dir", "/dir/none"];
        assert_eq!(paths(Opcode::Lookup), looked_up);
        assert_eq!(paths(Opcode::Read), ["/dir/file"]);
        assert_eq!(paths(Opcode::Destroy), ["/"]);
    }

    #[test]
    fn a_directory_of_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "content").unwrap();
        std::os::unix::fs::symlink("sub/file", dir.path().join("link")).unwrap();
        let device = Device::new(Tree::from_dir(dir.path()).unwrap());
        let share = device.mount(Options::default()).unwrap();
        let mut content = [0; 7];
        let file = share.open("link").unwrap();
        file.read_exact_at(0, &mut content).unwrap();
        assert_eq!(&content, b"content");
        assert!(share.symlink_metadata("link").unwrap().is_symlink());
        drop(file);
        share.unmount().unwrap();

        let missing = dir.path().join("missing");
        let error = Tree::from_dir(&missing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.starts_with(missing.to_str().unwrap()), "{text}");
    }
}
