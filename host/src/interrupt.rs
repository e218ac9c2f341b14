//! SIGINT, SIGTERM and SIGHUP as something poll(2) can wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static PIPE: OnceLock<UnixStream> = OnceLock::new();

/// A descriptor that is readable once, and ever after, one of the signals has come.
///
/// It is never read, so every machine of the process sees it. A second signal has the default
/// effect: it ends the process at once, and the kernel ends the children. SIGHUP stays ignored when
/// it was ignored from the start.
pub(crate) fn interrupted() -> io::Result<BorrowedFd<'static>> {
    if let Some(pipe) = PIPE.get() {
        return Ok(pipe.as_fd());
    }
    let (read, write) = UnixStream::pair()?;
    // Two threads may both come here: the loser's registration only ever writes to a closed pipe.
    let won = PIPE.set(read).is_ok();
    if won {
        let again = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // nohup(1): who runs us wants us to outlive the terminal.
            if signal == SIGHUP && is_ignored(signal)? {
                continue;
            }
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&again))?;
            signal_hook::flag::register(signal, Arc::clone(&again))?;
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
    }
    PIPE.get()
        .map(AsFd::as_fd)
        .ok_or_else(|| io::Error::other("no signal pipe"))
}

/// Whether the process ignores `signal` (proc_pid_status(5), `SigIgn`).
fn is_ignored(signal: i32) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("no SigIgn in /proc/self/status"))?;
    Ok(mask & (1 << (signal - 1)) != 0)
}
