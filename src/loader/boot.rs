//! What is started: what a person chooses, or else the first entry that can be loaded.

use super::{
    Board, End, Failed, HandOff,
    arena::{Arena, is_x86},
    choose::{self, Choices, Kind, Listed, Look},
    console,
    entry::Loader,
    menu::{self, Pick},
    shares::{Mount, Shares},
    shell::{self, State, Typed},
    time_line::{Stage, TimeLine},
};
use crate::boot::{
    bls::{self, Timeout},
    entry::{Base, Entry},
    options::Options,
};
use core::fmt;

/// What the boot flow works with.
pub(super) struct Flow<'a, B: Board> {
    pub board: &'a B,
    pub options: &'a Options<'a>,
    pub shares: &'a Shares<B>,
    pub time_line: &'a TimeLine<B::Clock>,
}

/// Why nothing was loaded.
pub(super) enum Stop {
    /// Error lines have said why.
    Failed,
    /// A person wants the menu.
    Asked,
}

/// What goes on after a look at the entries.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Next {
    End(End),
    Menu,
    Shell,
}

impl<B: Board> Flow<'_, B> {
    /// Has something started: what is chosen in the menu, if there is one, or the first entry that
    /// can be loaded.
    pub fn run(&self, state: &mut State, arena: &mut Arena<'_>) -> Result<End, Failed> {
        let mut asked = false;
        loop {
            match self.look(asked, state, &mut arena.rest())? {
                Next::End(end) => return Ok(end),
                Next::Menu => {}
                Next::Shell => {
                    if let Some(end) = shell::run(self, state, arena) {
                        return Ok(end);
                    }
                }
            }
            asked = true;
        }
    }

    /// Gathers the entries and loads the one that is to be started.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    fn look<'m>(
        &'m self,
        asked: bool,
        state: &mut State,
        arena: &mut Arena<'m>,
    ) -> Result<Next, Failed> {
        // Most boots need no more than the first that is found.
        let choices = self.choices(arena)?;
        let wanted = self.options.entry;
        self.more(choices, wanted, false, arena)?;
        let timeout = self.options.timeout.or(choices.timeout);
        let (seconds, is_hidden) = match timeout.unwrap_or(Timeout::Hidden) {
            _ if asked => (menu::IDLE, false),
            Timeout::Disabled => (0, false),
            Timeout::Hidden | Timeout::Seconds(0) if menu::is_asked_for::<B>() => {
                (menu::IDLE, false)
            }
            Timeout::Hidden | Timeout::Seconds(0) => (0, true),
            Timeout::Force => (menu::IDLE, false),
            Timeout::Seconds(seconds) => (seconds, false),
        };
        if seconds > 0 {
            self.more(choices, wanted, true, arena)?;
        }
        let pick = match (seconds, choices.list.is_empty()) {
            (0, _) => Pick::First,
            (_, false) => menu::show(self, choices, seconds, state, arena),
            (_, true) if asked => Pick::Shell,
            (_, true) => Pick::First,
        };
        let (index, edited) = match pick {
            Pick::Shell => return Ok(Next::Shell),
            Pick::First => {
                return match self.first(choices, wanted, is_hidden, arena) {
                    Ok(hand_off) => Ok(Next::End(End::Start(hand_off))),
                    Err(Stop::Asked) => Ok(Next::Menu),
                    Err(Stop::Failed) => Err(Failed),
                };
            }
            Pick::Entry(index) => (index, None),
            Pick::Edited(index) => (index, Some(state.editor.text())),
        };
        match self.load(&choices.list[index], edited, wanted.is_some(), arena) {
            Ok(hand_off) => Ok(Next::End(End::Start(hand_off))),
            // It was reported; there may be another.
            Err(Failed) => Ok(Next::Menu),
        }
    }

    /// The entries, or those that `bootshare.entry` names.
    pub fn entries<'m>(&'m self, arena: &mut Arena<'m>) -> Result<&'m Choices<'m, B>, Failed> {
        let choices = self.choices(arena)?;
        self.more(choices, self.options.entry, true, arena)?;
        Ok(choices)
    }

    /// None yet, of shares that are there, or there again. The list is too large for the stack.
    fn choices<'m>(&'m self, arena: &mut Arena<'m>) -> Result<&'m mut Choices<'m, B>, Failed> {
        for mount in &self.shares.mounted {
            mount.renew();
        }
        let kept = arena.keep("list of boot entries", Choices::new());
        kept.map_err(|error| {
            log::error!("{error}");
            Failed
        })
    }

    /// Adds entries that were not looked at yet, up to the one that is wanted, or `all`.
    fn more<'m>(
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
        choose::gather(self.shares, choices, look, arena);
        match self.options.entry {
            Some(wanted) if !choices.list.is_empty() => choices.keep("bootshare.entry=", wanted),
            _ => Ok(()),
        }
    }

    /// Loads the first entry that `wanted` names, or of all, for a person or a script.
    #[inline(never)] // As above.
    pub fn chosen(&self, wanted: Option<&[u8]>, arena: &mut Arena<'_>) -> Result<HandOff, Failed> {
        let arena = &mut arena.rest();
        let choices = self.choices(arena)?;
        let look = wanted.or(self.options.entry);
        self.more(choices, look, wanted.is_some(), arena)?;
        if let Some(wanted) = wanted {
            choices.keep("boot ", wanted)?;
        }
        let first = self.first(choices, look, false, arena);
        first.map_err(|_| Failed)
    }

    /// Loads what `linux` and `initrd` have named.
    #[inline(never)] // As above.
    pub fn typed(&self, typed: &Typed, arena: &mut Arena<'_>) -> Result<HandOff, Failed> {
        let entry = bls::Entry::parse(&typed.text);
        let entry = Entry::from_bls(Base::Exact("/"), &entry, B::ARCHITECTURE, true);
        match (self.shares.mounted.get(typed.share), entry) {
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

    /// Loads the first entry that can be loaded, of all; says why others can't. Stops when
    /// `is_hidden` and the menu is asked for meanwhile.
    fn first<'m>(
        &'m self,
        choices: &mut Choices<'m, B>,
        wanted: Option<&[u8]>,
        is_hidden: bool,
        arena: &mut Arena<'m>,
    ) -> Result<HandOff, Stop> {
        let mut tried = 0;
        loop {
            while let Some(listed) = choices.list.get(tried) {
                tried += 1;
                // Of a share that was given up nothing more is tried.
                if !listed.mount.is_connected() {
                    continue;
                }
                let loaded = self.load(listed, None, wanted.is_some(), arena);
                if is_hidden && menu::is_asked_for::<B>() {
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

    /// Loads an entry, with another command line than its own if that was edited, and says why if
    /// it can't. It may be hidden if it is `asked` for by its name.
    #[inline(never)] // As above.
    fn load(
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
        let label = listed.choice.label();
        if !label.fdtdir.is_empty() && entry.device_tree.is_none() && !is_x86::<B>() {
            log::warn!(
                "{listed}fdtdir has no effect, the machine's own device tree is used; \
                 name another one with fdt"
            );
        }
        if !label.fdtoverlays.is_empty() {
            log::warn!(
                "{listed}fdtoverlays has no effect; merge them into a device tree with fdtoverlay, \
                 and name that with fdt"
            );
        }
        let origin = || log::info!("entry {}", listed.origin());
        self.load_files(listed.mount, listed, &entry, edited, &origin, arena)
    }

    /// Loads what `entry` asks for from the share `mount`; `name` stands before paths in messages,
    /// `origin` says what it is before it is started.
    pub fn load_files(
        &self,
        mount: &Mount<B>,
        name: &dyn fmt::Display,
        entry: &Entry<'_>,
        edited: Option<&[u8]>,
        origin: &dyn Fn(),
        arena: &mut Arena<'_>,
    ) -> Result<HandOff, Failed> {
        // What a person has edited had these words in it.
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

    /// Says what to put into shares that have nothing to boot, unless something else was wrong: an
    /// error line has told of that.
    fn report_none(&self, choices: &Choices<'_, B>) {
        if choices.kind.is_some_and(|kind| kind != Kind::Conventional) {
            let mut mounted = self.shares.mounted.iter();
            let is_connected = mounted.any(|mount| mount.is_connected());
            if is_connected && !self.options.fallback && self.options.entry.is_none() {
                log::error!(
                    "no boot entry can be started, and then no other kernel is; \
                     mend one, or have others tried with bootshare.fallback=yes"
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
