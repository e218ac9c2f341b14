//! Child processes that end with this process.
//!
//! A child gets a process group of its own: a terminal's Ctrl-C reaches only this process, and the
//! child's own children are ended with it. The kernel kills the child when the thread that started
//! it ends, so nothing is left even if this process is killed with SIGKILL.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::PollFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal,
};

use crate::explain::Interrupted;
use crate::fd::{read_rest, read_some, readable_by, ready};
use crate::interrupt::interrupted;
use crate::syscall::PIDFD_OPEN;

/// How much of a child's standard error is kept.
const TAIL: usize = 4096;

/// A program and its arguments, before it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Name or path of the program.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Invocation {
    /// A program without arguments so far.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
        }
    }

    /// Appends one argument.
    pub fn arg(&mut self, arg: impl Into<OsString>) -> &mut Self {
        self.args.push(arg.into());
        self
    }

    /// Appends an option and its value.
    pub fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.arg(name).arg(value)
    }

    /// The command, ready for `std`.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        command
    }

    /// The command as a shell would read it, one option a line.
    pub fn shell(&self) -> String {
        let mut text = quote(&self.program);
        for arg in &self.args {
            let quoted = quote(arg);
            text.push_str(if quoted.starts_with('-') {
                " \\\n    "
            } else {
                " "
            });
            text.push_str(&quoted);
        }
        text
    }
}

/// One word as a shell would read it.
pub fn quote(word: &OsStr) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
    if let Some(word) = word.to_str()
        && !word.is_empty()
        && word.chars().all(plain)
    {
        return word.to_owned();
    }
    let mut text = String::from("'");
    for chunk in word.as_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('\'', r"'\''"));
        for byte in chunk.invalid() {
            // The text is UTF-8 and cannot hold the byte itself.
            text.push_str(&format!(r#"'"$(printf '\{byte:03o}')"'"#));
        }
    }
    text.push('\'');
    text
}

/// A running child; dropping it kills its process group.
pub(crate) struct Process {
    pub(crate) child: Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`. The child inherits the descriptor `inherit` under the same number.
    ///
    /// The kernel kills the child when the calling *thread* ends: that must live as long as the
    /// child is needed.
    pub(crate) fn spawn(command: &mut Command, inherit: Option<BorrowedFd<'_>>) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        PIDFD_OPEN
            .check()
            .with_context(|| format!("cannot watch {program}"))?;
        let parent = rustix::process::getpid();
        let inherit = inherit.map(|fd| std::os::fd::AsRawFd::as_raw_fd(&fd));
        command.process_group(0);
        let before_exec = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above took effect.
            if getppid() != Some(parent) {
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
            if let Some(fd) = inherit {
                // SAFETY: the parent keeps the descriptor open across the spawn, and this process
                // has its own copy of the table with the same number.
                let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: the closure makes three system calls and allocates nothing, as is required
        // between fork and exec.
        unsafe { command.pre_exec(before_exec) };
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("cannot watch {program}"))?;
        Ok(Self {
            child,
            pidfd,
            status: None,
        })
    }

    /// Its standard error, if that is a pipe.
    pub(crate) fn errors(&mut self) -> Errors {
        Errors {
            stream: self.child.stderr.take(),
            tail: Vec::new(),
        }
    }

    /// Becomes readable when the process has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits until `deadline`; `None` if the process is still running then. When it ends, the rest
    /// of its group is killed.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() && !readable_by(self.ended(), deadline)? {
            return Ok(None);
        }
        self.end().map(Some)
    }

    /// Sends `signal` to the process and all of its group, unless it was waited for.
    pub(crate) fn signal(&self, signal: Signal) {
        // After the process was reaped, its number may be reused.
        if self.status.is_none() {
            // It fails only if the process has ended already.
            let _ = kill_process_group(Pid::from_child(&self.child), signal);
        }
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        while !ready(&[(self.ended(), PollFlags::IN)], None)?[0] {}
        self.end()
    }

    /// Kills the process and all of its group, and waits for it.
    pub(crate) fn kill(&mut self) {
        // It fails only if the process was reaped already.
        let _ = self.end();
    }

    /// Kills the whole group, and returns the exit status of the process.
    pub(crate) fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        self.signal(Signal::KILL);
        let status = self.child.wait()?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How long a program may take to print its version or help.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Runs a program to its end, within a time limit, and returns its exit status and all of its
/// output.
///
/// # Errors
/// It cannot be run, takes too long, or a signal came.
pub fn output_of(command: &mut Command) -> Result<(ExitStatus, String)> {
    // Both streams are one file: two pipes would have to be read at the same time.
    // In memory, so that a wrong TMPDIR is not taken for a missing program.
    let said = rustix::fs::memfd_create(c"output", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut said = File::from(said);
    command.stdin(Stdio::null());
    command.stdout(said.try_clone()?).stderr(said.try_clone()?);
    let mut process = Process::spawn(command, None)?;
    let interrupt = interrupted()?;
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let fds = [process.ended(), interrupt].map(|fd| (fd, PollFlags::IN));
        let ready = ready(&fds, Some(left))?;
        if ready[1] {
            return Err(Interrupted.into());
        }
        if ready[0] {
            break;
        }
        let seconds = ANSWER_LIMIT.as_secs();
        ensure!(!left.is_zero(), "it did not answer within {seconds} s");
    }
    let mut text = Vec::new();
    said.rewind()?;
    said.read_to_end(&mut text)?;
    Ok((process.end()?, String::from_utf8_lossy(&text).into_owned()))
}

/// A child's standard error; the end of it is kept.
#[derive(Default)]
pub(crate) struct Errors {
    stream: Option<ChildStderr>,
    tail: Vec<u8>,
}

impl Errors {
    /// The descriptor to wait for, until the stream ends.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Reads the available data; returns its size.
    pub(crate) fn read(&mut self) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else {
            return Ok(0);
        };
        let Some(bytes) = read_some(stream)? else {
            self.stream = None;
            return Ok(0);
        };
        self.tail.extend_from_slice(&bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        Ok(bytes.len())
    }

    /// Reads the rest after the process has ended.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        read_rest(self, Self::fd, Self::read)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_text_quotes_what_a_shell_would_split() {
        let mut invocation = Invocation::new("qemu");
        invocation.option("-append", "a b'c").arg("");
        assert_eq!(invocation.shell(), "qemu \\\n    -append 'a b'\\''c' ''");
    }

    #[test]
    fn a_shell_reads_back_any_bytes() {
        let word = OsStr::from_bytes(b"a'\xff\xfe b\n\xc3\xa9$x`y`\\");
        let command = format!("printf %s {}", quote(word));
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert_eq!(output.stdout, word.as_bytes());
    }

    #[test]
    fn only_the_end_of_a_processs_error_output_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "yes complaint | head -c 60000 >&2; echo last >&2"]);
        command.stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command, None).unwrap();
        let mut errors = process.errors();
        assert!(process.wait().unwrap().success());
        errors.drain().unwrap();
        assert_eq!(errors.text().len(), TAIL);
        assert!(errors.text().ends_with("last\n"));
    }

    #[test]
    fn dropping_a_process_ends_its_whole_group() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command, None).unwrap();
        let mut line = String::new();
        let mut out = io::BufReader::new(process.child.stdout.take().unwrap());
        io::BufRead::read_line(&mut out, &mut line).unwrap();
        drop(process);
        // The grandchild held the pipe open: the end of the pipe shows that it was killed.
        assert_eq!(Read::read(&mut out, &mut [0; 8]).unwrap(), 0);
        assert!(line.trim().parse::<u32>().is_ok());
    }
}
