//! The one error type of the client.

use crate::fuse::{Errno, Violation};
use core::fmt;

/// Why an operation on a share failed.
///
/// [`Error::errno`] gives the closest Linux error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// There is no file or directory of that name.
    NotFound,
    /// The host denies access to the file.
    PermissionDenied,
    /// A component of the path that has to be a directory is no directory.
    NotADirectory,
    /// The path names a directory, but a file is needed.
    IsADirectory,
    /// The path names neither a regular file nor a directory: a device, FIFO or socket.
    NotAFile,
    /// The path does not name a symbolic link.
    NotASymlink,
    /// More than 40 symbolic links had to be followed; they may be circular.
    TooManyLinks,
    /// A component of the path is longer than 255 bytes.
    NameTooLong,
    /// The path, with its symbolic links expanded, is longer than 4095 bytes or deeper than 256
    /// directories.
    PathTooLong,
    /// A name contains a NUL byte, or where one name is needed, a `/`, `.` or `..`.
    InvalidName,
    /// The answer does not fit into the caller's buffer; nothing was lost.
    BufferTooSmall,
    /// The file ended before the buffer was full.
    UnexpectedEof,
    /// An offset is beyond the greatest offset in a file (2^63 - 1).
    InvalidOffset,
    /// The host answered with another error number.
    Host(Errno),
    /// The host violated the FUSE or the virtio protocol.
    Protocol(Violation),
    /// The host made no progress within the deadline. The device was reset.
    TimedOut {
        /// The deadline, in milliseconds.
        after_ms: u32,
    },
    /// The device cannot be set up or used.
    Device(DeviceError),
    /// An earlier error ended the session: resume the share first, and then the file.
    Disconnected,
    /// The file is another one than before the share was resumed.
    Changed,
    /// The caller's `progress` function returned `Break`.
    Cancelled,
}

/// Why a device cannot be set up (virtio 1.2, section 3.1) or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// It does not offer `VIRTIO_F_VERSION_1`.
    NotModern,
    /// It refuses the chosen features.
    FeaturesRefused,
    /// One of its queues has fewer entries than the client needs.
    QueueTooSmall {
        /// The size of the queue; 0 if the queue does not exist.
        entries: u32,
        /// The required size.
        needed: u16,
    },
    /// A queue is in use although the device was reset.
    QueueInUse,
    /// The DMA pool is exhausted.
    NoDmaMemory,
    /// Its configuration space cannot be read or does not settle.
    Configuration,
    /// It does not confirm its reset (virtio 1.2, section 2.4.2). It may still write to the DMA
    /// memory of the session, which is therefore never used again. No caller's buffer is among it.
    ResetNotConfirmed,
    /// It set `DEVICE_NEEDS_RESET` (virtio 1.2, section 2.1.2), and was reset.
    NeedsReset,
    /// [`Hal::share`](crate::hal::Hal::share) returns 0 even for a single page of the buffer.
    BufferRefused,
}

impl Error {
    /// The closest Linux error number, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::NotFound => Errno::ENOENT,
            Self::PermissionDenied => Errno::EACCES,
            Self::NotADirectory => Errno::ENOTDIR,
            Self::IsADirectory => Errno::EISDIR,
            Self::NotAFile | Self::NotASymlink | Self::InvalidName | Self::InvalidOffset => {
                Errno::EINVAL
            }
            Self::TooManyLinks => Errno::ELOOP,
            Self::NameTooLong | Self::PathTooLong => Errno::ENAMETOOLONG,
            Self::BufferTooSmall => Errno::ERANGE,
            Self::Host(errno) => *errno,
            Self::Protocol(_) => Errno::EIO,
            Self::TimedOut { .. } => Errno::ETIMEDOUT,
            Self::Device(_) => Errno::ENODEV,
            Self::Disconnected => Errno::ENOTCONN,
            Self::Changed => Errno::ESTALE,
            Self::Cancelled => Errno::ECANCELED,
            Self::UnexpectedEof => return None,
        })
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT => Self::NotFound,
            Errno::EACCES | Errno::EPERM => Self::PermissionDenied,
            Errno::ENOTDIR => Self::NotADirectory,
            Errno::EISDIR => Self::IsADirectory,
            Errno::ELOOP => Self::TooManyLinks,
            Errno::ENAMETOOLONG => Self::NameTooLong,
            other => Self::Host(other),
        }
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Protocol(violation)
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such file or directory",
            Self::PermissionDenied => {
                "permission denied by the host; make it readable for the user who runs the server"
            }
            Self::NotADirectory => "not a directory",
            Self::IsADirectory => "it is a directory, a file is needed",
            Self::NotAFile => "neither a regular file nor a directory",
            Self::NotASymlink => "not a symbolic link",
            Self::TooManyLinks => "more than 40 symbolic links; they may be circular",
            Self::NameTooLong => "a name is longer than 255 bytes",
            Self::PathTooLong => {
                "the path is longer than 4095 bytes or deeper than 256 directories"
            }
            Self::InvalidName => "not a valid file name",
            Self::BufferTooSmall => "the buffer is too small for it",
            Self::UnexpectedEof => "the file ended too early; did it shrink on the host?",
            Self::InvalidOffset => "the offset is beyond the end of any file",
            Self::Host(errno) => return write!(f, "the host answered with {errno}"),
            Self::Protocol(violation) => {
                return write!(f, "the host broke the protocol: {violation}");
            }
            Self::TimedOut { after_ms } => {
                return write!(
                    f,
                    "the host made no progress for {after_ms} ms; is the share's server alive?"
                );
            }
            Self::Device(error) => return error.fmt(f),
            Self::Disconnected => "the share was disconnected by an earlier error",
            Self::Changed => "it changed on the host while it was read",
            Self::Cancelled => "the read was cancelled",
        })
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotModern => f.write_str("the device does not offer virtio 1.0"),
            Self::FeaturesRefused => f.write_str("the device refuses the negotiated features"),
            Self::QueueTooSmall { entries, needed } => write!(
                f,
                "a virtqueue has {entries} entries, {needed} are needed; \
                 set the device's queue-size to {needed} or more"
            ),
            Self::QueueInUse => f.write_str("a virtqueue is in use although the device was reset"),
            Self::NoDmaMemory => f.write_str("the DMA pool is exhausted; unmount another share"),
            Self::Configuration => f.write_str("the device's configuration can't be read"),
            Self::ResetNotConfirmed => f.write_str(
                "the device does not confirm its reset; restart the machine to use it again",
            ),
            Self::NeedsReset => {
                f.write_str("the device set DEVICE_NEEDS_RESET and was reset; is its server alive?")
            }
            Self::BufferRefused => {
                f.write_str("the platform refuses to share the buffer with the device (Hal::share)")
            }
        }
    }
}

impl core::error::Error for Error {}
impl core::error::Error for DeviceError {}

#[cfg(feature = "embedded-io")]
impl embedded_io::Error for Error {
    fn kind(&self) -> embedded_io::ErrorKind {
        use embedded_io::ErrorKind;
        match self {
            Self::NotFound => ErrorKind::NotFound,
            Self::PermissionDenied => ErrorKind::PermissionDenied,
            Self::InvalidName | Self::InvalidOffset => ErrorKind::InvalidInput,
            Self::Protocol(_) => ErrorKind::InvalidData,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
            Self::Disconnected => ErrorKind::NotConnected,
            _ => ErrorKind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_small() {
        assert!(size_of::<Error>() <= 16, "{}", size_of::<Error>());
        assert!(size_of::<Result<usize, Error>>() <= 24);
    }
}
