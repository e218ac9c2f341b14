//! GRUB's extension of the Boot Loader Specification, used by Fedora, RHEL and their derivatives: values may
//! contain `$variables`, which are defined in GRUB's environment block, `grub2/grubenv` or `grub/grubenv`.
//!
//! The block is text of 1024 bytes: a comment line, lines `NAME=VALUE`, and `#` up to the end (GRUB manual,
//! "The GRUB environment block"). A backslash in a value makes the next byte literal. As in GRUB, undefined
//! variables are empty.

use crate::boot::text::without_mark;

/// The variables of an environment block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Environment<'a>(&'a [u8]);

impl<'a> Environment<'a> {
    /// Parses an environment block, which may hold any bytes.
    #[must_use]
    pub fn parse(block: &'a [u8]) -> Self {
        Self(without_mark(block))
    }

    /// The value of a variable with its escapes; empty if it is not defined.
    fn get(&self, name: &[u8]) -> &'a [u8] {
        let mut rest = self.0;
        while !rest.is_empty() {
            // In a value, a line end is escaped by a backslash.
            let mut escaped = false;
            let end = rest.iter().position(|&byte| {
                let ends = byte == b'\n' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            });
            let (line, after) = rest
                .split_at_checked(end.unwrap_or(rest.len()))
                .unwrap_or_default();
            rest = after.get(1..).unwrap_or_default();
            let value = line.strip_prefix(name).and_then(|v| v.strip_prefix(b"="));
            if let Some(value) = value {
                return value;
            }
        }
        b""
    }

    /// Writes `text` to the start of `out` with variables replaced by their values. Returns the size in bytes;
    /// if that is more than `out` holds, the output is incomplete.
    pub fn expand(&self, text: &[u8], out: &mut [u8]) -> usize {
        let mut size = 0_usize;
        let mut put = |byte| {
            if let Some(place) = out.get_mut(size) {
                *place = byte;
            }
            size = size.saturating_add(1);
        };
        let mut rest = text;
        while let [first, after @ ..] = rest {
            match variable(rest) {
                Some((name, after)) => {
                    let mut value = self.get(name).iter();
                    while let Some(&byte) = value.next() {
                        let literal = if byte == b'\\' { value.next() } else { None };
                        // A value in an entry must stay on one line.
                        match *literal.unwrap_or(&byte) {
                            b'\n' => put(b' '),
                            byte => put(byte),
                        }
                    }
                    rest = after;
                }
                None => {
                    put(*first);
                    rest = after;
                }
            }
        }
        size
    }
}

/// Whether `text` contains a variable.
#[must_use]
pub fn has_variables(text: &[u8]) -> bool {
    (0..text.len()).any(|at| text.get(at..).and_then(variable).is_some())
}

/// The name of the variable that `text` starts with, `$NAME` or `${NAME}`, and the text after it. A dollar
/// sign before a digit is literal, as in `memmap=1G$4G`.
fn variable(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"$")?;
    let (braces, text) = match text.strip_prefix(b"{") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let end = text.iter().position(|byte| !is_part(byte));
    let (name, rest) = text.split_at_checked(end.unwrap_or(text.len()))?;
    if name.first().is_none_or(u8::is_ascii_digit) {
        return None;
    }
    match braces {
        true => Some((name, rest.strip_prefix(b"}")?)),
        false => Some((name, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::string::String;

    const BLOCK: &[u8] = b"# GRUB Environment Block\n\
        saved_entry=x\nkernelopts=root=/dev/mapper/cl-root ro \nnext=a\\\nb\\\\c\nempty=\n##########";

    fn expanded(text: &str) -> String {
        let mut out = [0; 128];
        let size = Environment::parse(BLOCK).expand(text.as_bytes(), &mut out);
        String::from_utf8(out[..size].into()).unwrap()
    }

    #[test]
    fn variables_have_the_values_of_the_block_or_none() {
        for (text, value) in [
            ("$kernelopts", "root=/dev/mapper/cl-root ro "),
            ("a ${saved_entry}b $tuned_params", "a xb "),
            ("/a.img $tuned_initrd /b", "/a.img  /b"),
            ("$next-$empty.", "a b\\c-."),
            // No variables.
            (
                "memmap=1G$4G $ ${ ${x $- 100%",
                "memmap=1G$4G $ ${ ${x $- 100%",
            ),
            ("${}", "${}"),
        ] {
            assert_eq!(expanded(text), value);
        }
        assert!(has_variables(b"a $b"));
        assert!(!has_variables(b"memmap=1G$4G $"));
        assert_eq!(Environment::default().expand(b"a$b", &mut []), 1);
    }

    #[test]
    fn any_bytes_give_values() {
        for seed in seeds(2000) {
            let mut block = BLOCK.to_vec();
            Random::new(seed).damage(&mut block);
            let mut out = [0; 64];
            let size = Environment::parse(&block).expand(b"$kernelopts$next$x", &mut out);
            assert!(size <= block.len());
        }
    }
}
