//! Splits a line of text into shell commands and their words: `ls /; cat '/a file'`.
//!
//! Commands end at `;` or a line end, words at white space. In single quotes every byte is literal. In
//! double quotes and outside of quotes, a backslash makes the next byte literal, and `\xNN` is the byte with
//! that hexadecimal number: `walk` and `ls` print names that are not ASCII in this form.

use core::fmt;
use heapless::Vec;

/// Most words of one command.
pub const MAX_WORDS: usize = 32;

/// The words of a command.
pub type Words<'b> = Vec<&'b [u8], MAX_WORDS>;

/// Why a line cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// This quotation mark has no closing one.
    OpenQuote(u8),
    /// The line ends in a backslash.
    OpenEscape,
    /// A command has more than [`MAX_WORDS`] words.
    TooManyWords,
    /// A command is longer than the buffer for it.
    TooLong {
        /// Size of the buffer in bytes.
        limit: usize,
    },
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OpenQuote(quote) => write!(
                f,
                "the quote {} is never closed; write another one",
                char::from(quote)
            ),
            Self::OpenEscape => {
                f.write_str("the line ends in a backslash; write two for a backslash")
            }
            Self::TooManyWords => {
                write!(
                    f,
                    "a command has more than {MAX_WORDS} words; leave some out"
                )
            }
            Self::TooLong { limit } => {
                write!(f, "a command has more than {limit} bytes; make it shorter")
            }
        }
    }
}

impl core::error::Error for CommandError {}

/// Iterates over the commands of a line.
#[derive(Clone, Debug)]
pub struct Commands<'a> {
    rest: &'a [u8],
}

impl<'a> Commands<'a> {
    /// Starts at the first command of `line`.
    #[must_use]
    pub const fn new(line: &'a [u8]) -> Self {
        Self { rest: line }
    }

    /// Writes the words of the next command into `buffer`, without quotes and escapes, and returns them.
    /// Empty commands are skipped.
    ///
    /// A buffer as long as the command is always large enough.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; the rest of the line is dropped then.
    pub fn next<'b>(&mut self, buffer: &'b mut [u8]) -> Option<Result<Words<'b>, CommandError>> {
        let mut ends = Vec::new();
        while !self.rest.is_empty() {
            if let Err(error) = self.split(buffer, &mut ends) {
                self.rest = b"";
                return Some(Err(error));
            }
            if !ends.is_empty() {
                return Some(Ok(slices(buffer, &ends)));
            }
        }
        None
    }

    /// Writes the words of one command to `buffer`, without gaps, and the end of each to `ends`.
    fn split(
        &mut self,
        buffer: &mut [u8],
        ends: &mut Vec<usize, MAX_WORDS>,
    ) -> Result<(), CommandError> {
        let limit = buffer.len();
        let mut len = 0_usize;
        let mut quote = None;
        // An empty pair of quotes is a word, too.
        let mut in_word = false;
        let mut end_word = |in_word: &mut bool, len| {
            if core::mem::take(in_word) {
                ends.push(len).map_err(|_| CommandError::TooManyWords)
            } else {
                Ok(())
            }
        };
        while let Some((&byte, rest)) = self.rest.split_first() {
            self.rest = rest;
            let literal = match (quote, byte) {
                (Some(open), byte) if byte == open => {
                    quote = None;
                    continue;
                }
                (None, b'\'' | b'"') => {
                    quote = Some(byte);
                    in_word = true;
                    continue;
                }
                (None | Some(b'"'), b'\\') => self.escaped()?,
                (None, b';' | b'\n') => break,
                (None, byte) if byte.is_ascii_whitespace() => {
                    end_word(&mut in_word, len)?;
                    continue;
                }
                (_, byte) => byte,
            };
            in_word = true;
            *buffer.get_mut(len).ok_or(CommandError::TooLong { limit })? = literal;
            len = len.saturating_add(1);
        }
        match quote {
            Some(quote) => Err(CommandError::OpenQuote(quote)),
            None => end_word(&mut in_word, len),
        }
    }

    /// Takes the escape sequence after a backslash and returns the byte that it stands for.
    fn escaped(&mut self) -> Result<u8, CommandError> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        if let [b'x', high, low, rest @ ..] = self.rest
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
            && let Ok(byte) = u8::try_from(high << 4 | low)
        {
            self.rest = rest;
            return Ok(byte);
        }
        let (&byte, rest) = self.rest.split_first().ok_or(CommandError::OpenEscape)?;
        self.rest = rest;
        Ok(byte)
    }
}

/// Cuts `buffer` into the words that end at `ends`.
fn slices<'b>(buffer: &'b [u8], ends: &[usize]) -> Words<'b> {
    let mut start = 0;
    ends.iter()
        .map(|&end| {
            let word = buffer.get(start..end).unwrap_or_default();
            start = end;
            word
        })
        .collect()
}

