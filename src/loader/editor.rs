//! A line editor with a history.
//!
//! The existing crates are not suitable: they ask the terminal for the position of its cursor (a script does not
//! answer), lack common keys, or need a heap.

use super::{
    Board,
    console::Console,
    keys::{self, Key},
};
use crate::hal::Clock;
use core::{fmt::Write, time::Duration};

/// Longest line in bytes; kernels accept less.
const MAX_LINE: usize = 4096;
/// Size of the history in bytes.
const MAX_HISTORY: usize = 8192;
/// The usable columns: terminals have at least 80, and some wrap at the last one.
const COLUMNS: usize = 79;
/// Longest name to complete, in bytes.
pub(super) const MAX_NAME: usize = 255;
/// Longest completion in bytes: a name with each byte escaped as `\\xNN`, and the byte after it.
pub(super) const MAX_COMPLETION: usize = 4 * MAX_NAME + 1;

/// Whether `byte` is a continuation byte of a UTF-8 character.
const fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// The number of characters in `text`; each is assumed to be one column wide.
fn columns(text: &[u8]) -> usize {
    text.iter().filter(|byte| !is_continuation(**byte)).count()
}

/// A text and the position of the cursor, which is never inside a character.
struct Line {
    bytes: heapless::Vec<u8, MAX_LINE>,
    cursor: usize,
}

impl Line {
    const fn new() -> Self {
        Self {
            bytes: heapless::Vec::new(),
            cursor: 0,
        }
    }

    fn before(&self) -> &[u8] {
        self.bytes.get(..self.cursor).unwrap_or_default()
    }

    fn after(&self) -> &[u8] {
        self.bytes.get(self.cursor..).unwrap_or_default()
    }

    fn set(&mut self, text: &[u8]) {
        self.bytes.clear();
        self.cursor = 0;
        self.insert(text);
    }

    /// Inserts `text` at the cursor. Bytes that do not fit are dropped.
    fn insert(&mut self, text: &[u8]) {
        for byte in text {
            if self.bytes.insert(self.cursor, *byte).is_ok() {
                self.cursor += 1;
            }
        }
    }

    /// The size in bytes of the character before the cursor.
    fn step_back(&self) -> usize {
        let before = self.before().iter();
        let start = before.rev().position(|byte| !is_continuation(*byte));
        start.map_or(self.cursor, |start| start + 1)
    }

    /// The size in bytes of the character at the cursor.
    fn step(&self) -> usize {
        let after = self.after();
        let next = after
            .iter()
            .skip(1)
            .position(|byte| !is_continuation(*byte));
        next.map_or(after.len(), |next| next + 1)
    }

    /// The distance in bytes to the start of the word before the cursor.
    fn word(&self) -> usize {
        let before = self.before();
        let word = before.trim_ascii_end();
        let start = word.iter().rposition(u8::is_ascii_whitespace);
        before.len() - start.map_or(0, |start| start + 1)
    }

    /// Removes `before` bytes before the cursor and `after` bytes after it.
    fn remove(&mut self, before: usize, after: usize) {
        let (start, end) = (self.cursor - before, self.cursor + after);
        self.bytes.copy_within(end.., start);
        self.bytes.truncate(self.bytes.len() - (end - start));
        self.cursor = start;
    }

    /// Applies `key` if it edits the line.
    fn press(&mut self, key: Key) {
        match key {
            Key::Byte(byte) => self.insert(&[byte]),
            Key::Left => self.cursor -= self.step_back(),
            Key::Right => self.cursor += self.step(),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.bytes.len(),
            Key::Backspace => self.remove(self.step_back(), 0),
            Key::Delete | Key::EndOfInput => self.remove(0, self.step()),
            Key::KillRest => self.remove(0, self.after().len()),
            Key::KillStart => self.remove(self.cursor, 0),
            Key::KillWord => self.remove(self.word(), 0),
            _ => {}
        }
    }

    /// The part of the text to show in `width` columns, and the column of the cursor in it.
    fn window(&self, width: usize) -> (&[u8], usize) {
        let column = columns(self.before());
        let first = (column + 1).saturating_sub(width);
        let starts = self.bytes.iter().enumerate();
        let mut starts = starts.filter(|(_, byte)| !is_continuation(**byte));
        let start = starts.nth(first).map_or(self.bytes.len(), |(at, _)| at);
        let end = starts.nth(width - 1).map_or(self.bytes.len(), |(at, _)| at);
        (&self.bytes[start..end], column - first)
    }
}

/// Earlier lines, each with a line end, oldest first.
struct History {
    bytes: heapless::Vec<u8, MAX_HISTORY>,
}

