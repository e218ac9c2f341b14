//! The list of boot entries found on the shares, in the order in which they are tried.

use super::{
    Board, Failed,
    console::{self, Text},
    path::Path,
    shares::{MAX_SHARES, Mount},
};
#[cfg(feature = "extlinux")]
use crate::boot::extlinux::Label;
use crate::boot::{
    Architecture,
    bls::{self, Fit, Timeout},
    entry::{Base, CommandLine, Entry, EntryError},
};
use core::fmt;
use heapless::Vec;

/// Most entries from entry files, of all shares.
pub(super) const MAX_ENTRIES: usize = 64;

/// Most entries of conventional names on one share: one for each source of them.
pub(super) const MAX_CONVENTIONAL: usize = 4;

/// Most entries in all: for each share, those of conventional names and the default one of `loader.conf` are
/// not counted in [`MAX_ENTRIES`].
pub(super) const MAX_LISTED: usize = MAX_ENTRIES + (MAX_CONVENTIONAL + 1) * MAX_SHARES;

/// A boot entry and the share with its files.
pub(super) struct Listed<'m, B: Board> {
    pub mount: &'m Mount<B>,
    pub choice: Choice<'m>,
}

impl<'m, B: Board> Listed<'m, B> {
    /// The entry as shown in lists.
    pub const fn described(&'m self) -> Described<'m, B> {
        Described(self)
    }

    /// How well `pattern`, with or without the prefix `TAG:`, matches the entry.
    pub fn fit(&self, pattern: &[u8]) -> Fit {
        let named = pattern.strip_prefix(self.mount.tag().as_bytes());
        let named = named.and_then(|rest| rest.strip_prefix(b":"));
        let named = named.map_or(Fit::None, |rest| self.choice.fit(rest));
        self.choice.fit(pattern).min(named)
    }

    /// Warns of keywords of a label that are ignored.
    #[cfg(feature = "extlinux")]
    pub fn warn_of_ignored_keywords(&self, entry: &Entry<'_>) {
        let label = self.choice.label();
        if !label.fdtdir.is_empty()
            && entry.device_tree.is_none()
            && B::ARCHITECTURE.has_device_trees()
        {
            log::warn!(
                "{self}fdtdir has no effect, the machine's own device tree is used; \
                 name another one with fdt"
            );
        }
        if !label.fdtoverlays.is_empty() {
            log::warn!(
                "{self}fdtoverlays has no effect; merge them into a device tree with fdtoverlay, \
                 and name that with fdt"
            );
        }
    }

    #[cfg(not(feature = "extlinux"))]
    pub fn warn_of_ignored_keywords(&self, _: &Entry<'_>) {}

    /// The id of the entry and the path of its file, for messages.
    pub const fn origin(&'m self) -> Origin<'m, B> {
        Origin(self)
    }
}

/// Displays an entry in a list: its id, title, kernel and file, or why it cannot be started.
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

/// Displays the id of an entry and the path of its file.
pub(super) struct Origin<'a, B: Board>(&'a Listed<'a, B>);

impl<B: Board> fmt::Display for Origin<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed { mount, choice } = self.0;
        let id = Text(choice.id);
        match choice.content {
            Content::Conventional { .. } => write!(f, "{id}, by its conventional name"),
            _ => write!(f, "{id} of {}", mount.shown(choice.file)),
        }
    }
}

/// Displays the prefix of messages about the entry: its file, or nothing if that is the kernel itself.
impl<B: Board> fmt::Display for Listed<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mount, choice } = self;
        if !choice.has_file() {
            return mount.prefix().fmt(f);
        }
        write!(f, "{}: ", mount.shown(choice.file))?;
        match choice.content {
            #[cfg(feature = "extlinux")]
            Content::Label { .. } => write!(f, "label {}: ", Text(choice.id)),
            _ => Ok(()),
        }
    }
}

/// A boot entry.
pub(super) struct Choice<'m> {
    /// Its id, for `bootshare.entry`.
    pub id: &'m [u8],
    /// The path of its file, which may be the kernel itself.
    pub file: &'m [u8],
    pub content: Content<'m>,
}

