//! Decompresses a gzip member, piece by piece, straight into its final memory.
//!
//! Follows RFC 1952; `miniz_oxide` does the DEFLATE part. The output serves as the window, so that there is
//! no second copy of it. Bytes after the member, such as padding or a signature, are ignored.

use crate::boot::bytes::{array, u16_le, u32_le};
use core::fmt;
use crc::{CRC_32_ISO_HDLC, Crc, Digest};
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags},
};

/// How many bytes the first call of [`Unpacker::push`] needs, unless the member is shorter: the header, which
/// may contain the name of the original file, must end within them.
pub const HEADER_BYTES: usize = 4096;

const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// `CM`.
const METHOD_DEFLATE: u8 = 8;
/// Bits of `FLG`.
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
/// CRC-32 and ISIZE.
const TRAILER_BYTES: usize = 8;

/// The crate's implementation with one table; the faster ones have 15 KiB of tables more.
static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Why a member cannot be unpacked. In its messages, "it" is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GzipError {
    /// It has no gzip header, or is not compressed by DEFLATE.
    NotGzip,
    /// Its header is longer than [`HEADER_BYTES`].
    HeaderTooLong,
    /// The input ends within the member.
    Truncated {
        /// Bytes that were unpacked.
        unpacked: usize,
    },
    /// The compressed data is invalid.
    Damaged {
        /// Bytes that were unpacked before the error.
        unpacked: usize,
    },
    /// The content is larger than the output buffer.
    TooLarge {
        /// Size of the output buffer in bytes.
        room: usize,
    },
    /// The CRC-32 of the content is wrong.
    Checksum {
        /// The value in the member's trailer.
        expected: u32,
        /// The value of the unpacked content.
        found: u32,
    },
    /// The content does not have the size in the member's trailer.
    Size {
        /// The size in the trailer, in bytes, modulo 2^32.
        expected: u32,
        /// Bytes that were unpacked.
        unpacked: usize,
    },
}

impl fmt::Display for GzipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotGzip => f.write_str("it is not gzip with DEFLATE; pack it with gzip")?,
            Self::HeaderTooLong => write!(
                f,
                "its gzip header has more than {HEADER_BYTES} bytes; pack it with gzip -n"
            )?,
            Self::Truncated { unpacked } => {
                write!(
                    f,
                    "it is cut off: its gzip data ends after {unpacked} bytes"
                )?;
            }
            Self::Damaged { unpacked } => {
                write!(f, "its gzip data is damaged after {unpacked} bytes")?;
            }
            Self::TooLarge { room } => {
                write!(
                    f,
                    "it unpacks to more than the {room} bytes that it asks for"
                )?;
            }
            Self::Checksum { expected, found } => write!(
                f,
                "its checksum is wrong: CRC-32 {found:08x} in place of {expected:08x}"
            )?,
            Self::Size { expected, unpacked } => {
                write!(f, "it unpacks to {unpacked} bytes in place of {expected}")?
            }
        }
        match self {
            Self::NotGzip | Self::HeaderTooLong => Ok(()),
            _ => f.write_str("; copy it again"),
        }
    }
}

impl core::error::Error for GzipError {}

/// Decompresses one member. The value takes about 11 KiB.
pub struct Unpacker {
    inflate: DecompressorOxide,
    stage: Stage,
    unpacked: usize,
    digest: Digest<'static, u32>,
    trailer: heapless::Vec<u8, TRAILER_BYTES>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Body,
    Trailer,
}

impl Unpacker {
    /// Prepares for the start of a member.
    #[must_use]
    #[inline(never)] // The value is large: a call constructs it in place.
    pub fn new() -> Self {
        Self {
            inflate: DecompressorOxide::new(),
            stage: Stage::Header,
            unpacked: 0,
            digest: CRC.digest(),
            trailer: heapless::Vec::new(),
        }
    }

    /// Number of bytes unpacked so far.
    #[must_use]
    pub const fn unpacked(&self) -> usize {
        self.unpacked
    }

    /// Unpacks `input`, the next bytes of the member, and appends to what `out` already holds. Returns `true`
    /// when the member is complete and its checksum correct. `out` must be the same slice each time;
    /// `is_last` means that the input ends here.
    ///
    /// # Errors
    ///
    /// [`GzipError`]; `out` is not valid then, except with [`GzipError::TooLarge`]: `out` is then filled with
    /// the start of the content.
    pub fn push(&mut self, input: &[u8], out: &mut [u8], is_last: bool) -> Result<bool, GzipError> {
        let mut rest = input;
        if self.stage == Stage::Header {
            let header = header_bytes(input, is_last)?;
            rest = input.get(header..).unwrap_or_default();
            self.stage = Stage::Body;
        }
        if self.stage == Stage::Body {
            let used = self.inflate(rest, out, is_last)?;
            rest = rest.get(used..).unwrap_or_default();
        }
        if self.stage == Stage::Trailer {
            let missing = TRAILER_BYTES.saturating_sub(self.trailer.len());
            let taken = rest.get(..missing).unwrap_or(rest);
            _ = self.trailer.extend_from_slice(taken); // At most as many as are missing.
            if self.trailer.is_full() {
                return self.check().map(|()| true);
            }
        }
        if is_last {
            return Err(GzipError::Truncated {
                unpacked: self.unpacked,
            });
        }
        Ok(false)
    }

