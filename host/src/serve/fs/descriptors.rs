//! Descriptors of the share's files: how many there may be, and which of them are closed to make
//! room. The limit is the process's, so all shares of a process count together.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Weak};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::serve::lock;

/// Files that are kept open only because the guest knows them: each holds about 1 KiB of the host
/// kernel's memory.
const MOST_CACHED: usize = 1 << 16;

/// Descriptors that exist.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// How many there may be; 0 as long as nobody has asked.
static LIMIT: AtomicUsize = AtomicUsize::new(0);

static CLOCK: Mutex<Clock> = Mutex::new(Clock {
    places: Vec::new(),
    hand: 0,
});

/// A descriptor of a file of the share, counted.
#[derive(Debug)]
pub(super) struct Held {
    fd: OwnedFd,
    /// Opened for reading, not only held by O_PATH.
    pub(super) readable: bool,
}

impl Held {
    pub(super) fn new(fd: OwnedFd, readable: bool) -> Self {
        COUNT.fetch_add(1, Ordering::Relaxed);
        Self { fd, readable }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What can do without its descriptors for a while.
pub(super) trait Evict: Send + Sync {
    /// Whether it was used since this was asked last.
    fn was_used(&self) -> bool;

    /// Closes its descriptors, unless one is in use.
    fn release(&self) -> bool;
}

/// The second-chance algorithm: a hand goes round, and who was not used since its last round loses.
struct Clock {
    places: Vec<Weak<dyn Evict>>,
    hand: usize,
}

impl Clock {
    fn evict_one(&mut self) -> bool {
        for _ in 0..2 * self.places.len() {
            if self.hand >= self.places.len() {
                self.hand = 0;
            }
            let Some(place) = self.places.get(self.hand) else {
                return false;
            };
            match place.upgrade() {
                // It is gone, and its descriptors with it.
                None => drop(self.places.swap_remove(self.hand)),
                Some(found) if !found.was_used() && found.release() => {
                    self.places.swap_remove(self.hand);
                    return true;
                }
                Some(_) => self.hand += 1,
            }
        }
        false
    }
}

/// Raises the process's limit of open files as far as it goes, or sets it to `wanted`.
pub(super) fn raise_limit(wanted: Option<u64>) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let limit = wanted.or(maximum);
    if limit != current {
        let beyond = maximum.zip(limit).is_some_and(|(most, limit)| limit > most);
        let new = Rlimit {
            current: limit,
            maximum: if beyond { limit } else { maximum },
        };
        setrlimit(Resource::Nofile, new).with_context(|| {
            let [limit, most] =
                [limit, maximum].map(|n| n.map_or("none".into(), |n| n.to_string()));
            format!("cannot set the limit of open files to {limit}; the hard limit is {most}")
        })?;
    }
    let limit = usize::try_from(limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    // The rest is for sockets, queues and the console.
    let rest = (limit / 8).clamp(40, 256);
    LIMIT.store(limit.saturating_sub(rest).max(1), Ordering::Relaxed);
    Ok(())
}

/// Makes room for one more descriptor.
pub(super) fn reserve() -> Result<(), Errno> {
    let limit = LIMIT.load(Ordering::Relaxed);
    while COUNT.load(Ordering::Relaxed) >= limit {
        if !lock(&CLOCK).evict_one() {
            static TOLD: AtomicBool = AtomicBool::new(false);
            if !TOLD.swap(true, Ordering::Relaxed) {
                eprintln!(
                    "bootshare-host: warning: a guest has {limit} files open, as many as the limit \
                     of open files allows, and gets ENFILE for more: raise the limit (ulimit -Hn, \
                     or serve --rlimit-nofile)"
                );
            }
            return Err(Errno::NFILE);
        }
    }
    Ok(())
}

/// Has the descriptors of `who` closed some time, when room is needed.
pub(super) fn cache(who: Weak<dyn Evict>) {
    let mut clock = lock(&CLOCK);
    if clock.places.len() >= MOST_CACHED {
        clock.evict_one();
    }
    clock.places.push(who);
}
