//! READDIR: entries of an open directory (`fuse_read_in`, `fuse_dirent`).

use super::{
    FileType, Handle, LISTED_NAME_MAX, NodeId, Operation, Read, Violation, fuse_opcode,
    is_component,
};
use fuse_abi::linux::{fuse_dirent, fuse_read_in};
use zerocopy::FromBytes;

/// Reads entries from `offset` on into a caller's buffer of exactly `size` bytes.
#[derive(Clone, Copy, Debug)]
pub struct ReadDir {
    /// The directory.
    pub node: NodeId,
    /// Its handle.
    pub handle: Handle,
    /// 0, or the offset of the last entry seen. A number of the server's, with no order.
    pub offset: u64,
    /// Size of the buffer in bytes.
    pub size: u32,
}

impl Operation for ReadDir {
    const OPCODE: fuse_opcode = fuse_opcode::FUSE_READDIR;
    type Body = fuse_read_in;
    /// Bytes of entries, for [`Dirents`]; 0 at the end.
    type Reply = usize;
    const REPLY_SIZE: usize = 0;

    fn node(&self) -> NodeId {
        self.node
    }

    fn body(&self) -> fuse_read_in {
        Read::wire(self.handle, self.offset, self.size)
    }

    fn decode(&self, _fixed: &[u8], data: usize) -> Result<usize, Violation> {
        Ok(data)
    }
}

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// Offset that continues behind this entry.
    pub offset: u64,
    /// Its kind, if the server knows.
    pub file_type: Option<FileType>,
    /// Its name: 1 to 1024 bytes without `/` and NUL. Longer ones than 255 can't be looked up.
    pub name: &'a [u8],
}

/// The entries of one READDIR reply, `.` and `..` among them.
///
/// Ends at the first malformed one, after its error.
#[derive(Clone, Debug)]
pub struct Dirents<'a>(&'a [u8]);

impl<'a> Dirents<'a> {
    /// Entries in `reply`, the part of the buffer that the server filled.
    #[must_use]
    pub fn new(reply: &'a [u8]) -> Self {
        Self(reply)
    }

    /// What is left to be read: a `Dirents` from here goes on where this one is.
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
