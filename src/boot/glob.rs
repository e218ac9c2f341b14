//! Shell patterns for the names of boot entries, like fnmatch(3) without flags.
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | any bytes, or none |
//! | `?` | one byte |
//! | `[a-z]`, `[!a-z]` | one byte that is, or is not, in the set |
//! | `\x` | the byte `x` |
//! | any other byte | itself; also a `[` without a closing `]` |

/// Longest set in bytes. It bounds the time of a match.
const MAX_SET: usize = 64;

/// Whether `pattern` matches all of `name`.
///
/// ```
/// use bootshare::boot::glob::matches;
///
/// assert!(matches(b"debian-*-6.[0-9]", b"debian-12-6.1"));
/// assert!(!matches(b"debian", b"debian-12"));
/// ```
#[must_use]
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    is_match(pattern, name, |byte| byte)
}

/// Like [`matches()`], but ignores the case of ASCII letters.
#[must_use]
pub fn matches_any_case(pattern: &[u8], name: &[u8]) -> bool {
    is_match(pattern, name, |byte| byte.to_ascii_lowercase())
}

/// Matches with `fold` applied to both bytes before they are compared.
fn is_match(pattern: &[u8], name: &[u8], fold: fn(u8) -> u8) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // The pattern after the last star, and the part of the name where that was tried.
    let mut star = None;
    loop {
        if let Some(rest) = pattern.strip_prefix(b"*") {
            pattern = rest;
            star = Some((rest, name));
            continue;
        }
        if let Some((&byte, rest)) = name.split_first() {
            if let Some(after) = step(pattern, byte, fold) {
                (pattern, name) = (after, rest);
                continue;
            }
        } else if pattern.is_empty() {
            return true;
        }
        // Let the last star match one byte more. Earlier stars need not be tried again: any byte that they
        // would leave over, the last star can match.
        let Some((after, [_, rest @ ..])) = star else {
            return false;
        };
        star = Some((after, rest));
        (pattern, name) = (after, rest);
    }
}

/// Matches `byte` with the start of `pattern`, which is not a star; returns the rest of the pattern.
fn step(pattern: &[u8], byte: u8, fold: fn(u8) -> u8) -> Option<&[u8]> {
    let same = |other: u8| fold(other) == fold(byte);
    let (matched, rest) = match pattern {
        [b'?', rest @ ..] => (true, rest),
        [b'\\', escaped, rest @ ..] => (same(*escaped), rest),
        [b'[', rest @ ..] => match set(rest) {
            Some((negated, members, rest)) => {
                let cases = [byte.to_ascii_lowercase(), byte.to_ascii_uppercase()];
                let mut cases = cases.into_iter().filter(|&case| same(case));
                (cases.any(|case| is_member(members, case)) != negated, rest)
            }
            None => (byte == b'[', rest),
        },
        [literal, rest @ ..] => (same(*literal), rest),
        [] => return None,
    };
    matched.then_some(rest)
}

/// Parses a set after its `[`: whether it is negated, its members, and the rest of the pattern.
fn set(pattern: &[u8]) -> Option<(bool, &[u8], &[u8])> {
    let (negated, inside) = match pattern {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, pattern),
    };
    // A `]` at the start is a member.
    let mut ends = inside.iter().take(MAX_SET).enumerate().skip(1);
    let (end, _) = ends.find(|(_, byte)| **byte == b']')?;
    let (members, rest) = inside.split_at_checked(end)?;
    Some((negated, members, rest.get(1..)?))
}

fn is_member(members: &[u8], byte: u8) -> bool {
    let mut rest = members;
    loop {
        rest = match rest {
            [first, b'-', last, rest @ ..] => {
                if (*first..=*last).contains(&byte) {
                    return true;
                }
                rest
            }
            [member, rest @ ..] => {
                if *member == byte {
                    return true;
                }
                rest
            }
            [] => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_fnmatch_says() {
        let cases: [(&str, &str, bool); 30] = [
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abc", "Abc", false),
            ("*", "", true),
            ("*", "any", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("*b", "abc", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("**a", "ba", true),
            ("a?c", "abc", true),
            ("a?", "a", false),
            ("?*", "", false),
            ("[ab]x", "bx", true),
            ("[ab]x", "cx", false),
            ("[a-c]", "b", true),
            ("[!a-c]", "b", false),
            ("[^a-c]", "d", true),
            ("[]a]", "]", true),
            ("[!]a]", "]", false),
            ("[a-]", "-", true),
            ("[ab", "[ab", true),
            ("[]", "[]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("\\", "\\", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn the_case_of_letters_can_be_ignored() {
        for (pattern, name) in [
            ("arch-lts", "Arch-LTS"),
            ("A*[x-z]\\Q?", "aBYq1"),
            ("[!a]", "B"),
        ] {
            assert!(matches_any_case(pattern.as_bytes(), name.as_bytes()));
        }
        assert!(!matches_any_case(b"[!a]", b"A"));
        assert!(!matches_any_case(b"a_", b"a-"));
    }

    #[test]
    fn a_match_takes_no_exponential_time() {
        let pattern = "*a".repeat(1000);
        assert!(!matches(pattern.as_bytes(), &[b'a'; 255]));
        assert!(!matches(&[b'['; 16 << 10], &[b'['; 255]));
    }
}
