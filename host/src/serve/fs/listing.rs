//! What a directory has in it.
//!
//! A directory of one layer is passed on as the host lists it, with the host's own cookies (telldir(3)):
//! they are good on any handle, and memory is that of a few entries. Directories that merge are
//! listed as a whole, because a name must not come twice, and all handles share the list as long as
//! nothing changes.

use std::collections::{HashSet, VecDeque};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use fuse_backend_rs::api::filesystem::DirEntry;
use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::Share;
use super::descriptors::Held;
use super::host;
use super::nodes::{Node, Version};
use crate::serve::lock;

/// Names in all lists of merged directories, as a limit to our memory.
const MOST_LISTED: usize = 2 << 20;

/// How much of a directory is read at a time (getdents64(2)).
const READ_AHEAD: usize = 4096;

/// Names in all lists that exist.
static LISTED: AtomicUsize = AtomicUsize::new(0);

/// An entry of a directory.
#[derive(Clone)]
pub(super) struct Item {
    pub(super) name: CString,
    ino: u64,
    kind: u32,
    /// The cookie of the entry behind it.
    next: u64,
}

impl Item {
    pub(super) fn entry(&self) -> DirEntry<'_> {
        DirEntry {
            ino: self.ino,
            offset: self.next,
            type_: self.kind,
            name: self.name.to_bytes(),
        }
    }
}

/// A directory that is being read.
pub(super) enum Listing {
    Stream(Stream),
    Merged(Option<Arc<Names>>),
    /// Of a directory that shows nothing.
    Hidden,
}

/// One directory of the host.
pub(super) struct Stream {
    pub(super) dir: Held,
    /// The cookie of the first entry of `ahead`, or behind it.
    position: u64,
    /// Entries that were read and not yet passed on.
    ahead: VecDeque<Item>,
    is_new: bool,
}

impl Stream {
    pub(super) fn new(dir: Held) -> Self {
        Self {
            dir,
            position: 0,
            ahead: VecDeque::new(),
            is_new: true,
        }
    }
}

/// All names of directories that merge.
pub(super) struct Names {
    /// Of each directory, when its names were read.
    versions: Vec<Version>,
    items: Vec<Item>,
}

impl Drop for Names {
    fn drop(&mut self) {
        LISTED.fetch_sub(self.items.len(), Ordering::Relaxed);
    }
}

/// What passes an entry on: how many bytes it took, 0 when there is no place for it.
type Add<'a> = &'a mut dyn FnMut(&Item) -> io::Result<usize>;

impl Share {
    /// Passes a directory's entries on, from the cookie `offset`, until one does not fit.
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
            // Not by lseek(2): ext4 lists nothing after a look at the end and one back.
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
                // The guest has some already: it hears of the error when it asks for more.
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

    /// Reads some entries; how many the host has told of, 0 at the end.
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

    /// The names of directories that merge: the first layer that has one decides.
    fn names(&self, node: &Arc<Node>) -> Result<Arc<Names>, Errno> {
        let mut dirs = Vec::new();
        let mut versions = Vec::new();
        for index in 0..node.parts.len() {
            let dir = self.readable(node, index)?;
            versions.push(Version::of(&host::stat(dir.as_fd())?));
            dirs.push(dir);
        }
        let mut shared = lock(&node.names);
        if let Some(names) = shared.upgrade()
            && names.versions == versions
            && versions.iter().all(Version::is_settled)
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

    /// The entries of the directory itself and of the one above.
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

    /// The number of the directory above, as far as the guest may know it.
    fn number_above(&self, node: &Arc<Node>, otherwise: u64) -> u64 {
        let above = self.nodes.get(node.parent());
        let key = above.map(|above| above.parts[0].key);
        key.map_or(otherwise, |key| self.number(key.device, key.ino))
    }
}

/// Passes entries on until one does not fit; how many did.
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
    // Nothing at all would mean the directory's end.
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

/// The list that all handles of a directory share.
pub(super) type SharedNames = Weak<Names>;

#[cfg(test)]
mod tests {
    use std::fs;

    use fuse_backend_rs::api::filesystem::{Context, FileSystem, FsOptions};

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
