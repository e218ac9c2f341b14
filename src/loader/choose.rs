//! Which boot entries a share has, in the order in which they are tried.

use super::{
    Failed,
    console::{Text, failure},
    entry::Path,
    shares::BoardShare,
};
use crate::{
    Error, FileType,
    boot::{
        bls::{self, FileName, LoaderConf},
        conventional::{Conventional, MAX_NAME_BYTES},
        entry::{CommandLine, Entry, EntryError},
        extlinux::{self, Label},
        glob,
        image::{self, Architecture},
        uki::{OsRelease, Uki},
    },
    loader::Board,
};
use core::{cmp::Ordering, fmt};
use heapless::Vec;

/// The most entries of a share; conventional names come on top.
const MAX_ENTRIES: usize = 64;
/// Longest configuration file, in bytes.
const MAX_FILE: usize = 16 << 10;

const ENTRIES: &str = "/loader/entries";
/// Where unified kernel images are entries of their own, of type 2.
const IMAGES: &str = "/EFI/Linux";
/// Says which kind of entries [`ENTRIES`] has ("Standard-conformance Marker File").
const MARKER: &str = "/loader/entries.srel";
const LOADER_CONF: &str = "/loader/loader.conf";
const EXTLINUX_CONF: &str = "extlinux.conf";
/// Where [`EXTLINUX_CONF`] is looked for; the first one counts.
const EXTLINUX: [&str; 3] = ["/extlinux", "/boot/extlinux", "/"];
/// Where kernels lie by convention.
const CONVENTIONAL: [&str; 2] = ["/", "/boot"];

/// Memory that [`gather`] wants, in bytes: for the entries it keeps and one more, the other files
/// it looks for, and the names of a kernel and an initrd in each directory.
pub(super) const SCRATCH_BYTES: usize = (MAX_ENTRIES + 1) * (MAX_NAME_BYTES + MAX_FILE)
    + (2 + EXTLINUX.len()) * MAX_FILE
    + 2 * CONVENTIONAL.len() * MAX_NAME_BYTES;

/// What may be booted: one entry of a share.
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

    /// Whether `pattern` is for it: as its id or its file's name, with `.conf` or without.
    fn matches(&self, pattern: &[u8]) -> bool {
        let id = pattern.strip_suffix(b".conf").unwrap_or(pattern);
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

/// The entries of a share, the one to try first at the start.
pub(super) type Choices<'m> = Vec<Choice<'m>, { MAX_ENTRIES + CONVENTIONAL.len() }>;

/// The entries of `share`. What they say is kept in `scratch`.
///
/// With `wanted`, only those whose id matches it. A file that can't be read is reported and left
/// out; it fails only when the share is lost, or when nothing matches.
#[inline(never)] // So that the large frames of the boot flow do not add up.
pub(super) fn gather<'m, B: Board>(
    share: &BoardShare<B>,
    scratch: &'m mut [u8],
    wanted: Option<&[u8]>,
) -> Result<Choices<'m>, Failed> {
    let mut gatherer = Gatherer::<B> {
        share,
        scratch,
        choices: Vec::new(),
    };
    gatherer.bls()?;
    gatherer.extlinux()?;
    for directory in CONVENTIONAL {
        gatherer.conventional(directory)?;
    }
    let mut choices = gatherer.choices;
    if let Some(wanted) = wanted
        && !choices.is_empty()
    {
        if !choices.iter().any(|choice| choice.matches(wanted)) {
            log::error!(
                "bootshare.entry={}: share {} has no entry of this name; there is {}",
                Text(wanted),
                share.tag(),
                Ids(&choices)
            );
            return Err(Failed);
        }
        choices.retain(|choice| choice.matches(wanted));
    }
    Ok(choices)
}

/// Ids, for an error line.
struct Ids<'a>(&'a [Choice<'a>]);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, choice) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            Text(choice.id()).fmt(f)?;
        }
        Ok(())
    }
}

struct Gatherer<'s, 'm, B: Board> {
    share: &'s BoardShare<B>,
    scratch: &'m mut [u8],
    choices: Choices<'m>,
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

/// The best entries so far.
#[derive(Default)]
struct Sorted<'m> {
    list: Vec<Candidate<'m>, MAX_ENTRIES>,
    /// How many there were that are not among them.
    left_out: u32,
    /// Memory for one more.
    free: Option<&'m mut [u8]>,
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
    /// Boot Loader Specification, both types.
    fn bls(&mut self) -> Result<(), Failed> {
        let mut sorted = Sorted::default();
        if let Some(kind) = self.file(MARKER)?
            && kind.trim_ascii() != b"type1"
        {
            log::warn!(
                "{MARKER} says {}, not type1: {ENTRIES} is left out",
                Text(kind)
            );
        } else {
            self.candidates(ENTRIES, &mut sorted)?;
        }
        self.candidates(IMAGES, &mut sorted)?;
        let Sorted { list, left_out, .. } = sorted;
        if left_out > 0 {
            log::warn!(
                "{ENTRIES} has more than {MAX_ENTRIES} entries: the last {left_out} are left out"
            );
        }
        for Candidate { memory, name, text } in list {
            let (name, rest) = memory.split_at(name);
            let text = &rest[..text];
            _ = self.choices.push(Choice::Bls { name, text });
        }
        self.loader_conf()
    }

