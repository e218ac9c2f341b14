//! Kernels, initrds and command lines with conventional names, for directories without boot entries.
//!
//! | file | names; the first one found is used |
//! |---|---|
//! | kernel | `vmlinuz`; `Image`; the newest `vmlinuz-VERSION`; the newest `Image-VERSION`; the newest `vmlinux-VERSION`, `bzImage-VERSION`, `kernel-VERSION` in this order; `bzImage`; `Image.gz`; `vmlinuz.efi`; `kernel`; `vmlinux` |
//! | initrd of a kernel with a version | `initrd.img-VERSION` (Debian), `initramfs-VERSION.img` (Fedora, Arch), `initrd-VERSION` (SUSE), `initramfs-VERSION` (Alpine), `initrd-VERSION.img` (Mageia), `uInitrd-VERSION` (Armbian); otherwise as below, but `initramfs*` only without a version |
//! | initrd of another kernel | `initrd.img`; `initrd`; `initrd.gz`; the newest `initramfs*`; `uInitrd` |
//! | command line | `cmdline`; `cmdline.txt`: see [`command_line`] |
//!
//! The newest is determined by [`version`]. Rescue and fallback images are used only if there is no other.
//! Names with the suffix of a backup (`.old`, `~`), of a signature, or of a kernel for a debugger
//! (`vmlinux-VERSION.gz`) are never used.
//!
//! Packages of some systems install the kernel as `vmlinuz` in [`MODULES`]`/VERSION`: see [`module_initrds`].

use crate::boot::{text::without_mark, version};
use core::cmp::{Ordering, Reverse};
use heapless::Vec;

/// Longest name of a directory entry in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// A file's name.
pub type Name = Vec<u8, MAX_NAME_BYTES>;

/// Prefix and suffix of the version in the names of initrds, best first.
const INITRDS: [(&[u8], &[u8]); 6] = [
    (b"initrd.img-", b""),
    (b"initramfs-", b".img"),
    (b"initrd-", b""),
    (b"initramfs-", b""),
    (b"initrd-", b".img"),
    (b"uInitrd-", b""),
];

/// Names of initrds without a version, best first; `initramfs*` comes before the last one.
const PLAIN_INITRDS: [&[u8]; 4] = [b"initrd.img", b"initrd", b"initrd.gz", b"uInitrd"];
/// How many of [`PLAIN_INITRDS`] come before `initramfs*`.
const BEFORE_INITRAMFS: usize = 3;

/// Names of kernels without a version, best first; kernels with a version come in between.
const KERNELS: [&[u8]; 7] = [
    b"vmlinuz",
    b"Image",
    b"bzImage",
    b"Image.gz",
    b"vmlinuz.efi",
    b"kernel",
    b"vmlinux",
];
/// How many of [`KERNELS`] come before kernels with a version.
const BEFORE_VERSIONS: usize = 2;

/// Prefixes of the version in the names of kernels, best first.
const PREFIXES: [&[u8]; 5] = [b"vmlinuz-", b"Image-", b"vmlinux-", b"bzImage-", b"kernel-"];

/// Directories in which packages install kernel and modules, in a subdirectory for each version.
pub const MODULES: [&str; 2] = ["/usr/lib/modules", "/lib/modules"];

/// The kernel's name in such a subdirectory.
pub const MODULES_KERNEL: &str = "vmlinuz";

/// The places for the initrd of a kernel in [`MODULES`], best first: a directory, `None` for that of the
/// kernel, and a name.
pub fn module_initrds(version: &[u8]) -> impl Iterator<Item = (Option<&'static str>, Name)> {
    let in_boot = INITRDS.iter().filter_map(move |(prefix, suffix)| {
        Some((Some("/boot"), joined(&[prefix, version, suffix])?))
    });
    let own: [&[u8]; 4] = [b"initrd.img", b"initrd", b"initramfs.img", b"initramfs"];
    let own = own.into_iter();
    in_boot.chain(own.filter_map(|name| Some((None, joined(&[name])?))))
}

