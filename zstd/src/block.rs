//! Compressed blocks (RFC 8878, 3.1.1.3): literals, and sequences of literals and matches.

use crate::{Error, MAX_BLOCK_BYTES, bits::Bits, fse::Table, huffman::Codes, number, out::Out};

const SHORT: Error = Error::Damaged("a block ends too early");

/// The state that is kept from one block to the next one of a frame.
pub(crate) struct Tables {
    huffman: Codes,
    literal_lengths: Table,
    offsets: Table,
    match_lengths: Table,
    /// The last three offsets, latest first.
    repeated: [usize; 3],
}

/// The lowest value of each code, and the number of additional bits (3.1.1.3.2.1.1).
type Values<const N: usize> = [(u32, u8); N];

/// Computes the table: the lowest value of each code follows the highest one of the code before it.
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "evaluated at compile time"
)]
const fn values<const N: usize>(first: u32, bits: [u8; N]) -> Values<N> {
    let mut values = [(0, 0); N];
    let (mut code, mut base) = (0, first);
    while code < N {
        values[code] = (base, bits[code]);
        base += 1 << bits[code];
        code += 1;
    }
    values
}

const LITERAL_LENGTHS: Values<36> = values(
    0,
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
        1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ],
);
const MATCH_LENGTHS: Values<53> = values(
    3,
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, //
        1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ],
);
const MAX_OFFSET_CODE: u8 = 31;

/// The constants of one of the three tables for sequences.
struct Kind {
    max_symbol: u8,
    max_log: u32,
    /// The probabilities of the predefined table (3.1.1.3.2.2).
    probabilities: &'static [i16],
    log: u32,
}

const LITERAL_LENGTH: Kind = Kind {
    max_symbol: LITERAL_LENGTHS.len() as u8 - 1,
    max_log: 9,
    probabilities: &[
        4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1,
        1, 1, -1, -1, -1, -1,
    ],
    log: 6,
};
const OFFSET: Kind = Kind {
    max_symbol: MAX_OFFSET_CODE,
    max_log: 8,
    probabilities: &[
        1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1,
    ],
    log: 5,
};
const MATCH_LENGTH: Kind = Kind {
    max_symbol: MATCH_LENGTHS.len() as u8 - 1,
    max_log: 9,
    probabilities: &[
        1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    ],
    log: 6,
};

impl Tables {
    pub const fn new() -> Self {
        Self {
            huffman: Codes::new(),
            literal_lengths: Table::new(),
            offsets: Table::new(),
            match_lengths: Table::new(),
            repeated: [0; 3],
        }
    }

    /// Resets the state at the start of a frame: no table can be reused.
    pub fn reset(&mut self) {
        self.huffman.reset();
        for table in [
            &mut self.literal_lengths,
            &mut self.offsets,
            &mut self.match_lengths,
        ] {
            table.is_set = false;
        }
        self.repeated = [1, 4, 8];
    }

    /// Decompresses a compressed block.
    pub fn block(
        &mut self,
        block: &[u8],
        block_bytes: usize,
        literals: &mut [u8; MAX_BLOCK_BYTES],
        out: &mut Out<'_>,
    ) -> Result<(), Error> {
        let (literals, rest) = self.literals(block, block_bytes, literals)?;
        self.sequences(literals, rest, out)
    }

