//! The device: takes requests from its queues, and returns replies.

use crate::{
    backend::{Backend, Scripted},
    chain::Chain,
    log::Log,
    quirks::{Quirks, Reset},
    reply::{Reply, When},
    request::Request,
    ring::Ring,
    tree::Tree,
};
use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender},
    },
};
use virtio_drivers::transport::DeviceStatus;

struct Pending {
    due: u64,
    chain: Chain,
    request: Option<Request>,
    reply: Reply,
}

#[derive(Default)]
pub(crate) struct State {
    pub quirks: Quirks,
    pub status: DeviceStatus,
    /// The features that the driver has accepted.
    pub features: u64,
    /// The reads of the status register until the pending reset is confirmed; `None` if none is pending.
    pub reset_left: Option<u64>,
    pub rings: Vec<Option<Ring>>,
    pub generation: u32,
    pub generation_reads: u32,
    pub config_reads: u8,
    /// The number of ticks so far.
    now: u64,
    pending: Vec<Pending>,
    /// The number of resets.
    epoch: u64,
    /// The number of chains that workers have.
    pub busy: usize,
    notifications: u64,
    interrupts: u64,
    /// Whether an interrupt was raised and is not acknowledged yet.
    pub is_interrupting: bool,
    /// The number of ticks and notifications so far.
    events: u64,
    /// Ignores the queues until the next reset, because the device has overwritten parts of them.
    deaf: bool,
    pub log: Log,
}

struct Inner {
    state: Mutex<State>,
    idle: Condvar,
    backend: Box<dyn Backend>,
    workers: Option<Mutex<Sender<Job>>>,
}

/// The work for a worker.
type Job = (Arc<Inner>, Taken);

/// A chain with its request; `None` if it is not valid.
type Taken = (Chain, Option<Request>);

/// A virtio-fs device in the memory of this process. Clones refer to the same device.
///
/// It serves each request during the driver's notification, on the driver's thread, so the order is the same in
/// each run.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Device")
    }
}

impl Device {
    /// A device that serves `tree`.
    #[must_use]
    pub fn new(tree: Tree) -> Self {
        Self::serving(tree, None)
    }

    /// A device that serves `tree`. `script` gets each request and the reply of a good host, and returns the reply.
    #[must_use]
    pub fn with_script(
        tree: Tree,
        script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
    ) -> Self {
        Self::serving(Scripted::new(tree, script), None)
    }

    fn serving(backend: impl Backend + 'static, workers: Option<Sender<Job>>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            idle: Condvar::new(),
            backend: Box::new(backend),
            workers: workers.map(Mutex::new),
        }))
    }

    /// Whether a driver uses the device: from mounting until the next reset.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.lock().status.is_empty()
    }

    /// Locks the state, even after a panic in a test: other threads must be able to continue and to see its end.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Handles a notification by the driver of new requests in `queue`.
    pub(crate) fn notified(&self, queue: u16) {
        let mut state = self.lock();
        state.notifications += 1;
        state.event();
        if !state.deaf {
            drop(state);
            self.0.serve(queue);
        }
    }

    /// Waits until no worker accesses memory any more.
    pub(crate) fn idle<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        while state.busy > 0 {
            let waited = self.0.idle.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Confirms the pending reset, and each later one at once.
    pub(crate) fn switch_off(&self) {
        let mut state = self.lock();
        state.quirks.reset = Reset::AtOnce;
        if state.reset_left.is_some() {
            state.confirm_reset();
        }
    }

    /// Advances the device's time by one tick and returns the replies that are due. [`VirtualClock`](crate::VirtualClock) calls this.
    /// With another clock, the test has to call it if replies are late.
    pub fn tick(&self) {
        let mut state = self.lock();
        state.event();
        state.now += 1;
        let now = state.now;
        let due = state.pending.extract_if(.., |pending| pending.due <= now);
        let due: Vec<_> = due.collect();
        for pending in due {
            state.give_back(pending);
        }
        if state.reset_left.is_some() {
            // A device may write until it confirms the reset.
            for pending in &state.pending {
                pending.chain.scribble();
            }
        }
        if state.quirks.polls && state.status.contains(DeviceStatus::DRIVER_OK) {
            let queues = state.rings.len();
            for queue in 0..queues {
                if state.rings.get(queue).is_some_and(Option::is_some) {
                    drop(state);
                    self.0.serve(queue as u16);
                    state = self.lock();
                }
            }
        }
    }
}

#[cfg(feature = "raw")]
impl Device {
    /// A device whose requests `backend` answers.
    #[must_use]
    pub fn with_backend(backend: impl Backend + 'static) -> Self {
        Self::serving(backend, None)
    }

