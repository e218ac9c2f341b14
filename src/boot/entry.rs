//! A boot entry, wherever it was found: the files to load, and what goes to the kernel.

use crate::boot::{
    bls::{self, Values},
    extlinux::Label,
    image::Architecture,
    text::number,
};
use core::fmt;
use heapless::Vec;

/// The most initrds of one entry.
pub const MAX_INITRDS: usize = 32;

/// What a boot entry asks for.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Where its paths start.
    pub base: Base<'a>,
    /// The kernel's path.
    pub kernel: &'a [u8],
    /// Which profile of a unified kernel image is started.
    pub profile: u32,
    /// The paths of addons of that image, in their order.
    pub addons: Option<Values<'a>>,
    /// There are no other addons beside it. That spares requests, if it is known.
    pub alone: bool,
    /// The paths of the initrds, in their order.
    pub initrds: Vec<&'a [u8], MAX_INITRDS>,
    /// What the kernel is told.
    pub command_line: CommandLine<'a>,
    /// The path of a device tree that replaces the machine's.
    pub device_tree: Option<&'a [u8]>,
}

/// Where an entry's command line is.
#[derive(Clone, Copy, Debug)]
pub enum CommandLine<'a> {
    /// In these lines, to be joined by spaces.
    Lines(Values<'a>),
    /// It is these, to be joined by a space, with [variables](crate::boot::extlinux::remove_variables)
    /// of U-Boot.
    Label([&'a [u8]; 2]),
    /// In the file with this path.
    File(&'a [u8]),
    /// It is empty.
    None,
}

/// Where the paths of an entry start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base<'a> {
    /// In this directory, nowhere else.
    Exact(&'a str),
    /// A Boot Loader Specification entry on the file system whose root is here in the share.
    Bls {
        /// `/` if all of the share is that file system.
        root: &'a str,
    },
    /// A label of an `extlinux.conf`.
    Extlinux {
        /// Where the file lies.
        directory: &'a str,
        /// The root of its file system, if that is not all of the share.
        root: &'a str,
    },
}

/// A place for a file: a name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The directory's path.
    pub directory: &'a str,
    /// The path from there.
    pub name: &'a [u8],
}

/// The most places for one path.
pub const MAX_PLACES: usize = 6;

/// Where a system has the file systems that its boot loader reads.
const MOUNT_POINTS: [&str; 3] = ["boot/efi/", "boot/", "efi/"];

impl<'a> Base<'a> {
    /// That of the labels in the `extlinux.conf` of this directory.
    #[must_use]
    pub fn extlinux(directory: &'a str) -> Self {
        let is_boot = directory.starts_with("/boot");
        let root = if is_boot { "/boot" } else { "/" };
        Self::Extlinux { directory, root }
    }

    /// Where the file with this path may be, the likeliest place first.
    ///
    /// The share may be a system's root, or the file system at `/boot` or `/efi` alone; and what is at
    /// `/boot` may be a file system of its own, which paths count from, or not. So a path is looked
    /// for as it is and from the root of its file system, then without the name of such a place
    /// before it, or with `/boot`.
    #[must_use]
    pub fn places(&self, path: &'a [u8]) -> Vec<Place<'a>, MAX_PLACES> {
        let slashes = path.iter().take_while(|&&byte| byte == b'/').count();
        let name = path.get(slashes..).unwrap_or_default();
        let mut places = Vec::new();
        let mut push = |directory, name: &'a [u8]| {
            let place = Place { directory, name };
            if !name.is_empty() && !places.contains(&place) {
                _ = places.push(place); // There is room: see below.
            }
        };
        let (root, is_whole) = match *self {
            Self::Exact(directory) => {
                push(if slashes > 0 { "/" } else { directory }, name);
                return places;
            }
            // GRUB and systemd-boot know one file system: its root is the start.
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

/// Whether the path `name`, without the `/` that it starts with, leads below `directory`.
fn is_below(name: &[u8], directory: &str) -> bool {
    let directory = directory.as_bytes().get(1..).unwrap_or_default();
    let rest = name.strip_prefix(directory);
    rest.is_some_and(|rest| directory.is_empty() || rest.starts_with(b"/"))
}

/// Why an entry is not for this machine, or can't be started as it stands. The sentence goes on
/// from the entry's name and a colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError<'a> {
    /// It names another architecture.
    Foreign {
        /// The word it uses.
        architecture: &'a [u8],
        /// What the machine is.
        machine: Architecture,
    },
    /// It is to be fetched from elsewhere.
    Url,
    /// It starts an EFI program, which may be no kernel.
    EfiProgram,
    /// It starts what only SYSLINUX or U-Boot can.
    NoLinux {
        /// The words that say so.
        words: &'a [u8],
    },
    /// It names no kernel.
    NoKernel,
    /// It has a key that asks for what is not done here.
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
    /// It has a device tree, which this machine can't use.
    DeviceTree(Architecture),
}

impl EntryError<'_> {
    /// Whether the entry is not meant for a machine like this one. It is to be hidden then ("Type
    /// #1 Boot Loader Entry Keys"), not to count as broken.
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
    /// What a Boot Loader Specification entry asks for on `machine`. With `asked`, it is one that a
    /// person asks for by its name, which may be any EFI program.
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
        // Credentials and extensions are files in an initrd that systemd-boot makes.
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

    /// What a label of an `extlinux.conf` asks for on `machine`; `more` words go to the end of its
    /// command line.
    ///
    /// Its `fdtdir` and `fdtoverlays` are left to the caller: without U-Boot's board there is no file
    /// name in the first, and U-Boot boots without the second, too.
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
        if self.device_tree.is_some() && machine == Architecture::X86_64 {
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
    fn an_entry_has_what_its_file_says() {
        let entry = bls("linux k\ninitrd a\ninitrd b\noptions c", X86_64).unwrap();
        assert_eq!(entry.kernel, b"k");
        assert_eq!(entry.initrds, [b"a", b"b"]);
        assert_eq!(entry.device_tree, None);
        assert_eq!(bls("uki u\nefi e", X86_64).unwrap().kernel, b"u");
        assert_eq!(bls("uki u\nprofile 12", X86_64).unwrap().profile, 12);
        // One that may be any program is hidden, and not when it is asked for.
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
    fn what_cannot_be_started_is_refused_or_hidden() {
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
    fn a_path_is_looked_for_where_a_system_may_have_its_file() {
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
