//! Listing of directories.
//!
//! A directory of one layer is streamed from the host with the host's own cookies (telldir(3)),
//! which are valid for any handle; only a few entries are kept in memory. A merged directory is
//! read as a whole, because a name must not appear twice; all handles share the list until a layer
//! changes.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::Share;
use super::descriptors::Held;
use super::entries::{Item, LISTED, Listing, Names, Stream};
use super::host;
use super::nodes::Node;
use crate::lock::lock;
use crate::version::Version;

/// The most names in all lists of merged directories, which bounds the server's memory.
const MOST_LISTED: usize = 2 << 20;

/// How much of a directory is read at a time (getdents64(2)).
const READ_AHEAD: usize = 4096;

/// Adds an entry to the reply; returns its size in bytes, 0 if it does not fit.
type Add<'a> = &'a mut dyn FnMut(&Item) -> io::Result<usize>;

impl Share {
    /// Adds a directory's entries from the cookie `offset` on, until one does not fit.
    pub(super) fn list(
        &self,
        node: &Arc<Node>,
        listing: &mut Listing,
        offset: u64,
        add: Add<'_>,
    ) -> io::Result<()> {
        match listing {
            Listing::Stream(stream) => self.stream(node, stream, offset, add),
            Listing::Merged(names) => {
                if offset == 0 || names.is_none() {
                    *names = Some(self.names(node)?);
                }
                let items = names.as_ref().map_or(&[][..], |names| &names.items);
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                pass(items.get(start..).unwrap_or_default().iter(), add).map(drop)
            }
            Listing::Hidden => {
                let items = self.dots(node);
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                pass(items.get(start..).unwrap_or_default().iter(), add).map(drop)
            }
        }
    }

