//! The arm64 Linux kernel image, `Image`.
//!
//! Follows the kernel's `Documentation/arch/arm64/booting.rst`, section 4, "Call the kernel
//! image".

use crate::boot::{
    bytes::{array, u64_le},
    memory::{Range, Request},
    pe::Pe,
};
use core::fmt;

/// How many bytes of the file [`Arm64Image::parse`] needs: the header.
///
/// Given up to a page, it also detects from the EFI headers whether the file is cut off.
pub const HEAD_BYTES: usize = 64;

/// The image is loaded `text_offset` bytes after an address that is a multiple of this.
const BASE_ALIGNMENT: u64 = 2 << 20;
const MAGIC: [u8; 4] = *b"ARM\x64";
const MAGIC_OFFSET: usize = 56;
const FLAG_BIG_ENDIAN: u64 = 1 << 0;
const FLAG_PLACE_ANYWHERE: u64 = 1 << 3;
/// "Within the 48-bit addressable range of physical memory".
const ADDRESS_END: u64 = 1 << 48;
const GIB: u64 = 1 << 30;

/// A raw arm64 kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm64Image {
    /// Offset in bytes of the image from its base, which is a multiple of 2 MiB.
    pub text_offset: u64,
    /// Bytes of memory that the kernel needs from its start, including the file's.
    pub image_size: u64,
    /// Size of the file in bytes; all of it is loaded.
    pub file_size: u64,
    /// Size of the kernel's pages in bytes, if the header has it (since Linux 4.4).
    pub page_size: Option<u32>,
    /// Whether the kernel can use memory below itself. Otherwise it should be placed low in memory, which is
    /// always done here.
    pub place_anywhere: bool,
}

/// Why a file cannot be started as an arm64 kernel. In its messages, "it" is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm64ImageError {
    /// The magic number is missing.
    NotImage,
    /// The file is shorter than its headers say.
    Truncated {
        /// The smallest valid size in bytes.
        needed: u64,
        /// The actual size in bytes.
        file_size: u64,
    },
    /// The kernel is built for big-endian processors.
    BigEndian,
    /// `image_size` is 0: the kernel is older than 3.17 and does not state how much memory it needs. With any
    /// guess, its first writes could overwrite the initrd, so it is not started.
    NoImageSize,
    /// This field of the header has an invalid value.
    Field(&'static str),
    /// The kernel uses pages of this size in bytes, which the processor does not support.
    PageSize(u32),
}

impl fmt::Display for Arm64ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotImage => {
                f.write_str("it is not an arm64 Image; use the kernel's arch/arm64/boot/Image")
            }
            Self::Truncated { needed, file_size } => write!(
                f,
                "it is cut off: {file_size} of at least {needed} bytes are there; copy it again"
            ),
            Self::BigEndian => {
                f.write_str("it is a big-endian kernel; use one built for little-endian arm64")
            }
            Self::NoImageSize => f.write_str(
                "it does not say how much memory it needs (image_size is 0); \
                 use Linux 3.17 or newer",
            ),
            Self::Field(name) => write!(
                f,
                "its header is damaged ({name} makes no sense); copy it again"
            ),
            Self::PageSize(bytes) => write!(
                f,
                "it is built for pages of {} KiB, which this processor does not have; \
                 use a kernel with pages of 4 KiB, or another processor (QEMU's -cpu max has all)",
                bytes >> 10
            ),
        }
    }
}

impl core::error::Error for Arm64ImageError {}

