//! How the machine ends, and what a panic does.

use crate::console;
use bootshare::loader::ExitStatus;
use core::{
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
};
use x86_64::instructions::{hlt, interrupts, port::Port};

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
