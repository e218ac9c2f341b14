//! The console: COM1, a 16550.

use crate::clock::timestamp;
use core::fmt::{self, Write};
use spin::{Mutex, MutexGuard};
use uart_16550::{BaudRate, Config, Uart16550, backend::PioBackend};

/// COM1's first port, on every PC.
const PORT: u16 = 0x3f8;

const CONFIG: Config = Config {
    baud_rate: BaudRate::Baud115200,
    ..Config::DEFAULT
};

/// How long the UART may take no byte, in counts of the time-stamp counter: one to two seconds,
/// enough for a person's terminal that stopped for a moment.
const PATIENCE: u64 = 1 << 32;

/// The UART, if there is one.
static CONSOLE: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);

/// Sets the UART up. Without one, [`write`] does nothing.
pub fn init() {
    // SAFETY: the eight ports are those of COM1 or of nothing, and only this module uses them.
    let uart = unsafe { Uart16550::new_port(PORT) };
    let uart = uart.ok().and_then(|mut uart| {
        uart.init(CONFIG).ok()?;
        Some(uart)
    });
    *lock() = uart;
}

/// The UART. Nothing else runs on this machine: if it is locked, an exception or a panic hit the
/// code that held the lock, and that code never goes on.
fn lock() -> MutexGuard<'static, Option<Uart16550<PioBackend>>> {
    if CONSOLE.is_locked() {
        // SAFETY: whoever held the lock never runs again, as above.
        unsafe { CONSOLE.force_unlock() };
    }
    CONSOLE.lock()
}

/// Writes `text`, with `\n` as `\r\n`. What the UART does not take in time is lost.
pub fn write(text: &[u8]) {
    let mut console = lock();
    let Some(uart) = &mut *console else {
        return;
    };
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let (line, end): (_, &[u8]) = match line.strip_suffix(b"\n") {
            Some(line) => (line, b"\r\n"),
            None => (line, b""),
        };
        if !send(uart, line) || !send(uart, end) {
            return;
        }
    }
}

/// Whether the UART took all the bytes.
fn send(uart: &mut Uart16550<PioBackend>, mut bytes: &[u8]) -> bool {
    let mut progress = timestamp();
    while !bytes.is_empty() {
        let sent = uart.send_bytes(bytes);
        bytes = bytes.get(sent..).unwrap_or_default();
        let now = timestamp();
        if sent > 0 {
            progress = now;
        } else if now.wrapping_sub(progress) > PATIENCE {
            return false;
        }
    }
    true
}

/// Writes an error line.
pub fn error(message: fmt::Arguments<'_>) {
    // Writing to the console always succeeds.
    _ = writeln!(Console, "bootshare: error: {message}");
}

/// The console, for the formatting macros.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}
