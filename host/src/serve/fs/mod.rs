//! The file system: one directory, or several laid over each other as overlayfs would.
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
mod host;
mod kernels;
mod layers;
mod listing;
mod nodes;

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fuse_backend_rs::abi::fuse_abi::{ATTR_SUBMOUNT, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    ZeroCopyWriter,
};
use rustix::fs::{
    FileType, Mode, OFlags, SeekFrom, Statx, fstatvfs, makedev, open, openat, readlinkat, seek,
};
use rustix::io::Errno;

use super::lock;
use crate::prepare::{Part, Prepare};
use crate::syscall::OPENAT2;
use caller::Caller;
pub use caller::Owner;
use descriptors::Held;
use host::{Descriptors, Key};
use kernels::{Kernel, Kernels};
use listing::{Item, Listing, Stream};
use nodes::{Node, Nodes, Version};

/// How long a node is taken to be in the share without another look, in milliseconds.
const CHECK_PERIOD: u64 = 1000;

/// Size of `fuse_direntplus` before the name.
const DIRENTPLUS: usize = 152;

/// The deepest that is looked for a directory that is held, or for one that merges.
const MOST_DEEP: usize = 1 << 16;

/// How long the guest may rely on what it was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Cache {
    /// Not at all: each look and each read goes to the host
    #[value(alias = "never")]
    None,
    /// For a second; content until the file changes
    #[default]
    Auto,
    /// For ever: for directories that do not change
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

/// A handle that the guest has.
enum Opened {
    File(Arc<Held>),
    Dir(Mutex<Listing>),
    /// A prepared kernel, which its node tells.
    Kernel,
}

/// A read-only file system of one or more directories.
pub(super) struct Share {
    roots: Vec<(Key, Arc<Held>)>,
    descriptors: Descriptors,
    caller: Caller,
    cache: Cache,
    xattr: bool,
    /// Whether the guest is told what is mounted in the layers.
    tells_submounts: bool,
    /// Whether kernels are prepared.
    kernels: Option<Kernels>,
    nodes: Nodes,
    handles: Mutex<HashMap<u64, Arc<Opened>>>,
    last_handle: AtomicU64,
    /// The layers' file systems, then those that were seen in them, for [`Share::number`].
    devices: Mutex<Vec<u64>>,
    /// Whether the guest has sent INIT; what it agreed to.
    mounted: AtomicBool,
    submounts: AtomicBool,
    without_open: AtomicBool,
    start: Instant,
}

impl Share {
    /// The directories; earlier ones cover later ones. The process's limit of open files is raised to
    /// `open_files`, or as far as it goes.
    pub(super) fn new(
        dirs: &[PathBuf],
        cache: Cache,
        xattr: bool,
        open_files: Option<u64>,
    ) -> Result<Self> {
        OPENAT2.check()?;
        descriptors::raise_limit(open_files)?;
        let mut roots = Vec::new();
        let mut devices = Vec::new();
        for dir in dirs {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = open(dir, flags, Mode::empty())
                .with_context(|| format!("cannot share {}", dir.display()))?;
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
            start: Instant::now(),
        };
        share.forget_all();
        Ok(share)
    }

    /// The same, of which the guest sees one file system.
    pub(super) fn without_submounts(self) -> Self {
        Self {
            tells_submounts: false,
            ..self
        }
    }

    /// The same, whose files are seen to be `owner`'s.
    pub(super) fn of_owner(self, owner: Owner) -> Self {
        Self {
            caller: Caller::new(owner),
            ..self
        }
    }

    /// The same, with prepared kernels.
    pub(super) fn with_kernels(self, how: Prepare) -> Self {
        Self {
            kernels: Some(Kernels::new(how)),
            ..self
        }
    }

    /// Which file the host's permissions have kept from a guest first, and why.
    pub(super) fn denied(&self) -> Option<String> {
        self.caller.denied()
    }

    /// Whether a guest has mounted the share.
    pub(super) fn is_mounted(&self) -> bool {
        self.mounted.load(Ordering::Relaxed)
    }

