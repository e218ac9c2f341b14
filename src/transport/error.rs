//! Why a device can't be used.

use core::fmt;

/// Why a file system device that was found can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportError {
    /// A virtio-mmio device with the legacy register layout (version 1), which virtio-fs never had.
    Legacy,
    /// A virtio-mmio device of a version that is neither 1 nor 2.
    Version(u32),
    /// The register block is too small for the registers.
    TooSmall,
    /// A PCI capability that a modern device must have is missing or malformed (virtio 1.2,
    /// section 4.1.4).
    Capability(&'static str),
    /// A BAR that a capability names can't be used: not a memory BAR, too small, or not placed
    /// where the platform accepts device memory.
    Bar {
        /// Number of the base address register, 0 to 5 unless the device gives an invalid number.
        bar: u8,
        /// Its address; 0 if it has none.
        address: u64,
    },
    /// Two PCI capabilities name the same registers.
    Overlap,
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Legacy => f.write_str(
                "it is a legacy virtio-mmio device; start QEMU with \
                 -global virtio-mmio.force-legacy=false",
            ),
            Self::Version(version) => {
                write!(f, "virtio-mmio version {version} is unknown, 2 is needed")
            }
            Self::TooSmall => f.write_str("its register block is too small"),
            Self::Capability(name) => write!(
                f,
                "its PCI capability for the {name} is missing or malformed; \
                 a modern virtio device is needed"
            ),
            Self::Bar { bar, address: 0 } => write!(
                f,
                "its BAR {bar} has no address in memory, or is not there; let the platform's \
                 firmware place it, and use fewer PCI devices if there is no room"
            ),
            Self::Bar { bar, address } => write!(
                f,
                "its BAR {bar} at {address:#x} is not usable device memory; \
                 let the platform's firmware place it below 4 GiB"
            ),
            Self::Overlap => f.write_str("its PCI capabilities name the same registers twice"),
        }
    }
}

impl core::error::Error for TransportError {}
