//! PCI configuration space by configuration mechanism 1 (PCI 3.0, 3.2.2.3.2): what `q35` and `pc`
//! have, and `microvm` lacks.

use bootshare::transport::{DeviceFunction, pci::ConfigurationAccess};
use x86_64::instructions::port::Port;

/// CONFIG_ADDRESS.
const ADDRESS: u16 = 0xcf8;
/// CONFIG_DATA.
const DATA: u16 = 0xcfc;
/// Class code of a host bridge, with its subclass.
const HOST_BRIDGE: u32 = 0x0600;

/// Access to configuration space.
pub struct Ports(());

impl Ports {
    /// Access, if a host bridge answers at 00:00.0.
    pub fn find() -> Option<Self> {
        let ports = Self(());
        let host_bridge = DeviceFunction {
            bus: 0,
            device: 0,
            function: 0,
        };
        // Nothing there reads as all ones, which is no class code.
        (ports.read_word(host_bridge, 0x08) >> 16 == HOST_BRIDGE).then_some(ports)
    }

    /// Selects a register; its data port follows.
    fn select(function: DeviceFunction, offset: u8) -> Port<u32> {
        let address = 1 << 31
            | u32::from(function.bus) << 16
            | u32::from(function.device & 0x1f) << 11
            | u32::from(function.function & 7) << 8
            | u32::from(offset & !3);
        // SAFETY: this register only says what the data port means. Nothing comes between the two
        // accesses: one CPU runs, without interrupts.
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
        // SAFETY: the caller has the device for itself; where it may answer in memory is what
        // `pci::set_up` was given, or checked by what `pci::scan` was.
        unsafe { Self::select(device_function, register_offset).write(data) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(())
    }
}
