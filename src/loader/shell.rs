//! The shell: commands that a person types.
//!
//! It waits for input as long as it takes: someone asked for it.

use super::{
    Board, End, Failed,
    arena::Arena,
    boot::Flow,
    commands,
    console::{Console, Text},
    line::{Editor, Ended},
};
use crate::boot::{
    commands::{Commands, Escaped, Words},
    memory::PlacementError,
};
use core::{fmt::Write, ops::ControlFlow};
use heapless::Vec;

const PROMPT: &str = "bootshare> ";
/// What `linux` and `initrd` may say in all, in bytes.
const MAX_TYPED: usize = 16 << 10;
/// The longest name in bytes,
const MAX_NAME: usize = 255;
/// and with each byte as `\\xNN`, and what stands behind it.
pub(super) const MAX_MORE: usize = 4 * MAX_NAME + 1;

/// What is kept of a person's typing. Too large for the stack.
pub(super) struct State {
    pub editor: Editor,
    pub typed: Typed,
}

impl State {
    /// Nothing typed yet, in memory of `arena`.
    #[inline(never)] // So that it is on the stack for a moment only.
    pub fn new<'m>(arena: &mut Arena<'m>) -> Result<&'m mut Self, PlacementError> {
        let state = Self {
            editor: Editor::new(),
            typed: Typed {
                share: 0,
                text: Vec::new(),
            },
        };
        arena.keep("shell's memory", state)
    }
}

/// The boot entry that `linux` and `initrd` make.
pub(super) struct Typed {
    /// Which of the mounted shares its files come from.
    pub share: usize,
    /// As in a file of the Boot Loader Specification.
    pub text: Vec<u8, MAX_TYPED>,
}

impl Typed {
    /// Adds a line. It fails if there is no room, or if there would be more than one.
    pub fn push(&mut self, key: &str, words: &[&[u8]]) -> Result<(), Failed> {
        let before = self.text.len();
        let mut add = |part: &[u8]| {
            let is_line = !part.contains(&b'\n');
            is_line && self.text.extend_from_slice(part).is_ok()
        };
        let mut ok = add(key.as_bytes());
        for word in words {
            // As a kernel reads what has a space in it.
            let quote: &[u8] = if word.contains(&b' ') && key == "options" {
                b"\""
            } else {
                b""
            };
            ok = ok && add(b" ") && add(quote) && add(word) && add(quote);
        }
        if ok && self.text.push(b'\n').is_ok() {
            return Ok(());
        }
        self.text.truncate(before);
        log::error!("{key}: it is too long, or has a line end in it");
        Err(Failed)
    }
}

/// Runs what is typed until the shell is left (`None`), or the machine is to end.
#[inline(never)] // So that the large frames of the boot flow do not add up.
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
        let line = Vec::<u8, { commands::MAX_COMMAND }>::from_slice(state.editor.text());
        let line = line.unwrap_or_default();
        if let ControlFlow::Break(end) = commands::run(flow, &line, &mut state.typed, arena) {
            return end;
        }
    }
}

/// What goes behind `text` to complete its last word, a command or a path. Lists what there is to
/// choose from if `list`.
#[inline(never)] // As above.
fn complete<B: Board>(flow: &Flow<'_, B>, text: &[u8], list: bool) -> Vec<u8, MAX_MORE> {
    let command = text.rsplit(|byte| *byte == b';').next().unwrap_or(text);
    let mut buffer = [0; commands::MAX_COMMAND];
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
        commands::names().for_each(|name| names.consider(name.as_bytes()));
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

/// Names that a word may become.
struct Names<'p, B> {
    prefix: &'p [u8],
    /// What they have in common.
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
        // Not inside of a character.
        while name.get(same).is_some_and(|byte| byte & 0xc0 == 0x80) {
            same -= 1;
        }
        self.common.truncate(same);
    }

    /// What goes behind the word, with `end` if only one name is left.
    fn more(&self, end: u8) -> Vec<u8, MAX_MORE> {
        let mut more = Vec::new();
        let rest = self.common.get(self.prefix.len()..).unwrap_or_default();
        if write!(more, "{}", Escaped(rest)).is_ok() && self.count == 1 {
            _ = more.push(end);
        }
        more
    }
}
