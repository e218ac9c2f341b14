//! The zero page, `struct boot_params`: the parameters of an x86 Linux kernel.
//!
//! Follows the kernel's `Documentation/arch/x86/zero-page.rst` and, for the setup header in it,
//! `boot.rst`, "64-bit Boot Protocol".

use crate::boot::{
    bzimage::{BzImage, HEADER_OFFSET, SetupHeader},
    memory::{MAX_REGIONS, MemoryRegion, Range},
};
use core::{fmt, mem::offset_of};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// Size of the zero page in bytes.
pub const ZERO_PAGE_BYTES: usize = 4096;

/// "Undefined": no ID is assigned to this boot loader.
const TYPE_OF_LOADER: u8 = 0xff;
/// Bits of `loadflags` that a boot loader writes. All of them are cleared: early messages are not suppressed,
/// and the others concern the real-mode entry.
const WRITTEN_LOADFLAGS: u8 = 0b1110_0000;

/// One entry of `e820_table`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct E820Entry {
    addr: U64,
    size: U64,
    kind: U32,
}

/// `struct boot_params`, with the fields that are filled here.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BootParams {
    _screen_info: [u8; 0x70],
    acpi_rsdp_addr: U64,
    _hd0_info: [u8; 0x48],
    ext_ramdisk_image: U32,
    ext_ramdisk_size: U32,
    ext_cmd_line_ptr: U32,
    _edid_info: [u8; 0x11c],
    e820_entries: u8,
    /// Its last byte is `sentinel`; non-zero would mean that the boot loader does not clear the page.
    _eddbuf_entries: [u8; 8],
    hdr: SetupHeader,
    _edd_mbr_sig_buffer: [u8; 0x64],
    e820_table: [E820Entry; MAX_REGIONS],
    _eddbuf: [u8; 0x330],
}

const _: () = {
    assert!(size_of::<BootParams>() == ZERO_PAGE_BYTES);
    assert!(offset_of!(BootParams, acpi_rsdp_addr) == 0x70);
    assert!(offset_of!(BootParams, ext_ramdisk_image) == 0xc0);
    assert!(offset_of!(BootParams, ext_cmd_line_ptr) == 0xc8);
    assert!(offset_of!(BootParams, e820_entries) == 0x1e8);
    assert!(offset_of!(BootParams, hdr) == HEADER_OFFSET);
    assert!(offset_of!(BootParams, e820_table) == 0x2d0);
};

/// The values to fill in.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// Physical address of the loaded kernel.
    pub load_address: u64,
    /// Physical address of the command line, which ends in a NUL.
    pub command_line: u64,
    /// The initrd in memory, without padding.
    pub initrd: Option<Range>,
    /// The machine's memory. Empty regions are skipped.
    pub memory_map: &'a [MemoryRegion],
    /// Physical address of the ACPI root pointer; 0 if there is none.
    pub acpi_rsdp: u64,
}

/// Why a zero page cannot be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPageError {
    /// The given head of the file does not include the whole setup header.
    HeadTooShort,
    /// The memory map has more regions than the table has entries. No region may be dropped: it could be
    /// memory that must not be used.
    TooManyRegions {
        /// Number of regions.
        regions: usize,
    },
    /// This lies above 4 GiB, and the kernel accepts only addresses of 32 bits.
    Above4Gib {
        /// `initrd`, `kernel` or `command line`.
        what: &'static str,
    },
}

impl fmt::Display for ZeroPageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::HeadTooShort => f.write_str("the kernel's setup header is incomplete"),
            Self::TooManyRegions { regions } => write!(
                f,
                "the memory map has {regions} regions and a zero page holds {MAX_REGIONS}; \
                 give the machine a simpler memory layout"
            ),
            Self::Above4Gib { what } => write!(
                f,
                "{what} lies above 4 GiB, where this kernel can't use it; use Linux 3.8 or newer"
            ),
        }
    }
}

impl core::error::Error for ZeroPageError {}

