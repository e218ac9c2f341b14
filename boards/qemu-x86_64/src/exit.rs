//! How the machine ends, and what a panic does.

use crate::{
    acpi::{self, SoftOff},
    console,
    counter::timestamp,
    paging,
    tables::FIRST_MAPPED,
};
use bootshare::{boot::memory::Range, loader::ExitStatus};
use core::{
    panic::PanicInfo,
    ptr::with_exposed_provenance_mut,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
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

/// The address of the ACPI root pointer; 0 while none is known.
static RSDP: AtomicU64 = AtomicU64::new(0);

/// Powers the machine off by the ACPI tables of this root pointer from now on; 0 if there is none.
pub fn use_acpi(rsdp: u64) {
    RSDP.store(rsdp, Ordering::Relaxed);
}

/// Ends QEMU with this status. Without isa-debug-exit a success powers the machine off; a failure
/// halts it, because every other end of QEMU looks like a success.
pub fn exit(status: ExitStatus) -> ! {
    end_qemu(status);
    if status == ExitStatus::Success {
        soft_off();
    }
    give_up()
}

/// Powers the machine off; if that is not possible, ends QEMU with success.
pub fn power_off() -> ! {
    soft_off();
    end_qemu(ExitStatus::Success);
    give_up()
}

/// Ends QEMU by isa-debug-exit; returns if there is none.
fn end_qemu(status: ExitStatus) {
    // SAFETY: on a PC the port belongs to isa-debug-exit, or to the reserved end of the old
    // coprocessor's range, which no device uses.
    let is_there = unsafe { Port::<u8>::new(PORT).read() } != u8::MAX;
    let code = match status {
        ExitStatus::Success => SUCCESS,
        ExitStatus::Failure => FAILURE,
    };
    // SAFETY: as above; a write to an unused port has no effect.
    unsafe { Port::new(PORT).write(code) };
    if is_there {
        // QEMU 10 and later end a moment later.
        halt();
    }
}

/// How long to wait for a power-off to take effect, in counts of the time-stamp counter: half a second
/// or more. QEMU's processors continue until its main loop handles the request.
const OFF_PATIENCE: u64 = 1 << 31;

/// Powers the machine off as its ACPI tables describe; returns if that is not possible.
fn soft_off() {
    let rsdp = RSDP.load(Ordering::Relaxed);
    let read = |address, buffer: &mut [u8]| paging::read(address, buffer, FIRST_MAPPED);
    let off = if rsdp == 0 {
        None
    } else {
        acpi::soft_off(rsdp, &read)
    };
    match off {
        // SAFETY: the ACPI tables say that this ends the machine.
        Some(SoftOff::Port(port, value)) => unsafe { Port::new(port).write(value) },
        Some(SoftOff::Memory(address, value))
            if paging::image().leaves(FIRST_MAPPED, Range::with_size(address, 1)) =>
        {
            let register = with_exposed_provenance_mut::<u8>(address as usize);
            // SAFETY: as above; the address is mapped, and outside of the image.
            unsafe { register.write_volatile(value) }
        }
        _ => return,
    }
    let start = timestamp();
    while timestamp().saturating_sub(start) < OFF_PATIENCE {
        core::hint::spin_loop();
    }
}

fn give_up() -> ! {
    console::write(
        b"bootshare: the machine halts; to end QEMU here, start it with \
          -device isa-debug-exit,iobase=0xf4,iosize=4\n",
    );
    halt()
}

/// Resets the machine by a triple fault.
pub fn reset() -> ! {
    let none = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: no exception can be handled from here on, which is the purpose.
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

/// Prints an error line and exits; halts at once if this is called again meanwhile.
pub fn fail(message: core::fmt::Arguments<'_>) -> ! {
    static FAILING: AtomicBool = AtomicBool::new(false);

    if FAILING.swap(true, Ordering::Relaxed) {
        // SAFETY: as in `end_qemu`.
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