fn joined(parts: &[&[u8]]) -> Option<Name> {
    let mut name = Name::new();
    let mut parts = parts.iter();
    let all = parts.all(|part| name.extend_from_slice(part).is_ok());
    all.then_some(name)
}

/// Removes comments, lines that start with `#` as in /etc/kernel/cmdline (kernel-install(8)), from the content
/// `text` of a file `cmdline`. Returns the size in bytes of the command line, at the start of `text`.
pub fn command_line(text: &mut [u8]) -> usize {
    let mark = text.len().saturating_sub(without_mark(text).len());
    let (mut from, mut to) = (mark, 0_usize);
    while let Some(rest @ [_, ..]) = text.get(from..) {
        let end = rest.iter().position(|&byte| byte == b'\n');
        let size = end.map_or(rest.len(), |end| end.saturating_add(1));
        let line = rest.get(..size).unwrap_or_default();
        let is_comment = line.trim_ascii_start().starts_with(b"#");
        let end = from.saturating_add(size);
        if !is_comment {
            text.copy_within(from..end, to);
            to = to.saturating_add(size);
        }
        from = end;
    }
    to
}

/// Chooses among the names of one directory, in constant memory.
///
/// The names may come in any order. Since the name of an initrd may come before that of its kernel, the
/// directory sometimes has to be listed twice:
///
/// ```
/// # use bootshare::boot::conventional::Conventional;
/// # let names: [&[u8]; 3] = [b"initrd.img-6.1", b"vmlinuz-6.1", b"cmdline"];
/// let mut choice = Conventional::default();
/// for _look in 0..2 {
///     for name in names {
///         choice.consider(name);
///     }
///     if !choice.look_again() {
///         break;
///     }
/// }
/// assert_eq!(choice.kernel(), Some(&b"vmlinuz-6.1"[..]));
/// assert_eq!(choice.initrd().as_deref(), Some(&b"initrd.img-6.1"[..]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Conventional {
    /// Which of [`KERNELS`] were found.
    kernels: [bool; KERNELS.len()],
    /// The newest kernel with a version and the best prefix.
    versioned: Name,
    /// Which of [`INITRDS`] were found for `versioned`.
    matching: [bool; INITRDS.len()],
    /// Whether any initrd with a version was found.
    seen_versioned_initrd: bool,
    /// Whether one was found before `versioned`, and so not compared with it.
    missed_initrd: bool,
    /// Which of [`PLAIN_INITRDS`] were found.
    initrds: [bool; PLAIN_INITRDS.len()],
    /// The newest `initramfs*`.
    initramfs: Name,
    /// The newest `initramfs*` without a version.
    plain_initramfs: Name,
    cmdline: bool,
    cmdline_txt: bool,
}

impl Conventional {
    /// Considers the name of a regular file or symbolic link. A name longer than [`MAX_NAME_BYTES`] is ignored.
    pub fn consider(&mut self, name: &[u8]) {
        if name.len() > MAX_NAME_BYTES || is_leftover(name) {
            return;
        }
        for (known, found) in [
            (&KERNELS[..], &mut self.kernels[..]),
            (&PLAIN_INITRDS[..], &mut self.initrds[..]),
        ] {
            let mut both = known.iter().zip(found);
            if let Some((_, found)) = both.find(|(known, _)| **known == name) {
                *found = true;
            }
        }
        match name {
            b"cmdline" => self.cmdline = true,
            b"cmdline.txt" => self.cmdline_txt = true,
            _ => {}
        }
        if version_of(name).is_some() && better_kernel(name, &self.versioned).is_gt() {
            replace(&mut self.versioned, name);
            // The initrds found so far were compared with another kernel.
            self.matching = Default::default();
            self.missed_initrd = self.seen_versioned_initrd;
        }
        if name.starts_with(b"initramfs") {
            if newer(name, &self.initramfs).is_gt() {
                replace(&mut self.initramfs, name);
            }
            if !name.starts_with(b"initramfs-") && newer(name, &self.plain_initramfs).is_gt() {
                replace(&mut self.plain_initramfs, name);
            }
        }
        self.consider_versioned_initrd(name);
    }

