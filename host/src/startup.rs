//! The time until a machine runs. Opening a directory or a file may wait without end, on NFS without its
//! server for example, and neither a signal nor the time limit would have an effect.

use std::fs;
use std::io::{self, PipeWriter, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::PollFlags;

use crate::fd::{readable_by, ready};
use crate::interrupt::{FORCED_GRACE, interrupted};
use crate::lock::lock;

/// The longest single wait.
const SLICE: Duration = Duration::from_secs(1);

/// Closed when a machine runs.
static PENDING: Mutex<Option<PipeWriter>> = Mutex::new(None);

/// The temporary directories that were created.
static DIRS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Why the process is ended before a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// The time limit has passed.
    TimedOut,
    /// A signal has come.
    Interrupted,
}

/// Starts a thread that ends the process if no machine runs after `limit`, or soon after a signal. It
/// deletes the temporary directories and calls `end`, which must end the process.
///
/// # Errors
/// No thread can be started.
pub fn watch(limit: Option<Duration>, end: impl FnOnce(Late) + Send + 'static) -> Result<()> {
    let interrupt = interrupted().context("cannot watch for signals")?;
    let (runs, pending) = pipe().context("cannot make a pipe")?;
    *lock(&PENDING) = Some(pending);
    thread::Builder::new()
        .name("startup".into())
        .spawn(move || {
            if let Ok(Some(late)) = wait(runs.as_fd(), interrupt, limit) {
                // Kept until the process ends, so that no machine is started meanwhile.
                let pending = lock(&PENDING);
                if pending.is_none() {
                    return;
                }
                for dir in lock(&DIRS).drain(..) {
                    // It may be gone already.
                    let _ = fs::remove_dir_all(dir);
                }
                end(late);
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Waits until a machine runs; otherwise returns what was first.
fn wait(
    runs: BorrowedFd<'_>,
    interrupt: BorrowedFd<'_>,
    mut limit: Option<Duration>,
) -> io::Result<Option<Late>> {
    let fds = [runs, interrupt].map(|fd| (fd, PollFlags::IN));
    loop {
        let since = Instant::now();
        let slice = limit.map(|left| left.min(SLICE));
        let ready = ready(&fds, slice)?;
        if ready[0] {
            return Ok(None);
        } else if ready[1] {
            // Most steps end by themselves after a signal.
            let is_running = readable_by(runs, Instant::now() + FORCED_GRACE)?;
            return Ok((!is_running).then_some(Late::Interrupted));
        } else if limit == Some(Duration::ZERO) {
            return Ok(Some(Late::TimedOut));
        }
        // The rest of a longer time is one in which this process was stopped.
        let passed = since.elapsed().min(SLICE);
        limit = limit.map(|left| left.saturating_sub(passed));
    }
}

/// A machine is started: from here on its own loop watches for signals and the limit.
pub(crate) fn ends() {
    *lock(&PENDING) = None;
}

/// Adds a temporary directory to those that [`watch`] deletes.
pub(crate) fn created(dir: &Path) {
    lock(&DIRS).push(dir.to_owned());
}
