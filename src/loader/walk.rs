//! `walk`: every file below a directory, with its digest.

use super::{
    Board,
    commands::{Output, Shell, failure},
    console::Text,
    names::{List, Names},
    shares::BoardShare,
};
use crate::{Dir, Error, FileType, Metadata};
use heapless::Vec;

/// Most directories that a walk goes down; paths themselves end there.
const MAX_DEPTH: usize = 256;
/// Longest path in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Prints a line for each entry below `start`, depth first, names in byte order. Returns whether
/// everything could be read.
pub(super) fn walk<B: Board>(
    shell: &mut Shell<'_, B>,
    share: &BoardShare<B>,
    start: &[u8],
) -> bool {
    let mut walk = Walk {
        path: Vec::new(),
        levels: Vec::new(),
        ok: true,
    };
    if walk.path.extend_from_slice(start).is_err() {
        return failure(start, Error::PathTooLong);
    }
    while walk.path.last() == Some(&b'/') {
        walk.path.pop();
    }
    walk.run(shell, share)
}

/// A directory that is being walked.
struct Level {
    list: List,
    /// Length of the path that leads to it.
    path: usize,
}

struct Walk {
    /// Of the current directory or entry, without a slash at its end.
    path: Vec<u8, MAX_PATH>,
    levels: Vec<Level, MAX_DEPTH>,
    ok: bool,
}

impl Walk {
    fn run<B: Board>(&mut self, shell: &mut Shell<'_, B>, share: &BoardShare<B>) -> bool {
        self.descend(shell, share);
        while !self.levels.is_empty() {
            self.finish_directory(shell, share);
        }
        self.ok
    }

    /// The current path, or `/` where it is empty.
    fn path(&self) -> &[u8] {
        if self.path.is_empty() {
            b"/"
        } else {
            &self.path
        }
    }

    fn fail(&mut self, error: impl core::fmt::Display) {
        self.ok = failure(self.path(), error);
    }

    /// Starts on the directory at the current path.
    fn descend<B: Board>(&mut self, shell: &mut Shell<'_, B>, share: &BoardShare<B>) {
        if self.levels.is_full() {
            return self.fail(Error::PathTooLong);
        }
        match shell.names.read::<B>(share, self.path()) {
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

    /// Goes on with the topmost directory until it ends or leads into another one.
    fn finish_directory<B: Board>(&mut self, shell: &mut Shell<'_, B>, share: &BoardShare<B>) {
        let Some(level) = self.levels.last_mut() else {
            return;
        };
        self.path.truncate(level.path);
        let directory = if self.path.is_empty() {
            b"/"
        } else {
            &self.path[..]
        };
        let directory = share.open_dir(directory);
        let directory = match directory {
            Ok(directory) => directory,
            Err(error) => {
                self.leave(&mut shell.names);
                return self.fail(error);
            }
        };
        while let Some(name) = shell.names.next(&mut level.list) {
            self.path.truncate(level.path);
            let pushed = self.path.push(b'/').is_ok();
            if !pushed || self.path.extend_from_slice(name).is_err() {
                self.ok = failure(&self.path, Error::PathTooLong);
                continue;
            }
            match print(&mut shell.output, &directory, name, &self.path) {
                Ok(metadata) if metadata.is_dir() => return self.descend(shell, share),
                Ok(_) => {}
                Err(error) => self.ok = failure(&self.path, error),
            }
        }
        self.leave(&mut shell.names);
    }

    fn leave(&mut self, names: &mut Names<'_>) {
        if let Some(level) = self.levels.pop() {
            names.drop_list(&level.list);
        }
    }
}

/// Prints the line of `name` in `directory`: `TYPE SIZE SHA256 PATH`.
fn print<B: Board>(
    output: &mut Output<'_, B>,
    directory: &Dir<'_, crate::transport::FsTransport, B::Clock, B::Hal>,
    name: &[u8],
    path: &[u8],
) -> Result<Metadata, Error> {
    let metadata = directory.symlink_metadata(name)?;
    let path_text = Text(path);
    match metadata.file_type() {
        FileType::File => {
            let file = directory.open_file(name)?;
            let (size, digest) = output.digest(&file)?;
            output.line(format_args!("f {size} {digest} {path_text}"));
        }
        FileType::Directory => output.line(format_args!("d - - {path_text}")),
        FileType::Symlink => {
            let mut target = [0; 4096];
            let target = Text(directory.read_link(name, &mut target)?);
            output.line(format_args!("l - - {path_text} -> {target}"));
        }
        // A device, FIFO or socket: neither size nor content is of the share.
        _ => output.line(format_args!("o - - {path_text}")),
    }
    Ok(metadata)
}
