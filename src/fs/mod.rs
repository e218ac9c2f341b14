//! The read-only file system of a mounted share, with names and conventions of `std::fs`.
//!
//! Floor 4. Paths are bytes, as on the host: `&str`, `&[u8]` and byte string literals are accepted.
//! A path is relative to the root of the share, with or without a leading `/`; the empty path names
//! nothing. Symbolic links are followed inside the share: `..` stops at its root, and an absolute
//! target starts there. The client resolves every path itself, with one LOOKUP for each component,
//! so no path can lead a server out of the share.
//!
//! Nothing is cached except the attributes in an open [`File`] or [`Dir`]: every other call asks the host, and
//! the answer is true for that moment only.
#![forbid(unsafe_code)]

mod dir;
mod file;
mod metadata;
mod resolve;

pub use crate::session::Part;
pub use dir::{Dir, DirEntry, RawDir, ReadDir};
pub use file::{File, RawFile};
pub use metadata::Metadata;

use crate::{
    error::Error,
    fuse::{
        self, Attr, Errno, FileType, Forget, GetAttr, Lookup, NodeId, Operation, ReadLink, StatFs,
        Statistics, Violation,
    },
    hal::{Clock, Hal, IdentityHal, PAGE_SIZE},
    session::{Client, Epoch, Options, Priority, Tag},
};
use core::{fmt, mem::ManuallyDrop, ops::ControlFlow};
use virtio_drivers::transport::Transport;

// The longest target of a symbolic link must fit into a page with one byte left: servers refuse a
// buffer that could be too small.
const _: () = assert!(fuse::TARGET_MAX < PAGE_SIZE);

/// A mounted share.
///
/// An error after which the host cannot be trusted ([`Error::TimedOut`], `DeviceError::NeedsReset`, or
/// [`Error::Protocol`] for a fault in a virtqueue) disconnects the share: the device is reset and every call
/// gives [`Error::Disconnected`], until [`Share::resume`].
///
/// Files and directories borrow the share; several can be open at once. Dropping the share resets the
/// device; [`Share::unmount`] sends DESTROY to the host before.
///
/// ```no_run
/// # use bootshare::{Share, Options, Error, hal::Clock, transport::FsTransport};
/// # fn example(transport: FsTransport, clock: impl Clock) -> Result<(), Error> {
/// let share = Share::mount(transport, clock, Options::default())?;
/// let mut text = [0; 256];
/// let file = share.open("/etc/hostname")?;
/// let size = file.read_at(0, &mut text)?;
/// drop(file);
/// share.unmount()?;
/// # Ok(())
/// # }
/// ```
pub struct Share<T: Transport, C: Clock, H: Hal = IdentityHal> {
    client: Client<T, C, H>,
    tag: Tag,
}

impl<T: Transport, C: Clock> Share<T, C> {
    /// Mounts the share of the device at `transport`, with DMA memory of the [`IdentityHal`].
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the device can't be set up, [`Error::TimedOut`] if its host does not
    /// answer, [`Error::Protocol`] if it offers no FUSE version that this client knows.
    pub fn mount(transport: T, clock: C, options: Options) -> Result<Self, Error> {
        Self::mount_with(transport, clock, options)
    }
}

impl<T: Transport, C: Clock, H: Hal> Share<T, C, H> {
    /// Mounts the share of the device at `transport`, with DMA memory of `H`.
    ///
    /// # Errors
    ///
    /// As [`Share::mount`].
    pub fn mount_with(transport: T, clock: C, options: Options) -> Result<Self, Error> {
        let client = Client::start(transport, clock, options)?;
        let tag = client.tag();
        Ok(Self { client, tag })
    }

    /// The tag of the share.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The version of FUSE in use: 7 and a minor number.
    pub fn protocol(&self) -> (u32, u32) {
        (7, self.client.minor())
    }

    /// Metadata of `path`; symbolic links are followed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] and the other errors of path resolution; [`Error::Host`] for other
    /// errors of the host.
    pub fn metadata(&self, path: impl AsRef<[u8]>) -> Result<Metadata, Error> {
        self.at(path, true, |node| Ok(Metadata(node.attr()?)))
    }

