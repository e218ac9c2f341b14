//! The vhost-user device: QEMU's requests about queues and memory are vhost-user-backend's, what is
//! in the queues is ours.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::{io, thread};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::connection::Status;
use super::lock;
use super::ring::{Chain, InFlight, Memory, Ring};
use super::service::{Service, Taken, message};

/// QEMU's greatest for vhost-user-fs.
const QUEUE_SIZE: usize = 1024;

/// A request on its way to a thread of the pool.
struct Job {
    ring: Ring,
    chain: Chain,
    flight: InFlight,
    taken: Taken,
}

/// The device that one QEMU sees.
pub(super) struct Device {
    service: Arc<Service>,
    memory: OnceLock<Memory>,
    /// The hiprio queue and the request queues (virtio 1.2, 5.11.2), once they were used.
    rings: Vec<OnceLock<Ring>>,
    status: Arc<Status>,
    /// Of all queues; without a pool each queue's own thread answers.
    jobs: Option<Mutex<Sender<Job>>>,
    exit: (EventConsumer, EventNotifier),
    /// The copies of it that the queues' threads were given.
    given: Mutex<Vec<RawFd>>,
}

impl Drop for Device {
    fn drop(&mut self) {
        for fd in lock(&self.given).drain(..) {
            // SAFETY: a queue's thread took it by `into_raw_fd`, and never closes it. The threads have
            // a reference to us until they have ended: nobody else has the descriptor any more.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// The threads that answer; dropping it waits for them.
pub(super) struct Pool(Vec<JoinHandle<()>>);

impl Drop for Pool {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            // It contains its panics.
            let _ = thread.join();
        }
    }
}

impl Device {
    /// A device with so many request queues, and its `threads`, which end when the device is dropped.
    pub(super) fn new(
        service: Arc<Service>,
        status: Arc<Status>,
        request_queues: usize,
        threads: usize,
    ) -> io::Result<(Self, Pool)> {
        // Dropped after the sender, whose end is the threads' end.
        let mut pool = Pool(Vec::new());
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..threads {
            let (service, status) = (Arc::clone(&service), Arc::clone(&status));
            let receiver = Arc::clone(&receiver);
            let thread = thread::Builder::new()
                .name(format!("share-{number}"))
                .spawn(move || work(&service, &status, &receiver))?;
            pool.0.push(thread);
        }
        let device = Self {
            service,
            memory: OnceLock::new(),
            rings: (0..=request_queues).map(|_| OnceLock::new()).collect(),
            status,
            jobs: (threads > 0).then(|| Mutex::new(sender)),
            exit: new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK)?,
            given: Mutex::default(),
        };
        Ok((device, pool))
    }

    /// Ends all waiting: QEMU is gone.
    pub(super) fn hurry(&self) {
        for ring in self.rings.iter().filter_map(OnceLock::get) {
            ring.hurry();
        }
    }

    fn serve(&self, ring: &Ring) {
        let Some(memory) = self.memory.get() else {
            return;
        };
        // A queue that makes no sense is left alone until the guest resets it.
        while let Ok(Some((chain, flight))) = ring.take(memory) {
            let taken = self.service.take(&chain);
            if taken.verdict.disconnect {
                self.status.hang_up();
            }
            let job = Job {
                ring: ring.clone(),
                chain,
                flight,
                taken,
            };
            match &self.jobs {
                // The pool lives as long as we do.
                Some(jobs) => drop(lock(jobs).send(job)),
                None => answer(&self.service, &self.status, job),
            }
        }
    }
}

fn work(service: &Service, status: &Status, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = lock(jobs).recv();
        match job {
            Ok(job) => answer(service, status, job),
            Err(_) => return,
        }
    }
}

fn answer(service: &Service, status: &Status, job: Job) {
    let head = job.chain.head_index();
    let answer = || service.answer(&job.chain, &job.taken, Some(&job.flight));
    match catch_unwind(AssertUnwindSafe(answer)) {
        Ok(answer) => {
            if let Some(panic) = answer.panic {
                status.fail(&format!("it panicked: {panic}"));
            }
            if let Some(used) = answer.used {
                job.ring.give_back(head, used);
            }
        }
        Err(panic) => status.fail(&format!("it panicked: {}", message(&*panic))),
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        self.rings.len()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    /// A thread for each queue: none waits for another.
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.rings.len()).map(|queue| 1 << queue).collect()
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        // Always the same one; what is in it changes.
        self.memory.get_or_init(|| memory);
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = &self.exit;
        let (consumer, notifier) = (consumer.try_clone().ok()?, notifier.try_clone().ok()?);
        lock(&self.given).push(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        rings: &[Ring],
        thread: usize,
    ) -> io::Result<()> {
        let serve = || {
            // A thread has one queue.
            if let (Some(known), [ring]) = (self.rings.get(thread), rings) {
                self.serve(known.get_or_init(|| ring.clone()));
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(serve)) {
            self.status
                .fail(&format!("it panicked: {}", message(&*panic)));
        }
        // An error would end the queue's thread without a word.
        Ok(())
    }
}
