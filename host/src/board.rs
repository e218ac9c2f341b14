//! The boards that Bootshare runs on: architecture, machine type, transport.

use clap::ValueEnum;

/// A guest architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Arch {
    /// x86-64.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Both architectures.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The name used in targets, file names and QEMU's programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Debian's name for the architecture.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Debian's package of its QEMU.
    pub const fn qemu_package(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86",
            Self::Aarch64 => "qemu-system-arm",
        }
    }

    /// Linux's name for the board's first serial port.
    pub const fn serial(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// The conventional file name of a kernel in a share: arm64's is a raw `Image`.
    pub const fn kernel_name(self) -> &'static str {
        match self {
            Self::X86_64 => "vmlinuz",
            Self::Aarch64 => "Image",
        }
    }
}

/// How a virtio device is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci.
    Pci,
}

/// A QEMU board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Board {
    /// `microvm`, virtio-mmio.
    #[value(name = "x86_64-microvm", alias = "microvm")]
    X86_64Microvm,
    /// `q35`, PCI Express.
    #[value(name = "x86_64-q35", alias = "q35")]
    X86_64Q35,
    /// `pc` (i440FX), PCI.
    #[value(name = "x86_64-pc", alias = "pc")]
    X86_64Pc,
    /// `microvm`, virtio-mmio; the firmware is the ROM.
    #[value(name = "x86_64-microvm-rom", alias = "microvm-rom")]
    X86_64MicrovmRom,
    /// `q35`, PCI Express; the firmware is the ROM.
    #[value(name = "x86_64-q35-rom", alias = "q35-rom")]
    X86_64Q35Rom,
    /// `virt`, virtio-mmio.
    #[value(name = "aarch64-virt", alias = "virt")]
    Aarch64Virt,
    /// `virt`, PCI Express.
    #[value(name = "aarch64-virt-pci", alias = "virt-pci")]
    Aarch64VirtPci,
    /// `virt`, virtio-mmio; the firmware is the ROM.
    #[value(name = "aarch64-virt-rom", alias = "virt-rom")]
    Aarch64VirtRom,
}

impl Board {
    /// Every board.
    pub const ALL: [Self; 8] = [
        Self::X86_64Microvm,
        Self::X86_64Q35,
        Self::X86_64Pc,
        Self::X86_64MicrovmRom,
        Self::X86_64Q35Rom,
        Self::Aarch64Virt,
        Self::Aarch64VirtPci,
        Self::Aarch64VirtRom,
    ];

    /// The default board on this machine: one of its architecture, or else of x86-64.
    pub const fn of_this_machine() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64Virt
        } else {
            Self::X86_64Microvm
        }
    }

    /// The board's name in options and tables.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The board's architecture.
    pub const fn arch(self) -> Arch {
        match self {
            Self::X86_64Microvm
            | Self::X86_64Q35
            | Self::X86_64Pc
            | Self::X86_64MicrovmRom
            | Self::X86_64Q35Rom => Arch::X86_64,
            Self::Aarch64Virt | Self::Aarch64VirtPci | Self::Aarch64VirtRom => Arch::Aarch64,
        }
    }

    /// QEMU's machine type.
    pub const fn machine(self) -> &'static str {
        match self {
            Self::X86_64Microvm | Self::X86_64MicrovmRom => "microvm",
            Self::X86_64Q35 | Self::X86_64Q35Rom => "q35",
            Self::X86_64Pc => "pc",
            Self::Aarch64Virt | Self::Aarch64VirtPci | Self::Aarch64VirtRom => "virt",
        }
    }

    /// How the share's device is attached.
    pub const fn transport(self) -> Transport {
        match self {
            Self::X86_64Microvm
            | Self::X86_64MicrovmRom
            | Self::Aarch64Virt
            | Self::Aarch64VirtRom => Transport::Mmio,
            Self::X86_64Q35 | Self::X86_64Pc | Self::X86_64Q35Rom | Self::Aarch64VirtPci => {
                Transport::Pci
            }
        }
    }

    /// Whether the firmware is the machine's ROM (`-bios`), rather than started by QEMU's own
    /// firmware (`-kernel`).
    pub const fn is_rom(self) -> bool {
        matches!(
            self,
            Self::X86_64MicrovmRom | Self::X86_64Q35Rom | Self::Aarch64VirtRom
        )
    }

    /// File name of the firmware image, as `make firmware` leaves it in `target/firmware`.
    pub const fn firmware_name(self) -> &'static str {
        match (self.arch(), self.is_rom()) {
            (Arch::X86_64, false) => "bootshare-x86_64.elf",
            (Arch::X86_64, true) => "bootshare-x86_64.rom",
            (Arch::Aarch64, false) => "bootshare-aarch64.elf",
            (Arch::Aarch64, true) => "bootshare-aarch64.bin",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_the_boards_as_they_are() {
        let page = include_str!("../../docs/firmware.md");
        let rows: Vec<_> = page
            .lines()
            .filter(|line| line.contains("| QEMU `"))
            .collect();
        assert_eq!(rows.len(), Board::ALL.len());
        for board in Board::ALL {
            let start = format!("| `{}` ", board.name());
            let row = rows.iter().find(|row| row.starts_with(&start)).unwrap();
            assert!(
                row.contains(&format!("QEMU `{}`", board.machine())),
                "{row}"
            );
            assert_eq!(row.contains("as its ROM"), board.is_rom(), "{row}");
            let transport = match board.transport() {
                Transport::Mmio => "| virtio-mmio",
                Transport::Pci => "| virtio-pci",
            };
            assert!(row.contains(transport), "{row}");
            let name = board.name();
            let (arch, short) = name.split_once('-').unwrap();
            assert_eq!(arch, board.arch().name(), "{row}");
            assert_eq!(Board::from_str(short, false), Ok(board));
            let image = board.firmware_name();
            assert!(image.starts_with(&format!("bootshare-{}.", board.arch().name())));
            assert_eq!(!image.ends_with(".elf"), board.is_rom(), "{row}");
        }
        let default = Board::of_this_machine();
        assert_eq!(default.arch().name(), std::env::consts::ARCH);
        assert!(!default.is_rom() && default.transport() == Transport::Mmio);
    }

    #[test]
    fn architectures_have_their_names_for_targets_debian_and_linux() {
        let names = Arch::ALL.map(|arch| (arch.name(), arch.debian(), arch.qemu_package()));
        let known = [
            ("x86_64", "amd64", "qemu-system-x86"),
            ("aarch64", "arm64", "qemu-system-arm"),
        ];
        assert_eq!(names, known);
        let linux = Arch::ALL.map(|arch| (arch.serial(), arch.kernel_name()));
        assert_eq!(linux, [("ttyS0", "vmlinuz"), ("ttyAMA0", "Image")]);
    }
}