    /// Metadata of `path`; a symbolic link at its end is not followed.
    ///
    /// # Errors
    ///
    /// As [`Share::metadata`].
    pub fn symlink_metadata(&self, path: impl AsRef<[u8]>) -> Result<Metadata, Error> {
        self.at(path, false, |node| Ok(Metadata(node.attr()?)))
    }

    /// Opens the regular file `path` for reading.
    ///
    /// # Errors
    ///
    /// [`Error::IsADirectory`] or [`Error::NotAFile`] for anything other than a regular file;
    /// otherwise as [`Share::metadata`].
    pub fn open(&self, path: impl AsRef<[u8]>) -> Result<File<'_, T, C, H>, Error> {
        self.at(path, true, File::open)
    }

    /// Whether `path` exists; symbolic links are followed, so a dangling one does not exist.
    ///
    /// # Errors
    ///
    /// As [`Share::metadata`], except that [`Error::NotFound`] and [`Error::NotADirectory`] give
    /// `false`.
    pub fn exists(&self, path: impl AsRef<[u8]>) -> Result<bool, Error> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(Error::NotFound | Error::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads the whole file `path` to the start of `buf`, and returns that part of it.
    ///
    /// ```no_run
    /// # use bootshare::{Share, Error, hal::Clock, transport::Transport};
    /// # fn example(share: &Share<impl Transport, impl Clock>) -> Result<(), Error> {
    /// let mut buffer = [0; 4096];
    /// let text: &[u8] = share.read("/etc/hostname", &mut buffer)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::BufferTooSmall`] if the file is larger than `buf`, even if the host reported a smaller
    /// size; otherwise as [`Share::open`].
    pub fn read<'b>(
        &self,
        path: impl AsRef<[u8]>,
        buf: &'b mut [u8],
    ) -> Result<&'b mut [u8], Error> {
        let file = self.open(path)?;
        if file.metadata().len() > buf.len() as u64 {
            return Err(Error::BufferTooSmall);
        }
        let size = file.read_at(0, buf)?;
        // If the buffer is full, a file that is longer than the host reported has more to read.
        if size == buf.len()
            && file.metadata().len() != size as u64
            && file.read_at(size as u64, &mut [0])? != 0
        {
            return Err(Error::BufferTooSmall);
        }
        buf.get_mut(..size).ok_or(Error::BufferTooSmall)
    }

    /// Reads several parts of open files at once, each straight into its own buffer, until each
    /// buffer is full or its file ends. The requests are sent in the order of the parts, and those
    /// for the next part are in flight before the previous part is complete.
    ///
    /// `progress` is called with the parts from time to time, and before the return. If it returns
    /// `Break`, no more requests are sent, and the read ends when those in flight have completed.
    ///
    /// ```no_run
    /// # use bootshare::{Share, Error, hal::Clock, transport::Transport};
    /// use core::ops::ControlFlow::Continue;
    /// # fn example(share: &Share<impl Transport, impl Clock>) -> Result<(), Error> {
    /// let (kernel, initrd) = (share.open("/vmlinuz")?, share.open("/initrd.img")?);
    /// let (mut first, mut second) = ([0; 4096], [0; 4096]);
    /// let mut parts = [kernel.part(0, &mut first), initrd.part(0, &mut second)];
    /// share.read_parts(&mut parts, &mut |_| Continue(()))?;
    /// let head: &[u8] = parts[0].bytes();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`File::read_at`]; [`Error::Disconnected`] also for a file of another share, and
    /// [`Error::Cancelled`] if `progress` returned `Break`. [`Part::error`] tells which part failed.
    /// Each part keeps the bytes it has: if the parts are read again, they continue there.
    pub fn read_parts(
        &self,
        parts: &mut [Part<'_>],
        progress: &mut dyn FnMut(&[Part<'_>]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.client.read(parts, progress)
    }

    /// The entries of the directory `path`, without `.` and `..`, in the host's order.
    ///
    /// # Errors
    ///
    /// [`Error::NotADirectory`] if it is not a directory; else as [`Share::metadata`].
    pub fn read_dir(&self, path: impl AsRef<[u8]>) -> Result<ReadDir<'_, T, C, H>, Error> {
        self.at(path, true, |node| ReadDir::of(Dir::open(node)?))
    }

    /// Opens the directory `path`, so that files in it are found without resolving its path again.
    ///
    /// # Errors
    ///
    /// As [`Share::read_dir`].
    pub fn open_dir(&self, path: impl AsRef<[u8]>) -> Result<Dir<'_, T, C, H>, Error> {
        self.at(path, true, Dir::open)
    }

    /// Turns `raw` into a [`File`] again, which is closed when it is dropped.
    pub fn file(&self, raw: RawFile) -> File<'_, T, C, H> {
        raw.of(self)
    }

    /// Borrows `raw` as a [`File`], which is not closed at the end.
    pub fn file_of(&self, raw: &RawFile) -> ManuallyDrop<File<'_, T, C, H>> {
        ManuallyDrop::new(raw.of(self))
    }

    /// Turns `raw` into a [`Dir`] again, which sends FORGET when it is dropped.
    pub fn dir(&self, raw: RawDir) -> Dir<'_, T, C, H> {
        raw.of(self)
    }

    /// Borrows `raw` as a [`Dir`], for which no FORGET is sent at the end.
    pub fn dir_of(&self, raw: &RawDir) -> ManuallyDrop<Dir<'_, T, C, H>> {
        ManuallyDrop::new(raw.of(self))
    }

    /// The target of the symbolic link `path`, unchanged. A buffer of 4095 bytes is always enough.
    ///
    /// # Errors
    ///
    /// [`Error::NotASymlink`] for anything else; [`Error::BufferTooSmall`] if the target does not
    /// fit into `buf`; else as [`Share::metadata`].
    pub fn read_link<'b>(
        &self,
        path: impl AsRef<[u8]>,
        buf: &'b mut [u8],
    ) -> Result<&'b [u8], Error> {
        let size = self.at(path, false, |node| Ok(node.read_link(buf)?.len()))?;
        buf.get(..size).ok_or(Error::BufferTooSmall)
    }

    /// Statistics of the file system that contains the share's root.
    ///
    /// # Errors
    ///
    /// As [`Share::metadata`], and [`Error::Protocol`] for a malformed reply.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        let node = NodeId::ROOT;
        self.client.call(self.client.epoch(), &StatFs { node })
    }

    /// Ends the session: the host drops all nodes and handles of it, and the device is reset, so that
    /// another driver can use it.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] or another error if the host no longer answers; the device's reset is requested
    /// in any case. [`DeviceError::ResetNotConfirmed`](crate::DeviceError::ResetNotConfirmed) if the device
    /// does not confirm it: then it may still write to memory of the pool.
    pub fn unmount(self) -> Result<(), Error> {
        self.client.end()
    }

    /// Reconnects a share that an error has disconnected; does nothing while it is connected.
    ///
    /// Files and directories that were open before give [`Error::Disconnected`]; a file can be used
    /// again after [`File::resume`].
    ///
    /// # Errors
    ///
    /// As [`Share::mount`]; the share stays disconnected, and the caller may try again.
    pub fn resume(&self) -> Result<(), Error> {
        self.client.resume()
    }

    /// Whether the share is connected: no error has disconnected it since it was mounted or resumed.
    pub fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    /// Resolves `path` and calls `act` with its node. If the host answers ESTALE, because the node has
    /// changed since the LOOKUP, the path is resolved once more.
    fn at<'s, R>(
        &'s self,
        path: impl AsRef<[u8]>,
        follow: bool,
        mut act: impl FnMut(Node<'s, T, C, H>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let path = path.as_ref();
        let mut attempt = || act(self.resolve(path, follow)?);
        match attempt() {
            Err(Error::Host(Errno::ESTALE)) => attempt(),
            result => result,
        }
    }

    /// Looks one name up. The caller must send one FORGET for the node.
    fn lookup(&self, epoch: Epoch, parent: NodeId, name: &[u8]) -> Result<(NodeId, Attr), Error> {
        if name.len() > fuse::NAME_MAX {
            return Err(Error::NameTooLong);
        }
        let entry = self.client.call(epoch, &Lookup { parent, name })?;
        let entry = entry.ok_or(Error::NotFound)?;
        match entry.attr {
            Ok(attr) => Ok((entry.node, attr)),
            Err(violation) => {
                self.forget(epoch, entry.node);
                Err(violation.into())
            }
        }
    }

    fn forget(&self, epoch: Epoch, node: NodeId) {
        if node != NodeId::ROOT {
            let forget = Forget { node, nlookup: 1 };
            self.client.post(epoch, &forget, Priority::High);
        }
    }

    fn attr(&self, epoch: Epoch, node: NodeId) -> Result<Attr, Error> {
        self.client.call(epoch, &GetAttr { node })
    }

    /// Reads the target of a link into `buf`.
    fn target<'b>(
        &self,
        epoch: Epoch,
        node: NodeId,
        buf: &'b mut [u8; PAGE_SIZE],
    ) -> Result<&'b [u8], Error> {
        let size = self.client.call_into(epoch, &ReadLink { node }, buf)?;
        match buf.get(..size) {
            Some(target) if !target.contains(&0) => Ok(target),
            _ => Err(Violation::LinkTarget.into()),
        }
    }
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for Share<T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("tag", &self.tag)
            .field("protocol", &self.protocol())
            .finish_non_exhaustive()
    }
}

