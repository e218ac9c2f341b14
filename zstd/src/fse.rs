//! Finite State Entropy coding (RFC 8878, 4.1).

use crate::{Error, bits::Bits};

/// Largest accuracy of a table, as the logarithm of its size.
const MAX_LOG: u32 = 9;
const MAX_STATES: usize = 1 << MAX_LOG;

/// The symbol of a state, and how to compute the next state.
#[derive(Clone, Copy, Default)]
pub(crate) struct State {
    pub symbol: u8,
    /// The next state is `base` plus a number of this many bits.
    pub bits: u8,
    base: u16,
}

impl State {
    /// The state after this one.
    #[inline(always)]
    pub fn next(self, bits: &mut Bits<'_>) -> u32 {
        bits.take(self.bits.into()).wrapping_add(self.base.into())
    }
}

/// A table that decodes symbols.
pub(crate) struct Table {
    states: [State; MAX_STATES],
    /// Number of bits of the first state.
    log: u32,
    /// Whether the table can be reused.
    pub is_set: bool,
}

impl Table {
    pub const fn new() -> Self {
        const STATE: State = State {
            symbol: 0,
            bits: 0,
            base: 0,
        };
        Self {
            states: [STATE; MAX_STATES],
            log: 0,
            is_set: false,
        }
    }

    /// The first state.
    pub fn first(&self, bits: &mut Bits<'_>) -> u32 {
        bits.take(self.log)
    }

    #[inline(always)]
    pub fn state(&self, state: u32) -> State {
        let index = state as usize % MAX_STATES;
        self.states.get(index).copied().unwrap_or_default()
    }

    /// Sets a table that decodes only `symbol`, from zero bits.
    pub fn set_only(&mut self, symbol: u8) {
        if let Some(first) = self.states.first_mut() {
            *first = State {
                symbol,
                ..State::default()
            };
        }
        (self.log, self.is_set) = (0, true);
    }

    /// Builds the table for these probabilities, whose sum is 2^`log`; -1 means "less than 1" (4.1.1).
    pub fn set(&mut self, probabilities: &[i16], log: u32) {
        let size = 1_usize.wrapping_shl(log);
        let states = self.states.get_mut(..size).unwrap_or_default();
        // Symbols with the lowest probability are placed at the end, from the last state down.
        let mut end = size;
        for (symbol, _) in symbols(probabilities).filter(|(_, count)| *count == -1) {
            end = end.wrapping_sub(1);
            if let Some(state) = states.get_mut(end) {
                state.symbol = symbol;
            }
        }
        let step = (size >> 1).wrapping_add(size >> 3).wrapping_add(3);
        let (mut at, mask) = (0_usize, size.wrapping_sub(1));
        for (symbol, count) in symbols(probabilities) {
            for _ in 0..count {
                if let Some(state) = states.get_mut(at) {
                    state.symbol = symbol;
                }
                // The step is odd, so every position is visited once.
                at = at.wrapping_add(step) & mask;
                while at >= end && end > 0 {
                    at = at.wrapping_add(step) & mask;
                }
            }
        }
        let mut next = [0_u16; 256];
        for ((_, count), next) in symbols(probabilities).zip(&mut next) {
            *next = count.unsigned_abs();
        }
        for state in states {
            let Some(next) = next.get_mut(usize::from(state.symbol)) else {
                continue;
            };
            let bits = log.saturating_sub(next.checked_ilog2().unwrap_or_default());
            state.bits = bits as u8;
            state.base = next.wrapping_shl(bits).wrapping_sub(size as u16);
            *next = next.wrapping_add(1);
        }
        (self.log, self.is_set) = (log, true);
    }

    /// Builds the table from the description at the start of `data` (4.1.1); returns its size in bytes.
    pub fn read(&mut self, data: &[u8], max_log: u32, max_symbol: u8) -> Result<usize, Error> {
        const DAMAGED: Error = Error::Damaged("a table of probabilities makes no sense");
        let bits = |at: usize, count: u32| {
            let bytes = data.get(at / 8..).unwrap_or_default().iter();
            // Bytes after the end count as zero. Four bytes have enough bits for each request.
            let word = bytes
                .take(4)
                .rev()
                .fold(0, |word, byte| word << 8 | u32::from(*byte));
            let word = word.wrapping_shr((at % 8) as u32);
            word & 1_u32.wrapping_shl(count).wrapping_sub(1)
        };
        let log = bits(0, 4).wrapping_add(5);
        if log > max_log.min(MAX_LOG) {
            return Err(DAMAGED);
        }
        let mut at = 4_usize;
        let mut probabilities = [0_i16; 256];
        let mut slots = probabilities
            .iter_mut()
            .take(usize::from(max_symbol).wrapping_add(1));
        let mut used = 0_usize;
        let mut points = 1_u32.wrapping_shl(log);
        while points > 0 {
            // A value from 0 to points + 1. The lowest values have one bit less.
            let values = points.wrapping_add(2);
            let size = u32::BITS.wrapping_sub(values.wrapping_sub(1).leading_zeros());
            let short = 1_u32.wrapping_shl(size).wrapping_sub(values);
            let shorter = size.wrapping_sub(1);
            let mut value = bits(at, shorter);
            at = at.wrapping_add(shorter as usize);
            if value >= short {
                at = at.wrapping_add(1);
                value = bits(at.wrapping_sub(size as usize), size);
                if value >= 1_u32.wrapping_shl(shorter) {
                    value = value.wrapping_sub(short);
                }
            }
            let probability = (value as i16).wrapping_sub(1);
            points = points.saturating_sub(probability.unsigned_abs().into());
            *slots.next().ok_or(DAMAGED)? = probability;
            used = used.wrapping_add(1);
            // After a zero probability: the number of further zeros, in groups of at most 3.
            let mut zeros = if probability == 0 { 3 } else { 0 };
            while zeros == 3 {
                zeros = bits(at, 2);
                at = at.wrapping_add(2);
                for _ in 0..zeros {
                    slots.next().ok_or(DAMAGED)?;
                    used = used.wrapping_add(1);
                }
            }
        }
        let bytes = at.div_ceil(8);
        if bytes > data.len() {
            return Err(DAMAGED);
        }
        self.set(probabilities.get(..used).unwrap_or_default(), log);
        Ok(bytes)
    }
}

/// Iterates over symbols and their probabilities.
fn symbols(probabilities: &[i16]) -> impl Iterator<Item = (u8, i16)> {
    (0..=u8::MAX).zip(probabilities.iter().copied())
}