    /// Closes all that the guest had open, and forgets all that it knew.
    pub(super) fn forget_all(&self) {
        self.mounted.store(false, Ordering::Relaxed);
        let handles = std::mem::take(&mut *lock(&self.handles));
        drop(handles);
        self.nodes.clear(&self.roots);
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A node that is in the share, or was a second ago.
    fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let node = self.nodes.get(id)?;
        let now = self.now();
        if !node.is_due(now, CHECK_PERIOD) {
            return Ok(node);
        }
        let mut line = vec![Arc::clone(&node)];
        // Which directories merge is known from the top.
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

    /// Looks whether a node still is in the share, and still is what its layers make of it.
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

    /// Whether a file is below a layer's root: it may have been moved.
    fn is_below(&self, layer: usize, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        let root = self.descriptors.path(self.roots[layer].1.as_fd())?;
        let mut above;
        let mut path = self.descriptors.path(fd);
        // Of a path of more than 4,095 bytes the kernel tells nothing.
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

    /// The descriptor of a node in one of its layers; one that was closed is opened again, from the
    /// nearest directory above that is held.
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

    /// A descriptor by which a file or directory can be read.
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

    /// Opens what is held for reading.
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

    /// Refuses what is never opened for reading.
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
            // Tells now whether they may be read.
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

    /// A file's number in the guest: the host's own, where one file system is served or the guest
    /// knows what is mounted. Else files of two may have one number on the host, and all are one
    /// device in the guest.
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
        // SAFETY: a C structure of integers, for which zeroes are values.
        let mut out: stat64 = unsafe { std::mem::zeroed() };
        out.st_ino = self.number(host::device(stat), stat.stx_ino);
        out.st_mode = stat.stx_mode.into();
        // As overlayfs: the links of a directory that merges are not counted.
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

    /// Looks a name up, and counts it.
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

    /// The prepared kernel that a name below a file asks for.
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

    /// Those of the file that it is made of, but for the size.
    fn attributes_of_kernel(&self, kernel: &Kernel) -> Result<stat64, Errno> {
        let node = self.node(kernel.below)?;
        let stat = host::stat(self.held(&node, 0)?.as_fd())?;
        let mut attributes = self.attributes(&node, &stat);
        attributes.st_size = kernel.image.size() as _;
        Ok(attributes)
    }

    /// The prepared kernel with this number, if it is one's.
    fn kernel(&self, inode: u64) -> Result<Option<Kernel>, Errno> {
        match &self.kernels {
            Some(kernels) if Kernels::has(inode) => kernels.get(inode).map(Some),
            _ => Ok(None),
        }
    }

    /// Refuses extended attributes unless they were asked for: ENOSYS, and Linux asks no more.
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

/// What is missing here changes something, and is refused before it comes here; if it came, its
/// default answer is an error too.
impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // A guest that was reset says no farewell.
        self.forget_all();
        let mut wanted = FsOptions::ASYNC_READ | FsOptions::PARALLEL_DIROPS | FsOptions::MAX_PAGES;
        if self.tells_submounts {
            wanted |= FsOptions::SUBMOUNTS;
        }
        if self.cache != Cache::None {
            // A link never changes: another one is another node.
            wanted |=
                FsOptions::DO_READDIRPLUS | FsOptions::READDIRPLUS_AUTO | FsOptions::CACHE_SYMLINKS;
        }
        if self.cache == Cache::Always {
            wanted |= FsOptions::ZERO_MESSAGE_OPEN | FsOptions::ZERO_MESSAGE_OPENDIR;
        } else {
            wanted |= FsOptions::AUTO_INVAL_DATA;
        }
        if self.xattr {
            wanted |= FsOptions::POSIX_ACL;
        }
        let without = FsOptions::ZERO_MESSAGE_OPEN | FsOptions::ZERO_MESSAGE_OPENDIR;
        let agreed = capable & wanted;
        let agree = |flag: &AtomicBool, options| {
            flag.store(agreed.contains(options), Ordering::Relaxed);
        };
        agree(&self.without_open, without);
        agree(&self.submounts, FsOptions::SUBMOUNTS);
        self.mounted.store(true, Ordering::Relaxed);
        Ok(wanted)
    }

    fn destroy(&self) {
        self.forget_all();
        if let Some(kernels) = &self.kernels {
            kernels.forget();
        }
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.node(parent)?;
        if let Some(kernel) = self.enter_kernel(&parent, name)? {
            return Ok(kernel);
        }
        match self.enter(&parent, name) {
            // A name that is not there, to be remembered.
            Err(Errno::NOENT) if self.cache == Cache::Always => Ok(Entry {
                entry_timeout: self.cache.validity(),
                ..Entry::default()
            }),
            entry => Ok(entry?),
        }
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.nodes.forget(inode, count);
    }

    fn getattr(
        &self,
        _: &Context,
        inode: u64,
        _handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        if let Some(kernel) = self.kernel(inode)? {
            return Ok((self.attributes_of_kernel(&kernel)?, Duration::ZERO));
        }
        let node = self.node(inode)?;
        let stat = host::stat(self.held(&node, 0)?.as_fd())?;
        Ok((self.attributes(&node, &stat), self.cache.validity()))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let node = self.node(inode)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL.into());
        }
        let held = self.held(&node, 0)?;
        Ok(readlinkat(&held, c"", Vec::new())?.into_bytes())
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        if self.without_open.load(Ordering::Relaxed) {
            return Err(Errno::NOSYS.into());
        }
        if self.kernel(inode)?.is_some() {
            let id = self.insert(Opened::Kernel);
            return Ok((Some(id), OpenOptions::DIRECT_IO, None));
        }
        let node = self.node(inode)?;
        Self::check_file(&node)?;
        // Whatever the guest asked for: its flags may be another architecture's.
        let file = self.readable(&node, 0)?;
        let options = match self.cache {
            Cache::None => OpenOptions::DIRECT_IO,
            Cache::Always => OpenOptions::KEEP_CACHE,
            Cache::Auto => {
                let now = Version::of(&host::stat(file.as_fd())?);
                let mut opened = lock(&node.opened);
                let keep = *opened == Some(now);
                *opened = now.is_settled().then_some(now);
                if keep {
                    OpenOptions::KEEP_CACHE
                } else {
                    OpenOptions::empty()
                }
            }
        };
        let id = self.insert(Opened::File(file));
        Ok((Some(id), options, None))
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        if let Some(kernel) = self.kernel(inode)? {
            return kernel.read(writer, size, offset);
        }
        let held = self.opened(inode, handle)?;
        // SAFETY: the descriptor is open as long as `held`, and is not closed by this.
        let file = unsafe { File::from_raw_fd(held.as_fd().as_raw_fd()) };
        // The writer asks for a file of its own; the guest's memory is filled by preadv(2).
        let mut file = ManuallyDrop::new(file);
        let size = writer.available_bytes().min(size as usize);
        let mut done = 0;
        while done < size {
            let Some(at) = offset.checked_add(done as u64) else {
                return Err(Errno::INVAL.into());
            };
            match writer.write_from(&mut *file, size - done, at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn lseek(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        // linux/fs.h; the others are the guest's own business.
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(seek(&*self.opened(inode, handle)?, to)?)
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
        self.remove(handle)
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
        if self.without_open.load(Ordering::Relaxed) {
            return Err(Errno::NOSYS.into());
        }
        let listing = self.open_dir(inode)?;
        let options = if self.cache == Cache::Always {
            OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR
        } else {
            OpenOptions::empty()
        };
        let id = self.insert(Opened::Dir(Mutex::new(listing)));
        Ok((Some(id), options))
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
        self.read_items(inode, handle, offset, &mut |item| add_entry(item.entry()))
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let node = self.node(inode)?;
        let mut left = size as usize;
        self.read_items(inode, handle, offset, &mut |item| {
            // `fuse_direntplus`: nothing is looked up that does not fit.
            let size = (DIRENTPLUS + item.name.count_bytes()).next_multiple_of(8);
            if left < size {
                return Ok(0);
            }
            // Without a node (`.`, `..`, what has just gone) the guest looks it up when it wants to.
            let entry = self.enter(&node, &item.name).unwrap_or_default();
            let added = add_entry(item.entry(), entry);
            match added {
                Ok(1..) => left -= size,
                // There is no place after all.
                _ if entry.inode != 0 => self.forget(context, entry.inode, 1),
                _ => {}
            }
            added
        })
    }

    fn fsyncdir(&self, _: &Context, _: u64, _datasync: bool, _handle: u64) -> io::Result<()> {
        Ok(())
    }

    fn releasedir(&self, _: &Context, _inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        self.remove(handle)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        let node = self.node(inode)?;
        let stat = fstatvfs(&*self.held(&node, 0)?)?;
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

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let node = self.node(inode)?;
        self.check_attributes(&node)?;
        if self.has_several() && layers::is_mark(name.to_bytes()) {
            return Err(Errno::NODATA.into());
        }
        let value = Descriptors::attribute(self.held(&node, 0)?.as_fd(), name)?;
        match size {
            0 => Ok(GetxattrReply::Count(value.len() as u32)),
            size if (size as usize) < value.len() => Err(Errno::RANGE.into()),
            _ => Ok(GetxattrReply::Value(value)),
        }
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let node = self.node(inode)?;
        self.check_attributes(&node)?;
        let mut names = Descriptors::attributes(self.held(&node, 0)?.as_fd())?;
        if self.has_several() {
            let seen = names.split_inclusive(|&byte| byte == 0);
            names = seen
                .filter(|name| !layers::is_mark(name))
                .flatten()
                .copied()
                .collect();
        }
        match size {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            size if (size as usize) < names.len() => Err(Errno::RANGE.into()),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }
}
