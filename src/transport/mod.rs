//! Virtio transports for device ID 26, the file system device (virtio 1.2, section 5.11).
//!
//! Floor 1, beside [`hal`](crate::hal). The transports implement `virtio-drivers`' own
//! [`Transport`], because the transports of `virtio-drivers` itself refuse this device. A transport
//! is the result of probing an address (`mmio::probe`, feature `mmio`) or a bus (`pci::scan`,
//! feature `pci`); each `Device` that is found there can be used or has an error. A platform with
//! another kind of access to its devices implements [`Transport`] itself.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod by_ref;
#[cfg(any(feature = "mmio", feature = "pci"))]
mod config;
#[cfg(any(feature = "mmio", feature = "pci"))]
mod device;
#[cfg(feature = "mmio")]
pub mod mmio;
#[cfg(feature = "pci")]
pub mod pci;

pub use by_ref::ByRef;
#[cfg(any(feature = "mmio", feature = "pci"))]
pub use device::{Address, Device, DeviceList, FsTransport, MAX_DEVICES, TransportError};
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

/// The result of [`Transport::device_type`]. `virtio-drivers` has no name for device 26; this is
/// its other file-sharing device, and nothing in this crate reads the value.
#[cfg(any(feature = "mmio", feature = "pci"))]
const DEVICE_TYPE: DeviceType = DeviceType::_9P;
