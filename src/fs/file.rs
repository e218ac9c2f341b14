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
    /// Where [`File::read`] goes on, in bytes.
    position: u64,
}

impl<'s, T: Transport, C: Clock, H: Hal> File<'s, T, C, H> {
    pub(super) fn open(node: Node<'s, T, C, H>) -> Result<Self, Error> {
        let attr = match (node.file_type(), node.attr) {
            (FileType::File, Some(attr)) => attr,
            (FileType::Directory, _) => return Err(Error::IsADirectory),
            // A symbolic link comes here from a `Dir` only, which follows none.
            (FileType::Symlink, _) => return Err(Error::TooManyLinks),
            // To open a FIFO could block the server for ever.
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

    /// The open file without a borrow of its share.
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

    /// What the host said about the file when it was opened.
    pub fn metadata(&self) -> Metadata {
        Metadata(self.attr)
    }

    /// Asks the host again what the file is.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn refresh(&mut self) -> Result<Metadata, Error> {
        self.attr = self.node.share.attr(self.node.epoch, self.node.id)?;
        Ok(self.metadata())
    }

    /// Asks the host whether the file was written to, cut or extended since it was opened: whether
    /// its size or time of modification is another one.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn has_changed(&self) -> Result<bool, Error> {
        let attr = self.node.share.attr(self.node.epoch, self.node.id)?;
        Ok(state(&attr) != state(&self.attr))
    }

    /// Opens the file again after [`Share::resume`](super::Share::resume), by its `path`, if it is
    /// still the same one: of the same inode number, type, size, and times of modification and
    /// change.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] if it is not; else as [`Share::open`](super::Share::open). The file stays
    /// disconnected then.
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

    /// The file that the host has below this one, which is no directory: servers of this project's
    /// host tool have prepared kernels there.
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

    /// Reads at `offset`, in bytes, straight into `buf`: the host writes there, the guest copies
    /// nothing. Returns the bytes read, fewer than the buffer's only at the end of the file: a file
    /// that grows while it is read may end where it did when it was opened.
    ///
    /// # Errors
    ///
    /// The host's, [`Error::InvalidOffset`] beyond 2^63 - 1. What `buf` holds is undefined then.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        self.read_at_with(offset, buf, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`File::read_at`], and tells `progress` from time to time, and before it returns, how
    /// many bytes at the start of `buf` have come. If it breaks, nothing more is asked for, and the
    /// read ends when what is in flight has come back.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] if `progress` has broken; else as [`File::read_at`], but the bytes that have come stay: after [`File::resume`], the read
    /// can go on behind them.
    pub fn read_at_with(
        &self,
        offset: u64,
        buf: &mut [u8],
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<usize, Error> {
        let mut part = [self.part(offset, buf)];
        self.node.share.read_parts(&mut part, &mut |part| {
            progress(part.first().map_or(0, Part::come) as u64)
        })?;
        Ok(part.first().map_or(0, Part::come))
    }

    /// A read at `offset`, in bytes, into `buf`, for
    /// [`Share::read_parts`](super::Share::read_parts), which does it together with others.
    #[must_use]
    pub fn part<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Part<'a> {
        let (epoch, node) = (self.node.epoch, self.node.id);
        Part::new(epoch, node, self.handle, offset, self.attr.size, buf)
    }

    /// Reads on from where the last one stopped, as [`File::read_at`] does.
    ///
    /// # Errors
    ///
    /// As [`File::read_at`]; the position stays where it was.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let size = self.read_at(self.position, buf)?;
        self.position = self.position.saturating_add(size as u64);
        Ok(size)
    }

    /// Where [`File::read`] goes on, in bytes from the start.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Makes [`File::read`] go on at `position`, in bytes. Behind the end, it reads nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOffset`] beyond 2^63 - 1; the position stays where it was.
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
    /// [`Error::UnexpectedEof`] if the file ends before; else as [`File::read_at`].
    pub fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        if self.read_at(offset, buf)? == buf.len() {
            Ok(())
        } else {
            Err(Error::UnexpectedEof)
        }
    }
}

/// An open file without a borrow of its share, for the tables of a VFS: from [`File::into_raw`].
///
/// [`Share::file_of`] uses it, and [`Share::file`] makes a [`File`] of it again, which is closed when
/// it is dropped. A `RawFile` that is dropped stays open on the host until the session ends. With
/// another share than its own, it is one of a session that is over: [`Error::Disconnected`].
///
/// ```no_run
/// # use bootshare::{Share, Error, fs::RawFile, hal::Clock, transport::Transport};
/// /// A kernel's table: of open files, by number.
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

/// What is another in a file that was changed.
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
    /// Moves to another position. From the end, it is the size of [`File::metadata`] that counts.
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
