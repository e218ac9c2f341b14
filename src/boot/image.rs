//! Detects the kind of a file by its content, never by its name.

use crate::boot::{
    Architecture, arm64_image, bzimage, device_tree, elf,
    memory::Range,
    pe::{MACHINE_ARM64, MACHINE_X86_64, Pe},
    text::as_str,
    zboot::Zboot,
};
use core::fmt;

/// How many of a file's first bytes [`Kind::of`] needs, unless the file is shorter. They are also enough for
/// the parser of each kind.
pub const HEAD_BYTES: usize = 4096;

/// A compression method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
    /// xz.
    Xz,
    /// LZ4, in the frame format or the legacy format that the kernel uses.
    Lz4,
    /// LZMA, in the format without a container.
    Lzma,
    /// bzip2.
    Bzip2,
    /// LZO, as lzop writes it.
    Lzo,
    /// An unknown method.
    Other,
}

impl Compression {
    /// The method of a compressed file, by its first bytes.
    fn of(head: &[u8]) -> Option<Self> {
        // LZMA has no magic: this is the usual properties byte, and a dictionary size that is a multiple of
        // 64 KiB.
        const MAGICS: [(&[u8], Compression); 8] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x04\x22\x4d\x18", Compression::Lz4),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"BZh", Compression::Bzip2),
            (b"\x89LZO\0", Compression::Lzo),
            (b"\x5d\0\0", Compression::Lzma),
        ];
        // A skippable frame, which pzstd writes before each of its frames.
        if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] = head {
            return Some(Self::Zstd);
        }
        let found = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
        found.map(|(_, compression)| *compression)
    }

    /// The method with this name in an EFI zboot image (`COMP_TYPE` in the kernel's `Makefile.zboot`).
    fn named(name: &[u8]) -> Self {
        match as_str(name) {
            "gzip" => Self::Gzip,
            "zstd" | "zstd22" => Self::Zstd,
            "xz" | "xzkern" => Self::Xz,
            "lz4" => Self::Lz4,
            "lzma" => Self::Lzma,
            "bzip2" => Self::Bzip2,
            "lzo" => Self::Lzo,
            _ => Self::Other,
        }
    }

    /// Whether [`packed`](crate::boot::packed) can decompress it.
    const fn is_unpacked(self) -> bool {
        matches!(self, Self::Gzip | Self::Zstd)
    }

    /// The command that decompresses it.
    const fn unpacker(self) -> &'static str {
        match self {
            Self::Gzip => "gunzip",
            Self::Zstd => "unzstd",
            Self::Xz => "unxz",
            Self::Lz4 => "unlz4",
            Self::Lzma => "unlzma",
            Self::Bzip2 => "bunzip2",
            Self::Lzo => "lzop -d",
            Self::Other => "its own program",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
            Self::Other => "an unknown method",
        })
    }
}

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// An empty file.
    Empty,
    /// An x86 Linux kernel (boot.rst).
    BzImage,
    /// A raw arm64 Linux kernel (booting.rst).
    Arm64Image,
    /// An EFI program that contains a compressed Linux kernel and decompresses it.
    EfiZboot {
        /// Its architecture, if known.
        architecture: Option<Architecture>,
        /// The compression method.
        compression: Compression,
        /// The range of the compressed kernel in the file.
        payload: Range,
    },
    /// Another EFI program; it may be a unified kernel image.
    Efi {
        /// Its architecture, if known.
        architecture: Option<Architecture>,
    },
    /// An ELF file.
    Elf {
        /// Its architecture, if known. A 32-bit program for x86 counts as x86-64: PVH enters both in the
        /// same way.
        architecture: Option<Architecture>,
    },
    /// A compressed file. Where a kernel is expected, a compressed kernel.
    Compressed(Compression),
    /// A cpio archive, such as an initramfs.
    Cpio,
    /// A device tree blob; U-Boot's FIT images are such.
    Fit,
    /// None of these.
    Unknown,
}

