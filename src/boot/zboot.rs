//! EFI zboot images: an EFI program that contains a compressed kernel and decompresses it.
//!
//! Follows the kernel's `drivers/firmware/efi/libstub/zboot-header.S` and `Makefile.zboot`, which offers gzip
//! and zstd. Both are supported ([`packed`](crate::boot::packed)); other methods are refused by name.

use crate::boot::{bytes::u32_le, memory::Range};

const MAGIC_OFFSET: usize = 4;
const MAGIC: [u8; 4] = *b"zimg";
/// The field with the name of the compression method: 32 bytes, before the Linux PE magic.
const NAME: core::ops::Range<usize> = 24..56;

/// The header of a zboot image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zboot<'a> {
    /// The range of the compressed kernel in the file.
    pub payload: Range,
    /// The name of the compression method.
    pub compression: &'a [u8],
}

impl<'a> Zboot<'a> {
    /// Parses the header in the first bytes of a file; [`None`] if the file has none.
    #[must_use]
    pub fn parse(head: &'a [u8]) -> Option<Self> {
        if !head.starts_with(b"MZ") || head.get(MAGIC_OFFSET..)?.first_chunk() != Some(&MAGIC) {
            return None;
        }
        let (start, size) = (u32_le(head, 8)?, u32_le(head, 12)?);
        let name = head.get(NAME)?;
        Some(Self {
            payload: Range::with_size(start.into(), size.into()),
            compression: name.split(|&byte| byte == 0).next().unwrap_or_default(),
        })
    }
}
