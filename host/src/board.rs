//! The boards Bootshare runs on, as facts: architecture, machine type, transport.

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

    /// File name of the firmware image, as `make firmware` leaves it in `target/firmware`.
    pub const fn firmware_name(self) -> &'static str {
        match self {
            Self::X86_64 => "bootshare-x86_64.elf",
            Self::Aarch64 => "bootshare-aarch64.elf",
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
    #[value(name = "x86_64-microvm")]
    X86_64Microvm,
    /// `q35`, PCI Express.
    #[value(name = "x86_64-q35")]
    X86_64Q35,
    /// `pc` (i440FX), PCI.
    #[value(name = "x86_64-pc")]
    X86_64Pc,
    /// `virt`, virtio-mmio.
    #[value(name = "aarch64-virt")]
    Aarch64Virt,
    /// `virt`, PCI Express.
    #[value(name = "aarch64-virt-pci")]
    Aarch64VirtPci,
}

impl Board {
    /// Every board.
    pub const ALL: [Self; 5] = [
        Self::X86_64Microvm,
        Self::X86_64Q35,
        Self::X86_64Pc,
        Self::Aarch64Virt,
        Self::Aarch64VirtPci,
    ];

    /// The board's architecture.
    pub const fn arch(self) -> Arch {
        match self {
            Self::X86_64Microvm | Self::X86_64Q35 | Self::X86_64Pc => Arch::X86_64,
            Self::Aarch64Virt | Self::Aarch64VirtPci => Arch::Aarch64,
        }
    }

    /// QEMU's machine type.
    pub const fn machine(self) -> &'static str {
        match self {
            Self::X86_64Microvm => "microvm",
            Self::X86_64Q35 => "q35",
            Self::X86_64Pc => "pc",
            Self::Aarch64Virt | Self::Aarch64VirtPci => "virt",
        }
    }

    /// How the share's device is attached.
    pub const fn transport(self) -> Transport {
        match self {
            Self::X86_64Microvm | Self::Aarch64Virt => Transport::Mmio,
            Self::X86_64Q35 | Self::X86_64Pc | Self::Aarch64VirtPci => Transport::Pci,
        }
    }
}