    /// Decompresses `input`; returns the number of bytes used.
    fn inflate(&mut self, input: &[u8], out: &mut [u8], is_last: bool) -> Result<usize, GzipError> {
        let mut flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        if !is_last {
            flags |= inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
        }
        let before = self.unpacked;
        let room = out.len();
        let (status, used, more) = decompress(&mut self.inflate, input, out, before, flags);
        let unpacked = before.saturating_add(more);
        self.unpacked = unpacked;
        self.digest
            .update(out.get(before..unpacked).unwrap_or_default());
        match status {
            TINFLStatus::Done => self.stage = Stage::Trailer,
            TINFLStatus::NeedsMoreInput => {}
            // This status is also returned when only the end of the stream is still missing.
            TINFLStatus::HasMoreOutput if used == input.len() && !is_last => {}
            TINFLStatus::HasMoreOutput => return Err(GzipError::TooLarge { room }),
            TINFLStatus::FailedCannotMakeProgress => {
                return Err(GzipError::Truncated { unpacked });
            }
            _ => return Err(GzipError::Damaged { unpacked }),
        }
        Ok(used)
    }

    fn check(&self) -> Result<(), GzipError> {
        let field = |offset| u32_le(&self.trailer, offset).unwrap_or_default();
        let unpacked = self.unpacked;
        let (expected, found) = (field(0), self.digest.clone().finalize());
        if found != expected {
            return Err(GzipError::Checksum { expected, found });
        }
        let expected = field(4);
        // ISIZE is the size "modulo 2^32".
        if unpacked as u64 & u64::from(u32::MAX) != u64::from(expected) {
            return Err(GzipError::Size { expected, unpacked });
        }
        Ok(())
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker")
            .field("unpacked", &self.unpacked)
            .finish_non_exhaustive()
    }
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::new()
    }
}

