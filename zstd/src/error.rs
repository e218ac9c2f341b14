//! What can be wrong with packed data.

use core::fmt;

/// Why frames can't be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No frame starts there.
    NotZstd,
    /// The content was packed with a dictionary, which is not supported.
    Dictionary {
        /// Its number.
        id: u32,
    },
    /// The data goes on after its last byte.
    Truncated,
    /// It can't be what a packer wrote, for this reason.
    Damaged(&'static str),
    /// There is no room for as many bytes.
    TooLarge,
    /// What was unpacked is not what was packed.
    Checksum {
        /// What the frame says: the low 32 bits of the content's XXH64.
        expected: u32,
        /// Those of what came out.
        found: u32,
    },
    /// What was unpacked is not as long as what was packed.
    ContentSize {
        /// What the frame says in bytes.
        expected: u64,
        /// What came out in bytes.
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
