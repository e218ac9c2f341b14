//! The virtio-mmio slots of `microvm` (QEMU's include/hw/i386/microvm.h and hw/i386/microvm.c).

use bootshare::transport::DeviceList;
use bootshare_qemu::slots;
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
        // SAFETY: the slot, or nothing, is at this address, which is mapped; reading an empty slot
        // has no effect. The caller promises that each slot is probed once.
        if !unsafe { slots::probe(address, SIZE, found) } {
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
