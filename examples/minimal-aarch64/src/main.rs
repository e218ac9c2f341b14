//! A minimal firmware that reads a file from its host: it prints `/greeting.txt` of the first share of QEMU's
//! aarch64 `virt`, and powers off.

#![no_std]
#![no_main]

use aarch64_rt::{
    ExceptionHandlers, InitialPagetable, entry, exception_handlers, initial_pagetable,
};
use bootshare::{Error, Options, Share, hal::Clock, transport::mmio};
use core::{arch::asm, fmt::Write, panic::PanicInfo, ptr::NonNull, time::Duration};
use smccc::{Hvc, psci::system_off};

/// PL011 data register of the first UART.
const UART: *mut u8 = 0x0900_0000 as *mut u8;
/// Virtio-mmio slots: 32, of 0x200 bytes each.
const FIRST_SLOT: usize = 0x0a00_0000;
const SLOT_SIZE: usize = 0x200;
const SLOTS: usize = 32;

// Descriptors of 1 GiB blocks: valid, accessed, and either device memory that is not executable
// (memory attribute 0) or normal memory (attribute 1, inner shareable).
const DEVICE: usize = 1 | 1 << 10 | 1 << 54;
const NORMAL: usize = 1 | 1 << 10 | 1 << 2 | 0b11 << 8;

initial_pagetable!({
    let mut blocks = [0; 512];
    blocks[0] = DEVICE;
    blocks[1] = NORMAL | 0x4000_0000;
    InitialPagetable(blocks)
});

/// The architected timer.
struct Timer;

impl Clock for Timer {
    fn now(&self) -> Duration {
        let (count, frequency): (u64, u64);
        // SAFETY: both registers can be read at EL1, and reading has no effect.
        unsafe {
            asm!("mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", out(reg) count, out(reg) frequency);
        }
        Duration::from_nanos((u128::from(count) * 1_000_000_000 / u128::from(frequency)) as u64)
    }
}

/// The console.
struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the UART exists, is mapped as device memory, and nothing else uses it. QEMU's UART accepts
            // bytes at any speed.
            unsafe { UART.write_volatile(byte) };
        }
        Ok(())
    }
}

fn print_greeting() -> Result<(), Error> {
    for slot in 0..SLOTS {
        let base = NonNull::new((FIRST_SLOT + slot * SLOT_SIZE) as *mut u8).expect("not 0");
        // SAFETY: the slot is mapped as device memory, and each slot is probed once.
        let Some(Ok(transport)) = (unsafe { mmio::probe(base, SLOT_SIZE) }) else {
            continue;
        };
        let share = Share::mount(transport, Timer, Options::default())?;
        let mut text = [0; 4096];
        let size = share.open("/greeting.txt")?.read_at(0, &mut text)?;
        let text = core::str::from_utf8(&text[..size]).unwrap_or("(not UTF-8)");
        _ = write!(Console, "{}: {text}", share.tag());
        return share.unmount();
    }
    panic!("there is no share")
}

entry!(main, 64); // Pages of stack: enough for a debug build.
fn main(_: u64, _: u64, _: u64, _: u64) -> ! {
    match print_greeting() {
        // `system_off` returns only if it fails.
        Ok(()) => panic!("{:?}", system_off::<Hvc>()),
        Err(error) => panic!("{error}"),
    }
}

struct Exceptions;
impl ExceptionHandlers for Exceptions {}
exception_handlers!(Exceptions);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    _ = writeln!(Console, "{info}");
    // Powering off would look like a success.
    loop {
        core::hint::spin_loop();
    }
}
