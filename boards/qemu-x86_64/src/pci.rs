//! PCI configuration space: through configuration mechanism 1 (PCI 3.0, 3.2.2.3.2) on `q35` and
//! `pc`, and in memory on `microvm` with `pcie=on`.

use bootshare::{
    boot::memory::Range,
    transport::{
        DeviceFunction,
        pci::{ConfigurationAccess, Ecam},
    },
};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use x86_64::instructions::port::Port;

/// CONFIG_ADDRESS.
const ADDRESS: u16 = 0xcf8;
/// CONFIG_DATA.
const DATA: u16 = 0xcfc;
/// Class code of a host bridge, with its subclass.
const HOST_BRIDGE: u32 = 0x0600;

/// The addresses of `microvm`'s configuration space and of its window for BARs (QEMU's
/// include/hw/i386/microvm.h).
const EXPRESS: Range = Range::with_size(0xe000_0000, 256 << 20);
pub const EXPRESS_WINDOW: core::ops::Range<u64> = 0xc000_0000..0xe000_0000;

/// Whether a host bridge answers at 00:00.0. If nothing is there, the class code reads as all ones
/// or zeros, which is no host bridge's.
fn has_host_bridge(configuration: &impl ConfigurationAccess) -> bool {
    let host_bridge = DeviceFunction {
        bus: 0,
        device: 0,
        function: 0,
    };
    configuration.read_word(host_bridge, 0x08) >> 16 == HOST_BRIDGE
}

/// Access to configuration space, through ports or in memory.
pub enum Configuration {
    Ports(Ports),
    Express(Ecam),
}

impl Configuration {
    /// The configuration space of `microvm`, if there is one.
    ///
    /// # Safety
    ///
    /// Must be called once, on `microvm`, with the first 4 GiB mapped.
    pub unsafe fn find_express() -> Option<Self> {
        let base = NonNull::new(with_exposed_provenance_mut(EXPRESS.start as usize))?;
        // SAFETY: on `microvm` only this, or nothing, is at that address; it is mapped for ever,
        // and nothing else uses it.
        let express = unsafe { Ecam::new(base, EXPRESS.size() as usize) };
        has_host_bridge(&express).then_some(Self::Express(express))
    }
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        match self {
            Self::Ports(ports) => ports.read_word(function, offset),
            Self::Express(express) => express.read_word(function, offset),
        }
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        match self {
            Self::Ports(ports) => ports.write_word(function, offset, data),
            Self::Express(express) => express.write_word(function, offset, data),
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        match self {
            // SAFETY: the caller makes the same promise.
            Self::Ports(ports) => Self::Ports(unsafe { ports.unsafe_clone() }),
            // SAFETY: as above.
            Self::Express(express) => Self::Express(unsafe { express.unsafe_clone() }),
        }
    }
}

/// Access to configuration space.
pub struct Ports(());

impl Ports {
    /// Access, if a host bridge answers at 00:00.0.
    pub fn find() -> Option<Self> {
        let ports = Self(());
        has_host_bridge(&ports).then_some(ports)
    }

    /// Selects a register, for an access through the data port.
    fn select(function: DeviceFunction, offset: u8) -> Port<u32> {
        let address = 1 << 31
            | u32::from(function.bus) << 16
            | u32::from(function.device & 0x1f) << 11
            | u32::from(function.function & 7) << 8
            | u32::from(offset & !3);
        // SAFETY: this register only selects what the data port accesses. Nothing happens
        // between the two accesses: one CPU runs, without interrupts.
        unsafe { Port::new(ADDRESS).write(address) };
        Port::new(DATA)
    }
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, device_function: DeviceFunction, register_offset: u8) -> u32 {
        // SAFETY: reading a register of the PCI header or of a capability has no side effect.
        unsafe { Self::select(device_function, register_offset).read() }
    }

    fn write_word(&mut self, device_function: DeviceFunction, register_offset: u8, data: u32) {
        // SAFETY: the caller is the only user of the device; `pci::set_up` and `pci::scan` check
        // its addresses in memory.
        unsafe { Self::select(device_function, register_offset).write(data) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(())
    }
}
