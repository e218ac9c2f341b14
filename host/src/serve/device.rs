//! The vhost-user device: handles QEMU's messages about queues and memory, and distributes requests
//! to threads.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::memory::Memory;
use super::pace::patience;
use super::pool::Pool;
use super::queue::{Queue, Request};
use super::service::{Service, Taken, message};
use super::status::Status;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// `vhost` itself offers and implements REPLY_ACK.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::MQ.union(VhostUserProtocolFeatures::REPLY_ACK);

/// The smallest READ that is passed to another thread.
const LARGE_READ: u32 = 64 << 10;

/// The threads that answer the requests of a share.
pub(super) struct Workers {
    service: Arc<Service>,
    status: Arc<Status>,
    pool: Pool<(Request, Taken)>,
}

impl Workers {
    /// Starts `threads` threads in addition to each queue's own.
    pub(super) fn new(
        service: &Arc<Service>,
        status: &Arc<Status>,
        threads: usize,
    ) -> io::Result<Self> {
        let pool = {
            let (service, status) = (Arc::clone(service), Arc::clone(status));
            Pool::new(threads, move |(request, taken)| {
                answer(&service, &status, &request, &taken);
            })?
        };
        Ok(Self {
            service: Arc::clone(service),
            status: Arc::clone(status),
            pool,
        })
    }

    /// Answers a request in the queue's thread, or passes it to the pool: a large READ while other
    /// requests wait, or a request with an injected delay. Waking another thread takes longer than
    /// answering a small request.
    fn take(&self, request: Request) {
        let taken = self.service.take(&request.chain);
        if taken.verdict.disconnect {
            self.status.hang_up();
        }
        let large = request.more && taken.read_size().is_some_and(|size| size >= LARGE_READ);
        let here = if large || taken.verdict.delay.is_some() {
            self.pool.offer((request, taken))
        } else {
            Some((request, taken))
        };
        if let Some((request, taken)) = here {
            answer(&self.service, &self.status, &request, &taken);
        }
    }
}

fn answer(service: &Service, status: &Status, request: &Request, taken: &Taken) {
    let answer = || service.answer(&request.chain, taken, Some(&|time| request.wait(time)));
    match catch_unwind(AssertUnwindSafe(answer)) {
        Ok(answer) => {
            if let Some(panic) = answer.panic {
                status.fail(&format!("it panicked: {panic}"));
            }
            if let Some(used) = answer.used {
                request.give_back(used);
            }
        }
        Err(panic) => status.fail(&format!("it panicked: {}", message(&*panic))),
    }
}

/// The device of one connection. Dropping it waits for the requests in flight.
pub(super) struct Device {
    /// The hiprio queue and the request queues (virtio 1.2, 5.11.2).
    queues: Vec<Arc<Queue>>,
    threads: Vec<JoinHandle<()>>,
    /// Becomes readable when the guest's memory was truncated.
    lost: Arc<OwnedFd>,
    memory: Memory,
    owned: bool,
    /// The number of a queue that QEMU asked for and that does not exist.
    pub(super) no_queue: Option<u32>,
}

impl Device {
    pub(super) fn new(
        workers: &Arc<Workers>,
        request_queues: usize,
        lost: OwnedFd,
    ) -> io::Result<Self> {
        let mut device = Self {
            queues: Vec::new(),
            threads: Vec::new(),
            lost: Arc::new(lost),
            memory: Memory::default(),
            owned: false,
            no_queue: None,
        };
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        for number in 0..=request_queues {
            let patience = patience(number, processors);
            let queue = Arc::new(Queue::new()?);
            device.queues.push(Arc::clone(&queue));
            let workers = Arc::clone(workers);
            let thread = thread::Builder::new()
                .name(format!("share-q{number}"))
                .spawn(move || {
                    let run = || queue.run(patience, &mut |request| workers.take(request));
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                        let panic = message(&*panic);
                        workers.status.fail(&format!("it panicked: {panic}"));
                    }
                })?;
            device.threads.push(thread);
        }
        Ok(device)
    }

    /// The event that is raised when the guest's memory was truncated.
    pub(super) fn lost(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.lost)
    }

    fn queue(&mut self, index: u32) -> Result<&Arc<Queue>> {
        if index as usize >= self.queues.len() {
            self.no_queue = Some(index);
        }
        self.queues.get(index as usize).ok_or(Error::InvalidParam)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Tell all threads to end, then join them.
        for queue in &self.queues {
            queue.hurry();
        }
        for queue in &self.queues {
            queue.stop();
            queue.end();
        }
        for thread in self.threads.drain(..) {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }
}

fn invalid<E>(_: E) -> Error {
    Error::InvalidParam
}

fn failed(error: impl Into<io::Error>) -> Error {
    Error::ReqHandlerError(error.into())
}

/// The error for messages of features that were not offered.
const NOT_OFFERED: Error = Error::InvalidOperation("it was not offered");

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.owned, true) {
            return Err(Error::InvalidOperation("the device has an owner already"));
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.owned = false;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::FeatureMismatch);
        }
        for queue in &self.queues {
            queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            // Without protocol features QEMU sends no SET_VRING_ENABLE: the queues are enabled from
            // the start.
            if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
                queue.set_enabled(true);
            }
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        // From then on, `vhost` itself refuses most messages of features that were not accepted.
        if features & !PROTOCOL_FEATURES.bits() != 0 {
            return Err(Error::FeatureMismatch);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn set_mem_table(&mut self, table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        self.memory = Memory::new(table, files, &self.lost).map_err(failed)?;
        for queue in &self.queues {
            queue.set_memory(&self.memory);
        }
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(invalid)?;
        self.queue(index)?.set_size(size).map_err(invalid)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let memory = self.memory.clone();
        let queue = self.queue(index)?;
        let address = |address| memory.guest_address(address).ok_or(Error::InvalidParam);
        let addresses = [address(descriptor)?, address(available)?, address(used)?];
        queue.set_addresses(addresses).map_err(invalid)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(invalid)?;
        self.queue(index)?.set_next(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next = self.queue(index)?.stop();
        Ok(VhostUserVringState::new(index, next.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(index.into())?;
        queue.start(fd.map(OwnedFd::from)).map_err(failed)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(index.into())?;
        queue.set_call(fd.map(OwnedFd::from)).map_err(failed)
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.queue(index.into()).map(drop)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.set_enabled(enable);
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(NOT_OFFERED)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(NOT_OFFERED)
    }

    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}
