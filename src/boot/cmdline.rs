//! Builds the payload's command line, and splits command lines into words.

use core::{ffi::CStr, fmt};

/// Longest command line of an arm64 kernel in bytes, without the NUL (`COMMAND_LINE_SIZE` in
/// `arch/arm64/include/uapi/asm/setup.h` is 2048). x86 kernels state their limit:
/// [`BzImage::cmdline_size`](crate::boot::bzimage::BzImage::cmdline_size).
pub const ARM64_LIMIT: usize = 2047;

/// Why a command line cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandLineError {
    /// The text contains a NUL, which would end the command line.
    Nul {
        /// Its offset in bytes.
        offset: usize,
    },
    /// The command line is longer than the kernel allows.
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The longest allowed length in bytes.
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

/// Builds a payload's command line in `buffer`.
///
/// It consists of these parts, separated by one space:
/// 1. `board_words`;
/// 2. `text`, from a file or an entry: line ends and tabs become spaces, and white space at both ends is
///    removed;
/// 3. `extra`, the words after `--` on the firmware's own command line, cleaned in the same way.
///
/// A word `--` in `text` or `extra` ends the kernel's own words: those after it are for init (the kernel's
/// `Documentation/admin-guide/kernel-parameters.rst`). The init words of both parts come last, after a single
/// `--`.
///
/// `limit` is the longest command line in bytes that the kernel accepts, without the NUL; `buffer` needs one
/// byte more.
///
/// # Errors
///
/// [`CommandLineError`] if the text contains a NUL, or if the result does not fit into `limit` or `buffer`.
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
        line.push_part(word.as_ref());
    }
    let parts = [text, extra].map(split_at_init);
    for (kernel, _) in parts {
        line.push_part(kernel);
    }
    if parts.iter().any(|(_, init)| init.is_some()) {
        line.push_part(END_OF_KERNEL_WORDS);
    }
    for (_, init) in parts {
        line.push_part(init.unwrap_or_default());
    }

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

/// A line being written. Bytes beyond the end of the buffer are counted but not stored.
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

/// The word that separates the kernel's words from those for init.
const END_OF_KERNEL_WORDS: &[u8] = b"--";

/// Splits a command line at `--` into the kernel's part and, if there is a `--`, init's part.
fn split_at_init(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut words = words(line);
    while let Some(word) = words.next() {
        if word == END_OF_KERNEL_WORDS {
            let init = words.rest();
            let kernel = line.strip_suffix(init).and_then(|l| l.strip_suffix(word));
            return (kernel.unwrap_or_default(), Some(init));
        }
    }
    (line, None)
}

/// Whether the kernel treats `byte` as white space (`isspace`, for ASCII).
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// Whether the kernel's part of `line` has a word with the same key as `word`. As in the kernel, `-` and `_`
/// are the same in a key.
#[must_use]
pub fn has_key_of(line: &[u8], word: &[u8]) -> bool {
    let same = |a: &u8, b: &u8| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
    let (key, _) = key_and_value(word);
    words(split_at_init(line).0).any(|word| {
        let (other, _) = key_and_value(word);
        other.len() == key.len() && other.iter().zip(key).all(|(a, b)| same(a, b))
    })
}

/// Iterates over the words of a command line; see [`words`].
#[derive(Clone, Debug)]
pub struct Words<'a> {
    rest: &'a [u8],
    open_quote: bool,
}

/// Splits a command line at white space outside of double quotes, like the kernel (`next_arg` in
/// `lib/cmdline.c`). Quotes may begin anywhere in a word; they are not removed.
#[must_use]
pub const fn words(line: &[u8]) -> Words<'_> {
    Words {
        rest: line,
        open_quote: false,
    }
}

impl<'a> Words<'a> {
    /// The text after the last word taken.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether the last word taken has an unclosed quote, and so extends to the end of the line.
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

/// Splits a word into key and value at the first `=`. Quotes around the word or the value are removed, as in
/// the kernel's `next_arg`.
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

/// `text` without a double quote at its start and, if there was one, the double quote at its end.
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
    fn words_for_init_come_last_after_one_separator() {
        assert_eq!(
            built(&["a=1"], "quiet -- single\n", "debug"),
            b"a=1 quiet debug -- single"
        );
        assert_eq!(built(&[], "quiet --", "x -- y"), b"quiet x -- y");
        assert_eq!(built(&[], "-- a", "-- b -- c"), b"-- a b -- c");
        assert_eq!(built(&["a=1"], "", "--"), b"a=1 --");
        assert_eq!(built(&[], "x=\"a -- b\" --c", "d"), b"x=\"a -- b\" --c d");
    }

    #[test]
    fn a_key_is_found_in_the_kernels_part_of_a_line() {
        for (line, word, found) in [
            ("tsc-early-khz=1", "tsc_early_khz=2000000", true),
            ("a tsc_early_khz", "tsc_early_khz=2000000", true),
            ("\"virtio_mmio.device=a b\"", "virtio_mmio.device=1", true),
            (
                "x=\"tsc_early_khz=1 tsc_early_khz=2\"",
                "tsc_early_khz=1",
                false,
            ),
            ("quiet -- no_timer_check", "no_timer_check", false),
            ("no_timer_check -- quiet", "no_timer_check", true),
            ("", "no_timer_check", false),
        ] {
            assert_eq!(
                has_key_of(line.as_bytes(), word.as_bytes()),
                found,
                "{line}"
            );
        }
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
                let is_kernels = words(split_at_init(&line).0).any(|other| other == word);
                assert!(has_key_of(&line, word) || !is_kernels);
            }
            let mut buffer = [0; 40];
            let end = random.below(41) as usize;
            if let Ok(built) = build(&mut buffer[..end], 50, &["a=1", "b"], &line, &line) {
                assert!(built.count_bytes() < end);
            }
        }
    }
}
