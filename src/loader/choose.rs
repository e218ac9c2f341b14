//! Which boot entries the shares have, in the order in which they are tried.

use super::{
    Board, Failed,
    arena::Arena,
    console::{self, Text},
    entry::Path,
    search::{self, MAX_CONVENTIONAL},
    shares::{MAX_SHARES, Mount, Shares},
};
use crate::boot::{
    bls::{self, Fit, Timeout},
    entry::{Base, CommandLine, Entry, EntryError},
    extlinux::Label,
    image::Architecture,
};
use core::fmt;
use heapless::Vec;

/// The most entries of all shares; conventional names come on top.
pub(super) const MAX_ENTRIES: usize = 64;

/// The most entries, those included, and one more where a share's `loader.conf` names it.
pub(super) const MAX_LISTED: usize = MAX_ENTRIES + (MAX_CONVENTIONAL + 1) * MAX_SHARES;

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

    /// How well `pattern` is for it, with the share's name before it or without.
    pub fn fit(&self, pattern: &[u8]) -> Fit {
        let named = pattern.strip_prefix(self.mount.tag().as_bytes());
        let named = named.and_then(|rest| rest.strip_prefix(b":"));
        let named = named.map_or(Fit::None, |rest| self.choice.fit(rest));
        self.choice.fit(pattern).min(named)
    }

    /// Which entry of which file it is.
    pub const fn origin(&'m self) -> Origin<'m, B> {
        Origin(self)
    }
}

/// An entry as lists show it: id, title, kernel and file, or why it can't be started.
pub(super) struct Described<'a, B: Board>(&'a Listed<'a, B>);

impl<B: Board> fmt::Display for Described<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed { mount, choice } = self.0;
        write!(f, "{}: ", Text(choice.id))?;
        let entry = match choice.entry(B::ARCHITECTURE, false) {
            Ok(entry) => entry,
            Err(error) if error.is_hidden() => return write!(f, "passed over: {error}"),
            Err(error) => return error.fmt(f),
        };
        let kernel = entry.base.places(entry.kernel);
        let kernel = kernel.first().map(Path::of);
        let kernel = mount.shown(kernel.as_deref().unwrap_or(entry.kernel));
        match choice.title() {
            b"" => kernel.fmt(f)?,
            title => write!(f, "{} ({kernel})", Text(title))?,
        }
        match choice.has_file() {
            true => write!(f, " from {}", mount.shown(choice.file)),
            false => Ok(()),
        }
    }
}

/// Which entry of which file is started.
pub(super) struct Origin<'a, B: Board>(&'a Listed<'a, B>);

impl<B: Board> fmt::Display for Origin<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed { mount, choice } = self.0;
        let id = Text(choice.id);
        match choice.says {
            Says::Conventional { .. } => write!(f, "{id}, by its conventional name"),
            _ => write!(f, "{id} of {}", mount.shown(choice.file)),
        }
    }
}

/// What stands before the words about it: the file it is from, and nothing for those that are
/// kernels themselves.
impl<B: Board> fmt::Display for Listed<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mount, choice } = self;
        if !choice.has_file() {
            return mount.prefix().fmt(f);
        }
        write!(f, "{}: ", mount.shown(choice.file))?;
        match choice.says {
            Says::Label { .. } => write!(f, "label {}: ", Text(choice.id)),
            _ => Ok(()),
        }
    }
}

/// An entry.
pub(super) struct Choice<'m> {
    /// Its name, for `bootshare.entry`.
    pub id: &'m [u8],
    /// The path of the file that it is from, which may be the kernel itself.
    pub file: &'m [u8],
    pub says: Says<'m>,
}

