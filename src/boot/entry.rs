//! A boot entry, wherever it was found: the files to load, and what goes to the kernel.

use crate::boot::{
    bls::{self, Values},
    extlinux::Label,
    image::Architecture,
};
use core::fmt;
use heapless::Vec;

/// The most initrds of one entry.
pub const MAX_INITRDS: usize = 32;

/// What a boot entry asks for. Paths start at `directory` unless they begin with `/`.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Where its paths start, itself from the share's root on.
    pub directory: &'a str,
    /// The kernel's path.
    pub kernel: &'a [u8],
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
    /// It is this.
    Text(&'a [u8]),
    /// In the file with this path.
    File(&'a [u8]),
    /// It is empty.
    None,
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
    /// It names no kernel.
    NoKernel,
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
        matches!(self, Self::Foreign { .. } | Self::Url)
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
            Self::NoKernel => f.write_str("it names no kernel; add a line `linux PATH`"),
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
    /// What a Boot Loader Specification entry asks for on `machine`.
    ///
    /// # Errors
    ///
    /// [`EntryError`]
    pub fn from_bls(entry: &bls::Entry<'a>, machine: Architecture) -> Result<Self, EntryError<'a>> {
        if !entry.is_for(machine) {
            return Err(EntryError::Foreign {
                architecture: entry.architecture,
                machine,
            });
        }
        let kernel = match entry.linux {
            [] => entry.uki,
            linux => linux,
        };
        if kernel.is_empty() && !entry.uki_url.is_empty() {
            return Err(EntryError::Url);
        }
        Self {
            directory: "/",
            kernel,
            initrds: collect(entry.initrds())?,
            command_line: CommandLine::Lines(entry.options()),
            device_tree: some(entry.devicetree),
        }
        .checked(entry.devicetree_overlay, machine)
    }

    /// What a label of the `extlinux.conf` in `directory` asks for on `machine`.
    ///
    /// Its `fdtdir` is left to the caller: without U-Boot's board there is no file name in it.
    ///
    /// # Errors
    ///
    /// [`EntryError`]
    pub fn from_label(
        directory: &'a str,
        label: &Label<'a>,
        machine: Architecture,
    ) -> Result<Self, EntryError<'a>> {
        Self {
            directory,
            kernel: label.linux,
            initrds: collect(label.initrds())?,
            command_line: CommandLine::Text(label.append),
            device_tree: some(label.fdt),
        }
        .checked(label.fdtoverlays, machine)
    }

    fn checked(self, overlays: &[u8], machine: Architecture) -> Result<Self, EntryError<'a>> {
        if self.kernel.is_empty() {
            return Err(EntryError::NoKernel);
        }
        if !overlays.is_empty() {
            return Err(EntryError::Overlay);
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

    fn bls(text: &str, machine: Architecture) -> Result<Entry<'_>, EntryError<'_>> {
        Entry::from_bls(&bls::Entry::parse(text.as_bytes()), machine)
    }

    fn extlinux(text: &str, machine: Architecture) -> Result<Entry<'_>, EntryError<'_>> {
        let label = Config::parse(text.as_bytes()).labels().next().unwrap();
        Entry::from_label("/extlinux", &label, machine)
    }

    #[test]
    fn an_entry_has_what_its_file_says() {
        let entry = bls("linux k\ninitrd a\ninitrd b\noptions c", X86_64).unwrap();
        assert_eq!((entry.directory, entry.kernel), ("/", &b"k"[..]));
        assert_eq!(entry.initrds, [b"a", b"b"]);
        assert_eq!(entry.device_tree, None);
        for text in ["uki u", "efi u"] {
            assert_eq!(bls(text, X86_64).unwrap().kernel, b"u");
        }
        let entry = bls("linux k\ndevicetree d", Aarch64).unwrap();
        assert_eq!(entry.device_tree, Some(&b"d"[..]));

        let entry = extlinux("label l\nlinux k\ninitrd a,b\nfdt d", Aarch64).unwrap();
        assert_eq!((entry.directory, entry.kernel), ("/extlinux", &b"k"[..]));
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
        assert_eq!(
            extlinux("label l\nfdtoverlays o", X86_64).unwrap_err(),
            EntryError::NoKernel
        );
        assert!(extlinux("label l\nkernel k\nfdtdir d", X86_64).is_ok());
    }
}
