//! The pvpanic device, by which a failure reaches QEMU where there is no semihosting: under KVM.
//!
//! QEMU ends with status 1 then if it was told `-action panic=exit-failure`, and with status 0 if it
//! was not. A guest can't see which, so the device counts only with `events=1`, which nobody sets
//! without having read of it here.

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
/// Bit 0 of the one register (QEMU, docs/specs/pvpanic.rst): reading tells which events are known,
/// writing tells of one.
const PANICKED: u8 = 1 << 0;
/// The address in it, besides the bits that tell of what kind it is.
const BAR_ADDRESS: u64 = !0xf;

static BUS: Once<PciHost> = Once::new();

/// Looks for the device there, when it is needed.
///
/// # Safety
///
/// Both of the bridge's ranges must be what the device tree says, and mapped as device memory for
/// ever.
pub unsafe fn use_bus(host: PciHost) {
    BUS.call_once(|| host);
}

/// Tells QEMU of a failure; whether there was a device to tell it.
///
/// The machine ends with this: whoever used the bus before never goes on.
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
    // The register has its place, unless the devices were not looked for before this failure.
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
