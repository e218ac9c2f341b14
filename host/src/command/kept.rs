//! The last part of an output, kept for a report.

/// How much is kept of an output, in bytes.
const MOST: usize = 1 << 20;

/// The last bytes of an output, 1 MiB of them at the most.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    bytes: Vec<u8>,
    left_out: u64,
}

impl Kept {
    /// Adds what came next.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Discard in large steps, so that each byte is moved at most once.
        if self.bytes.len() > 2 * MOST {
            self.left_out += (self.bytes.len() - MOST) as u64;
            self.bytes.drain(..self.bytes.len() - MOST);
        }
    }

    /// The last bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.surplus()..]
    }

    /// How many bytes came before these.
    pub fn left_out(&self) -> u64 {
        self.left_out + self.surplus() as u64
    }

    fn surplus(&self) -> usize {
        self.bytes.len().saturating_sub(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_and_the_others_counted() {
        assert_eq!(MOST, 1_048_576);
        let all: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_be_bytes()[1]).collect();
        for size in [1000, 65_536, 3_000_000] {
            let mut kept = Kept::default();
            let mut count = 0;
            for piece in all.chunks(size) {
                kept.add(piece);
                count += piece.len();
                let from = count.saturating_sub(MOST);
                assert!(kept.bytes() == &all[from..count]);
                assert_eq!(kept.left_out(), from as u64);
                assert!(kept.bytes.len() <= 2 * MOST);
            }
        }
    }
}
