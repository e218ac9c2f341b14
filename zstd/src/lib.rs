#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_debug_implementations)]
// No input may end the program: constructs that could panic are denied outside of tests.
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

/// Largest size of a block in bytes, compressed or decompressed (RFC 8878, 3.1.1.2.4). A decoder needs a buffer of
/// this size for literals.
pub const MAX_BLOCK_BYTES: usize = 128 << 10;

/// Most bytes of the input that [`Decoder::decode`] leaves unused when it needs more: a block and its header without
/// the last byte.
pub const MAX_UNUSED_BYTES: usize = MAX_BLOCK_BYTES + 2;

const MAGIC: u32 = 0xfd2f_b528;
/// The lowest four bits may have any value (3.1.2).
const SKIPPABLE_MAGIC: u32 = 0x184d_2a50;

/// Decompresses frames into one slice. The value takes about 11 KiB.
pub struct Decoder {
    stage: Stage,
    /// Number of bytes written.
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
    /// In a skippable frame with this many bytes left.
    Skip(usize),
    Block,
    Checksum,
    Done,
}

/// The header of a frame (3.1.1.1).
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    /// The offset of its content in the output.
    start: usize,
    content_size: Option<u64>,
    has_checksum: bool,
    /// Block_Maximum_Size.
    block_bytes: usize,
}

impl Decoder {
    /// Prepares for the start of the first frame.
    #[must_use]
    #[inline(never)] // The value is large: a call constructs it in place.
    pub fn new() -> Self {
        Self {
            stage: Stage::First,
            unpacked: 0,
            frame: Frame::default(),
            digest: XxHash64::with_seed(0),
            tables: Tables::new(),
        }
    }

    /// Number of bytes decompressed so far.
    #[must_use]
    pub const fn unpacked(&self) -> usize {
        self.unpacked
    }

    /// Whether the last frame has ended with a correct checksum. Bytes after it are ignored.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Decompresses the complete blocks in `input` and appends to what `out` already holds. Returns the number of
    /// input bytes used.
    ///
    /// The caller passes the unused bytes, at most [`MAX_UNUSED_BYTES`], again, followed by more. `out` must be the
    /// same slice each time, `literals` may hold any bytes, and `is_last` means that the input ends here.
    ///
    /// # Errors
    ///
    /// [`Error`]; `out` is not valid then, except with [`Error::TooLarge`]: `out` is then filled with the start of the
    /// content. Up to 15 bytes after the first [`Self::unpacked`] bytes may be overwritten.
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

    /// Processes one element of the format at the start of `input`. Returns its size in bytes, or [`None`] if it is
    /// incomplete.
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

    /// Processes the header of a frame, if there is one.
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

    /// Processes a block (3.1.1.2), and the end of the frame after the last one.
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
    /// Parses the header of a frame; returns it and its size in bytes, or [`None`] if it is incomplete.
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
        // All of the output serves as the window, so its size matters only as the limit of the size of blocks.
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

/// The first `count` bytes, at most 8, as a little-endian number; [`None`] if there are fewer.
fn number(bytes: &[u8], count: usize) -> Option<u64> {
    let bytes = bytes.get(..count)?.iter().rev();
    Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests;