impl Arm64Image {
    /// Parses the header in `head`, the first bytes of a file of `file_size` bytes.
    ///
    /// # Errors
    ///
    /// [`Arm64ImageError`] if the file cannot be started.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, Arm64ImageError> {
        let image = Self::parse_packed(head)?;
        Self::check_size(head, file_size)?;
        Ok(Self { file_size, ..image })
    }

    /// Like [`Self::parse`], for a kernel that is not decompressed yet, except for its start `head`.
    /// `image_size` is assumed as the size; the caller calls [`Self::check_size`] after the decompression.
    ///
    /// # Errors
    ///
    /// [`Arm64ImageError`] if the kernel cannot be started.
    pub fn parse_packed(head: &[u8]) -> Result<Self, Arm64ImageError> {
        use Arm64ImageError::{BigEndian, Field, NoImageSize, NotImage};
        if !has_magic(head) {
            return Err(NotImage);
        }
        let field = |offset| u64_le(head, offset).ok_or(NotImage);
        let (text_offset, image_size, flags) = (field(8)?, field(16)?, field(24)?);
        if image_size == 0 {
            return Err(NoImageSize);
        }
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(BigEndian);
        }
        if image_size >= ADDRESS_END {
            return Err(Field("image_size"));
        }
        if text_offset >= ADDRESS_END {
            return Err(Field("text_offset"));
        }
        Ok(Self {
            text_offset,
            image_size,
            file_size: image_size,
            page_size: match flags >> 1 & 3 {
                1 => Some(4 << 10),
                2 => Some(16 << 10),
                3 => Some(64 << 10),
                _ => None,
            },
            place_anywhere: flags & FLAG_PLACE_ANYWHERE != 0,
        })
    }

    /// Checks that a file of `file_size` bytes, which starts with `head`, holds the whole image.
    ///
    /// # Errors
    ///
    /// [`Arm64ImageError::Truncated`]
    pub fn check_size(head: &[u8], file_size: u64) -> Result<(), Arm64ImageError> {
        // image_size includes memory beyond the file; the EFI sections give the size of the file.
        let needed = Pe::parse(head).map_or(0, |pe| pe.file_end());
        let needed = needed.max(HEAD_BYTES as u64);
        if file_size < needed {
            return Err(Arm64ImageError::Truncated { needed, file_size });
        }
        Ok(())
    }

    /// The memory that the kernel needs from its base, a multiple of 2 MiB, low in memory.
    ///
    /// [`Self::load_address`] gives the address of the file in it. If the file is larger than `image_size`,
    /// the memory is large enough for the file.
    #[must_use]
    pub fn memory_request(&self) -> Request {
        let size = self.image_size.max(self.file_size);
        Request {
            align: BASE_ALIGNMENT,
            min: 0,
            max: ADDRESS_END,
            ..Request::new("kernel", self.text_offset.saturating_add(size))
        }
    }

    /// Checks that the processor supports the kernel's page size: `has` returns whether it supports pages of
    /// this size in bytes (`ID_AA64MMFR0_EL1`). Otherwise the kernel would stop before it prints anything.
    ///
    /// # Errors
    ///
    /// [`Arm64ImageError::PageSize`]
    pub fn check_page_size(&self, has: impl FnOnce(u32) -> bool) -> Result<(), Arm64ImageError> {
        match self.page_size {
            Some(bytes) if !has(bytes) => Err(Arm64ImageError::PageSize(bytes)),
            _ => Ok(()),
        }
    }

    /// The range in which the device tree of a kernel in the memory `kernel` must lie, if it is restricted. The
    /// tree must not cross a multiple of 2 MiB then.
    ///
    /// Linux before 4.2 has this restriction (booting.rst, section 2). The header cannot distinguish 4.2 and
    /// 4.3 from older versions, so that it is applied to these as well.
    #[must_use]
    pub fn device_tree_window(&self, kernel: &Range) -> Option<Range> {
        let window = Range::with_size(kernel.start, 512 << 20);
        self.page_size.is_none().then_some(window)
    }

    /// The address to load the file to, which is also the entry point, for memory at `base`.
    #[must_use]
    pub const fn load_address(&self, base: u64) -> u64 {
        base.saturating_add(self.text_offset)
    }

    /// The range in which the initrd of a kernel at `kernel` must lie: 32 GiB that start at a multiple of 1 GiB
    /// and include the kernel.
    #[must_use]
    pub const fn initrd_window(kernel: &Range) -> Range {
        Range::with_size(kernel.start & GIB.wrapping_neg(), 32 * GIB)
    }
}

