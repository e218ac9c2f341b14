//! Threads that answer requests in addition to each queue's own thread.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::lock::lock;

/// A pool of threads. Dropping it joins them.
pub(super) struct Pool<Job> {
    shared: Arc<Shared<Job>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<Job> {
    state: Mutex<State<Job>>,
    ready: Condvar,
}

struct State<Job> {
    /// Jobs that were offered; never more than there are idle threads.
    jobs: Vec<Job>,
    idle: usize,
    ending: bool,
}

impl<Job: Send + 'static> Pool<Job> {
    /// Starts `threads` threads, which call `work` for each job. `work` must not panic.
    pub(super) fn new(
        threads: usize,
        work: impl Fn(Job) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let mut pool = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    jobs: Vec::new(),
                    idle: threads,
                    ending: false,
                }),
                ready: Condvar::new(),
            }),
            threads: Vec::new(),
        };
        for number in 0..threads {
            let (shared, work) = (Arc::clone(&pool.shared), work.clone());
            let thread = thread::Builder::new()
                .name(format!("share-{number}"))
                .spawn(move || shared.run(&work))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Gives the job to an idle thread; returns the job if no thread is idle.
    pub(super) fn offer(&self, job: Job) -> Option<Job> {
        let mut state = lock(&self.shared.state);
        if state.jobs.len() >= state.idle {
            return Some(job);
        }
        state.jobs.push(job);
        drop(state);
        self.shared.ready.notify_one();
        None
    }
}

impl<Job> Shared<Job> {
    fn run(&self, work: &dyn Fn(Job)) {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop() {
                state.idle -= 1;
                drop(state);
                work(job);
                state = lock(&self.state);
                state.idle += 1;
            } else if state.ending {
                return;
            } else {
                state = self
                    .ready
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl<Job> Drop for Pool<Job> {
    fn drop(&mut self) {
        lock(&self.shared.state).ending = true;
        self.shared.ready.notify_all();
        for thread in self.threads.drain(..) {
            // `work` does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    #[test]
    fn a_job_is_taken_if_and_only_if_a_thread_is_idle() {
        const THREADS: usize = 2;
        let (started, is_started) = channel();
        let pool = Pool::new(THREADS, move |job: std::sync::mpsc::Receiver<()>| {
            started.send(()).unwrap();
            // Until the test drops the sender.
            let _ = job.recv();
        })
        .unwrap();
        for round in 0..3 {
            let mut ends = Vec::new();
            for _ in 0..THREADS {
                let (end, job) = channel();
                let mut refused = pool.offer(job);
                // The threads of the last round become idle a moment after their jobs end.
                let deadline = Instant::now() + Duration::from_secs(60);
                while let Some(job) = refused {
                    assert!(round > 0 && Instant::now() < deadline, "no thread is idle");
                    thread::yield_now();
                    refused = pool.offer(job);
                }
                ends.push(end);
            }
            for _ in 0..THREADS {
                is_started.recv_timeout(Duration::from_secs(60)).unwrap();
            }
            let (_end, job) = channel();
            assert!(pool.offer(job).is_some(), "all threads are busy");
        }
    }
}
