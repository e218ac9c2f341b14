//! SHA-256 of files and memory.

use super::{
    Board,
    shares::{BoardFile, for_each_piece},
};
use crate::Error;
use core::fmt;
use sha2::{Digest, Sha256};

/// A SHA-256, displayed in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DigestText(pub [u8; 32]);

impl DigestText {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The size and the digest of a file, which is read through `buffer`.
    pub fn of_file<B: Board>(
        file: &BoardFile<'_, B>,
        buffer: &mut [u8],
    ) -> Result<(u64, Self), Error> {
        let mut digest = Sha256::new();
        let size = for_each_piece::<B>(file, buffer, |piece| digest.update(piece))?;
        Ok((size, Self(digest.finalize().into())))
    }
}

impl fmt::Display for DigestText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
