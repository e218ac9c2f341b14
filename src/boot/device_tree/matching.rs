//! Decides from a few bytes of a device tree whether it describes a given machine.

use super::blob::{BEGIN_NODE, HEADER_BYTES, MAGIC, NOP, PROP};
use crate::boot::bytes::array;

/// The name of the property, as it is in the strings block.
const COMPATIBLE: &[u8] = b"compatible\0";

/// Compares the first string of a device tree's root `compatible` with the name of a machine, like
/// systemd-stub. Further strings are ignored: they may name a chip that many machines have.
///
/// An image may contain more than a thousand trees, so only the header and the root's properties are read,
/// and the name of a property only if its value matches.
#[derive(Clone, Debug)]
pub struct Matching<'a> {
    machine: &'a [u8],
    /// Size of the tree in bytes.
    size: u64,
    next: u64,
    state: State,
    strings: u32,
    /// Number of pieces that may still be taken.
    left: u32,
}

/// The element at the start of the next piece.
#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// A token of the structure block.
    Token,
    /// The name of a property whose value matches. `after` is the offset of the token after that property.
    Name {
        after: u64,
    },
}

impl<'a> Matching<'a> {
    /// Size of a piece in bytes.
    pub const PIECE_BYTES: usize = 512;
    /// Most pieces of one tree. The root of a real tree needs at most three.
    const MAX_PIECES: u32 = 32;

    /// Starts the comparison of a tree of `size` bytes with the [machine](super::machine) of this name.
    #[must_use]
    pub const fn new(machine: &'a [u8], size: u64) -> Self {
        Self {
            machine,
            size,
            next: 0,
            state: State::Header,
            strings: 0,
            left: Self::MAX_PIECES,
        }
    }

    /// Offset of the next piece in the tree.
    #[must_use]
    pub const fn next_offset(&self) -> u64 {
        self.next
    }

