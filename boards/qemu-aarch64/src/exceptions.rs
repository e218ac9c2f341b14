//! Exceptions and panics: reported once, then the machine ends.

use crate::{console, cpu, exit, machine};
use bootshare::{boot::memory::Range, loader::ExitStatus};
use core::sync::atomic::{AtomicBool, Ordering};

/// Whether a fatal error is being reported. Further errors during the report are not reported.
static REPORTING: AtomicBool = AtomicBool::new(false);

/// Reports an exception. The vectors in `start` call this for all exceptions, on a separate stack.
pub extern "C" fn report(vector: u64) -> ! {
    // Read before anything else can fault.
    let syndrome = cpu::syndrome();
    if !exit::has_begun() && !REPORTING.swap(true, Ordering::Relaxed) {
        let kind = match vector & 0b11 {
            0 => "synchronous",
            1 => "IRQ",
            2 => "FIQ",
            _ => "SError",
        };
        let cpu::Syndrome { esr, elr, far } = syndrome;
        let what = if machine::stack_guard().overlaps(&Range::with_size(far, 1)) {
            "stack overflow"
        } else {
            "exception"
        };
        console::error(format_args!(
            "{what} ({kind}) at EL{}: ESR {esr:#x}, ELR {elr:#x}, FAR {far:#x}; \
             this is a defect of the firmware, please report it",
            cpu::exception_level(),
        ));
    }
    exit::exit(ExitStatus::Failure)
}

/// Prints the message as an error line, and ends the machine.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if !REPORTING.swap(true, Ordering::Relaxed) {
        match info.location() {
            Some(place) => console::error(format_args!("panic at {place}: {}", info.message())),
            None => console::error(format_args!("panic: {}", info.message())),
        }
    }
    exit::exit(ExitStatus::Failure)
}