    fn stream(
        &self,
        node: &Arc<Node>,
        stream: &mut Stream,
        offset: u64,
        add: Add<'_>,
    ) -> io::Result<()> {
        if offset == 0 && !stream.is_new {
            // Reopened rather than rewound: ext4 lists nothing after a seek to the end and one
            // back.
            let dir = self.descriptors.open(stream.dir.as_fd(), true)?;
            *stream = Stream::new(Held::new(dir, true));
        } else if i64::try_from(offset).is_err() {
            // No directory has such a cookie.
            return Ok(());
        } else if offset != stream.position {
            stream.ahead.clear();
            seek(&stream.dir, SeekFrom::Start(offset))?;
            stream.position = offset;
        }
        stream.is_new = false;
        let mut any = false;
        loop {
            let passed = match pass(stream.ahead.iter(), &mut *add) {
                // Some entries were added: the next request reports the error.
                Err(_) if any => return Ok(()),
                passed => passed?,
            };
            any |= passed > 0;
            if let Some(last) = stream.ahead.drain(..passed).next_back() {
                stream.position = last.next;
            }
            if !stream.ahead.is_empty() {
                return Ok(());
            }
            match self.read_ahead(node, stream) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(_) if any => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads some entries ahead; returns how many the host listed, 0 at the end.
    fn read_ahead(&self, node: &Arc<Node>, stream: &mut Stream) -> Result<usize, Errno> {
        let mut place = [MaybeUninit::uninit(); READ_AHEAD];
        let mut dir = RawDir::new(stream.dir.as_fd(), &mut place);
        let mut count = 0;
        loop {
            let Some(entry) = dir.next() else {
                return Ok(count);
            };
            let entry = entry?;
            count += 1;
            let device = node.parts[0].key.device;
            let ino = match entry.file_name().to_bytes() {
                b".." => self.number_above(node, entry.ino()),
                _ => self.number(device, entry.ino()),
            };
            let item = Item {
                name: entry.file_name().to_owned(),
                ino,
                kind: dirent_type(entry.file_type()),
                next: entry.next_entry_cookie(),
            };
            if !self.hides(&stream.dir, &item.name, entry.file_type()) {
                stream.ahead.push_back(item);
            }
            if dir.is_buffer_empty() {
                return Ok(count);
            }
        }
    }

    /// The entries of a merged directory: for each name that of the first layer that has it.
    fn names(&self, node: &Arc<Node>) -> Result<Arc<Names>, Errno> {
        let mut dirs = Vec::new();
        let mut versions = Vec::new();
        for index in 0..node.parts.len() {
            let dir = self.readable(node, index)?;
            versions.push(Version::of(&host::stat(dir.as_fd())?));
            dirs.push(dir);
        }
        let now = SystemTime::now();
        let mut shared = lock(&node.names);
        if let Some(names) = shared.upgrade()
            && names.versions == versions
            && versions.iter().all(|version| version.is_settled(now))
        {
            return Ok(names);
        }
        let mut items = self.dots(node);
        let mut seen = HashSet::new();
        for (dir, part) in dirs.iter().zip(&node.parts) {
            seek(dir, SeekFrom::Start(0))?;
            let mut place = [MaybeUninit::uninit(); READ_AHEAD];
            let mut entries = RawDir::new(dir.as_fd(), &mut place);
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..")
                    || !seen.insert(name.to_owned())
                    || self.hides(dir, name, entry.file_type())
                {
                    continue;
                }
                items.push(Item {
                    name: name.to_owned(),
                    ino: self.number(part.key.device, entry.ino()),
                    kind: dirent_type(entry.file_type()),
                    next: items.len() as u64 + 1,
                });
                if LISTED.load(Ordering::Relaxed) + items.len() > MOST_LISTED {
                    return Err(Errno::NOMEM);
                }
            }
        }
        LISTED.fetch_add(items.len(), Ordering::Relaxed);
        let names = Arc::new(Names { versions, items });
        *shared = Arc::downgrade(&names);
        Ok(names)
    }

    /// The entries `.` and `..`.
    fn dots(&self, node: &Arc<Node>) -> Vec<Item> {
        let key = node.parts[0].key;
        let ino = self.number(key.device, key.ino);
        [(c".", ino), (c"..", self.number_above(node, ino))]
            .into_iter()
            .zip(1..)
            .map(|((name, ino), next)| Item {
                name: name.into(),
                ino,
                kind: libc::DT_DIR.into(),
                next,
            })
            .collect()
    }

    /// The inode number to show for `..`; `otherwise` if the guest has no node of the parent.
    fn number_above(&self, node: &Arc<Node>, otherwise: u64) -> u64 {
        let above = self.nodes.get(node.parent());
        let key = above.map(|above| above.parts[0].key);
        key.map_or(otherwise, |key| self.number(key.device, key.ino))
    }
}

/// Adds entries until one does not fit; returns how many were added.
fn pass<'a>(items: impl Iterator<Item = &'a Item>, add: Add<'_>) -> io::Result<usize> {
    let mut passed = 0;
    let mut refused = false;
    for item in items {
        match add(item) {
            Ok(0) => {
                refused = true;
                break;
            }
            Ok(_) => passed += 1,
            Err(error) if passed == 0 => return Err(error),
            Err(_) => break,
        }
    }
    // An empty reply would mean the end of the directory.
    if refused && passed == 0 {
        return Err(Errno::INVAL.into());
    }
    Ok(passed)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use fuse_backend_rs::api::filesystem::{Context, DirEntry, FileSystem, FsOptions};

    use super::*;
    use crate::serve::Cache;

    #[test]
    fn lists_of_merged_directories_are_counted_and_limited() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for name in 0..100 {
            fs::write(dirs[name % 2].path().join(name.to_string()), "").unwrap();
        }
        let paths = dirs.each_ref().map(|dir| dir.path().to_owned());
        let share = Share::new(&paths, Cache::Auto, false, None).unwrap();
        share.init(FsOptions::empty()).unwrap();
        let context = Context::new();
        let list = |handle: u64| {
            let mut seen = 0;
            let mut add = |_: DirEntry<'_>| {
                seen += 1;
                Ok(1)
            };
            share
                .readdir(&context, 1, handle, 0, 0, &mut add)
                .map(|()| seen)
        };
        let open = || share.opendir(&context, 1, 0).unwrap().0.unwrap();
        let handle = open();
        assert_eq!(list(handle).unwrap(), 102);
        assert_eq!(LISTED.load(Ordering::Relaxed), 102);
        share.releasedir(&context, 1, 0, handle).unwrap();
        assert_eq!(LISTED.load(Ordering::Relaxed), 0);
        // As if all others had left place for half of it.
        LISTED.store(MOST_LISTED - 50, Ordering::Relaxed);
        assert_eq!(list(open()).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(LISTED.load(Ordering::Relaxed), MOST_LISTED - 50);
    }
}
