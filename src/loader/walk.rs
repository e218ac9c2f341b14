//! The command `walk`: prints all files below a directory with their digests.

use super::{
    Board,
    console::{Text, failure},
    digest::DigestText,
    names::{List, ListError, Names},
    output::Output,
    shares::{BoardDir, Mount, Shown},
};
use crate::{Error, FileType, Metadata};
use heapless::Vec;

/// Deepest nesting of directories.
const MAX_DEPTH: usize = 256;
/// Longest path in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Prints a line for each entry below `start`, depth first, names in byte order. Returns whether all entries could
/// be read.
pub(super) fn walk<B: Board>(
    share: &Mount<B>,
    names: &mut Names<'_>,
    output: &mut Output<'_, B>,
    start: &[u8],
) -> bool {
    let mut walk = Walk {
        share,
        names,
        output,
        path: Vec::new(),
        levels: Vec::new(),
        ok: true,
    };
    if walk.path.extend_from_slice(start).is_err() {
        return failure(&share.shown(start), &Error::PathTooLong);
    }
    while walk.path.last() == Some(&b'/') {
        walk.path.pop();
    }
    walk.descend();
    while !walk.levels.is_empty() {
        walk.advance();
    }
    walk.ok
}

/// An open directory of the walk.
struct Level {
    list: List,
    /// Length of its path.
    path: usize,
}

struct Walk<'w, 'n, 'o, B: Board> {
    share: &'w Mount<B>,
    names: &'w mut Names<'n>,
    output: &'w mut Output<'o, B>,
    /// The path of the current directory or entry, without a trailing slash.
    path: Vec<u8, MAX_PATH>,
    levels: Vec<Level, MAX_DEPTH>,
    ok: bool,
}

impl<B: Board> Walk<'_, '_, '_, B> {
    fn fail(&mut self, error: impl core::fmt::Display) {
        self.ok = failure(&self.share.shown(directory_path(&self.path)), &error);
    }

    /// Opens the directory at the current path.
    fn descend(&mut self) {
        if self.levels.is_full() {
            return self.fail(Error::PathTooLong);
        }
        let entries = self.share.read_dir(directory_path(&self.path));
        let read = entries.map_err(ListError::Share);
        match read.and_then(|mut entries| self.names.read::<B>(&mut entries)) {
            Ok(list) => {
                // Not full, as was checked.
                _ = self.levels.push(Level {
                    list,
                    path: self.path.len(),
                });
            }
            Err(error) => self.fail(error),
        }
    }

    /// Continues with the innermost directory until its end or its next subdirectory.
    fn advance(&mut self) {
        let Some(level) = self.levels.last_mut() else {
            return;
        };
        self.path.truncate(level.path);
        let directory = match self.share.open_dir(directory_path(&self.path)) {
            Ok(directory) => directory,
            Err(error) => {
                self.leave();
                return self.fail(error);
            }
        };
        while let Some(name) = self.names.next(&mut level.list) {
            self.path.truncate(level.path);
            let pushed = self.path.push(b'/').is_ok();
            if !pushed || self.path.extend_from_slice(name).is_err() {
                self.ok = failure(&self.share.shown(&self.path), &Error::PathTooLong);
                continue;
            }
            let shown = self.share.shown(&self.path);
            match print(self.output, &directory, name, &shown) {
                Ok(metadata) if metadata.is_dir() => return self.descend(),
                Ok(_) => {}
                Err(error) => self.ok = failure(&self.share.shown(&self.path), &error),
            }
        }
        self.leave();
    }

    fn leave(&mut self) {
        if let Some(level) = self.levels.pop() {
            self.names.drop_list(&level.list);
        }
    }
}

/// The path of a directory: in [`Walk::path`], that of the root is empty.
fn directory_path(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"/" } else { path }
}

/// Prints the line of `name` in `directory`: `TYPE SIZE SHA256 PATH`.
fn print<B: Board>(
    output: &mut Output<'_, B>,
    directory: &BoardDir<'_, B>,
    name: &[u8],
    path: &Shown<'_>,
) -> Result<Metadata, Error> {
    let metadata = directory.symlink_metadata(name)?;
    match metadata.file_type() {
        FileType::File => {
            let file = directory.open_file(name)?;
            let (size, digest) = DigestText::of_file::<B>(&file, output.buffer)?;
            output.line(format_args!("f {size} {digest} {path}"));
        }
        FileType::Directory => output.line(format_args!("d - - {path}")),
        FileType::Symlink => {
            let mut target = [0; 4096];
            let target = Text(directory.read_link(name, &mut target)?);
            output.line(format_args!("l - - {path} -> {target}"));
        }
        // A device, FIFO or socket has no content on the share.
        _ => output.line(format_args!("o - - {path}")),
    }
    Ok(metadata)
}
