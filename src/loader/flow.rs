//! The boot flow: searches for entries and loads the first one that can be loaded.

use super::{
    Board, Failed, HandOff,
    arena::Arena,
    choices::{Choices, Kind, Listed},
    console,
    load::Loader,
    search::{self, Look},
    shares::{Mount, Shares},
    time_line::{Stage, TimeLine},
};
use crate::boot::{
    bls,
    entry::{Base, Entry},
    options::Options,
};
use core::fmt;

/// The context of the boot flow.
pub(super) struct Flow<'a, B: Board> {
    pub board: &'a B,
    pub options: &'a Options<'a>,
    pub shares: &'a Shares<B>,
    pub time_line: &'a TimeLine<B::Clock>,
}

/// Why nothing was loaded.
pub(super) enum Stop {
    /// The errors were reported.
    Failed,
    /// The user has asked for the menu.
    Asked,
}

impl<B: Board> Flow<'_, B> {
    /// All entries, or those that match `bootshare.entry`.
    pub fn entries<'m>(&'m self, arena: &mut Arena<'m>) -> Result<&'m Choices<'m, B>, Failed> {
        let choices = self.choices(arena)?;
        self.more(choices, self.options.entry, true, arena)?;
        Ok(choices)
    }

    /// An empty list in memory of the arena, since it is too large for the stack. Lost shares are resumed.
    pub fn choices<'m>(&'m self, arena: &mut Arena<'m>) -> Result<&'m mut Choices<'m, B>, Failed> {
        for mount in &self.shares.mounted {
            mount.renew();
        }
        let kept = arena.keep("list of boot entries", Choices::new());
        kept.map_err(|error| {
            log::error!("{error}");
            Failed
        })
    }

    /// Continues the search for entries, up to one that matches `wanted`, or for `all` entries.
    pub fn more<'m>(
        &'m self,
        choices: &mut Choices<'m, B>,
        wanted: Option<&[u8]>,
        all: bool,
        arena: &mut Arena<'m>,
    ) -> Result<(), Failed> {
        let look = Look {
            wanted,
            fallback: self.options.fallback,
            all,
        };
        search::gather(self.shares, choices, look, arena);
        match self.options.entry {
            Some(wanted) if !choices.list.is_empty() => choices.keep("bootshare.entry=", wanted),
            _ => Ok(()),
        }
    }

    /// Loads the first entry that matches `wanted`, for the command `boot`.
    #[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
    pub fn chosen(&self, wanted: Option<&[u8]>, arena: &mut Arena<'_>) -> Result<HandOff, Failed> {
        let arena = &mut arena.rest();
        let choices = self.choices(arena)?;
        let look = wanted.or(self.options.entry);
        self.more(choices, look, wanted.is_some(), arena)?;
        if let Some(wanted) = wanted {
            choices.keep("boot ", wanted)?;
        }
        let first = self.first(choices, look, None, arena);
        first.map_err(|_| Failed)
    }

    /// Loads an entry that the commands `linux` and `initrd` have built, with files on the share of this index.
    #[inline(never)]
    pub fn typed(
        &self,
        share: usize,
        text: &[u8],
        arena: &mut Arena<'_>,
    ) -> Result<HandOff, Failed> {
        let entry = bls::Entry::parse(text);
        let entry = Entry::from_bls(Base::Exact("/"), &entry, B::ARCHITECTURE, true);
        match (self.shares.mounted.get(share), entry) {
            (Some(mount), Ok(entry)) if mount.renew() => {
                self.load_files(mount, &mount.prefix(), &entry, None, &|| (), arena)
            }
            (_, Err(error)) => {
                log::error!("linux: {error}");
                Err(Failed)
            }
            _ => Err(Failed),
        }
    }

    /// Loads the first entry that can be loaded; reports why others cannot. Stops when `is_asked`, if given,
    /// returns that the user asks for the menu.
    pub fn first<'m>(
        &'m self,
        choices: &mut Choices<'m, B>,
        wanted: Option<&[u8]>,
        is_asked: Option<fn() -> bool>,
        arena: &mut Arena<'m>,
    ) -> Result<HandOff, Stop> {
        let mut tried = 0;
        loop {
            while let Some(listed) = choices.list.get(tried) {
                tried += 1;
                // The entries of a share that was given up are skipped.
                if !listed.mount.is_connected() {
                    continue;
                }
                let loaded = self.load(listed, None, wanted.is_some(), arena);
                if is_asked.is_some_and(|is_asked| is_asked()) {
                    return Err(Stop::Asked);
                }
                if let Ok(hand_off) = loaded {
                    return Ok(hand_off);
                }
            }
            let more = self.more(choices, wanted, false, arena);
            if more.is_err() || choices.list.len() == tried {
                self.report_none(choices);
                return Err(Stop::Failed);
            }
        }
    }

    /// Loads an entry, with the command line `edited` if given; reports errors. With `asked`, the user has chosen
    /// it by name, so that it may be hidden.
    #[inline(never)]
    pub fn load(
        &self,
        listed: &Listed<'_, B>,
        edited: Option<&[u8]>,
        asked: bool,
        arena: &mut Arena<'_>,
    ) -> Result<HandOff, Failed> {
        let entry = match listed.choice.entry(B::ARCHITECTURE, asked) {
            Ok(entry) => entry,
            Err(error) => {
                if error.is_hidden() {
                    log::info!("{listed}passed over: {error}");
                } else {
                    log::error!("{listed}{error}");
                }
                return Err(Failed);
            }
        };
        listed.warn_of_ignored_keywords(&entry);
        let origin = || log::info!("entry {}", listed.origin());
        self.load_files(listed.mount, listed, &entry, edited, &origin, arena)
    }

    /// Loads the files of `entry` from `mount`. `name` is the prefix of paths in messages; `origin` reports the
    /// entry before it is started.
    fn load_files(
        &self,
        mount: &Mount<B>,
        name: &dyn fmt::Display,
        entry: &Entry<'_>,
        edited: Option<&[u8]>,
        origin: &dyn Fn(),
        arena: &mut Arena<'_>,
    ) -> Result<HandOff, Failed> {
        // An edited command line includes these words already.
        let extra = match edited {
            Some(_) => b"",
            None => self.options.payload,
        };
        loop {
            self.time_line.reach(Stage::Chosen);
            let loader = Loader::new(
                self.board,
                mount,
                name,
                &self.options.defaults,
                arena.rest(),
            );
            let loaded = loader.load(entry, edited, extra, &mut |kernel| {
                self.time_line.reach(Stage::Loaded);
                origin();
                log::info!("starting {}", mount.shown(kernel));
            });
            match loaded {
                Err(failed) => mount.again(failed)?,
                loaded => return loaded,
            }
        }
    }

    /// Reports that no entry can be started, or that there is none, unless another error was reported.
    fn report_none(&self, choices: &Choices<'_, B>) {
        if choices.kind.is_some_and(|kind| kind != Kind::Conventional) {
            let mut mounted = self.shares.mounted.iter();
            let is_connected = mounted.any(|mount| mount.is_connected());
            if is_connected && !self.options.fallback && self.options.entry.is_none() {
                log::error!(
                    "no boot entry can be started, and entries of other kinds are not tried; \
                    correct an entry, or add bootshare.fallback=yes"
                );
            }
        } else if console::errors() == choices.errors
            && let Some(first) = self.shares.mounted.first()
        {
            log::error!(
                "share {}: there is no kernel; put one at /vmlinuz, /Image or \
                 /boot/vmlinuz-VERSION, or an entry at /loader/entries/NAME.conf",
                first.tag()
            );
        }
    }
}
