//! An open file.

use super::{Metadata, Node, Part, RawNode, Share};
use crate::{
    error::Error,
    fuse::{Attr, FileType, Handle, OFFSET_MAX, Open, Release},
    hal::{Clock, Hal},
    session::Priority,
};
use core::{fmt, mem::ManuallyDrop, ops::ControlFlow};
#[cfg(feature = "embedded-io")]
use embedded_io::{ErrorType, SeekFrom};
use virtio_drivers::transport::Transport;

/// A regular file, open for reading.
///
/// Dropping it closes it on the host.
pub struct File<'s, T: Transport, C: Clock, H: Hal> {
    node: Node<'s, T, C, H>,
    attr: Attr,
    handle: Handle,
    /// The position of the next [`File::read`], in bytes.
    position: u64,
}

impl<'s, T: Transport, C: Clock, H: Hal> File<'s, T, C, H> {
    pub(super) fn open(node: Node<'s, T, C, H>) -> Result<Self, Error> {
        let attr = match (node.file_type(), node.attr) {
            (FileType::File, Some(attr)) => attr,
            (FileType::Directory, _) => return Err(Error::IsADirectory),
            // Found by a single name: unlike a path, this does not follow symbolic links.
            (FileType::Symlink, _) => return Err(Error::TooManyLinks),
            // Opening a FIFO could block the server for ever.
            _ => return Err(Error::NotAFile),
        };
        let (id, is_dir) = (node.id, false);
        let handle = node.call(&Open { node: id, is_dir })?;
        Ok(Self {
            node,
            attr,
            handle,
            position: 0,
        })
    }

    /// Converts it into a handle that does not borrow the share.
    #[must_use = "the file stays open on the host"]
    pub fn into_raw(self) -> RawFile {
        let file = ManuallyDrop::new(self);
        RawFile {
            node: file.node.raw(),
            attr: file.attr,
            handle: file.handle,
            position: file.position,
        }
    }

    /// The metadata that the host reported when the file was opened or last refreshed.
    pub fn metadata(&self) -> Metadata {
        Metadata(self.attr)
    }

    /// Asks the host for the file's current metadata.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn refresh(&mut self) -> Result<Metadata, Error> {
        self.attr = self.node.share.attr(self.node.epoch, self.node.id)?;
        Ok(self.metadata())
    }

    /// Asks the host whether the file has changed since it was opened or last refreshed: whether its
    /// type, size or modification time differs.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn has_changed(&self) -> Result<bool, Error> {
        let attr = self.node.share.attr(self.node.epoch, self.node.id)?;
        Ok(state(&attr) != state(&self.attr))
    }

    /// Opens the file again by its `path`, after [`Share::resume`](super::Share::resume), if it is
    /// still the same file: inode number, type, size, modification time and change time are equal.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] if it is another file; otherwise as [`Share::open`](super::Share::open).
    /// After an error the file stays disconnected.
    pub fn resume(&mut self, path: impl AsRef<[u8]>) -> Result<(), Error> {
        let old = self.attr;
        let is_same =
            |new: &Attr| (new.ino, new.ctime) == (old.ino, old.ctime) && state(new) == state(&old);
        let (share, position) = (self.node.share, self.position);
        *self = share.at(path, true, |node| {
            let is_same = node.attr.as_ref().is_some_and(is_same);
            is_same.then_some(()).ok_or(Error::Changed)?;
            Self::open(node)
        })?;
        self.position = position;
        Ok(())
    }

    /// The file `name` below this regular file. The host tool's server offers prepared kernels in
    /// this way.
    #[cfg(feature = "minimal")]
    pub(crate) fn below(&self, name: &[u8]) -> Result<Self, Error> {
        let Node {
            share, epoch, id, ..
        } = self.node;
        let (id, attr) = share.lookup(epoch, id, name)?;
        let attr = Some(attr);
        Self::open(Node {
            share,
            epoch,
            id,
            attr,
        })
    }

    /// Reads at `offset`, in bytes, straight into `buf`: the host writes there, and the guest copies
    /// nothing. Returns the number of bytes read, which is less than the buffer's size only at the
    /// end of the file. If the file grows while it is read, its end may be the old one.
    ///
    /// # Errors
    ///
    /// The host's, or [`Error::InvalidOffset`] beyond 2^63 - 1. The content of `buf` is undefined
    /// then.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        self.read_at_with(offset, buf, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`File::read_at`], but calls `progress` from time to time, and before it returns, with the
    /// number of bytes at the start of `buf` that are filled. If `progress` returns `Break`, no more
    /// requests are sent, and the read ends when those in flight have completed.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] if `progress` returned `Break`; otherwise as [`File::read_at`]. The bytes
    /// last reported to `progress` stay valid: after [`File::resume`] the read can continue there.
    pub fn read_at_with(
        &self,
        offset: u64,
        buf: &mut [u8],
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<usize, Error> {
        let mut part = [self.part(offset, buf)];
        self.node.share.read_parts(&mut part, &mut |part| {
            progress(part.first().map_or(0, Part::filled) as u64)
        })?;
        Ok(part.first().map_or(0, Part::filled))
    }

    /// Describes a read at `offset`, in bytes, into `buf`, to be done together with others by
    /// [`Share::read_parts`](super::Share::read_parts).
    #[must_use]
    pub fn part<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Part<'a> {
        let (epoch, node) = (self.node.epoch, self.node.id);
        Part::new(epoch, node, self.handle, offset, self.attr.size, buf)
    }

    /// Reads at the current position, as [`File::read_at`] does, and advances the position.
    ///
    /// # Errors
    ///
    /// As [`File::read_at`]; the position does not change then.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let size = self.read_at(self.position, buf)?;
        self.position = self.position.saturating_add(size as u64);
        Ok(size)
    }

    /// The position of the next [`File::read`], in bytes from the start.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Sets the position of the next [`File::read`], in bytes. After the end of the file it reads
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOffset`] beyond 2^63 - 1; the position does not change then.
    pub fn set_position(&mut self, position: u64) -> Result<(), Error> {
        if position > OFFSET_MAX {
            return Err(Error::InvalidOffset);
        }
        self.position = position;
        Ok(())
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedEof`] if the file ends before `buf` is full; otherwise as
    /// [`File::read_at`].
    pub fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        if self.read_at(offset, buf)? == buf.len() {
            Ok(())
        } else {
            Err(Error::UnexpectedEof)
        }
    }
}

