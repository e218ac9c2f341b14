//! U-Boot's legacy image format: a header of 64 bytes and the data (U-Boot, `include/image.h`). Some systems
//! store their initrd in it, as `uInitrd`.

use crate::boot::bytes::array;
use core::fmt;
use crc::{CRC_32_ISO_HDLC, Crc};

/// Size of the header in bytes.
pub const HEADER_BYTES: usize = 64;

const MAGIC: u32 = 0x2705_1956;
/// `IH_TYPE_RAMDISK`
const RAMDISK: u8 = 3;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Why an image cannot be used. In its messages, "it" is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UbootImageError {
    /// It does not contain an initrd.
    NotInitrd {
        /// The image type (`IH_TYPE_*`).
        kind: u8,
    },
    /// The file is shorter than the header says.
    Truncated {
        /// The expected size in bytes.
        needed: u64,
        /// The actual size in bytes.
        size: u64,
    },
    /// The checksum of this part, `header` or `content`, is wrong.
    Checksum(&'static str),
}

impl fmt::Display for UbootImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotInitrd { kind } => write!(
                f,
                "it is an image for U-Boot, but does not contain an initrd (type {kind}); \
                 make one with mkimage -T ramdisk"
            ),
            Self::Truncated { needed, size } => write!(
                f,
                "it is cut off: {size} of {needed} bytes are there; copy it again"
            ),
            Self::Checksum(what) => write!(
                f,
                "it is damaged: the checksum of its {what} is wrong; copy it again"
            ),
        }
    }
}

impl core::error::Error for UbootImageError {}

/// Whether `file` has the magic number of such an image.
#[must_use]
pub fn has_magic(file: &[u8]) -> bool {
    array(file, 0).map(u32::from_be_bytes) == Some(MAGIC)
}

/// Checks the image `file` and returns the initrd in it, which may itself be compressed.
///
/// # Errors
///
/// [`UbootImageError`] if it is not a complete image of an initrd.
pub fn initrd(file: &[u8]) -> Result<&[u8], UbootImageError> {
    let head: [u8; HEADER_BYTES] = array(file, 0).ok_or(UbootImageError::Truncated {
        needed: HEADER_BYTES as u64,
        size: file.len() as u64,
    })?;
    let word = |offset| array(&head, offset).map_or(0, u32::from_be_bytes);
    // The checksum of the header is computed with 0 in place of itself.
    let mut digest = CRC.digest();
    let (magic, fields) = head.split_at_checked(4).unwrap_or_default();
    for part in [magic, &[0; 4], fields.get(4..).unwrap_or_default()] {
        digest.update(part);
    }
    if digest.finalize() != word(4) {
        return Err(UbootImageError::Checksum("header"));
    }
    let [_, _, kind, _] = word(28).to_be_bytes();
    if kind != RAMDISK {
        return Err(UbootImageError::NotInitrd { kind });
    }
    let data = file.get(HEADER_BYTES..).unwrap_or_default();
    let size = word(12);
    let data = usize::try_from(size).ok().and_then(|size| data.get(..size));
    let data = data.ok_or(UbootImageError::Truncated {
        needed: u64::from(size).saturating_add(HEADER_BYTES as u64),
        size: file.len() as u64,
    })?;
    if CRC.checksum(data) != word(24) {
        return Err(UbootImageError::Checksum("content"));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::{string::ToString, vec::Vec};

    // The output of `mkimage -A arm64 -T ramdisk -C none -d FILE` for "PLACEHOLDER INITRD\n", with time 0.
    fn image() -> Vec<u8> {
        let data = b"PLACEHOLDER INITRD\n";
        let mut image = Vec::new();
        for word in [MAGIC, 0, 0, data.len() as u32, 0, 0, CRC.checksum(data)] {
            image.extend(word.to_be_bytes());
        }
        image.extend([5, 22, RAMDISK, 0]);
        image.resize(HEADER_BYTES, 0);
        let checksum = CRC.checksum(&image);
        image[4..8].copy_from_slice(&checksum.to_be_bytes());
        image.extend(data);
        image
    }

    #[test]
    fn the_data_follow_the_header() {
        assert!(has_magic(&image()));
        assert_eq!(initrd(&image()), Ok(&b"PLACEHOLDER INITRD\n"[..]));
        // Such as the padding of a block device.
        let padded = [image(), Vec::from([0; 7])].concat();
        assert_eq!(initrd(&padded), Ok(&b"PLACEHOLDER INITRD\n"[..]));
        assert!(!has_magic(b"070701"));
    }

    #[test]
    fn damaged_data_is_refused() {
        let refused = |image: &[u8]| initrd(image).unwrap_err().to_string();
        let mut other = image();
        other[30] = 2;
        assert_eq!(
            refused(&other),
            "it is damaged: the checksum of its header is wrong; copy it again"
        );
        other[4..8].fill(0);
        let checksum = CRC.checksum(&other[..HEADER_BYTES]);
        other[4..8].copy_from_slice(&checksum.to_be_bytes());
        assert!(refused(&other).contains("not contain an initrd (type 2)"));
        let mut damaged = image();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(refused(&damaged).contains("checksum of its content"));
        let whole = image();
        for size in 0..whole.len() {
            assert!(refused(&whole[..size]).contains("it is cut off"), "{size}");
        }
    }

    #[test]
    fn any_bytes_do_not_panic() {
        for seed in seeds(2000) {
            let mut image = image();
            Random::new(seed).damage(&mut image);
            _ = initrd(&image);
        }
    }
}
