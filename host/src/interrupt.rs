//! Signals as descriptors for poll(2). A signal that was ignored when the process started stays
//! ignored, as nohup(1) and background jobs of shells expect.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::low_level::{pipe, raise};

use crate::fd::ready;

/// The signals that end a run.
const ENDS: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// How long a second signal is ignored: timeout(1), for example, sends each signal twice, and the
/// first must be able to clean up.
const GRACE: Duration = Duration::from_secs(1);

/// After a limit or a signal: how long a server may take to end, and standard output to take the rest of
/// the console.
pub(crate) const FORCED_GRACE: Duration = Duration::from_millis(400);

/// The error is kept as its code and its text, because an `io::Error` cannot be cloned.
type Registered<T> = Result<T, (Option<i32>, String)>;

static PIPE: OnceLock<Registered<UnixStream>> = OnceLock::new();
static JOB_CONTROL: OnceLock<Registered<JobControl>> = OnceLock::new();

/// A descriptor that becomes readable when SIGINT, SIGTERM, SIGHUP or SIGQUIT arrives, and stays
/// readable.
///
/// It is never read, so every machine of the process sees it. Another signal more than a second
/// later has its default effect: it ends the process at once, and the kernel kills the children.
pub(crate) fn interrupted() -> io::Result<BorrowedFd<'static>> {
    once(&PIPE, register).map(AsFd::as_fd)
}

/// The descriptor of [`interrupted`], if it was called before. Until then the signals have their
/// default effects.
pub(crate) fn registered() -> Option<BorrowedFd<'static>> {
    Some(PIPE.get()?.as_ref().ok()?.as_fd())
}

/// Whether one of the signals of [`interrupted`] has arrived.
pub(crate) fn has_come() -> bool {
    let readable = rustix::event::PollFlags::IN;
    registered().is_some_and(
        |fd| matches!(ready(&[(fd, readable)], Some(Duration::ZERO)), Ok(fds) if fds[0]),
    )
}

/// The first call registers signals; all others wait for it, and share its result.
fn once<T>(
    cell: &'static OnceLock<Registered<T>>,
    register: fn() -> io::Result<T>,
) -> io::Result<&'static T> {
    let kept = |error: io::Error| (error.raw_os_error(), error.to_string());
    let result = cell.get_or_init(|| register().map_err(kept));
    let error = |(code, text): &(Option<i32>, String)| match code {
        Some(code) => io::Error::from_raw_os_error(*code),
        None => io::Error::other(text.clone()),
    };
    result.as_ref().map_err(error)
}

fn register() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    let seen = read.try_clone()?;
    // If SIGCHLD were ignored, as inherited from a parent, the kernel would keep no exit status
    // of children.
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    let again = Arc::new(AtomicBool::new(false));
    for signal in ENDS {
        if is_ignored(signal)? {
            continue;
        }
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&again))?;
        pipe::register(signal, write.try_clone()?)?;
    }
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let readable = rustix::event::PollFlags::IN;
            while !matches!(ready(&[(seen.as_fd(), readable)], None), Ok(fds) if fds[0]) {}
            thread::sleep(GRACE);
            again.store(true, Ordering::Relaxed);
        })?;
    Ok(read)
}

/// Job control: SIGTSTP and SIGCONT of the process.
pub(crate) struct JobControl {
    pipe: UnixStream,
    stop: Arc<AtomicBool>,
}