impl History {
    /// The line `back` lines before the current one; the latest one is 1.
    fn line(&self, back: usize) -> Option<&[u8]> {
        let lines = self.bytes.strip_suffix(b"\n")?;
        lines
            .rsplit(|byte| *byte == b'\n')
            .nth(back.checked_sub(1)?)
    }

    fn push(&mut self, line: &[u8]) {
        if line.trim_ascii().is_empty() || self.line(1) == Some(line) {
            return;
        }
        while self.bytes.capacity() - self.bytes.len() < line.len() + 1 {
            let oldest = self.bytes.iter().position(|byte| *byte == b'\n');
            let Some(oldest) = oldest else { return };
            self.bytes.copy_within(oldest + 1.., 0);
            self.bytes.truncate(self.bytes.len() - (oldest + 1));
        }
        // They fit: see above.
        _ = self.bytes.extend_from_slice(line);
        _ = self.bytes.push(b'\n');
    }
}

/// How editing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Enter,
    /// Ctrl-C, or Escape.
    Cancelled,
    /// Ctrl-D in an empty line.
    EndOfInput,
    /// No key was pressed for too long.
    Idle,
}

/// Returns the text to insert at the cursor when Tab is pressed, given the text before the cursor. The flag asks
/// to print the possible completions: it is set for a second Tab, after one that inserted nothing.
pub(super) type Complete<'c> = &'c mut dyn FnMut(&[u8], bool) -> heapless::Vec<u8, MAX_COMPLETION>;

/// The line editor. It is too large for the stack.
pub(super) struct Editor {
    line: Line,
    draft: Line,
    history: History,
}

impl Editor {
    pub const fn new() -> Self {
        Self {
            line: Line::new(),
            draft: Line::new(),
            history: History {
                bytes: heapless::Vec::new(),
            },
        }
    }

    /// The edited line.
    pub fn text(&self) -> &[u8] {
        &self.line.bytes
    }

    pub fn set(&mut self, text: &[u8]) {
        self.line.set(text);
    }

    pub fn insert(&mut self, text: &[u8]) {
        self.line.insert(text);
    }

    /// Adds the edited line to the history.
    pub fn remember(&mut self) {
        self.history.push(&self.line.bytes);
    }

    /// Lets the user edit the line until a key ends it, or no key is pressed for the time `idle`.
    pub fn edit<B: Board>(
        &mut self,
        clock: B::Clock,
        prompt: &str,
        idle: Option<Duration>,
        complete: Complete<'_>,
    ) -> Ended {
        // The position in the history; 0 is the line being edited.
        let mut back = 0;
        // Whether the last key was a Tab that inserted nothing.
        let mut stuck = false;
        let ended = loop {
            let key = keys::poll::<B>(clock).or_else(|| {
                // Draw only after all typed or pasted bytes were read.
                self.draw::<B>(prompt);
                keys::wait::<B>(clock, idle.map(|idle| clock.now() + idle))
            });
            let was_stuck = core::mem::take(&mut stuck);
            match key {
                None => break Ended::Idle,
                Some(Key::Enter) => break Ended::Enter,
                Some(Key::Cancel | Key::Escape) => break Ended::Cancelled,
                Some(Key::EndOfInput) if self.line.bytes.is_empty() => break Ended::EndOfInput,
                Some(Key::Tab) => {
                    let more = complete(self.line.before(), was_stuck);
                    stuck = more.is_empty();
                    self.line.insert(&more);
                }
                Some(Key::Redraw) => B::write_console(b"\x1b[2J\x1b[H"),
                Some(Key::Up) => self.look_back(&mut back, true),
                Some(Key::Down) => self.look_back(&mut back, false),
                Some(key) => self.line.press(key),
            }
        };
        self.line.cursor = self.line.bytes.len();
        self.draw::<B>(prompt);
        B::write_console(b"\n");
        ended
    }

    /// Replaces the line by the previous or next one of the history.
    fn look_back(&mut self, back: &mut usize, up: bool) {
        let to = if up {
            *back + 1
        } else {
            back.saturating_sub(1)
        };
        if to == *back {
            return;
        }
        if *back == 0 {
            self.draft.set(&self.line.bytes);
        }
        if to == 0 {
            self.line.set(&self.draft.bytes);
        } else if let Some(line) = self.history.line(to) {
            self.line.set(line);
        } else {
            return;
        }
        *back = to;
    }