impl Kind {
    /// Detects the kind of a file of `file_size` bytes by `head`, its first bytes.
    #[must_use]
    pub fn of(head: &[u8], file_size: u64) -> Self {
        if file_size == 0 || head.is_empty() {
            return Self::Empty;
        }
        if bzimage::has_magic(head) {
            return Self::BzImage;
        }
        if arm64_image::has_magic(head) {
            return Self::Arm64Image;
        }
        if elf::has_magic(head) {
            return Self::Elf {
                architecture: elf::architecture(head),
            };
        }
        if head.starts_with(b"MZ") {
            return efi(head);
        }
        // "new ASCII" cpio, without and with checksums (buffer-format.rst of the kernel).
        if head.starts_with(b"070701") || head.starts_with(b"070702") {
            return Self::Cpio;
        }
        if device_tree::has_magic(head) {
            return Self::Fit;
        }
        Compression::of(head).map_or(Self::Unknown, Self::Compressed)
    }

    /// Whether it contains a compressed kernel.
    #[must_use]
    pub const fn is_packed(self) -> bool {
        matches!(
            self,
            Self::BzImage | Self::Compressed(_) | Self::EfiZboot { .. }
        )
    }

    /// Whether it contains a kernel for `machine` that has to be decompressed before it is started.
    #[must_use]
    pub fn is_packed_for(self, machine: Architecture) -> bool {
        let is_other = self.architecture().is_some_and(|other| other != machine);
        self.is_packed() && !machine.kernels_unpack_themselves() && !is_other
    }

    /// The same kind for an image at offset `start` of a file: ranges become relative to that file.
    #[must_use]
    pub const fn at(mut self, start: u64) -> Self {
        if let Self::EfiZboot { payload, .. } = &mut self {
            payload.start = payload.start.saturating_add(start);
            payload.end = payload.end.saturating_add(start);
        }
        self
    }

    /// The architecture of the file, if known.
    #[must_use]
    pub const fn architecture(self) -> Option<Architecture> {
        match self {
            // A 32-bit kernel is also a bzImage; the parser refuses it.
            Self::BzImage => Some(Architecture::X86_64),
            Self::Arm64Image => Some(Architecture::Aarch64),
            Self::EfiZboot { architecture, .. }
            | Self::Efi { architecture }
            | Self::Elf { architecture } => architecture,
            _ => None,
        }
    }

    /// Checks that a kernel of this kind can be started on `machine`. An EFI program passes: it may contain a
    /// kernel.
    ///
    /// # Errors
    ///
    /// [`KindError`], whose message names the kind of the file and the remedy.
    pub fn check(self, machine: Architecture) -> Result<(), KindError> {
        use Architecture::{Aarch64, X86_64};
        let is_ok = match self {
            Self::BzImage => machine == X86_64,
            Self::Arm64Image => machine == Aarch64,
            Self::Compressed(compression) => {
                !machine.kernels_unpack_themselves() && compression.is_unpacked()
            }
            Self::EfiZboot {
                architecture,
                compression,
                ..
            } => {
                !machine.kernels_unpack_themselves()
                    && architecture == Some(machine)
                    && compression.is_unpacked()
            }
            Self::Efi { architecture } | Self::Elf { architecture } => {
                architecture == Some(machine)
            }
            _ => false,
        };
        let kind = self;
        is_ok.then_some(()).ok_or(KindError { kind, machine })
    }
}

fn efi(head: &[u8]) -> Kind {
    let machine = Pe::parse(head).map(|pe| pe.machine);
    let architecture = match machine {
        Some(MACHINE_X86_64) => Some(Architecture::X86_64),
        Some(MACHINE_ARM64) => Some(Architecture::Aarch64),
        _ => None,
    };
    if let Some(zboot) = Zboot::parse(head) {
        return Kind::EfiZboot {
            architecture,
            compression: Compression::named(zboot.compression),
            payload: zboot.payload,
        };
    }
    if machine.is_some() {
        Kind::Efi { architecture }
    } else {
        Kind::Unknown
    }
}