    /// Decodes the literals (3.1.1.3.1); returns them and the rest of the block.
    fn literals<'l>(
        &mut self,
        block: &'l [u8],
        block_bytes: usize,
        room: &'l mut [u8; MAX_BLOCK_BYTES],
    ) -> Result<(&'l [u8], &'l [u8]), Error> {
        let first = block.first().copied().ok_or(SHORT)?;
        let (kind, format) = (first & 3, first >> 2 & 3);
        // The size of the header in bytes, and of each number in it in bits.
        let (header, bits) = match (kind, format) {
            (0 | 1, 0 | 2) => (1, 5),
            (0 | 1, 1) => (2, 12),
            (0 | 1, _) => (3, 20),
            (_, 0 | 1) => (3, 10),
            (_, 2) => (4, 14),
            (_, _) => (5, 18),
        };
        let sizes = number(block, header).ok_or(SHORT)?;
        let sizes = sizes >> if bits == 5 { 3 } else { 4 };
        let size = |sizes: u64| (sizes & 1_u64.wrapping_shl(bits).wrapping_sub(1)) as usize;
        let (count, packed) = (size(sizes), size(sizes.wrapping_shr(bits)));
        let packed = match kind {
            0 => count,
            1 => 1,
            _ => packed,
        };
        let rest = block.get(header..).ok_or(SHORT)?;
        let (packed, rest) = rest.split_at_checked(packed).ok_or(SHORT)?;
        if kind == 0 {
            return Ok((packed, rest));
        }
        let too_many = Error::Damaged("a block has more literals than a block has bytes");
        let room = room
            .get_mut(..block_bytes)
            .and_then(|room| room.get_mut(..count));
        let room = room.ok_or(too_many)?;
        if kind == 1 {
            room.fill(packed.first().copied().unwrap_or_default());
            return Ok((room, rest));
        }
        let used = match kind {
            2 => self.huffman.read(packed)?,
            _ if self.huffman.is_set() => 0,
            _ => return Err(Error::Damaged("there is no Huffman code to use again")),
        };
        let packed = packed.get(used..).unwrap_or_default();
        self.huffman.decode(packed, format != 0, room)?;
        Ok((room, rest))
    }

    /// Decodes the sequences (3.1.1.3.2) and executes them (3.1.1.4).
    fn sequences(
        &mut self,
        mut literals: &[u8],
        data: &[u8],
        out: &mut Out<'_>,
    ) -> Result<(), Error> {
        let (count, mut data) = match *data {
            [count @ ..128, ref rest @ ..] => (count.into(), rest),
            [255, low, high, ref rest @ ..] => {
                let count = u32::from(u16::from_le_bytes([low, high]));
                (count.wrapping_add(0x7f00), rest)
            }
            [high, low, ref rest @ ..] => (u32::from(u16::from_be_bytes([high & 0x7f, low])), rest),
            _ => return Err(SHORT),
        };
        if count == 0 {
            if !data.is_empty() {
                return Err(Error::Damaged("a block goes on after its end"));
            }
            return out.literals(literals, literals.len());
        }
        let (modes, rest) = data.split_first().ok_or(SHORT)?;
        if modes & 3 != 0 {
            return Err(Error::Damaged("a reserved bit is set"));
        }
        data = rest;
        for (table, kind, shift) in [
            (&mut self.literal_lengths, &LITERAL_LENGTH, 6),
            (&mut self.offsets, &OFFSET, 4),
            (&mut self.match_lengths, &MATCH_LENGTH, 2),
        ] {
            let used = set(table, kind, modes.wrapping_shr(shift) & 3, data)?;
            data = data.get(used..).unwrap_or_default();
        }
        let mut repeated = self.repeated;
        let bits = &mut Bits::new(data)?;
        let mut literal_state = self.literal_lengths.first(bits);
        let mut offset_state = self.offsets.first(bits);
        let mut match_state = self.match_lengths.first(bits);
        for left in (0..count).rev() {
            // An offset and a match length have at most 47 bits together.
            bits.refill()?;
            let literal = self.literal_lengths.state(literal_state);
            let offset = self.offsets.state(offset_state);
            let matching = self.match_lengths.state(match_state);
            let code = u32::from(offset.symbol);
            let offset_value = 1_u32.wrapping_shl(code).wrapping_add(bits.take(code));
            let (base, more) = value(&MATCH_LENGTHS, matching.symbol);
            let match_length = base.wrapping_add(bits.take(more)) as usize;
            // A literal length has at most 16 bits, and the three states have at most 26 bits together.
            let (base, more) = value(&LITERAL_LENGTHS, literal.symbol);
            bits.ensure(more.wrapping_add(26))?;
            let literal_length = base.wrapping_add(bits.take(more)) as usize;
            if left > 0 {
                literal_state = literal.next(bits);
                match_state = matching.next(bits);
                offset_state = offset.next(bits);
            }
            let rest = literals.get(literal_length..).ok_or(Error::Damaged(
                "a sequence has more literals than are there",
            ))?;
            out.literals(literals, literal_length)?;
            literals = rest;
            let offset = actual_offset(offset_value as usize, literal_length == 0, &mut repeated);
            out.repeat(offset, match_length)?;
        }
        bits.finish("sequences do not end where their bits do")?;
        self.repeated = repeated;
        out.literals(literals, literals.len())
    }
}

/// Sets up a table in this mode (3.1.1.3.2.1); returns the size of its description in bytes.
fn set(table: &mut Table, kind: &Kind, mode: u8, data: &[u8]) -> Result<usize, Error> {
    match mode {
        0 => {
            table.set(kind.probabilities, kind.log);
            Ok(0)
        }
        1 => {
            let symbol = data.first().copied().ok_or(SHORT)?;
            if symbol > kind.max_symbol {
                return Err(Error::Damaged("a sequence has a code that does not exist"));
            }
            table.set_only(symbol);
            Ok(1)
        }
        2 => table.read(data, kind.max_log, kind.max_symbol),
        _ if table.is_set => Ok(0),
        _ => Err(Error::Damaged("there is no table to use again")),
    }
}

/// The lowest value of a code, and the number of additional bits.
#[inline(always)]
fn value(values: &[(u32, u8)], code: u8) -> (u32, u32) {
    let (base, more) = values.get(usize::from(code)).copied().unwrap_or_default();
    (base, more.into())
}

/// Converts an offset value to an offset, which may be one of the last three (3.1.1.5). 0 is invalid.
#[inline(always)]
fn actual_offset(value: usize, is_after_match: bool, repeated: &mut [usize; 3]) -> usize {
    let [first, second, third] = *repeated;
    // After a match without literals, the numbers are shifted: repeating the last offset would only have made that
    // match longer.
    let offset = match value.wrapping_add(usize::from(is_after_match)) {
        _ if value > 3 => value.wrapping_sub(3),
        1 => return first,
        2 => {
            *repeated = [second, first, third];
            return second;
        }
        3 => third,
        _ => first.wrapping_sub(1),
    };
    *repeated = [offset, first, second];
    offset
}