    /// Takes the piece at [`next_offset`](Self::next_offset): [`PIECE_BYTES`](Self::PIECE_BYTES) bytes, or fewer
    /// at the end of the tree. Returns the answer once it is known. A damaged tree does not match, nor does
    /// one whose root has too many properties.
    pub fn take(&mut self, piece: &[u8]) -> Option<bool> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Some(false);
        }
        // An element that does not fit into the piece is requested again at the start of the next piece.
        let start = self.next;
        self.look_at(piece).unwrap_or_else(|| {
            let is_stuck = self.next == start || self.next >= self.size;
            is_stuck.then_some(false)
        })
    }

    /// [`None`] if the piece ends within an element; otherwise the answer, if it is known.
    fn look_at(&mut self, piece: &[u8]) -> Option<Option<bool>> {
        let mut rest = piece;
        loop {
            let word = |index: usize| array(rest, index.saturating_mul(4)).map(u32::from_be_bytes);
            let skipped = match self.state {
                State::Header => {
                    rest.get(..HEADER_BYTES)?;
                    if word(0)? != MAGIC || u64::from(word(1)?) > self.size {
                        return Some(Some(false));
                    }
                    self.strings = word(3)?;
                    self.state = State::Token;
                    u64::from(word(2)?)
                }
                State::Name { after } => {
                    if rest.get(..COMPATIBLE.len())? == COMPATIBLE {
                        return Some(Some(true));
                    }
                    self.state = State::Token;
                    self.next = after;
                    return Some(None);
                }
                State::Token => match word(0)? {
                    NOP => 4,
                    // The root: unlike its children it has an empty name.
                    BEGIN_NODE if word(1)? == 0 => 8,
                    PROP => {
                        let size = u64::from(word(1)?);
                        let skipped = size.saturating_add(12).saturating_add(3) & !3;
                        let after_name = self.machine.len().saturating_add(1);
                        if size >= after_name as u64 {
                            let value = rest.get(12..)?.get(..after_name)?;
                            if value.split_last() == Some((&0, self.machine)) {
                                let after = self.next.saturating_add(skipped);
                                self.state = State::Name { after };
                                let name = u64::from(self.strings);
                                self.next = name.saturating_add(word(2)?.into());
                                return Some(None);
                            }
                        }
                        skipped
                    }
                    _ => return Some(Some(false)),
                },
            };
            self.next = self.next.saturating_add(skipped);
            rest = rest.get(usize::try_from(skipped).ok()?..)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A tree whose root has these properties; their names are in the strings block in their order.
    fn tree(properties: &[(&str, &[u8])]) -> Vec<u8> {
        let number = |blob: &mut Vec<u8>, number: usize| {
            blob.extend((number as u32).to_be_bytes());
        };
        let (mut structure, mut strings) = (Vec::new(), Vec::new());
        number(&mut structure, 1);
        number(&mut structure, 0);
        for (name, value) in properties {
            for word in [3, value.len(), strings.len()] {
                number(&mut structure, word);
            }
            structure.extend(*value);
            structure.resize(structure.len().next_multiple_of(4), 0);
            strings.extend(name.as_bytes());
            strings.push(0);
        }
        // A child with a name that the machine has, and the end.
        for word in [1, 0x6100_0000, 2, 2, 9] {
            number(&mut structure, word);
        }
        let mut blob = Vec::new();
        let strings_at = 56 + structure.len();
        let total = strings_at + strings.len();
        let sizes = [strings.len(), structure.len()];
        for word in [0xd00d_feed, total, 56, strings_at, 40, 17, 16, 0] {
            number(&mut blob, word);
        }
        for size in sizes {
            number(&mut blob, size);
        }
        blob.resize(56, 0);
        blob.extend(structure);
        blob.extend(strings);
        blob
    }

    /// The answer, and how many pieces it took.
    fn matching(blob: &[u8], machine: &str) -> (bool, usize) {
        let mut matching = Matching::new(machine.as_bytes(), blob.len() as u64);
        for count in 1.. {
            let start = usize::try_from(matching.next_offset()).unwrap_or(usize::MAX);
            let piece = blob.get(start..).unwrap_or_default();
            let piece = &piece[..piece.len().min(Matching::PIECE_BYTES)];
            if let Some(answer) = matching.take(piece) {
                return (answer, count);
            }
        }
        unreachable!()
    }

    #[test]
    fn the_first_name_is_compared() {
        let blob = tree(&[
            ("#size-cells", &[0, 0, 0, 2]),
            ("model", b"acme,board\0"),
            ("compatible", b"acme,board\0acme,chip\0"),
        ]);
        // As in QEMU's trees, `model` has the same value: the first property with it is not `compatible`.
        assert_eq!(matching(&blob, "acme,board"), (true, 4));
        assert_eq!(matching(&blob, "acme,boar"), (false, 1));
        assert_eq!(matching(&blob, "acme,board2"), (false, 1));
        assert_eq!(matching(&blob, "acme,chip"), (false, 1));
    }

    #[test]
    fn properties_that_are_longer_than_a_piece_are_skipped() {
        let blob = tree(&[
            ("serial-number", &[b'x'; 1000]),
            ("compatible", b"acme,board\0"),
        ]);
        assert_eq!(matching(&blob, "acme,board"), (true, 3));
        let blob = tree(&[("a", &[b'x'; 430]), ("compatible", b"acme,board\0")]);
        assert_eq!(matching(&blob, "acme,board"), (true, 3));
    }

    #[test]
    fn a_damaged_tree_matches_no_machine() {
        let blob = tree(&[("compatible", b"acme,board\0")]);
        for size in 0..blob.len() {
            assert!(!matching(&blob[..size], "acme,board").0, "{size}");
        }
        let mut endless = tree(&[]);
        endless.truncate(64);
        endless.extend(NOP.to_be_bytes().repeat(100_000));
        assert_eq!(
            matching(&endless, "acme,board"),
            (false, Matching::MAX_PIECES as usize)
        );
    }
}
