//! The architectures of payloads.

use core::fmt;

/// An instruction set, of a payload or of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// aarch64.
    Aarch64,
}

impl Architecture {
    /// Whether kernels expect a device tree as their parameter.
    #[must_use]
    pub const fn has_device_trees(self) -> bool {
        matches!(self, Self::Aarch64)
    }

    /// Whether compressed kernels contain their own decompressor, as a bzImage does.
    #[must_use]
    pub const fn kernels_unpack_themselves(self) -> bool {
        matches!(self, Self::X86_64)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "arm64",
        })
    }
}
