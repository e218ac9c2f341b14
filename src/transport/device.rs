//! File system devices that were found, on either transport.

use super::{DeviceFunction, TransportError};
use core::fmt;

/// Most file system devices of one machine; further ones are not used.
pub const MAX_DEVICES: usize = 8;

/// A file system device that was found, and its transport if it can be used.
#[derive(Debug)]
pub struct Device<T> {
    /// The place of the device.
    pub address: Address,
    /// The transport, or why the device cannot be used.
    pub transport: Result<T, TransportError>,
}

/// The place of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Physical address of a virtio-mmio register block.
    Mmio(u64),
    /// A PCI function.
    Pci(DeviceFunction),
}

impl Address {
    /// `mmio` or `pci`, as in `virtio-mmio`.
    #[must_use]
    pub fn transport_name(&self) -> &'static str {
        match self {
            Self::Mmio(_) => "mmio",
            Self::Pci(_) => "pci",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mmio(address) => write!(f, "virtio-mmio at {address:#x}"),
            Self::Pci(function) => write!(f, "virtio-pci at {function}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_device_is_named_with_its_transport() {
        let function = DeviceFunction {
            bus: 1,
            device: 2,
            function: 3,
        };
        let (mmio, pci) = (Address::Mmio(0xa00), Address::Pci(function));
        let names = [mmio, pci].map(|address| address.transport_name());
        assert_eq!(names, ["mmio", "pci"]);
        assert_eq!(
            std::format!("{mmio}, {pci}"),
            "virtio-mmio at 0xa00, virtio-pci at 01:02.3"
        );
    }
}
