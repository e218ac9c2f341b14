//! The read-only file system: one directory, or several layers merged as in overlayfs.
//!
//! fuse-backend-rs has a pass-through and an overlay file system of its own. They are not used:
//! the first sets the umask of the whole process, follows guest-chosen `..` out of a directory that
//! was moved, and ends at the limit of open files; the second loses names that are not UTF-8 and
//! keeps a descriptor for each entry of each directory that was ever looked at.
//!
//! A name is looked up below the descriptor of its directory by openat2(2), one component at a time,
//! which neither leaves the directory nor follows a link: the guest reaches what is below the
//! share's root and nothing else. Only regular files and directories are ever opened for reading.

mod caller;
mod descriptors;
mod entries;
mod host;
mod kernels;
mod last;
mod layers;
mod listing;
mod nodes;
mod operations;

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use fuse_backend_rs::abi::fuse_abi::{ATTR_SUBMOUNT, stat64};
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{FileType, Mode, OFlags, Statx, makedev, open, openat};
use rustix::io::Errno;

use crate::explain::Explain;
use crate::lock::lock;
use crate::prepare::{Part, Prepare};
use crate::syscall::OPENAT2;
use caller::Caller;
pub use caller::Owner;
use descriptors::Held;
pub use descriptors::raise_open_files;
use entries::{Item, Listing, Stream};
use host::{Descriptors, Key};
use kernels::{Kernel, Kernels};
use last::Last;
use nodes::{Node, Nodes};

/// How long a node is assumed to be in the share before that is checked again, in milliseconds.
const CHECK_PERIOD: u64 = 1000;

/// The largest depth of directories that is walked towards the root.
const MOST_DEEP: usize = 1 << 16;

/// How long the guest may cache names, attributes and content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Cache {
    /// Not at all: each look and each read goes to the host
    #[value(alias = "never")]
    None,
    /// For a second; content until the file changes
    #[default]
    Auto,
    /// For a day: for directories that do not change
    Always,
}

impl Cache {
    fn validity(self) -> Duration {
        Duration::from_secs(match self {
            Self::None => 0,
            Self::Auto => 1,
            Self::Always => 86_400,
        })
    }
}

/// An open handle of the guest.
enum Opened {
    File(Arc<Held>),
    Dir(Mutex<Listing>),
    /// A prepared kernel; requests identify it by its node ID.
    Kernel,
}

/// A read-only file system of one or more directories.
pub(super) struct Share {
    roots: Vec<(Key, Arc<Held>)>,
    descriptors: Descriptors,
    caller: Caller,
    cache: Cache,
    xattr: bool,
    /// Whether file systems mounted in the layers are announced as submounts (FUSE_SUBMOUNTS).
    tells_submounts: bool,
    /// The prepared kernels, if kernels are prepared.
    kernels: Option<Kernels>,
    nodes: Nodes,
    handles: Mutex<HashMap<u64, Arc<Opened>>>,
    last_handle: AtomicU64,
    /// The devices of the layers, then those that were found in them, for [`Share::number`].
    devices: Mutex<Vec<u64>>,
    /// Whether the guest has sent INIT, and the options that were agreed on.
    mounted: AtomicBool,
    submounts: AtomicBool,
    without_open: AtomicBool,
    pub(super) last: Last,
    start: Instant,
}

impl Share {
    /// Shares `dirs`; earlier ones cover later ones. The process's limit of open files is raised to
    /// `open_files`, or to the hard limit.
    pub(super) fn new(
        dirs: &[PathBuf],
        cache: Cache,
        xattr: bool,
        open_files: Option<u64>,
    ) -> Result<Self> {
        OPENAT2.check()?;
        raise_open_files(open_files)?;
        let mut roots = Vec::new();
        let mut devices = Vec::new();
        for dir in dirs {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = open(dir, flags, Mode::empty()).explain(
                format_args!("cannot share {}", dir.display()),
                "name a directory that can be read",
            )?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(&root, c".", flags, Mode::empty())
                .with_context(|| format!("cannot read {}", dir.display()))?;
            let stat = host::stat(root.as_fd());
            let key = Key::of(&stat.with_context(|| format!("cannot look at {}", dir.display()))?);
            if !devices.contains(&key.device) {
                devices.push(key.device);
            }
            roots.push((key, Arc::new(Held::new(root, false))));
        }
        let share = Self {
            roots,
            descriptors: Descriptors::new()?,
            caller: Caller::new(Owner::AsIs),
            cache,
            xattr,
            tells_submounts: true,
            kernels: None,
            nodes: Nodes::default(),
            handles: Mutex::default(),
            last_handle: AtomicU64::new(0),
            devices: Mutex::new(devices),
            mounted: AtomicBool::new(false),
            submounts: AtomicBool::new(false),
            without_open: AtomicBool::new(false),
            last: Last::default(),
            start: Instant::now(),
        };
        share.forget_all();
        Ok(share)
    }

