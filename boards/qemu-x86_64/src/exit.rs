//! How the machine ends, and what a panic does.

use crate::{clock::timestamp, console, pci};
use bootshare::loader::ExitStatus;
use core::{
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
};
use x86_64::{
    VirtAddr,
    instructions::{
        hlt,
        interrupts::{self, int3},
        port::Port,
        tables::lidt,
    },
    structures::DescriptorTablePointer,
};

/// The port of QEMU's `-device isa-debug-exit,iobase=0xf4,iosize=4`. Writing `v` ends QEMU with
/// the status `v << 1 | 1`, which is never 0.
pub const PORT: u16 = 0xf4;
/// Written for success; QEMU's status is 33. The offset keeps clear of QEMU's own statuses.
const SUCCESS: u32 = 0x10;
/// Written for failure; QEMU's status is 35.
pub const FAILURE: u32 = SUCCESS + 1;

/// Ends QEMU, or halts where there is no isa-debug-exit.
pub fn exit(status: ExitStatus) -> ! {
    let code = match status {
        ExitStatus::Success => SUCCESS,
        ExitStatus::Failure => FAILURE,
    };
    // SAFETY: on a PC the port is isa-debug-exit's, or the reserved end of the coprocessor's old
    // range, where writing does nothing.
    unsafe { Port::new(PORT).write(code) };
    console::write(
        b"bootshare: the machine halts; to end QEMU here, start it with \
          -device isa-debug-exit,iobase=0xf4,iosize=4\n",
    );
    halt()
}

/// Where SeaBIOS puts PM1a control of `q35` and `pc` (ACPI 6.5, section 4.8.3.2.1).
const PM1A_CONTROL: u16 = 0x604;
/// SLP_EN, with 0 for the type of S5 in QEMU's DSDT.
const SOFT_OFF: u16 = 1 << 13;
/// Sleep control of `microvm`'s generic event device (QEMU's `include/hw/acpi/
/// generic_event_device.h` and `include/hw/i386/microvm.h`): nothing with `acpi=off`.
const SLEEP_CONTROL: usize = 0xfea0_0200;
/// SLP_EN, with 5 for the type of S5.
const SLEEP_S5: u8 = 1 << 5 | 5 << 2;

/// Counts of the time-stamp counter, half a second or more, in which a machine that was told to
/// power off does so: QEMU's processors go on until its main loop comes to it.
const OFF_PATIENCE: u64 = 1 << 31;

/// Powers the machine off; ends QEMU with success where that can't be had.
pub fn power_off() -> ! {
    if pci::Ports::find().is_some() {
        // SAFETY: on these machines the port is PM1a control's, and writing it ends the machine.
        unsafe { Port::new(PM1A_CONTROL).write(SOFT_OFF) };
    } else {
        let control = core::ptr::with_exposed_provenance_mut::<u8>(SLEEP_CONTROL);
        // SAFETY: without PCI this is `microvm`, where this address, which is mapped, is the event
        // device's register or nothing.
        unsafe { control.write_volatile(SLEEP_S5) };
    }
    let start = timestamp();
    while timestamp().saturating_sub(start) < OFF_PATIENCE {
        core::hint::spin_loop();
    }
    exit(ExitStatus::Success)
}

/// Resets the machine: an exception without a handler for it, and none for that, does.
pub fn reset() -> ! {
    let none = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: no exception is handled any more, and that is what this is for.
    unsafe { lidt(&none) };
    int3();
    halt()
}

fn halt() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}

/// Prints an error line and exits; halts at once if that goes wrong itself.
pub fn fail(message: core::fmt::Arguments<'_>) -> ! {
    static FAILING: AtomicBool = AtomicBool::new(false);

    if FAILING.swap(true, Ordering::Relaxed) {
        // SAFETY: as in `exit`.
        unsafe { Port::new(PORT).write(FAILURE) };
        halt();
    }
    console::error(message);
    exit(ExitStatus::Failure)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let message = info.message();
    match info.location() {
        Some(location) => fail(format_args!(
            "the firmware has a bug: {message} ({}:{})",
            location.file(),
            location.line()
        )),
        None => fail(format_args!("the firmware has a bug: {message}")),
    }
}
