//! Unified kernel images: a kernel with what belongs to it, in the sections of an EFI program.
//!
//! Follows UAPI.5, "Unified Kernel Image"
//! (<https://uapi-group.org/specifications/specs/unified_kernel_image/>). The stub in it, which
//! needs EFI firmware, is not used: its work is done here. Of an image with several profiles the
//! default one counts: `@0`, over the base profile.
//!
//! | section | use |
//! |---|---|
//! | `.linux` | the kernel, of any kind that could stand alone |
//! | `.ucode`, `.initrd` | initrds, in this order, before those of an entry |
//! | `.cmdline` | the command line, before an entry's `options` |
//! | `.dtb` | the device tree, unless an entry has one |
//! | `.osrel` | what the image is: see [`OsRelease`] |
//!
//! `.cmdline` is not all that the kernel is told: there is no Secure Boot here, without which the
//! specification lets a loader override it. Words that come later win in Linux.

use crate::boot::{
    memory::Range,
    pe::{MACHINE_ARM64, MACHINE_X86_64, Pe},
};
use core::fmt;

/// Where the parts of an image lie in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uki {
    /// What it was built for, in the words of the EFI specification; empty if not known here.
    pub architecture: &'static [u8],
    /// `.linux`
    pub linux: Range,
    /// `.ucode`
    pub ucode: Option<Range>,
    /// `.initrd`
    pub initrd: Option<Range>,
    /// `.cmdline`
    pub cmdline: Option<Range>,
    /// `.dtb`
    pub device_tree: Option<Range>,
    /// `.osrel`
    pub os_release: Option<Range>,
}

/// Why an EFI program is no image that can be started. The sentences go on from "it": the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UkiError {
    /// It has no kernel in it.
    NoKernel,
    /// The file is shorter than a section says.
    Truncated {
        /// Bytes that should be there at least.
        needed: u64,
        /// Bytes that are there.
        file_size: u64,
    },
}

impl fmt::Display for UkiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoKernel => f.write_str(
                "it is an EFI program without a kernel in it (no section .linux), which needs EFI \
                 firmware; use a kernel or a unified kernel image",
            ),
            Self::Truncated { needed, file_size } => write!(
                f,
                "it is cut off: {file_size} of at least {needed} bytes are there; copy it again"
            ),
        }
    }
}

impl core::error::Error for UkiError {}

impl Uki {
    /// Reads the section table out of `head`, the first bytes of a file of `file_size` bytes.
    ///
    /// # Errors
    ///
    /// [`UkiError`]
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, UkiError> {
        let pe = Pe::parse(head).ok_or(UkiError::NoKernel)?;
        let mut linux = None;
        let [
            mut ucode,
            mut initrd,
            mut cmdline,
            mut device_tree,
            mut os_release,
        ] = [None; 5];
        let mut profiles = 0_u32;
        for section in pe.sections() {
            let field = match section.name() {
                b".profile" => {
                    profiles = profiles.saturating_add(1);
                    continue;
                }
                b".linux" => &mut linux,
                b".ucode" => &mut ucode,
                b".initrd" => &mut initrd,
                b".cmdline" => &mut cmdline,
                b".dtb" => &mut device_tree,
                b".osrel" => &mut os_release,
                _ => continue,
            };
            if profiles > 1 {
                continue;
            }
            let content = section.content();
            if content.end > file_size {
                return Err(UkiError::Truncated {
                    needed: content.end,
                    file_size,
                });
            }
            *field = (content.size() > 0).then_some(content);
        }
        Ok(Self {
            architecture: match pe.machine {
                MACHINE_X86_64 => b"x64",
                MACHINE_ARM64 => b"aa64",
                _ => b"",
            },
            linux: linux.ok_or(UkiError::NoKernel)?,
            ucode,
            initrd,
            cmdline,
            device_tree,
            os_release,
        })
    }
}

/// What `.osrel` says of the system in an image (os-release(5)), as a boot entry has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OsRelease<'a> {
    /// Its name for people.
    pub title: &'a [u8],
    /// The version that entries are sorted by.
    pub version: &'a [u8],
    /// What they are sorted by first.
    pub sort_key: &'a [u8],
}

impl<'a> OsRelease<'a> {
    /// Reads the section, which may hold any bytes. Of the fields the first counts that is there,
    /// in the order that systemd's loader and tools go by.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Self {
        let first = |keys: &[&[u8]]| {
            let found = keys.iter().find_map(|key| field(text, key));
            found.unwrap_or_default()
        };
        Self {
            title: first(&[b"PRETTY_NAME", b"IMAGE_ID", b"NAME", b"ID"]),
            version: first(&[b"IMAGE_VERSION", b"VERSION", b"VERSION_ID", b"BUILD_ID"]),
            sort_key: first(&[b"IMAGE_ID", b"ID"]),
        }
    }

    /// Writes a boot entry of type 1 for the image at `path`, whose parts are joined, to the start of
    /// `out`, and gives its size in bytes; `None` if there is too little room.
    pub fn write_entry(
        &self,
        architecture: &[u8],
        path: &[&[u8]],
        out: &mut [u8],
    ) -> Option<usize> {
        let mut size = 0_usize;
        let mut push = |bytes: &[u8]| {
            let end = size.checked_add(bytes.len())?;
            out.get_mut(size..end)?.copy_from_slice(bytes);
            size = end;
            Some(())
        };
        for (key, value) in [
            (&b"title "[..], self.title),
            (b"version ", self.version),
            (b"sort-key ", self.sort_key),
            (b"architecture ", architecture),
        ] {
            for part in [key, value, b"\n"] {
                push(part)?;
            }
        }
        push(b"uki ")?;
        for part in path {
            push(part)?;
        }
        Some(size)
    }
}

