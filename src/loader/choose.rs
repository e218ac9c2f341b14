//! Which boot entries the shares have, in the order in which they are tried.

use super::{
    Failed,
    arena::Arena,
    console::{self, Text, failure},
    entry::Path,
    shares::{BoardDir, BoardFile, MAX_SHARES, Mount, Shares},
};
use crate::{
    Error, FileType,
    boot::{
        bls::{self, FileName, LoaderConf, Timeout},
        conventional::{Conventional, MAX_NAME_BYTES},
        entry::{CommandLine, Entry, EntryError},
        extlinux::{self, Label},
        glob,
        image::{self, Architecture},
        memory::{Request, Side},
        uki::{OsRelease, Uki},
    },
    loader::Board,
};
use core::{cmp::Ordering, fmt};
use heapless::Vec;

/// The most entries of all shares; conventional names come on top.
const MAX_ENTRIES: usize = 64;
/// Longest configuration file, in bytes.
const MAX_FILE: usize = 16 << 10;

const LOADER: &str = "/loader";
const ENTRIES: &str = "/loader/entries";
/// Where unified kernel images are entries of their own, of type 2.
const IMAGES: &str = "/EFI/Linux";
/// Says which kind of entries [`ENTRIES`] has ("Standard-conformance Marker File").
const MARKER: &str = "entries.srel";
const LOADER_CONF: &str = "loader.conf";
const EXTLINUX_CONF: &str = "extlinux.conf";
/// Where [`EXTLINUX_CONF`] is looked for; the first one counts.
const EXTLINUX: [&str; 3] = ["/extlinux", "/boot/extlinux", "/"];
/// Where kernels lie by convention.
const CONVENTIONAL: [&str; 2] = ["/", "/boot"];

/// The most entries, those included.
pub(super) const MAX_LISTED: usize = MAX_ENTRIES + CONVENTIONAL.len() * MAX_SHARES;

/// Memory that [`gather`] wants for each share, in bytes: for the entries it keeps and one more, the
/// other files it looks for, and the names of a kernel and an initrd in each directory.
const SCRATCH_BYTES: usize = (MAX_ENTRIES + 1) * (MAX_NAME_BYTES + MAX_FILE)
    + (2 + EXTLINUX.len()) * MAX_FILE
    + 2 * CONVENTIONAL.len() * MAX_NAME_BYTES;

/// What may be booted: one entry, and the share that its files come from.
pub(super) struct Listed<'m, B: Board> {
    pub mount: &'m Mount<B>,
    pub choice: Choice<'m>,
}

impl<'m, B: Board> Listed<'m, B> {
    /// It, as lists show it.
    pub const fn described(&'m self) -> Described<'m, B> {
        Described(self)
    }

    /// Whether `pattern` is for it, with the share's name before it or without.
    fn matches(&self, pattern: &[u8]) -> bool {
        let named = pattern.strip_prefix(self.mount.tag().as_bytes());
        let named = named.and_then(|rest| rest.strip_prefix(b":"));
        self.choice.matches(pattern) || named.is_some_and(|rest| self.choice.matches(rest))
    }
}

/// An entry as lists show it: id, title and kernel, or why it can't be started.
pub(super) struct Described<'a, B: Board>(&'a Listed<'a, B>);

impl<B: Board> fmt::Display for Described<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed { mount, choice } = self.0;
        write!(f, "{}: ", Text(choice.id()))?;
        match choice.entry(B::ARCHITECTURE) {
            Ok(entry) => {
                let kernel = Path::join(entry.directory, entry.kernel);
                let kernel = mount.shown(&kernel);
                match choice.title() {
                    b"" => kernel.fmt(f),
                    title => write!(f, "{} ({kernel})", Text(title)),
                }
            }
            Err(error) if error.is_hidden() => write!(f, "passed over: {error}"),
            Err(error) => error.fmt(f),
        }
    }
}

/// What stands before the words about it.
impl<B: Board> fmt::Display for Listed<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.mount.prefix(), self.choice)
    }
}