impl fmt::Display for Kind {
    /// With its article: "an arm64 kernel".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, architecture) = match *self {
            Self::Empty => return f.write_str("empty"),
            Self::BzImage => return f.write_str("an x86-64 kernel"),
            Self::Arm64Image => return f.write_str("an arm64 kernel"),
            Self::Compressed(compression) => {
                return write!(f, "compressed with {compression}");
            }
            Self::Cpio => return f.write_str("a cpio archive, as an initrd is"),
            Self::Fit => {
                let what = "a FIT image (device tree blob), which is not unpacked here";
                return f.write_str(what);
            }
            Self::Unknown => return f.write_str("no kind of kernel that is known here"),
            Self::EfiZboot {
                architecture,
                compression,
                ..
            } => {
                article_for(f, architecture)?;
                return write!(f, "EFI zboot kernel compressed with {compression}");
            }
            Self::Efi { architecture } => ("EFI program", architecture),
            Self::Elf { architecture } => ("ELF file", architecture),
        };
        article_for(f, architecture)?;
        f.write_str(what)
    }
}

/// Writes "an arm64 ", "an x86-64 ", or only "an ": the next word starts with a vowel.
fn article_for(f: &mut fmt::Formatter<'_>, architecture: Option<Architecture>) -> fmt::Result {
    match architecture {
        Some(architecture) => write!(f, "an {architecture} "),
        None => f.write_str("an "),
    }
}

/// Why a file cannot be started as a kernel on this machine. The message follows the file's name and a
/// colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindError {
    /// The kind of the file.
    pub kind: Kind,
    /// The architecture of the machine.
    pub machine: Architecture,
}

impl fmt::Display for KindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, machine } = *self;
        write!(f, "it is {kind}")?;
        if let Some(other) = kind.architecture()
            && other != machine
        {
            return write!(
                f,
                " and this machine is {machine}; put a kernel for {machine} there"
            );
        }
        let image = match machine {
            Architecture::X86_64 => "a bzImage for x86-64",
            Architecture::Aarch64 => "an arm64 Image",
        };
        match kind {
            Kind::Compressed(compression) => write!(
                f,
                ", which is not unpacked here; unpack it with {}",
                compression.unpacker()
            ),
            Kind::EfiZboot {
                compression: Compression::Other,
                ..
            } => write!(
                f,
                ", which is not unpacked here; build it with gzip or zstd, or put {image} there"
            ),
            Kind::EfiZboot {
                compression,
                payload,
                ..
            } => write!(
                f,
                ", which is not unpacked here; unpack it with tail -c +{} FILE | head -c {} | {}",
                payload.start.saturating_add(1),
                payload.size(),
                compression.unpacker()
            ),
            _ => write!(f, "; put {image} there"),
        }
    }
}

