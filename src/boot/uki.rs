//! Unified kernel images: an EFI program whose sections hold a kernel, its command line, initrds and more.
//!
//! Follows UAPI.5, "Unified Kernel Image"
//! (<https://uapi-group.org/specifications/specs/unified_kernel_image/>). The stub in the image needs EFI
//! firmware and is not used; the boot loader does its work. If an image has several profiles, the sections
//! of the chosen one override those of the base profile.
//!
//! | section | use |
//! |---|---|
//! | `.linux` | the kernel, in any supported format |
//! | `.ucode`, `.initrd` | initrds, loaded before and after those of the entry |
//! | `.cmdline` | the command line, unless the entry has `options` |
//! | `.dtb` | the device tree, unless the entry has one |
//! | `.dtbauto` | the first one that matches this machine replaces `.dtb` |
//! | `.uname` | the kernel's release: an addon for another release is not used |
//! | `.osrel` | name and version of the system: see [`OsRelease`] |
//! | `.profile` | begins a profile |
//! | `.linuxh`, `.initrdh` | in an image of [lanzaboote](https://github.com/nix-community/lanzaboote): the SHA-256 of the files whose paths `.linux` and `.initrd` hold |
//!
//! An entry's `options` replace `.cmdline`, as systemd-stub does it without Secure Boot. Addons are EFI
//! programs with some of these sections. Their command lines are appended, and their initrds are loaded
//! last. Their microcode is loaded first, in reverse order of the addons; the device tree of the last addon
//! that has one is used.

use crate::boot::{
    memory::Range,
    pe::{MACHINE_ARM64, MACHINE_X86_64, Pe, SECTION_BYTES, Section, sections},
    text::as_str,
};
use core::fmt::{self, Write as _};
use heapless::String;

/// The positions of an image's parts in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uki {
    /// The image's architecture, as the EFI specification names it; empty if unknown.
    pub architecture: &'static [u8],
    /// `.linux`
    pub linux: Range,
    /// `.ucode`
    pub ucode: Option<Range>,
    /// `.initrd`
    pub initrd: Option<Range>,
    /// `.cmdline`
    pub cmdline: Option<Range>,
    /// The `.dtbauto` that matches this machine, otherwise `.dtb`
    pub device_tree: Option<Range>,
    /// `.osrel`
    pub os_release: Option<Range>,
    /// `.uname`
    pub kernel_release: Option<Range>,
    /// `.profile` of the chosen profile
    pub profile: Option<Range>,
    /// `.linuxh`
    pub linux_digest: Option<Range>,
    /// `.initrdh`
    pub initrd_digest: Option<Range>,
    /// Number of profiles, without the base profile.
    pub profiles: u32,
    /// Number of `.dtbauto` sections that were examined and do not match this machine.
    pub other_trees: u32,
}

/// Why an EFI program cannot be started as an image. In its messages, "it" is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UkiError {
    /// It contains no kernel.
    NoKernel,
    /// It should be an addon but contains a kernel.
    NoAddon,
    /// A section extends beyond the end of the file.
    Truncated {
        /// The smallest valid size in bytes.
        needed: u64,
        /// The actual size in bytes.
        file_size: u64,
    },
    /// It does not have the requested profile.
    NoProfile {
        /// The number of the requested profile.
        asked: u32,
        /// The number of profiles.
        profiles: u32,
    },
}

impl fmt::Display for UkiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoKernel => f.write_str(
                "it is an EFI program without a kernel in it (no section .linux), which needs EFI \
                 firmware; use a kernel or a unified kernel image",
            ),
            Self::NoAddon => f.write_str("it is an image with a kernel, not an addon"),
            Self::Truncated { needed, file_size } => write!(
                f,
                "it is cut off: {file_size} of at least {needed} bytes are there; copy it again"
            ),
            Self::NoProfile { asked, profiles } => write!(
                f,
                "it has no profile {asked}; choose one of its {profiles}, which are counted from 0"
            ),
        }
    }
}

impl core::error::Error for UkiError {}

