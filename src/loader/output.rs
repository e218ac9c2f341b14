//! What commands print.

use super::{
    Board,
    console::{Console, Text},
    shares::BoardFile,
};
use crate::{Error, FileType, Metadata};
use core::fmt::{self, Write};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// The console, and memory for what is printed.
pub(super) struct Output<'a, B: Board> {
    console: Console<B>,
    buffer: &'a mut [u8],
}

impl<'a, B: Board> Output<'a, B> {
    /// With `buffer` for what is read of a file at a time.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self {
            console: Console::new(),
            buffer,
        }
    }
}

impl<B: Board> Output<'_, B> {
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        _ = writeln!(self.console, "{text}");
    }

    pub fn text(&mut self, text: &str) {
        _ = self.console.write_str(text);
    }

    /// Calls `each` with the bytes of `file`, in turn. Returns how many there are.
    pub fn for_each_piece(
        &mut self,
        file: &BoardFile<'_, B>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<u64, Error> {
        let mut offset = 0;
        loop {
            let size = file.read_at(offset, self.buffer)?;
            each(&self.buffer[..size]);
            offset += size as u64;
            if size < self.buffer.len() {
                return Ok(offset);
            }
        }
    }

    /// Size and digest of a file as it was read.
    pub fn digest(&mut self, file: &BoardFile<'_, B>) -> Result<(u64, DigestText), Error> {
        let mut digest = Sha256::new();
        let size = self.for_each_piece(file, |piece| digest.update(piece))?;
        Ok((size, DigestText(digest.finalize().into())))
    }

    /// A line of `ls`.
    pub fn entry(&mut self, name: &[u8], metadata: &Metadata, target: Option<&[u8]>, long: bool) {
        let name = Text(name);
        if !long {
            return self.line(format_args!("{name}"));
        }
        let mode = Mode(metadata);
        let date = Date(metadata.modified().0);
        let attr = metadata.attr();
        let (links, uid, gid, size) = (attr.nlink, attr.uid, attr.gid, attr.size);
        match target {
            Some(target) => self.line(format_args!(
                "{mode} {links:3} {uid:5} {gid:5} {size:12} {date} {name} -> {}",
                Text(target)
            )),
            None => self.line(format_args!(
                "{mode} {links:3} {uid:5} {gid:5} {size:12} {date} {name}"
            )),
        }
    }
}

/// A SHA-256 to be printed.
pub(super) struct DigestText([u8; 32]);

impl DigestText {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Whether it is this one.
    pub fn is(&self, digest: &[u8; 32]) -> bool {
        self.0 == *digest
    }
}

impl From<[u8; 32]> for DigestText {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for DigestText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

pub(super) fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::File => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
    }
}

/// Type and permissions as `ls -l` has them.
struct Mode<'a>(&'a Metadata);

impl fmt::Display for Mode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char(match self.0.file_type() {
            FileType::File => '-',
            FileType::Directory => 'd',
            FileType::Symlink => 'l',
            FileType::CharDevice => 'c',
            FileType::BlockDevice => 'b',
            FileType::Fifo => 'p',
            FileType::Socket => 's',
        })?;
        let bits = self.0.permissions();
        for (index, letter) in "rwxrwxrwx".chars().enumerate() {
            let set = bits & 0o400 >> index != 0;
            // Set-ID and sticky bits stand in place of the execute bits.
            let special = match index {
                2 => bits & 0o4000 != 0,
                5 => bits & 0o2000 != 0,
                8 => bits & 0o1000 != 0,
                _ => false,
            };
            f.write_char(match (special, set, index) {
                (true, true, 8) => 't',
                (true, false, 8) => 'T',
                (true, true, _) => 's',
                (true, false, _) => 'S',
                (false, true, _) => letter,
                (false, false, _) => '-',
            })?;
        }
        Ok(())
    }
}

/// Seconds since 1970 as a date and time, UTC.
pub(super) struct Date(pub i64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match OffsetDateTime::from_unix_timestamp(self.0) {
            Ok(date) => write!(
                f,
                "{:04}-{:02}-{:02} {:02}:{:02}",
                date.year(),
                u8::from(date.month()),
                date.day(),
                date.hour(),
                date.minute()
            ),
            Err(_) => write!(f, "@{}", self.0),
        }
    }
}
