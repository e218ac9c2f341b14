//! The guest's serial console: shown to a person or kept for a test.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::stdio::stdin;
use rustix::termios::{self, OptionalActions, OutputModes, Termios};

use crate::fd::ready;
use crate::lock::lock;

/// Where the guest's console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Connected to our own standard streams. If both are terminals, every key is sent to the
    /// guest, except QEMU's own: Ctrl-A x quits, Ctrl-A h shows help.
    Terminal,
    /// Captured in [`Report::console`](crate::run::Report); the guest gets no input.
    Capture,
}

impl Console {
    /// Whether a person uses it: both standard streams are terminals.
    pub(crate) fn is_interactive(self) -> bool {
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        self == Self::Terminal && is_terminal && has_terminal()
    }
}

/// How often a process in the background looks whether it is in the foreground by now.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// Whether this process may read standard input and change its terminal settings: job control stops
/// a background process that tries (credentials(7)).
fn has_terminal() -> bool {
    // A terminal that is not the session's stops nobody. If the foreground process group is outside of
    // this PID namespace (`bwrap --unshare-pid`), this process's group is probably the same one.
    termios::tcgetpgrp(stdin()).is_err() || is_in_foreground()
}

/// Whether this process's group is the foreground process group of its terminal, or that is unknown.
/// `rustix::process::getpgrp` does not allow a group whose leader is outside of this PID namespace: its
/// number is 0 (pid_namespaces(7)).
fn is_in_foreground() -> bool {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return true;
    };
    // proc_pid_stat(5): the name, which may contain anything, then state, ppid, pgrp, session, tty_nr, tpgid.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let fields: Vec<_> = fields.split(' ').collect();
    fields.get(2) == fields.get(5)
}

/// Waits until standard input can be read. A process in the background does not read its terminal:
/// job control would stop it.
pub(crate) fn wait_for_input() -> io::Result<()> {
    loop {
        if !may_read() {
            thread::sleep(RETRY);
        } else if ready(&[(stdin(), PollFlags::IN)], Some(RETRY))?[0] && may_read() {
            return Ok(());
        }
    }
}

/// Whether reading standard input does not stop this process.
fn may_read() -> bool {
    !io::stdin().is_terminal() || has_terminal()
}

/// A terminal on standard input that is in raw mode until this is dropped.
pub(crate) struct RawMode {
    raw: Termios,
}

/// The terminal's settings before raw mode.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

impl RawMode {
    /// Enters raw mode; `None` if this process is in the background now.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !has_terminal() {
            return Ok(None);
        }
        let saved = termios::tcgetattr(stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        // Output processing stays on: a guest may end its lines with a bare newline.
        raw.output_modes |= OutputModes::OPOST;
        *lock(&SAVED) = Some(saved);
        let mode = Self { raw };
        mode.enter_again()?;
        Ok(Some(mode))
    }

    /// Leaves raw mode, for all threads.
    pub(crate) fn leave() {
        if let Some(saved) = lock(&SAVED).take()
            && has_terminal()
        {
            // Do not wait until the output has drained: it may be stopped (Ctrl-S). An error is
            // ignored: the terminal may be gone (SIGHUP).
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &saved);
        }
    }

    /// Enters raw mode again: a shell may have changed the settings while this process was stopped.
    pub(crate) fn enter_again(&self) -> io::Result<()> {
        if has_terminal() {
            termios::tcsetattr(stdin(), OptionalActions::Now, &self.raw)?;
        }
        Ok(())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        Self::leave();
    }
}

/// Input for the guest, from our standard input and from `--send`, that is to be written to QEMU's
/// standard input.
pub(crate) struct Keys {
    /// Kept open until QEMU has ended: after the end of its standard input QEMU no longer waits for
    /// a full standard output, and its serial port drops bytes.
    qemu: std::process::ChildStdin,
    /// Our standard input.
    input: OwnedFd,
    /// Whether it may have more data.
    reads_input: bool,
    /// Whether reading standard input waits until the guest reads its console: Linux loses input
    /// that arrives before it opens the console.
    waits_for_prompt: bool,
    waiting: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(qemu: std::process::ChildStdin, console: Console) -> io::Result<Self> {
        // A guest that does not read its input must not block this process.
        rustix::io::ioctl_fionbio(&qemu, true)?;
        Ok(Self {
            qemu,
            input: unblocked_input()?,
            reads_input: console == Console::Terminal,
            waits_for_prompt: !io::stdin().is_terminal(),
            waiting: Vec::new(),
        })
    }

    /// The descriptor to poll, if any, and the events to poll for.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let reads_input = self.reads_input && !self.waits_for_prompt;
        match (self.waiting.is_empty(), reads_input) {
            (true, true) if may_read() => Some((self.input.as_fd(), PollFlags::IN)),
            (true, _) => None,
            (false, _) => Some((self.qemu.as_fd(), PollFlags::OUT)),
        }
    }

    /// Whether reading standard input waits for a prompt.
    pub(crate) fn waits_for_prompt(&self) -> bool {
        self.reads_input && self.waits_for_prompt
    }

    /// The guest shows a prompt or has been silent: assume that it reads its console.
    pub(crate) fn has_prompt(&mut self) {
        self.waits_for_prompt = false;
    }

    /// Queues `text` as input for the guest.
    pub(crate) fn type_text(&mut self, text: &[u8]) {
        self.waiting.extend_from_slice(text);
    }

    /// Reads and writes as much as possible without blocking; `false` if QEMU's standard input is
    /// closed.
    pub(crate) fn advance(&mut self) -> io::Result<bool> {
        if self.waiting.is_empty() {
            let mut buffer = [0; 512];
            // Unbuffered: bytes in `std`'s buffer would be invisible to poll(2).
            match rustix::io::read(&self.input, &mut buffer) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(true),
                // Standard input has ended or cannot be read (nohup(1) makes it write-only).
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

/// Standard input, from which a read does not wait for data. Another program may read the same terminal
/// or pipe, as the pager in `... | less` does, and take the data between poll(2) and our read. So a
/// terminal or a pipe is opened anew: O_NONBLOCK on the shared file description would change it for
/// all programs.
fn unblocked_input() -> io::Result<OwnedFd> {
    let kind = rustix::fs::fstat(stdin()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if io::stdin().is_terminal() || kind == Ok(FileType::Fifo) {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // It may belong to another user; then a read may wait.
        if let Ok(input) = rustix::fs::open("/proc/self/fd/0", flags, Mode::empty()) {
            return Ok(input);
        }
    }
    // Files never wait, and have an offset that other programs may share.
    stdin()
        .try_clone_to_owned()
        .or_else(|_| Ok(File::open("/dev/null")?.into()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_guest_that_does_not_read_blocks_nobody_and_one_that_has_ended_takes_no_more() {
        let mut command = Command::new("sleep");
        let mut child = command.arg("1000").stdin(Stdio::piped()).spawn().unwrap();
        let mut keys = Keys::new(child.stdin.take().unwrap(), Console::Capture).unwrap();
        // More than the pipe takes.
        keys.type_text(&[b'x'; 1 << 20]);
        for _ in 0..100 {
            assert!(keys.advance().unwrap());
        }
        assert!(!keys.waiting.is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        // A process that another test starts has a copy of the pipe for a moment.
        let deadline = Instant::now() + Duration::from_secs(60);
        while keys.advance().unwrap() {
            assert!(Instant::now() < deadline, "the pipe is still open");
        }
    }
}
