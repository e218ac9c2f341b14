//! A boot entry of any source: the files to load, and the kernel's command line.

use crate::boot::{
    Architecture,
    bls::{self, Values},
    extlinux::Label,
    text::number,
};
use core::fmt;
use heapless::Vec;

/// Most initrds of one entry.
pub const MAX_INITRDS: usize = 32;

/// The files and the command line that a boot entry asks for.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// What its paths are relative to.
    pub base: Base<'a>,
    /// The kernel's path.
    pub kernel: &'a [u8],
    /// The profile of a unified kernel image to start.
    pub profile: u32,
    /// The paths of addons that the entry names for that image.
    pub addons: Option<Values<'a>>,
    /// The image is known to have no directory of addons beside it, so that none is requested.
    pub alone: bool,
    /// The paths of the initrds, in the order in which they are loaded.
    pub initrds: Vec<&'a [u8], MAX_INITRDS>,
    /// The kernel's command line.
    pub command_line: CommandLine<'a>,
    /// The path of a device tree that replaces the machine's.
    pub device_tree: Option<&'a [u8]>,
}

/// Where the command line of an entry is.
#[derive(Clone, Copy, Debug)]
pub enum CommandLine<'a> {
    /// These lines, joined by spaces.
    Lines(Values<'a>),
    /// These two parts, joined by a space; they may contain
    /// [variables](crate::boot::extlinux::remove_variables) of U-Boot.
    Label([&'a [u8]; 2]),
    /// The content of the file with this path.
    File(&'a [u8]),
    /// An empty command line.
    None,
}

/// What the paths of an entry are relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base<'a> {
    /// This directory, without alternatives.
    Exact(&'a str),
    /// The file system that holds an entry of the Boot Loader Specification.
    Bls {
        /// The path of its root in the share; `/` if the share is this file system.
        root: &'a str,
    },
    /// The directory of an `extlinux.conf`.
    Extlinux {
        /// The path of the directory.
        directory: &'a str,
        /// The path of the root of its file system in the share.
        root: &'a str,
    },
}

/// A place where a file may be: a path relative to a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The directory's path.
    pub directory: &'a str,
    /// The path relative to the directory.
    pub name: &'a [u8],
}

/// Most places for one path.
pub const MAX_PLACES: usize = 6;

/// Where systems mount the file systems that a boot loader reads.
const MOUNT_POINTS: [&str; 3] = ["boot/efi/", "boot/", "efi/"];

impl<'a> Base<'a> {
    /// The base of the labels in the `extlinux.conf` of `directory`.
    #[must_use]
    pub fn extlinux(directory: &'a str) -> Self {
        let is_boot = directory.starts_with("/boot");
        let root = if is_boot { "/boot" } else { "/" };
        Self::Extlinux { directory, root }
    }

    /// The places where the file `path` may be, most likely first.
    ///
    /// The share may be the root of a system, or only the file system that the system mounts at `/boot` or
    /// `/efi`; and `/boot` may be a file system of its own, whose root the paths are relative to, or a plain
    /// directory. So the path is tried relative to the root of the share and to the root of the entry's
    /// file system, then without a mount point at its start, or else below `/boot`.
    #[must_use]
    pub fn places(&self, path: &'a [u8]) -> Vec<Place<'a>, MAX_PLACES> {
        let slashes = path.iter().take_while(|&&byte| byte == b'/').count();
        let name = path.get(slashes..).unwrap_or_default();
        let mut places = Vec::new();
        let mut push = |directory, name: &'a [u8]| {
            let place = Place { directory, name };
            if !name.is_empty() && !places.contains(&place) {
                _ = places.push(place); // At most MAX_PLACES are pushed below.
            }
        };
        let (root, is_whole) = match *self {
            Self::Exact(directory) => {
                push(if slashes > 0 { "/" } else { directory }, name);
                return places;
            }
            // GRUB and systemd-boot know one file system only; paths are relative to its root.
            Self::Bls { root } => (root, is_below(name, root)),
            Self::Extlinux { directory, root } => {
                if slashes == 0 {
                    push(directory, name);
                }
                (root, true)
            }
        };
        let roots = if is_whole { ["/", root] } else { [root, "/"] };
        for root in roots {
            push(root, name);
        }
        let mut points = MOUNT_POINTS.iter();
        match points.find_map(|point| name.strip_prefix(point.as_bytes())) {
            Some(rest) => {
                for root in roots {
                    push(root, rest);
                }
            }
            None => push("/boot", name),
        }
        places
    }
}

/// Whether the path `name`, which has no leading `/`, is below `directory`.
fn is_below(name: &[u8], directory: &str) -> bool {
    let directory = directory.as_bytes().get(1..).unwrap_or_default();
    let rest = name.strip_prefix(directory);
    rest.is_some_and(|rest| directory.is_empty() || rest.starts_with(b"/"))
}

/// Why an entry is not for this machine or cannot be started. The message follows the entry's name and a
/// colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError<'a> {
    /// It is for another architecture.
    Foreign {
        /// Its value of `architecture`.
        architecture: &'a [u8],
        /// The machine's architecture.
        machine: Architecture,
    },
    /// Its image has to be downloaded.
    Url,
    /// It starts an EFI program that may not be a kernel.
    EfiProgram,
    /// It starts something that only SYSLINUX or U-Boot can start.
    NoLinux {
        /// The keyword and its value.
        words: &'a [u8],
    },
    /// It names no kernel.
    NoKernel,
    /// One of its keys asks for something that is not supported.
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        value: &'a [u8],
    },
    /// It has more than [`MAX_INITRDS`] initrds.
    TooManyInitrds,
    /// It has device tree overlays.
    Overlay,
    /// It has a device tree, and the machine's architecture uses none.
    DeviceTree(Architecture),
}

