//! The payload's command line, put together, and the words of a command line, taken apart.

use core::{ffi::CStr, fmt};

/// Longest command line of an arm64 kernel in bytes, without its NUL (`COMMAND_LINE_SIZE` of
/// `arch/arm64/include/uapi/asm/setup.h` is 2048). x86 kernels tell theirs:
/// [`BzImage::cmdline_size`](crate::boot::bzimage::BzImage::cmdline_size).
pub const ARM64_LIMIT: usize = 2047;

/// Why there is no command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandLineError {
    /// There is a NUL in the text, which would end the command line there.
    Nul {
        /// Its offset in bytes.
        offset: usize,
    },
    /// It is longer than the kernel takes.
    TooLong {
        /// Bytes that it would have.
        bytes: usize,
        /// Bytes that it may have.
        limit: usize,
    },
}

impl fmt::Display for CommandLineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Nul { offset } => write!(
                f,
                "the command line has a NUL at byte {offset}; write it as plain text"
            ),
            Self::TooLong { bytes, limit } => write!(
                f,
                "the command line has {bytes} bytes and the kernel takes {limit} at most; \
                 make it shorter"
            ),
        }
    }
}

impl core::error::Error for CommandLineError {}

/// Puts a payload's command line together in `buffer`.
///
/// In this order, one space between them:
/// 1. those of `board_words` whose key is in neither of the other two. They come first, as boot.rst
///    ("Special Command Line Options") advises: after a `--` in the text they would be init's.
/// 2. `text`, as a file or an entry has it: line ends and tabs become spaces, white space at both
///    ends goes;
/// 3. `extra`, the words after `--` of the firmware's own command line, cleaned the same way.
///
/// `limit` is the most bytes that the kernel takes, without the NUL; `buffer` needs one more.
///
/// # Errors
///
/// [`CommandLineError`] if the text has a NUL or the whole is longer than `limit` or `buffer`.
pub fn build<'b, W: AsRef<[u8]>>(
    buffer: &'b mut [u8],
    limit: usize,
    board_words: &[W],
    text: &[u8],
    extra: &[u8],
) -> Result<&'b CStr, CommandLineError> {
    for part in [text, extra] {
        if let Some(offset) = part.iter().position(|&byte| byte == 0) {
            return Err(CommandLineError::Nul { offset });
        }
    }
    let limit = limit.min(buffer.len().saturating_sub(1));
    let mut line = Line { buffer, len: 0 };
    for word in board_words {
        let word = word.as_ref();
        let (key, _) = key_and_value(word);
        if !has_key(text, key) && !has_key(extra, key) {
            line.push_part(word);
        }
    }
    line.push_part(text);
    line.push_part(extra);

    let bytes = line.len;
    line.push(0);
    let Line { buffer, len } = line;
    let too_long = CommandLineError::TooLong { bytes, limit };
    if bytes > limit {
        return Err(too_long);
    }
    let written = buffer.get(..len).ok_or(too_long)?;
    CStr::from_bytes_until_nul(written).map_err(|_| too_long)
}

/// A line that goes on counting where its buffer ends.
struct Line<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl Line<'_> {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.buffer.get_mut(self.len) {
            *place = byte;
        }
        self.len = self.len.saturating_add(1);
    }

    fn push_part(&mut self, part: &[u8]) {
        let part = part.trim_ascii();
        if part.is_empty() {
            return;
        }
        if self.len > 0 {
            self.push(b' ');
        }
        for &byte in part {
            self.push(if is_space(byte) { b' ' } else { byte });
        }
    }
}

/// White space between words, as the kernel sees it in ASCII.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// Whether a word of `line` has this key. `-` and `_` are the same in a key, as in the kernel.
fn has_key(line: &[u8], key: &[u8]) -> bool {
    let same = |a: &u8, b: &u8| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
    // What stands behind `--` is for init.
    let mut words = words(line).take_while(|word| *word != b"--");
    words.any(|word| {
        let (other, _) = key_and_value(word);
        other.len() == key.len() && other.iter().zip(key).all(|(a, b)| same(a, b))
    })
}

