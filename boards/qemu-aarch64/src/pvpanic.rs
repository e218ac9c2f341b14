//! The pvpanic device, which reports a failure to QEMU if there is no semihosting: under KVM.
//!
//! QEMU then ends with status 1 if it was started with `-action panic=exit-failure`, and with
//! status 0 otherwise. A guest cannot see which, so the device is used only with `events=1`, which
//! users set because this firmware's documentation asks for it.

use crate::tree::PciHost;
use bootshare::{
    boot::memory::Range,
    transport::{
        DeviceFunction,
        pci::{ConfigurationAccess, Ecam},
    },
};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use safe_mmio::{UniqueMmioPointer, fields::ReadPureWrite};
use spin::Once;

/// Vendor and device ID (QEMU, docs/specs/pci-ids.rst).
const DEVICE: u32 = 0x0011_1b36;
/// Offset of the command register (PCI 3.0, section 6.2.2), and its bit for memory space.
const COMMAND: u8 = 0x04;
const MEMORY_SPACE: u32 = 1 << 1;
/// Offset of the first base address register.
const BAR_0: u8 = 0x10;
/// Bit 0 of the only register (QEMU, docs/specs/pvpanic.rst): a read returns the supported events,
/// a write reports one.
const PANICKED: u8 = 1 << 0;
/// The address in it, without the bits for its type.
const BAR_ADDRESS: u64 = !0xf;

static BUS: Once<PciHost> = Once::new();

/// Searches for the device there when it is needed.
///
/// # Safety
///
/// Both of the bridge's ranges must be what the device tree says, and mapped as device memory for
/// ever.
pub unsafe fn use_bus(host: PciHost) {
    BUS.call_once(|| host);
}

/// Reports a failure to QEMU. Returns whether there is such a device.
///
/// The machine ends with this, so any earlier user of the bus does not continue.
pub fn report() -> bool {
    let Some(PciHost { ecam, window }) = BUS.get() else {
        return false;
    };
    // SAFETY: `use_bus` was promised configuration space that is mapped for ever; nothing else uses
    // it any more.
    let mut bus = unsafe { Ecam::new(pointer(ecam.start), ecam.size() as usize) };
    let functions = (0..32).map(|device| DeviceFunction {
        bus: 0,
        device,
        function: 0,
    });
    let mut found = functions.filter(|function| bus.read_word(*function, 0) == DEVICE);
    let Some(function) = found.next() else {
        return false;
    };
    drop(found);
    // The register has an address, unless the failure came before the search for devices.
    let address = match u64::from(bus.read_word(function, BAR_0)) & BAR_ADDRESS {
        0 => window.start,
        assigned => assigned,
    };
    if !window.contains(&Range::with_size(address, 1)) {
        return false;
    }
    bus.write_word(function, BAR_0, address as u32);
    bus.write_word(function, COMMAND, MEMORY_SPACE);
    // SAFETY: the register is there now, in the window that `use_bus` was promised.
    let mut register =
        unsafe { UniqueMmioPointer::<ReadPureWrite<u8>>::new(pointer(address).cast()) };
    let is_ours = register.read() == PANICKED;
    if is_ours {
        register.write(PANICKED);
    }
    is_ours
}

fn pointer(address: u64) -> NonNull<u8> {
    NonNull::new(with_exposed_provenance_mut(address as usize)).unwrap_or(NonNull::dangling())
}
