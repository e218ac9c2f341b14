//! Unpacks kernels piece by piece, straight into their place: gzip and Zstandard.
//!
//! Zstandard is `bootshare-zstd`'s, which is part of this project: of the decoders at hand, `ruzstd`
//! and `zstd-nostd` need a heap, and `zstd-zero` needs a buffer of the whole window. That is 128 MiB
//! for a kernel in `zstd -22 --ultra`, as the kernel's `Makefile.zboot` packs it, however small it
//! is. Here what was unpacked is its own window. It is also three times as fast as `zstd-zero`: Debian's
//! arm64 kernel, levels 3, 19 and 22, on one core of the machine it was written on, 296, 226 and 219 MiB/s
//! in place of 79, 78 and 77; gzip has 166.

use crate::boot::{
    gzip::{self, GzipError},
    image::Compression,
};
use bootshare_zstd::{Decoder, Error, MAX_BLOCK_BYTES};
use core::fmt;

/// Bytes of memory that an [`Unpacker`] works in.
pub const SCRATCH_BYTES: usize = MAX_BLOCK_BYTES;

/// Why a file can't be unpacked. The sentences go on from "it": the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackError {
    /// Of gzip.
    Gzip(GzipError),
    /// Of Zstandard.
    Zstd {
        /// What is wrong.
        error: Error,
        /// Bytes that were unpacked before.
        unpacked: usize,
        /// The room in bytes.
        room: usize,
    },
}

impl UnpackError {
    /// Whether all that is wrong is that there is no room for more.
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

/// A packed file on its way into memory. It takes some 11 KiB.
#[derive(Debug)]
pub struct Unpacker<'s>(Method<'s>);

#[derive(Debug)]
enum Method<'s> {
    Gzip(gzip::Unpacker),
    Zstd(Decoder, &'s mut [u8; SCRATCH_BYTES]),
}

impl<'s> Unpacker<'s> {
    /// At the start of a file; [`None`] if it is packed in another way. What is in `scratch` does
    /// not matter.
    #[must_use]
    #[inline(never)] // It is large: this way it is made in its place.
    pub fn new(compression: Compression, scratch: &'s mut [u8; SCRATCH_BYTES]) -> Option<Self> {
        Some(Self(match compression {
            Compression::Gzip => Method::Gzip(gzip::Unpacker::new()),
            Compression::Zstd => Method::Zstd(Decoder::new(), scratch),
            _ => return None,
        }))
    }

    /// How many of the first bytes [`Self::push`] has to see at once to unpack some, unless there
    /// are fewer.
    #[must_use]
    pub const fn head_bytes(&self) -> usize {
        match &self.0 {
            Method::Gzip(_) => gzip::HEADER_BYTES,
            // The headers and the first block, with a few small frames to skip before them.
            Method::Zstd(..) => MAX_BLOCK_BYTES + 4096,
        }
    }

    /// Goes back to the start of the file.
    #[inline(never)] // As above.
    pub fn restart(&mut self) {
        match &mut self.0 {
            Method::Gzip(unpacker) => *unpacker = gzip::Unpacker::new(),
            Method::Zstd(decoder, _) => *decoder = Decoder::new(),
        }
    }

    /// Bytes that were unpacked so far.
    #[must_use]
    pub const fn unpacked(&self) -> usize {
        match &self.0 {
            Method::Gzip(unpacker) => unpacker.unpacked(),
            Method::Zstd(decoder, _) => decoder.unpacked(),
        }
    }

    /// Unpacks the next bytes of the file, `input`, behind what is in `out` already: how many were
    /// used, and whether that was all of the content, with its checksum right if it has one. What
    /// was not used has to come again with more behind it. `out` is the same each time, and
    /// `is_last` says that no more input comes.
    ///
    /// # Errors
    ///
    /// [`UnpackError`]; what is in `out` is of no use then, except when
    /// [it is too large](UnpackError::is_too_large), which leaves as many bytes as there is room for.
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