/// The words of a command line; see [`words`].
#[derive(Clone, Debug)]
pub struct Words<'a> {
    rest: &'a [u8],
    open_quote: bool,
}

/// Splits a command line at white space outside of double quotes, as the kernel does
/// (`next_arg` of `lib/cmdline.c`). Quotes may begin anywhere in a word, and stay in it.
#[must_use]
pub const fn words(line: &[u8]) -> Words<'_> {
    Words {
        rest: line,
        open_quote: false,
    }
}

impl<'a> Words<'a> {
    /// What comes after the words that were taken.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether the last word taken had a quote that no other one closed: it went on to the end.
    #[must_use]
    pub const fn open_quote(&self) -> bool {
        self.open_quote
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.rest.iter().position(|&byte| !is_space(byte));
        let line = self.rest.get(start.unwrap_or(self.rest.len())..)?;
        self.open_quote = false;
        let end = line.iter().position(|&byte| {
            self.open_quote ^= byte == b'"';
            is_space(byte) && !self.open_quote
        });
        let (word, rest) = line.split_at_checked(end.unwrap_or(line.len()))?;
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }
}

/// A word's key and value, apart at the first `=`. Quotes around the word or the value are not
/// part of them, as in the kernel's `next_arg`.
#[must_use]
pub fn key_and_value(word: &[u8]) -> (&[u8], Option<&[u8]>) {
    let word = unquote(word);
    match word.iter().position(|&byte| byte == b'=') {
        Some(at) => {
            let (key, value) = word.split_at_checked(at).unwrap_or((word, b""));
            (key, Some(unquote(value.get(1..).unwrap_or_default())))
        }
        None => (word, None),
    }
}

