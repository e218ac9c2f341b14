//! File system devices that were found, on either transport.

#[cfg(feature = "mmio")]
use super::MmioTransport;
#[cfg(feature = "pci")]
use super::PciTransport;
use super::{
    DeviceFunction, DeviceStatus, DeviceType, InterruptStatus, PhysAddr, Transport, TransportError,
    VirtioError,
};
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Most file system devices of one machine; further ones are not used.
pub const MAX_DEVICES: usize = 8;

/// File system devices in the order in which they were found.
pub type DeviceList<T = FsTransport> = heapless::Vec<Device<T>, MAX_DEVICES>;

/// A file system device that was found, and its transport if it can be used.
#[derive(Debug)]
pub struct Device<T = FsTransport> {
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

/// Either of the transports, for platforms that have both.
#[derive(Debug)]
pub enum FsTransport {
    /// Over virtio-mmio.
    #[cfg(feature = "mmio")]
    Mmio(MmioTransport<'static>),
    /// Over virtio-pci.
    #[cfg(feature = "pci")]
    Pci(PciTransport),
}

/// Calls the method of the transport in use.
macro_rules! either {
    ($self:ident, $transport:ident => $call:expr) => {
        match $self {
            #[cfg(feature = "mmio")]
            Self::Mmio($transport) => $call,
            #[cfg(feature = "pci")]
            Self::Pci($transport) => $call,
        }
    };
}

impl Transport for FsTransport {
    fn device_type(&self) -> DeviceType {
        either!(self, t => t.device_type())
    }

    fn read_device_features(&mut self) -> u64 {
        either!(self, t => t.read_device_features())
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        either!(self, t => t.write_driver_features(driver_features));
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        either!(self, t => t.max_queue_size(queue))
    }

    fn notify(&mut self, queue: u16) {
        either!(self, t => t.notify(queue));
    }

    fn get_status(&self) -> DeviceStatus {
        either!(self, t => t.get_status())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        either!(self, t => t.set_status(status));
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // A legacy register, which neither transport has.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        either!(self, t => t.queue_set(queue, size, descriptors, driver_area, device_area));
    }

    fn queue_unset(&mut self, queue: u16) {
        either!(self, t => t.queue_unset(queue));
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        either!(self, t => t.queue_used(queue))
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        either!(self, t => t.ack_interrupt())
    }

    fn read_config_generation(&self) -> u32 {
        either!(self, t => t.read_config_generation())
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, VirtioError> {
        either!(self, t => t.read_config_space(offset))
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), VirtioError> {
        either!(self, t => t.write_config_space(offset, value))
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