/// What an entry says.
pub(super) enum Says<'m> {
    /// A file of the Boot Loader Specification, or a unified kernel image as one would name it.
    Bls {
        /// The root of its file system.
        root: &'static str,
        text: &'m [u8],
        /// No directory with addons lies beside it.
        alone: bool,
    },
    /// A label of an `extlinux.conf`.
    Label {
        /// Where the file lies.
        directory: &'static str,
        text: &'m [u8],
        /// The command line of labels without one.
        append: &'m [u8],
        /// Words for the end of the command line.
        more: &'m [u8],
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
    /// Its name for people; may be empty.
    fn title(&self) -> &'m [u8] {
        match self.says {
            Says::Bls { text, .. } => bls::Entry::parse(text).title,
            Says::Label { .. } => self.label().menu_label,
            Says::Conventional { .. } => b"",
        }
    }

    /// What it asks for; with `asked`, of a person who names it.
    pub fn entry(&self, machine: Architecture, asked: bool) -> Result<Entry<'m>, EntryError<'m>> {
        match self.says {
            Says::Bls { root, text, alone } => {
                let base = Base::Bls { root };
                let entry = Entry::from_bls(base, &bls::Entry::parse(text), machine, asked)?;
                Ok(Entry { alone, ..entry })
            }
            Says::Label {
                directory, more, ..
            } => {
                let base = Base::extlinux(directory);
                Entry::from_label(base, &self.label(), more, machine)
            }
            Says::Conventional {
                directory,
                kernel,
                initrd,
                cmdline,
            } => Ok(Entry {
                base: Base::Exact(directory),
                kernel,
                profile: 0,
                addons: None,
                alone: true,
                initrds: initrd.into_iter().collect(),
                command_line: cmdline.map_or(CommandLine::None, CommandLine::File),
                device_tree: None,
            }),
        }
    }

    /// What its label says, if it has one.
    pub fn label(&self) -> Label<'m> {
        match self.says {
            Says::Label { text, append, .. } => Label::parse(text, append).unwrap_or_default(),
            _ => Label::default(),
        }
    }

    /// How well `pattern` is for it.
    pub fn fit(&self, pattern: &[u8]) -> Fit {
        let name = match self.says {
            Says::Bls { .. } => self.file.rsplit(|&byte| byte == b'/').next(),
            _ => None,
        };
        Fit::of(pattern, self.id, name.unwrap_or(self.id))
    }

    /// Whether its file is another one than the kernel.
    fn has_file(&self) -> bool {
        match self.says {
            Says::Bls { .. } => !bls::is_image(self.file),
            Says::Label { .. } => true,
            Says::Conventional { .. } => false,
        }
    }
}

/// Where entries come from: what is tried when one of them can't be loaded is of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bls,
    Extlinux,
    Conventional,
}

/// The entries of all shares, the one to try first at the start.
pub(super) struct Choices<'m, B: Board> {
    pub list: Vec<Listed<'m, B>, MAX_LISTED>,
    /// What the source of the first of them says about the menu.
    pub timeout: Option<Timeout>,
    /// Of which kind the first file is that was found, even if it can't be read.
    pub kind: Option<Kind>,
    /// How many errors had been reported before.
    pub errors: u32,
    /// The share that is looked at next, by its place in the list of those that are mounted.
    share: usize,
    /// Which of its sources is.
    pub source: usize,
}

impl<B: Board> Choices<'_, B> {
    /// None yet.
    pub fn new() -> Self {
        Self {
            list: Vec::new(),
            timeout: None,
            kind: None,
            errors: console::errors(),
            share: 0,
            source: 0,
        }
    }

    fn next_share(&mut self) {
        self.share += 1;
        self.source = 0;
    }

    /// Leaves those whose id matches `wanted`, which `option` asked for; in any case of its letters
    /// if none does as it is written. Reports it if there are none.
    pub fn keep(&mut self, option: &str, wanted: &[u8]) -> Result<(), Failed> {
        let best = self.list.iter().map(|listed| listed.fit(wanted)).min();
        let best = best.unwrap_or(Fit::None);
        if best == Fit::None {
            log::error!(
                "{option}{}: no entry has this name; there is {}",
                Text(wanted),
                Ids(&self.list)
            );
            return Err(Failed);
        }
        self.list.retain(|listed| listed.fit(wanted) == best);
        Ok(())
    }
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    /// Only an entry of this name will do.
    pub wanted: Option<&'a [u8]>,
    /// Other kinds of entries than those that were found first are looked at, too.
    pub fallback: bool,
    /// Up to the last source, not up to the end of the first one that has an entry.
    pub all: bool,
}

/// Adds the entries of those sources to `choices` that were not looked at yet, share by share, with
/// what they say in memory of `arena`.
///
/// A file that can't be read is reported and left out, and so is a share that is lost and does not
/// come back.
#[inline(never)] // So that the large frames of the boot flow do not add up.
pub(super) fn gather<'m, B: Board>(
    shares: &'m Shares<B>,
    choices: &mut Choices<'m, B>,
    look: Look<'_>,
    arena: &mut Arena<'m>,
) {
    while let Some(mount) = shares.mounted.get(choices.share) {
        // It was given up.
        if !mount.is_connected() {
            choices.next_share();
            continue;
        }
        match search::run(mount, choices, look, arena) {
            Ok(true) => return,
            Ok(false) => choices.next_share(),
            Err(lost) if mount.again(lost).is_err() => choices.next_share(),
            Err(_) => {}
        }
    }
}

/// Ids, for an error line.
struct Ids<'a, 'm, B: Board>(&'a [Listed<'m, B>]);

impl<B: Board> fmt::Display for Ids<'_, '_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, listed) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            Text(listed.choice.id).fmt(f)?;
        }
        Ok(())
    }
}