    fn consider_versioned_initrd(&mut self, name: &[u8]) {
        let kernel = version_of(&self.versioned);
        for ((prefix, suffix), found) in INITRDS.iter().zip(&mut self.matching) {
            let version = name
                .strip_prefix(*prefix)
                .and_then(|n| n.strip_suffix(*suffix));
            if let Some(version) = version {
                *found |= kernel == Some(version);
                self.seen_versioned_initrd = true;
            }
        }
    }

    /// Whether all names have to be considered a second time to find the initrd.
    #[must_use]
    pub fn look_again(&self) -> bool {
        let [best, ..] = self.matching;
        self.missed_initrd && self.has_versioned_kernel() && !best
    }

    /// The kernel's name.
    #[must_use]
    pub fn kernel(&self) -> Option<&[u8]> {
        let mut there = self.plain_kernels();
        match there.next() {
            Some((index, name)) if index < BEFORE_VERSIONS => Some(name),
            later => some(&self.versioned).or(later.map(|(_, name)| name)),
        }
    }

    fn plain_kernels(&self) -> impl Iterator<Item = (usize, &'static [u8])> {
        let both = KERNELS.iter().zip(self.kernels).enumerate();
        both.filter_map(|(index, (name, found))| found.then_some((index, *name)))
    }

    /// The name of the kernel's initrd.
    #[must_use]
    pub fn initrd(&self) -> Option<Name> {
        let versioned = self.has_versioned_kernel();
        if versioned {
            let version = version_of(&self.versioned)?;
            let mut there = INITRDS.iter().zip(self.matching);
            if let Some(((prefix, suffix), _)) = there.find(|(_, found)| *found) {
                return joined(&[prefix, version, suffix]);
            }
        }
        let initramfs = match versioned {
            true => &self.plain_initramfs,
            false => &self.initramfs,
        };
        let mut there = PLAIN_INITRDS.iter().zip(self.initrds).enumerate();
        match there.find(|(_, (_, found))| *found) {
            Some((index, (name, _))) if index < BEFORE_INITRAMFS => joined(&[name]),
            later => some(initramfs)
                .or(later.map(|(_, (name, _))| *name))
                .and_then(|name| joined(&[name])),
        }
    }

    /// The name of the file that holds the command line.
    #[must_use]
    pub const fn cmdline(&self) -> Option<&'static [u8]> {
        match (self.cmdline, self.cmdline_txt) {
            (true, _) => Some(b"cmdline"),
            (_, true) => Some(b"cmdline.txt"),
            _ => None,
        }
    }

    /// Whether the chosen kernel has a version in its name.
    fn has_versioned_kernel(&self) -> bool {
        let mut plain = self.plain_kernels();
        let before = plain.any(|(index, _)| index < BEFORE_VERSIONS);
        !before && !self.versioned.is_empty()
    }
}

fn some(name: &Name) -> Option<&[u8]> {
    (!name.is_empty()).then_some(name)
}

fn replace(name: &mut Name, with: &[u8]) {
    name.clear();
    // The caller has checked the length.
    let _fits = name.extend_from_slice(with);
}

/// The version in a kernel's name.
fn version_of(name: &[u8]) -> Option<&[u8]> {
    let (_, version) = kernel_parts(name)?;
    Some(version)
}

/// Splits a kernel's name into the index of its prefix in [`PREFIXES`] and the version.
fn kernel_parts(name: &[u8]) -> Option<(usize, &[u8])> {
    let mut prefixes = PREFIXES.iter().enumerate();
    let (index, version) =
        prefixes.find_map(|(index, prefix)| Some((index, name.strip_prefix(*prefix)?)))?;
    let is_packed = |version: &[u8]| {
        let endings: [&[u8]; 5] = [b".gz", b".xz", b".bz2", b".zst", b".debug"];
        endings.iter().any(|ending| version.ends_with(ending))
    };
    let is_debugged = name.starts_with(b"vmlinux-") && is_packed(version);
    (!version.is_empty() && !is_debugged).then_some((index, version))
}

