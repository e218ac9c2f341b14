//! Directories.

use super::{File, Metadata, Node, RawNode, Share};
use crate::{
    error::Error,
    fuse::{Dirents, FileType, Handle, NAME_MAX, NodeId, Open, Read, Release, Violation},
    hal::{Clock, Hal, PAGE_SIZE},
    session::{Epoch, Priority},
};
use core::{fmt, mem::ManuallyDrop};
use heapless::Vec;
use virtio_drivers::transport::Transport;

/// Bytes of one READDIR reply: room for 14 entries with the longest names, or about 100 usual ones.
const BUFFER: usize = PAGE_SIZE;

/// A directory in which files are found by a single name instead of a path. Symbolic links are not
/// followed.
pub struct Dir<'s, T: Transport, C: Clock, H: Hal> {
    node: Node<'s, T, C, H>,
}

impl<'s, T: Transport, C: Clock, H: Hal> Dir<'s, T, C, H> {
    pub(super) fn open(node: Node<'s, T, C, H>) -> Result<Self, Error> {
        match node.file_type() {
            FileType::Directory => Ok(Self { node }),
            _ => Err(Error::NotADirectory),
        }
    }

    /// Converts it into a handle that does not borrow the share.
    #[must_use = "the host keeps the directory for us"]
    pub fn into_raw(self) -> RawDir {
        RawDir(ManuallyDrop::new(self).node.raw())
    }

    /// Metadata of the directory itself. The host is asked only if the path resolution did not look
    /// the directory up.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn metadata(&self) -> Result<Metadata, Error> {
        Ok(Metadata(self.node.attr()?))
    }

    /// Metadata of `name` in this directory.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidName`] if it is not one name.
    pub fn symlink_metadata(&self, name: impl AsRef<[u8]>) -> Result<Metadata, Error> {
        Ok(Metadata(self.node(name.as_ref())?.attr()?))
    }

    /// Opens the regular file `name`.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyLinks`] for a symbolic link, like ELOOP with `O_NOFOLLOW`; otherwise as
    /// [`Share::open`](super::Share::open).
    pub fn open_file(&self, name: impl AsRef<[u8]>) -> Result<File<'s, T, C, H>, Error> {
        File::open(self.node(name.as_ref())?)
    }

    /// Opens the subdirectory `name`.
    ///
    /// # Errors
    ///
    /// [`Error::NotADirectory`] for anything else, including a symbolic link to a directory.
    pub fn open_dir(&self, name: impl AsRef<[u8]>) -> Result<Self, Error> {
        Self::open(self.node(name.as_ref())?)
    }

    /// The target of the symbolic link `name`.
    ///
    /// # Errors
    ///
    /// As [`Share::read_link`](super::Share::read_link).
    pub fn read_link<'b>(
        &self,
        name: impl AsRef<[u8]>,
        buf: &'b mut [u8],
    ) -> Result<&'b [u8], Error> {
        self.node(name.as_ref())?.read_link(buf)
    }

    /// The entries, without `.` and `..`, in the host's order.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn read_dir(&self) -> Result<ReadDir<'_, T, C, H>, Error> {
        ReadDir::open(&self.node)
    }

    fn node(&self, name: &[u8]) -> Result<Node<'s, T, C, H>, Error> {
        if matches!(name, b"." | b"..") {
            return Err(Error::InvalidName);
        }
        let share = self.node.share;
        let (id, attr) = share.lookup(self.node.epoch, self.node.id, name)?;
        Ok(Node {
            share,
            epoch: self.node.epoch,
            id,
            attr: Some(attr),
        })
    }
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for Dir<'_, T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dir").field(&self.node).finish()
    }
}

/// A directory without a borrow of its share: from [`Dir::into_raw`], as
/// [`RawFile`](super::RawFile) from a file. [`Share::dir_of`] borrows it as a [`Dir`], and
/// [`Share::dir`] turns it into a [`Dir`] again, which sends FORGET when it is dropped.
#[derive(Debug)]
pub struct RawDir(RawNode);

impl RawDir {
    pub(super) fn of<'s, T: Transport, C: Clock, H: Hal>(
        &self,
        share: &'s Share<T, C, H>,
    ) -> Dir<'s, T, C, H> {
        let node = self.0.of(share);
        Dir { node }
    }
}