/// Where an entry was found.
#[derive(Clone, Copy)]
pub(super) enum Choice<'m> {
    /// A file of [`ENTRIES`], or one of [`IMAGES`] as an entry of type 1 would name it.
    Bls {
        /// The file's name.
        name: &'m [u8],
        text: &'m [u8],
    },
    /// A label of `extlinux.conf`.
    Extlinux {
        /// Where that lies.
        directory: &'static str,
        config: &'m [u8],
        /// Which of its labels.
        index: usize,
    },
    /// Files with conventional names.
    Conventional {
        /// Where they lie.
        directory: &'static str,
        kernel: &'m [u8],
        initrd: Option<&'m [u8]>,
        cmdline: Option<&'static [u8]>,
    },
}

impl<'m> Choice<'m> {
    /// Its name, for `bootshare.entry`.
    pub fn id(&self) -> &'m [u8] {
        match *self {
            Self::Bls { name, .. } => FileName::parse(name).map_or(name, |name| name.id),
            Self::Extlinux { .. } => self.label().name,
            Self::Conventional { kernel, .. } => kernel,
        }
    }

    /// Its name for people; may be empty.
    pub fn title(&self) -> &'m [u8] {
        match *self {
            Self::Bls { text, .. } => bls::Entry::parse(text).title,
            Self::Extlinux { .. } => self.label().menu_label,
            Self::Conventional { .. } => b"",
        }
    }

    /// What it asks for.
    pub fn entry(&self, machine: Architecture) -> Result<Entry<'m>, EntryError<'m>> {
        match *self {
            Self::Bls { text, .. } => Entry::from_bls(&bls::Entry::parse(text), machine),
            Self::Extlinux { directory, .. } => {
                Entry::from_label(directory, &self.label(), machine)
            }
            Self::Conventional {
                directory,
                kernel,
                initrd,
                cmdline,
            } => Ok(Entry {
                directory,
                kernel,
                initrds: initrd.into_iter().collect(),
                command_line: cmdline.map_or(CommandLine::None, CommandLine::File),
                device_tree: None,
            }),
        }
    }

    /// The directory that U-Boot would look for a device tree in.
    pub fn fdtdir(&self) -> &'m [u8] {
        self.label().fdtdir
    }

    /// What its label says, if it has one.
    fn label(&self) -> Label<'m> {
        match *self {
            Self::Extlinux { config, index, .. } => {
                let mut labels = extlinux::Config::parse(config).labels();
                labels.nth(index).unwrap_or_default()
            }
            _ => Label::default(),
        }
    }

    /// Whether `pattern` is for it: as its id or its file's name, with its ending or without.
    fn matches(&self, pattern: &[u8]) -> bool {
        let ending = [&b".conf"[..], b".efi"];
        let mut ids = ending.iter().filter_map(|end| pattern.strip_suffix(*end));
        let id = ids.next().unwrap_or(pattern);
        glob::matches(id, self.id())
            || matches!(self, Self::Bls { name, .. } if glob::matches(pattern, name))
    }
}

/// What stands before the words about an entry: the file it is from, and nothing for those that are
/// kernels themselves.
impl fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bls { name, .. } if name.ends_with(b".efi") => Ok(()),
            Self::Bls { name, .. } => write!(f, "{ENTRIES}/{}: ", Text(name)),
            Self::Extlinux { directory, .. } => write!(
                f,
                "{}/{EXTLINUX_CONF}: label {}: ",
                directory.trim_end_matches('/'),
                Text(self.id())
            ),
            Self::Conventional { .. } => Ok(()),
        }
    }
}

/// The entries of all shares, the one to try first at the start.
pub(super) struct Choices<'m, B: Board> {
    pub list: Vec<Listed<'m, B>, MAX_LISTED>,
    /// What the first file that says something about it says about the menu.
    pub timeout: Option<Timeout>,
    /// How many errors had been reported before.
    pub errors: u32,
    /// The share that is looked at next, by its place in the list of those that are mounted.
    share: usize,
    /// Which of its sources is.
    source: usize,
}