/// Reads an image's section table piece by piece, since an image may have more than a thousand sections.
///
/// ```
/// # use bootshare::boot::{memory::Range, uki::{Scan, Uki, UkiError}};
/// # fn parse(file: &[u8]) -> Result<Uki, UkiError> {
/// // Whether the device tree in this range of the file matches the machine.
/// let is_ours = &mut |_: Range| false;
/// let head = &file[..file.len().min(4096)];
/// let mut scan = Scan::new(head, Range::with_size(0, file.len() as u64), 0, is_ours)?;
/// while let Some(offset) = scan.next_offset() {
///     let start = (offset as usize).min(file.len());
///     scan.take(&file[start..file.len().min(start + 400)], is_ours)?;
/// }
/// scan.finish()
/// # }
/// # assert_eq!(parse(b""), Err(UkiError::NoKernel));
/// ```
#[derive(Clone, Debug)]
pub struct Scan {
    uki: Uki,
    has_kernel: bool,
    image: Range,
    profile: u32,
    /// The `.dtbauto` that matches this machine, and the number of profiles before it.
    tree: Option<(Range, u32)>,
    /// Offset of the next section header in the file.
    next: u64,
    /// Number of section headers left.
    left: u16,
}

impl Scan {
    /// Starts with `head`, the first bytes of the image in the range `image` of a file, to find the parts for
    /// `profile`. `is_ours` returns whether the device tree in a range of the file matches this machine.
    ///
    /// # Errors
    ///
    /// [`UkiError`]
    pub fn new(
        head: &[u8],
        image: Range,
        profile: u32,
        is_ours: &mut dyn FnMut(Range) -> bool,
    ) -> Result<Self, UkiError> {
        let pe = Pe::parse(head).ok_or(UkiError::NoKernel)?;
        let mut scan = Self {
            uki: Uki {
                architecture: match pe.machine {
                    MACHINE_X86_64 => b"x64",
                    MACHINE_ARM64 => b"aa64",
                    _ => b"",
                },
                linux: Range::with_size(0, 0),
                ucode: None,
                initrd: None,
                cmdline: None,
                device_tree: None,
                os_release: None,
                kernel_release: None,
                profile: None,
                linux_digest: None,
                initrd_digest: None,
                profiles: 0,
                other_trees: 0,
            },
            has_kernel: false,
            image,
            profile,
            tree: None,
            next: image.start.saturating_add(pe.table_offset),
            left: pe.sections,
        };
        pe.sections()
            .try_for_each(|section| scan.add(&section, is_ours))?;
        Ok(scan)
    }

    /// Offset of the next section header in the file; `None` after the last one.
    #[must_use]
    pub fn next_offset(&self) -> Option<u64> {
        (self.left > 0).then_some(self.next)
    }

    /// Continues with `bytes`, read from the file at [`next_offset`](Self::next_offset).
    ///
    /// # Errors
    ///
    /// [`UkiError`]; also if `bytes` do not hold a complete header.
    pub fn take(
        &mut self,
        bytes: &[u8],
        is_ours: &mut dyn FnMut(Range) -> bool,
    ) -> Result<(), UkiError> {
        if bytes.len() < SECTION_BYTES {
            let needed = self.next.saturating_add(SECTION_BYTES as u64);
            return Err(truncated(&self.image, needed));
        }
        sections(bytes)
            .take(self.left.into())
            .try_for_each(|section| self.add(&section, is_ours))
    }

    fn add(
        &mut self,
        section: &Section,
        is_ours: &mut dyn FnMut(Range) -> bool,
    ) -> Result<(), UkiError> {
        self.left = self.left.saturating_sub(1);
        self.next = self.next.saturating_add(SECTION_BYTES as u64);
        let uki = &mut self.uki;
        // Sections before the first `.profile` are the base profile.
        let is_other = uki.profiles > 0 && uki.profiles.wrapping_sub(1) != self.profile;
        let (mut linux, mut tree) = (None, None);
        let field = match as_str(section.name()) {
            ".profile" => {
                uki.profiles = uki.profiles.saturating_add(1);
                if uki.profiles.wrapping_sub(1) != self.profile {
                    return Ok(());
                }
                &mut uki.profile
            }
            _ if is_other => return Ok(()),
            // The first match wins; one in the profile overrides one in the base profile.
            ".dtbauto" if self.tree.is_some_and(|(_, of)| of == uki.profiles) => return Ok(()),
            ".dtbauto" => &mut tree,
            ".linux" => &mut linux,
            ".ucode" => &mut uki.ucode,
            ".initrd" => &mut uki.initrd,
            ".cmdline" => &mut uki.cmdline,
            ".dtb" => &mut uki.device_tree,
            ".osrel" => &mut uki.os_release,
            ".uname" => &mut uki.kernel_release,
            ".linuxh" => &mut uki.linux_digest,
            ".initrdh" => &mut uki.initrd_digest,
            _ => return Ok(()),
        };
        let mut content = section.content();
        for end in [&mut content.start, &mut content.end] {
            *end = end.saturating_add(self.image.start);
        }
        if content.end > self.image.end {
            return Err(truncated(&self.image, content.end));
        }
        *field = (content.size() > 0).then_some(content);
        if let Some(linux) = linux {
            uki.linux = linux;
            self.has_kernel = true;
        }
        if let Some(tree) = tree {
            match is_ours(tree) {
                true => self.tree = Some((tree, uki.profiles)),
                false => uki.other_trees = uki.other_trees.saturating_add(1),
            }
        }
        Ok(())
    }

