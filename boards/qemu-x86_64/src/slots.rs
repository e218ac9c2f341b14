//! The virtio-mmio slots of `microvm` (QEMU's include/hw/i386/microvm.h and hw/i386/microvm.c).

use bootshare::transport::{Address, Device, DeviceList, FsTransport, mmio};
use core::{
    fmt::{self, Write},
    ptr,
};

/// How many there are with ACPI, and without it. The first one is the same.
const COUNT: u64 = 24;
const COUNT_WITHOUT_ACPI: u64 = 8;
const FIRST: u64 = 0xfeb0_0000;
const SIZE: usize = 0x200;
/// The first slot's interrupt without ACPI.
const FIRST_INTERRUPT: u64 = 5;

/// Finds the devices in the slots, from the last slot to the first: QEMU fills them in this order,
/// so that the devices come in the order of its command line.
///
/// # Safety
///
/// To be called once, on `microvm`, with the first 4 GiB mapped.
pub unsafe fn probe(found: &mut DeviceList) {
    for slot in (0..COUNT).rev() {
        let address = FIRST + slot * SIZE as u64;
        let Some(base) = ptr::NonNull::new(ptr::with_exposed_provenance_mut(address as usize))
        else {
            continue;
        };
        // SAFETY: the slot, or nothing, is at this address, which is mapped; reading an empty slot
        // has no effect. The caller promises that each slot is probed once.
        let probed = unsafe { mmio::probe(base, SIZE) };
        let Some(transport) = probed else { continue };
        let device = Device {
            address: Address::Mmio(address),
            transport: transport.map(FsTransport::Mmio),
        };
        if found.push(device).is_err() {
            log::warn!("too many file system devices: the one at {address:#x} is not used");
            return;
        }
    }
}

/// Appends the addresses of the devices to the command line, as QEMU does for a kernel that it
/// starts on `microvm` without ACPI; [`words`](crate::words) passes them on to the kernel.
///
/// # Safety
///
/// To be called on `microvm`, with the first 4 GiB mapped.
pub unsafe fn name(line: &mut impl Write) -> fmt::Result {
    /// "virt" in little endian, at the start of each slot (virtio 1.2, section 4.2.2).
    const MAGIC: u32 = 0x7472_6976;
    /// The device ID, which is 0 in an empty slot.
    const DEVICE_ID: u64 = 8;

    for slot in 0..COUNT_WITHOUT_ACPI {
        let address = FIRST + slot * SIZE as u64;
        let read = |offset: u64| {
            let register = ptr::with_exposed_provenance::<u32>((address + offset) as usize);
            // SAFETY: the first 4 GiB are mapped, and reading these registers has no effect.
            unsafe { register.read_volatile() }
        };
        if read(0) == MAGIC && read(DEVICE_ID) != 0 {
            let interrupt = FIRST_INTERRUPT + slot;
            write!(line, " virtio_mmio.device={SIZE}@{address:#x}:{interrupt}")?;
        }
    }
    Ok(())
}
