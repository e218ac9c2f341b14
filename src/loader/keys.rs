//! Decodes the bytes that a terminal sends into keys (ECMA-48; xterm's control sequences).

use super::Board;
use crate::hal::Clock;
use core::time::Duration;

/// A key, or its function if several keys have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A byte of text.
    Byte(u8),
    Enter,
    Tab,
    Escape,
    Backspace,
    Delete,
    Left,
    Right,
    Up,
    Down,
    Home,
    End,
    /// Ctrl-C.
    Cancel,
    /// Ctrl-D.
    EndOfInput,
    /// Ctrl-K: delete everything after the cursor.
    KillRest,
    /// Ctrl-U: delete everything before the cursor.
    KillStart,
    /// Ctrl-W: delete the word before the cursor.
    KillWord,
    /// Ctrl-L.
    Redraw,
    /// Any other key.
    Other,
}

/// Longest time between the bytes of one key. QEMU may pass them one by one, and be delayed on a busy host.
const WITHIN: Duration = Duration::from_millis(500);
/// Most bytes of one key.
const MAX_SEQUENCE: usize = 16;
/// Most bytes to read in search of a key that is held down.
const MAX_HELD: usize = 64;

/// Whether a key that shows a hidden menu, space or Escape, is held down.
pub(super) fn is_menu_key_held<B: Board>() -> bool {
    let mut held = core::iter::from_fn(B::read_console).take(MAX_HELD);
    held.any(|byte| matches!(byte, b' ' | 0x1b))
}

/// The next key, if one was pressed. Waits only for the remaining bytes of a key.
pub(super) fn poll<B: Board>(clock: B::Clock) -> Option<Key> {
    let first = B::read_console()?;
    Some(decode(first, || {
        let start = clock.now();
        loop {
            if let Some(byte) = B::read_console() {
                return Some(byte);
            }
            if clock.now().saturating_sub(start) > WITHIN {
                return None;
            }
            clock.relax();
        }
    }))
}

/// Waits for the next key, until `deadline` or without a limit.
pub(super) fn wait<B: Board>(clock: B::Clock, deadline: Option<Duration>) -> Option<Key> {
    loop {
        if let Some(key) = poll::<B>(clock) {
            return Some(key);
        }
        if deadline.is_some_and(|deadline| clock.now() >= deadline) {
            return None;
        }
        clock.relax();
    }
}

/// Decodes the key that starts with the byte `first`.
fn decode(first: u8, mut next: impl FnMut() -> Option<u8>) -> Key {
    match first {
        b'\r' | b'\n' => Key::Enter,
        b'\t' => Key::Tab,
        0x08 | 0x7f => Key::Backspace,
        0x1b => match next() {
            None => Key::Escape,
            Some(b'[') => sequence(next),
            Some(b'O') => next().map_or(Key::Other, |last| named(last, 0)),
            Some(_) => Key::Other,
        },
        // Ctrl and a letter.
        0x01..=0x1f => match first | 0x60 {
            b'a' => Key::Home,
            b'b' => Key::Left,
            b'c' => Key::Cancel,
            b'd' => Key::EndOfInput,
            b'e' => Key::End,
            b'f' => Key::Right,
            b'k' => Key::KillRest,
            b'l' => Key::Redraw,
            b'n' => Key::Down,
            b'p' => Key::Up,
            b'u' => Key::KillStart,
            b'w' => Key::KillWord,
            _ => Key::Other,
        },
        0 => Key::Other,
        byte => Key::Byte(byte),
    }
}

/// Decodes the rest of a control sequence: parameters and a final byte.
fn sequence(mut next: impl FnMut() -> Option<u8>) -> Key {
    let mut parameter = 0_u8;
    let mut is_first = true;
    for _ in 0..MAX_SEQUENCE {
        match next() {
            Some(digit @ b'0'..=b'9') if is_first => {
                parameter = parameter.saturating_mul(10).saturating_add(digit - b'0');
            }
            Some(last @ 0x40..=0x7e) => return named(last, parameter),
            Some(_) => is_first = false,
            None => break,
        }
    }
    Key::Other
}

/// The key with this final byte and first parameter.
fn named(last: u8, parameter: u8) -> Key {
    match (last, parameter) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'C', _) => Key::Right,
        (b'D', _) => Key::Left,
        (b'H', _) | (b'~', 1 | 7) => Key::Home,
        (b'F', _) | (b'~', 4 | 8) => Key::End,
        (b'~', 3) => Key::Delete,
        (b'M', 0) => Key::Enter,
        _ => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut rest = bytes.iter().copied();
        let mut keys = Vec::new();
        while let Some(first) = rest.next() {
            keys.push(decode(first, || rest.next()));
        }
        keys
    }

    #[test]
    fn different_sequences_mean_the_same_key() {
        for (key, ways) in [
            (Key::Up, &[&b"\x1b[A"[..], b"\x1bOA", b"\x10"][..]),
            (Key::Down, &[b"\x1b[B", b"\x1bOB", b"\x0e"]),
            (Key::Left, &[b"\x1b[D", b"\x1bOD", b"\x02", b"\x1b[1;5D"]),
            (Key::Right, &[b"\x1b[C", b"\x1bOC", b"\x06"]),
            (
                Key::Home,
                &[b"\x1b[H", b"\x1bOH", b"\x1b[1~", b"\x1b[7~", b"\x01"],
            ),
            (
                Key::End,
                &[b"\x1b[F", b"\x1bOF", b"\x1b[4~", b"\x1b[8~", b"\x05"],
            ),
            (Key::Delete, &[b"\x1b[3~", b"\x1b[3;2~"]),
            (Key::Backspace, &[b"\x08", b"\x7f"]),
            (Key::Enter, &[b"\r", b"\n", b"\x1bOM"]),
            (Key::Escape, &[b"\x1b"]),
            (
                Key::Other,
                &[
                    b"\x1b[15~",
                    b"\x1b[",
                    b"\x1bO",
                    b"\x1bx",
                    b"\0",
                    b"\x1b[99999999~",
                ],
            ),
        ] {
            for way in ways {
                assert_eq!(keys(way), [key], "{}", way.escape_ascii());
            }
        }
    }

    #[test]
    fn text_is_bytes_and_sequences_end() {
        let text = "aé ~".bytes().map(Key::Byte);
        assert_eq!(keys("aé ~".as_bytes()), text.collect::<Vec<_>>());
        assert_eq!(keys(b"\x1b[Ax"), [Key::Up, Key::Byte(b'x')]);
        // A sequence without a final byte ends at the limit.
        assert_eq!(
            keys(&[b"\x1b[", &[b'1'; 16][..], b"x"].concat())[1..],
            [Key::Byte(b'x')]
        );
    }
}
