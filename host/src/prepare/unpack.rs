//! Decompresses kernels, in each format that the kernel's build supports.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

/// The largest kernel that is unpacked, in bytes.
const MOST: u64 = 512 << 20;

/// The memory limit of xz. Kernels use dictionaries of 32 to 128 MiB.
const LZMA_MEMORY_KIB: u32 = 256 << 10;

/// The first bytes of compressed data, and its format.
const MAGICS: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"BZh", "bzip2"),
    (LZOP, "lzo"),
    // Properties 5D, and a dictionary size that is a multiple of 64 KiB.
    (b"\x5d\0\0", "lzma"),
    (b"\x7fELF", "nothing"),
];

/// lzop's magic; the kernel's lib/decompress_unlzo.c.
const LZOP: &[u8] = b"\x89LZO\0\r\n\x1a\n";

/// Decompresses `packed`. A few bytes may follow the compressed data: the kernel's build appends
/// the decompressed size.
///
/// # Errors
/// The data is damaged, too large, or packed in a way that kernels are not.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let name = compression(packed).context("its compression is not known")?;
    let unpacked = match name {
        "gzip" => all(flate2::read::GzDecoder::new(packed)),
        "zstd" => ruzstd::decoding::StreamingDecoder::new(packed)
            .map_err(anyhow::Error::from)
            .and_then(all),
        "xz" => all(lzma_rust2::XzReader::new(packed, false)),
        "bzip2" => all(bzip2::read::BzDecoder::new(packed)),
        "lzma" => lzma_rust2::LzmaReader::new_mem_limit(packed, LZMA_MEMORY_KIB, None)
            .map_err(anyhow::Error::from)
            .and_then(all),
        "lz4" => lz4(packed),
        "lzo" => lzo(packed),
        _ => Ok(packed.to_owned()),
    };
    unpacked.with_context(|| format!("cannot unpack it ({name})"))
}

/// The compression of a kernel by its first bytes; `nothing` of an ELF file.
pub(crate) fn compression(packed: &[u8]) -> Option<&'static str> {
    let found = MAGICS.iter().find(|(magic, _)| packed.starts_with(magic));
    found.map(|(_, name)| *name)
}

fn all(reader: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MOST + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MOST, "it has more than {MOST} bytes");
    Ok(bytes)
}

/// Removes the first `count` bytes and returns them.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(count).context("it is cut off")?;
    *rest = behind;
    Ok(taken)
}

fn take_u32(rest: &mut &[u8]) -> Result<[u8; 4]> {
    Ok(take(rest, 4)?.try_into()?)
}

/// LZ4's legacy frame: blocks of up to 8 MiB, each preceded by its size.
fn lz4(packed: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let (magic, mut rest) = packed.split_at(4);
    let (mut bytes, mut block) = (Vec::new(), vec![0; BLOCK]);
    // The last four bytes are the appended size, not a block.
    while rest.len() > 4 {
        let size = take_u32(&mut rest)?;
        if size == magic {
            continue;
        }
        let packed = take(&mut rest, u32::from_le_bytes(size) as usize)?;
        let size = lz4_flex::block::decompress_into(packed, &mut block)?;
        append(&mut bytes, &block[..size])?;
    }
    Ok(bytes)
}

/// lzop's format: a header, then blocks, each preceded by its sizes.
fn lzo(packed: &[u8]) -> Result<Vec<u8>> {
    const FILTER: u32 = 0x800;
    const MOST_BLOCK: usize = 64 << 20;
    let mut rest = &packed[LZOP.len()..];
    let version = u16::from_be_bytes(take(&mut rest, 2)?.try_into()?);
    let is_new = version >= 0x940;
    // The versions of library and unpacker, the method, and the level.
    take(&mut rest, if is_new { 6 } else { 5 })?;
    let flags = u32::from_be_bytes(take_u32(&mut rest)?);
    ensure!(
        flags & FILTER == 0,
        "it uses a filter, which is not supported"
    );
    // Mode and time; the name; a checksum.
    take(&mut rest, if is_new { 12 } else { 8 })?;
    let name = take(&mut rest, 1)?[0];
    take(&mut rest, usize::from(name) + 4)?;
    let mut bytes = Vec::new();
    let mut block = Vec::new();
    loop {
        let size = u32::from_be_bytes(take_u32(&mut rest)?) as usize;
        if size == 0 {
            return Ok(bytes);
        }
        ensure!(size <= MOST_BLOCK, "a block has {size} bytes");
        let packed_size = u32::from_be_bytes(take_u32(&mut rest)?) as usize;
        take_u32(&mut rest)?;
        let packed = take(&mut rest, packed_size)?;
        if packed_size >= size {
            append(&mut bytes, packed)?;
            continue;
        }
        block.resize(size, 0);
        match lzokay::decompress::decompress(packed, &mut block) {
            Ok(count) if count == size => append(&mut bytes, &block)?,
            Ok(count) => bail!("a block has {count} bytes instead of {size}"),
            Err(error) => bail!("a block is damaged: {error:?}"),
        }
    }
}

fn append(bytes: &mut Vec<u8>, more: &[u8]) -> Result<()> {
    bytes.extend_from_slice(more);
    ensure!(bytes.len() as u64 <= MOST, "it has more than {MOST} bytes");
    Ok(())
}
