//! The device, and the transport through which a driver sees it.

use crate::{
    backend::{Answer, Backend, When},
    chain::Chain,
    hal::TestHal,
    log::Log,
    ring::Ring,
    wire::Request,
};
use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
};
use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How the answers of one batch are given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they were asked.
    #[default]
    Asked,
    /// The last one first.
    Reversed,
    /// In an order that a seed decides.
    Shuffled(u64),
}

/// What the device makes of a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// It is confirmed when the status is read that many times.
    After(u32),
    /// It is confirmed at once.
    #[default]
    AtOnce,
    /// It is never confirmed.
    Never,
    /// So many are confirmed at once, the next ones never.
    NeverAfter(u32),
}

/// What a device is like.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// Features that it offers.
    pub features: u64,
    /// Whether `FEATURES_OK` stays set.
    pub accepts_features: bool,
    /// Largest size of each queue; the hiprio queue is the first.
    pub queues: Vec<u32>,
    /// The configuration space: a tag of 36 bytes and the number of request queues.
    pub config: Vec<u8>,
    /// How often the configuration's generation changes, in reads of it; 0: never.
    pub generation_lasts: u32,
    /// What becomes of a reset.
    pub reset: Reset,
    /// Queues are in use when the driver comes.
    pub queues_in_use: bool,
    /// In which order answers come.
    pub order: Order,
    /// The device asks not to be notified and looks at its queues with each tick.
    pub polls: bool,
    /// Whether requests are recorded and checked. A benchmark does without.
    pub records: bool,
}

impl Default for Quirks {
    fn default() -> Self {
        Self {
            features: 1 << 32,
            accepts_features: true,
            queues: vec![128, 128],
            config: Self::config_of(b"test", 1),
            generation_lasts: 0,
            reset: Reset::AtOnce,
            queues_in_use: false,
            order: Order::Asked,
            polls: false,
            records: true,
        }
    }
}

impl Quirks {
    /// The configuration space of a device with that tag, 36 bytes at most.
    #[must_use]
    pub fn config_of(tag: &[u8], request_queues: u32) -> Vec<u8> {
        let mut config = tag.to_vec();
        config.resize(36, 0);
        config.extend_from_slice(&request_queues.to_le_bytes());
        config
    }
}

struct Pending {
    due: u64,
    chain: Chain,
    request: Option<Request>,
    answer: Answer,
}

struct State {
    quirks: Quirks,
    status: DeviceStatus,
    /// Reads of the status until a reset under way is confirmed; `None`: there is none.
    reset_left: Option<u64>,
    driver_features: u64,
    rings: Vec<Option<Ring>>,
    generation: u32,
    generation_reads: u32,
    /// Ticks so far.
    now: u64,
    pending: Vec<Pending>,
    /// Counts resets.
    epoch: u64,
    /// Chains that a worker has.
    busy: usize,
    notifications: u64,
    log: Log,
}

struct Inner {
    state: Mutex<State>,
    idle: Condvar,
    backend: Box<dyn Backend>,
    workers: Option<Mutex<Sender<Job>>>,
}

/// What a worker gets.
type Job = (Arc<Inner>, Chain);

/// A virtio-fs device. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Device")
    }
}

impl Device {
    /// A device that serves within `notify`, on the driver's thread: the same each time.
    #[must_use]
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self::with_quirks(backend, Quirks::default())
    }

    /// As [`Device::new`], but with peculiarities.
    #[must_use]
    pub fn with_quirks(backend: impl Backend + 'static, quirks: Quirks) -> Self {
        Self(Arc::new(Inner::new(Box::new(backend), quirks, None)))
    }

    /// A device that serves on `threads` threads, so that answers come in any order, while the
    /// driver goes on.
    #[must_use]
    pub fn threaded(backend: impl Backend + 'static, quirks: Quirks, threads: usize) -> Self {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads {
            let receiver = Arc::clone(&receiver);
            std::thread::spawn(move || work(&receiver));
        }
        let sender = Some(Mutex::new(sender));
        Self(Arc::new(Inner::new(Box::new(backend), quirks, sender)))
    }

    /// A way to the device for a driver. The device outlives it and can have another.
    #[must_use]
    pub fn transport(&self) -> TestTransport {
        TestTransport(self.clone())
    }

    /// Changes what the device is like.
    pub fn quirk(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut self.0.lock().quirks);
    }

    /// Reads the record.
    pub fn log<R>(&self, read: impl FnOnce(&Log) -> R) -> R {
        read(&self.0.lock().log)
    }

    /// Starts the record of requests anew.
    pub fn forget_requests(&self) {
        self.0.lock().log.requests.clear();
    }

    /// How many resets the device confirmed.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.0.lock().epoch
    }

    /// How many notifications the device got.
    #[must_use]
    pub fn notifications(&self) -> u64 {
        self.0.lock().notifications
    }

    /// Whether a driver has the device.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.0.lock().status.is_empty()
    }

    /// Lets the device's time go on: answers that are due are given.
    pub fn tick(&self) {
        let mut state = self.0.lock();
        state.now += 1;
        let now = state.now;
        let due = state.pending.extract_if(.., |pending| pending.due <= now);
        let due: Vec<_> = due.collect();
        for pending in due {
            state.give_back(pending);
        }
        if state.reset_left.is_some() {
            // It need not stop before it confirms.
            for pending in &state.pending {
                pending.chain.scribble();
            }
        }
        if state.quirks.polls && state.status.contains(DeviceStatus::DRIVER_OK) {
            let set_up: Vec<_> = state.rings.iter().map(Option::is_some).collect();
            drop(state);
            for (queue, _) in set_up.iter().enumerate().filter(|(_, there)| **there) {
                self.0.serve(queue as u16);
            }
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap().recv();
        let Ok((inner, chain)) = job else {
            return;
        };
        let done = inner.answer(chain);
        inner.settle(vec![done]);
        inner.lock().busy -= 1;
        inner.idle.notify_all();
    }
}

