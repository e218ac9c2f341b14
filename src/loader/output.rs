//! Formats the output of commands.

use super::{
    Board,
    console::{Console, Text},
};
use crate::{FileType, Metadata};
use core::fmt::{self, Write};
use time::OffsetDateTime;

/// The console, and a buffer for reading files.
pub(super) struct Output<'a, B: Board> {
    console: Console<B>,
    pub buffer: &'a mut [u8],
}

impl<'a, B: Board> Output<'a, B> {
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

    /// Prints a line of `ls`.
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

/// Displays type and permissions like `ls -l`.
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
            // The set-ID and sticky bits are shown instead of the execute bits.
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

/// Displays seconds since 1970 as a date and time in UTC.
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