    /// A device that serves requests on `threads` threads, while the driver continues. Replies come in any order.
    #[must_use]
    pub fn threaded(backend: impl Backend + 'static, threads: usize) -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads {
            let receiver = Arc::clone(&receiver);
            std::thread::spawn(move || work(&receiver));
        }
        Self::serving(backend, Some(sender))
    }

    /// Changes properties of the device.
    pub fn quirk(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut self.lock().quirks);
    }

    /// Reads the record of requests.
    pub fn log<R>(&self, read: impl FnOnce(&Log) -> R) -> R {
        read(&self.lock().log)
    }

    /// Clears the record of requests.
    pub fn forget_requests(&self) {
        self.lock().log.requests.clear();
    }

    /// The number of resets that the device has confirmed.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.lock().epoch
    }

    /// The number of replies for which the driver wanted an interrupt.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.lock().interrupts
    }

    /// The number of notifications that the device has received.
    #[must_use]
    pub fn notifications(&self) -> u64 {
        self.lock().notifications
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap().recv();
        let Ok((inner, taken)) = job else {
            return;
        };
        let done = inner.answer(taken);
        inner.settle(vec![done]);
        inner.lock().busy -= 1;
        inner.idle.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all requests in a queue and answers them.
    fn serve(self: &Arc<Self>, queue: u16) {
        let taken = self.lock().take(queue);
        if let Some(workers) = &self.workers {
            self.lock().busy += taken.len();
            let workers = workers.lock().unwrap();
            for taken in taken {
                workers.send((Arc::clone(self), taken)).expect("a worker");
            }
        } else if !taken.is_empty() {
            let done = taken.into_iter().map(|taken| self.answer(taken));
            self.settle(done.collect());
        }
    }

    /// Asks the backend. The state is not locked meanwhile.
    fn answer(&self, (chain, request): Taken) -> (Chain, Option<Request>, Reply) {
        let reply = match &request {
            Some(request) => self.backend.answer(&chain, request),
            // The driver's fault; it was recorded when the chain was taken.
            None => Reply::none().never(),
        };
        (chain, request, reply)
    }

    fn settle(&self, mut done: Vec<(Chain, Option<Request>, Reply)>) {
        let mut state = self.lock();
        state.quirks.order.arrange(&mut done, state.now);
        for (chain, request, reply) in done {
            if let Some(fault) = &reply.fault {
                state.log.broken(fault.clone());
            }
            let due = match reply.when {
                When::Now => 0,
                When::After(ticks) => state.now + ticks,
                When::Never => u64::MAX,
            };
            let pending = Pending {
                due,
                chain,
                request,
                reply,
            };
            if due == 0 {
                state.give_back(pending);
            } else {
                state.pending.push(pending);
            }
        }
    }
}

impl State {
    /// A tick or a notification: performs the scribbles on the queues that are due.
    fn event(&mut self) {
        let now = self.events;
        self.events += 1;
        assert!(now < self.quirks.patience, "the client waits for ever");
        let mut scribbles = std::mem::take(&mut self.quirks.scribbles);
        scribbles.retain(|scribble| {
            let due = scribble.event <= now;
            if due && let Some(Some(ring)) = self.rings.get(usize::from(scribble.queue)) {
                ring.scribble(scribble);
                self.deaf = true;
            }
            !due
        });
        self.quirks.scribbles = scribbles;
    }

    fn take(&mut self, queue: u16) -> Vec<Taken> {
        if !self.status.contains(DeviceStatus::DRIVER_OK) {
            self.log.broken("a notification before DRIVER_OK");
            return Vec::new();
        }
        let epoch = self.epoch;
        let mut all = Vec::new();
        let Some(Some(ring)) = self.rings.get_mut(usize::from(queue)) else {
            self.log.broken(format!("a notification for queue {queue}"));
            return all;
        };
        while let Some(popped) = ring.pop() {
            let chain = match popped {
                Ok(taken) => taken.into_chain(queue, epoch),
                Err(fault) => {
                    self.log.broken(fault);
                    break;
                }
            };
            let request = Request::parse(&chain);
            if self.quirks.records {
                match &request {
                    Ok(request) => self.log.asked(request),
                    Err(fault) => self.log.broken(fault.clone()),
                }
            }
            all.push((chain, request.ok()));
        }
        all
    }

    fn give_back(&mut self, pending: Pending) {
        let Pending {
            chain,
            request,
            reply,
            ..
        } = pending;
        if chain.epoch != self.epoch {
            return;
        }
        chain.write(&reply.bytes);
        if let Some(request) = request
            && self.quirks.records
        {
            self.log.answered(&request, &chain.reply(32), reply.used);
        }
        let Some(Some(ring)) = self.rings.get_mut(usize::from(chain.queue)) else {
            return;
        };
        if ring.wants_interrupt() {
            self.interrupts += 1;
            self.is_interrupting = true;
        }
        for _ in 0..reply.times {
            ring.push(reply.id.unwrap_or(chain.head.into()), reply.used);
        }
        if reply.jump > 0 {
            ring.jump(reply.jump);
        }
    }

    pub fn confirm_reset(&mut self) {
        self.epoch += 1;
        self.pending.clear();
        self.log.reset();
        self.reset_left = None;
        self.status = DeviceStatus::empty();
        self.features = 0;
        self.rings.fill(None);
        self.deaf = false;
    }
}
