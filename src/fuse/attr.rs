//! File attributes (`fuse_attr`).

use super::{OFFSET_MAX, Violation};
use fuse_abi::linux::fuse_attr;

/// The kind of a file, from the upper bits of its mode (inode(7)) or a directory entry's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileType {
    /// From `S_IFMT >> 12`, which is also the `DT_` number of a directory entry.
    pub(super) fn from_dt(dt: u32) -> Option<Self> {
        Some(match dt {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::File,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }
}

/// Checked attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number on the host.
    pub ino: u64,
    /// Size in bytes; for a symbolic link, the length of its target.
    pub size: u64,
    /// Kind of file.
    pub file_type: FileType,
    /// Permission bits, 0o7777 at most.
    pub permissions: u16,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner on the host.
    pub uid: u32,
    /// Group on the host.
    pub gid: u32,
    /// Seconds of the last change of its content since 1970, negative before.
    pub mtime: i64,
    /// Nanoseconds part of the modification time, below 10^9.
    pub mtime_nsec: u32,
    /// Seconds and nanoseconds of the last change of its content or attributes, as the host reports
    /// them.
    pub ctime: (i64, u32),
}

impl TryFrom<fuse_attr> for Attr {
    type Error = Violation;

    fn try_from(raw: fuse_attr) -> Result<Self, Violation> {
        const NSEC_PER_SEC: u32 = 1_000_000_000;
        let file_type = FileType::from_dt(raw.mode >> 12).ok_or(Violation::Attributes)?;
        if raw.size > OFFSET_MAX || raw.mtimensec >= NSEC_PER_SEC {
            return Err(Violation::Attributes);
        }
        Ok(Self {
            ino: raw.ino,
            size: raw.size,
            file_type,
            permissions: (raw.mode & 0o7777) as u16,
            nlink: raw.nlink,
            uid: raw.uid,
            gid: raw.gid,
            mtime: raw.mtime.cast_signed(),
            mtime_nsec: raw.mtimensec,
            ctime: (raw.ctime.cast_signed(), raw.ctimensec),
        })
    }
}
