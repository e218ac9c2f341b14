//! The console: log messages, the output of commands, and the progress bar.

use super::Board;
use crate::hal::Clock;
use core::{
    fmt::{self, Write},
    marker::PhantomData,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// The board's console as a writer. Writing never fails.
pub(super) struct Console<B>(PhantomData<B>);

impl<B> Console<B> {
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<B: Board> Write for Console<B> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        B::write_console(text.as_bytes());
        Ok(())
    }
}

/// Prints log messages with the prefix `bootshare: ` and, except for level info, the level.
struct Logger<B>(PhantomData<fn() -> B>);

impl<B: Board> Log for Logger<B> {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        if record.level() == Level::Error {
            ERRORS.fetch_add(1, Ordering::Relaxed);
        }
        clear_bar::<B>();
        _ = writeln!(Console::<B>::new(), "bootshare: {level}{}", record.args());
    }

    fn flush(&self) {}
}

/// The number of errors reported so far.
static ERRORS: AtomicU32 = AtomicU32::new(0);

/// The number of errors reported so far.
pub(super) fn errors() -> u32 {
    ERRORS.load(Ordering::Relaxed)
}

/// Whether the current line shows the progress bar.
static BAR: AtomicBool = AtomicBool::new(false);

/// Erases the progress bar.
fn clear_bar<B: Board>() {
    if BAR.swap(false, Ordering::Relaxed) {
        B::write_console(b"\r\x1b[K");
    }
}

/// Makes the board's console the destination of log messages.
pub(super) fn install<B: Board + 'static>() {
    // The constant is promoted to a static.
    let logger: &'static Logger<B> = const { &Logger(PhantomData) };
    _ = log::set_logger(logger);
    log::set_max_level(LevelFilter::Info);
}

/// Displays printable ASCII unchanged, and any other byte as `\xNN`.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub &'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b' '..=b'~' => f.write_char(char::from(byte)),
            _ => write!(f, "\\x{byte:02x}"),
        })
    }
}

/// The progress bar of a load. It is shown after [`Self::DELAY`], or at once at log level debug.
pub(super) struct Progress<B: Board> {
    clock: B::Clock,
    total: u64,
    start: Duration,
    drawn: Option<Duration>,
}

impl<B: Board> Progress<B> {
    const DELAY: Duration = Duration::from_millis(400);
    const REDRAW: Duration = Duration::from_millis(100);
    const WIDTH: u64 = 40;

    pub fn new(clock: B::Clock, total: u64) -> Self {
        Self {
            clock,
            total,
            start: clock.now(),
            drawn: None,
        }
    }

    /// Draws the bar for `arrived` bytes, if it is due.
    pub fn update(&mut self, arrived: u64) {
        let now = self.clock.now();
        let due = match self.drawn {
            None if log::log_enabled!(Level::Debug) => self.start,
            None => self.start + Self::DELAY,
            // A log message has erased the bar.
            Some(_) if !BAR.load(Ordering::Relaxed) => self.start,
            Some(drawn) => drawn + Self::REDRAW,
        };
        if now < due || self.total == 0 || !log::log_enabled!(Level::Info) {
            return;
        }
        self.drawn = Some(now);
        BAR.store(true, Ordering::Relaxed);
        let arrived = arrived.min(self.total);
        let full = (arrived * Self::WIDTH / self.total) as usize;
        let empty = Self::WIDTH as usize - full;
        let percent = arrived * 100 / self.total;
        let mut out = Console::<B>::new();
        _ = write!(out, "\r[{:#<full$}{:.<empty$}] {percent} %", "", "");
    }
}

impl<B: Board> Drop for Progress<B> {
    fn drop(&mut self) {
        clear_bar::<B>();
    }
}

/// Displays the size, the duration and the speed of a transfer.
pub(super) struct Speed {
    pub bytes: u64,
    pub took: Duration,
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.took.as_micros().max(1) as u64;
        // From bytes per microsecond to MiB per second: times 10^6, divided by 2^20.
        let rate = self.bytes.saturating_mul(1_000_000) / (micros << 20);
        let (bytes, millis) = (self.bytes, micros / 1000);
        write!(f, "{bytes} bytes in {millis} ms ({rate} MiB/s)")
    }
}

/// Reports an error of `what`. Returns `false`, as the result of a command.
#[inline(never)] // Called from many places.
pub(super) fn failure(what: &dyn fmt::Display, error: &dyn fmt::Display) -> bool {
    log::error!("{what}: {error}");
    false
}

#[cfg(test)]
mod tests {
    use super::Text;
    use std::format;

    #[test]
    fn bytes_that_are_not_printable_ascii_are_escaped() {
        assert_eq!(format!("{}", Text(b"a b~")), "a b~");
        assert_eq!(format!("{}", Text(b"\n\xff\x7f")), "\\x0a\\xff\\x7f");
    }
}
