//! Decides whether a queue's thread polls its ring before it sleeps.
//!
//! Waking a thread takes longer than answering a small request. So, as in the halt polling of KVM,
//! the thread polls for a short time, but only if the last request arrived within that time after
//! the one before it: an idle guest, or one that computes, costs nothing. On a busy machine a thread
//! that polls loses its turn to others, while a thread that sleeps is preferred when it wakes.

use std::thread;
use std::time::{Duration, Instant};

/// A thread that yields its processor for longer than this has given it to one with other work. The
/// threads of a guest that waits for the next reply need it for a shorter time.
const BUSY: Duration = Duration::from_millis(1);

/// How long a thread does not poll after that.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Pace {
    /// How long the thread polls; zero for never.
    patience: Duration,
    /// When the last request was answered.
    answered: Instant,
    /// Whether the last request arrived within `patience` after the one before it.
    is_quick: bool,
    /// Until when the thread does not poll, because the machine was busy.
    paused: Instant,
}

impl Pace {
    pub(super) fn new(patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            patience,
            answered: now,
            is_quick: false,
            paused: now,
        }
    }

    /// Call this when a request has arrived.
    pub(super) fn arrived(&mut self) {
        let now = Instant::now();
        self.is_quick = now >= self.paused && now - self.answered < self.patience;
    }

    /// Call this when a request has been answered.
    pub(super) fn answered(&mut self) {
        self.answered = Instant::now();
    }

    /// Whether the thread is to poll its ring again instead of sleeping. Lets other threads run
    /// first.
    pub(super) fn polls(&mut self) -> bool {
        let start = Instant::now();
        if !self.is_quick || start - self.answered >= self.patience {
            return false;
        }
        thread::yield_now();
        self.yielded(start.elapsed());
        self.is_quick
    }

    fn yielded(&mut self, time: Duration) {
        if time > BUSY {
            self.is_quick = false;
            self.paused = Instant::now() + PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than this test runs.
    const LONG: Duration = Duration::from_secs(100_000);

    #[test]
    fn a_queue_polls_only_after_two_requests_in_quick_succession() {
        let mut pace = Pace::new(LONG);
        assert!(!pace.polls(), "before the first request");
        pace.arrived();
        pace.answered();
        assert!(pace.polls(), "the request arrived soon");
        pace.patience = Duration::from_nanos(1);
        thread::sleep(Duration::from_millis(1));
        assert!(!pace.polls(), "it has polled long enough");
        pace.arrived();
        pace.patience = LONG;
        pace.answered();
        assert!(!pace.polls(), "the request arrived late");
        pace.arrived();
        pace.answered();
        assert!(pace.polls(), "the request arrived soon again");
    }

    #[test]
    fn a_busy_machine_is_not_polled_on_for_a_while() {
        let quick = |pace: &mut Pace| {
            pace.arrived();
            pace.answered();
            pace.is_quick
        };
        let mut pace = Pace::new(LONG);
        assert!(quick(&mut pace));
        pace.yielded(BUSY);
        assert!(pace.is_quick, "the guest's own threads");
        pace.yielded(BUSY + Duration::from_nanos(1));
        assert!(!pace.polls());
        pace.paused += LONG;
        assert!(!quick(&mut pace));
        pace.paused = Instant::now();
        assert!(quick(&mut pace));
    }

    #[test]
    fn a_queue_without_patience_never_polls() {
        let mut pace = Pace::new(Duration::ZERO);
        pace.arrived();
        pace.answered();
        assert!(!pace.polls());
    }
}
