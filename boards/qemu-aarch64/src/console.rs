//! The PL011 UART, used without interrupts. Every wait for it has a limit.

use crate::{counter, mapping};
use bootshare::boot::memory::Range;
use core::{
    fmt,
    ptr::{NonNull, with_exposed_provenance_mut},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};
use safe_mmio::{
    UniqueMmioPointer, field, field_shared,
    fields::{ReadPure, ReadPureWrite, ReadWrite},
};

/// The address of the PL011 in QEMU's sources of `virt`, for errors before the device tree is read.
const DEFAULT_BASE: usize = 0x0900_0000;

/// The registers that are used (PL011 technical reference manual, section 3.2).
#[repr(C)]
struct Registers {
    data: ReadWrite<u32>,
    reserved_004: [u32; 5],
    flags: ReadPure<u32>,
    reserved_01c: [u32; 5],
    control: ReadPureWrite<u32>,
}

const _: () = assert!(core::mem::offset_of!(Registers, flags) == 0x18);
const _: () = assert!(core::mem::offset_of!(Registers, control) == 0x30);

/// Flag: not all bytes have left the UART.
const BUSY: u32 = 1 << 3;
/// Flag: no byte was received.
const RECEIVE_EMPTY: u32 = 1 << 4;
/// Flag: the transmit FIFO is full.
const TRANSMIT_FULL: u32 = 1 << 5;
/// Control: UART, transmitter and receiver on.
const ENABLE: u32 = 1 << 0 | 1 << 8 | 1 << 9;
/// The longest wait for room. A byte takes 0.1 ms at 115,200 baud.
const PATIENCE: Duration = Duration::from_millis(100);

/// Physical address of the registers: device memory of the first GiB, always.
static BASE: AtomicUsize = AtomicUsize::new(DEFAULT_BASE);
/// The UART did not take the last byte in time. Until it takes one, writes do not wait for it.
static STALLED: AtomicBool = AtomicBool::new(false);

/// From now on uses the PL011 with these registers. Has no effect if they are not in device memory.
pub fn use_registers(registers: Range) {
    if mapping::is_low_device(registers)
        && registers.size() >= size_of::<Registers>() as u64
        && registers.start.is_multiple_of(4)
    {
        BASE.store(registers.start as usize, Ordering::Relaxed);
    }
}

/// Calls `act` with the UART, after enabling it if necessary.
fn with_uart<T>(act: impl FnOnce(UniqueMmioPointer<'_, Registers>) -> T) -> Option<T> {
    let base = NonNull::new(with_exposed_provenance_mut::<Registers>(
        BASE.load(Ordering::Relaxed),
    ))?;
    // SAFETY: `BASE` is the aligned address of a PL011's registers in the first GiB, which is
    // mapped as device memory for ever. The pointer is gone when this function returns. The only
    // code that can run in between, on the one processor that is on, is the exception handler,
    // and that never returns here.
    let mut uart = unsafe { UniqueMmioPointer::new(base) };

    let control = field_shared!(uart, control).read();
    if control & ENABLE != ENABLE {
        field!(uart, control).write(control | ENABLE);
    }
    Some(act(uart))
}

/// The next received byte, if there is one.
pub fn read() -> Option<u8> {
    with_uart(|mut uart| {
        let is_empty = field_shared!(uart, flags).read() & RECEIVE_EMPTY != 0;
        // The bits above the byte are error flags.
        (!is_empty).then(|| field!(uart, data).read() as u8)
    })?
}

/// Writes bytes, each `\n` as `\r\n`. When this returns, complete lines have left the UART: QEMU's end,
/// or another driver's reset of the UART, would lose the rest.
pub fn write(text: &[u8]) {
    with_uart(|mut uart| write_to(&mut uart, text));
}

fn write_to(uart: &mut UniqueMmioPointer<'_, Registers>, text: &[u8]) {
    for byte in text {
        if *byte == b'\n' {
            send(uart, b'\r');
        }
        send(uart, *byte);
    }
    if text.ends_with(b"\n") {
        wait_while(uart, BUSY);
    }
}

fn send(uart: &mut UniqueMmioPointer<'_, Registers>, byte: u8) {
    if wait_while(uart, TRANSMIT_FULL) {
        field!(*uart, data).write(byte.into());
    }
}

/// Waits while the UART has this flag; `false` if it takes too long.
fn wait_while(uart: &UniqueMmioPointer<'_, Registers>, flag: u32) -> bool {
    let is_set = || field_shared!(uart, flags).read() & flag != 0;
    if is_set() {
        let start = counter::now();
        while is_set() {
            if STALLED.load(Ordering::Relaxed) || counter::now().saturating_sub(start) > PATIENCE {
                STALLED.store(true, Ordering::Relaxed);
                return false;
            }
            core::hint::spin_loop();
        }
    }
    STALLED.store(false, Ordering::Relaxed);
    true
}

/// The console for `write!`.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

/// Prints an error line. Does not need the logger.
pub fn error(message: fmt::Arguments<'_>) {
    // Writing to the console never fails.
    _ = fmt::Write::write_fmt(&mut Console, format_args!("bootshare: error: {message}\n"));
}
