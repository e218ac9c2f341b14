//! Compares version strings.
//!
//! Follows the UAPI Group's "Version Format Specification" 1.0, "Version Comparison"
//! (<https://uapi-group.org/specifications/specs/version_format_specification/>).

use core::cmp::Ordering;

/// Compares two versions: the newer one is greater.
///
/// Different strings may be equal versions: `1_` and `1`, or `01` and `1`.
#[must_use]
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let (mut a, mut b) = (a, b);
    // The numbers are the specification's steps. Each round consumes at least one byte: after step 1, each
    // string starts with a byte that one of the steps consumes or that decides the order.
    loop {
        // 1. Skip separators.
        a = after(a, |byte| !is_version_byte(byte));
        b = after(b, |byte| !is_version_byte(byte));
        // 2. A tilde is lower than anything else, including the end.
        match marks(&mut a, &mut b, b"~") {
            Marks::Decide(order) => return order,
            Marks::Both => continue,
            Marks::None => {}
        }
        // 3. If one string has ended, the other one is higher.
        if a.is_empty() || b.is_empty() {
            return a.len().min(1).cmp(&b.len().min(1));
        }
        // 4. to 6. Minus, caret and dot: the string that has it is lower.
        match marks(&mut a, &mut b, b"-^.") {
            Marks::Decide(order) => return order,
            Marks::Both => continue,
            Marks::None => {}
        }
        // 7. Numbers, 8. letters.
        let digits = |byte: u8| byte.is_ascii_digit();
        let letters = |byte: u8| byte.is_ascii_alphabetic();
        let order =
            if a.first().copied().is_some_and(digits) || b.first().copied().is_some_and(digits) {
                let zero = |byte| byte == b'0';
                let (number_a, number_b) = (
                    after(before(&mut a, digits), zero),
                    after(before(&mut b, digits), zero),
                );
                // Without leading zeros, the longer number is the greater one.
                number_a
                    .len()
                    .cmp(&number_b.len())
                    .then_with(|| number_a.cmp(number_b))
            } else {
                // In ASCII, capital letters come before small ones. A prefix is lower.
                before(&mut a, letters).cmp(before(&mut b, letters))
            };
        if order.is_ne() {
            return order;
        }
    }
}

const fn is_version_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'~' | b'^')
}

/// The result of comparing the marks at the start of two versions.
enum Marks {
    /// Only one of them has the mark, which decides the order.
    Decide(Ordering),
    /// Both have the mark, and it was removed. The next round begins again with step 1. Taken literally,
    /// the specification would go on with the next step, where a separator may come first: `~a` would then
    /// be above `~ a` although both are equal to `~0a`.
    Both,
    /// Neither has a mark.
    None,
}

/// Compares the starts of two versions with each of `marks`, in order.
fn marks(a: &mut &[u8], b: &mut &[u8], marks: &[u8]) -> Marks {
    for mark in marks {
        let mark = core::slice::from_ref(mark);
        match (a.strip_prefix(mark), b.strip_prefix(mark)) {
            (Some(rest_a), Some(rest_b)) => {
                (*a, *b) = (rest_a, rest_b);
                return Marks::Both;
            }
            (Some(_), None) => return Marks::Decide(Ordering::Less),
            (None, Some(_)) => return Marks::Decide(Ordering::Greater),
            (None, None) => {}
        }
    }
    Marks::None
}

/// `text` without the leading bytes for which `what` is true.
fn after(mut text: &[u8], what: impl Fn(u8) -> bool) -> &[u8] {
    before(&mut text, what);
    text
}

/// Removes the leading bytes for which `what` is true from `text`, and returns them.
fn before<'a>(text: &mut &'a [u8], what: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|&byte| !what(byte));
    let (head, rest) = text
        .split_at_checked(end.unwrap_or(text.len()))
        .unwrap_or((text, b""));
    *text = rest;
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use Ordering::{Equal, Greater, Less};
    use std::vec::Vec;

    fn check(a: &str, order: Ordering, b: &str) {
        let (a, b) = (a.as_bytes(), b.as_bytes());
        assert_eq!(compare(a, b), order, "{a:?} {b:?}");
        assert_eq!(compare(b, a), order.reverse(), "{b:?} {a:?}");
    }

    /// The specification's section "Examples".
    #[test]
    fn the_examples_of_the_specification_hold() {
        for (a, order, b) in [
            ("11", Equal, "11"),
            ("systemd-123", Equal, "systemd-123"),
            ("bar-123", Less, "foo-123"),
            ("123a", Greater, "123"),
            ("123.a", Greater, "123"),
            ("123.a", Less, "123.b"),
            ("123a", Greater, "123.a"),
            ("11\u{3b1}", Equal, "11\u{3b2}"),
            ("B", Less, "a"),
            ("", Less, "0"),
            ("0.", Greater, "0"),
            ("0.0", Greater, "0"),
            ("0", Greater, "~"),
            ("", Greater, "~"),
            ("1_", Equal, "1"),
            ("_1", Equal, "1"),
            ("1_", Less, "1.2"),
            ("1_2_3", Greater, "1.3.3"),
            ("1+", Equal, "1"),
            ("+1", Equal, "1"),
            ("1+", Less, "1.2"),
            ("1+2+3", Greater, "1.3.3"),
        ] {
            check(a, order, b);
        }
    }

    /// The chain that the specification's examples end with.
    #[test]
    fn the_chain_of_the_specification_is_in_order() {
        let chain = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (i, a) in chain.iter().enumerate() {
            for (j, b) in chain.iter().enumerate() {
                check(a, i.cmp(&j), b);
            }
        }
    }

    #[test]
    fn kernels_of_distributions_are_in_order() {
        for (old, new) in [
            ("6.1.0-9-cloud-amd64", "6.1.0-13-cloud-amd64"),
            ("5.10.0-28-arm64", "6.1.0-1-arm64"),
            ("6.9.12-200.fc40.x86_64", "6.10.3-200.fc40.x86_64"),
            ("6.12~rc6-amd64", "6.12-amd64"),
            ("5.15.0-91-generic", "5.15.0-101-generic"),
            ("0-rescue-abcdef", "6.9.12"),
        ] {
            check(old, Less, new);
        }
    }

    #[test]
    fn numbers_may_be_longer_than_any_register() {
        check(
            "1.99999999999999999999999998",
            Less,
            "1.99999999999999999999999999",
        );
        check("00000000000000000000000000001", Equal, "1");
        check("1.0", Equal, "1.00");
    }

    #[test]
    fn the_order_of_versions_is_transitive() {
        // A regression test: with a separator after a mark, the order of the first and the last was once wrong.
        for [a, b, c] in [
            ["~a", "~0a", "~ a"],
            ["-B", "-0a", "- a"],
            ["1.b", "1.0b", "1. b"],
        ] {
            let order = |a: &str, b: &str| compare(a.as_bytes(), b.as_bytes());
            let steps = [order(a, b), order(b, c)];
            let expected = steps.into_iter().find(|step| step.is_ne());
            assert_eq!(order(a, c), expected.unwrap_or(Equal), "{a:?} {b:?} {c:?}");
        }
    }

    #[test]
    fn any_two_strings_are_compared_the_same_both_ways() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut text = || -> Vec<u8> {
                (0..random.below(8))
                    .map(|_| b"019aB~-^.+\xff"[random.below(11) as usize])
                    .collect()
            };
            let (a, b) = (text(), text());
            assert_eq!(compare(&a, &b), compare(&b, &a).reverse(), "{a:?} {b:?}");
            assert_eq!(compare(&a, &a), Equal);
        }
    }
}
