//! Entries of a directory, as READDIR gives them (`fuse_dirent`).

use super::{FileType, LISTED_NAME_MAX, Violation, is_component};
use fuse_abi::linux::fuse_dirent;
use zerocopy::FromBytes;

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// The offset to continue after this entry.
    pub offset: u64,
    /// Its type, if the server knows it.
    pub file_type: Option<FileType>,
    /// Its name: 1 to 1024 bytes without `/` and NUL. A name longer than 255 bytes can't be looked
    /// up.
    pub name: &'a [u8],
}

/// The entries of one READDIR reply, including `.` and `..`.
///
/// The iterator ends after the error of the first malformed entry.
#[derive(Clone, Debug)]
pub struct Dirents<'a>(&'a [u8]);

impl<'a> Dirents<'a> {
    /// The entries in `reply`, which is the part of the buffer that the server filled.
    #[must_use]
    pub fn new(reply: &'a [u8]) -> Self {
        Self(reply)
    }

    /// The bytes not read yet. A new `Dirents` over them continues after the last entry.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self) -> Option<Dirent<'a>> {
        let (header, rest) = fuse_dirent::read_from_prefix(self.0).ok()?;
        let length = usize::try_from(header.namelen).ok()?;
        let name = rest.get(..length).filter(|name| is_component(name))?;
        if length > LISTED_NAME_MAX {
            return None;
        }
        // Entries are padded to 8 bytes (FUSE_DIRENT_ALIGN).
        self.0 = rest.get(length.checked_next_multiple_of(8)?..)?;
        Some(Dirent {
            offset: header.off,
            file_type: FileType::from_dt(header.type_),
            name,
        })
    }
}

impl<'a> Iterator for Dirents<'a> {
    type Item = Result<Dirent<'a>, Violation>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let entry = self.take().ok_or(Violation::DirectoryEntry);
        if entry.is_err() {
            self.0 = &[];
        }
        Some(entry)
    }
}