/// The value of the last assignment to `key` that is not empty, without its quotation marks.
fn field<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let lines = text.split(|&byte| matches!(byte, b'\n' | 0));
    let mut values = lines.filter_map(|line| {
        let value = line.trim_ascii().strip_prefix(key)?.strip_prefix(b"=")?;
        let unquoted = [b'"', b'\''].into_iter().find_map(|mark| {
            value
                .strip_prefix(&[mark])
                .and_then(|value| value.strip_suffix(&[mark]))
        });
        Some(unquoted.unwrap_or(value).trim_ascii())
    });
    values.rfind(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{
        bls,
        pe::{
            MACHINE_X86_64,
            tests::{put_pe, put_section_name},
        },
        testing::{Random, seeds},
    };
    use std::{string::ToString, vec, vec::Vec};

    const FILE_SIZE: u64 = 0x1_0000;

    /// The head of a program with these sections: name, offset, bytes in the file.
    fn head(sections: &[(&[u8], u32, u32)]) -> Vec<u8> {
        let mut head = vec![0; 4096];
        let places: Vec<_> = sections.iter().map(|&(_, at, size)| (at, size)).collect();
        put_pe(&mut head, 0x80, MACHINE_X86_64, &places);
        for (index, (name, ..)) in sections.iter().enumerate() {
            put_section_name(&mut head, 0x80, index, name);
        }
        head
    }

    #[test]
    fn parts_are_sections() {
        let head = head(&[
            (b".text", 0x1000, 0x100),
            (b".osrel", 0x1200, 0x40),
            (b".cmdline", 0x1400, 0x20),
            (b".dtb", 0x1600, 0),
            (b".initrd", 0x2000, 0x1000),
            (b".linux", 0x4000, 0xc000),
        ]);
        let uki = Uki::parse(&head, FILE_SIZE).unwrap();
        assert_eq!(uki.linux, Range::with_size(0x4000, 0xc000));
        assert_eq!(uki.initrd, Some(Range::with_size(0x2000, 0x1000)));
        assert_eq!(uki.cmdline, Some(Range::with_size(0x1400, 0x20)));
        assert_eq!(uki.os_release, Some(Range::with_size(0x1200, 0x40)));
        assert_eq!((uki.ucode, uki.device_tree), (None, None));
        assert_eq!(uki.architecture, b"x64");
        assert_eq!(
            Uki::parse(&head, FILE_SIZE - 1).unwrap_err().to_string(),
            "it is cut off: 65535 of at least 65536 bytes are there; copy it again"
        );
    }

    #[test]
    fn of_several_profiles_the_first_one_overrides_the_base() {
        // "Multi-Profile UKIs": the example, with a command line in each profile.
        let head = head(&[
            (b".linux", 0x1000, 0x100),
            (b".cmdline", 0x2000, 1),
            (b".initrd", 0x3000, 1),
            (b".profile", 0x4000, 1),
            (b".cmdline", 0x5000, 1),
            (b".profile", 0x6000, 1),
            (b".cmdline", 0x7000, 1),
            (b".dtb", 0x8000, 1),
        ]);
        let uki = Uki::parse(&head, FILE_SIZE).unwrap();
        assert_eq!(uki.cmdline, Some(Range::with_size(0x5000, 1)));
        assert_eq!(uki.initrd, Some(Range::with_size(0x3000, 1)));
        assert_eq!(uki.device_tree, None);
    }

    #[test]
    fn a_program_without_a_kernel_is_refused() {
        for head in [head(&[(b".text", 0x1000, 0x100)]), vec![], vec![0; 64]] {
            assert_eq!(Uki::parse(&head, FILE_SIZE), Err(UkiError::NoKernel));
        }
    }

    #[test]
    fn the_system_is_told_by_the_best_field_there_is() {
        // systemd's bootspec_pick_name_version_sort_key.
        let text = b"# no\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nNAME='Debian'\nID=debian\r\n\
            VERSION_ID=\"12\"\nVERSION=\nIMAGE_VERSION=\"\"\n\0\0";
        let release = OsRelease::parse(text);
        assert_eq!(
            release,
            OsRelease {
                title: b"Debian GNU/Linux 12",
                version: b"12",
                sort_key: b"debian",
            }
        );
        assert_eq!(OsRelease::parse(b""), OsRelease::default());
        let image = OsRelease::parse(b"ID=a\nIMAGE_ID=b\nVERSION=1\nIMAGE_VERSION=2");
        assert_eq!(
            (image.title, image.version, image.sort_key),
            (&b"b"[..], &b"2"[..], &b"b"[..])
        );

        let mut out = [0; 128];
        let path: [&[u8]; 2] = [b"/EFI/Linux/", b"a b.efi"];
        let size = release.write_entry(b"x64", &path, &mut out).unwrap();
        let entry = bls::Entry::parse(&out[..size]);
        assert_eq!(entry.title, b"Debian GNU/Linux 12");
        assert_eq!(
            (entry.version, entry.sort_key),
            (&b"12"[..], &b"debian"[..])
        );
        assert_eq!(entry.uki, b"/EFI/Linux/a b.efi");
        assert_eq!(entry.architecture, b"x64");
        let mut short = out;
        assert_eq!(
            release.write_entry(b"x64", &path, &mut short[..size - 1]),
            None
        );
    }

    #[test]
    fn damaged_headers_do_not_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut head = head(&[(b".linux", 0x1000, 0x100), (b".dtb", 0x2000, 0x100)]);
            random.damage(&mut head[..512]);
            if let Ok(uki) = Uki::parse(&head, FILE_SIZE) {
                assert!(uki.linux.size() > 0 && uki.linux.end <= FILE_SIZE);
            }
        }
    }
}
