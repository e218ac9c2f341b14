//! What a file is, by its content: a file's name says nothing about that.

use crate::boot::{
    arm64_image,
    bytes::{array, u16_le},
    bzimage,
    pe::{MACHINE_ARM64, MACHINE_X86_64, Pe},
};
use core::fmt;

/// How many of a file's first bytes [`Kind::of`] should see, unless the file is shorter. It is
/// enough for the parsers of each kind as well.
pub const HEAD_BYTES: usize = 4096;

/// An instruction set, as a payload's and the board's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// aarch64.
    Aarch64,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "arm64",
        })
    }
}

/// A way to make a file smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
    /// xz.
    Xz,
    /// LZ4, as a frame or as the kernel's legacy format.
    Lz4,
    /// LZMA alone.
    Lzma,
    /// bzip2.
    Bzip2,
    /// LZO, as lzop writes it.
    Lzo,
    /// One that is not known here.
    Other,
}

impl Compression {
    /// The one that a compressed file starts with, if it is known.
    fn of(head: &[u8]) -> Option<Self> {
        // LZMA has no magic: properties 5D and a dictionary of a whole number of 64 KiB.
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
        let found = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
        found.map(|(_, compression)| *compression)
    }

    /// The one that an EFI zboot image names (`COMP_TYPE` of the kernel's `Makefile.zboot`).
    fn named(name: &[u8]) -> Self {
        match name {
            b"gzip" => Self::Gzip,
            b"zstd" | b"zstd22" => Self::Zstd,
            b"xz" | b"xzkern" => Self::Xz,
            b"lz4" => Self::Lz4,
            b"lzma" => Self::Lzma,
            b"bzip2" => Self::Bzip2,
            b"lzo" => Self::Lzo,
            _ => Self::Other,
        }
    }

    /// The program that undoes it.
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

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A file without a byte.
    Empty,
    /// An x86 Linux kernel (boot.rst).
    BzImage,
    /// A raw arm64 Linux kernel (booting.rst).
    Arm64Image,
    /// A compressed Linux kernel in an EFI program that unpacks it.
    EfiZboot {
        /// What it was built for, if known here.
        architecture: Option<Architecture>,
        /// How it is compressed.
        compression: Compression,
    },
    /// Some other EFI program.
    Efi {
        /// What it was built for, if known here.
        architecture: Option<Architecture>,
    },
    /// An ELF file of 64 bits.
    Elf64 {
        /// What it was built for, if known here.
        architecture: Option<Architecture>,
    },
    /// An ELF file of 32 bits, or of big-endian numbers.
    ElfOther,
    /// A compressed file: a kernel by its place, an initrd by its look.
    Compressed(Compression),
    /// A cpio archive, which is what an initramfs is.
    Cpio,
    /// None of these.
    Unknown,
}

impl Kind {
    /// Tells what a file of `file_size` bytes is that starts with `head`.
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
        if head.starts_with(b"\x7fELF") {
            return elf(head);
        }
        if head.starts_with(b"MZ") {
            return efi(head);
        }
        // "new ASCII" cpio, without and with checksums (buffer-format.rst of the kernel).
        if head.starts_with(b"070701") || head.starts_with(b"070702") {
            return Self::Cpio;
        }
        Compression::of(head).map_or(Self::Unknown, Self::Compressed)
    }

    /// What it was built for, as far as the file tells.
    #[must_use]
    pub const fn architecture(self) -> Option<Architecture> {
        match self {
            // 32-bit kernels are bzImages too; their parser refuses them.
            Self::BzImage => Some(Architecture::X86_64),
            Self::Arm64Image => Some(Architecture::Aarch64),
            Self::EfiZboot { architecture, .. }
            | Self::Efi { architecture }
            | Self::Elf64 { architecture } => architecture,
            _ => None,
        }
    }

    /// Whether a kernel of this kind can be started on `machine`.
    ///
    /// # Errors
    ///
    /// [`KindError`] says what it is and what to put there.
    pub fn check(self, machine: Architecture) -> Result<(), KindError> {
        match (self, machine) {
            (Self::BzImage, Architecture::X86_64) | (Self::Arm64Image, Architecture::Aarch64) => {
                Ok(())
            }
            (kind, machine) => Err(KindError { kind, machine }),
        }
    }
}

fn elf(head: &[u8]) -> Kind {
    // e_ident: class 2 is 64 bits, data 1 is little-endian; then e_machine.
    if array(head, 4) != Some([2, 1]) {
        return Kind::ElfOther;
    }
    Kind::Elf64 {
        architecture: match u16_le(head, 18) {
            Some(62) => Some(Architecture::X86_64),
            Some(183) => Some(Architecture::Aarch64),
            _ => None,
        },
    }
}

