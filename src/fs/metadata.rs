//! The attributes of a file.

use crate::fuse::{Attr, FileType};

/// The attributes of a file, as the host reported them at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata(pub(super) Attr);

impl Metadata {
    /// Size in bytes; for a symbolic link, the length of its target.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "as in std::fs")]
    pub fn len(&self) -> u64 {
        self.0.size
    }

    /// Its kind.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        self.0.file_type
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.0.file_type == FileType::File
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.0.file_type == FileType::Directory
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.0.file_type == FileType::Symlink
    }

    /// Permission bits, 0o7777 at most.
    #[must_use]
    pub fn permissions(&self) -> u16 {
        self.0.permissions
    }

    /// Time of the last change of its content, in seconds since 1970 (negative before) and
    /// nanoseconds.
    #[must_use]
    pub fn modified(&self) -> (i64, u32) {
        (self.0.mtime, self.0.mtime_nsec)
    }

    /// All attributes of the protocol.
    #[must_use]
    pub fn attr(&self) -> &Attr {
        &self.0
    }
}