/// Fills `page` for `image`, whose file starts with `head`.
///
/// The whole page is written: the setup header is copied from the file, then the fields that a boot loader has
/// to set are set (boot.rst, "Details of Header Fields").
///
/// # Errors
///
/// [`ZeroPageError`]; the page is not valid then.
pub fn fill(
    page: &mut [u8; ZERO_PAGE_BYTES],
    head: &[u8],
    image: &BzImage,
    parameters: &Parameters<'_>,
) -> Result<(), ZeroPageError> {
    page.fill(0);
    let header = HEADER_OFFSET..image.header_end;
    let (Some(to), Some(from)) = (page.get_mut(header.clone()), head.get(header)) else {
        return Err(ZeroPageError::HeadTooShort);
    };
    to.copy_from_slice(from);
    let params: &mut BootParams = zerocopy::transmute_mut!(page);

    let above = image.above_4_gib();
    let split = |what, address: u64| {
        let (low, high) = halves(address);
        if high == 0 || above {
            Ok((U32::new(low), U32::new(high)))
        } else {
            Err(ZeroPageError::Above4Gib { what })
        }
    };
    let hdr = &mut params.hdr;
    hdr.type_of_loader = TYPE_OF_LOADER;
    hdr.loadflags &= !WRITTEN_LOADFLAGS;
    // The 64-bit entry ignores it. If the address does not fit, the image's value is kept.
    let (load_address, high) = split("kernel", parameters.load_address)?;
    if high == 0 {
        hdr.code32_start = load_address;
    }
    (hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = split("command line", parameters.command_line)?;

    let initrd = parameters.initrd.unwrap_or(Range { start: 0, end: 0 });
    // An initrd may start below 4 GiB and end above.
    split("initrd", initrd.end.saturating_sub(1))?;
    (hdr.ramdisk_image, params.ext_ramdisk_image) = split("initrd", initrd.start)?;
    (hdr.ramdisk_size, params.ext_ramdisk_size) = split("initrd", initrd.size())?;

    params.acpi_rsdp_addr = parameters.acpi_rsdp.into();
    let regions = || parameters.memory_map.iter().filter(|r| r.range.size() > 0);
    let count = regions().count();
    params.e820_entries = u8::try_from(count)
        .ok()
        .filter(|_| count <= MAX_REGIONS)
        .ok_or(ZeroPageError::TooManyRegions { regions: count })?;
    for (entry, region) in params.e820_table.iter_mut().zip(regions()) {
        *entry = E820Entry {
            addr: region.range.start.into(),
            size: region.range.size().into(),
            kind: (region.kind as u32).into(),
        };
    }
    Ok(())
}

/// Splits a value into its low and high 32 bits.
const fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{
        bytes::{u32_le, u64_le},
        bzimage::tests::{FILE_SIZE, head, put},
        memory::MemoryKind,
        testing::region,
    };
    use std::{string::ToString, vec, vec::Vec};

    const PARAMETERS: Parameters<'static> = Parameters {
        load_address: 0x100_0000,
        command_line: 0x2_0000,
        initrd: None,
        memory_map: &[],
        acpi_rsdp: 0,
    };

    fn filled(head: &[u8], parameters: &Parameters<'_>) -> Result<Vec<u8>, ZeroPageError> {
        let image = BzImage::parse(head, FILE_SIZE).unwrap();
        let mut page = [0xa5; ZERO_PAGE_BYTES];
        fill(&mut page, head, &image, parameters).map(|()| page.to_vec())
    }

    #[test]
    fn the_header_is_copied_and_all_else_is_zero() {
        let mut head = head();
        head[..0x1f1].fill(0x11);
        head[0x26c..].fill(0x22);
        let page = filled(&head, &PARAMETERS).unwrap();
        assert!(page[..0x1f1].iter().all(|&b| b == 0));
        assert!(page[0x26c..].iter().all(|&b| b == 0));
        let mut header = head[0x1f1..0x26c].to_vec();
        header[0x210 - 0x1f1] = 0xff;
        header[0x214 - 0x1f1..0x218 - 0x1f1].copy_from_slice(&0x100_0000_u32.to_le_bytes());
        header[0x228 - 0x1f1..0x22c - 0x1f1].copy_from_slice(&0x2_0000_u32.to_le_bytes());
        assert_eq!(page[0x1f1..0x26c], header);
    }

    #[test]
    fn a_longer_header_is_copied_to_its_end() {
        let mut head = head();
        put(&mut head, |h| h.jump[1] = 0x7f);
        head[0x26c..].fill(0x22);
        let page = filled(&head, &PARAMETERS).unwrap();
        assert!(page[0x26c..0x281].iter().all(|&b| b == 0x22));
        assert!(page[0x281..].iter().all(|&b| b == 0));
    }

    #[test]
    fn stale_flags_and_pointers_of_the_file_are_overwritten() {
        let mut head = head();
        put(&mut head, |h| {
            h.loadflags = 0xe1;
            h.ramdisk_image = 7.into();
            h.ramdisk_size = 7.into();
        });
        let page = filled(&head, &PARAMETERS).unwrap();
        assert_eq!(page[0x211], 1);
        assert_eq!(u64_le(&page, 0x218), Some(0));
    }

    #[test]
    fn addresses_above_4_gib_are_split() {
        let parameters = Parameters {
            load_address: 0x8_0100_0000,
            command_line: 0x7_1234_5000,
            initrd: Some(Range::with_size(0x6_8000_0000, 0x1_2345_6789)),
            acpi_rsdp: 0x9_0000_0000,
            ..PARAMETERS
        };
        let page = filled(&head(), &parameters).unwrap();
        let at = |offset| u32_le(&page, offset).unwrap();
        assert_eq!((at(0x228), at(0xc8)), (0x1234_5000, 7));
        assert_eq!((at(0x218), at(0xc0)), (0x8000_0000, 6));
        assert_eq!((at(0x21c), at(0xc4)), (0x2345_6789, 1));
        assert_eq!(u64_le(&page, 0x70), Some(0x9_0000_0000));
        assert_eq!(at(0x214), 0x10_0000);
    }

    #[test]
    fn addresses_above_4_gib_are_refused_for_kernels_limited_to_32_bits() {
        let mut head = head();
        put(&mut head, |h| h.xloadflags = 1.into());
        let four = 1 << 32;
        let error = |parameters| filled(&head, &parameters).unwrap_err();
        for (parameters, what) in [
            (
                Parameters {
                    load_address: four,
                    ..PARAMETERS
                },
                "kernel",
            ),
            (
                Parameters {
                    command_line: four,
                    ..PARAMETERS
                },
                "command line",
            ),
            (
                Parameters {
                    initrd: Some(Range::with_size(four - 4096, 4097)),
                    ..PARAMETERS
                },
                "initrd",
            ),
        ] {
            assert_eq!(error(parameters), ZeroPageError::Above4Gib { what });
        }
        let fits = Parameters {
            initrd: Some(Range::with_size(four - 4096, 4096)),
            ..PARAMETERS
        };
        filled(&head, &fits).unwrap();
    }

    #[test]
    fn the_memory_map_becomes_the_e820_table() {
        let map = [
            region(0, 0x9_fc00, MemoryKind::Usable),
            region(0x5000, 0x5000, MemoryKind::Reserved),
            region(0xfffc_0000, 1 << 32, MemoryKind::Reserved),
            region(1 << 32, 5 << 32, MemoryKind::Persistent),
        ];
        let parameters = Parameters {
            memory_map: &map,
            ..PARAMETERS
        };
        let page = filled(&head(), &parameters).unwrap();
        assert_eq!(page[0x1e8], 3);
        let entry = |i: usize| {
            let at = 0x2d0 + 20 * i;
            (
                u64_le(&page, at).unwrap(),
                u64_le(&page, at + 8).unwrap(),
                u32_le(&page, at + 16).unwrap(),
            )
        };
        assert_eq!(entry(0), (0, 0x9_fc00, 1));
        assert_eq!(entry(1), (0xfffc_0000, 0x4_0000, 2));
        assert_eq!(entry(2), (1 << 32, 4 << 32, 7));
        assert_eq!(entry(3), (0, 0, 0));
    }

    #[test]
    fn a_map_of_128_regions_fits_and_one_more_is_refused() {
        let region = |i: u64| MemoryRegion {
            range: Range::with_size(i << 20, 4096),
            kind: MemoryKind::Usable,
        };
        let map: Vec<_> = (1..=129).map(region).collect();
        let parameters = |memory_map| Parameters {
            memory_map,
            ..PARAMETERS
        };
        let page = filled(&head(), &parameters(&map[..128])).unwrap();
        assert_eq!(page[0x1e8], 128);
        assert_eq!(u64_le(&page, 0x2d0 + 127 * 20), Some(128 << 20));
        assert_eq!(&page[0xcd0..], vec![0; 0x330]);
        assert_eq!(
            filled(&head(), &parameters(&map)).unwrap_err().to_string(),
            "the memory map has 129 regions and a zero page holds 128; \
             give the machine a simpler memory layout"
        );
    }

    #[test]
    fn a_head_that_is_too_short_is_refused() {
        let head = head();
        let image = BzImage::parse(&head, FILE_SIZE).unwrap();
        let mut page = [0; ZERO_PAGE_BYTES];
        assert_eq!(
            fill(&mut page, &head[..0x26b], &image, &PARAMETERS),
            Err(ZeroPageError::HeadTooShort)
        );
    }
}
