//! The set-up of the chipset of `q35` by a firmware: the MCH and the ICH9 (Intel 3 Series Express
//! Chipset Family, 5.1.1; Intel I/O Controller Hub 9, 13.1).

use crate::{cpuid, mtrr, pci::Ports};
use bootshare::{
    boot::memory::Range,
    transport::{DeviceFunction, pci::ConfigurationAccess},
};
use x86_64::instructions::port::Port;

/// Vendor and device ID of the MCH.
const MCH: u32 = 0x29c0_8086;
const HOST_BRIDGE: DeviceFunction = function(0, 0);
const LPC_BRIDGE: DeviceFunction = function(0x1f, 0);

/// PCIEXBAR, and its enable bit. The size field stays 0, which means 256 MiB.
const PCIEXBAR: u8 = 0x60;
const PCIEXBAR_ENABLE: u32 = 1;
/// The address of memory-mapped configuration space; QEMU has no RAM there.
const CONFIGURATION: Range = Range::with_size(0xb000_0000, 256 << 20);

/// The start of device memory, which ends at 4 GiB.
const DEVICES: Range = Range {
    start: CONFIGURATION.end,
    end: 1 << 32,
};

/// PMBASE, the address of ACPI's registers in port space; bit 0 marks it as ports. QEMU's tables
/// contain the value that is written here.
const PMBASE: u8 = 0x40;
const PM_PORTS: u32 = 0x600;
/// ACPI_CNTL; bit 7 enables those registers.
const ACPI_CONTROL: u8 = 0x44;
const ACPI_ENABLE: u32 = 1 << 7;

/// The routing of PIRQA to D and E to H, one byte each: alternately to the inputs 10 and 11 of the
/// 8259s. It matters only to a kernel that does not use the I/O APIC.
const PIRQ: [u8; 2] = [0x60, 0x68];
const PIRQ_ROUTES: u32 = 0x0b0b_0a0a;
/// ELCR2 makes inputs 8 to 15 level-triggered: 10 and 11.
const ELCR2: u16 = 0x4d1;
const LEVEL_TRIGGERED: u8 = 1 << 2 | 1 << 3;

const fn function(device: u8, function: u8) -> DeviceFunction {
    DeviceFunction {
        bus: 0,
        device,
        function,
    }
}

/// Sets the chipset up. Returns the address of configuration space, which nothing else may use.
///
/// # Errors
///
/// A message for the console, if it is another chipset.
pub fn set_up(pci: &mut Ports) -> Result<Range, &'static str> {
    if pci.read_word(HOST_BRIDGE, 0) != MCH {
        return Err(
            "this ROM knows QEMU's q35 and microvm and no other chipset; use one of these, or \
             start the ELF image with -kernel",
        );
    }
    pci.write_word(HOST_BRIDGE, PCIEXBAR + 4, 0);
    let bar = CONFIGURATION.start as u32 | PCIEXBAR_ENABLE;
    pci.write_word(HOST_BRIDGE, PCIEXBAR, bar);

    pci.write_word(LPC_BRIDGE, PMBASE, PM_PORTS | 1);
    let control = pci.read_word(LPC_BRIDGE, ACPI_CONTROL);
    pci.write_word(LPC_BRIDGE, ACPI_CONTROL, control | ACPI_ENABLE);

    for register in PIRQ {
        pci.write_word(LPC_BRIDGE, register, PIRQ_ROUTES);
    }
    // SAFETY: interrupts are off, and the firmware's devices use none.
    unsafe { Port::new(ELCR2).write(LEVEL_TRIGGERED) };

    let physical_end = cpuid::abilities().physical_end;
    mtrr::set_up(&[CONFIGURATION, DEVICES], physical_end);
    Ok(CONFIGURATION)
}
