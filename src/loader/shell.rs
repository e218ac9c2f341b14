//! The interactive shell.
//!
//! It waits for input without a time limit, because a user has asked for it.

use super::{
    Board, End,
    arena::Arena,
    builtins::{self, Typed},
    console::{Console, Text},
    editor::{Editor, Ended, MAX_COMPLETION, MAX_NAME},
    flow::Flow,
};
use crate::boot::{
    commands::{Commands, Escaped, Words},
    memory::PlacementError,
};
use core::{fmt::Write, ops::ControlFlow};
use heapless::Vec;

const PROMPT: &str = "bootshare> ";

/// What the user has typed. It is too large for the stack.
pub(super) struct State {
    pub editor: Editor,
    pub typed: Typed,
}

impl State {
    /// An empty state in memory of `arena`.
    #[inline(never)] // It is on the stack only during this call.
    pub fn new<'m>(arena: &mut Arena<'m>) -> Result<&'m mut Self, PlacementError> {
        let state = Self {
            editor: Editor::new(),
            typed: Typed::new(),
        };
        arena.keep("shell's memory", state)
    }
}

/// Reads and runs commands until one ends the firmware, or the user leaves the shell (`None`).
#[inline(never)] // Keeps large stack frames from adding up; so does the other one in this file.
pub(super) fn run<B: Board>(
    flow: &Flow<'_, B>,
    state: &mut State,
    arena: &mut Arena<'_>,
) -> Option<End> {
    _ = writeln!(
        Console::<B>::new(),
        "bootshare: shell: help lists the commands, exit leaves"
    );
    loop {
        state.editor.set(b"");
        let complete = &mut |text: &[u8], list| complete(flow, text, list);
        let clock = flow.board.clock();
        match state.editor.edit::<B>(clock, PROMPT, None, complete) {
            Ended::Enter => {}
            Ended::EndOfInput => return None,
            Ended::Cancelled | Ended::Idle => continue,
        }
        state.editor.remember();
        let State { editor, typed } = state;
        if let ControlFlow::Break(end) = builtins::run(flow, editor.text(), typed, arena) {
            return end;
        }
    }
}

/// The text that completes the last word of `text`, a command or a path. With `list`, prints the possible
/// completions.
#[inline(never)]
fn complete<B: Board>(flow: &Flow<'_, B>, text: &[u8], list: bool) -> Vec<u8, MAX_COMPLETION> {
    let command = text.rsplit(|byte| *byte == b';').next().unwrap_or(text);
    let mut buffer = [0; builtins::MAX_COMMAND];
    let words = match Commands::new(command).next(&mut buffer) {
        Some(Ok(words)) => words,
        Some(Err(_)) => return Vec::new(),
        None => Words::new(),
    };
    let is_new = command.ends_with(b" ") && !command.ends_with(b"\\ ");
    let (before, word) = match words.split_last() {
        Some((last, before)) if !is_new => (before, *last),
        _ => (&words[..], &b""[..]),
    };
    if before.is_empty() {
        let mut names = Names::<B>::new(word, list);
        builtins::names().for_each(|name| names.consider(name.as_bytes()));
        return names.more(b' ');
    }
    let Some((mount, path)) = flow.shares.locate(word) else {
        return Vec::new();
    };
    let start = path.iter().rposition(|byte| *byte == b'/');
    let (directory, prefix) = path.split_at(start.map_or(0, |slash| slash + 1));
    let directory: &[u8] = if directory.is_empty() {
        b"/"
    } else {
        directory
    };
    let (true, Ok(entries)) = (mount.renew(), mount.read_dir(directory)) else {
        return Vec::new();
    };
    let mut names = Names::<B>::new(prefix, list);
    for entry in entries.flatten() {
        names.consider(entry.file_name());
    }
    let open = mount.open_dir(directory);
    let named = open.and_then(|directory| directory.open_dir(&names.common));
    names.more(if named.is_ok() { b'/' } else { b' ' })
}

/// The possible completions of a word.
struct Names<'p, B> {
    prefix: &'p [u8],
    /// Their common start.
    common: Vec<u8, MAX_NAME>,
    count: usize,
    list: bool,
    console: Console<B>,
}

impl<'p, B: Board> Names<'p, B> {
    fn new(prefix: &'p [u8], list: bool) -> Self {
        if list {
            B::write_console(b"\n");
        }
        Self {
            prefix,
            common: Vec::new(),
            count: 0,
            list,
            console: Console::new(),
        }
    }

    fn consider(&mut self, name: &[u8]) {
        if !name.starts_with(self.prefix) {
            return;
        }
        if self.list {
            _ = writeln!(self.console, "{}", Text(name));
        }
        self.count += 1;
        if self.count == 1 {
            self.common = Vec::from_slice(name).unwrap_or_default();
            return;
        }
        let pairs = self.common.iter().zip(name);
        let mut same = pairs.take_while(|(a, b)| a == b).count();
        // Do not split a UTF-8 character.
        while name.get(same).is_some_and(|byte| byte & 0xc0 == 0x80) {
            same -= 1;
        }
        self.common.truncate(same);
    }

    /// The text to append to the word, followed by `end` if there is only one completion.
    fn more(&self, end: u8) -> Vec<u8, MAX_COMPLETION> {
        let mut more = Vec::new();
        let rest = self.common.get(self.prefix.len()..).unwrap_or_default();
        if write!(more, "{}", Escaped(rest)).is_ok() && self.count == 1 {
            _ = more.push(end);
        }
        more
    }
}
