//! Metadata of a file.

use crate::fuse::{Attr, FileType};

/// Metadata of a file, as the host reported it at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata(pub(super) Attr);

impl Metadata {
    /// Size in bytes; for a symbolic link, the length of its target.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "as in std::fs")]
    pub fn len(&self) -> u64 {
        self.0.size
    }

    /// Its type.
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

    /// Time of the last change of its content: seconds since 1970 (negative before), and
    /// nanoseconds.
    #[must_use]
    pub fn modified(&self) -> (i64, u32) {
        (self.0.mtime, self.0.mtime_nsec)
    }

    /// All attributes of the FUSE reply.
    #[must_use]
    pub fn attr(&self) -> &Attr {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_that_of_the_reply() {
        let mut attr = Attr {
            ino: 1,
            size: 2,
            file_type: FileType::Fifo,
            permissions: 0o4755,
            nlink: 3,
            uid: 4,
            gid: 5,
            mtime: -6,
            mtime_nsec: 7,
            ctime: (8, 9),
        };
        for (file_type, is) in [
            (FileType::File, [true, false, false]),
            (FileType::Directory, [false, true, false]),
            (FileType::Symlink, [false, false, true]),
            (FileType::Fifo, [false; 3]),
        ] {
            attr.file_type = file_type;
            let metadata = Metadata(attr);
            assert_eq!(metadata.file_type(), file_type);
            let kinds = [metadata.is_file(), metadata.is_dir(), metadata.is_symlink()];
            assert_eq!(kinds, is, "{file_type:?}");
        }
        let metadata = Metadata(attr);
        assert_eq!((metadata.len(), metadata.permissions()), (2, 0o4755));
        assert_eq!(metadata.modified(), (-6, 7));
        assert_eq!(*metadata.attr(), attr);
    }
}
