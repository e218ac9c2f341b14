//! The FUSE operations of a share.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fuse_backend_rs::abi::fuse_abi::{stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    ZeroCopyWriter,
};
use rustix::fs::{FileType, SeekFrom, fstatvfs, readlinkat, seek};
use rustix::io::Errno;

use super::host::{self, Descriptors};
use super::layers;
use super::{Cache, Opened, Share};
use crate::lock::lock;
use crate::version::Version;

/// Size of `fuse_direntplus` before the name.
const DIRENTPLUS: usize = 152;

/// The operations that are missing here would modify the share: `opcode::refusal` rejects them before
/// they are decoded, and the default implementation of each returns ENOSYS.
impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // A guest that was reset sends no DESTROY.
        self.forget_all();
        let mut wanted = FsOptions::ASYNC_READ | FsOptions::PARALLEL_DIROPS | FsOptions::MAX_PAGES;
        if self.tells_submounts {
            wanted |= FsOptions::SUBMOUNTS;
        }
        if self.cache != Cache::None {
            // A symbolic link's target never changes: a replaced link is another node.
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
            // A negative entry: the guest caches that the name does not exist.
            Err(Errno::NOENT) if self.cache == Cache::Always => Ok(Entry {
                entry_timeout: self.cache.validity(),
                ..Entry::default()
            }),
            entry => Ok(entry?),
        }
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.last.forget(Some(inode), |id| self.path_in_share(id));
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
        // Always opened for reading. The guest's flags are ignored: their values may be another
        // architecture's.
        let file = self.readable(&node, 0)?;
        let options = match self.cache {
            Cache::None => OpenOptions::DIRECT_IO,
            Cache::Always => OpenOptions::KEEP_CACHE,
            Cache::Auto => {
                let now = SystemTime::now();
                let version = Version::of(&host::stat(file.as_fd())?);
                let mut opened = lock(&node.opened);
                let keep = *opened == Some(version);
                *opened = version.is_settled(now).then_some(version);
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
        // SAFETY: `held` keeps the descriptor open, and `ManuallyDrop` keeps `file` from closing
        // it.
        let file = unsafe { File::from_raw_fd(held.as_fd().as_raw_fd()) };
        // The writer takes a `File`; it reads into the guest's memory by preadv(2).
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
        // SEEK_DATA and SEEK_HOLE (linux/fs.h). The guest handles the others itself.
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
            // Look up only entries whose `fuse_direntplus` fits into the reply.
            let size = (DIRENTPLUS + item.name.count_bytes()).next_multiple_of(8);
            if left < size {
                return Ok(0);
            }
            // An entry without a node (`.`, `..`, or just removed) has node ID 0: the guest looks
            // it up when needed.
            let entry = self.enter(&node, &item.name).unwrap_or_default();
            let added = add_entry(item.entry(), entry);
            match added {
                Ok(1..) => left -= size,
                // It did not fit, so the guest will not forget it: undo the lookup.
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
        // SAFETY: a C structure of integers, for which zeroes are valid.
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