/// Displays part of a word with the escapes that [`Commands`] needs to read it back.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for letter in chunk.valid().chars() {
                match letter {
                    ' ' | '\'' | '"' | '\\' | ';' => write!(f, "\\{letter}")?,
                    '\0'..'\x20' | '\x7f' => write!(f, "\\x{:02x}", u32::from(letter))?,
                    _ => fmt::Write::write_char(f, letter)?,
                }
            }
            let mut odd = chunk.invalid().iter();
            odd.try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::{string::ToString, vec::Vec as StdVec};

    fn commands(line: &[u8]) -> Result<StdVec<StdVec<StdVec<u8>>>, CommandError> {
        let mut buffer = [0; 64];
        let mut all = StdVec::new();
        let mut commands = Commands::new(line);
        while let Some(words) = commands.next(&mut buffer) {
            all.push(words?.iter().map(|word| word.to_vec()).collect());
        }
        Ok(all)
    }

    fn words(line: &[u8]) -> StdVec<StdVec<u8>> {
        let all = commands(line).unwrap();
        assert_eq!(all.len(), 1);
        all[0].clone()
    }

    #[test]
    fn commands_end_at_semicolons_and_line_ends() {
        assert_eq!(
            commands(b";ls  -l /;; cat /a ;\nstat b").unwrap(),
            [
                [&b"ls"[..], b"-l", b"/"].map(<[u8]>::to_vec).to_vec(),
                [&b"cat"[..], b"/a"].map(<[u8]>::to_vec).to_vec(),
                [&b"stat"[..], b"b"].map(<[u8]>::to_vec).to_vec(),
            ]
        );
        assert!(commands(b"").unwrap().is_empty());
        assert!(commands(b" ; ").unwrap().is_empty());
    }

    #[test]
    fn quotes_and_backslashes_make_bytes_literal() {
        for (line, word) in [
            (&b"'a; b\\'"[..], &b"a; b\\"[..]),
            (b"\"a; b\"", b"a; b"),
            (b"a\\ \\;b", b"a ;b"),
            (b"\"a\\\"b\"", b"a\"b"),
            (b"a'b'\"c\"d", b"abcd"),
            (b"''", b""),
            (b"\\x41\\xFf\\x0", b"A\xffx0"),
            (b"\"\\x3b\"", b";"),
            (b"\\\\x41", b"\\x41"),
            (b"'\\x41'", b"\\x41"),
        ] {
            assert_eq!(words(line), [word]);
        }
        assert_eq!(words(b"cat '' a"), [&b"cat"[..], b"", b"a"]);
    }

    #[test]
    fn escaped_text_is_read_back_unchanged() {
        let all: StdVec<u8> = (0..=255).collect();
        for word in [&all[..], "a é;'\"\\\n".as_bytes()] {
            for part in word.chunks(8) {
                let line = std::format!("{}", Escaped(part));
                assert_eq!(words(line.as_bytes()), [part], "{line}");
            }
        }
        assert_eq!(std::format!("{}", Escaped("é a".as_bytes())), "é\\ a");
    }

    #[test]
    fn an_error_ends_the_line() {
        for (line, error, text) in [
            (
                &b"ls 'a; ls"[..],
                CommandError::OpenQuote(b'\''),
                "the quote ' is never closed; write another one",
            ),
            (
                b"ls \\",
                CommandError::OpenEscape,
                "the line ends in a backslash; write two for a backslash",
            ),
            (
                &[b'a'; 65],
                CommandError::TooLong { limit: 64 },
                "a command has more than 64 bytes; make it shorter",
            ),
            (
                &b"a ".repeat(33),
                CommandError::TooManyWords,
                "a command has more than 32 words; leave some out",
            ),
        ] {
            assert_eq!(commands(line), Err(error));
            assert_eq!(error.to_string(), text);
            let mut all = Commands::new(line);
            let mut buffer = [0; 64];
            all.next(&mut buffer).unwrap().unwrap_err();
            assert!(all.next(&mut buffer).is_none());
        }
        commands(&b"a ".repeat(32)).unwrap();
        commands(&[b'a'; 64]).unwrap();
    }

    #[test]
    fn any_line_is_parsed_to_its_end() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let line: StdVec<u8> = (0..random.below(80))
                .map(|_| b"ax4 ;'\"\\\n\xff"[random.below(10) as usize])
                .collect();
            let mut buffer = [0; 32];
            let mut all = Commands::new(&line);
            let mut count = 0;
            while let Some(words) = all.next(&mut buffer) {
                if let Ok(words) = words {
                    assert!(!words.is_empty());
                }
                count += 1;
                assert!(count <= line.len());
            }
        }
    }
}
