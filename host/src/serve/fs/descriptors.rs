//! Descriptors of the shares' files: their number is limited, and unused ones are closed to make
//! room. The limit applies to the process, so all shares count together.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Weak};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::lock::lock;
use crate::output;

/// The most files that are kept open only because the guest has a node of them. Each takes about 1
/// KiB of the host kernel's memory.
const MOST_CACHED: usize = 1 << 16;

/// The number of open descriptors.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The limit; 0 until it is first needed.
static LIMIT: AtomicUsize = AtomicUsize::new(0);

static CLOCK: Mutex<Clock> = Mutex::new(Clock {
    places: Vec::new(),
    hand: 0,
});

/// A descriptor of a file of a share, which counts towards the limit.
#[derive(Debug)]
pub(super) struct Held {
    fd: OwnedFd,
    /// Whether it is open for reading rather than with O_PATH.
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

/// Owners of descriptors that can be closed and reopened later.
pub(super) trait Evict: Send + Sync {
    /// Whether it was used since the last call.
    fn was_used(&self) -> bool;

    /// Closes its descriptors, unless one is in use.
    fn release(&self) -> bool;
}

/// The second-chance (clock) algorithm: the hand closes the first node that was not used since the
/// hand last passed it.
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
                // It was dropped, which closed its descriptors.
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

/// Raises the process's limit of open files to the hard limit, or sets it to `wanted`.
///
/// # Errors
/// The limit is above the hard limit.
pub fn raise_open_files(wanted: Option<u64>) -> Result<()> {
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
    // What is open already, also by the caller who left it open, and a rest for sockets, signals and queues: a
    // server with one request queue needs 24. Descriptors above the limit take no place below it.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| {
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        names.filter(|&fd: &usize| fd < limit).count()
    });
    let others = open.saturating_sub(COUNT.load(Ordering::Relaxed));
    let rest = (limit / 4).clamp(40, 256) + others;
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
                output::note(format_args!(
                    "warning: a guest has {limit} files open, as many as the limit of open files \
                     allows, and gets ENFILE for more: raise the limit (ulimit -Hn, or serve \
                     --rlimit-nofile)"
                ));
            }
            return Err(Errno::NFILE);
        }
    }
    Ok(())
}

/// Allows the descriptors of `who` to be closed when room is needed.
pub(super) fn cache(who: Weak<dyn Evict>) {
    let mut clock = lock(&CLOCK);
    if clock.places.len() >= MOST_CACHED {
        clock.evict_one();
    }
    clock.places.push(who);
}

/// Removes the entries of owners that were dropped: an entry keeps the memory of its owner allocated.
pub(super) fn forget_dropped() {
    let places = &mut lock(&CLOCK).places;
    places.retain(|place| place.strong_count() > 0);
    places.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Owner;

    impl Evict for Owner {
        fn was_used(&self) -> bool {
            true
        }

        fn release(&self) -> bool {
            false
        }
    }

    #[test]
    fn an_owner_that_was_dropped_leaves_no_entry() {
        let owner: Arc<dyn Evict> = Arc::new(Owner);
        let entry = Arc::downgrade(&owner);
        cache(entry.clone());
        let is_kept = || lock(&CLOCK).places.iter().any(|place| place.ptr_eq(&entry));
        forget_dropped();
        assert!(is_kept());
        drop(owner);
        forget_dropped();
        assert!(!is_kept());
    }
}