/// Whether `head` has the magic number of an arm64 Image.
pub(super) fn has_magic(head: &[u8]) -> bool {
    array(head, MAGIC_OFFSET) == Some(MAGIC)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::boot::{
        pe::{MACHINE_ARM64, tests::put_pe},
        testing::{Random, seeds},
    };
    use std::{string::ToString, vec, vec::Vec};

    /// The head of an image much like those of today's distributions, of 0x3_0000 bytes.
    pub(in crate::boot) fn head() -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[16..24].copy_from_slice(&0x5_0000_u64.to_le_bytes());
        head[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
        head[56..60].copy_from_slice(b"ARM\x64");
        put_pe(
            &mut head,
            0x40,
            MACHINE_ARM64,
            &[(0x1000, 0x1_f000), (0x2_0000, 0x1_0000)],
        );
        head
    }

    fn changed(offset: usize, value: u64) -> Result<Arm64Image, Arm64ImageError> {
        let mut head = head();
        head[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        Arm64Image::parse(&head, 0x3_0000)
    }

    #[test]
    fn a_current_image_is_parsed() {
        let image = Arm64Image::parse(&head(), 0x3_0000).unwrap();
        assert_eq!(
            image,
            Arm64Image {
                text_offset: 0,
                image_size: 0x5_0000,
                file_size: 0x3_0000,
                page_size: Some(4096),
                place_anywhere: true,
            }
        );
        let request = image.memory_request();
        assert_eq!((request.size, request.align), (0x5_0000, 0x20_0000));
        assert_eq!(image.load_address(0x4020_0000), 0x4020_0000);
    }

    #[test]
    fn the_offset_of_older_kernels_is_part_of_the_memory() {
        let image = changed(8, 0x8_0000).unwrap();
        assert_eq!(image.memory_request().size, 0x8_0000 + 0x5_0000);
        assert_eq!(image.load_address(0x4020_0000), 0x4028_0000);
    }

    #[test]
    fn a_file_larger_than_its_image_size_gets_enough_memory() {
        let image = Arm64Image::parse(&head(), 0x9_0000).unwrap();
        assert_eq!(image.memory_request().size, 0x9_0000);
    }

    #[test]
    fn page_sizes_are_parsed() {
        for (flags, size) in [
            (0, None),
            (2, Some(4096)),
            (4, Some(16384)),
            (6, Some(65536)),
        ] {
            assert_eq!(changed(24, flags).unwrap().page_size, size);
        }
    }

    #[test]
    fn pages_that_the_processor_lacks_are_an_error() {
        let check = |flags, has| changed(24, flags).unwrap().check_page_size(|_| has);
        assert_eq!(check(6, true), Ok(()));
        assert_eq!(check(6, false), Err(Arm64ImageError::PageSize(65536)));
        assert_eq!(check(0, false), Ok(()), "it says nothing of them");
    }

    #[test]
    fn old_kernels_need_the_device_tree_within_512_mib_after_their_start() {
        let kernel = Range::with_size(0x4020_0000, 0x200_0000);
        let window = |flags| changed(24, flags).unwrap().device_tree_window(&kernel);
        assert_eq!(window(0), Some(Range::with_size(0x4020_0000, 512 << 20)));
        assert_eq!(window(2), None);
    }

    #[test]
    fn images_that_cannot_be_started_are_refused_with_the_reason() {
        use Arm64ImageError::{BigEndian, Field, NoImageSize, NotImage};
        assert_eq!(changed(16, 0), Err(NoImageSize));
        assert_eq!(changed(24, 0xb), Err(BigEndian));
        assert_eq!(changed(8, u64::MAX), Err(Field("text_offset")));
        assert_eq!(changed(16, u64::MAX), Err(Field("image_size")));
        assert_eq!(Arm64Image::parse(&[], 0), Err(NotImage));
        assert_eq!(Arm64Image::parse(&[0; 64], 64), Err(NotImage));
        assert_eq!(
            BigEndian.to_string(),
            "it is a big-endian kernel; use one built for little-endian arm64"
        );
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        assert_eq!(
            Arm64Image::parse(&head(), 0x2_ffff)
                .unwrap_err()
                .to_string(),
            "it is cut off: 196607 of at least 196608 bytes are there; copy it again"
        );
    }

    #[test]
    fn a_compressed_image_requests_the_memory_in_its_header() {
        let image = Arm64Image::parse_packed(&head()[..HEAD_BYTES]).unwrap();
        assert_eq!(image.memory_request().size, 0x5_0000);
        assert!(Arm64Image::check_size(&head(), 0x3_0000).is_ok());
        Arm64Image::check_size(&head(), 0x2_ffff).unwrap_err();
    }

    #[test]
    fn the_initrd_window_covers_the_kernel() {
        let window = Arm64Image::initrd_window(&Range::with_size(0x7fe0_0000, 0x200_0000));
        assert_eq!(window, Range::with_size(0x4000_0000, 32 << 30));
    }

    #[test]
    fn damaged_headers_do_not_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut head = head();
            random.damage(&mut head[..64]);
            if let Ok(image) = Arm64Image::parse(&head, random.next() >> random.below(64)) {
                let request = image.memory_request();
                assert!(request.size >= image.image_size);
            }
        }
    }
}
