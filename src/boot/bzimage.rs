//! The x86 Linux kernel image, bzImage, for the 64-bit boot protocol.
//!
//! Follows the kernel's `Documentation/arch/x86/boot.rst` ("The Linux/x86 Boot Protocol"). The names of
//! fields are from its table "The Real-Mode Kernel Header".

use crate::boot::memory::Request;
use core::fmt;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// How many bytes of the file [`BzImage::parse`] needs, unless the file is shorter: up to the end of the
/// space for the setup header in a zero page (`edd_mbr_sig_buffer`).
pub const HEAD_BYTES: usize = 0x290;

/// Offset of the setup header, in the file and in the zero page.
pub(super) const HEADER_OFFSET: usize = 0x1f1;

/// Offset of the 64-bit entry point from the load address (boot.rst, "64-bit Boot Protocol").
const ENTRY_OFFSET: u64 = 0x200;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: [u8; 4] = *b"HdrS";
/// `EB`: a short jump. Its distance gives the end of the header.
const JUMP: u8 = 0xeb;
/// Protocol 2.12 (Linux 3.8) introduced `xloadflags`, which has the flag for the 64-bit entry.
const OLDEST_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const SECTOR_BYTES: u64 = 512;
const PARAGRAPH_BYTES: u64 = 16;
const FOUR_GIB: u64 = 1 << 32;
const MIB: u64 = 1 << 20;

/// The setup header from [`HEADER_OFFSET`] to the last field defined here.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SetupHeader {
    pub setup_sects: u8,
    pub root_flags: U16,
    pub syssize: U32,
    pub ram_size: U16,
    pub vid_mode: U16,
    pub root_dev: U16,
    pub boot_flag: U16,
    pub jump: [u8; 2],
    pub header: [u8; 4],
    pub version: U16,
    pub realmode_swtch: U32,
    pub start_sys_seg: U16,
    pub kernel_version: U16,
    pub type_of_loader: u8,
    pub loadflags: u8,
    pub setup_move_size: U16,
    pub code32_start: U32,
    pub ramdisk_image: U32,
    pub ramdisk_size: U32,
    pub bootsect_kludge: U32,
    pub heap_end_ptr: U16,
    pub ext_loader_ver: u8,
    pub ext_loader_type: u8,
    pub cmd_line_ptr: U32,
    pub initrd_addr_max: U32,
    pub kernel_alignment: U32,
    pub relocatable_kernel: u8,
    pub min_alignment: u8,
    pub xloadflags: U16,
    pub cmdline_size: U32,
    pub hardware_subarch: U32,
    pub hardware_subarch_data: U64,
    pub payload_offset: U32,
    pub payload_length: U32,
    pub setup_data: U64,
    pub pref_address: U64,
    pub init_size: U32,
    pub handover_offset: U32,
    pub kernel_info_offset: U32,
}

/// A bzImage that the 64-bit boot protocol can start.
///
/// File layout: [`BzImage::setup_bytes`] of real-mode code, which is not needed, then
/// [`BzImage::payload_bytes`] of the kernel, which are loaded to the load address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// Boot protocol version, `0x020f` for 2.15.
    pub version: u16,
    /// Offset of the protected-mode kernel in the file.
    pub setup_bytes: u64,
    /// Bytes to load, to the end of the file. This includes bytes after `syssize`, such as a signature: other
    /// boot loaders load them as well, and the kernel ignores them.
    pub payload_bytes: u64,
    /// End of the setup header in the file; at most [`HEAD_BYTES`].
    pub header_end: usize,
    /// Capabilities of the kernel (`XLF_*`).
    pub xloadflags: u16,
    /// Highest address that an initrd may occupy, for a kernel that is not [`Self::above_4_gib`].
    pub initrd_addr_max: u32,
    /// Longest command line in bytes, without its NUL.
    pub cmdline_size: u32,
    /// Bytes from the load address that the kernel uses before it examines the memory map.
    pub init_size: u32,
    /// The preferred load address, which is also the lowest one.
    pub pref_address: u64,
    /// Alignment of the load address in bytes, a power of two.
    pub kernel_alignment: u32,
    /// Whether it can run at other addresses than `pref_address`.
    pub relocatable: bool,
}