impl<B: Board> Choices<'_, B> {
    /// None yet.
    pub fn new() -> Self {
        Self {
            list: Vec::new(),
            timeout: None,
            errors: console::errors(),
            share: 0,
            source: 0,
        }
    }

    fn next_share(&mut self) {
        self.share += 1;
        self.source = 0;
    }

    /// Leaves those whose id matches `wanted`, which `option` asked for; reports it if there are
    /// none.
    pub fn keep(&mut self, option: &str, wanted: &[u8]) -> Result<(), Failed> {
        if !self.list.iter().any(|listed| listed.matches(wanted)) {
            log::error!(
                "{option}{}: no entry has this name; there is {}",
                Text(wanted),
                Ids(&self.list)
            );
            return Err(Failed);
        }
        self.list.retain(|listed| listed.matches(wanted));
        Ok(())
    }
}

/// How far entries are looked for.
#[derive(Clone, Copy)]
pub(super) enum Until<'a> {
    /// Up to the end of the first source that has one, of this name if there is one.
    Found(Option<&'a [u8]>),
    /// Up to the last source.
    End,
}

/// Adds the entries of those sources to `choices` that were not looked at yet, share by share, with
/// what they say in memory of `arena`.
///
/// A file that can't be read is reported and left out, and so is a share that is lost and does not
/// come back; it fails only without memory.
#[inline(never)] // So that the large frames of the boot flow do not add up.
pub(super) fn gather<'m, B: Board>(
    shares: &'m Shares<B>,
    choices: &mut Choices<'m, B>,
    until: Until<'_>,
    arena: &mut Arena<'m>,
) -> Result<(), Failed> {
    let request = Request {
        side: Side::High,
        ..Request::new("list of boot entries", SCRATCH_BYTES as u64)
    };
    while let Some(mount) = shares.mounted.get(choices.share) {
        // It was given up.
        if !mount.is_connected() {
            choices.next_share();
            continue;
        }
        let scratch = arena.take(&request).map_err(|error| {
            log::error!("{error}");
            Failed
        })?;
        let mut gatherer = Gatherer {
            mount,
            scratch: scratch.bytes,
            first: 0,
            choices,
        };
        match gatherer.run(until) {
            Ok(true) => return Ok(()),
            Ok(false) => choices.next_share(),
            Err(lost) if mount.again(lost).is_err() => choices.next_share(),
            Err(_) => {}
        }
    }
    Ok(())
}

/// Ids, for an error line.
struct Ids<'a, 'm, B: Board>(&'a [Listed<'m, B>]);

impl<B: Board> fmt::Display for Ids<'_, '_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, listed) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            Text(listed.choice.id()).fmt(f)?;
        }
        Ok(())
    }
}

/// Looks through one share.
struct Gatherer<'g, 'm, B: Board> {
    mount: &'m Mount<B>,
    scratch: &'m mut [u8],
    /// Where the entries of the source start.
    first: usize,
    choices: &'g mut Choices<'m, B>,
}

/// What it means that a file is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsFine,
    /// A directory has it: it is a link that leads nowhere.
    IsAnError,
}

/// An entry's file while there may be better ones: its memory is used again then.
struct Candidate<'m> {
    /// The file's name, then its text.
    memory: &'m mut [u8],
    name: usize,
    text: usize,
}

/// The best entries so far, best first.
struct Sorted<'m> {
    list: Vec<Candidate<'m>, MAX_ENTRIES>,
    /// How many there may be.
    room: usize,
    /// How many there were that are not among them.
    left_out: u32,
    /// Memory for one more.
    free: Option<&'m mut [u8]>,
}

impl<'m> Sorted<'m> {
    fn insert(&mut self, candidate: Candidate<'m>) {
        let place = self
            .list
            .partition_point(|other| other.compare(&candidate).is_lt());
        if self.list.len() == self.room {
            self.left_out += 1;
            if place == self.room {
                self.free = Some(candidate.memory);
                return;
            }
            self.free = self.list.pop().map(|last| last.memory);
        }
        _ = self.list.insert(place, candidate);
    }
}

impl Candidate<'_> {
    fn parse(&self) -> Option<(FileName<'_>, bls::Entry<'_>)> {
        let (name, rest) = self.memory.split_at(self.name);
        Some((
            FileName::parse(name)?,
            bls::Entry::parse(&rest[..self.text]),
        ))
    }

    /// The order in which entries are tried.
    fn compare(&self, other: &Self) -> Ordering {
        match (self.parse(), other.parse()) {
            (Some(a), Some(b)) => bls::compare((&a.0, &a.1), (&b.0, &b.1)),
            // There is none: its name was looked at before.
            _ => Ordering::Equal,
        }
    }
}

