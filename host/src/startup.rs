//! The time in which no machine runs. Opening a directory or a file may wait without end, on NFS without its
//! server for example, and neither a signal nor the time limit would have an effect.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::PollFlags;

use crate::fd::ready;
use crate::interrupt::{FORCED_GRACE, interrupted};
use crate::lock::lock;
use crate::output::{SOON, answer_of};

/// The longest single wait.
const SLICE: Duration = Duration::from_secs(1);

static WATCH: Mutex<Watch> = Mutex::new(Watch {
    is_wanted: false,
    is_armed: false,
    left: None,
    dirs: Vec::new(),
});

/// Notified when the watch is armed.
static ARMED: Condvar = Condvar::new();

struct Watch {
    /// Whether [`watch`] was called.
    is_wanted: bool,
    /// Whether no machine runs.
    is_armed: bool,
    /// What was left of the time limit at a moment.
    left: Option<(Instant, Duration)>,
    /// The temporary directories that were created.
    dirs: Vec<PathBuf>,
}

impl Watch {
    /// What is left of the time limit now. The rest of a longer time than a slice is one in which this process
    /// was stopped.
    fn left(&self) -> Option<Duration> {
        let (at, left) = self.left?;
        Some(left.saturating_sub(at.elapsed().min(SLICE)))
    }

    fn arm(&mut self, left: Option<Duration>) {
        self.left = left.map(|left| (Instant::now(), left));
        self.is_armed = true;
        ARMED.notify_one();
    }
}

/// Why the process is ended while no machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// The time limit has passed.
    TimedOut,
    /// A signal has come.
    Interrupted,
}

/// Starts a thread that ends the process if no machine runs after `limit`, or soon after a signal. It
/// calls `end`, deletes the temporary directories, and exits with the status that `end` has returned.
///
/// # Errors
/// No thread can be started.
pub fn watch(limit: Option<Duration>, end: impl Fn(Late) -> u8 + Send + 'static) -> Result<()> {
    let interrupt = interrupted().context("cannot watch for signals")?;
    let mut watch = lock(&WATCH);
    thread::Builder::new()
        .name("startup".into())
        .spawn(move || {
            // Without poll(2) there is no watch.
            let _ = work(interrupt, end);
        })
        .context("cannot start a thread")?;
    watch.is_wanted = true;
    watch.arm(limit);
    Ok(())
}

fn work(interrupt: BorrowedFd<'_>, end: impl Fn(Late) -> u8) -> io::Result<()> {
    loop {
        let mut watch = lock(&WATCH);
        while !watch.is_armed {
            watch = ARMED.wait(watch).unwrap_or_else(PoisonError::into_inner);
        }
        let slice = watch.left().map_or(SLICE, |left| left.min(SLICE));
        drop(watch);
        let has_come = ready(&[(interrupt, PollFlags::IN)], Some(slice))?[0];
        if has_come {
            // Most steps end by themselves after a signal.
            thread::sleep(FORCED_GRACE);
        }
        let mut watch = lock(&WATCH);
        let left = watch.left();
        watch.left = left.map(|left| (Instant::now(), left));
        let late = match left {
            _ if !watch.is_armed => continue,
            _ if has_come => Late::Interrupted,
            Some(Duration::ZERO) => Late::TimedOut,
            _ => continue,
        };
        // The lock is kept, so that nothing is started, created or reported meanwhile.
        let status = end(late);
        let dirs = std::mem::take(&mut watch.dirs);
        answer_of(Some(SOON), move || {
            for dir in dirs {
                // It may be gone already.
                let _ = fs::remove_dir_all(dir);
            }
        });
        std::process::exit(status.into());
    }
}

/// A machine runs, and its own loop watches for signals and the limit; or the work has ended by itself.
/// Returns when the limit of [`watch`] will have passed.
pub fn ends() -> Option<Instant> {
    let mut watch = lock(&WATCH);
    watch.is_armed = false;
    let left = watch.left();
    watch.left = None;
    Instant::now().checked_add(left?)
}

/// No machine runs any more: another one will be started before `limit` passes.
pub(crate) fn begins_again(limit: Option<Instant>) {
    let mut watch = lock(&WATCH);
    if watch.is_wanted {
        watch.arm(limit.map(|at| at.saturating_duration_since(Instant::now())));
    }
}

/// Adds a temporary directory to those that [`watch`] deletes.
pub(crate) fn created(dir: &Path) {
    lock(&WATCH).dirs.push(dir.to_owned());
}