impl Inner {
    fn new(backend: Box<dyn Backend>, quirks: Quirks, workers: Option<Mutex<Sender<Job>>>) -> Self {
        let state = State {
            rings: vec![None; quirks.queues.len()],
            quirks,
            status: DeviceStatus::empty(),
            reset_left: None,
            driver_features: 0,
            generation: 0,
            generation_reads: 0,
            now: 0,
            pending: Vec::new(),
            epoch: 0,
            busy: 0,
            notifications: 0,
            log: Log::default(),
        };
        Self {
            state: Mutex::new(state),
            idle: Condvar::new(),
            backend,
            workers,
        }
    }

    /// The state, also after a test's panic: other threads have to go on, and its end to be seen.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that waits in a queue and answers it.
    fn serve(self: &Arc<Self>, queue: u16) {
        let chains = self.lock().take(queue);
        if let Some(workers) = &self.workers {
            self.lock().busy += chains.len();
            let workers = workers.lock().unwrap();
            for chain in chains {
                workers.send((Arc::clone(self), chain)).expect("a worker");
            }
        } else if !chains.is_empty() {
            let done = chains.into_iter().map(|chain| self.answer(chain));
            self.settle(done.collect());
        }
    }

    /// Asks the backend. The state is not locked meanwhile.
    fn answer(&self, chain: Chain) -> (Chain, Option<Request>, Answer) {
        match Request::parse(&chain) {
            Ok(request) => {
                let answer = self.backend.answer(&chain, &request);
                (chain, Some(request), answer)
            }
            // The driver's fault, noted when the chain was taken.
            Err(_) => (chain, None, Answer::used(0).never()),
        }
    }

    fn settle(&self, mut done: Vec<(Chain, Option<Request>, Answer)>) {
        let mut state = self.lock();
        match state.quirks.order {
            Order::Asked => {}
            Order::Reversed => done.reverse(),
            Order::Shuffled(seed) => shuffle(&mut done, &mut seed.wrapping_add(state.now)),
        }
        for (chain, request, answer) in done {
            if let Some(fault) = &answer.fault {
                state.log.broken(fault.clone());
            }
            let due = match answer.when {
                When::Now => 0,
                When::After(ticks) => state.now + ticks,
                When::Never => u64::MAX,
            };
            let pending = Pending {
                due,
                chain,
                request,
                answer,
            };
            if due == 0 {
                state.give_back(pending);
            } else {
                state.pending.push(pending);
            }
        }
    }
}

/// Fisher-Yates over a linear congruential generator: good enough to disorder a queue.
fn shuffle<T>(items: &mut [T], seed: &mut u64) {
    for last in (1..items.len()).rev() {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, (*seed >> 33) as usize % (last + 1));
    }
}

impl State {
    fn take(&mut self, queue: u16) -> Vec<Chain> {
        if !self.status.contains(DeviceStatus::DRIVER_OK) {
            self.log.broken("a notification before DRIVER_OK");
            return Vec::new();
        }
        let epoch = self.epoch;
        let mut chains = Vec::new();
        let Some(Some(ring)) = self.rings.get_mut(usize::from(queue)) else {
            self.log.broken(format!("a notification for queue {queue}"));
            return chains;
        };
        while let Some(taken) = ring.pop() {
            match taken {
                Ok(taken) => chains.push(taken.into_chain(queue, epoch)),
                Err(fault) => {
                    self.log.broken(fault);
                    break;
                }
            }
        }
        let recorded = if self.quirks.records {
            &chains[..]
        } else {
            &[]
        };
        for chain in recorded {
            match Request::parse(chain) {
                Ok(request) => self.log.asked(&request),
                Err(fault) => self.log.broken(fault),
            }
        }
        chains
    }

    fn give_back(&mut self, pending: Pending) {
        let Pending {
            chain,
            request,
            answer,
            ..
        } = pending;
        if chain.epoch != self.epoch {
            return;
        }
        if let Some(bytes) = &answer.bytes {
            chain.write(bytes);
        }
        if let Some(request) = request
            && self.quirks.records
        {
            self.log.answered(&request, &chain.reply(32), answer.used);
        }
        let Some(Some(ring)) = self.rings.get_mut(usize::from(chain.queue)) else {
            return;
        };
        for _ in 0..answer.times {
            ring.push(answer.id.unwrap_or(chain.head.into()), answer.used);
        }
        if answer.jump > 0 {
            ring.jump(answer.jump);
        }
    }