impl core::error::Error for KindError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{
        arm64_image::tests::head as arm64_head,
        bzimage::tests::head as bzimage_head,
        pe::tests::put_pe,
        testing::{Random, seeds},
    };
    use Architecture::{Aarch64, X86_64};
    use std::{format, string::ToString, vec, vec::Vec};

    fn zboot(name: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 512];
        put_pe(&mut head, 0x40, MACHINE_ARM64, &[]);
        head[4..8].copy_from_slice(b"zimg");
        head[8..16].copy_from_slice(&[0, 16, 0, 0, 100, 0, 0, 0]);
        head[24..24 + name.len()].copy_from_slice(name);
        head
    }

    fn efi_program(machine: u16) -> Vec<u8> {
        let mut head = vec![0; 512];
        put_pe(&mut head, 0x80, machine, &[]);
        head
    }

    fn elf_file(class: u8, machine: u16) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
        head[18..20].copy_from_slice(&machine.to_le_bytes());
        head
    }

    #[test]
    fn a_format_is_detected_by_the_content_and_named() {
        let payload = Range::with_size(4096, 100);
        for (head, kind, name) in [
            (vec![], Kind::Empty, "empty"),
            (bzimage_head(), Kind::BzImage, "an x86-64 kernel"),
            (arm64_head(), Kind::Arm64Image, "an arm64 kernel"),
            (
                b"\x1f\x8b\x08\0".to_vec(),
                Kind::Compressed(Compression::Gzip),
                "compressed with gzip",
            ),
            (
                b"\x28\xb5\x2f\xfd....".to_vec(),
                Kind::Compressed(Compression::Zstd),
                "compressed with zstd",
            ),
            (
                b"\xfd7zXZ\0\0".to_vec(),
                Kind::Compressed(Compression::Xz),
                "compressed with xz",
            ),
            (
                b"\x02\x21\x4c\x18\0".to_vec(),
                Kind::Compressed(Compression::Lz4),
                "compressed with lz4",
            ),
            (
                zboot(b"gzip"),
                Kind::EfiZboot {
                    architecture: Some(Aarch64),
                    compression: Compression::Gzip,
                    payload,
                },
                "an arm64 EFI zboot kernel compressed with gzip",
            ),
            (
                zboot(b"zstd22"),
                Kind::EfiZboot {
                    architecture: Some(Aarch64),
                    compression: Compression::Zstd,
                    payload,
                },
                "an arm64 EFI zboot kernel compressed with zstd",
            ),
            (
                zboot(b"brotli"),
                Kind::EfiZboot {
                    architecture: Some(Aarch64),
                    compression: Compression::Other,
                    payload,
                },
                "an arm64 EFI zboot kernel compressed with an unknown method",
            ),
            (
                efi_program(MACHINE_X86_64),
                Kind::Efi {
                    architecture: Some(X86_64),
                },
                "an x86-64 EFI program",
            ),
            (
                efi_program(0x5064),
                Kind::Efi { architecture: None },
                "an EFI program",
            ),
            (
                elf_file(2, 62),
                Kind::Elf {
                    architecture: Some(X86_64),
                },
                "an x86-64 ELF file",
            ),
            (
                elf_file(2, 183),
                Kind::Elf {
                    architecture: Some(Aarch64),
                },
                "an arm64 ELF file",
            ),
            (
                elf_file(2, 243),
                Kind::Elf { architecture: None },
                "an ELF file",
            ),
            (
                elf_file(1, 3),
                Kind::Elf {
                    architecture: Some(X86_64),
                },
                "an x86-64 ELF file",
            ),
            (
                elf_file(1, 40),
                Kind::Elf { architecture: None },
                "an ELF file",
            ),
            (
                b"070701....".to_vec(),
                Kind::Cpio,
                "a cpio archive, as an initrd is",
            ),
            (
                b"\xd0\x0d\xfe\xed....".to_vec(),
                Kind::Fit,
                "a FIT image (device tree blob), which is not unpacked here",
            ),
            (
                b"MZ and no more".to_vec(),
                Kind::Unknown,
                "no kind of kernel that is known here",
            ),
            (
                b"#!/bin/sh\n".to_vec(),
                Kind::Unknown,
                "no kind of kernel that is known here",
            ),
        ] {
            let found = Kind::of(&head, head.len() as u64);
            assert_eq!(found, kind);
            assert_eq!(found.to_string(), name);
        }
    }

    #[test]
    fn a_kernel_runs_on_its_own_architecture() {
        let gzip = Compression::Gzip;
        for (kind, machines) in [
            (Kind::BzImage, [true, false]),
            (Kind::Arm64Image, [false, true]),
            (Kind::Compressed(gzip), [false, true]),
            (Kind::Compressed(Compression::Zstd), [false, true]),
            (Kind::Compressed(Compression::Xz), [false, false]),
            (Kind::of(&zboot(b"gzip"), 512), [false, true]),
            (Kind::of(&zboot(b"zstd22"), 512), [false, true]),
            (Kind::of(&zboot(b"xzkern"), 512), [false, false]),
            (Kind::of(&efi_program(MACHINE_X86_64), 512), [true, false]),
            (Kind::of(&elf_file(2, 183), 64), [false, true]),
            (Kind::of(&elf_file(1, 3), 64), [true, false]),
            (Kind::of(&elf_file(2, 243), 64), [false, false]),
        ] {
            let found = [X86_64, Aarch64].map(|machine| kind.check(machine).is_ok());
            assert_eq!(found, machines, "{kind}");
        }
    }

    #[test]
    fn a_refusal_names_what_it_is_and_the_remedy() {
        let text = |kind: Kind, machine| kind.check(machine).unwrap_err().to_string();
        for (kind, machine, expected) in [
            (
                Kind::Arm64Image,
                X86_64,
                "it is an arm64 kernel and this machine is x86-64; \
                 put a kernel for x86-64 there",
            ),
            (
                Kind::BzImage,
                Aarch64,
                "it is an x86-64 kernel and this machine is arm64; put a kernel for arm64 there",
            ),
            (
                Kind::Empty,
                X86_64,
                "it is empty; put a bzImage for x86-64 there",
            ),
            (
                Kind::Compressed(Compression::Gzip),
                X86_64,
                "it is compressed with gzip, which is not unpacked here; unpack it with gunzip",
            ),
            (
                Kind::of(&zboot(b"xzkern"), 5000),
                Aarch64,
                "it is an arm64 EFI zboot kernel compressed with xz, which is not unpacked here; \
                 unpack it with tail -c +4097 FILE | head -c 100 | unxz",
            ),
            (
                Kind::of(&zboot(b"brotli"), 5000),
                Aarch64,
                "it is an arm64 EFI zboot kernel compressed with an unknown method, which is not \
                 unpacked here; build it with gzip or zstd, or put an arm64 Image there",
            ),
            (
                Kind::Elf { architecture: None },
                X86_64,
                "it is an ELF file; put a bzImage for x86-64 there",
            ),
            (
                Kind::Cpio,
                X86_64,
                "it is a cpio archive, as an initrd is; put a bzImage for x86-64 there",
            ),
            (
                Kind::Unknown,
                Aarch64,
                "it is no kind of kernel that is known here; put an arm64 Image there",
            ),
        ] {
            assert_eq!(text(kind, machine), expected);
        }
    }

    #[test]
    fn a_refusal_names_the_command_that_unpacks_it() {
        for (start, name, command) in [
            (&b"\x1f\x8b"[..], &b"gzip"[..], "gunzip"),
            (b"\x28\xb5\x2f\xfd", b"zstd22", "unzstd"),
            (b"\x50\x2a\x4d\x18", b"zstd", "unzstd"),
            (b"\xfd7zXZ\0", b"xzkern", "unxz"),
            (b"\x02\x21\x4c\x18", b"lz4", "unlz4"),
            (b"\x04\x22\x4d\x18", b"lz4", "unlz4"),
            (b"\x5d\0\0\x80", b"lzma", "unlzma"),
            (b"BZh9", b"bzip2", "bunzip2"),
            (b"\x89LZO\0", b"lzo", "lzop -d"),
        ] {
            let text = Kind::of(start, 100).check(X86_64).unwrap_err().to_string();
            assert!(
                text.ends_with(&format!("; unpack it with {command}")),
                "{text}"
            );
            let kind = Kind::of(&zboot(name), 5000).at(100);
            let error = KindError {
                kind,
                machine: Aarch64,
            };
            let expected = format!("tail -c +4197 FILE | head -c 100 | {command}");
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
    }

    #[test]
    fn any_bytes_are_classified_without_a_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut head = match random.below(4) {
                0 => bzimage_head(),
                1 => zboot(b"gzip"),
                2 => elf_file(2, 62),
                _ => arm64_head(),
            };
            random.damage(&mut head[..64]);
            head.truncate(random.below(512) as usize);
            assert!(!Kind::of(&head, random.below(4096)).to_string().is_empty());
        }
    }
}
