//! Decides whether a queue's thread polls its ring before it sleeps.
//!
//! Waking a thread takes longer than answering a small request. So, as in the halt polling of KVM,
//! the thread polls for a short time, but only if the last request arrived within that time after
//! the one before it: an idle guest, or one that computes, costs nothing. On a busy machine a thread
//! that polls loses its turn to others, while a thread that sleeps is preferred when it wakes.

use std::time::{Duration, Instant};

/// How long a request queue's thread polls its ring between requests in quick succession. Between
/// two requests of `find`, an emulated guest takes 100 to 500 us.
const PATIENCE: Duration = Duration::from_micros(500);

/// A thread that yields its processor for longer than this has given it to one with other work. The
/// threads of a guest that waits for the next reply need it for a shorter time.
const BUSY: Duration = Duration::from_millis(1);

/// How long a thread does not poll after that.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the thread of the queue `number` polls its ring on a host with `processors`.
pub(super) fn patience(number: usize, processors: usize) -> Duration {
    // With a single processor, the guest cannot run while a thread polls. The guest does not wait
    // for FORGET, the request of the hiprio queue 0.
    if processors > 1 && number > 0 {
        PATIENCE
    } else {
        Duration::ZERO
    }
}

/// The state of one queue. It has no clock of its own: the callers say what time it is.
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
    pub(super) fn new(patience: Duration, now: Instant) -> Self {
        Self {
            patience,
            answered: now,
            is_quick: false,
            paused: now,
        }
    }

    /// Call this when a request has arrived.
    pub(super) fn arrived(&mut self, now: Instant) {
        self.is_quick = now >= self.paused && now - self.answered < self.patience;
    }

    /// Call this when a request has been answered.
    pub(super) fn answered(&mut self, now: Instant) {
        self.answered = now;
    }

    /// Whether the thread is to poll its ring again instead of sleeping. It yields its processor
    /// to other threads first, and calls [`Pace::yielded`] afterwards.
    pub(super) fn polls(&self, now: Instant) -> bool {
        self.is_quick && now - self.answered < self.patience
    }

    /// Call this when the thread has yielded its processor from `start` to `end`.
    pub(super) fn yielded(&mut self, start: Instant, end: Instant) {
        if end - start > BUSY {
            self.is_quick = false;
            self.paused = end + PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_nanos(1);

    /// Lets a request arrive at `now` and be answered at once. Returns whether the thread polls
    /// then.
    fn request(pace: &mut Pace, now: Instant) -> bool {
        pace.arrived(now);
        pace.answered(now);
        pace.polls(now)
    }

    #[test]
    fn a_queue_polls_only_after_two_requests_in_quick_succession() {
        let mut now = Instant::now();
        let mut pace = Pace::new(PATIENCE, now);
        assert!(!pace.polls(now), "before the first request");
        now += PATIENCE;
        assert!(!request(&mut pace, now), "the request arrived late");
        now += PATIENCE - TICK;
        assert!(request(&mut pace, now), "the request arrived in time");
        assert!(pace.polls(now + PATIENCE - TICK));
        assert!(!pace.polls(now + PATIENCE), "it has polled long enough");
        now += PATIENCE;
        assert!(!request(&mut pace, now), "the request arrived late again");
    }

    #[test]
    fn the_time_for_an_answer_does_not_count() {
        let mut now = Instant::now();
        let mut pace = Pace::new(PATIENCE, now);
        pace.arrived(now);
        now += PATIENCE * 10;
        pace.answered(now);
        assert!(pace.polls(now + PATIENCE - TICK));
    }

    #[test]
    fn a_busy_machine_is_not_polled_on_for_a_while() {
        let mut now = Instant::now();
        let mut pace = Pace::new(PATIENCE, now);
        assert!(request(&mut pace, now));
        pace.yielded(now, now + BUSY);
        assert!(pace.polls(now), "the guest's own threads ran");
        pace.yielded(now, now + BUSY + TICK);
        assert!(!pace.polls(now));
        let end = now + BUSY + TICK + PAUSE;
        while now + PATIENCE / 2 < end {
            now += PATIENCE / 2;
            assert!(!request(&mut pace, now));
        }
        assert!(request(&mut pace, end));
    }

    #[test]
    fn only_request_queues_poll_and_only_beside_another_processor() {
        assert_eq!([1, 8].map(|number| patience(number, 2)), [PATIENCE; 2]);
        assert_eq!(patience(0, 2), Duration::ZERO);
        assert_eq!(patience(1, 1), Duration::ZERO);
    }

    #[test]
    fn a_queue_without_patience_never_polls() {
        let now = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, now);
        assert!(!request(&mut pace, now));
    }
}
