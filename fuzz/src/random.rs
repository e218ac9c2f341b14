//! Random inputs without a fuzzer, reproducible by a seed.

use fastrand::Rng;

/// Makes inputs from others; each seed gives a sequence of its own.
#[derive(Clone, Debug)]
pub struct Random(Rng);

impl Random {
    /// A new sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0.usize(..end)
    }

    /// An input made from those in `corpus`, if any.
    pub fn case(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        const LONGEST: usize = 4096;
        if corpus.is_empty() || self.below(16) == 0 {
            let size = self.below(256);
            return (0..size).map(|_| self.0.u8(..)).collect();
        }
        let mut case = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(6) {
            self.change(&mut case, corpus);
        }
        case.truncate(LONGEST);
        case
    }

    /// Makes one change, of the kinds that fuzzers make.
    fn change(&mut self, case: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(case.len() + 1);
        let size = (1 + self.below(8)).min(case.len() - at);
        match self.below(8) {
            0 => drop(case.drain(at..at + size)),
            1 => {
                let byte = self.edge();
                case.splice(at..at, std::iter::repeat_n(byte, 1 + self.below(8)));
            }
            2 => {
                let copy = case[at..at + size].to_vec();
                let to = self.below(case.len() + 1);
                case.splice(to..to, copy);
            }
            3 => {
                // Append the end of another input.
                let other = &corpus[self.below(corpus.len())];
                let from = at.min(other.len());
                case.truncate(at);
                case.extend_from_slice(&other[from..]);
            }
            4 => {
                // Change a number of any width by a small amount.
                let delta = self.below(17) as u8;
                for (index, byte) in case[at..at + size].iter_mut().enumerate() {
                    let delta = if index == 0 { delta.wrapping_sub(8) } else { 0 };
                    *byte = byte.wrapping_add(delta);
                }
            }
            5 => case[at..at + size].fill_with(|| self.0.u8(..)),
            6 => {
                let byte = self.edge();
                case[at..at + size].fill(byte);
            }
            _ => {
                if let Some(byte) = case.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }

    fn edge(&mut self) -> u8 {
        match self.below(5) {
            0 => 0,
            1 => 0xff,
            2 => 0x7f,
            3 => 1,
            _ => self.0.u8(..),
        }
    }
}