/// A handle of an open file that does not borrow its share, for the tables of a VFS: from
/// [`File::into_raw`].
///
/// [`Share::file_of`] borrows it as a [`File`], and [`Share::file`] turns it into a [`File`] again,
/// which is closed when it is dropped. If a `RawFile` is dropped, the file stays open on the host
/// until the session ends. Used with another share than its own, it gives [`Error::Disconnected`].
///
/// ```no_run
/// # use bootshare::{Share, Error, fs::RawFile, hal::Clock, transport::Transport};
/// /// A kernel's table of open files, by number.
/// struct Table<T: Transport, C: Clock> {
///     share: Share<T, C>,
///     open: Vec<Option<RawFile>>,
/// }
///
/// impl<T: Transport, C: Clock> Table<T, C> {
///     fn open(&mut self, path: &[u8]) -> Result<usize, Error> {
///         self.open.push(Some(self.share.open(path)?.into_raw()));
///         Ok(self.open.len() - 1)
///     }
///
///     fn read(&self, number: usize, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
///         let raw = self.open[number].as_ref().ok_or(Error::NotFound)?;
///         self.share.file_of(raw).read_at(offset, buf)
///     }
///
///     fn close(&mut self, number: usize) {
///         if let Some(raw) = self.open[number].take() {
///             drop(self.share.file(raw));
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct RawFile {
    node: RawNode,
    attr: Attr,
    handle: Handle,
    position: u64,
}

impl RawFile {
    pub(super) fn of<'s, T: Transport, C: Clock, H: Hal>(
        &self,
        share: &'s Share<T, C, H>,
    ) -> File<'s, T, C, H> {
        File {
            node: self.node.of(share),
            attr: self.attr,
            handle: self.handle,
            position: self.position,
        }
    }
}

/// The attributes by which a change of the file's content is noticed.
fn state(attr: &Attr) -> impl PartialEq + use<> {
    (attr.file_type, attr.size, attr.mtime, attr.mtime_nsec)
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for File<'_, T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("node", &self.node)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl<T: Transport, C: Clock, H: Hal> Drop for File<'_, T, C, H> {
    fn drop(&mut self) {
        let release = Release {
            node: self.node.id,
            handle: self.handle,
            is_dir: false,
        };
        let client = &self.node.share.client;
        client.post(self.node.epoch, &release, Priority::Normal);
    }
}

#[cfg(feature = "embedded-io")]
impl<T: Transport, C: Clock, H: Hal> ErrorType for File<'_, T, C, H> {
    type Error = Error;
}

#[cfg(feature = "embedded-io")]
impl<T: Transport, C: Clock, H: Hal> embedded_io::Read for File<'_, T, C, H> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        File::read(self, buf)
    }
}

#[cfg(feature = "embedded-io")]
impl<T: Transport, C: Clock, H: Hal> embedded_io::Seek for File<'_, T, C, H> {
    /// Sets the position. The end of the file is taken from [`File::metadata`].
    fn seek(&mut self, to: SeekFrom) -> Result<u64, Error> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.attr.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.set_position(position.ok_or(Error::InvalidOffset)?)?;
        Ok(self.position)
    }
}
