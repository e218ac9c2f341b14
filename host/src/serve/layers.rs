//! The file system: one directory, or several laid over each other as overlayfs would.
//!
//! fuse-backend-rs has a pass-through and an overlay file system of its own. They are not used:
//! the first sets the umask of the whole process, follows guest-chosen `..` out of a directory that
//! was moved, and looks up every entry of a directory that is listed; the second loses names that
//! are not UTF-8 and keeps a descriptor for each entry of each directory that was ever looked at.
//!
//! A node is a path below the share's root and the layers that have it. Each operation resolves
//! that path anew with openat2(2), which neither leaves the root nor follows a link, so a node costs
//! no descriptor and a directory that was moved out of the share is gone. Only regular files and
//! directories are ever opened for reading.
//!
//! With several layers (Documentation/filesystems/overlayfs.rst): directories of one name merge;
//! anything else hides what is below it. A whiteout, a character device 0/0 or an empty file with
//! the attribute `overlay.whiteout`, hides it too and is itself not seen. A directory with the
//! attribute `overlay.opaque` of `y` hides what is below it. Attributes count under `trusted.`,
//! `user.` and, for the second, `user.fuseoverlayfs.`.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fuse_backend_rs::abi::fuse_abi::{ROOT_ID, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, OpenOptions, ZeroCopyWriter,
};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, fstat, fstatvfs, open,
    openat2, readlinkat, statat,
};
use rustix::io::Errno;

use super::lock;
use crate::syscall::OPENAT2;

/// How long the guest may rely on names and attributes, as virtiofsd's `--cache=auto`.
const VALID: Duration = Duration::from_secs(1);

/// How often a path is resolved again when something above it was renamed meanwhile.
const RENAME_RETRIES: usize = 64;

/// The kernel takes paths of 4095 bytes; a deeper one is resolved in pieces of this size.
const PIECE: usize = 3840;

/// Entries in all lists of directories that a guest holds open, as a limit to our memory.
const MAX_LISTED: usize = 2 << 20;

/// Descriptors that are left to the rest of the process.
const RESERVED_FILES: u64 = 256;

/// Files and directories that all guests hold open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A path and where it is.
#[derive(Debug)]
struct Node {
    /// Relative to the share's root, which is empty.
    path: PathBuf,
    /// The layers that have it: one, or all those of a directory that merge.
    layers: Vec<usize>,
    identity: Identity,
}

/// Which file is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    /// The bits of `st_mode` that tell the kind of file.
    format: u32,
    device: u64,
    ino: u64,
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self {
            format: stat.st_mode & libc::S_IFMT,
            device: stat.st_dev,
            ino: stat.st_ino,
        }
    }
}

impl Identity {
    fn kind(self) -> FileType {
        FileType::from_raw_mode(self.format)
    }
}

/// What the guest knows; a file that took another's place is another node.
struct Known {
    node: Arc<Node>,
    lookups: u64,
}

#[derive(Default)]
struct Nodes {
    by_id: HashMap<u64, Known>,
    by_path: HashMap<(PathBuf, Identity), u64>,
    last_id: u64,
}

/// An entry of a directory.
struct Item {
    name: CString,
    ino: u64,
    kind: u32,
}

enum Handle {
    File(File),
    Dir(Mutex<Listing>),
}

/// What a directory had when the guest began to read it.
#[derive(Default)]
struct Listing {
    items: Vec<Item>,
    listed: Option<Arc<AtomicUsize>>,
}

/// A handle that the guest has, counted.
struct Opened {
    inode: u64,
    handle: Handle,
}

/// A read-only file system of one or more directories.
pub(super) struct Layers {
    roots: Vec<OwnedFd>,
    nodes: Mutex<Nodes>,
    handles: Mutex<HashMap<u64, Arc<Opened>>>,
    last_handle: AtomicU64,
    listed: Arc<AtomicUsize>,
    /// The file systems that files were seen on, for [`Layers::number`].
    devices: Mutex<Vec<u64>>,
}