impl EntryError<'_> {
    /// Whether the entry is meant for other machines. Such an entry is hidden ("Type #1 Boot Loader Entry
    /// Keys") and does not count as broken.
    #[must_use]
    pub const fn is_hidden(&self) -> bool {
        matches!(
            self,
            Self::Foreign { .. } | Self::Url | Self::EfiProgram | Self::NoLinux { .. }
        )
    }
}

impl fmt::Display for EntryError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign {
                architecture,
                machine,
            } => write!(
                f,
                "it is for {} and this machine is {machine}",
                architecture.escape_ascii()
            ),
            Self::Url => f.write_str("it is fetched from a URL, and there is no network here"),
            Self::EfiProgram => f.write_str(
                "it is an EFI program, and there is no EFI here; if it is a unified kernel image, \
                 name it with `uki` in place of `efi`",
            ),
            Self::NoLinux { words } => {
                write!(f, "it starts no Linux kernel ({})", words.escape_ascii())
            }
            Self::NoKernel => f.write_str("it names no kernel; add a line `linux PATH`"),
            Self::Unsupported { key, value } => write!(
                f,
                "its line `{key} {}` asks for what is not done here; remove that line",
                value.escape_ascii()
            ),
            Self::TooManyInitrds => write!(
                f,
                "it has more than {MAX_INITRDS} initrds; put some of them into one file"
            ),
            Self::Overlay => f.write_str(
                "device tree overlays are not supported; merge them into the device tree with \
                 fdtoverlay",
            ),
            Self::DeviceTree(machine) => write!(
                f,
                "it has a device tree and this machine is {machine}, which takes none; \
                 remove that line"
            ),
        }
    }
}

impl core::error::Error for EntryError<'_> {}

