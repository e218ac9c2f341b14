//! Searches the shares for boot entries.
//!
//! The first [`DIRECT`] of [`SOURCES`] are opened by their paths, which needs the fewest requests for most
//! directories. For the others, the share's root and `/boot` are listed once, and only paths that may exist
//! according to these lists are opened.

mod bls;
mod conventional;
mod extlinux;
#[cfg(feature = "uki")]
mod images;
#[cfg(feature = "extlinux")]
mod labels;

use super::{
    Board, Failed,
    arena::Arena,
    choices::{Choice, Choices, Content, Kind, Listed, MAX_CONVENTIONAL, MAX_ENTRIES},
    console::{Text, failure},
    shares::{BoardDir, BoardFile, Mount, Shares},
};
use crate::{
    Error, FileType,
    boot::{
        bls::Fit,
        conventional::Conventional,
        memory::{Request, Side},
    },
};

/// A place to search for entries.
enum Source {
    /// Entries of the Boot Loader Specification; those of all these places are sorted together.
    Bls(&'static [bls::Place]),
    /// An `extlinux.conf`: its directory, and its possible names.
    Extlinux(&'static str, &'static [&'static str]),
    /// Files with conventional names in this directory.
    Conventional(&'static str),
    /// Kernels of packages, in a subdirectory of this directory for each version.
    Modules(&'static str),
}

impl Source {
    const fn kind(&self) -> Kind {
        match self {
            Self::Bls(_) => Kind::Bls,
            Self::Extlinux(..) => Kind::Extlinux,
            Self::Conventional(_) | Self::Modules(_) => Kind::Conventional,
        }
    }
}

/// How many of [`SOURCES`] are opened by their paths, without a list of names.
const DIRECT: usize = 4;

const SOURCES: [Source; DIRECT + 8 + MAX_CONVENTIONAL] = [
    Source::Bls(&[bls::Place::new("/", "loader")]),
    Source::Extlinux("/extlinux", &[extlinux::CONF]),
    Source::Extlinux("/boot/extlinux", &[extlinux::CONF]),
    Source::Extlinux("/", &[extlinux::CONF]),
    // The root of a system, with the boot loader's file systems below it. Names on FAT may be in upper case.
    Source::Bls(&[
        bls::Place::new("/", "LOADER"),
        bls::Place::new("/boot", "loader"),
        bls::Place::new("/boot", "LOADER"),
        bls::Place::new("/efi", "loader"),
        bls::Place::new("/boot/efi", "loader"),
    ]),
    Source::Extlinux("/boot", &extlinux::NAMES),
    Source::Extlinux("/boot/syslinux", &extlinux::NAMES),
    Source::Extlinux("/syslinux", &extlinux::NAMES),
    Source::Extlinux("/boot/EXTLINUX", &extlinux::UPPER_NAMES),
    Source::Extlinux("/EXTLINUX", &extlinux::UPPER_NAMES),
    Source::Extlinux("/SYSLINUX", &extlinux::UPPER_NAMES),
    Source::Extlinux("/", &extlinux::NAMES),
    Source::Conventional("/"),
    Source::Conventional("/boot"),
    Source::Modules("/usr/lib/modules"),
    Source::Modules("/lib/modules"),
];

/// Names in the share's root and in `/boot` that decide which sources are searched.
const NAMES: [&[u8]; 13] = [
    b"loader",
    b"LOADER",
    b"EFI",
    b"efi",
    b"boot",
    b"extlinux",
    b"EXTLINUX",
    b"syslinux",
    b"SYSLINUX",
    b"extlinux.conf",
    b"syslinux.cfg",
    b"usr",
    b"lib",
];

/// The relevant names in a directory.
struct Names {
    /// A bit for each of [`NAMES`].
    found: u16,
    conventional: Conventional,
}

/// What to search for.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    /// A pattern that an entry has to match.
    pub wanted: Option<&'a [u8]>,
    /// Search also for entries of other kinds than the first one found.
    pub fallback: bool,
    /// Search all sources, not only up to the first one with a matching entry.
    pub all: bool,
}

/// Continues the search where `choices` says that it has stopped, share by share, and adds the entries found.
/// Their content is stored in `arena`.
///
/// A file that cannot be read is reported and skipped, and so is a share that was lost and cannot be resumed.
#[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
pub(super) fn gather<'m, B: Board>(
    shares: &'m Shares<B>,
    choices: &mut Choices<'m, B>,
    look: Look<'_>,
    arena: &mut Arena<'m>,
) {
    while let Some(mount) = shares.mounted.get(choices.share) {
        // A share that was given up is not connected.
        if mount.is_connected() {
            match search(mount, choices, look, arena) {
                Ok(true) => return,
                Err(lost) if mount.again(lost).is_ok() => continue,
                _ => {}
            }
        }
        choices.share += 1;
        choices.source = 0;
    }
}

/// The search on one share.
struct Search<'g, 'm, B: Board> {
    mount: &'m Mount<B>,
    arena: &'g mut Arena<'m>,
    choices: &'g mut Choices<'m, B>,
    look: Look<'g>,
    /// The number of entries in the list before those of the current source.
    first: usize,
    /// Whether the current source has an entry file, even if it cannot be read.
    found: bool,
    /// `/boot`: `None` before it was opened, `Some(None)` if it does not exist.
    boot: Option<Option<BoardDir<'m, B>>>,
    /// GRUB's environment block of the file system with this root, once it was read.
    environment: Option<(&'static str, &'m [u8])>,
    /// The names in the share's root and in `/boot`, once they were listed.
    names: [Option<Names>; 2],
}

/// The index of the share's root in [`Search::names`].
const ROOT: usize = 0;
/// The index of `/boot` in [`Search::names`].
const BOOT: usize = 1;

/// Searches the remaining sources of a share. Returns whether the search has ended, as `look` defines it. Fails
/// only if the share is lost or there is no memory.
#[inline(never)]
fn search<'m, B: Board>(
    mount: &'m Mount<B>,
    choices: &mut Choices<'m, B>,
    mut look: Look<'_>,
    arena: &mut Arena<'m>,
) -> Result<bool, Failed> {
    // The pattern may have the tag of the share as its prefix.
    look.wanted = look.wanted.map(|wanted| {
        let named = wanted.strip_prefix(mount.tag().as_bytes());
        named
            .and_then(|rest| rest.strip_prefix(b":"))
            .unwrap_or(wanted)
    });
    let mut search = Search {
        mount,
        arena,
        choices,
        look,
        first: 0,
        found: false,
        boot: None,
        environment: None,
        names: [None, None],
    };
    search.run()
}

impl<'m, B: Board> Search<'_, 'm, B> {
    fn run(&mut self) -> Result<bool, Failed> {
        while let Some(source) = SOURCES.get(self.choices.source) {
            let kind = source.kind();
            let other = self.choices.kind.is_some_and(|first| first != kind);
            if other && !self.look.fallback {
                self.choices.source += 1;
                continue;
            }
            (self.first, self.found) = (self.choices.list.len(), false);
            let timeout = self.choices.timeout;
            let looked = match source {
                Source::Bls(places) => self.bls(places),
                Source::Extlinux(directory, names) => self.extlinux(directory, names),
                Source::Conventional(directory) => self.conventional(directory),
                Source::Modules(directory) => self.modules(directory),
            };
            if looked.is_err() {
                self.choices.list.truncate(self.first);
            }
            looked?;
            self.choices.source += 1;
            let own = &self.choices.list[self.first..];
            let wanted = self.look.wanted;
            let matches = |own: &Listed<'_, B>| wanted.is_none_or(|w| own.fit(w) != Fit::None);
            let is_match = own.iter().any(matches);
            // The timeout of the menu is that of the source of the first entry.
            if self.first > 0 || !is_match {
                self.choices.timeout = timeout;
            }
            if is_match || (self.found && wanted.is_none()) {
                self.choices.kind.get_or_insert(kind);
            }
            if is_match && !self.look.all {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds an entry to the list if it is not full.
    fn push(&mut self, id: &'m [u8], file: &'m [u8], content: Content<'m>) {
        let choice = Choice { id, file, content };
        let mount = self.mount;
        _ = self.choices.list.push(Listed { mount, choice });
    }

    /// How many more entries of entry files fit into the list.
    fn room(&self) -> usize {
        let conventional =
            |listed: &&Listed<'m, B>| matches!(listed.choice.content, Content::Conventional { .. });
        let taken = self.choices.list.iter().filter(|l| !conventional(l));
        MAX_ENTRIES.saturating_sub(taken.count())
    }

    /// The directory `/boot`, if it exists.
    fn boot(&mut self) -> Result<Option<&BoardDir<'m, B>>, Failed> {
        if self.boot.is_none() {
            let opened = self.mount.open_dir("/boot");
            self.boot = Some(self.there(b"/boot", opened)?);
        }
        Ok(self.boot.as_ref().and_then(Option::as_ref))
    }

    /// Converts the result of opening `path`: `None` if it does not exist. Any other error is reported.
    fn there<T>(&self, path: &[u8], opened: Result<T, Error>) -> Result<Option<T>, Failed> {
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => self.report(path, error).map(|()| None),
        }
    }

    /// Opens a directory that may not exist.
    fn open_dir(&mut self, path: &[u8]) -> Result<Option<BoardDir<'m, B>>, Failed> {
        let name = path.strip_prefix(b"/boot/");
        let opened = match name.filter(|name| !name.contains(&b'/')) {
            Some(name) => match self.boot()? {
                None => return Ok(None),
                Some(boot) => match boot.open_dir(name) {
                    // It may be a link: `Dir::open_dir` does not follow links.
                    Err(Error::NotADirectory) => self.mount.open_dir(path),
                    opened => opened,
                },
            },
            None => self.mount.open_dir(path),
        };
        self.there(path, opened)
    }

    /// The names in the share's root or in `/boot`, which is listed the first time; `None` if the directory does
    /// not exist or cannot be listed.
    fn names(&mut self, which: usize) -> Result<Option<&Names>, Failed> {
        if self.names[which].is_none() {
            let mut names = Names {
                found: 0,
                conventional: Conventional::default(),
            };
            for _look in 0..2 {
                let listed = self.list(which, &mut |name, file_type| {
                    let known = NAMES.iter().position(|known| *known == name);
                    names.found |= known.map_or(0, |bit| 1 << bit);
                    if may_be_file(file_type) {
                        names.conventional.consider(name);
                    }
                })?;
                if !listed {
                    return Ok(None);
                }
                if !names.conventional.look_again() {
                    break;
                }
            }
            self.names[which] = Some(names);
        }
        Ok(self.names[which].as_ref())
    }

    /// Calls `each` for the entries of the share's root or of `/boot`. Returns whether it could be listed.
    fn list(
        &mut self,
        which: usize,
        each: &mut dyn FnMut(&[u8], Option<FileType>),
    ) -> Result<bool, Failed> {
        let mount = self.mount;
        let (path, root);
        let dir = if which == ROOT {
            path = "/";
            root = mount.open_dir(path);
            root.as_ref().map_err(|error| *error)
        } else {
            path = "/boot";
            self.boot()?.ok_or(Error::NotFound)
        };
        let listed = dir.and_then(|dir| list::<B>(dir, each));
        Ok(self.there(path.as_bytes(), listed)?.is_some())
    }

    /// Whether `path` may exist, according to the names in the share's root and in `/boot`.
    fn may_be_at(&mut self, path: &[u8]) -> Result<bool, Failed> {
        let mut parts = path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty());
        let first = parts.next().unwrap_or_default();
        if !self.has(ROOT, first)? {
            return Ok(false);
        }
        match parts.next() {
            Some(second) if first == b"boot" => self.has(BOOT, second),
            _ => Ok(true),
        }
    }

