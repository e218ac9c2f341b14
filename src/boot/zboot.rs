//! EFI zboot images: a compressed kernel in an EFI program that unpacks it.
//!
//! Follows the kernel's `drivers/firmware/efi/libstub/zboot-header.S` and `Makefile.zboot`. Those in
//! gzip and zstd are unpacked ([`packed`](crate::boot::packed)), which is all that the kernel's own
//! makes today. Others are refused by name.

use crate::boot::{bytes::u32_le, memory::Range};

const MAGIC_OFFSET: usize = 4;
const MAGIC: [u8; 4] = *b"zimg";
/// The name of the compression is 32 bytes at most, up to the Linux PE magic.
const NAME: core::ops::Range<usize> = 24..56;

/// The header of a zboot image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zboot<'a> {
    /// Where the compressed kernel lies in the file.
    pub payload: Range,
    /// The name of the compression.
    pub compression: &'a [u8],
}

impl<'a> Zboot<'a> {
    /// Reads the header out of a file's first bytes; [`None`] if there is none.
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
