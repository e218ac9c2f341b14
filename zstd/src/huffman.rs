//! Huffman codes of literals (RFC 8878, 4.2).

use crate::{Error, bits::Bits, fse::Table};

/// The longest code in bits (4.2.1).
const MAX_LOG: u32 = 11;
/// Most weights of a description. The weight of the last symbol follows from the others.
const MAX_WEIGHTS: usize = 255;
/// Largest accuracy of the table that compresses the weights (4.2.1.2).
const MAX_WEIGHT_LOG: u32 = 6;

const DAMAGED: Error = Error::Damaged("a Huffman code makes no sense");

#[derive(Clone, Copy, Default)]
struct Code {
    symbol: u8,
    bits: u8,
}

/// The current code: for each sequence of `log` bits, the symbol that it starts with.
pub(crate) struct Codes {
    codes: [Code; 1 << MAX_LOG],
    log: u32,
}

impl Codes {
    pub const fn new() -> Self {
        const CODE: Code = Code { symbol: 0, bits: 0 };
        Self {
            codes: [CODE; 1 << MAX_LOG],
            log: 0,
        }
    }

    /// Marks the code as not reusable.
    pub fn reset(&mut self) {
        self.log = 0;
    }

    pub const fn is_set(&self) -> bool {
        self.log > 0
    }

    /// Builds the code from the description at the start of `data` (4.2.1); returns its size in bytes.
    pub fn read(&mut self, data: &[u8]) -> Result<usize, Error> {
        let (first, data) = data.split_first().ok_or(DAMAGED)?;
        let mut weights = [0; MAX_WEIGHTS];
        let (count, bytes) = match usize::from(*first) {
            bytes @ ..128 => (
                packed_weights(data.get(..bytes).ok_or(DAMAGED)?, &mut weights)?,
                bytes,
            ),
            first => {
                let count = first.wrapping_sub(127);
                let bytes = data.get(..count.div_ceil(2)).ok_or(DAMAGED)?;
                let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
                for (weight, half) in weights.iter_mut().zip(halves) {
                    *weight = half;
                }
                (count, bytes.len())
            }
        };
        self.build(weights.get(..count).ok_or(DAMAGED)?)?;
        Ok(bytes.wrapping_add(1))
    }

    fn build(&mut self, weights: &[u8]) -> Result<(), Error> {
        // A symbol has 2^(weight - 1) entries of the table. The last symbol has the remaining entries.
        let entries = |weight: u8| 1_usize.wrapping_shl(weight.into()) >> 1;
        let mut counts = [0_usize; MAX_LOG as usize + 1];
        let mut sum = 0_usize;
        for weight in weights {
            let count = counts.get_mut(usize::from(*weight)).ok_or(DAMAGED)?;
            *count = count.wrapping_add(1);
            sum = sum.wrapping_add(entries(*weight));
        }
        let log = sum.checked_ilog2().ok_or(DAMAGED)?.wrapping_add(1);
        let missing = 1_usize.wrapping_shl(log).wrapping_sub(sum);
        if log > MAX_LOG || !missing.is_power_of_two() {
            return Err(DAMAGED);
        }
        let last = missing.trailing_zeros().wrapping_add(1) as u8;
        let count = counts.get_mut(usize::from(last)).ok_or(DAMAGED)?;
        *count = count.wrapping_add(1);
        // At least two codes must have the full length.
        if counts.get(1).is_none_or(|count| *count < 2) {
            return Err(DAMAGED);
        }
        // Longer codes come first; codes of the same length are ordered by symbol.
        let mut starts = [0_usize; MAX_LOG as usize + 1];
        let mut start = 0_usize;
        for ((weight, count), first) in (0..).zip(counts).zip(&mut starts) {
            *first = start;
            start = start.wrapping_add(count.wrapping_mul(entries(weight)));
        }
        for (symbol, weight) in (0..=u8::MAX).zip(weights.iter().copied().chain([last])) {
            let start = starts.get_mut(usize::from(weight)).ok_or(DAMAGED)?;
            let end = start.wrapping_add(entries(weight));
            let bits = log.wrapping_add(1).wrapping_sub(weight.into()) as u8;
            let codes = self.codes.get_mut(*start..end).ok_or(DAMAGED)?;
            codes.fill(Code { symbol, bits });
            *start = end;
        }
        self.log = log;
        Ok(())
    }

    /// Decodes `data`, which is one stream or four (3.1.1.3.1.6), and fills `out`.
    pub fn decode(&self, data: &[u8], has_four: bool, out: &mut [u8]) -> Result<(), Error> {
        const SHORT: Error =
            Error::Damaged("the sizes of the four streams of literals are inconsistent");
        if !has_four {
            return self.stream(data, out);
        }
        let (sizes, mut data) = data.split_first_chunk::<6>().ok_or(SHORT)?;
        let mut out = out;
        let size = out.len().div_ceil(4);
        for bytes in sizes.as_chunks::<2>().0 {
            let bytes = u16::from_le_bytes(*bytes).into();
            let (stream, rest) = data.split_at_checked(bytes).ok_or(SHORT)?;
            let (part, more) = out.split_at_mut_checked(size).ok_or(SHORT)?;
            self.stream(stream, part)?;
            (data, out) = (rest, more);
        }
        self.stream(data, out)
    }

    fn stream(&self, data: &[u8], out: &mut [u8]) -> Result<(), Error> {
        // The number of codes of any length that a refill provides.
        const AT_ONCE: usize = (Bits::REFILL / MAX_LOG) as usize;
        let mut bits = Bits::new(data)?;
        for symbols in out.chunks_mut(AT_ONCE) {
            bits.refill()?;
            for symbol in symbols {
                let index = bits.peek(self.log) as usize % (1 << MAX_LOG);
                let code = self.codes.get(index).copied().unwrap_or_default();
                *symbol = code.symbol;
                bits.skip(code.bits.into());
            }
        }
        bits.finish("literals do not end where their bits do")
    }
}

/// Decodes weights that are compressed with a table of their own (4.2.1.2); returns their number.
fn packed_weights(data: &[u8], weights: &mut [u8; MAX_WEIGHTS]) -> Result<usize, Error> {
    let mut table = Table::new();
    let used = table.read(data, MAX_WEIGHT_LOG, u8::MAX)?;
    let bits = &mut Bits::new(data.get(used..).unwrap_or_default())?;
    // Two states alternate until there are not enough bits for one of them.
    let mut state = table.state(table.first(bits));
    let mut other = table.state(table.first(bits));
    bits.refill()?;
    let mut count = 0_usize;
    let mut add = |symbol| {
        *weights.get_mut(count).ok_or(DAMAGED)? = symbol;
        count = count.wrapping_add(1);
        Ok(())
    };
    loop {
        add(state.symbol)?;
        if !bits.has(state.bits.into()) {
            break;
        }
        let next = table.state(state.next(bits));
        bits.refill()?;
        (state, other) = (other, next);
    }
    add(other.symbol)?;
    Ok(count)
}