/// Iterates over the entries of a directory of any size in constant memory.
///
/// The iterator ends after an error.
pub struct ReadDir<'s, T: Transport, C: Clock, H: Hal> {
    share: &'s Share<T, C, H>,
    epoch: Epoch,
    node: NodeId,
    handle: Handle,
    /// The directory's node, if no [`Dir`] owns it.
    keep: Option<Node<'s, T, C, H>>,
    buffer: [u8; BUFFER],
    /// Start and end of the unread part of the buffer.
    start: usize,
    end: usize,
    /// The offset for the next READDIR.
    offset: u64,
    entries: u32,
    max_entries: u32,
    /// The last entry or an error was returned.
    is_over: bool,
}

impl<'s, T: Transport, C: Clock, H: Hal> ReadDir<'s, T, C, H> {
    /// Iterates over `dir` and keeps it until the iterator is dropped.
    pub(super) fn of(dir: Dir<'s, T, C, H>) -> Result<Self, Error> {
        let mut entries = Self::open(&dir.node)?;
        entries.keep = Some(dir.node);
        Ok(entries)
    }

    fn open(node: &Node<'s, T, C, H>) -> Result<Self, Error> {
        let (id, is_dir) = (node.id, true);
        let handle = node.call(&Open { node: id, is_dir })?;
        Ok(Self {
            share: node.share,
            epoch: node.epoch,
            node: node.id,
            handle,
            keep: None,
            buffer: [0; BUFFER],
            start: 0,
            end: 0,
            offset: 0,
            entries: 0,
            max_entries: node.share.client.options().max_entries,
            is_over: false,
        })
    }

    fn next_entry(&mut self) -> Result<Option<DirEntry>, Error> {
        loop {
            if self.start >= self.end && !self.fill()? {
                return Ok(None);
            }
            let unread = self.buffer.get(self.start..self.end).unwrap_or_default();
            let mut entries = Dirents::new(unread);
            let Some(entry) = entries.next().transpose()? else {
                continue;
            };
            self.start = self.end.saturating_sub(entries.rest().len());
            self.offset = entry.offset;
            self.entries = self.entries.saturating_add(1);
            if self.entries > self.max_entries {
                return Err(Violation::EndlessDirectory.into());
            }
            let Ok(name) = Vec::from_slice(entry.name) else {
                log::warn!(
                    "a name of {} bytes is left out, {NAME_MAX} are the most: {}",
                    entry.name.len(),
                    entry.name.escape_ascii()
                );
                continue;
            };
            if !matches!(entry.name, b"." | b"..") {
                let file_type = entry.file_type;
                return Ok(Some(DirEntry { name, file_type }));
            }
        }
    }

    /// Sends the next READDIR; `false` at the end of the directory.
    fn fill(&mut self) -> Result<bool, Error> {
        let request = Read {
            node: self.node,
            handle: self.handle,
            offset: self.offset,
            size: BUFFER as u32,
            is_dir: true,
        };
        let client = &self.share.client;
        let size = client.call_into(self.epoch, &request, &mut self.buffer)?;
        self.start = 0;
        self.end = size;
        // If the last entry's offset is the one just used, the same entries would be returned again.
        let unread = self.buffer.get(..size).unwrap_or_default();
        if let Some(Ok(last)) = Dirents::new(unread).last()
            && last.offset == self.offset
        {
            return Err(Violation::EndlessDirectory.into());
        }
        Ok(size > 0)
    }
}

impl<T: Transport, C: Clock, H: Hal> Iterator for ReadDir<'_, T, C, H> {
    type Item = Result<DirEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entry = self.next_entry().transpose();
        self.is_over = !matches!(entry, Some(Ok(_)));
        entry
    }
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for ReadDir<'_, T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadDir")
            .field("node", &self.node)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl<T: Transport, C: Clock, H: Hal> Drop for ReadDir<'_, T, C, H> {
    fn drop(&mut self) {
        let release = Release {
            node: self.node,
            handle: self.handle,
            is_dir: true,
        };
        let client = &self.share.client;
        client.post(self.epoch, &release, Priority::Normal);
        // RELEASE is sent before the node's FORGET.
        self.keep = None;
    }
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq)]
pub struct DirEntry {
    name: Vec<u8, NAME_MAX>,
    file_type: Option<FileType>,
}

impl DirEntry {
    /// Its name: 1 to 255 bytes, any except `/` and NUL.
    #[must_use]
    pub fn file_name(&self) -> &[u8] {
        &self.name
    }

    /// Its type, if the host's directory entry has it.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        self.file_type
    }
}

impl fmt::Debug for DirEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({:?})", self.name.escape_ascii(), self.file_type)
    }
}
