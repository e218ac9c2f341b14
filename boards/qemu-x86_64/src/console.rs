//! The console: COM1, a 16550.

use crate::counter::timestamp;
use core::fmt::{self, Write};
use spin::{Mutex, MutexGuard};
use uart_16550::{BaudRate, Config, Uart16550, backend::PioBackend, spec::registers::LSR};

/// COM1's first port, on every PC.
const PORT: u16 = 0x3f8;

const CONFIG: Config = Config {
    baud_rate: BaudRate::Baud115200,
    ..Config::DEFAULT
};

/// The longest wait for the UART to take a byte, in counts of the time-stamp counter: 4 to 8 seconds.
/// QEMU's UART takes none while the host's pipe is full because nobody reads it.
const PATIENCE: u64 = 1 << 34;

type Uart = Uart16550<PioBackend>;

/// A UART that answered.
struct Com1 {
    uart: Uart,
    /// The UART did not take the last byte in time. Until it takes one, writes do not wait for it.
    stalled: bool,
}

/// The UART, if there is one.
static CONSOLE: Mutex<Option<Com1>> = Mutex::new(None);

/// Sets the UART up. Without one, [`write`] does nothing.
pub fn init() {
    // SAFETY: the eight ports are those of COM1 or of nothing, and only this module uses them.
    let uart = unsafe { Uart16550::new_port(PORT) };
    *lock() = uart.ok().and_then(|mut uart| {
        uart.init(CONFIG).ok()?;
        Some(Com1 {
            uart,
            stalled: false,
        })
    });
}

/// The UART. Only one processor runs, without interrupts: if the lock is held, an exception or a
/// panic interrupted its holder, which never continues.
fn lock() -> MutexGuard<'static, Option<Com1>> {
    if CONSOLE.is_locked() {
        // SAFETY: the code that held the lock never runs again, as above.
        unsafe { CONSOLE.force_unlock() };
    }
    CONSOLE.lock()
}

/// Writes `text`, with `\n` as `\r\n`. Bytes that the UART does not take in time are lost. When this
/// returns, complete lines have left the UART: QEMU's end, or another driver's reset of the FIFOs,
/// would lose the rest.
pub fn write(text: &[u8]) {
    let mut console = lock();
    let Some(com1) = &mut *console else {
        return;
    };
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        if let Some(line) = line.strip_suffix(b"\n") {
            com1.send(line);
            com1.send(b"\r\n");
        } else {
            com1.send(line);
        }
    }
    if text.ends_with(b"\n") {
        com1.flush();
    }
}

/// The next received byte, if there is one.
pub fn read() -> Option<u8> {
    lock().as_mut()?.uart.try_receive_byte().ok()
}

impl Com1 {
    fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let some = |uart: &mut Uart| Some(uart.send_bytes(bytes)).filter(|&sent| sent > 0);
            let Some(sent) = self.patiently(some) else {
                return;
            };
            bytes = bytes.get(sent..).unwrap_or_default();
        }
    }

    /// Waits until all bytes have left the UART.
    fn flush(&mut self) {
        self.patiently(|uart| uart.lsr().contains(LSR::TRANSMITTER_EMPTY).then_some(()));
    }

    /// Repeats `attempt` until it succeeds; `None` if that takes too long.
    fn patiently<T>(&mut self, attempt: impl Fn(&mut Uart) -> Option<T>) -> Option<T> {
        let start = timestamp();
        loop {
            let done = attempt(&mut self.uart);
            let is_over = self.stalled || timestamp().wrapping_sub(start) > PATIENCE;
            if done.is_some() || is_over {
                self.stalled = done.is_none();
                return done;
            }
        }
    }
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