    /// Disables submounts: the guest sees a single file system.
    pub(super) fn without_submounts(self) -> Self {
        Self {
            tells_submounts: false,
            ..self
        }
    }

    /// Sets which owner the guest sees.
    pub(super) fn of_owner(self, owner: Owner) -> Self {
        Self {
            caller: Caller::new(owner),
            ..self
        }
    }

    /// Enables prepared kernels.
    pub(super) fn with_kernels(self, how: Prepare) -> Self {
        Self {
            kernels: Some(Kernels::new(how)),
            ..self
        }
    }

    /// The first file that the guest could not open because of the host's permissions, and the
    /// reason.
    pub(super) fn denied(&self) -> Option<String> {
        self.caller.denied()
    }

    /// The last request that succeeded and the last one that failed, on one line.
    pub(super) fn last_requests(&self) -> Option<String> {
        self.last.describe(|id| self.path_in_share(id))
    }

    /// The path of a node below the share's root, whose own path is empty: the names of its lookups.
    /// The host is asked only if the guest has forgotten one of the directories.
    fn path_in_share(&self, id: u64) -> Option<Vec<u8>> {
        let mut node = self.nodes.get(id).ok()?;
        let mut names = Vec::new();
        let mut path = loop {
            if node.is_root() {
                break Vec::new();
            }
            let (parent, name) = node.place();
            let Ok(above) = self.nodes.get(parent) else {
                break self.path_below_root(&node).ok()?;
            };
            if names.len() == MOST_DEEP {
                return None;
            }
            names.push(name);
            node = above;
        };
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
        }
        Some(path)
    }

    /// The current path of a node, without the path of its layer.
    fn path_below_root(&self, node: &Arc<Node>) -> Result<Vec<u8>, Errno> {
        let root = &self.roots[node.parts[0].layer].1;
        let root = self.descriptors.path(root.as_fd())?;
        let path = self.descriptors.path(self.held(node, 0)?.as_fd())?;
        let root = root.strip_suffix(b"/").unwrap_or(&root);
        Ok(path.strip_prefix(root).unwrap_or(&path).to_vec())
    }

    /// Whether a guest has mounted the share.
    pub(super) fn is_mounted(&self) -> bool {
        self.mounted.load(Ordering::Relaxed)
    }

    /// Closes all handles of the guest and forgets its nodes.
    pub(super) fn forget_all(&self) {
        self.mounted.store(false, Ordering::Relaxed);
        let handles = std::mem::take(&mut *lock(&self.handles));
        drop(handles);
        self.last.forget(None, |id| self.path_in_share(id));
        self.nodes.clear(&self.roots);
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The node with this ID. Whether it is still in the share is checked once a second.
    fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let node = self.nodes.get(id)?;
        let now = self.now();
        if !node.is_due(now, CHECK_PERIOD) {
            return Ok(node);
        }
        let mut line = vec![Arc::clone(&node)];
        // Check from the root downwards: whether a directory merges depends on its parent.
        while self.has_several()
            && line.len() < MOST_DEEP
            && let Some(last) = line.last()
            && let Ok(above) = self.nodes.get(last.parent())
            && above.is_due(now, CHECK_PERIOD)
        {
            line.push(above);
        }
        for node in line.iter().rev() {
            self.check(node)?;
            node.checked(now);
        }
        Ok(node)
    }

    /// Checks that a node is still in the share and still consists of the same parts; ESTALE if
    /// not.
    fn check(&self, node: &Arc<Node>) -> Result<(), Errno> {
        for (index, part) in node.parts.iter().enumerate() {
            let held = self.held(node, index)?;
            if !self.is_below(part.layer, held.as_fd())? {
                return Err(Errno::STALE);
            }
        }
        let (parent, name) = node.place();
        if self.has_several()
            && node.is_dir()
            && let Ok(parent) = self.nodes.get(parent)
        {
            return match self.find(&parent, &name) {
                Ok(entry) if node.has_parts_of(&entry) => Ok(()),
                Ok(_) | Err(Errno::NOENT) => Err(Errno::STALE),
                Err(error) => Err(error),
            };
        }
        Ok(())
    }

    /// Whether a file is below a layer's root: it may have been moved out.
    fn is_below(&self, layer: usize, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        let root = self.descriptors.path(self.roots[layer].1.as_fd())?;
        let mut above;
        let mut path = self.descriptors.path(fd);
        // The kernel does not report paths of more than 4,095 bytes: use the nearest parent
        // directory with a shorter one.
        if path == Err(Errno::NAMETOOLONG) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            above = openat(fd, c"..", flags, Mode::empty())?;
            path = self.descriptors.path(above.as_fd());
            for _ in 0..MOST_DEEP {
                if path != Err(Errno::NAMETOOLONG) {
                    break;
                }
                above = openat(&above, c"..", flags, Mode::empty())?;
                path = self.descriptors.path(above.as_fd());
            }
        }
        let path = path?;
        let removed = root.strip_suffix(b" (deleted)").unwrap_or(&root);
        Ok([&*root, removed].iter().any(|root| {
            let root = root.strip_suffix(b"/").unwrap_or(root);
            let rest = path.strip_prefix(root);
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        }))
    }

    /// The descriptor of a node in one of its layers. If it was closed, it is reopened, starting at
    /// the nearest parent directory with an open descriptor.
    fn held(&self, node: &Arc<Node>, index: usize) -> Result<Arc<Held>, Errno> {
        if let Some(held) = node.held(index) {
            return Ok(held);
        }
        let layer = node.parts[index].layer;
        let mut line = Vec::new();
        let mut next = (Arc::clone(node), index);
        let mut held = loop {
            let (parent, name) = next.0.place();
            let parent = self.nodes.get(parent)?;
            let of_layer = |part: &nodes::Part| part.layer == layer;
            let index = parent.parts.iter().position(of_layer);
            let index = index.ok_or(Errno::STALE)?;
            line.push((next.0, next.1, name));
            if let Some(held) = parent.held(index) {
                break held;
            }
            if line.len() > MOST_DEEP {
                return Err(Errno::STALE);
            }
            next = (parent, index);
        };
        for (node, index, name) in line.iter().rev() {
            descriptors::reserve()?;
            let fd = match host::open_name(held.as_fd(), name) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
                fd => fd?,
            };
            held = node.hold_again(*index, fd)?;
        }
        Ok(held)
    }

    /// A descriptor that is open for reading.
    fn readable(&self, node: &Arc<Node>, index: usize) -> Result<Arc<Held>, Errno> {
        let held = self.held(node, index)?;
        if held.readable {
            return Ok(held);
        }
        descriptors::reserve()?;
        let fd = self.open_held(&held, node.is_dir())?;
        let held = Arc::new(Held::new(fd, true));
        node.hold(index, Arc::clone(&held));
        Ok(held)
    }

    /// Reopens an O_PATH descriptor for reading.
    fn open_held(&self, held: &Held, is_dir: bool) -> Result<OwnedFd, Errno> {
        let opened = self.descriptors.open(held.as_fd(), is_dir);
        opened.inspect_err(|&error| self.caller.note(&self.descriptors, held.as_fd(), error))
    }

    /// The open file that a request names: by its handle, or by its node when the guest does not
    /// send OPEN.
    fn opened(&self, inode: u64, handle: u64) -> Result<Arc<Held>, Errno> {
        match lock(&self.handles).get(&handle).map(Arc::as_ref) {
            Some(Opened::File(file)) => return Ok(Arc::clone(file)),
            Some(Opened::Dir(_)) => return Err(Errno::ISDIR),
            Some(Opened::Kernel) => return Err(Errno::BADF),
            None => {}
        }
        if handle != 0 || !self.without_open.load(Ordering::Relaxed) {
            return Err(Errno::BADF);
        }
        let node = self.node(inode)?;
        Self::check_file(&node)?;
        self.readable(&node, 0)
    }

    /// An error for files that are never opened for reading.
    fn check_file(node: &Node) -> Result<(), Errno> {
        match node.kind {
            FileType::RegularFile if node.hidden => Err(Errno::ACCESS),
            FileType::RegularFile => Ok(()),
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    fn open_dir(&self, inode: u64) -> Result<Listing, Errno> {
        let node = self.node(inode)?;
        if !node.is_dir() {
            return Err(Errno::NOTDIR);
        }
        if node.hidden {
            return Ok(Listing::Hidden);
        }
        if node.parts.len() > 1 {
            // Fail here rather than in READDIR if a directory may not be read.
            for index in 0..node.parts.len() {
                self.readable(&node, index)?;
            }
            return Ok(Listing::Merged(None));
        }
        let held = self.held(&node, 0)?;
        descriptors::reserve()?;
        let dir = self.open_held(&held, true)?;
        Ok(Listing::Stream(Stream::new(Held::new(dir, true))))
    }

    fn insert(&self, opened: Opened) -> u64 {
        let id = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.handles).insert(id, Arc::new(opened));
        id
    }

    fn remove(&self, handle: u64) -> io::Result<()> {
        if self.without_open.load(Ordering::Relaxed) && handle == 0 {
            return Ok(());
        }
        let opened = lock(&self.handles).remove(&handle);
        opened.map(drop).ok_or_else(|| Errno::BADF.into())
    }

    fn read_items(
        &self,
        inode: u64,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(&Item) -> io::Result<usize>,
    ) -> io::Result<()> {
        let node = self.node(inode)?;
        let opened = lock(&self.handles).get(&handle).map(Arc::clone);
        match opened.as_deref() {
            Some(Opened::Dir(listing)) => self.list(&node, &mut lock(listing), offset, add),
            Some(Opened::File(_) | Opened::Kernel) => Err(Errno::NOTDIR.into()),
            None if handle == 0 && self.without_open.load(Ordering::Relaxed) => {
                self.list(&node, &mut self.open_dir(inode)?, offset, add)
            }
            None => Err(Errno::BADF.into()),
        }
    }

    /// The inode number to show. It is the host's if a single file system is served or submounts
    /// are announced. Otherwise the guest sees one device for several devices of the host, whose
    /// numbers may collide, so the device's index is put into the top ten bits.
    fn number(&self, device: u64, ino: u64) -> u64 {
        let mut devices = lock(&self.devices);
        let index = devices.iter().position(|&known| known == device);
        let index = match index {
            Some(index) => index,
            None if self.submounts.load(Ordering::Relaxed) => return ino,
            None => {
                devices.push(device);
                devices.len() - 1
            }
        };
        ino ^ (index as u64) << 54
    }

    fn attributes(&self, node: &Node, stat: &Statx) -> stat64 {
        // SAFETY: a C structure of integers, for which zeroes are valid.
        let mut out: stat64 = unsafe { std::mem::zeroed() };
        out.st_ino = self.number(host::device(stat), stat.stx_ino);
        out.st_mode = stat.stx_mode.into();
        // As in overlayfs, a merged directory has a link count of 1.
        out.st_nlink = if node.parts.len() > 1 {
            1
        } else {
            stat.stx_nlink.into()
        };
        (out.st_uid, out.st_gid) = self.caller.owner(stat.stx_uid, stat.stx_gid);
        out.st_rdev = makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        out.st_size = stat.stx_size as _;
        out.st_blksize = stat.stx_blksize as _;
        out.st_blocks = stat.stx_blocks as _;
        out.st_atime = stat.stx_atime.tv_sec;
        out.st_atime_nsec = stat.stx_atime.tv_nsec.into();
        out.st_mtime = stat.stx_mtime.tv_sec;
        out.st_mtime_nsec = stat.stx_mtime.tv_nsec.into();
        out.st_ctime = stat.stx_ctime.tv_sec;
        out.st_ctime_nsec = stat.stx_ctime.tv_nsec.into();
        out
    }

    /// Looks a name up and counts the lookup.
    fn enter(&self, parent: &Arc<Node>, name: &CStr) -> Result<Entry, Errno> {
        let found = self.find(parent, name)?;
        let stat = found.parts[0].stat;
        let node = self.nodes.enter(parent.id, name, found, self.now())?;
        let submount = node.submount && self.submounts.load(Ordering::Relaxed);
        Ok(Entry {
            inode: node.id,
            generation: 0,
            attr: self.attributes(&node, &stat),
            attr_flags: if submount { ATTR_SUBMOUNT } else { 0 },
            attr_timeout: self.cache.validity(),
            entry_timeout: self.cache.validity(),
        })
    }

    /// The prepared kernel that a lookup below a regular file asks for.
    fn enter_kernel(&self, parent: &Arc<Node>, name: &CStr) -> Result<Option<Entry>, Errno> {
        let (Some(kernels), Some(part)) = (&self.kernels, Part::of(name.to_bytes())) else {
            return Ok(None);
        };
        if Self::check_file(parent).is_err() {
            return Ok(None);
        }
        let file = self.readable(parent, 0)?;
        let (_, own) = parent.place();
        let own = own.to_string_lossy();
        let (inode, kernel) = kernels.find(parent.id, file.as_fd(), &own, part)?;
        Ok(Some(Entry {
            inode,
            attr: self.attributes_of_kernel(&kernel)?,
            ..Entry::default()
        }))
    }

    /// The attributes of the file that it was made from, with the prepared kernel's size and the time
    /// when it was made as the time of change. So a guest that opens it again sees if it is another one.
    fn attributes_of_kernel(&self, kernel: &Kernel) -> Result<stat64, Errno> {
        let node = self.node(kernel.below)?;
        let stat = host::stat(self.held(&node, 0)?.as_fd())?;
        let mut attributes = self.attributes(&node, &stat);
        attributes.st_size = kernel.image.size() as _;
        let time = kernel.time.duration_since(SystemTime::UNIX_EPOCH);
        let time = time.unwrap_or_default();
        attributes.st_ctime = time.as_secs() as _;
        attributes.st_ctime_nsec = time.subsec_nanos().into();
        Ok(attributes)
    }

    /// The prepared kernel with this node ID; `None` if it is another node's.
    fn kernel(&self, inode: u64) -> Result<Option<Kernel>, Errno> {
        match &self.kernels {
            Some(kernels) if Kernels::has(inode) => kernels.get(inode).map(Some),
            _ => Ok(None),
        }
    }

    /// Refuses extended attributes if they are disabled. After ENOSYS Linux sends no more of these
    /// requests.
    fn check_attributes(&self, node: &Node) -> Result<(), Errno> {
        if !self.xattr {
            return Err(Errno::NOSYS);
        }
        if node.hidden {
            return Err(Errno::NOTSUP);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fuse_backend_rs::api::filesystem::{Context, FileSystem, FsOptions, OpenOptions};

    use super::*;

    fn share(dir: &tempfile::TempDir, cache: Cache) -> Share {
        let share = Share::new(&[dir.path().to_owned()], cache, false, None).unwrap();
        share.init(FsOptions::empty()).unwrap();
        share
    }

    #[test]
    fn inode_numbers_of_found_devices_are_distinct_and_do_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let share = share(&dir, Cache::Auto);
        let own = share.roots[0].0.device;
        let devices = [own, own + 1, own + 2];
        let numbers = || devices.map(|device| share.number(device, 5));
        let first = numbers();
        assert_eq!(first[0], 5, "of the layer's own device: the host's number");
        assert!(first[1] != 5 && first[2] != 5 && first[1] != first[2]);
        assert_eq!(numbers(), first);
    }

    #[test]
    fn only_a_merged_directory_has_a_link_count_of_one() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::create_dir(dirs[0].path().join("dir")).unwrap();
        let paths = dirs.each_ref().map(|dir| dir.path().to_owned());
        for (layers, links) in [(1, 3), (2, 1)] {
            let share = Share::new(&paths[..layers], Cache::Auto, false, None).unwrap();
            share.init(FsOptions::empty()).unwrap();
            let (root, _) = share.getattr(&Context::new(), 1, None).unwrap();
            assert_eq!(root.st_nlink, links, "{layers} layers");
        }
    }

    #[test]
    fn a_guest_keeps_lists_and_content_only_of_directories_that_do_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let keep = OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR;
        for (cache, options) in [
            (Cache::None, OpenOptions::empty()),
            (Cache::Auto, OpenOptions::empty()),
            (Cache::Always, keep),
        ] {
            let opened = share(&dir, cache).opendir(&Context::new(), 1, 0).unwrap();
            assert_eq!(opened.1, options, "{cache:?}");
        }
    }
}
