//! Decompresses gzip and Zstandard kernels piece by piece, straight into their final memory.
//!
//! The Zstandard decoder, `bootshare-zstd`, is part of this project. Of the existing `no_std` decoders,
//! `ruzstd` and `zstd-nostd` need a heap, and `zstd-zero` needs a buffer as large as the window. The kernel's
//! `Makefile.zboot` uses `zstd -22 --ultra`, which declares a window of 128 MiB for a kernel of any size. Our
//! decoder uses its output as the window. It is also three times as fast as `zstd-zero`: Debian's arm64
//! kernel, packed with levels 3, 19 and 22, was unpacked at 296, 226 and 219 MiB/s instead of 79, 78 and
//! 77 MiB/s on one core of the development machine; gzip reached 166 MiB/s.

use crate::boot::{
    gzip::{self, GzipError},
    image::Compression,
};
use bootshare_zstd::{Decoder, Error, MAX_BLOCK_BYTES};
use core::fmt;

/// Size in bytes of the buffer that an [`Unpacker`] needs.
pub const SCRATCH_BYTES: usize = MAX_BLOCK_BYTES;

/// Why a file cannot be unpacked. In its messages, "it" is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackError {
    /// An error in gzip data.
    Gzip(GzipError),
    /// An error in Zstandard data.
    Zstd {
        /// The decoder's error.
        error: Error,
        /// Bytes that were unpacked before the error.
        unpacked: usize,
        /// Size of the output buffer in bytes.
        room: usize,
    },
}

impl UnpackError {
    /// Whether the output buffer is too small and nothing else is wrong.
    #[must_use]
    pub const fn is_too_large(&self) -> bool {
        matches!(
            self,
            Self::Gzip(GzipError::TooLarge { .. })
                | Self::Zstd {
                    error: Error::TooLarge,
                    ..
                }
        )
    }
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (error, unpacked, room) = match *self {
            Self::Gzip(error) => return error.fmt(f),
            Self::Zstd {
                error,
                unpacked,
                room,
            } => (error, unpacked, room),
        };
        match error {
            Error::NotZstd => return f.write_str("it is not zstd; pack it with zstd"),
            Error::Dictionary { id } => {
                return write!(
                    f,
                    "its zstd data needs the dictionary {id}; pack it without one"
                );
            }
            Error::Truncated => write!(
                f,
                "it is cut off: its zstd data ends after {unpacked} bytes"
            ),
            Error::Damaged(what) => {
                write!(f, "its zstd data is damaged after {unpacked} bytes: {what}")
            }
            Error::TooLarge => write!(
                f,
                "it unpacks to more than the {room} bytes that it asks for"
            ),
            Error::Checksum { expected, found } => write!(
                f,
                "its checksum is wrong: XXH64 {found:08x} in place of {expected:08x}"
            ),
            Error::ContentSize { expected, found } => {
                write!(f, "it unpacks to {found} bytes in place of {expected}")
            }
            error => error.fmt(f),
        }?;
        f.write_str("; copy it again")
    }
}

impl core::error::Error for UnpackError {}

/// Decompresses one file. The value takes about 11 KiB.
#[derive(Debug)]
pub struct Unpacker<'s>(Method<'s>);

#[derive(Debug)]
enum Method<'s> {
    Gzip(gzip::Unpacker),
    Zstd(Decoder, &'s mut [u8; SCRATCH_BYTES]),
}

impl<'s> Unpacker<'s> {
    /// Prepares for a file with this compression; [`None`] if it is not supported. `scratch` may hold any
    /// bytes.
    #[must_use]
    #[inline(never)] // The value is large: a call constructs it in place.
    pub fn new(compression: Compression, scratch: &'s mut [u8; SCRATCH_BYTES]) -> Option<Self> {
        Some(Self(match compression {
            Compression::Gzip => Method::Gzip(gzip::Unpacker::new()),
            Compression::Zstd => Method::Zstd(Decoder::new(), scratch),
            _ => return None,
        }))
    }

    /// How many bytes the first call of [`Self::push`] needs to unpack anything, unless the file is
    /// shorter.
    #[must_use]
    pub const fn head_bytes(&self) -> usize {
        match &self.0 {
            Method::Gzip(_) => gzip::HEADER_BYTES,
            // The headers and the first block, and a few small skippable frames before them.
            Method::Zstd(..) => MAX_BLOCK_BYTES + 4096,
        }
    }

    /// Starts again at the start of the file.
    #[inline(never)] // As above.
    pub fn restart(&mut self) {
        match &mut self.0 {
            Method::Gzip(unpacker) => *unpacker = gzip::Unpacker::new(),
            Method::Zstd(decoder, _) => *decoder = Decoder::new(),
        }
    }

    /// Number of bytes unpacked so far.
    #[must_use]
    pub const fn unpacked(&self) -> usize {
        match &self.0 {
            Method::Gzip(unpacker) => unpacker.unpacked(),
            Method::Zstd(decoder, _) => decoder.unpacked(),
        }
    }

    /// Unpacks `input`, the next bytes of the file, and appends to what `out` already holds. Returns the
    /// number of input bytes used, and whether the content is complete and its checksum, if any, correct.
    ///
    /// The caller passes unused input again, followed by more. `out` must be the same slice each time;
    /// `is_last` means that the input ends here.
    ///
    /// # Errors
    ///
    /// [`UnpackError`]; `out` is not valid then, unless [it is too large](UnpackError::is_too_large): `out` is
    /// then filled with the start of the content.
    pub fn push(
        &mut self,
        input: &[u8],
        out: &mut [u8],
        is_last: bool,
    ) -> Result<(usize, bool), UnpackError> {
        match &mut self.0 {
            Method::Gzip(unpacker) => {
                let is_done = unpacker.push(input, out, is_last);
                Ok((input.len(), is_done.map_err(UnpackError::Gzip)?))
            }
            Method::Zstd(decoder, scratch) => {
                let used = decoder.decode(input, out, scratch, is_last);
                let used = used.map_err(|error| UnpackError::Zstd {
                    error,
                    unpacked: decoder.unpacked(),
                    room: out.len(),
                })?;
                Ok((used, decoder.is_done()))
            }
        }
    }
}
