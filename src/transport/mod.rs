//! Virtio transports for device ID 26, the file system device (virtio 1.2, section 5.11).
//!
//! Floor 1, beside [`hal`](crate::hal). The transports implement `virtio-drivers`' own
//! [`Transport`]; the transports of `virtio-drivers` itself refuse this device. A transport is made by
//! probing an address (`mmio::probe`, feature `mmio`) or scanning a bus (`pci::scan`, feature `pci`);
//! each device found is a `Device`, usable or not. A platform that reaches its devices differently
//! implements [`Transport`] itself.

mod by_ref;
#[cfg(any(feature = "mmio", feature = "pci"))]
mod config;
#[cfg(any(feature = "mmio", feature = "pci"))]
mod device;
#[cfg(any(feature = "mmio", feature = "pci"))]
mod either;
#[cfg(any(feature = "mmio", feature = "pci"))]
mod error;
#[cfg(feature = "mmio")]
pub mod mmio;
#[cfg(feature = "pci")]
pub mod pci;

pub use by_ref::ByRef;
#[cfg(any(feature = "mmio", feature = "pci"))]
pub use device::{Address, Device, MAX_DEVICES};
#[cfg(any(feature = "mmio", feature = "pci"))]
pub use either::FsTransport;
#[cfg(any(feature = "mmio", feature = "pci"))]
pub use error::TransportError;
#[cfg(feature = "mmio")]
pub use mmio::MmioTransport;
#[cfg(feature = "pci")]
pub use pci::PciTransport;
pub use virtio_drivers::{
    Error as VirtioError, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport, pci::bus::DeviceFunction},
};

/// Virtio device ID of the file system device (virtio 1.2, section 5.11.1).
pub const FILE_SYSTEM_DEVICE_ID: u16 = 26;

/// The result of [`Transport::device_type`]. `virtio-drivers` has no name for device 26, so this is its
/// other file-sharing device; nothing in this crate uses the value.
#[cfg(any(feature = "mmio", feature = "pci"))]
const DEVICE_TYPE: DeviceType = DeviceType::_9P;

/// File system devices in the order in which they were found.
#[cfg(any(feature = "mmio", feature = "pci"))]
pub type DeviceList<T = FsTransport> = heapless::Vec<Device<T>, MAX_DEVICES>;