impl<'a> Entry<'a> {
    /// Converts an entry of the Boot Loader Specification for `machine`. `asked` means that the user chose it
    /// by name: then it may be any EFI program.
    ///
    /// # Errors
    ///
    /// [`EntryError`]
    pub fn from_bls(
        base: Base<'a>,
        entry: &bls::Entry<'a>,
        machine: Architecture,
        asked: bool,
    ) -> Result<Self, EntryError<'a>> {
        if !entry.is_for(machine) {
            return Err(EntryError::Foreign {
                architecture: entry.architecture,
                machine,
            });
        }
        let mut kernels = [entry.linux, entry.uki, entry.efi].into_iter();
        let kernel = kernels.find(|path| !path.is_empty()).unwrap_or_default();
        if kernel.is_empty() && !entry.uki_url.is_empty() {
            return Err(EntryError::Url);
        }
        if entry.linux.is_empty() && entry.uki.is_empty() && !kernel.is_empty() && !asked {
            return Err(EntryError::EfiProgram);
        }
        let unsupported = |key, value| Err(EntryError::Unsupported { key, value });
        let profile = match entry.profile {
            [] => 0,
            profile => match number(profile) {
                Some(profile) => profile,
                None => return unsupported("profile", profile),
            },
        };
        // systemd-boot packs credentials and extensions into an initrd of its own. That is not done here.
        let is_image = entry.linux.is_empty();
        let mut extras = entry.extras();
        if let Some(extra) = extras.find(|extra| !is_image || !bls::is_addon(extra)) {
            return unsupported("extra", extra);
        }
        if !entry.devicetree_overlay.is_empty() {
            return Err(EntryError::Overlay);
        }
        Self {
            base,
            kernel,
            profile,
            addons: Some(entry.extras()),
            alone: false,
            initrds: collect(entry.initrds())?,
            command_line: CommandLine::Lines(entry.options()),
            device_tree: some(entry.devicetree),
        }
        .checked(machine)
    }

    /// Converts a label of an `extlinux.conf` for `machine`; `more` is appended to its command line.
    ///
    /// The caller warns of `fdtdir` and `fdtoverlays`: U-Boot takes the file name in the first from its board,
    /// and also boots without the second.
    ///
    /// # Errors
    ///
    /// [`EntryError`]
    pub fn from_label(
        base: Base<'a>,
        label: &Label<'a>,
        more: &'a [u8],
        machine: Architecture,
    ) -> Result<Self, EntryError<'a>> {
        if !label.other.is_empty() {
            let words = label.other;
            return Err(EntryError::NoLinux { words });
        }
        Self {
            base,
            kernel: label.linux,
            profile: 0,
            addons: None,
            alone: false,
            initrds: collect(label.initrds())?,
            command_line: CommandLine::Label([label.append, more]),
            device_tree: some(label.fdt),
        }
        .checked(machine)
    }

    fn checked(self, machine: Architecture) -> Result<Self, EntryError<'a>> {
        if self.kernel.is_empty() {
            return Err(EntryError::NoKernel);
        }
        if self.device_tree.is_some() && !machine.has_device_trees() {
            return Err(EntryError::DeviceTree(machine));
        }
        Ok(self)
    }
}

fn some(value: &[u8]) -> Option<&[u8]> {
    (!value.is_empty()).then_some(value)
}

