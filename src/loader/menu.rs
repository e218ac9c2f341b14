//! The menu: lets the user choose an entry and edit its command line.
//!
//! Only the last line is redrawn, so that the menu is also readable in a log. It ends after the countdown, or some
//! minutes after the last key.

use super::{
    Board, Failed,
    arena::Arena,
    choices::{Choices, Listed, MAX_LISTED},
    console::{Console, Text},
    editor::{Editor, Ended},
    flow::Flow,
    keys::{self, Key},
    load::Loader,
};
use crate::{boot::cmdline, hal::Clock};
use core::{fmt::Write, time::Duration};
use heapless::Vec;

/// Seconds without a key after which the menu ends.
pub(super) const IDLE: u32 = 300;
/// Most bytes of an id in the line that is redrawn.
const MAX_ID: usize = 40;

/// The user's choice.
pub(super) enum Pick {
    /// None: start the first entry that can be loaded.
    First,
    /// The entry with this index in the list.
    Entry(usize),
    /// The entry with this index, with the text of the editor as its command line.
    Edited(usize),
    Shell,
}

/// Shows the entries and waits for a choice: for `seconds` until the first key, then for [`IDLE`] after each key.
#[inline(never)] // Keeps large stack frames from adding up.
pub(super) fn show<B: Board>(
    flow: &Flow<'_, B>,
    choices: &Choices<'_, B>,
    seconds: u32,
    editor: &mut Editor,
    arena: &mut Arena<'_>,
) -> Pick {
    let mut menu = Menu::of(flow.board.clock(), &choices.list, seconds);
    let pick = loop {
        // There may be no entry to choose, if all are for other machines.
        let Some(entry) = menu.entries.get(menu.chosen).copied() else {
            break Pick::First;
        };
        let Some(key) = menu.wait() else {
            break Pick::First;
        };
        menu.allow(IDLE);
        match key {
            Key::Enter => break Pick::Entry(entry),
            Key::Byte(b'c') | Key::Escape => break Pick::Shell,
            Key::Byte(b'e') => {
                B::write_console(b"\n");
                match edit(flow, &choices.list[entry], editor, arena) {
                    Ok(Ended::Enter) => return Pick::Edited(entry),
                    Ok(Ended::Idle) => return Pick::First,
                    _ => menu.allow(IDLE),
                }
            }
            key => menu.press(key),
        }
    };
    B::write_console(b"\n");
    pick
}

/// The state of the menu.
struct Menu<'a, B: Board> {
    clock: B::Clock,
    list: &'a [Listed<'a, B>],
    /// The entries that can be chosen, as indices into `list`.
    entries: Vec<usize, MAX_LISTED>,
    /// The selected entry, as an index into `entries`.
    chosen: usize,
    /// The number that is being typed.
    typed: usize,
    /// When the menu ends.
    deadline: Duration,
}

impl<'a, B: Board> Menu<'a, B> {
    /// Prints the entries.
    fn of(clock: B::Clock, list: &'a [Listed<'a, B>], seconds: u32) -> Self {
        let mut menu = Self {
            clock,
            list,
            entries: Vec::new(),
            chosen: 0,
            typed: 0,
            deadline: Duration::ZERO,
        };
        menu.allow(seconds);
        let mut console = Console::<B>::new();
        _ = console.write_str(
            "bootshare: menu: numbers or arrows choose, Enter starts, e edits the command line, \
             c is for commands\n",
        );
        for (index, listed) in list.iter().enumerate() {
            let entry = listed.choice.entry(B::ARCHITECTURE, false);
            if entry.is_ok_and(|_| menu.entries.push(index).is_ok()) {
                _ = writeln!(console, "{:3} {}", menu.entries.len(), listed.described());
            }
        }
        menu
    }

    fn allow(&mut self, seconds: u32) {
        self.deadline = self.clock.now() + Duration::from_secs(seconds.into());
    }

    /// Waits for a key; `None` when the time is up.
    fn wait(&self) -> Option<Key> {
        loop {
            let now = self.clock.now();
            let left = self.deadline.saturating_sub(now);
            // Round up.
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            let id = self.list[self.entries[self.chosen]].choice.id;
            _ = write!(
                Console::<B>::new(),
                "\r\x1b[K> {} {} (1 starts in {seconds} s) ",
                self.chosen + 1,
                Text(&id[..id.len().min(MAX_ID)]),
            );
            if left.is_zero() {
                return None;
            }
            let tick = self.deadline - Duration::from_secs(seconds - 1);
            if let Some(key) = keys::wait::<B>(self.clock, Some(tick)) {
                return Some(key);
            }
        }
    }

    /// Changes the selection.
    fn press(&mut self, key: Key) {
        let last = self.entries.len() - 1;
        let typed = core::mem::take(&mut self.typed);
        match key {
            Key::Up | Key::Byte(b'k') => self.chosen = self.chosen.saturating_sub(1),
            Key::Down | Key::Byte(b'j') => self.chosen = last.min(self.chosen + 1),
            Key::Home => self.chosen = 0,
            Key::End => self.chosen = last,
            Key::Byte(digit @ b'0'..=b'9') => {
                let digit = usize::from(digit - b'0');
                let numbers = [typed * 10 + digit, digit];
                if let Some(number) = numbers.into_iter().find(|n| (1..=last + 1).contains(n)) {
                    self.typed = number;
                    self.chosen = number - 1;
                }
            }
            _ => {}
        }
    }
}

/// Lets the user edit the command line of an entry, including the words that the firmware's own one adds.
fn edit<B: Board>(
    flow: &Flow<'_, B>,
    listed: &Listed<'_, B>,
    editor: &mut Editor,
    arena: &mut Arena<'_>,
) -> Result<Ended, Failed> {
    let Ok(entry) = listed.choice.entry(B::ARCHITECTURE, false) else {
        return Err(Failed);
    };
    let loader = Loader::new(
        flow.board,
        listed.mount,
        listed,
        &flow.options.defaults,
        arena.rest(),
    );
    let text = loader.words(&entry)?;
    editor.set(b"");
    for word in cmdline::words(text).chain(cmdline::words(flow.options.payload)) {
        if !editor.text().is_empty() {
            editor.insert(b" ");
        }
        editor.insert(word);
    }
    let idle = Duration::from_secs(IDLE.into());
    Ok(editor.edit::<B>(flow.board.clock(), "> ", Some(idle), &mut |_, _| Vec::new()))
}
