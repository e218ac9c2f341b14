//! A place of the table of the SIGBUS handler, for one mapping.
//!
//! It is made of atomics because a signal handler can neither allocate nor lock. Between any two of
//! the handler's loads, other connections may free the place and take it for other mappings.
//!
//! The order of the accesses is model-checked: `tests/in-process/tests/place_model` compiles this
//! file with loom's atomics.

use super::{AtomicI32, AtomicUsize, Ordering, fence};

pub(super) struct Place {
    /// How often the place was taken. The addresses do not suffice to tell mappings apart, because
    /// mmap(2) returns the same ones again.
    pub(super) turn: AtomicUsize,
    /// 0: free; 1: being filled.
    pub(super) start: AtomicUsize,
    pub(super) size: AtomicUsize,
    pub(super) lost: AtomicI32,
}

/// What a place says of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: usize,
    pub(super) size: usize,
    /// The eventfd that is raised when the mapping was replaced.
    pub(super) lost: i32,
}

impl Place {
    /// Takes the place if it is free. Returns whether it was.
    pub(super) fn take(&self, entry: Entry) -> bool {
        // Acquire: the stores below come after those of the one who had the place before.
        let taken = self
            .start
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            return false;
        }
        // Release: who reads this turn reads no earlier address.
        self.turn.fetch_add(1, Ordering::Release);
        // Who reads one of the values stored below reads this turn, or a later one, after it.
        fence(Ordering::Release);
        self.size.store(entry.size, Ordering::Relaxed);
        self.lost.store(entry.lost, Ordering::Relaxed);
        self.start.store(entry.start, Ordering::Release);
        true
    }

    /// Frees the place. Only the one who has taken it may call this.
    pub(super) fn free(&self) {
        self.start.store(0, Ordering::Release);
    }

    /// Returns the entry, or nothing if the place is not in use or changes meanwhile.
    ///
    /// All values are of one turn. The address that is read is of the first turn read or of a later
    /// one, and the other values are of the address's turn or of a later one. If any is of a later
    /// turn than the first, the fences make the second read of the turn see that.
    pub(super) fn read(&self) -> Option<Entry> {
        let turn = self.turn.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        let size = self.size.load(Ordering::Relaxed);
        let lost = self.lost.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let whole = start > 1 && self.turn.load(Ordering::Relaxed) == turn;
        whole.then_some(Entry { start, size, lost })
    }
}