/// Why a file cannot be started as a bzImage. In its messages, "it" is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BzImageError {
    /// The magic numbers are missing.
    NotBzImage,
    /// The file is shorter than its header says.
    Truncated {
        /// The smallest valid size in bytes.
        needed: u64,
        /// The actual size in bytes.
        file_size: u64,
    },
    /// The protocol version is older than 2.12.
    TooOld {
        /// The version, `0x0204` for 2.04.
        version: u16,
    },
    /// It has no 64-bit entry.
    Not64Bit,
    /// This field of the header has an invalid value.
    Field(&'static str),
}

impl fmt::Display for BzImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotBzImage => {
                f.write_str("it is not a bzImage; use the kernel's arch/x86/boot/bzImage")
            }
            Self::Truncated { needed, file_size } => write!(
                f,
                "it is cut off: {file_size} of at least {needed} bytes are there; copy it again"
            ),
            Self::TooOld { version } => {
                let [minor, major] = version.to_le_bytes();
                write!(
                    f,
                    "it speaks boot protocol {major}.{minor:02} and 2.12 is needed; \
                     use Linux 3.8 or newer"
                )
            }
            Self::Not64Bit => f.write_str("it has no 64-bit entry; use a kernel built for x86-64"),
            Self::Field(name) => write!(
                f,
                "its setup header is damaged ({name} makes no sense); copy it again"
            ),
        }
    }
}

impl core::error::Error for BzImageError {}