    /// Sorts the entries of a directory in.
    fn candidates(&mut self, directory: &str, sorted: &mut Sorted<'m>) -> Result<(), Failed> {
        let Sorted {
            list: sorted,
            free,
            left_out,
        } = sorted;
        let entries = match self.share.read_dir(directory) {
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
            let memory = free.take().or_else(|| self.take(MAX_NAME_BYTES + MAX_FILE));
            // With all of the scratch memory there is enough of it.
            let Some(memory) = memory else { break };
            let (name_memory, text_memory) = memory.split_at_mut(name.len());
            name_memory.copy_from_slice(name);
            let path = Path::join(directory, name);
            let text = match directory {
                IMAGES => self.image(&path, text_memory)?,
                _ => self.read(&path, text_memory, Missing::IsAnError)?,
            };
            let Some(text) = text else {
                *free = Some(memory);
                continue;
            };
            let candidate = Candidate {
                memory,
                name: name.len(),
                text,
            };
            let place = sorted.partition_point(|other| other.compare(&candidate).is_lt());
            if sorted.is_full() {
                *left_out += 1;
                *free = if place == MAX_ENTRIES {
                    Some(candidate.memory)
                } else {
                    let last = sorted.pop().map(|last| last.memory);
                    _ = sorted.insert(place, candidate);
                    last
                };
            } else {
                _ = sorted.insert(place, candidate);
            }
        }
        Ok(())
    }

    /// Writes the entry that a unified kernel image is; its size, unless that failed.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    fn image(&self, path: &[u8], text: &mut [u8]) -> Result<Option<usize>, Failed> {
        let mut buffer = [0; image::HEAD_BYTES];
        let read = self.share.open(path).and_then(|file| {
            let size = file.read_at(0, &mut buffer)?;
            Ok((Uki::parse(&buffer[..size], file.metadata().len()), file))
        });
        let (uki, file) = match read {
            Ok((Ok(uki), file)) => (uki, file),
            Ok((Err(error), _)) => {
                failure(path, error);
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
    fn loader_conf(&mut self) -> Result<(), Failed> {
        if self.choices.is_empty() {
            return Ok(());
        }
        let text = self.file(LOADER_CONF)?.unwrap_or_default();
        let Some(default) = LoaderConf::parse(text).default else {
            return Ok(());
        };
        if default.starts_with(b"@") {
            log::warn!(
                "{LOADER_CONF}: default {}: nothing is stored between boots; name an entry",
                Text(default)
            );
        } else if !self.prefer(|choice| choice.matches(default)) {
            log::warn!(
                "{LOADER_CONF}: default {}: no entry has this name",
                Text(default)
            );
        }
        Ok(())
    }

    /// Moves the first choice that `is_preferred` to the start.
    fn prefer(&mut self, is_preferred: impl Fn(&Choice<'m>) -> bool) -> bool {
        let found = self.choices.iter().position(is_preferred);
        if let Some(found) = found {
            self.choices[..=found].rotate_right(1);
        }
        found.is_some()
    }

    fn extlinux(&mut self) -> Result<(), Failed> {
        // The first file counts, as on a disk that U-Boot looks at.
        for directory in EXTLINUX {
            let path = Path::join(directory, EXTLINUX_CONF.as_bytes());
            let Some(config) = self.file(&path)? else {
                continue;
            };
            let first = self.choices.len();
            let parsed = extlinux::Config::parse(config);
            for index in 0..parsed.labels().count() {
                // Room is kept for conventional names.
                if self.choices.len() == MAX_ENTRIES {
                    log::warn!(
                        "{path} and {ENTRIES} have more than {MAX_ENTRIES} entries: \
                         the last ones are left out"
                    );
                    break;
                }
                _ = self.choices.push(Choice::Extlinux {
                    directory,
                    config,
                    index,
                });
            }
            let default = parsed.default_label().unwrap_or(0);
            if let Some(labels) = self.choices.get_mut(first..)
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
            _ = self.choices.push(Choice::Conventional {
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
            for entry in self.share.read_dir(directory)? {
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
    fn file(&mut self, path: impl AsRef<[u8]>) -> Result<Option<&'m [u8]>, Failed> {
        let Some(memory) = self.take(MAX_FILE) else {
            return Ok(None);
        };
        let size = self.read(path.as_ref(), memory, Missing::IsFine)?;
        let memory: &'m [u8] = memory;
        Ok(size.map(|size| &memory[..size]))
    }

    /// Reads a file; its size, unless that failed.
    fn read(
        &self,
        path: &[u8],
        memory: &mut [u8],
        missing: Missing,
    ) -> Result<Option<usize>, Failed> {
        let read = self.share.open(path).and_then(|f| f.read_at(0, memory));
        match read {
            Ok(size) if size < memory.len() => Ok(Some(size)),
            Ok(size) => {
                failure(
                    path,
                    format_args!("it has {size} bytes or more; make it shorter"),
                );
                Ok(None)
            }
            Err(Error::NotFound) if missing == Missing::IsAnError => {
                failure(path, Error::NotFound);
                Ok(None)
            }
            Err(error) => self.report(path, error).map(|()| None),
        }
    }

    /// Reports an error of the file or directory at `path`, unless it is just not there. Gathering
    /// goes on unless the share is lost.
    fn report(&self, path: &[u8], error: Error) -> Result<(), Failed> {
        if !matches!(error, Error::NotFound | Error::NotADirectory) {
            failure(path, error);
        }
        if self.share.is_connected() {
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