    fn confirm_reset(&mut self) {
        self.epoch += 1;
        self.pending.clear();
        self.log.reset();
        self.reset_left = None;
        self.status = DeviceStatus::empty();
        self.rings.fill(None);
        self.driver_features = 0;
    }
}

/// How a driver reaches the [`Device`].
#[derive(Debug)]
pub struct TestTransport(Device);

impl TestTransport {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock()
    }
}

impl Transport for TestTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::_9P
    }

    fn read_device_features(&mut self) -> u64 {
        self.state().quirks.features
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        let mut state = self.state();
        if driver_features & !state.quirks.features != 0 {
            state.log.broken("features that were not offered");
        }
        if state.status.contains(DeviceStatus::FEATURES_OK) {
            state.log.broken("features after FEATURES_OK");
        }
        state.driver_features = driver_features;
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        let state = self.state();
        let size = state.quirks.queues.get(usize::from(queue));
        size.copied().unwrap_or(0)
    }

    fn notify(&mut self, queue: u16) {
        self.state().notifications += 1;
        self.0.0.serve(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        let mut state = self.state();
        match state.reset_left {
            Some(0) => state.confirm_reset(),
            Some(left) => state.reset_left = Some(left - 1),
            None => {}
        }
        state.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let mut state = self.state();
        if !status.is_empty() {
            let order = [
                DeviceStatus::empty(),
                DeviceStatus::ACKNOWLEDGE,
                DeviceStatus::DRIVER,
                DeviceStatus::FEATURES_OK,
                DeviceStatus::DRIVER_OK,
            ];
            if state.reset_left.is_some() || !status.contains(state.status) {
                state.log.broken(format!("status {status:?} out of order"));
            }
            for pair in order.windows(2) {
                if status.contains(pair[1]) && !status.contains(pair[0]) {
                    state.log.broken(format!("status {status:?} misses a step"));
                }
            }
            state.status = status;
            if !state.quirks.accepts_features {
                state.status.remove(DeviceStatus::FEATURES_OK);
            }
            return;
        }
        let mut rings = state.rings.iter().flatten();
        if rings.any(|ring| !TestHal::holds(ring.descriptors)) {
            state.log.broken("a ring freed before the reset");
        }
        // What is under way must not touch memory once the reset is confirmed.
        while state.busy > 0 {
            let waited = self.0.0.idle.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        match state.quirks.reset {
            Reset::AtOnce => state.confirm_reset(),
            Reset::After(reads) => {
                state.reset_left = Some(reads.into());
                state.status |= DeviceStatus::DEVICE_NEEDS_RESET;
            }
            Reset::NeverAfter(left @ 1..) => {
                state.quirks.reset = Reset::NeverAfter(left - 1);
                state.confirm_reset();
            }
            Reset::Never | Reset::NeverAfter(0) => {
                state.reset_left = Some(u64::MAX);
                state.status |= DeviceStatus::DEVICE_NEEDS_RESET;
            }
        }
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let mut state = self.state();
        if !state.status.contains(DeviceStatus::FEATURES_OK)
            || state.status.contains(DeviceStatus::DRIVER_OK)
        {
            state.log.broken("a queue set up at the wrong time");
        }
        let most = state.quirks.queues.get(usize::from(queue)).copied();
        if !size.is_power_of_two() || most.is_none_or(|most| size > most) {
            state.log.broken(format!("queue {queue} of {size} entries"));
            return;
        }
        let aligned = [(descriptors, 16), (driver_area, 2), (device_area, 4)];
        if !aligned
            .iter()
            .all(|(address, to)| address.is_multiple_of(*to))
        {
            state.log.broken("an unaligned queue");
        }
        let ring = Ring::new(size as u16, descriptors, driver_area, device_area);
        ring.set_no_notify(state.quirks.polls);
        state.rings[usize::from(queue)] = Some(ring);
    }

    fn queue_unset(&mut self, queue: u16) {
        if let Some(ring) = self.state().rings.get_mut(usize::from(queue)) {
            *ring = None;
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        let state = self.state();
        let ring = state.rings.get(usize::from(queue));
        state.quirks.queues_in_use || ring.is_some_and(Option::is_some)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        let mut state = self.state();
        state.generation_reads += 1;
        let lasts = state.quirks.generation_lasts;
        if lasts != 0 && state.generation_reads.is_multiple_of(lasts) {
            state.generation += 1;
        }
        state.generation
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let state = self.state();
        let bytes = state.quirks.config.get(offset..offset + size_of::<T>());
        let bytes = bytes.ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_bytes(bytes).map_err(|_| Error::InvalidParam)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> Result<(), Error> {
        self.state().log.broken("nothing is writable there");
        Err(Error::InvalidParam)
    }
}