/// A [`Node`] without a borrow of its share.
#[derive(Clone, Copy, Debug)]
struct RawNode {
    epoch: Epoch,
    id: NodeId,
    attr: Option<Attr>,
}

impl RawNode {
    fn of<T: Transport, C: Clock, H: Hal>(self, share: &Share<T, C, H>) -> Node<'_, T, C, H> {
        let Self { epoch, id, attr } = self;
        Node {
            share,
            epoch,
            id,
            attr,
        }
    }
}

/// A node that was looked up: the host keeps it until the FORGET that is sent when this is dropped.
struct Node<'s, T: Transport, C: Clock, H: Hal> {
    share: &'s Share<T, C, H>,
    epoch: Epoch,
    id: NodeId,
    /// `None` for a directory whose attributes are not known: the root, or one reached by `..`.
    attr: Option<Attr>,
}

impl<'s, T: Transport, C: Clock, H: Hal> Node<'s, T, C, H> {
    fn raw(&self) -> RawNode {
        RawNode {
            epoch: self.epoch,
            id: self.id,
            attr: self.attr,
        }
    }

    /// Sends `operation`, if the session in which this node was looked up still exists.
    fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply, Error> {
        self.share.client.call(self.epoch, operation)
    }

    fn file_type(&self) -> FileType {
        self.attr.map_or(FileType::Directory, |attr| attr.file_type)
    }