fn collect<'a>(
    paths: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<&'a [u8], MAX_INITRDS>, EntryError<'a>> {
    let mut all = Vec::new();
    for path in paths {
        let full = all.push(path);
        full.map_err(|_| EntryError::TooManyInitrds)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::extlinux::Config;
    use Architecture::{Aarch64, X86_64};
    use std::string::{String, ToString};

    fn bls(text: &str, machine: Architecture) -> Result<Entry<'_>, EntryError<'_>> {
        let base = Base::Bls { root: "/" };
        Entry::from_bls(base, &bls::Entry::parse(text.as_bytes()), machine, false)
    }

    fn extlinux(text: &str, machine: Architecture) -> Result<Entry<'_>, EntryError<'_>> {
        let label = Config::parse(text.as_bytes()).labels().next().unwrap();
        let base = Base::extlinux("/extlinux");
        Entry::from_label(base, &label, b"", machine)
    }

    #[test]
    fn an_entry_has_the_values_of_its_file() {
        let entry = bls("linux k\ninitrd a\ninitrd b\noptions c", X86_64).unwrap();
        assert_eq!(entry.kernel, b"k");
        assert_eq!(entry.initrds, [b"a", b"b"]);
        assert_eq!(entry.device_tree, None);
        assert_eq!(bls("uki u\nefi e", X86_64).unwrap().kernel, b"u");
        assert_eq!(bls("uki u\nprofile 12", X86_64).unwrap().profile, 12);
        // An entry with `efi` may be any program: it is hidden, unless it was asked for.
        let efi = bls::Entry::parse(b"efi e");
        let base = Base::Exact("/");
        let entry = Entry::from_bls(base, &efi, X86_64, true).unwrap();
        assert_eq!(entry.kernel, b"e");
        let entry = bls("linux k\ndevicetree d", Aarch64).unwrap();
        assert_eq!(entry.device_tree, Some(&b"d"[..]));

        let entry = extlinux("label l\nlinux k\ninitrd a,b\nfdt d", Aarch64).unwrap();
        assert_eq!(entry.kernel, b"k");
        assert_eq!(entry.initrds, [b"a", b"b"]);
        assert_eq!(entry.device_tree, Some(&b"d"[..]));
    }

    #[test]
    fn entries_that_cannot_be_started_are_refused_or_hidden() {
        let hidden = |text, machine| {
            let error = bls(text, machine).unwrap_err();
            std::format!("{} {error}", error.is_hidden())
        };
        let cases = [
            (
                hidden("linux k\narchitecture AA64", X86_64),
                "true it is for AA64 and this machine is x86-64",
            ),
            (
                hidden("uki-url https://linux.efi", X86_64),
                "true it is fetched from a URL, and there is no network here",
            ),
            (
                hidden("efi /shell.efi", X86_64),
                "true it is an EFI program, and there is no EFI here; if it is a unified kernel \
                 image, name it with `uki` in place of `efi`",
            ),
            (
                hidden("uki u\nprofile one", X86_64),
                "false its line `profile one` asks for what is not done here; remove that line",
            ),
            (
                hidden("uki u\nextra /x.addon.efi\nextra /x.cred", X86_64),
                "false its line `extra /x.cred` asks for what is not done here; remove that line",
            ),
            (
                hidden("linux k\nextra /x.addon.efi", X86_64),
                "false its line `extra /x.addon.efi` asks for what is not done here; \
                 remove that line",
            ),
            (
                hidden("title nothing", X86_64),
                "false it names no kernel; add a line `linux PATH`",
            ),
            (
                hidden("linux k\ndevicetree d\ndevicetree-overlay o", Aarch64),
                "false device tree overlays are not supported; merge them into the device tree \
                 with fdtoverlay",
            ),
            (
                hidden("linux k\ndevicetree d", X86_64),
                "false it has a device tree and this machine is x86-64, which takes none; \
                 remove that line",
            ),
            (
                hidden(
                    &std::format!("linux k\n{}", "initrd i\n".repeat(33)),
                    X86_64,
                ),
                "false it has more than 32 initrds; put some of them into one file",
            ),
        ];
        for (said, expected) in cases {
            assert_eq!(said, expected);
        }
        let error = extlinux("label l\nfdtoverlays o", X86_64).unwrap_err();
        assert_eq!(error, EntryError::NoKernel);
        let error = extlinux("label l\nlinux k\nlocalboot 1", X86_64).unwrap_err();
        assert!(error.is_hidden());
        assert_eq!(error.to_string(), "it starts no Linux kernel (localboot)");
        assert!(extlinux("label l\nkernel k\nfdtdir d\nfdtoverlays o", X86_64).is_ok());
    }

    #[test]
    fn a_path_is_tried_in_all_possible_places() {
        let cases: [(Base<'_>, &str, &[&str]); 13] = [
            (Base::Exact("/boot"), "k", &["/boot/k"]),
            (Base::Exact("/boot"), "/k", &["//k"]),
            // The share is the boot loader's file system, or the root that it is mounted in.
            (Base::Bls { root: "/" }, "/k", &["//k", "/boot/k"]),
            (Base::Bls { root: "/" }, "6/k", &["//6/k", "/boot/6/k"]),
            (Base::Bls { root: "/" }, "/boot/k", &["//boot/k", "//k"]),
            (Base::Bls { root: "/" }, "//efi/k", &["//efi/k", "//k"]),
            (
                Base::Bls { root: "/" },
                "/boot/efi/k",
                &["//boot/efi/k", "//k"],
            ),
            // The share is the root, and `/boot` a file system of its own, or not.
            (Base::Bls { root: "/boot" }, "/k", &["/boot/k", "//k"]),
            (
                Base::Bls { root: "/boot" },
                "/boot/k",
                &["//boot/k", "/boot/boot/k", "//k", "/boot/k"],
            ),
            (
                Base::Bls { root: "/efi" },
                "/efi-k",
                &["/efi/efi-k", "//efi-k", "/boot/efi-k"],
            ),
            (Base::extlinux("/boot/extlinux"), "/k", &["//k", "/boot/k"]),
            (
                Base::extlinux("/boot/extlinux"),
                "../k",
                &["/boot/extlinux/../k", "//../k", "/boot/../k"],
            ),
            (Base::extlinux("/extlinux"), "/boot/k", &["//boot/k", "//k"]),
        ];
        for (base, path, expected) in cases {
            let places = base.places(path.as_bytes());
            let shown = places.iter().map(|place| {
                let name = String::from_utf8_lossy(place.name);
                std::format!("{}/{name}", place.directory)
            });
            assert_eq!(shown.collect::<std::vec::Vec<_>>(), expected, "{path}");
        }
        assert!(Base::Bls { root: "/" }.places(b"/").is_empty());
    }
}