impl JobControl {
    /// Handles SIGTSTP from here on: the process stops only in [`stop`](Self::stop).
    pub(crate) fn get() -> io::Result<&'static Self> {
        once(&JOB_CONTROL, Self::register)
    }

    fn register() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        pipe::register(SIGCONT, write.try_clone()?)?;
        // SIGTSTP comes last: handled without the rest, it would stop nothing.
        if !is_ignored(SIGTSTP)? {
            signal_hook::flag::register(SIGTSTP, Arc::clone(&stop))?;
            pipe::register(SIGTSTP, write)?;
        }
        Ok(Self { pipe: read, stop })
    }

    /// Becomes readable when one of the signals arrives.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Clears the descriptor; returns whether the process was asked to stop.
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        while matches!((&self.pipe).read(&mut [0; 64]), Ok(1..)) {}
        self.stop.swap(false, Ordering::Relaxed)
    }

    /// Performs SIGTSTP's default action: stops the process until SIGCONT. The kernel does not stop a
    /// process that no shell can continue (setpgid(2), orphaned process groups), as in
    /// `ssh -t HOST bootshare-host ...`.
    pub(crate) fn stop(&self) -> io::Result<()> {
        // SAFETY: zeros are a valid `sigaction`: SIG_DFL, no flags, an empty mask.
        let default: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler = action(SIGTSTP, Some(&default))?;
        // The signal is this thread's, so the process has stopped and continued when it returns.
        let raised = raise(SIGTSTP);
        action(SIGTSTP, Some(&handler))?;
        raised
    }
}

/// Returns the action of a signal, and sets a new one.
fn action(signal: i32, new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let mut before = MaybeUninit::uninit();
    let new = new.map_or(null(), std::ptr::from_ref);
    // SAFETY: the pointers are null or of a `sigaction`, whose handler is none or was set before.
    if unsafe { libc::sigaction(signal, new, before.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction(2) has succeeded and written it.
    Ok(unsafe { before.assume_init() })
}

/// Whether the process ignores `signal`.
fn is_ignored(signal: i32) -> io::Result<bool> {
    Ok(action(signal, None)?.sa_sigaction == libc::SIG_IGN)
}

/// Unblocks the signals that this module handles, in this thread and in those that it starts. A parent with
/// threads may have blocked them.
///
/// # Errors
/// The kernel refuses it.
pub fn unblock() -> io::Result<()> {
    // SAFETY: zeros are a valid `sigset_t`, as sigemptyset(3) makes it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in ENDS.into_iter().chain([SIGCONT, SIGTSTP]) {
        // SAFETY: `set` is a valid set.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: `set` is a valid set, and the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Beyond the limit of a file's size (`ulimit -f`), writes fail and name the file from here on. The default
/// effect of SIGXFSZ ends the process without a word.
///
/// # Errors
/// The kernel refuses it.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: zeros are a valid `sigaction`.
    let mut ignore: libc::sigaction = unsafe { std::mem::zeroed() };
    ignore.sa_sigaction = libc::SIG_IGN;
    action(libc::SIGXFSZ, Some(&ignore)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    /// Set for the process that is sent the signals: this program, which runs the test again.
    const HANGS: &str = "BOOTSHARE_TEST_HANGS";

    #[test]
    fn a_failed_registration_fails_for_all_callers() {
        static CELL: OnceLock<Registered<()>> = OnceLock::new();
        let first = once(&CELL, || Err(io::Error::other("no memory")));
        assert_eq!(first.unwrap_err().to_string(), "no memory");
        let second = once(&CELL, || Ok(()));
        assert_eq!(second.unwrap_err().to_string(), "no memory");
    }

    #[test]
    fn a_second_signal_after_a_second_ends_a_hanging_program() {
        if std::env::var_os(HANGS).is_some() {
            interrupted().unwrap();
            println!("\nREADY");
            thread::sleep(Duration::from_secs(1000));
        }
        let name = "interrupt::tests::a_second_signal_after_a_second_ends_a_hanging_program";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(HANGS, "yes")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "READY\n" {
            line.clear();
            assert_ne!(io::BufRead::read_line(&mut lines, &mut line).unwrap(), 0);
        }
        let pid = Pid::from_child(&child);
        // timeout(1) sends two signals at once: the first one is left to do its work.
        for signal in [Signal::TERM, Signal::INT] {
            kill_process(pid, signal).unwrap();
        }
        thread::sleep(GRACE / 2);
        assert_eq!(child.try_wait().unwrap(), None);
        // On a busy machine, the second after which a signal ends the program takes longer.
        let status = loop {
            kill_process(pid, Signal::TERM).unwrap();
            thread::sleep(GRACE / 10);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
        };
        assert_eq!(status.signal(), Some(SIGTERM), "{status:?}");
    }
}