impl Layers {
    /// The directories; earlier ones cover later ones.
    pub(super) fn new(dirs: &[PathBuf]) -> Result<Self> {
        let roots = dirs
            .iter()
            .map(|dir| {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                open(dir, flags, Mode::empty())
                    .with_context(|| format!("cannot share {}", dir.display()))
            })
            .collect::<Result<Vec<_>>>()?;
        let layers = Self {
            roots,
            nodes: Mutex::default(),
            handles: Mutex::default(),
            last_handle: AtomicU64::new(0),
            listed: Arc::default(),
            devices: Mutex::default(),
        };
        OPENAT2.check()?;
        for (index, dir) in dirs.iter().enumerate() {
            layers
                .open(index, Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY)
                .with_context(|| format!("cannot read {}", dir.display()))?;
        }
        layers.forget_all();
        Ok(layers)
    }

    fn forget_all(&self) {
        let root = Node {
            path: PathBuf::new(),
            layers: (0..self.roots.len()).collect(),
            identity: Identity {
                format: libc::S_IFDIR,
                device: 0,
                ino: 0,
            },
        };
        let root = Known {
            node: Arc::new(root),
            lookups: 1,
        };
        *lock(&self.nodes) = Nodes {
            by_id: HashMap::from([(ROOT_ID, root)]),
            by_path: HashMap::new(),
            last_id: ROOT_ID,
        };
        lock(&self.handles).clear();
    }

    fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let nodes = lock(&self.nodes);
        let known = nodes.by_id.get(&id).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&known.node))
    }

    /// Opens a path in one layer. It cannot leave the layer, and no link is followed.
    fn open(&self, layer: usize, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() <= PIECE {
            return open_beneath(self.roots[layer].as_fd(), path, flags);
        }
        let mut rest = bytes;
        let mut dir: Option<OwnedFd> = None;
        loop {
            let from = dir.as_ref().unwrap_or(&self.roots[layer]).as_fd();
            let cut = match rest.get(..PIECE) {
                Some(piece) => piece.iter().rposition(|&byte| byte == b'/'),
                None => None,
            };
            let Some(cut) = cut else {
                return open_beneath(from, Path::new(OsStr::from_bytes(rest)), flags);
            };
            let piece = Path::new(OsStr::from_bytes(&rest[..cut]));
            dir = Some(open_beneath(from, piece, OFlags::PATH | OFlags::DIRECTORY)?);
            rest = &rest[cut + 1..];
        }
    }

    /// The node's file in its first layer, if that is still the file that the guest looked up.
    /// Directories may be others of the same name, some file systems number theirs anew at times.
    fn open_node(&self, node: &Node, flags: OFlags) -> Result<(OwnedFd, Stat), Errno> {
        let fd = self.open(node.layers[0], &node.path, flags)?;
        let stat = fstat(&fd)?;
        let (now, then) = (Identity::from(&stat), node.identity);
        if now.format != then.format || (now.kind() == FileType::RegularFile && now != then) {
            return Err(Errno::STALE);
        }
        Ok((fd, stat))
    }

    /// Finds `name` in a directory by the rules of the layers.
    fn find(&self, parent: &Node, name: &CStr) -> Result<(Node, Stat), Errno> {
        let name = name.to_bytes();
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        if parent.identity.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let path = parent.path.join(OsStr::from_bytes(name));
        let mut layers = Vec::new();
        let mut first: Option<Stat> = None;
        for &layer in &parent.layers {
            let fd = match self.open(layer, &path, OFlags::PATH) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(error),
            };
            let stat = fstat(&fd)?;
            let is_dir = kind(&stat) == FileType::Directory;
            if self.is_whiteout(layer, &path, &stat) || (first.is_some() && !is_dir) {
                break;
            }
            layers.push(layer);
            first.get_or_insert(stat);
            if !is_dir || self.is_opaque(layer, &path) {
                break;
            }
        }
        let stat = first.ok_or(Errno::NOENT)?;
        let node = Node {
            path,
            layers,
            identity: Identity::from(&stat),
        };
        Ok((node, stat))
    }

    fn has_several(&self) -> bool {
        self.roots.len() > 1
    }

    fn is_whiteout(&self, layer: usize, path: &Path, stat: &Stat) -> bool {
        match kind(stat) {
            FileType::CharacterDevice => self.has_several() && stat.st_rdev == 0,
            FileType::RegularFile if self.has_several() && stat.st_size == 0 => {
                self.attribute(layer, path, &WHITEOUT).is_some()
            }
            _ => false,
        }
    }

    fn is_opaque(&self, layer: usize, path: &Path) -> bool {
        self.has_several() && self.attribute(layer, path, &OPAQUE) == Some(b'y')
    }

    /// The first byte of the first of these attributes that is there, 0 for an empty one. What we
    /// may not read has none.
    fn attribute(&self, layer: usize, path: &Path, names: &[&str]) -> Option<u8> {
        let fd = self
            .open(
                layer,
                path,
                OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            )
            .ok()?;
        names.iter().find_map(|&name| {
            let mut value = [0; 16];
            fgetxattr(&fd, name, &mut value).ok().map(|_| value[0])
        })
    }

    /// A file's number in the guest, where all layers and what is mounted in them are one device:
    /// files of two devices may have one number on the host.
    fn number(&self, device: u64, ino: u64) -> u64 {
        let mut devices = lock(&self.devices);
        let index = devices.iter().position(|&known| known == device);
        let index = index.unwrap_or_else(|| {
            devices.push(device);
            devices.len() - 1
        });
        ino ^ (index as u64) << 54
    }

    fn attributes(&self, node: &Node, stat: &Stat) -> stat64 {
        // SAFETY: a C structure of integers, for which zeroes are values.
        let mut out: stat64 = unsafe { std::mem::zeroed() };
        out.st_dev = stat.st_dev;
        out.st_ino = self.number(stat.st_dev, stat.st_ino);
        out.st_mode = stat.st_mode;
        // As overlayfs: the links of a directory that merges are not counted.
        out.st_nlink = if node.layers.len() > 1 {
            1
        } else {
            stat.st_nlink as _
        };
        out.st_uid = stat.st_uid;
        out.st_gid = stat.st_gid;
        out.st_rdev = stat.st_rdev;
        out.st_size = stat.st_size;
        out.st_blksize = stat.st_blksize as _;
        out.st_blocks = stat.st_blocks;
        out.st_atime = stat.st_atime as _;
        out.st_atime_nsec = stat.st_atime_nsec as _;
        out.st_mtime = stat.st_mtime as _;
        out.st_mtime_nsec = stat.st_mtime_nsec as _;
        out.st_ctime = stat.st_ctime as _;
        out.st_ctime_nsec = stat.st_ctime_nsec as _;
        out
    }

    /// Makes a node known to the guest, once more.
    fn enter(&self, node: Node, stat: &Stat) -> Entry {
        let attr = self.attributes(&node, stat);
        let key = (node.path.clone(), node.identity);
        let mut nodes = lock(&self.nodes);
        let nodes = &mut *nodes;
        let inode = *nodes.by_path.entry(key).or_insert_with(|| {
            nodes.last_id += 1;
            nodes.last_id
        });
        let before = nodes.by_id.get(&inode).map_or(0, |known| known.lookups);
        // What merges may be another set of layers than last time.
        let known = Known {
            node: Arc::new(node),
            lookups: before.saturating_add(1),
        };
        nodes.by_id.insert(inode, known);
        Entry {
            inode,
            generation: 0,
            attr,
            attr_flags: 0,
            attr_timeout: VALID,
            entry_timeout: VALID,
        }
    }

    fn insert(&self, inode: u64, handle: Handle) -> Result<u64, Errno> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.unwrap_or(u64::MAX).saturating_sub(RESERVED_FILES);
        let opened = Arc::new(Opened::new(inode, handle));
        if OPEN.load(Ordering::Relaxed) as u64 > limit {
            return Err(Errno::NFILE);
        }
        let id = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.handles).insert(id, opened);
        Ok(id)
    }

    fn handle(&self, id: u64) -> Result<Arc<Opened>, Errno> {
        let handles = lock(&self.handles);
        handles.get(&id).map(Arc::clone).ok_or(Errno::BADF)
    }

    /// A node's open file: the named one, or any.
    fn opened(&self, inode: u64, handle: Option<u64>) -> Option<Arc<Opened>> {
        let handles = lock(&self.handles);
        let named = handle.and_then(|handle| handles.get(&handle));
        let mut all = named.into_iter().chain(handles.values());
        all.find(|opened| opened.inode == inode).map(Arc::clone)
    }

    /// Reads a whole directory: the first layer that has a name decides.
    fn list(&self, node: &Node) -> Result<Listing, Errno> {
        let mut items = Vec::new();
        let mut seen = HashSet::new();
        for (index, &layer) in node.layers.iter().enumerate() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let fd = match self.open(layer, &node.path, flags) {
                Err(Errno::NOENT | Errno::NOTDIR) if index > 0 => continue,
                other => other?,
            };
            let stat = fstat(&fd)?;
            let device = stat.st_dev;
            if index == 0 {
                for name in [c".", c".."] {
                    items.push(Item {
                        name: name.into(),
                        ino: self.number(device, stat.st_ino),
                        kind: libc::DT_DIR.into(),
                    });
                }
            }
            for entry in Dir::read_from(&fd)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..")
                    || (node.layers.len() > 1 && !seen.insert(name.to_owned()))
                    || self.hides(layer, node, fd.as_fd(), name, entry.file_type())
                {
                    continue;
                }
                items.push(Item {
                    name: name.to_owned(),
                    ino: self.number(device, entry.ino()),
                    kind: dirent_type(entry.file_type()),
                });
                if self.listed.load(Ordering::Relaxed) + items.len() > MAX_LISTED {
                    return Err(Errno::NOMEM);
                }
            }
        }
        self.listed.fetch_add(items.len(), Ordering::Relaxed);
        let listed = Some(Arc::clone(&self.listed));
        Ok(Listing { items, listed })
    }

    /// Whether an entry of a directory is a whiteout.
    fn hides(
        &self,
        layer: usize,
        node: &Node,
        dir: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
    ) -> bool {
        let may = matches!(
            kind,
            FileType::CharacterDevice | FileType::RegularFile | FileType::Unknown
        );
        self.has_several()
            && may
            && statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
                let path = node.path.join(OsStr::from_bytes(name.to_bytes()));
                self.is_whiteout(layer, &path, &stat)
            })
    }

    /// Passes a directory's entries on, from `offset`, until one does not fit.
    fn read_items(
        &self,
        inode: u64,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(&Item, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let opened = self.handle(handle)?;
        let Handle::Dir(listing) = &opened.handle else {
            return Err(Errno::NOTDIR.into());
        };
        let mut listing = lock(listing);
        if offset == 0 {
            let node = self.node(inode)?;
            *listing = Listing::default();
            *listing = self.list(&node)?;
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let items = listing.items.iter().zip(1..).skip(start);
        for (count, (item, next)) in items.enumerate() {
            match add(item, next) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if count == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

const WHITEOUT: [&str; 2] = ["trusted.overlay.whiteout", "user.overlay.whiteout"];
const OPAQUE: [&str; 3] = [
    "trusted.overlay.opaque",
    "user.overlay.opaque",
    "user.fuseoverlayfs.opaque",
];

fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..RENAME_RETRIES {
        result = openat2(dir, path, flags, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    result
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn dirent_type(kind: FileType) -> u32 {
    u32::from(match kind {
        FileType::RegularFile => libc::DT_REG,
        FileType::Directory => libc::DT_DIR,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    })
}

impl Opened {
    fn new(inode: u64, handle: Handle) -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Self { inode, handle }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        if let Some(listed) = &self.listed {
            listed.fetch_sub(self.items.len(), Ordering::Relaxed);
        }
    }
}

/// What is missing here changes something, and is refused before it comes here; if it came, its
/// default answer is an error too.
impl FileSystem for Layers {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        // A guest that was reset says no farewell.
        self.forget_all();
        Ok(FsOptions::ASYNC_READ
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::DO_READDIRPLUS
            | FsOptions::READDIRPLUS_AUTO
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::MAX_PAGES)
    }

    fn destroy(&self) {
        self.forget_all();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (node, stat) = self.find(&*self.node(parent)?, name)?;
        Ok(self.enter(node, &stat))
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        let mut nodes = lock(&self.nodes);
        let Some(known) = nodes.by_id.get_mut(&inode).filter(|_| inode != ROOT_ID) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0
            && let Some(known) = nodes.by_id.remove(&inode)
        {
            let key = (known.node.path.clone(), known.node.identity);
            nodes.by_path.remove(&key);
        }
    }

    fn getattr(
        &self,
        _: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let node = self.node(inode)?;
        // An open file is that file, whatever has its path now.
        let stat = match self.opened(inode, handle).as_deref() {
            Some(Opened {
                handle: Handle::File(file),
                ..
            }) => fstat(file)?,
            _ => self.open_node(&node, OFlags::PATH)?.1,
        };
        Ok((self.attributes(&node, &stat), VALID))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let node = self.node(inode)?;
        if node.identity.kind() != FileType::Symlink {
            return Err(Errno::INVAL.into());
        }
        let (fd, _) = self.open_node(&node, OFlags::PATH)?;
        Ok(readlinkat(&fd, c"", Vec::new())?.into_bytes())
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let node = self.node(inode)?;
        match node.identity.kind() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            FileType::Symlink => return Err(Errno::LOOP.into()),
            _ => return Err(Errno::NXIO.into()),
        }
        // Whatever the guest asked for: its flags may be another architecture's. Should a FIFO take
        // the file's place in this moment, opening it does not block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let (fd, _) = self.open_node(&node, flags)?;
        let id = self.insert(inode, Handle::File(fd.into()))?;
        Ok((Some(id), OpenOptions::empty(), None))
    }

    fn read(
        &self,
        _: &Context,
        _inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let opened = self.handle(handle)?;
        let Handle::File(file) = &opened.handle else {
            return Err(Errno::ISDIR.into());
        };
        // The writer asks for a file of its own; the guest's memory is filled by preadv(2).
        let mut file = file.try_clone()?;
        let size = writer.available_bytes().min(size as usize);
        let mut done = 0;
        while done < size {
            let Some(at) = offset.checked_add(done as u64) else {
                return Err(Errno::INVAL.into());
            };
            match writer.write_from(&mut file, size - done, at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn release(
        &self,
        _: &Context,
        _inode: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        lock(&self.handles).remove(&handle).ok_or(Errno::BADF)?;
        Ok(())
    }

    fn fsync(&self, _: &Context, _: u64, _datasync: bool, _handle: u64) -> io::Result<()> {
        Ok(())
    }

    fn opendir(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let node = self.node(inode)?;
        if node.identity.kind() != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        // Tells now whether it may be read.
        self.open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let id = self.insert(inode, Handle::Dir(Mutex::default()))?;
        Ok((Some(id), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_items(inode, handle, offset, &mut |item, next| {
            add_entry(item.entry(next))
        })
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_items(inode, handle, offset, &mut |item, next| {
            // Without a node (`.`, `..`, what has just gone) the guest looks it up when it wants to.
            let entry = self.lookup(context, inode, &item.name).unwrap_or_default();
            let added = add_entry(item.entry(next), entry);
            if !matches!(added, Ok(1..)) && entry.inode != 0 {
                self.forget(context, entry.inode, 1);
            }
            added
        })
    }

    fn fsyncdir(&self, _: &Context, _: u64, _datasync: bool, _handle: u64) -> io::Result<()> {
        Ok(())
    }

    fn releasedir(&self, context: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.release(context, inode, flags, handle, false, false, None)
    }

    fn statfs(&self, _: &Context, _: u64) -> io::Result<statvfs64> {
        let stat = fstatvfs(&self.roots[0])?;
        // SAFETY: a C structure of integers, for which zeroes are values.
        let mut out: statvfs64 = unsafe { std::mem::zeroed() };
        out.f_bsize = stat.f_bsize;
        out.f_frsize = stat.f_frsize;
        out.f_blocks = stat.f_blocks;
        out.f_bfree = stat.f_bfree;
        out.f_bavail = stat.f_bavail;
        out.f_files = stat.f_files;
        out.f_ffree = stat.f_ffree;
        out.f_favail = stat.f_favail;
        out.f_namemax = stat.f_namemax;
        Ok(out)
    }
}

impl Item {
    fn entry(&self, next: u64) -> DirEntry<'_> {
        DirEntry {
            ino: self.ino,
            offset: next,
            type_: self.kind,
            name: self.name.to_bytes(),
        }
    }
}
