//! The search for boot entries in one share: where each kind of them may be.
//!
//! The first [`SOURCES`] are asked for by their paths, which takes most directories the fewest requests.
//! For the others the share's root and `/boot` are listed once, and only what is in the lists is asked
//! for.

mod bls;
mod conventional;
mod extlinux;

use super::{
    Board, Failed,
    arena::Arena,
    choose::{Choice, Choices, Kind, Listed, Look, MAX_ENTRIES, Says},
    console::{Text, failure},
    shares::{BoardDir, BoardFile, Mount},
};
use crate::{
    Error, FileType,
    boot::{
        bls::Fit,
        conventional::Conventional,
        memory::{Request, Side},
    },
};

/// Where entries are looked for.
enum Source {
    /// Those of the Boot Loader Specification, of all these places together.
    Bls(&'static [bls::Place]),
    /// An `extlinux.conf`: its directory, and names for it.
    Extlinux(&'static str, &'static [&'static str]),
    /// Files with conventional names in a directory.
    Conventional(&'static str),
    /// The kernel of a package in a directory with one for each version.
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

/// How many of [`SOURCES`] are asked for by their paths.
const DIRECT: usize = 4;

/// How many sources of conventional names there are, with an entry each.
pub(super) const MAX_CONVENTIONAL: usize = 4;

const SOURCES: [Source; DIRECT + 8 + MAX_CONVENTIONAL] = [
    Source::Bls(&[bls::Place::new("/", "loader")]),
    Source::Extlinux("/extlinux", &[extlinux::CONF]),
    Source::Extlinux("/boot/extlinux", &[extlinux::CONF]),
    Source::Extlinux("/", &[extlinux::CONF]),
    // A system's root, with the boot loader's file systems in it. FAT may show names in upper case.
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

/// Names at the share's root and in `/boot` that say whether there is something to look at.
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

/// What a directory was seen to have.
struct Names {
    /// A bit for each of [`NAMES`].
    found: u16,
    conventional: Conventional,
}

/// Looks through one share.
struct Search<'g, 'm, B: Board> {
    mount: &'m Mount<B>,
    arena: &'g mut Arena<'m>,
    choices: &'g mut Choices<'m, B>,
    look: Look<'g>,
    /// Where the entries of the source start.
    first: usize,
    /// Whether the source has a file of an entry, even if it can't be read.
    found: bool,
    /// `/boot`, if there is one, once it was looked for.
    boot: Option<Option<BoardDir<'m, B>>>,
    /// GRUB's environment block of the file system with this root, once it was wanted.
    environment: Option<(&'static str, &'m [u8])>,
    /// What is in the share's root, and in `/boot`, once they were listed.
    names: [Option<Names>; 2],
}

/// Where the share's root is in [`Search::names`].
const ROOT: usize = 0;
/// Where `/boot` is.
const BOOT: usize = 1;

/// Looks at the share's sources that are left; whether it has come as far as `look` says. It fails
/// only when the share is lost or there is no memory.
#[inline(never)] // So that the large frames of the boot flow do not add up.
pub(super) fn run<'m, B: Board>(
    mount: &'m Mount<B>,
    choices: &mut Choices<'m, B>,
    mut look: Look<'_>,
    arena: &mut Arena<'m>,
) -> Result<bool, Failed> {
    // The share's name may stand before that of the entry.
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
            // A menu waits as long as the file says that its entries are from.
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

    /// Lists an entry, if there is room.
    fn push(&mut self, id: &'m [u8], file: &'m [u8], says: Says<'m>) {
        let choice = Choice { id, file, says };
        let mount = self.mount;
        _ = self.choices.list.push(Listed { mount, choice });
    }

    /// How many more entries there may be, without conventional names.
    fn room(&self) -> usize {
        let conventional =
            |listed: &&Listed<'m, B>| matches!(listed.choice.says, Says::Conventional { .. });
        let taken = self.choices.list.iter().filter(|l| !conventional(l));
        MAX_ENTRIES.saturating_sub(taken.count())
    }

    /// `/boot`, if there is one.
    fn boot(&mut self) -> Result<Option<&BoardDir<'m, B>>, Failed> {
        if self.boot.is_none() {
            let opened = self.mount.open_dir("/boot");
            self.boot = Some(self.there(b"/boot", opened)?);
        }
        Ok(self.boot.as_ref().and_then(Option::as_ref))
    }

    /// What is there at `path`; an error that says anything else than that nothing is, is reported.
    fn there<T>(&self, path: &[u8], opened: Result<T, Error>) -> Result<Option<T>, Failed> {
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => self.report(path, error).map(|()| None),
        }
    }

    /// A directory that need not be there.
    fn open_dir(&mut self, path: &[u8]) -> Result<Option<BoardDir<'m, B>>, Failed> {
        let name = path.strip_prefix(b"/boot/");
        let opened = match name.filter(|name| !name.contains(&b'/')) {
            Some(name) => match self.boot()? {
                None => return Ok(None),
                Some(boot) => match boot.open_dir(name) {
                    // It may be a link, which a directory does not follow.
                    Err(Error::NotADirectory) => self.mount.open_dir(path),
                    opened => opened,
                },
            },
            None => self.mount.open_dir(path),
        };
        self.there(path, opened)
    }

    /// What was seen in the share's root or in `/boot`, which are listed for it; `None` if there is no
    /// such directory, or it can't be listed.
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

    /// Shows `each` what is in the share's root or in `/boot`; whether that could be listed.
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

    /// Whether something may be at `path`, as far as the lists of the share's root and of `/boot` say.
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

    /// Whether a directory's list has `name`; also if there is no list.
    fn has(&mut self, which: usize, name: &[u8]) -> Result<bool, Failed> {
        if name.is_empty() {
            return Ok(true);
        }
        let bit = NAMES.iter().position(|known| *known == name);
        let names = self.names(which)?;
        Ok(names.is_none_or(|names| bit.is_none_or(|bit| names.found & 1 << bit != 0)))
    }

    /// A file of a directory, which follows no links: where one is in the way, by its path.
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

    /// The text of a file that need not be there, of at most `limit` bytes.
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
        // Some file systems do not say how long their files are.
        let size = file.metadata().len().clamp(4096, limit as u64) as usize;
        // One more, to see whether it is longer.
        let memory = self.take(size + 1)?;
        let size = self.read(path, Ok(file), memory)?;
        let memory: &'m [u8] = memory;
        Ok(size.map(|size| &memory[..size]))
    }

    /// Reads a file; its size, unless that failed or it does not fit.
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
            // The directory has it: it is a link that leads nowhere.
            Err(Error::NotFound) => {
                failure(&self.mount.shown(path), &Error::NotFound);
                Ok(None)
            }
            Err(error) => self.report(path, error).map(|()| None),
        }
    }

    /// Reports an error of the file or directory at `path`, unless it is just not there. The search
    /// goes on unless the share is lost.
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

    /// Memory, which is kept as long as the entries are.
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

/// Shows `each` what is in a directory.
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

/// Whether a directory's entry may be a file, as far as the directory says.
fn may_be_file(file_type: Option<FileType>) -> bool {
    matches!(file_type, None | Some(FileType::File | FileType::Symlink))
}

/// What a directory is called before a `/` and a name.
fn before_slash(directory: &str) -> &str {
    directory.trim_end_matches('/')
}

/// Warns of entries that there was no room for.
fn warn_left_out(prefix: &dyn core::fmt::Display, path: &[u8], count: usize) {
    log::warn!(
        "{prefix}{} has more than {MAX_ENTRIES} entries: {count} of them are left out; \
         bootshare.entry= finds each",
        Text(path)
    );
}