    /// Returns the parts of the image.
    ///
    /// # Errors
    ///
    /// [`UkiError`]
    pub fn finish(self) -> Result<Uki, UkiError> {
        let Self {
            has_kernel,
            profile,
            ..
        } = self;
        let uki = self.parts();
        // An image without profiles has the profile 0.
        if profile > 0 && profile >= uki.profiles {
            return Err(UkiError::NoProfile {
                asked: profile,
                profiles: uki.profiles,
            });
        }
        has_kernel.then_some(uki).ok_or(UkiError::NoKernel)
    }

    /// Returns the parts of an addon: an EFI program with some of the sections of an image, but no kernel ("PE
    /// Addons").
    ///
    /// # Errors
    ///
    /// [`UkiError::NoAddon`]
    pub fn finish_addon(self) -> Result<Uki, UkiError> {
        match self.has_kernel {
            true => Err(UkiError::NoAddon),
            false => Ok(self.parts()),
        }
    }

    fn parts(self) -> Uki {
        let Self { uki, tree, .. } = self;
        Uki {
            device_tree: tree.map(|(tree, _)| tree).or(uki.device_tree),
            ..uki
        }
    }
}

/// The error for an `image` that ends before `end`.
fn truncated(image: &Range, end: u64) -> UkiError {
    UkiError::Truncated {
        needed: end.saturating_sub(image.start),
        file_size: image.size(),
    }
}

/// The fields of `.osrel` (os-release(5)) that become keys of a boot entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OsRelease<'a> {
    /// The human-readable name.
    pub title: &'a [u8],
    /// The version to sort by.
    pub version: &'a [u8],
    /// The first key to sort by.
    pub sort_key: &'a [u8],
}

/// A profile of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile<'a> {
    /// Its number; most images have only profile 0.
    pub number: u32,
    /// The human-readable name; may be empty.
    pub title: &'a [u8],
}

impl<'a> Profile<'a> {
    /// Parses the section `.profile`, which may hold any bytes.
    #[must_use]
    pub fn parse(number: u32, text: &'a [u8]) -> Self {
        let title = [&b"TITLE"[..], b"ID"]
            .iter()
            .find_map(|key| field(text, key));
        Self {
            number,
            title: title.unwrap_or_default(),
        }
    }
}

impl<'a> OsRelease<'a> {
    /// Parses the section `.osrel`, which may hold any bytes. Each value is taken from the first field
    /// present, in the same order as in systemd-boot and bootctl.
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

    /// Writes a boot entry of type 1 for `profile` of an image to the start of `out`. The parts of `path` are
    /// concatenated. Returns the size in bytes; `None` if `out` is too small.
    pub fn write_entry(
        &self,
        architecture: &[u8],
        profile: Profile<'_>,
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
        push(b"title ")?;
        push(self.title)?;
        if !profile.title.is_empty() {
            for part in [b" (", profile.title, b")"] {
                push(part)?;
            }
        }
        for (key, value) in [
            (&b"\nversion "[..], self.version),
            (b"\nsort-key ", self.sort_key),
            (b"\narchitecture ", architecture),
        ] {
            for part in [key, value] {
                push(part)?;
            }
        }
        if profile.number > 0 {
            let mut number: String<10> = String::new();
            write!(number, "{}", profile.number).ok()?;
            push(b"\nprofile ")?;
            push(number.as_bytes())?;
        }
        push(b"\nuki ")?;
        for part in path {
            push(part)?;
        }
        Some(size)
    }
}

