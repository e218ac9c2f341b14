//! Errors in compressed data.

use core::fmt;

/// Why frames cannot be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The input does not start with a frame.
    NotZstd,
    /// The content was compressed with a dictionary, which is not supported.
    Dictionary {
        /// The dictionary's ID.
        id: u32,
    },
    /// The input ends within a frame.
    Truncated,
    /// The data is invalid, for this reason.
    Damaged(&'static str),
    /// The content is larger than the output.
    TooLarge,
    /// The checksum of the content is wrong.
    Checksum {
        /// The value in the frame: the low 32 bits of the content's XXH64.
        expected: u32,
        /// The value of the decompressed content.
        found: u32,
    },
    /// The content does not have the size in the header of the frame.
    ContentSize {
        /// The size in the header, in bytes.
        expected: u64,
        /// The size of the decompressed content in bytes.
        found: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotZstd => f.write_str("no Zstandard frame starts there"),
            Self::Dictionary { id } => write!(f, "a frame needs the dictionary {id}"),
            Self::Truncated => f.write_str("the data is cut off"),
            Self::Damaged(what) => write!(f, "the data is damaged: {what}"),
            Self::TooLarge => f.write_str("the content is larger than the room for it"),
            Self::Checksum { expected, found } => {
                write!(f, "the XXH64 is {found:08x} in place of {expected:08x}")
            }
            Self::ContentSize { expected, found } => {
                write!(f, "the content has {found} bytes in place of {expected}")
            }
        }
    }
}

impl core::error::Error for Error {}