    /// The node's attributes; the host is asked if they are not known yet.
    fn attr(&self) -> Result<Attr, Error> {
        match self.attr {
            Some(attr) => Ok(attr),
            None => self.share.attr(self.epoch, self.id),
        }
    }

    fn read_link<'b>(&self, buf: &'b mut [u8]) -> Result<&'b [u8], Error> {
        if self.file_type() != FileType::Symlink {
            return Err(Error::NotASymlink);
        }
        let mut target = [0; PAGE_SIZE];
        let target = self.share.target(self.epoch, self.id, &mut target)?;
        let buf = buf.get_mut(..target.len()).ok_or(Error::BufferTooSmall)?;
        buf.copy_from_slice(target);
        Ok(buf)
    }
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for Node<'_, T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("attr", &self.attr)
            .finish_non_exhaustive()
    }
}

impl<T: Transport, C: Clock, H: Hal> Drop for Node<'_, T, C, H> {
    fn drop(&mut self) {
        self.share.forget(self.epoch, self.id);
    }
}

#[cfg(test)]
#[cfg(feature = "mmio")]
mod tests {
    use super::*;
    use crate::transport::FsTransport;
    use core::time::Duration;

    struct StandingClock;

    impl Clock for StandingClock {
        fn now(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[test]
    fn shares_and_files_may_go_to_other_threads() {
        fn check<T: Send + Sync>() {}
        check::<Share<FsTransport, StandingClock>>();
        check::<File<'_, FsTransport, StandingClock, IdentityHal>>();
    }
}
