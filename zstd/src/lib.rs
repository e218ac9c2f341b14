#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_debug_implementations)]
// No input may end the program: what could panic is refused here, tests apart.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

#[cfg(test)]
extern crate std;

mod bits;
mod block;
mod error;
mod fse;
mod huffman;
mod out;

pub use error::Error;

use block::Tables;
use core::{fmt, hash::Hasher};
use out::Out;
use twox_hash::XxHash64;

/// The most bytes that a block has, packed or unpacked (RFC 8878, 3.1.1.2.4). A decoder needs as
/// many to put literals in.
pub const MAX_BLOCK_BYTES: usize = 128 << 10;

/// The most bytes of its input that [`Decoder::decode`] leaves unused when it needs more: a block
/// and its header, but for the last byte.
pub const MAX_UNUSED_BYTES: usize = MAX_BLOCK_BYTES + 2;

const MAGIC: u32 = 0xfd2f_b528;
/// The last four bits are free (3.1.2).
const SKIPPABLE_MAGIC: u32 = 0x184d_2a50;

/// Frames on their way into one slice. It takes some 11 KiB.
pub struct Decoder {
    stage: Stage,
    /// Bytes that were written.
    unpacked: usize,
    frame: Frame,
    digest: XxHash64,
    tables: Tables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before the first frame.
    First,
    /// After a frame: another one may follow.
    Next,
    /// In a skippable frame, of which as many bytes are left.
    Skip(usize),
    Block,
    Checksum,
    Done,
}

/// What the header of the frame says (3.1.1.1).
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    /// Where its content starts in the output.
    start: usize,
    content_size: Option<u64>,
    has_checksum: bool,
    /// Block_Maximum_Size.
    block_bytes: usize,
}

impl Decoder {
    /// At the start of the first frame.
    #[must_use]
    #[inline(never)] // It is large: this way it is made in its place.
    pub fn new() -> Self {
        Self {
            stage: Stage::First,
            unpacked: 0,
            frame: Frame::default(),
            digest: XxHash64::with_seed(0),
            tables: Tables::new(),
        }
    }

    /// Bytes that were unpacked so far.
    #[must_use]
    pub const fn unpacked(&self) -> usize {
        self.unpacked
    }