fn efi(head: &[u8]) -> Kind {
    let machine = Pe::parse(head).map(|pe| pe.machine);
    let architecture = match machine {
        Some(MACHINE_X86_64) => Some(Architecture::X86_64),
        Some(MACHINE_ARM64) => Some(Architecture::Aarch64),
        _ => None,
    };
    if head.get(4..8) == Some(b"zimg") {
        // The name of the compression is 32 bytes at most, up to the Linux PE magic.
        let name = head.get(24..56).unwrap_or_default();
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        return Kind::EfiZboot {
            architecture,
            compression: Compression::named(name),
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
            Self::ElfOther => return f.write_str("an ELF file that is not of 64 bits"),
            Self::Unknown => return f.write_str("no kind of kernel that is known here"),
            Self::EfiZboot {
                architecture,
                compression,
            } => {
                article_for(f, architecture)?;
                return write!(f, "EFI zboot kernel compressed with {compression}");
            }
            Self::Efi { architecture } => ("EFI program", architecture),
            Self::Elf64 { architecture } => ("ELF file", architecture),
        };
        article_for(f, architecture)?;
        f.write_str(what)
    }
}

/// "an arm64 ", "an x86-64 ", or "an " alone: what follows starts with a vowel.
fn article_for(f: &mut fmt::Formatter<'_>, architecture: Option<Architecture>) -> fmt::Result {
    match architecture {
        Some(architecture) => write!(f, "an {architecture} "),
        None => f.write_str("an "),
    }
}

/// Why a file can't be started as a kernel on this machine. The sentence goes on from the file's
/// name and a colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindError {
    /// What the file is.
    pub kind: Kind,
    /// What the machine can run.
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
        let raw = match machine {
            Architecture::X86_64 => "a bzImage for x86-64",
            Architecture::Aarch64 => "a raw arm64 Image",
        };
        match kind {
            Kind::Compressed(compression) => write!(
                f,
                ", which is not supported yet; unpack it with {}",
                compression.unpacker()
            ),
            Kind::EfiZboot { .. } | Kind::Efi { .. } | Kind::Elf64 { .. } => {
                write!(f, ", which is not supported yet; put {raw} there")
            }
            _ => write!(f, "; put {raw} there"),
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
    use std::{string::ToString, vec, vec::Vec};

    fn zboot(name: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 512];
        put_pe(&mut head, 0x40, MACHINE_ARM64, &[]);
        head[4..8].copy_from_slice(b"zimg");
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
    fn a_file_is_known_by_its_content_and_named() {
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
                },
                "an arm64 EFI zboot kernel compressed with gzip",
            ),
            (
                zboot(b"zstd22"),
                Kind::EfiZboot {
                    architecture: Some(Aarch64),
                    compression: Compression::Zstd,
                },
                "an arm64 EFI zboot kernel compressed with zstd",
            ),
            (
                zboot(b"brotli"),
                Kind::EfiZboot {
                    architecture: Some(Aarch64),
                    compression: Compression::Other,
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
                Kind::Elf64 {
                    architecture: Some(X86_64),
                },
                "an x86-64 ELF file",
            ),
            (
                elf_file(2, 183),
                Kind::Elf64 {
                    architecture: Some(Aarch64),
                },
                "an arm64 ELF file",
            ),
            (
                elf_file(2, 243),
                Kind::Elf64 { architecture: None },
                "an ELF file",
            ),
            (
                elf_file(1, 3),
                Kind::ElfOther,
                "an ELF file that is not of 64 bits",
            ),
            (
                b"070701....".to_vec(),
                Kind::Cpio,
                "a cpio archive, as an initrd is",
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
        assert_eq!(Kind::BzImage.check(X86_64), Ok(()));
        assert_eq!(Kind::Arm64Image.check(Aarch64), Ok(()));
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
                Aarch64,
                "it is compressed with gzip, which is not supported yet; unpack it with gunzip",
            ),
            (
                Kind::EfiZboot {
                    architecture: Some(Aarch64),
                    compression: Compression::Zstd,
                },
                Aarch64,
                "it is an arm64 EFI zboot kernel compressed with zstd, \
                 which is not supported yet; put a raw arm64 Image there",
            ),
            (
                Kind::Elf64 {
                    architecture: Some(X86_64),
                },
                X86_64,
                "it is an x86-64 ELF file, which is not supported yet; \
                 put a bzImage for x86-64 there",
            ),
            (
                Kind::Cpio,
                X86_64,
                "it is a cpio archive, as an initrd is; put a bzImage for x86-64 there",
            ),
            (
                Kind::Unknown,
                Aarch64,
                "it is no kind of kernel that is known here; put a raw arm64 Image there",
            ),
        ] {
            assert_eq!(text(kind, machine), expected);
        }
    }

    #[test]
    fn any_bytes_are_some_kind() {
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