/// The content of an entry, by its source.
pub(super) enum Content<'m> {
    /// An entry of the Boot Loader Specification, or one written for a unified kernel image.
    Bls {
        /// The path of the root of its file system.
        root: &'static str,
        text: &'m [u8],
        /// The image has no directory of addons beside it.
        alone: bool,
    },
    /// A label of an `extlinux.conf`.
    #[cfg(feature = "extlinux")]
    Label {
        /// The directory of the file.
        directory: &'static str,
        text: &'m [u8],
        /// The command line of labels without `APPEND`.
        append: &'m [u8],
        /// Words to append to the command line.
        more: &'m [u8],
    },
    /// Files with conventional names.
    Conventional {
        /// Their directory.
        directory: &'static str,
        kernel: &'m [u8],
        initrd: Option<&'m [u8]>,
        cmdline: Option<&'static [u8]>,
    },
}

impl<'m> Choice<'m> {
    /// The human-readable name; may be empty.
    fn title(&self) -> &'m [u8] {
        match self.content {
            Content::Bls { text, .. } => bls::Entry::parse(text).title,
            #[cfg(feature = "extlinux")]
            Content::Label { .. } => self.label().menu_label,
            Content::Conventional { .. } => b"",
        }
    }

    /// Parses the entry for `machine`. `asked` means that the user chose it by name.
    pub fn entry(&self, machine: Architecture, asked: bool) -> Result<Entry<'m>, EntryError<'m>> {
        match self.content {
            Content::Bls { root, text, alone } => {
                let base = Base::Bls { root };
                let entry = Entry::from_bls(base, &bls::Entry::parse(text), machine, asked)?;
                Ok(Entry { alone, ..entry })
            }
            #[cfg(feature = "extlinux")]
            Content::Label {
                directory, more, ..
            } => {
                let base = Base::extlinux(directory);
                Entry::from_label(base, &self.label(), more, machine)
            }
            Content::Conventional {
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

    /// The label of an `extlinux.conf`; empty for other entries.
    #[cfg(feature = "extlinux")]
    fn label(&self) -> Label<'m> {
        match self.content {
            Content::Label { text, append, .. } => Label::parse(text, append).unwrap_or_default(),
            _ => Label::default(),
        }
    }

    /// How well `pattern` matches the entry.
    pub fn fit(&self, pattern: &[u8]) -> Fit {
        let name = match self.content {
            Content::Bls { .. } => self.file.rsplit(|&byte| byte == b'/').next(),
            _ => None,
        };
        Fit::of(pattern, self.id, name.unwrap_or(self.id))
    }

    /// Whether the entry has a file other than the kernel.
    fn has_file(&self) -> bool {
        match self.content {
            Content::Bls { .. } => !bls::is_image(self.file),
            #[cfg(feature = "extlinux")]
            Content::Label { .. } => true,
            Content::Conventional { .. } => false,
        }
    }
}

/// The kind of an entry. If an entry cannot be loaded, only entries of the same kind are tried after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bls,
    Extlinux,
    Conventional,
}

/// The entries of all shares in the order in which they are tried, and the progress of the search for them.
pub(super) struct Choices<'m, B: Board> {
    pub list: Vec<Listed<'m, B>, MAX_LISTED>,
    /// How long the menu waits, as defined by the source of the first entry.
    pub timeout: Option<Timeout>,
    /// The kind of the first entry file found, even if it cannot be read.
    pub kind: Option<Kind>,
    /// The number of errors reported before the search.
    pub errors: u32,
    /// The index of the mounted share to search next.
    pub share: usize,
    /// The index of the source to search next on that share.
    pub source: usize,
}

impl<B: Board> Choices<'_, B> {
    /// An empty list, before the search.
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

    /// Keeps only the entries that match the pattern `wanted` best. If there are none, reports it with `option`,
    /// the source of the pattern.
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

/// Displays ids, for an error message.
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