/// Without the double quote it starts with, and the one it ends with then.
fn unquote(text: &[u8]) -> &[u8] {
    match text.strip_prefix(b"\"") {
        Some(inner) => inner.strip_suffix(b"\"").unwrap_or(inner),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::{string::ToString, vec, vec::Vec};

    const NONE: [&[u8]; 0] = [];

    fn built(board: &[&str], text: &str, extra: &str) -> Vec<u8> {
        let mut buffer = [0xff; 256];
        let line = build(&mut buffer, 255, board, text.as_bytes(), extra.as_bytes());
        line.unwrap().to_bytes().to_vec()
    }

    #[test]
    fn the_parts_come_in_their_order_with_one_space_between() {
        assert_eq!(
            built(&["a=1", "b"], "root=/dev/vda quiet\n", " debug  x "),
            b"a=1 b root=/dev/vda quiet debug  x"
        );
        assert_eq!(built(&[], "", ""), b"");
        assert_eq!(built(&[], " \n", "x"), b"x");
        assert_eq!(built(&["a=1"], "", ""), b"a=1");
    }

    #[test]
    fn line_ends_become_spaces() {
        assert_eq!(
            built(&[], "\r\nquiet\r\nroot=a\tb\n\n", ""),
            b"quiet  root=a b"
        );
    }

    #[test]
    fn a_board_word_gives_way_to_one_with_its_key() {
        let board = [
            "tsc_early_khz=2000000",
            "virtio_mmio.device=1",
            "virtio_mmio.device=2",
        ];
        assert_eq!(
            built(&board, "tsc-early-khz=1", ""),
            b"virtio_mmio.device=1 virtio_mmio.device=2 tsc-early-khz=1"
        );
        assert_eq!(
            built(&board, "\"virtio_mmio.device=a b\"", "tsc_early_khz"),
            b"\"virtio_mmio.device=a b\" tsc_early_khz"
        );
        assert_eq!(
            built(&board[..1], "x=\"tsc_early_khz=1 tsc_early_khz=2\"", ""),
            b"tsc_early_khz=2000000 x=\"tsc_early_khz=1 tsc_early_khz=2\""
        );
    }

    #[test]
    fn a_line_as_long_as_allowed_fits_and_one_byte_more_does_not() {
        let mut buffer = [0; 2048];
        let text = vec![b'x'; 2000];
        let extra = [b'y'; 46];
        let line = build(&mut buffer, ARM64_LIMIT, &NONE, &text, &extra).unwrap();
        assert_eq!(line.count_bytes(), 2047);
        assert_eq!(buffer[2047], 0);
        let extra = [b'y'; 1046];
        assert_eq!(
            build(&mut buffer, ARM64_LIMIT, &NONE, &text, &extra)
                .unwrap_err()
                .to_string(),
            "the command line has 3047 bytes and the kernel takes 2047 at most; make it shorter"
        );
        let mut small = [0; 8];
        assert_eq!(
            build(&mut small, 2047, &NONE, b"12345678", b""),
            Err(CommandLineError::TooLong { bytes: 8, limit: 7 })
        );
        build(&mut small, 2047, &NONE, b"1234567", b"").unwrap();
        assert_eq!(
            build(&mut [], 2047, &NONE, b"", b""),
            Err(CommandLineError::TooLong { bytes: 0, limit: 0 })
        );
    }

    #[test]
    fn a_nul_is_refused() {
        let mut buffer = [0; 32];
        assert_eq!(
            build(&mut buffer, 31, &NONE, b"quiet\0x", b"").unwrap_err(),
            CommandLineError::Nul { offset: 5 }
        );
        assert_eq!(
            build(&mut buffer, 31, &NONE, b"", b"\0").unwrap_err(),
            CommandLineError::Nul { offset: 0 }
        );
    }

    #[test]
    fn words_end_at_space_outside_of_quotes() {
        let mut all = words(b"  a b=\"c d\" \"e f=g\"h\t\"i");
        assert_eq!(all.next(), Some(&b"a"[..]));
        assert_eq!(all.next(), Some(&b"b=\"c d\""[..]));
        assert_eq!(all.next(), Some(&b"\"e f=g\"h"[..]));
        assert!(!all.open_quote());
        assert_eq!(all.rest(), b"\t\"i");
        assert_eq!(all.next(), Some(&b"\"i"[..]));
        assert!(all.open_quote());
        assert_eq!(all.next(), None);
    }

    #[test]
    fn keys_and_values_lose_their_outer_quotes() {
        for (word, key, value) in [
            (&b"quiet"[..], &b"quiet"[..], None),
            (b"a=b=c", b"a", Some(&b"b=c"[..])),
            (b"a=", b"a", Some(b"")),
            (b"a=\"b c\"", b"a", Some(b"b c")),
            (b"\"a=b c\"", b"a", Some(b"b c")),
            (b"a=b\"c d\"e", b"a", Some(b"b\"c d\"e")),
            (b"a=\"b\"c", b"a", Some(b"b\"c")),
            (b"a=\"", b"a", Some(b"")),
            (b"\"", b"", None),
        ] {
            assert_eq!(key_and_value(word), (key, value));
        }
    }

    #[test]
    fn any_bytes_are_split_without_a_panic() {
        for seed in seeds(5_000) {
            let random = &mut Random::new(seed);
            let line: Vec<u8> = (0..random.below(60))
                .map(|_| b"ab=\" \n-_\xff\x0b"[random.below(10) as usize])
                .collect();
            for word in words(&line) {
                assert!(!word.is_empty());
                assert!(key_and_value(word).0.len() <= word.len());
            }
            let mut buffer = [0; 40];
            let end = random.below(41) as usize;
            if let Ok(built) = build(&mut buffer[..end], 50, &["a=1", "b"], &line, &line) {
                assert!(built.count_bytes() < end);
            }
        }
    }
}