impl BzImage {
    /// Parses the setup header in `head`, the first bytes of a file of `file_size` bytes.
    ///
    /// # Errors
    ///
    /// [`BzImageError`] if the file cannot be started by the 64-bit boot protocol.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, BzImageError> {
        let header = read_header(head).ok_or(BzImageError::NotBzImage)?;
        if header.boot_flag.get() != BOOT_FLAG || header.header != MAGIC {
            return Err(BzImageError::NotBzImage);
        }
        let version = header.version.get();
        if version < OLDEST_VERSION {
            return Err(BzImageError::TooOld { version });
        }
        let xloadflags = header.xloadflags.get();
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::Not64Bit);
        }

        // boot.rst, "64-bit Boot Protocol": the header ends at 0x202 plus the byte at 0x201. A backward jump
        // is invalid, and the header must contain every field up to init_size.
        let [jump, distance] = header.jump;
        let header_end = 0x202_usize.saturating_add(usize::from(distance));
        if jump != JUMP || distance > 0x7f || header_end < 0x264 {
            return Err(BzImageError::Field("jump"));
        }

        // For backwards compatibility, setup_sects = 0 means 4. The boot sector is not counted in it.
        let sectors = match header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let setup_bytes = SECTOR_BYTES.saturating_mul(sectors.saturating_add(1));
        let system_bytes = PARAGRAPH_BYTES.saturating_mul(header.syssize.get().into());
        let needed = setup_bytes.saturating_add(system_bytes);
        let payload_bytes = file_size.saturating_sub(setup_bytes);
        if file_size < needed {
            return Err(BzImageError::Truncated { needed, file_size });
        }
        if system_bytes == 0 {
            return Err(BzImageError::Field("syssize"));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(BzImageError::Field("loadflags"));
        }

        // The kernel decompresses itself in place, so init_size is larger than the image.
        let init_size = header.init_size.get();
        if u64::from(init_size) < system_bytes {
            return Err(BzImageError::Field("init_size"));
        }
        let kernel_alignment = header.kernel_alignment.get();
        if !kernel_alignment.is_power_of_two() {
            return Err(BzImageError::Field("kernel_alignment"));
        }
        let pref_address = header.pref_address.get();
        if pref_address.checked_add(init_size.into()).is_none() {
            return Err(BzImageError::Field("pref_address"));
        }
        Ok(Self {
            version,
            setup_bytes,
            payload_bytes,
            header_end,
            xloadflags,
            initrd_addr_max: header.initrd_addr_max.get(),
            cmdline_size: header.cmdline_size.get(),
            init_size,
            pref_address,
            kernel_alignment,
            relocatable: header.relocatable_kernel != 0,
        })
    }

    /// Whether kernel, zero page, command line and initrd may lie above 4 GiB
    /// (`XLF_CAN_BE_LOADED_ABOVE_4G`).
    #[must_use]
    pub const fn above_4_gib(&self) -> bool {
        self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// The memory that the kernel needs: at `pref_address` if possible, otherwise at the lowest free place
    /// above it.
    ///
    /// A relocatable kernel is not placed below `pref_address`: there, its 64-bit entry would move it up to
    /// `pref_address` and overwrite what is in that memory.
    #[must_use]
    pub fn memory_request(&self) -> Request {
        let size = self.payload_bytes.max(self.init_size.into());
        let request = Request {
            align: self.kernel_alignment.into(),
            min: self.pref_address.max(MIB),
            max: self.limit(),
            preferred: Some(self.pref_address),
            ..Request::new("kernel", size)
        };
        if self.relocatable {
            return request;
        }
        // It moves itself to pref_address and runs there, whatever its alignment.
        Request {
            align: 1,
            min: self.pref_address,
            max: self.pref_address.saturating_add(size),
            ..request
        }
    }

    /// End of the addresses for the kernel, its zero page and its command line.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        if self.above_4_gib() {
            u64::MAX
        } else {
            FOUR_GIB
        }
    }

    /// End of the addresses for an initrd.
    #[must_use]
    pub fn initrd_limit(&self) -> u64 {
        if self.above_4_gib() {
            u64::MAX
        } else {
            u64::from(self.initrd_addr_max).saturating_add(1)
        }
    }

    /// Address of the 64-bit entry of a kernel loaded at `load_address`.
    #[must_use]
    pub const fn entry(&self, load_address: u64) -> u64 {
        load_address.saturating_add(ENTRY_OFFSET)
    }
}

/// Whether `head` has the magic numbers of a bzImage of any version.
pub(super) fn has_magic(head: &[u8]) -> bool {
    // The header of old images is shorter, so that only these two fields are examined.
    head.get(0x1fe..0x200) == Some(&BOOT_FLAG.to_le_bytes())
        && head.get(0x202..0x206) == Some(&MAGIC)
}

