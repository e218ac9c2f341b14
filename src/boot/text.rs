//! The common syntax of boot loaders' text files: lines of a key and a value.

/// Splits each line of `text` at the first white space into key and value; the value may be empty. White
/// space at both ends of a line is removed, including the CR of a Windows line end. Empty lines, comments
/// (`#`) and byte order marks are skipped.
pub(super) const fn lines(text: &[u8]) -> Lines<'_> {
    Lines { rest: text }
}

/// `text` without the byte order mark that some editors write before UTF-8.
pub(super) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// `value` without quotation marks, if they enclose all of it.
pub(super) fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [first @ (b'"' | b'\''), inside @ .., last] if first == last && !inside.contains(first) => {
            inside
        }
        _ => value,
    }
}

/// `bytes` as a string for a `match`: comparing with string literals takes a fraction of the code that comparing with
/// byte string literals takes. Bytes that are not UTF-8 match nothing: the result is empty.
pub(crate) fn as_str(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or_default()
}

/// The iterator of [`lines`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// The text after the last line taken.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let (line, rest) = split(self.rest, |byte| byte == b'\n');
            self.rest = rest.get(1..).unwrap_or_default();
            let line = without_mark(line).trim_ascii();
            if !line.is_empty() && !line.starts_with(b"#") {
                let (key, value) = split(line, |byte| byte.is_ascii_whitespace());
                return Some((key, value.trim_ascii_start()));
            }
        }
        None
    }
}

/// Splits `text` before the first byte for which `ends` is true.
fn split(text: &[u8], ends: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|&byte| ends(byte));
    text.split_at_checked(end.unwrap_or(text.len()))
        .unwrap_or((text, b""))
}

/// Parses a decimal number without a sign. A number beyond 32 bits becomes the largest one.
pub(super) fn number(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(None, |number: Option<u32>, byte| {
        let digit = byte.is_ascii_digit().then(|| byte.wrapping_sub(b'0'))?;
        let number = number.unwrap_or(0).saturating_mul(10);
        Some(Some(number.saturating_add(digit.into())))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn lines_are_keys_and_values() {
        let text = b"a b  c \t\r\n\n  # no\nkey\n\t x\ty=\xff\nlast  one";
        let all: Vec<_> = lines(text).collect();
        let expected: [(&[u8], &[u8]); 4] = [
            (b"a", b"b  c"),
            (b"key", b""),
            (b"x", b"y=\xff"),
            (b"last", b"one"),
        ];
        assert_eq!(all, expected);
        assert_eq!(lines(b"\r\n \n").next(), None);
        assert_eq!(
            lines(b"\xef\xbb\xbfa b").next(),
            Some((&b"a"[..], &b"b"[..]))
        );
    }

    #[test]
    fn quotation_marks_around_a_whole_value_are_removed() {
        for (value, plain) in [
            ("\"a b\"", "a b"),
            ("'a \"b\"'", "a \"b\""),
            ("\"\"", ""),
            ("a=\"b c\"", "a=\"b c\""),
            ("\"a\" \"b\"", "\"a\" \"b\""),
            ("\"a'", "\"a'"),
            ("\"", "\""),
            ("", ""),
        ] {
            assert_eq!(unquoted(value.as_bytes()), plain.as_bytes());
        }
    }

    #[test]
    fn numbers_consist_of_digits_only() {
        assert_eq!(number(b"012"), Some(12));
        assert_eq!(number(b"99999999999"), Some(u32::MAX));
        for text in [&b""[..], b"-1", b"+1", b"1 ", b"x"] {
            assert_eq!(number(text), None);
        }
    }
}