    fn draw<B: Board>(&self, prompt: &str) {
        let mut console = Console::<B>::new();
        let (text, column) = self.line.window(COLUMNS - prompt.len());
        _ = write!(console, "\r{prompt}");
        for byte in text.chunk_by(|_, next| is_continuation(*next)) {
            let shown = core::str::from_utf8(byte).ok();
            let shown = shown.filter(|text| !text.contains(char::is_control));
            _ = console.write_str(shown.unwrap_or("?"));
        }
        // Erase the rest of the line and move to the column of the cursor.
        _ = write!(console, "\x1b[K\r\x1b[{}C", prompt.len() + column);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{format, string::String, vec, vec::Vec};

    /// The line after these keys, with `|` at the cursor.
    fn typed(text: &str, keys: &[Key]) -> String {
        let mut line = Line::new();
        line.set(text.as_bytes());
        keys.iter().for_each(|key| line.press(*key));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        format!("{}|{}", text(line.before()), text(line.after()))
    }

    #[test]
    fn keys_edit_whole_characters() {
        use Key::*;
        for (text, keys, expected) in [
            ("ls", &[Byte(b' '), Byte(b'/')][..], "ls /|"),
            ("aéz", &[Left, Left], "a|éz"),
            ("aéz", &[Left, Left, Left, Left, Right, Right], "aé|z"),
            ("aéz", &[Left, Backspace], "a|z"),
            ("aéz", &[Home, Right, Delete], "a|z"),
            ("aéz", &[Home, Right, EndOfInput], "a|z"),
            (
                "",
                &[
                    Backspace, Delete, Left, Right, KillWord, KillRest, KillStart,
                ],
                "|",
            ),
            ("aé", &[Right, Delete], "aé|"),
            ("cat /a b  ", &[KillWord], "cat /a |"),
            ("cat /a", &[KillWord, KillWord, KillWord], "|"),
            ("cat /a b", &[Left, Left, KillRest], "cat /a|"),
            ("cat /a b", &[Left, Left, KillStart], "| b"),
            ("b", &[Home, Byte(b'a'), End, Byte(b'c')], "abc|"),
            ("a", &[Other, Tab, Up], "a|"),
        ] {
            assert_eq!(typed(text, keys), expected, "{text} {keys:?}");
        }
    }

    #[test]
    fn characters_that_do_not_fit_are_dropped() {
        let mut line = Line::new();
        line.set(&[b'x'; MAX_LINE + 5]);
        assert_eq!((line.bytes.len(), line.cursor), (MAX_LINE, MAX_LINE));
        line.press(Key::Byte(b'y'));
        line.press(Key::Backspace);
        assert_eq!(line.bytes.len(), MAX_LINE - 1);
    }

    #[test]
    fn any_keys_leave_the_cursor_inside_the_line() {
        use crate::boot::testing::{Random, seeds};
        const KEYS: [Key; 12] = [
            Key::Byte(b'a'),
            Key::Byte(0xc3),
            Key::Byte(0xa9),
            Key::Byte(b' '),
            Key::Left,
            Key::Right,
            Key::Home,
            Key::Backspace,
            Key::Delete,
            Key::KillWord,
            Key::KillRest,
            Key::End,
        ];
        for seed in seeds(500) {
            let mut random = Random::new(seed);
            let mut line = Line::new();
            for _ in 0..100 {
                line.press(KEYS[random.below(KEYS.len() as u64) as usize]);
                assert!(line.cursor <= line.bytes.len());
                let (text, column) = line.window(5);
                assert!(columns(text) <= 5 && column < 5);
            }
        }
    }

    #[test]
    fn a_long_line_is_shown_around_its_cursor() {
        let mut line = Line::new();
        line.set("0123456789é".as_bytes());
        assert_eq!(line.window(20), ("0123456789é".as_bytes(), 11));
        assert_eq!(line.window(4), ("89é".as_bytes(), 3));
        line.press(Key::Left);
        assert_eq!(line.window(4), ("789é".as_bytes(), 3));
        line.press(Key::Home);
        assert_eq!(line.window(4), (&b"0123"[..], 0));
        line.set(b"");
        assert_eq!(line.window(4), (&b""[..], 0));
    }

    #[test]
    fn earlier_lines_can_be_recalled() {
        let mut history = History {
            bytes: heapless::Vec::new(),
        };
        assert_eq!(history.line(1), None);
        for line in ["a", "b", "b", " ", ""] {
            history.push(line.as_bytes());
        }
        let lines = |history: &History| -> Vec<Vec<u8>> {
            let all = (1..).map_while(|back| history.line(back));
            all.map(<[u8]>::to_vec).collect()
        };
        assert_eq!(lines(&history), [b"b", b"a"]);
        assert_eq!(history.line(0), None);
        // The oldest make room.
        let long = vec![b'c'; MAX_HISTORY - 3];
        history.push(&long);
        assert!(lines(&history) == [&long[..], b"b"]);
        history.push(b"d");
        assert!(lines(&history) == [b"d", &long[..]]);
        history.push(b"eee");
        assert_eq!(lines(&history), [&b"eee"[..], b"d"]);
        history.push(&[b'e'; MAX_HISTORY]);
        assert_eq!(history.line(1), None);
    }
}