/// Compares kernels with a version: the better one is greater.
fn better_kernel(a: &[u8], b: &[u8]) -> Ordering {
    let prefix = |name: &[u8]| {
        let parts = kernel_parts(name);
        (
            !name.is_empty(),
            !is_spare(name),
            Reverse(parts.map_or(usize::MAX, |(index, _)| index)),
        )
    };
    prefix(a).cmp(&prefix(b)).then_with(|| newer(a, b))
}

/// Compares names: the better one is greater. The empty name stands for none and is the smallest.
fn newer(a: &[u8], b: &[u8]) -> Ordering {
    let key = |name: &[u8]| (!name.is_empty(), !is_spare(name));
    key(a)
        .cmp(&key(b))
        .then_with(|| version::compare(a, b))
        // Make the result independent of the order of the directory.
        .then_with(|| a.cmp(b))
}

/// Whether it is a rescue or fallback image.
fn is_spare(name: &[u8]) -> bool {
    contains(name, b"-rescue") || contains(name, b"fallback")
}

/// Whether it was left over by a package manager or an editor, or is the signature or checksum of another
/// file.
fn is_leftover(name: &[u8]) -> bool {
    const ENDINGS: [&[u8]; 10] = [
        b"~",
        b".old",
        b".bak",
        b".orig",
        b".sig",
        b".sha256",
        b".hmac",
        b".dpkg-bak",
        b".dpkg-new",
        b".dpkg-tmp",
    ];
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::{string::String, vec::Vec as StdVec};

    /// What is chosen: the kernel, the initrd and the command line, `-` for none.
    fn choose(names: &[&[u8]]) -> String {
        let mut choice = Conventional::default();
        for _look in 0..2 {
            for name in names {
                choice.consider(name);
            }
            if !choice.look_again() {
                break;
            }
        }
        let initrd = choice.initrd();
        let text = |name: Option<&[u8]>| String::from_utf8_lossy(name.unwrap_or(b"-")).into_owned();
        std::format!(
            "{} {} {}",
            text(choice.kernel()),
            text(initrd.as_deref()),
            text(choice.cmdline())
        )
    }

    #[test]
    fn names_are_chosen_whatever_their_order() {
        let cases: [(&[&str], &str); 35] = [
            (&[], "- - -"),
            (&["README", "linux", "vmlinuz-"], "- - -"),
            // Void, Armbian, openSUSE, Gentoo.
            (
                &[
                    "vmlinux-6.19.0-edge",
                    "initrd.img-6.19.0-edge",
                    "System.map-6.19.0-edge",
                ],
                "vmlinux-6.19.0-edge initrd.img-6.19.0-edge -",
            ),
            (
                &["vmlinuz-6.1", "uInitrd-6.1", "uInitrd"],
                "vmlinuz-6.1 uInitrd-6.1 -",
            ),
            (
                &[
                    "Image-6.4-default",
                    "initrd-6.4-default",
                    "vmlinux-6.4-default.gz",
                ],
                "Image-6.4-default initrd-6.4-default -",
            ),
            (
                &[
                    "vmlinux-6.4-default.xz",
                    "vmlinuz-6.4-default",
                    "initrd-6.4-default.img",
                ],
                "vmlinuz-6.4-default initrd-6.4-default.img -",
            ),
            (
                &[
                    "kernel-6.6-gentoo",
                    "initramfs-6.6-gentoo.img",
                    "vmlinuz-6.1",
                ],
                "vmlinuz-6.1 - -",
            ),
            (
                &["kernel-6.6-gentoo", "initramfs-6.6-gentoo.img"],
                "kernel-6.6-gentoo initramfs-6.6-gentoo.img -",
            ),
            // Buildroot, Yocto, NixOS' netboot, a kernel's own tree.
            (&["bzImage", "initrd", "netboot.ipxe"], "bzImage initrd -"),
            (
                &["Image.gz", "initramfs.cpio.gz"],
                "Image.gz initramfs.cpio.gz -",
            ),
            (&["vmlinux", "bzImage", "initrd.gz"], "bzImage initrd.gz -"),
            (&["vmlinux", "uInitrd"], "vmlinux uInitrd -"),
            (&["vmlinuz.efi", "kernel"], "vmlinuz.efi - -"),
            (
                &["kernel", "vmlinuz-1", "initramfs-1.img"],
                "vmlinuz-1 initramfs-1.img -",
            ),
            (
                &["vmlinuz", "initrd.img", "cmdline"],
                "vmlinuz initrd.img cmdline",
            ),
            (
                &["Image", "initramfs.cpio.gz", "cmdline.txt"],
                "Image initramfs.cpio.gz cmdline.txt",
            ),
            (&["Image", "vmlinuz", "vmlinuz-9"], "vmlinuz - -"),
            (&["Image", "vmlinuz-9"], "Image - -"),
            (&["cmdline", "cmdline.txt"], "- - cmdline"),
            (&["vmlinuz", "initrd", "initramfs-1"], "vmlinuz initrd -"),
            // Debian's /boot.
            (
                &[
                    "System.map-6.1.0-13-cloud-amd64",
                    "config-6.1.0-13-cloud-amd64",
                    "initrd.img-6.1.0-13-cloud-amd64",
                    "initrd.img-6.1.0-9-cloud-amd64",
                    "initrd.img-6.1.0-13-cloud-amd64.old-dkms",
                    "vmlinuz-6.1.0-13-cloud-amd64",
                    "vmlinuz-6.1.0-9-cloud-amd64",
                ],
                "vmlinuz-6.1.0-13-cloud-amd64 initrd.img-6.1.0-13-cloud-amd64 -",
            ),
            // Debian's / with its links.
            (
                &["vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"],
                "vmlinuz initrd.img -",
            ),
            // Fedora's /boot.
            (
                &[
                    "vmlinuz-0-rescue-0123456789abcdef",
                    "initramfs-0-rescue-0123456789abcdef.img",
                    "vmlinuz-6.9.12-200.fc40.x86_64",
                    ".vmlinuz-6.9.12-200.fc40.x86_64.hmac",
                    "initramfs-6.9.12-200.fc40.x86_64.img",
                    "vmlinuz-6.10.3-200.fc40.x86_64",
                    "initramfs-6.10.3-200.fc40.x86_64.img",
                ],
                "vmlinuz-6.10.3-200.fc40.x86_64 initramfs-6.10.3-200.fc40.x86_64.img -",
            ),
            // Arch's /boot.
            (
                &[
                    "vmlinuz-linux",
                    "initramfs-linux.img",
                    "initramfs-linux-fallback.img",
                ],
                "vmlinuz-linux initramfs-linux.img -",
            ),
            // Alpine's /boot.
            (
                &["vmlinuz-virt", "initramfs-virt", "config-6.6.7-0-virt"],
                "vmlinuz-virt initramfs-virt -",
            ),
            // SUSE's /boot.
            (
                &["vmlinuz-6.4.0-default", "initrd-6.4.0-default"],
                "vmlinuz-6.4.0-default initrd-6.4.0-default -",
            ),
            (&["vmlinuz-zz-rescue-1", "vmlinuz-1"], "vmlinuz-1 - -"),
            (&["vmlinuz-zz-rescue-1"], "vmlinuz-zz-rescue-1 - -"),
            (&["vmlinuz-2.old", "vmlinuz-1"], "vmlinuz-1 - -"),
            // The initrd of another version is of no use, one without a version may be.
            (&["vmlinuz-2", "initrd.img-1"], "vmlinuz-2 - -"),
            (
                &["vmlinuz-2", "initrd-2", "initrd.img-2", "vmlinuz-1"],
                "vmlinuz-2 initrd.img-2 -",
            ),
            (
                &["vmlinuz-2", "initrd.img-1", "initrd.img"],
                "vmlinuz-2 initrd.img -",
            ),
            (
                &["vmlinuz-2", "initramfs-1.img", "initramfs.img"],
                "vmlinuz-2 initramfs.img -",
            ),
            (
                &["vmlinuz", "initramfs-5.9.img", "initramfs-5.10.img"],
                "vmlinuz initramfs-5.10.img -",
            ),
            (
                &[
                    "vmlinuz",
                    "initramfs-linux.img",
                    "initramfs-linux-fallback.img",
                ],
                "vmlinuz initramfs-linux.img -",
            ),
        ];
        for (names, expected) in cases {
            let mut names: StdVec<&[u8]> = names.iter().map(|n| n.as_bytes()).collect();
            assert_eq!(choose(&names), expected);
            for seed in seeds(50) {
                let random = &mut Random::new(seed);
                for i in (1..names.len()).rev() {
                    names.swap(i, random.below(i as u64 + 1) as usize);
                }
                assert_eq!(choose(&names), expected, "{names:?}");
            }
        }
    }

    #[test]
    fn comment_lines_are_not_part_of_the_command_line() {
        for (text, expected) in [
            (
                "# old: root=/dev/sda1\nroot=/dev/vda a=#b\n  # panic=-1",
                "root=/dev/vda a=#b\n",
            ),
            ("\u{feff}quiet\r\n\n#\n# \nsplash", "quiet\r\n\nsplash"),
            ("a\n\n \n#b\n", "a\n\n \n"),
            ("#", ""),
            ("", ""),
        ] {
            let mut text = text.as_bytes().to_vec();
            let size = command_line(&mut text);
            assert_eq!(text[..size], *expected.as_bytes());
        }
    }

    #[test]
    fn the_initrd_of_a_kernel_among_its_modules_is_in_boot_or_beside_it() {
        let names: StdVec<_> = module_initrds(b"6.1")
            .map(|(directory, name)| {
                let name = String::from_utf8(name.to_vec()).unwrap();
                std::format!("{}/{name}", directory.unwrap_or("."))
            })
            .collect();
        assert_eq!(names.len(), 10);
        assert_eq!(names[0], "/boot/initrd.img-6.1");
        assert_eq!(names[1], "/boot/initramfs-6.1.img");
        assert_eq!(
            names[6..],
            ["./initrd.img", "./initrd", "./initramfs.img", "./initramfs"]
        );
        assert_eq!(module_initrds(&[b'9'; 255]).count(), 4);
    }

    #[test]
    fn the_directory_is_listed_again_only_if_that_may_find_an_initrd() {
        let look = |names: &[&[u8]]| {
            let mut choice = Conventional::default();
            for name in names {
                choice.consider(name);
            }
            choice.look_again()
        };
        assert!(!look(&[b"vmlinuz-1", b"initrd.img-1"]));
        assert!(look(&[b"initrd.img-1", b"vmlinuz-1"]));
        assert!(!look(&[b"initrd.img-1", b"vmlinuz"]));
        assert!(!look(&[b"initrd.img", b"vmlinuz-1"]));
    }

    #[test]
    fn the_longest_names_fit() {
        let version = "9".repeat(247);
        let kernel = std::format!("vmlinuz-{version}");
        assert_eq!(kernel.len(), 255);
        assert_eq!(
            choose(&[kernel.as_bytes(), b"initrd.img"]),
            std::format!("{kernel} initrd.img -")
        );
        let too_long = std::format!("{kernel}9");
        assert_eq!(choose(&[too_long.as_bytes()]), "- - -");
        assert_eq!(choose(&[b"vmlinuz-\xff\n"]), "vmlinuz-\u{fffd}\n - -");
    }
}
