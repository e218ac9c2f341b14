//! What to boot in a directory without boot entries: files with the names that they have by
//! convention.
//!
//! | file | names, the first that is there |
//! |---|---|
//! | kernel | `vmlinuz`; `Image`; the newest `vmlinuz-VERSION` |
//! | initrd of `vmlinuz-VERSION` | `initrd.img-VERSION` (Debian), `initramfs-VERSION.img` (Fedora, Arch), `initrd-VERSION` (SUSE), `initramfs-VERSION` (Alpine); else `initrd.img`, `initrd`, `initramfs` with no version |
//! | initrd of another kernel | `initrd.img`; `initrd`; the newest `initramfs*` |
//! | command line | `cmdline`; `cmdline.txt` |
//!
//! Newest goes by the order of [`version`]. Rescue and fallback images are
//! taken if there is no other; names that end like a backup (`.old`, `~`) or like a signature
//! never are.

use crate::boot::version;
use core::cmp::Ordering;
use heapless::Vec;

/// The longest name in bytes that a directory entry can have.
pub const MAX_NAME_BYTES: usize = 255;

/// A file's name.
pub type Name = Vec<u8, MAX_NAME_BYTES>;

/// What goes around the version in the name of a versioned kernel's initrd, best first.
const INITRDS: [(&[u8], &[u8]); 4] = [
    (b"initrd.img-", b""),
    (b"initramfs-", b".img"),
    (b"initrd-", b""),
    (b"initramfs-", b""),
];

/// The choice among the names of one directory, in constant memory.
///
/// The names may come in any order. As an initrd belongs to a kernel that may come after it,
/// one look at the directory is not always enough:
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
    vmlinuz: bool,
    image: bool,
    /// The newest `vmlinuz-VERSION`.
    versioned: Name,
    /// Which of [`INITRDS`] are there for `versioned`.
    matching: [bool; INITRDS.len()],
    /// Whether an initrd with a version was seen,
    seen_versioned_initrd: bool,
    /// and whether one was seen before the kernel that counts.
    missed_initrd: bool,
    initrd_img: bool,
    initrd: bool,
    /// The newest `initramfs*`.
    initramfs: Name,
    /// The newest `initramfs*` that has no version.
    plain_initramfs: Name,
    cmdline: bool,
    cmdline_txt: bool,
}

impl Conventional {
    /// Takes a name into account. To be called for each regular file and symbolic link; a name
    /// that is longer than any can be is passed over.
    pub fn consider(&mut self, name: &[u8]) {
        if name.len() > MAX_NAME_BYTES || is_leftover(name) {
            return;
        }
        match name {
            b"vmlinuz" => self.vmlinuz = true,
            b"Image" => self.image = true,
            b"initrd.img" => self.initrd_img = true,
            b"initrd" => self.initrd = true,
            b"cmdline" => self.cmdline = true,
            b"cmdline.txt" => self.cmdline_txt = true,
            _ => {}
        }
        if version_of(name).is_some() && newer(name, &self.versioned).is_gt() {
            replace(&mut self.versioned, name);
            // What was seen so far was compared with another kernel.
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

    /// Whether [`Self::initrd`] may be found only by considering all names a second time.
    #[must_use]
    pub fn look_again(&self) -> bool {
        let [best, ..] = self.matching;
        self.missed_initrd && self.has_versioned_kernel() && !best
    }

    /// The kernel's name.
    #[must_use]
    pub fn kernel(&self) -> Option<&[u8]> {
        match (self.vmlinuz, self.image) {
            (true, _) => Some(b"vmlinuz"),
            (_, true) => Some(b"Image"),
            _ => some(&self.versioned),
        }
    }

    /// The initrd's name, if there is one for the kernel.
    #[must_use]
    pub fn initrd(&self) -> Option<Name> {
        let versioned = self.has_versioned_kernel();
        if versioned {
            let version = version_of(&self.versioned)?;
            let mut there = INITRDS.iter().zip(self.matching);
            if let Some(((prefix, suffix), _)) = there.find(|(_, found)| *found) {
                let mut name = Name::from_slice(prefix).ok()?;
                name.extend_from_slice(version).ok()?;
                name.extend_from_slice(suffix).ok()?;
                return Some(name);
            }
        }
        let name = match (self.initrd_img, self.initrd) {
            (true, _) => b"initrd.img",
            (_, true) => &b"initrd"[..],
            _ if versioned => some(&self.plain_initramfs)?,
            _ => some(&self.initramfs)?,
        };
        Name::from_slice(name).ok()
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

    /// Whether the kernel is one with a version in its name.
    fn has_versioned_kernel(&self) -> bool {
        !self.vmlinuz && !self.image && !self.versioned.is_empty()
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
    name.strip_prefix(b"vmlinuz-")
        .filter(|version| !version.is_empty())
}

/// Orders names, the one to prefer being greater. The empty name, for none, is the least.
fn newer(a: &[u8], b: &[u8]) -> Ordering {
    let key = |name: &[u8]| (!name.is_empty(), !is_spare(name));
    key(a)
        .cmp(&key(b))
        .then_with(|| version::compare(a, b))
        // The choice is not to depend on the order of the directory.
        .then_with(|| a.cmp(b))
}

/// Whether it is for the day when nothing else boots.
fn is_spare(name: &[u8]) -> bool {
    contains(name, b"-rescue") || contains(name, b"fallback")
}

/// Whether it was left by a package manager or an editor, or goes with another file.
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
        let cases: [(&[&str], &str); 23] = [
            (&[], "- - -"),
            (&["README", "vmlinuz.efi", "vmlinuz-"], "- - -"),
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
    fn a_second_look_is_asked_for_only_when_it_may_help() {
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