pub(super) fn read_header(head: &[u8]) -> Option<SetupHeader> {
    let bytes = head.get(HEADER_OFFSET..)?;
    SetupHeader::read_from_prefix(bytes).ok().map(|(h, _)| h)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::boot::testing::{Random, STRIDE, seeds};
    use core::mem::offset_of;
    use std::{string::ToString, vec, vec::Vec};

    pub(in crate::boot) const SETUP_BYTES: usize = 3 * 512;
    pub(in crate::boot) const SYSTEM_BYTES: usize = 0x4000;
    pub(in crate::boot) const FILE_SIZE: u64 = (SETUP_BYTES + SYSTEM_BYTES) as u64;

    /// The head of an image much like those of today's distributions.
    pub(in crate::boot) fn head() -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[..2].copy_from_slice(b"MZ");
        put(&mut head, |h| {
            h.setup_sects = 2;
            h.syssize = (SYSTEM_BYTES as u32 / 16).into();
            h.boot_flag = 0xaa55.into();
            h.jump = [0xeb, 0x6a];
            h.header = *b"HdrS";
            h.version = 0x020f.into();
            h.loadflags = 1;
            h.code32_start = 0x10_0000.into();
            h.initrd_addr_max = 0x7fff_ffff.into();
            h.kernel_alignment = 0x20_0000.into();
            h.relocatable_kernel = 1;
            h.min_alignment = 21;
            h.xloadflags = 0x7f.into();
            h.cmdline_size = 2047.into();
            h.pref_address = 0x100_0000.into();
            h.init_size = 0x300_0000.into();
        });
        head
    }

    pub(in crate::boot) fn put(head: &mut [u8], change: impl FnOnce(&mut SetupHeader)) {
        let bytes = &mut head[HEADER_OFFSET..HEADER_OFFSET + size_of::<SetupHeader>()];
        change(SetupHeader::mut_from_bytes(bytes).unwrap());
    }

    fn changed(change: impl FnOnce(&mut SetupHeader)) -> Result<BzImage, BzImageError> {
        let mut head = head();
        put(&mut head, change);
        BzImage::parse(&head, FILE_SIZE)
    }

    #[test]
    fn fields_are_at_the_offsets_of_the_protocol() {
        for (offset, field) in [
            (0x1f1, offset_of!(SetupHeader, setup_sects)),
            (0x1f4, offset_of!(SetupHeader, syssize)),
            (0x1fa, offset_of!(SetupHeader, vid_mode)),
            (0x1fe, offset_of!(SetupHeader, boot_flag)),
            (0x200, offset_of!(SetupHeader, jump)),
            (0x202, offset_of!(SetupHeader, header)),
            (0x206, offset_of!(SetupHeader, version)),
            (0x210, offset_of!(SetupHeader, type_of_loader)),
            (0x211, offset_of!(SetupHeader, loadflags)),
            (0x214, offset_of!(SetupHeader, code32_start)),
            (0x218, offset_of!(SetupHeader, ramdisk_image)),
            (0x21c, offset_of!(SetupHeader, ramdisk_size)),
            (0x224, offset_of!(SetupHeader, heap_end_ptr)),
            (0x228, offset_of!(SetupHeader, cmd_line_ptr)),
            (0x22c, offset_of!(SetupHeader, initrd_addr_max)),
            (0x230, offset_of!(SetupHeader, kernel_alignment)),
            (0x234, offset_of!(SetupHeader, relocatable_kernel)),
            (0x235, offset_of!(SetupHeader, min_alignment)),
            (0x236, offset_of!(SetupHeader, xloadflags)),
            (0x238, offset_of!(SetupHeader, cmdline_size)),
            (0x23c, offset_of!(SetupHeader, hardware_subarch)),
            (0x240, offset_of!(SetupHeader, hardware_subarch_data)),
            (0x248, offset_of!(SetupHeader, payload_offset)),
            (0x250, offset_of!(SetupHeader, setup_data)),
            (0x258, offset_of!(SetupHeader, pref_address)),
            (0x260, offset_of!(SetupHeader, init_size)),
            (0x268, offset_of!(SetupHeader, kernel_info_offset)),
        ] {
            assert_eq!(field + HEADER_OFFSET, offset);
        }
    }

    #[test]
    fn a_current_image_is_parsed() {
        let image = BzImage::parse(&head()[..HEAD_BYTES], FILE_SIZE).unwrap();
        assert_eq!(
            image,
            BzImage {
                version: 0x020f,
                setup_bytes: 1536,
                payload_bytes: 0x4000,
                header_end: 0x26c,
                xloadflags: 0x7f,
                initrd_addr_max: 0x7fff_ffff,
                cmdline_size: 2047,
                init_size: 0x300_0000,
                pref_address: 0x100_0000,
                kernel_alignment: 0x20_0000,
                relocatable: true,
            }
        );
        assert_eq!(image.entry(0x100_0000), 0x100_0200);
        assert!(image.above_4_gib());
        assert_eq!(image.initrd_limit(), u64::MAX);
    }

    #[test]
    fn no_setup_sectors_means_four() {
        let mut head = head();
        put(&mut head, |h| h.setup_sects = 0);
        let size = 5 * 512 + SYSTEM_BYTES as u64;
        let image = BzImage::parse(&head, size).unwrap();
        assert_eq!(image.setup_bytes, 5 * 512);
        assert_eq!(image.payload_bytes, SYSTEM_BYTES as u64);
    }

    #[test]
    fn a_signature_after_the_kernel_is_loaded_with_it() {
        let image = BzImage::parse(&head(), FILE_SIZE + 1234).unwrap();
        assert_eq!(image.payload_bytes, SYSTEM_BYTES as u64 + 1234);
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let error = BzImage::parse(&head(), FILE_SIZE - 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it is cut off: 17919 of at least 17920 bytes are there; copy it again"
        );
        for length in (0..HEAD_BYTES).step_by(STRIDE) {
            BzImage::parse(&head()[..length], length as u64).unwrap_err();
        }
    }

    #[test]
    fn images_that_cannot_be_started_are_refused_with_the_reason() {
        use BzImageError::{Field, Not64Bit, NotBzImage, TooOld};
        assert_eq!(changed(|h| h.boot_flag = 0.into()), Err(NotBzImage));
        assert_eq!(changed(|h| h.header = *b"HdrX"), Err(NotBzImage));
        let version = 0x020b;
        assert_eq!(
            changed(|h| h.version = version.into()),
            Err(TooOld { version })
        );
        assert_eq!(changed(|h| h.xloadflags = 2.into()), Err(Not64Bit));
        assert_eq!(changed(|h| h.jump = [0xe9, 0x6a]), Err(Field("jump")));
        assert_eq!(changed(|h| h.jump = [0xeb, 0x80]), Err(Field("jump")));
        assert_eq!(changed(|h| h.jump = [0xeb, 0x61]), Err(Field("jump")));
        assert_eq!(changed(|h| h.syssize = 0.into()), Err(Field("syssize")));
        assert_eq!(changed(|h| h.loadflags = 0), Err(Field("loadflags")));
        assert_eq!(
            changed(|h| h.init_size = 0x3fff.into()),
            Err(Field("init_size"))
        );
        for alignment in [0, 3] {
            assert_eq!(
                changed(|h| h.kernel_alignment = alignment.into()),
                Err(Field("kernel_alignment"))
            );
        }
        assert_eq!(
            changed(|h| h.pref_address = u64::MAX.into()),
            Err(Field("pref_address"))
        );
        assert_eq!(
            TooOld { version: 0x0204 }.to_string(),
            "it speaks boot protocol 2.04 and 2.12 is needed; use Linux 3.8 or newer"
        );
    }

    #[test]
    fn a_relocatable_kernel_is_placed_at_its_address_or_above() {
        let request = changed(|_| ()).unwrap().memory_request();
        assert_eq!(request.size, 0x300_0000);
        assert_eq!(request.align, 0x20_0000);
        assert_eq!(request.preferred, Some(0x100_0000));
        assert_eq!(request.min, 0x100_0000);
        assert_eq!(request.max, u64::MAX);
    }

    #[test]
    fn a_kernel_with_32_bit_addresses_stays_below_4_gib() {
        let image = changed(|h| h.xloadflags = 1.into()).unwrap();
        assert_eq!(image.memory_request().max, FOUR_GIB);
        assert_eq!(image.initrd_limit(), 0x8000_0000);
    }

    #[test]
    fn a_fixed_kernel_has_one_place() {
        let image = changed(|h| h.relocatable_kernel = 0).unwrap();
        let request = image.memory_request();
        assert_eq!((request.min, request.max), (0x100_0000, 0x400_0000));
    }

    #[test]
    fn damaged_headers_do_not_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut head = head();
            random.damage(&mut head[HEADER_OFFSET..HEAD_BYTES]);
            if let Ok(image) = BzImage::parse(&head, random.next() >> random.below(64)) {
                let request = image.memory_request();
                assert!(request.align.is_power_of_two());
                assert!(request.size >= image.init_size.into());
            }
        }
    }
}