/// Size in bytes of the header at the start of `input` (RFC 1952, 2.3).
fn header_bytes(input: &[u8], is_last: bool) -> Result<usize, GzipError> {
    if !input.starts_with(&MAGIC) || input.get(2) != Some(&METHOD_DEFLATE) {
        return Err(GzipError::NotGzip);
    }
    let head = input.get(..HEADER_BYTES).unwrap_or(input);
    let size = array(head, 3).and_then(|[flags]: [u8; 1]| {
        let mut size = 10_usize;
        if flags & FEXTRA != 0 {
            let extra = u16_le(head, size)?;
            size = size.checked_add(2)?.checked_add(extra.into())?;
        }
        for flag in [FNAME, FCOMMENT] {
            if flags & flag != 0 {
                let text = head.get(size..)?;
                let end = text.iter().position(|&byte| byte == 0)?;
                size = size.checked_add(end)?.checked_add(1)?;
            }
        }
        if flags & FHCRC != 0 {
            size = size.checked_add(2)?;
        }
        (size <= head.len()).then_some(size)
    });
    size.ok_or(if is_last && input.len() < HEADER_BYTES {
        GzipError::Truncated { unpacked: 0 }
    } else {
        GzipError::HeaderTooLong
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::boot::testing::{Random, STRIDE, seeds};
    use flate2::{Compression, GzBuilder};
    use std::{io::Write, string::ToString, vec, vec::Vec};

    /// Bytes that pack well in some places and badly in others.
    pub(in crate::boot) fn sample(bytes: usize) -> Vec<u8> {
        let mut random = Random::new(1);
        (0..bytes)
            .map(|at| match at / 100 % 3 {
                0 => random.next() as u8,
                1 => b'a' + (at % 7) as u8,
                _ => 0,
            })
            .collect()
    }

    pub(in crate::boot) fn pack(bytes: &[u8]) -> Vec<u8> {
        finish(GzBuilder::new(), bytes)
    }

    fn finish(builder: GzBuilder, bytes: &[u8]) -> Vec<u8> {
        let mut writer = builder.write(Vec::new(), Compression::default());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    /// Unpacks in pieces, the first of them large enough for the header.
    fn unpack(packed: &[u8], piece: usize, room: usize) -> Result<Vec<u8>, GzipError> {
        let mut out = vec![0xa5; room];
        let mut unpacker = Unpacker::new();
        let mut at = 0;
        loop {
            let first = if at == 0 { 64 } else { 0 };
            let end = (at + piece.max(first)).min(packed.len());
            let is_last = end == packed.len();
            if unpacker.push(&packed[at..end], &mut out, is_last)? {
                out.truncate(unpacker.unpacked());
                return Ok(out);
            }
            assert!(!is_last, "it neither ends nor fails");
            at = end;
        }
    }

    #[test]
    fn pieces_of_any_size_make_the_whole() {
        let bytes = sample(if cfg!(miri) { 2_000 } else { 100_000 });
        let packed = pack(&bytes);
        for piece in [1, 7, 1000, 1 << 20] {
            assert!(unpack(&packed, piece, bytes.len()).unwrap() == bytes);
        }
        assert_eq!(unpack(&pack(b""), 100, 0).unwrap(), b"");
    }

    #[test]
    fn every_optional_field_of_the_header_is_passed_over() {
        let builder = GzBuilder::new()
            .extra("extra")
            .filename("name")
            .comment("comment");
        let mut packed = finish(builder, b"text");
        assert_eq!(unpack(&packed, 100, 4).unwrap(), b"text");
        // A checksum of the header, whatever it is.
        packed[3] |= FHCRC;
        let end = packed.windows(8).position(|w| w == b"comment\0").unwrap() + 8;
        packed.splice(end..end, [1, 2]);
        assert_eq!(unpack(&packed, 100, 4).unwrap(), b"text");
    }

    #[test]
    fn data_after_the_member_is_ignored() {
        let mut packed = pack(b"text");
        packed.extend([0xff; 100]);
        for piece in [1, 1000] {
            assert_eq!(unpack(&packed, piece, 4).unwrap(), b"text");
        }
    }

    #[test]
    fn content_larger_than_the_output_is_refused_and_its_start_is_written() {
        let bytes = sample(5_000);
        let packed = pack(&bytes);
        let mut out = vec![0; 4_000];
        let error = Unpacker::new().push(&packed, &mut out, true).unwrap_err();
        assert_eq!(error, GzipError::TooLarge { room: 4_000 });
        assert!(out == bytes[..4_000]);
    }

    #[test]
    fn a_member_that_is_cut_off_is_refused() {
        let packed = pack(&sample(1_000));
        for length in (0..packed.len()).step_by(STRIDE) {
            let error = unpack(&packed[..length], 1 << 20, 1_000).unwrap_err();
            let expected = if length < 3 {
                matches!(error, GzipError::NotGzip)
            } else {
                matches!(error, GzipError::Truncated { .. })
            };
            assert!(expected, "{length}: {error}");
        }
    }

    #[test]
    fn errors_name_the_cause() {
        let bytes = sample(1_000);
        let packed = pack(&bytes);
        let text = |packed: &[u8]| unpack(packed, 300, 1_000).unwrap_err().to_string();
        let end = packed.len();
        let mut wrong = packed.clone();
        wrong[end - 8..end - 4].copy_from_slice(&[0; 4]);
        assert!(text(&wrong).contains(" in place of 00000000; copy it again"));
        let mut wrong = packed.clone();
        wrong[end - 4..].copy_from_slice(&[1, 0, 0, 0]);
        assert_eq!(
            text(&wrong),
            "it unpacks to 1000 bytes in place of 1; copy it again"
        );
        let mut wrong = packed.clone();
        // A block of the reserved type 3.
        wrong[10] = 0xff;
        assert_eq!(
            text(&wrong),
            "its gzip data is damaged after 0 bytes; copy it again"
        );
        assert_eq!(
            text(&packed[..end - 1]),
            "it is cut off: its gzip data ends after 1000 bytes; copy it again"
        );
        assert!(text(b"\x1f\x8b\x07").contains("not gzip"));
        let mut long = packed;
        long[3] |= FNAME;
        long.splice(10..10, vec![b'n'; 5_000]);
        assert_eq!(unpack(&long, 1 << 20, 1_000), Err(GzipError::HeaderTooLong));
    }

    #[test]
    fn a_damaged_member_gives_an_error_or_the_original_content() {
        let bytes = sample(1_000);
        let packed = pack(&bytes);
        for seed in seeds(5_000) {
            let random = &mut Random::new(seed);
            let mut packed = packed.clone();
            random.damage(&mut packed);
            let piece = 1 + random.below(400) as usize;
            if let Ok(unpacked) = unpack(&packed, piece, 1_000) {
                assert!(unpacked == bytes);
            }
        }
    }
}
