//! The guest's serial console: shown to a person or kept for a test.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{self, OptionalActions, OutputModes, Termios};

/// Where the guest's console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// To and from our own standard streams. On a terminal every key goes to the guest, but for
    /// QEMU's: Ctrl-A x quits, Ctrl-A h helps.
    Terminal,
    /// Into [`Report::console`](crate::run::Report); the guest gets no input.
    Capture,
}

impl Console {
    /// Whether a person types at it.
    pub(crate) fn is_interactive(self) -> bool {
        self == Self::Terminal && io::stdin().is_terminal()
    }
}

/// A terminal on standard input that is in raw mode until this is dropped.
pub(crate) struct RawMode(Termios);

impl RawMode {
    pub(crate) fn enter() -> io::Result<Self> {
        let saved = termios::tcgetattr(io::stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        // A guest that ends lines with a bare newline still starts them at the margin.
        raw.output_modes |= OutputModes::OPOST;
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(saved))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone (SIGHUP): there is nobody left to tell.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Bytes on their way from our standard input, or from a test, to QEMU's.
pub(crate) struct Keys {
    /// Open until QEMU has ended: one whose standard input has ended no longer waits for its standard
    /// output when that is full, and its serial port drops bytes.
    qemu: std::process::ChildStdin,
    /// Whether there may be more on our standard input.
    reads_input: bool,
    waiting: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(qemu: std::process::ChildStdin, scripted: bool) -> io::Result<Self> {
        // A guest that reads nothing must not stop us.
        rustix::io::ioctl_fionbio(&qemu, true)?;
        Ok(Self {
            qemu,
            reads_input: !scripted,
            waiting: Vec::new(),
        })
    }

    /// The descriptor to wait for, if any, and whether for reading or writing.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, rustix::event::PollFlags)> {
        match (self.waiting.is_empty(), self.reads_input) {
            (true, false) => None,
            (true, true) => Some((rustix::stdio::stdin(), rustix::event::PollFlags::IN)),
            (false, _) => Some((self.qemu.as_fd(), rustix::event::PollFlags::OUT)),
        }
    }

    /// Types `text` as soon as QEMU takes it.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.waiting.extend_from_slice(text.as_bytes());
    }

    /// Moves what can be moved; `false` when QEMU takes no more.
    pub(crate) fn advance(&mut self) -> io::Result<bool> {
        if self.waiting.is_empty() {
            let mut buffer = [0; 512];
            // Unbuffered: bytes in `std`'s buffer would be invisible to poll(2).
            let count = rustix::io::retry_on_intr(|| {
                rustix::io::read(rustix::stdio::stdin(), &mut buffer)
            })?;
            if count == 0 {
                self.reads_input = false;
                return Ok(true);
            }
            self.waiting.extend_from_slice(&buffer[..count]);
        }
        match self.qemu.write(&self.waiting) {
            Ok(count) => drop(self.waiting.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}
