//! The guest's serial console: shown to a person or kept for a test.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{self, OptionalActions, OutputModes, Termios};

/// Where the guest's console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// To and from our own standard streams. With a terminal on both sides every key goes to the
    /// guest, but for QEMU's: Ctrl-A x quits, Ctrl-A h helps.
    Terminal,
    /// Into [`Report::console`](crate::run::Report); the guest gets no input.
    Capture,
}

impl Console {
    /// Whether a person types at it.
    pub(crate) fn is_interactive(self) -> bool {
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        self == Self::Terminal && is_terminal && has_terminal()
    }
}

/// Whether standard input is ours to read and to set: job control stops a process in the background
/// that tries (credentials(7)).
fn has_terminal() -> bool {
    // One that is not the session's, or has no group in the foreground, stops nobody.
    termios::tcgetpgrp(stdin()).map_or(true, |group| group == getpgrp())
}

/// A terminal on standard input that is in raw mode until this is dropped.
pub(crate) struct RawMode {
    saved: Termios,
    raw: Termios,
}

impl RawMode {
    /// Enters it; `None` when the terminal is another's now.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !has_terminal() {
            return Ok(None);
        }
        let saved = termios::tcgetattr(stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        // A guest that ends lines with a bare newline still starts them at the margin.
        raw.output_modes |= OutputModes::OPOST;
        let mode = Self { saved, raw };
        mode.enter_again()?;
        Ok(Some(mode))
    }

    /// Enters it once more: a shell may have set its own while we were stopped.
    pub(crate) fn enter_again(&self) -> io::Result<()> {
        if has_terminal() {
            termios::tcsetattr(stdin(), OptionalActions::Now, &self.raw)?;
        }
        Ok(())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if has_terminal() {
            // Not once its output has drained: that may be stopped (Ctrl-S). The terminal may be gone
            // (SIGHUP): there is nobody left to tell.
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &self.saved);
        }
    }
}

/// Bytes on their way from our standard input, or from a script, to QEMU's.
pub(crate) struct Keys {
    /// Open until QEMU has ended: one whose standard input has ended no longer waits for its standard
    /// output when that is full, and its serial port drops bytes.
    qemu: std::process::ChildStdin,
    /// Whether there may be more on our standard input.
    reads_input: bool,
    /// Whether that waits for a guest that reads: what comes before Linux opens its console is lost.
    waits_for_prompt: bool,
    waiting: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(qemu: std::process::ChildStdin, console: Console) -> io::Result<Self> {
        // A guest that reads nothing must not stop us.
        rustix::io::ioctl_fionbio(&qemu, true)?;
        Ok(Self {
            qemu,
            reads_input: console == Console::Terminal,
            waits_for_prompt: !io::stdin().is_terminal(),
            waiting: Vec::new(),
        })
    }

    /// The descriptor to wait for, if any, and whether for reading or writing.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let reads_input = self.reads_input && !self.waits_for_prompt;
        match (self.waiting.is_empty(), reads_input) {
            (true, true) if !io::stdin().is_terminal() || has_terminal() => {
                Some((stdin(), PollFlags::IN))
            }
            (true, _) => None,
            (false, _) => Some((self.qemu.as_fd(), PollFlags::OUT)),
        }
    }

    /// Whether standard input waits for a prompt.
    pub(crate) fn waits_for_prompt(&self) -> bool {
        self.reads_input && self.waits_for_prompt
    }

    /// The guest shows a prompt, or nothing any more: it reads.
    pub(crate) fn has_prompt(&mut self) {
        self.waits_for_prompt = false;
    }

    /// Types `text` as soon as QEMU takes it.
    pub(crate) fn type_text(&mut self, text: &[u8]) {
        self.waiting.extend_from_slice(text);
    }

    /// Moves what can be moved; `false` when QEMU takes no more.
    pub(crate) fn advance(&mut self) -> io::Result<bool> {
        if self.waiting.is_empty() {
            let mut buffer = [0; 512];
            // Unbuffered: bytes in `std`'s buffer would be invisible to poll(2).
            match rustix::io::read(stdin(), &mut buffer) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(true),
                // One that cannot be read, as nohup(1) has it, or no more: there are no keys.
                Ok(0) | Err(_) => self.reads_input = false,
                Ok(count) => self.waiting.extend_from_slice(&buffer[..count]),
            }
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