    /// Whether the last frame has ended, with its checksum right. What follows it is not looked at.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Unpacks what is complete of `input` behind what is in `out` already; how many bytes of
    /// `input` were used. The others, [`MAX_UNUSED_BYTES`] at most, have to come again with more
    /// behind them. `out` is the same each time, `literals` may have anything in it, and `is_last`
    /// says that no more input comes.
    ///
    /// # Errors
    ///
    /// [`Error`]; what is in `out` is of no use then, except with [`Error::TooLarge`], which leaves
    /// as many bytes as there is room for. Up to 15 bytes behind [`Self::unpacked`] may be written.
    pub fn decode(
        &mut self,
        input: &[u8],
        out: &mut [u8],
        literals: &mut [u8; MAX_BLOCK_BYTES],
        is_last: bool,
    ) -> Result<usize, Error> {
        let mut rest = input;
        while self.stage != Stage::Done {
            let Some(used) = self.step(rest, out, literals)? else {
                match self.stage {
                    _ if !is_last => break,
                    Stage::Next => self.stage = Stage::Done,
                    _ => return Err(Error::Truncated),
                }
                break;
            };
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(input.len().saturating_sub(rest.len()))
    }

    /// Takes one element of the format off `input`; how many bytes it has, or [`None`] if some of
    /// it are still to come.
    fn step(
        &mut self,
        input: &[u8],
        out: &mut [u8],
        literals: &mut [u8; MAX_BLOCK_BYTES],
    ) -> Result<Option<usize>, Error> {
        match self.stage {
            Stage::First | Stage::Next => self.start(input),
            Stage::Skip(0) => {
                self.stage = Stage::Next;
                Ok(Some(0))
            }
            Stage::Skip(left) => {
                let used = left.min(input.len());
                self.stage = Stage::Skip(left.saturating_sub(used));
                Ok((used > 0).then_some(used))
            }
            Stage::Block => self.block(input, out, literals),
            Stage::Checksum => {
                let Some(expected) = number(input, 4) else {
                    return Ok(None);
                };
                let (expected, found) = (expected as u32, self.digest.finish() as u32);
                if expected != found {
                    return Err(Error::Checksum { expected, found });
                }
                self.stage = Stage::Next;
                Ok(Some(4))
            }
            Stage::Done => Ok(None),
        }
    }

    /// The header of a frame, if there is one.
    fn start(&mut self, input: &[u8]) -> Result<Option<usize>, Error> {
        let Some(magic) = number(input, 4) else {
            return Ok(None);
        };
        let magic = magic as u32;
        if magic & !0xf == SKIPPABLE_MAGIC {
            let rest = input.get(4..).unwrap_or_default();
            return Ok(number(rest, 4).map(|size| {
                self.stage = Stage::Skip(size as usize);
                8
            }));
        }
        if magic != MAGIC {
            return match self.stage {
                Stage::First => Err(Error::NotZstd),
                _ => {
                    self.stage = Stage::Done;
                    Ok(Some(0))
                }
            };
        }
        let Some((frame, used)) = Frame::parse(input)? else {
            return Ok(None);
        };
        self.frame = Frame {
            start: self.unpacked,
            ..frame
        };
        self.digest = XxHash64::with_seed(0);
        self.tables.reset();
        self.stage = Stage::Block;
        Ok(Some(used))
    }

    /// A block (3.1.1.2), and what ends the frame after the last one.
    fn block(
        &mut self,
        input: &[u8],
        out: &mut [u8],
        literals: &mut [u8; MAX_BLOCK_BYTES],
    ) -> Result<Option<usize>, Error> {
        let Some(header) = number(input, 3) else {
            return Ok(None);
        };
        let (is_last, kind, size) = (header & 1 != 0, header >> 1 & 3, (header >> 3) as usize);
        if size > self.frame.block_bytes {
            return Err(Error::Damaged("a block is larger than the window"));
        }
        let packed = if kind == 1 { 1 } else { size };
        let Some(used) = packed.checked_add(3) else {
            return Ok(None);
        };
        let Some(content) = input.get(3..used) else {
            return Ok(None);
        };
        let before = self.unpacked;
        let mut out = Out::new(out, self.frame.start, before, self.frame.block_bytes);
        let result = match kind {
            0 => out.literals(content, size),
            1 => out.fill(content.first().copied().unwrap_or_default(), size),
            2 => self
                .tables
                .block(content, self.frame.block_bytes, literals, &mut out),
            _ => Err(Error::Damaged("a block is of the reserved type")),
        };
        self.unpacked = out.end();
        result?;
        if self.frame.has_checksum {
            self.digest.write(out.since(before));
        }
        if is_last {
            let found = self.unpacked.saturating_sub(self.frame.start) as u64;
            if let Some(expected) = self.frame.content_size.filter(|size| *size != found) {
                return Err(Error::ContentSize { expected, found });
            }
            self.stage = if self.frame.has_checksum {
                Stage::Checksum
            } else {
                Stage::Next
            };
        }
        Ok(Some(used))
    }
}

impl Frame {
    /// The header of a frame and its size in bytes, or [`None`] if some of it is still to come.
    fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, Error> {
        let mut at = 4;
        let mut field = |bytes: usize| {
            let value = number(input.get(at..)?, bytes)?;
            at = at.saturating_add(bytes);
            Some(value)
        };
        let Some(descriptor) = field(1) else {
            return Ok(None);
        };
        if descriptor & 8 != 0 {
            return Err(Error::Damaged("a reserved bit is set"));
        }
        let is_single_segment = descriptor & 0x20 != 0;
        let dictionary_bytes = match descriptor & 3 {
            3 => 4,
            bytes => bytes as usize,
        };
        let content_bytes = match descriptor >> 6 {
            0 => usize::from(is_single_segment),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let window = if is_single_segment { Some(0) } else { field(1) };
        let (Some(window), Some(dictionary), Some(content)) =
            (window, field(dictionary_bytes), field(content_bytes))
        else {
            return Ok(None);
        };
        if dictionary != 0 {
            let id = dictionary as u32;
            return Err(Error::Dictionary { id });
        }
        let content_size = (content_bytes > 0).then_some(match content_bytes {
            2 => content.saturating_add(256),
            _ => content,
        });
        // The window itself is all that was unpacked: what counts is how large it makes blocks.
        let window = if is_single_segment {
            content_size.unwrap_or_default()
        } else {
            let base = 1_u64.wrapping_shl(10_u32.wrapping_add((window >> 3) as u32));
            (base >> 3).wrapping_mul(window & 7).wrapping_add(base)
        };
        let frame = Self {
            start: 0,
            content_size,
            has_checksum: descriptor & 4 != 0,
            block_bytes: window.min(MAX_BLOCK_BYTES as u64) as usize,
        };
        Ok(Some((frame, at)))
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("stage", &self.stage)
            .field("unpacked", &self.unpacked)
            .field("frame", &self.frame)
            .finish_non_exhaustive()
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// The first `count` bytes, 8 at most, as a little-endian number, if there are as many.
fn number(bytes: &[u8], count: usize) -> Option<u64> {
    let bytes = bytes.get(..count)?.iter().rev();
    Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests;