/// The value of the last non-empty assignment to `key`, without quotation marks.
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
    const FILE: Range = Range {
        start: 0,
        end: FILE_SIZE,
    };

    fn parse(head: &[u8], file_size: u64, profile: u32) -> Result<Uki, UkiError> {
        Scan::new(head, Range::with_size(0, file_size), profile, &mut |_| {
            false
        })?
        .finish()
    }

    /// The head of a program with these sections: name, offset, bytes in the file.
    fn head(sections: &[(&[u8], u32, u32)]) -> Vec<u8> {
        let mut head = vec![0; 4096.max(0x200 + 40 * sections.len())];
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
        let uki = parse(&head, FILE_SIZE, 0).unwrap();
        assert_eq!(uki.linux, Range::with_size(0x4000, 0xc000));
        assert_eq!(uki.initrd, Some(Range::with_size(0x2000, 0x1000)));
        assert_eq!(uki.cmdline, Some(Range::with_size(0x1400, 0x20)));
        assert_eq!(uki.os_release, Some(Range::with_size(0x1200, 0x40)));
        assert_eq!((uki.ucode, uki.device_tree), (None, None));
        assert_eq!(uki.architecture, b"x64");
        assert_eq!(
            parse(&head, FILE_SIZE - 1, 0).unwrap_err().to_string(),
            "it is cut off: 65535 of at least 65536 bytes are there; copy it again"
        );
    }

    #[test]
    fn a_profile_overrides_the_base() {
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
        let uki = parse(&head, FILE_SIZE, 0).unwrap();
        assert_eq!(uki.cmdline, Some(Range::with_size(0x5000, 1)));
        assert_eq!(uki.initrd, Some(Range::with_size(0x3000, 1)));
        assert_eq!(uki.device_tree, None);
        assert_eq!(
            (uki.profile, uki.profiles),
            (Some(Range::with_size(0x4000, 1)), 2)
        );
        let uki = parse(&head, FILE_SIZE, 1).unwrap();
        assert_eq!(uki.cmdline, Some(Range::with_size(0x7000, 1)));
        assert_eq!(uki.initrd, Some(Range::with_size(0x3000, 1)));
        assert_eq!(uki.device_tree, Some(Range::with_size(0x8000, 1)));
        assert_eq!(
            parse(&head, FILE_SIZE, 2).unwrap_err().to_string(),
            "it has no profile 2; choose one of its 2, which are counted from 0"
        );
        // Without profiles there is one, the base.
        let head = self::head(&[(b".linux", 0x1000, 0x100)]);
        assert!(parse(&head, FILE_SIZE, 0).is_ok());
        assert!(parse(&head, FILE_SIZE, 1).is_err());
    }

    #[test]
    fn a_table_that_is_longer_than_the_head_is_taken_in_pieces() {
        let mut sections: Vec<(&[u8], u32, u32)> = vec![(b".dtbauto", 0x1000, 1); 1456];
        sections.push((b".linux", 0x2000, 0x100));
        let whole = head(&sections);
        for piece in [40, 100, 4096] {
            let mut scan = Scan::new(&whole[..4096], FILE, 0, &mut |_| false).unwrap();
            while let Some(at) = scan.next_offset() {
                let at = at as usize;
                scan.take(&whole[at..(at + piece).min(whole.len())], &mut |_| false)
                    .unwrap();
            }
            let uki = scan.finish().unwrap();
            assert_eq!(uki.linux, Range::with_size(0x2000, 0x100));
            assert_eq!(uki.other_trees, 1456);
        }
        let mut scan = Scan::new(&whole[..4096], FILE, 0, &mut |_| false).unwrap();
        assert!(matches!(
            scan.take(&[0; 39], &mut |_| false),
            Err(UkiError::Truncated { .. })
        ));
    }

    #[test]
    fn an_addon_has_no_kernel() {
        let scan = |head: &[u8]| Scan::new(head, FILE, 0, &mut |_| false).unwrap();
        let head = head(&[(b".cmdline", 0x1000, 4), (b".uname", 0x1100, 3)]);
        let addon = scan(&head).finish_addon().unwrap();
        assert_eq!(addon.cmdline, Some(Range::with_size(0x1000, 4)));
        assert_eq!(addon.kernel_release, Some(Range::with_size(0x1100, 3)));
        let head = self::head(&[(b".cmdline", 0x1000, 4), (b".linux", 0x1100, 3)]);
        let error = scan(&head).finish_addon().unwrap_err();
        assert_eq!(
            error.to_string(),
            "it is an image with a kernel, not an addon"
        );
    }

    #[test]
    fn an_image_may_be_a_part_of_a_file() {
        let head = head(&[(b".linux", 0x1000, 0x100), (b".dtbauto", 0x1100, 0x100)]);
        let parse = |size| {
            let image = Range::with_size(0x5_0000, size);
            let is_ours = &mut |tree: Range| tree.start == 0x5_1100;
            Scan::new(&head[..0x140], image, 0, is_ours).and_then(|mut scan| {
                let at = scan.next_offset().unwrap() - image.start;
                scan.take(&head[at as usize..], is_ours)?;
                scan.finish()
            })
        };
        let uki = parse(0x1200).unwrap();
        assert_eq!(uki.linux, Range::with_size(0x5_1000, 0x100));
        assert_eq!(uki.device_tree, Some(Range::with_size(0x5_1100, 0x100)));
        let (needed, file_size) = (0x1200, 0x11ff);
        let cut_off = UkiError::Truncated { needed, file_size };
        assert_eq!(parse(0x11ff), Err(cut_off));
    }

    #[test]
    fn the_first_tree_for_this_machine_is_taken() {
        let head = head(&[
            (b".dtb", 0x1000, 1),
            (b".dtbauto", 0x2000, 1),
            (b".dtbauto", 0x3000, 1),
            (b".linux", 0x4000, 0x100),
            (b".dtbauto", 0x5000, 1),
            (b".profile", 0x6000, 1),
            (b".profile", 0x6000, 1),
            (b".dtb", 0x7000, 1),
            (b".dtbauto", 0x8000, 1),
        ]);
        // Which tree, how many others, and which were looked at.
        let taken = |ours: &[u64], profile| {
            let mut seen = Vec::new();
            let mut is_ours = |tree: Range| {
                seen.push(tree.start);
                ours.contains(&tree.start)
            };
            let scan = Scan::new(&head, FILE, profile, &mut is_ours).unwrap();
            let uki = scan.finish().unwrap();
            (uki.device_tree.unwrap().start, uki.other_trees, seen)
        };
        let base = vec![0x2000, 0x3000, 0x5000];
        assert_eq!(taken(&[], 0), (0x1000, 3, base.clone()));
        assert_eq!(taken(&[0x3000, 0x5000], 0), (0x3000, 1, base[..2].to_vec()));
        // A matching `.dtbauto` of the base profile takes precedence even over the `.dtb` of the profile.
        let all = vec![0x2000, 0x3000, 0x8000];
        assert_eq!(taken(&[0x3000], 1), (0x3000, 2, all.clone()));
        assert_eq!(taken(&[0x3000, 0x8000], 1), (0x8000, 1, all));
        let all = vec![0x2000, 0x3000, 0x5000, 0x8000];
        assert_eq!(taken(&[], 1), (0x7000, 4, all));
    }

    #[test]
    fn a_program_without_a_kernel_is_refused() {
        for head in [head(&[(b".text", 0x1000, 0x100)]), vec![], vec![0; 64]] {
            assert_eq!(parse(&head, FILE_SIZE, 0), Err(UkiError::NoKernel));
        }
    }

    #[test]
    fn the_first_present_field_of_os_release_is_used() {
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
        let base = Profile::default();
        let size = release.write_entry(b"x64", base, &path, &mut out).unwrap();
        let entry = bls::Entry::parse(&out[..size]);
        assert_eq!(entry.title, b"Debian GNU/Linux 12");
        assert_eq!(entry.profile, b"");
        assert_eq!(
            (entry.version, entry.sort_key),
            (&b"12"[..], &b"debian"[..])
        );
        assert_eq!(entry.uki, b"/EFI/Linux/a b.efi");
        assert_eq!(entry.architecture, b"x64");
        let mut short = out;
        assert_eq!(
            release.write_entry(b"x64", base, &path, &mut short[..size - 1]),
            None
        );
        let profile = Profile::parse(12, b"ID=reset\nTITLE='Factory reset'\n");
        let size = release
            .write_entry(b"x64", profile, &path, &mut out)
            .unwrap();
        let entry = bls::Entry::parse(&out[..size]);
        assert_eq!(entry.title, b"Debian GNU/Linux 12 (Factory reset)");
        assert_eq!(entry.profile, b"12");
        assert_eq!(entry.uki, b"/EFI/Linux/a b.efi");
    }

    #[test]
    fn damaged_headers_do_not_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut head = head(&[(b".linux", 0x1000, 0x100), (b".dtb", 0x2000, 0x100)]);
            random.damage(&mut head[..512]);
            if let Ok(uki) = parse(&head, FILE_SIZE, 0) {
                assert!(uki.linux.size() > 0 && uki.linux.end <= FILE_SIZE);
            }
        }
    }
}