impl<'m, B: Board> Gatherer<'_, 'm, B> {
    /// Looks at the share's sources that are left; whether it has come as far as `until`. It fails
    /// only when the share is lost.
    fn run(&mut self, until: Until<'_>) -> Result<bool, Failed> {
        loop {
            self.first = self.choices.list.len();
            let looked = match self.choices.source {
                0 => self.bls(),
                1 => self.extlinux(),
                source => match CONVENTIONAL.get(source - 2) {
                    Some(directory) => self.conventional(directory),
                    None => return Ok(false),
                },
            };
            if looked.is_err() {
                self.choices.list.truncate(self.first);
            }
            looked?;
            self.choices.source += 1;
            let own = &self.choices.list[self.first..];
            if let Until::Found(name) = until
                && own
                    .iter()
                    .any(|own| name.is_none_or(|name| own.matches(name)))
            {
                return Ok(true);
            }
        }
    }

    /// Lists an entry; whether there was room.
    fn push(&mut self, choice: Choice<'m>) -> bool {
        let mount = self.mount;
        self.choices.list.push(Listed { mount, choice }).is_ok()
    }

    /// How many more entries there may be, without conventional names.
    fn room(&self) -> usize {
        let conventional =
            |listed: &&Listed<'m, B>| matches!(listed.choice, Choice::Conventional { .. });
        let taken = self.choices.list.iter().filter(|l| !conventional(l));
        MAX_ENTRIES.saturating_sub(taken.count())
    }

    /// Boot Loader Specification, both types.
    fn bls(&mut self) -> Result<(), Failed> {
        let room = self.room();
        let mut sorted = Sorted {
            list: Vec::new(),
            room,
            left_out: 0,
            free: None,
        };
        // Looked up once, for the three that are in it.
        let loader = self.open_dir(LOADER)?;
        if let Some(loader) = &loader {
            let kind = self.file(LOADER, MARKER, loader.open_file(MARKER))?;
            match kind.map(<[u8]>::trim_ascii) {
                None | Some(b"type1") => match loader.open_dir("entries") {
                    Ok(entries) => self.candidates(ENTRIES, &entries, &mut sorted)?,
                    // It may be a link, which a directory does not follow.
                    Err(Error::NotADirectory) => self.candidates_at(ENTRIES, &mut sorted)?,
                    Err(error) => self.report(ENTRIES.as_bytes(), error)?,
                },
                Some(kind) => log::warn!(
                    "{}{LOADER}/{MARKER} says {}, not type1: {ENTRIES} is left out",
                    self.mount.prefix(),
                    Text(kind)
                ),
            }
        }
        self.candidates_at(IMAGES, &mut sorted)?;
        if sorted.left_out > 0 {
            log::warn!(
                "{}{ENTRIES} has more than {room} entries: the last {} are left out",
                self.mount.prefix(),
                sorted.left_out
            );
        }
        for Candidate { memory, name, text } in sorted.list {
            let (name, rest) = memory.split_at(name);
            let text = &rest[..text];
            self.push(Choice::Bls { name, text });
        }
        match loader {
            Some(loader) if self.choices.list.len() > self.first => self.loader_conf(&loader),
            _ => Ok(()),
        }
    }

    /// A directory that need not be there.
    fn open_dir(&self, path: &'static str) -> Result<Option<BoardDir<'m, B>>, Failed> {
        match self.mount.open_dir(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) => self.report(path.as_bytes(), error).map(|()| None),
        }
    }

    /// Sorts the entries of a directory in that need not be there.
    fn candidates_at(
        &mut self,
        directory: &'static str,
        sorted: &mut Sorted<'m>,
    ) -> Result<(), Failed> {
        match self.open_dir(directory)? {
            Some(dir) => self.candidates(directory, &dir, sorted),
            None => Ok(()),
        }
    }

    /// Sorts the entries of a directory in.
    fn candidates(
        &mut self,
        directory: &'static str,
        dir: &BoardDir<'m, B>,
        sorted: &mut Sorted<'m>,
    ) -> Result<(), Failed> {
        let entries = match dir.read_dir() {
            Ok(entries) => entries,
            Err(error) => return self.report(directory.as_bytes(), error),
        };
        let ending: &[u8] = match directory {
            IMAGES => b".efi",
            _ => b".conf",
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.report(directory.as_bytes(), error)?;
                    break;
                }
            };
            let name = entry.file_name();
            let is_entry = name.ends_with(ending) && FileName::parse(name).is_some();
            if !is_entry || !may_be_file(entry.file_type()) {
                continue;
            }
            let free = sorted.free.take();
            let memory = free.or_else(|| self.take(MAX_NAME_BYTES + MAX_FILE));
            // With all of the scratch memory there is enough of it.
            let Some(memory) = memory else { break };
            let (name_memory, text_memory) = memory.split_at_mut(name.len());
            name_memory.copy_from_slice(name);
            let path = Path::join(directory, name);
            let opened = self.followed(&path, dir.open_file(name));
            let text = match directory {
                IMAGES => self.image(&path, opened, text_memory)?,
                _ => self.read(&path, opened, text_memory, Missing::IsAnError)?,
            };
            match text {
                Some(text) => sorted.insert(Candidate {
                    memory,
                    name: name.len(),
                    text,
                }),
                None => sorted.free = Some(memory),
            }
        }
        Ok(())
    }

    /// Writes the entry that a unified kernel image is; its size, unless that failed.
    #[inline(never)] // As above.
    fn image(
        &self,
        path: &[u8],
        opened: Result<BoardFile<'m, B>, Error>,
        text: &mut [u8],
    ) -> Result<Option<usize>, Failed> {
        let mut buffer = [0; image::HEAD_BYTES];
        let read = opened.and_then(|file| {
            let size = file.read_at(0, &mut buffer)?;
            Ok((Uki::parse(&buffer[..size], file.metadata().len()), file))
        });
        let (uki, file) = match read {
            Ok((Ok(uki), file)) => (uki, file),
            Ok((Err(error), _)) => {
                failure(&self.mount.shown(path), &error);
                return Ok(None);
            }
            Err(error) => return self.report(path, error).map(|()| None),
        };
        let release = uki.os_release.map_or(Ok(0), |part| {
            let size = part.size().min(buffer.len() as u64) as usize;
            file.read_at(part.start, &mut buffer[..size])
        });
        match release {
            Ok(size) => {
                let release = OsRelease::parse(&buffer[..size]);
                Ok(release.write_entry(uki.architecture, &[path], text))
            }
            Err(error) => self.report(path, error).map(|()| None),
        }
    }

    /// Puts the entry first that `loader.conf` wants.
    fn loader_conf(&mut self, loader: &BoardDir<'m, B>) -> Result<(), Failed> {
        let text = self.file(LOADER, LOADER_CONF, loader.open_file(LOADER_CONF))?;
        let text = text.unwrap_or_default();
        let conf = LoaderConf::parse(text);
        self.choices.timeout = self.choices.timeout.or(conf.timeout);
        let Some(default) = conf.default else {
            return Ok(());
        };
        if default.starts_with(b"@") {
            log::warn!(
                "{}{LOADER}/{LOADER_CONF}: default {}: nothing is stored between boots; name an entry",
                self.mount.prefix(),
                Text(default)
            );
        } else if !self.prefer(|choice| choice.matches(default)) {
            log::warn!(
                "{}{LOADER}/{LOADER_CONF}: default {}: no entry has this name",
                self.mount.prefix(),
                Text(default)
            );
        }
        Ok(())
    }

    /// Moves the first of the source's choices that `is_preferred` to their start.
    fn prefer(&mut self, is_preferred: impl Fn(&Choice<'m>) -> bool) -> bool {
        let own = &mut self.choices.list[self.first..];
        let found = own.iter().position(|listed| is_preferred(&listed.choice));
        if let Some(found) = found {
            own[..=found].rotate_right(1);
        }
        found.is_some()
    }

    fn extlinux(&mut self) -> Result<(), Failed> {
        // The first file counts, as on a disk that U-Boot looks at.
        for directory in EXTLINUX {
            let path = Path::join(directory, EXTLINUX_CONF.as_bytes());
            let opened = self.mount.open(&path);
            let Some(config) = self.file(directory, EXTLINUX_CONF, opened)? else {
                continue;
            };
            let first = self.choices.list.len();
            let parsed = extlinux::Config::parse(config);
            self.choices.timeout = self.choices.timeout.or(parsed.timeout());
            let labels = parsed.labels().count();
            let room = self.room();
            if labels > room {
                log::warn!(
                    "{}{path} and {ENTRIES} have more than {MAX_ENTRIES} entries: \
                     the last ones are left out",
                    self.mount.prefix()
                );
            }
            for index in 0..labels.min(room) {
                self.push(Choice::Extlinux {
                    directory,
                    config,
                    index,
                });
            }
            let default = parsed.default_label().unwrap_or(0);
            if let Some(labels) = self.choices.list.get_mut(first..)
                && default < labels.len()
            {
                labels[..=default].rotate_right(1);
            }
            return Ok(());
        }
        Ok(())
    }

    /// What is to be booted in `directory`, by the conventional names.
    #[inline(never)] // As above.
    fn conventional(&mut self, directory: &'static str) -> Result<(), Failed> {
        let names = match self.look_in(directory) {
            Ok(names) => names,
            Err(error) => return self.report(directory.as_bytes(), error),
        };
        let initrd = names.initrd();
        let kernel = names.kernel().and_then(|kernel| self.keep(kernel));
        if let Some(kernel) = kernel {
            let initrd = initrd.and_then(|name| self.keep(&name));
            self.push(Choice::Conventional {
                directory,
                kernel,
                initrd,
                cmdline: names.cmdline(),
            });
        }
        Ok(())
    }

    fn look_in(&self, directory: &str) -> Result<Conventional, Error> {
        let mut names = Conventional::default();
        for _look in 0..2 {
            for entry in self.mount.read_dir(directory)? {
                let entry = entry?;
                if may_be_file(entry.file_type()) {
                    names.consider(entry.file_name());
                }
            }
            if !names.look_again() {
                break;
            }
        }
        Ok(names)
    }

    /// The text of a file that need not be there.
    fn file(
        &mut self,
        directory: &str,
        name: &str,
        opened: Result<BoardFile<'m, B>, Error>,
    ) -> Result<Option<&'m [u8]>, Failed> {
        let path = Path::join(directory, name.as_bytes());
        let opened = self.followed(&path, opened);
        let memory = match opened {
            // Most are not there: they take no memory.
            Err(Error::NotFound) => return Ok(None),
            _ => self.take(MAX_FILE),
        };
        let Some(memory) = memory else {
            return Ok(None);
        };
        let size = self.read(&path, opened, memory, Missing::IsFine)?;
        let memory: &'m [u8] = memory;
        Ok(size.map(|size| &memory[..size]))
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

    /// Reads a file; its size, unless that failed.
    fn read(
        &self,
        path: &[u8],
        opened: Result<BoardFile<'m, B>, Error>,
        memory: &mut [u8],
        missing: Missing,
    ) -> Result<Option<usize>, Failed> {
        let read = opened.and_then(|file| file.read_at(0, memory));
        match read {
            Ok(size) if size < memory.len() => Ok(Some(size)),
            Ok(size) => {
                failure(
                    &self.mount.shown(path),
                    &format_args!("it has {size} bytes or more; make it shorter"),
                );
                Ok(None)
            }
            Err(Error::NotFound) if missing == Missing::IsAnError => {
                failure(&self.mount.shown(path), &Error::NotFound);
                Ok(None)
            }
            Err(error) => self.report(path, error).map(|()| None),
        }
    }

    /// Reports an error of the file or directory at `path`, unless it is just not there. Gathering
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

    /// Bytes of the scratch memory.
    fn take(&mut self, size: usize) -> Option<&'m mut [u8]> {
        if size > self.scratch.len() {
            return None;
        }
        let (taken, rest) = core::mem::take(&mut self.scratch).split_at_mut(size);
        self.scratch = rest;
        Some(taken)
    }

    fn keep(&mut self, name: &[u8]) -> Option<&'m [u8]> {
        let kept = self.take(name.len())?;
        kept.copy_from_slice(name);
        Some(kept)
    }
}

/// Whether a directory's entry may be a file, as far as the directory says.
fn may_be_file(file_type: Option<FileType>) -> bool {
    matches!(file_type, None | Some(FileType::File | FileType::Symlink))
}