    /// Whether a directory has the name `name`; also true if it cannot be listed.
    fn has(&mut self, which: usize, name: &[u8]) -> Result<bool, Failed> {
        if name.is_empty() {
            return Ok(true);
        }
        let bit = NAMES.iter().position(|known| *known == name);
        let names = self.names(which)?;
        Ok(names.is_none_or(|names| bit.is_none_or(|bit| names.found & 1 << bit != 0)))
    }

    /// Opens a file by its path if `opened`, the result of opening it in a directory, failed at a link:
    /// `Dir::open_file` does not follow links.
    fn followed(
        &self,
        path: &[u8],
        opened: Result<BoardFile<'m, B>, Error>,
    ) -> Result<BoardFile<'m, B>, Error> {
        match opened {
            Err(Error::TooManyLinks) => self.mount.open(path),
            opened => opened,
        }
    }

    /// Reads a text file of at most `limit` bytes that may not exist.
    fn text(
        &mut self,
        path: &[u8],
        opened: Result<BoardFile<'m, B>, Error>,
        limit: usize,
    ) -> Result<Option<&'m [u8]>, Failed> {
        let opened = self.followed(path, opened);
        let Some(file) = self.there(path, opened)? else {
            return Ok(None);
        };
        // Some file systems do not report the size of their files.
        let size = file.metadata().len().clamp(4096, limit as u64) as usize;
        // One byte more, to detect a longer file.
        let memory = self.take(size + 1)?;
        let size = self.read(path, Ok(file), memory)?;
        let memory: &'m [u8] = memory;
        Ok(size.map(|size| &memory[..size]))
    }

    /// Reads a file and returns its size; `None` if that failed or the file does not fit.
    fn read(
        &self,
        path: &[u8],
        opened: Result<BoardFile<'m, B>, Error>,
        memory: &mut [u8],
    ) -> Result<Option<usize>, Failed> {
        let read = opened.and_then(|file| file.read_at(0, memory));
        match read {
            Ok(size) if size < memory.len() => Ok(Some(size)),
            Ok(size) => {
                let error = format_args!("it has {size} bytes or more; make it shorter");
                failure(&self.mount.shown(path), &error);
                Ok(None)
            }
            // The name exists in the directory, so it is a dangling link.
            Err(Error::NotFound) => {
                failure(&self.mount.shown(path), &Error::NotFound);
                Ok(None)
            }
            Err(error) => self.report(path, error).map(|()| None),
        }
    }

    /// Reports an error of the file or directory at `path`, unless it does not exist. Fails only if the share is
    /// lost, which ends the search.
    fn report(&self, path: &[u8], error: Error) -> Result<(), Failed> {
        if !matches!(error, Error::NotFound | Error::NotADirectory) {
            failure(&self.mount.shown(path), &error);
        }
        if self.mount.is_connected() {
            Ok(())
        } else {
            Err(Failed)
        }
    }

    /// Allocates memory that is kept as long as the entries.
    fn take(&mut self, size: usize) -> Result<&'m mut [u8], Failed> {
        let request = Request {
            side: Side::High,
            ..Request::new("list of boot entries", size as u64)
        };
        match self.arena.take(&request) {
            Ok(block) => Ok(&mut block.bytes[..size]),
            Err(error) => {
                log::error!("{error}");
                Err(Failed)
            }
        }
    }

    fn keep(&mut self, text: &[u8]) -> Result<&'m [u8], Failed> {
        let kept = self.take(text.len())?;
        kept.copy_from_slice(text);
        Ok(kept)
    }
}

/// Calls `each` for the entries of a directory.
fn list<B: Board>(
    dir: &BoardDir<'_, B>,
    each: &mut dyn FnMut(&[u8], Option<FileType>),
) -> Result<(), Error> {
    for entry in dir.read_dir()? {
        let entry = entry?;
        each(entry.file_name(), entry.file_type());
    }
    Ok(())
}

/// Whether a directory entry may be a file, according to its type.
fn may_be_file(file_type: Option<FileType>) -> bool {
    matches!(file_type, None | Some(FileType::File | FileType::Symlink))
}

/// The path of a directory without a trailing slash.
fn before_slash(directory: &str) -> &str {
    directory.trim_end_matches('/')
}

/// Warns of entries that do not fit into the list.
fn warn_left_out(prefix: &dyn core::fmt::Display, path: &[u8], count: usize) {
    log::warn!(
        "{prefix}{} has more than {MAX_ENTRIES} entries: {count} of them are left out; \
         bootshare.entry= finds each",
        Text(path)
    );
}
