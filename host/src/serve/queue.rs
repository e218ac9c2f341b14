//! A virtqueue and its thread.
//!
//! A request is taken from the ring only when a thread answers it at once: this queue's, or an idle
//! thread of the pool. So no request waits in the server's memory, and stopping a queue waits only
//! for the requests that are being answered; all others are still in the ring.
//!
//! When the guest resets the device, QEMU stops each queue (GET_VRING_BASE) and then reports the
//! reset as complete. From then on the guest may reuse its buffers, so GET_VRING_BASE is answered
//! only when no request is in flight.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, readlink};
use rustix::io::Errno;
use virtio_queue::{DescriptorChain, Error, Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::memory::Memory;
use super::pace::Pace;
use crate::lock::lock;

/// The largest queue size that QEMU's vhost-user-fs device allows.
pub(super) const QUEUE_SIZE: u16 = 1024;

/// VRING_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.7).
const NO_INTERRUPT: u16 = 1;

/// A request as the guest wrote it.
pub(super) type Chain = DescriptorChain<Memory>;

/// A queue, shared by its thread, the pool's threads, and the thread that handles QEMU's messages.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Notified when fewer requests are in flight, or when delays are to end.
    changed: Condvar,
    /// An eventfd that makes the thread look at the state again.
    wake: OwnedFd,
}

struct State {
    ring: Ring,
    memory: Memory,
    /// QEMU's eventfds: `kick` for requests, `call` for answers.
    kick: Option<Arc<OwnedFd>>,
    call: Option<OwnedFd>,
    enabled: bool,
    event_idx: bool,
    /// The number of requests in flight.
    in_flight: usize,
    /// The queue is being stopped: no request is taken, and no injected delay waits.
    stopping: bool,
    /// The thread must end.
    ending: bool,
}

impl State {
    fn is_running(&self) -> bool {
        self.enabled && !self.stopping && self.kick.is_some()
    }

    /// Whether the driver wants an interrupt for answers (virtio 1.2, 2.7.7.2 and 2.7.10).
    fn is_call_wanted(&mut self) -> bool {
        if self.event_idx {
            return self.ring.needs_notification(&*self.memory).unwrap_or(true);
        }
        // The used ring must be written before the driver's flags are read.
        fence(Ordering::SeqCst);
        let flags = GuestAddress(self.ring.avail_ring());
        let flags = self.memory.load::<u16>(flags, Ordering::Relaxed);
        flags.is_ok_and(|flags| u16::from_le(flags) & NO_INTERRUPT == 0)
    }
}

/// A request in flight. Stopping the queue waits until it is dropped.
pub(super) struct Request {
    pub(super) chain: Chain,
    /// Whether the ring holds more requests after it.
    pub(super) more: bool,
    queue: Arc<Queue>,
}

impl Request {
    /// Waits for `time`, or until the queue is being stopped.
    pub(super) fn wait(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.queue.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if state.stopping || left.is_zero() {
                return;
            }
            let waited = self.queue.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the request to the guest with `used` bytes written.
    pub(super) fn give_back(&self, used: u32) {
        let state = &mut *self.queue.lock();
        let head = self.chain.head_index();
        // This fails only after the guest or QEMU removed the ring from memory: then nobody waits
        // for the answer.
        let _ = state.ring.add_used(&*state.memory, head, used);
        if state.is_call_wanted()
            && let Some(call) = &state.call
        {
            // The eventfd does not block: if its counter is full, an interrupt is pending anyway.
            let _ = rustix::io::write(call, &1_u64.to_ne_bytes());
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.in_flight -= 1;
        // Only a queue that is being stopped is waited for, and each notification is a system call.
        if state.stopping {
            self.queue.changed.notify_all();
        }
    }
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        let state = State {
            ring: Ring::new(QUEUE_SIZE).map_err(io::Error::other)?,
            memory: Memory::default(),
            kick: None,
            call: None,
            enabled: false,
            event_idx: false,
            in_flight: 0,
            stopping: false,
            ending: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The thread's function: calls `answer` for each request until the connection ends. Between
    /// requests that arrive in quick succession, it polls the ring for up to `patience`.
    pub(super) fn run(self: &Arc<Self>, patience: Duration, answer: &mut dyn FnMut(Request)) {
        let mut pace = Pace::new(patience, Instant::now());
        loop {
            let kick = {
                let state = self.lock();
                if state.ending {
                    return;
                }
                state.kick.clone().filter(|_| state.is_running())
            };
            let events = [Some(&self.wake), kick.as_deref()];
            let mut fds =
                events.map(|event| PollFd::new(event.unwrap_or(&self.wake), PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            for (event, fd) in events.iter().zip(&fds) {
                if let Some(event) = event
                    && !fd.revents().is_empty()
                {
                    // It fails only if the counter is 0 by now.
                    let _ = rustix::io::read(event, &mut [0; 8]);
                }
            }
            // A faulty ring is left alone until the next kick: reading it failed, or its index
            // announces requests that it does not have.
            let mut without = 0;
            while without < 2
                && let Ok((taken, true)) = self.take_all(&mut pace, answer)
            {
                without = if taken { 0 } else { without + 1 };
            }
        }
    }

    /// Answers all requests in the ring. Returns whether there were any, and whether more have
    /// arrived meanwhile.
    fn take_all(
        self: &Arc<Self>,
        pace: &mut Pace,
        answer: &mut dyn FnMut(Request),
    ) -> Result<(bool, bool), Error> {
        {
            let state = &mut *self.lock();
            // A queue that was never set up would have its used ring at guest address 0.
            if !state.is_running() {
                return Ok((false, false));
            }
            state.ring.disable_notification(&*state.memory)?;
        }
        let mut taken = false;
        loop {
            if let Some(request) = self.take()? {
                pace.arrived(Instant::now());
                answer(request);
                pace.answered(Instant::now());
                taken = true;
                continue;
            }
            let start = Instant::now();
            if !self.is_idle() || !pace.polls(start) {
                break;
            }
            thread::yield_now();
            pace.yielded(start, Instant::now());
        }
        let state = &mut *self.lock();
        let more = state.is_running() && state.ring.enable_notification(&*state.memory)?;
        Ok((taken, more))
    }

    fn take(self: &Arc<Self>) -> Result<Option<Request>, Error> {
        let state = &mut *self.lock();
        if !state.is_running() {
            return Ok(None);
        }
        let Some(chain) = state.ring.iter(state.memory.clone())?.next() else {
            return Ok(None);
        };
        let available = state.ring.avail_idx(&*state.memory, Ordering::Relaxed)?;
        let more = available.0 != state.ring.next_avail();
        state.in_flight += 1;
        Ok(Some(Request {
            chain,
            more,
            queue: Arc::clone(self),
        }))
    }

    /// Whether the queue is running and no request is in flight. The pool's threads need the
    /// processors while they answer one.
    fn is_idle(&self) -> bool {
        let state = self.lock();
        state.is_running() && state.in_flight == 0
    }

    /// Makes the thread look at the changed state.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(super) fn set_memory(&self, memory: &Memory) {
        self.change(|state| state.memory = memory.clone());
    }

    pub(super) fn set_event_idx(&self, event_idx: bool) {
        self.change(|state| {
            state.event_idx = event_idx;
            state.ring.set_event_idx(event_idx);
        });
    }

    pub(super) fn set_size(&self, size: u16) -> Result<(), Error> {
        self.lock().ring.try_set_size(size)
    }

    /// Sets the addresses of the descriptor table, the available ring and the used ring. The next
    /// used index is read from the used ring.
    pub(super) fn set_addresses(&self, addresses: [GuestAddress; 3]) -> Result<(), Error> {
        let state = &mut *self.lock();
        let [descriptors, available, used] = addresses;
        state.ring.try_set_desc_table_address(descriptors)?;
        state.ring.try_set_avail_ring_address(available)?;
        state.ring.try_set_used_ring_address(used)?;
        let index = state.ring.used_idx(&*state.memory, Ordering::Relaxed)?;
        state.ring.set_next_used(index.0);
        Ok(())
    }

    pub(super) fn set_next(&self, next: u16) {
        self.lock().ring.set_next_avail(next);
    }

    pub(super) fn set_enabled(&self, enabled: bool) {
        self.change(|state| state.enabled = enabled);
    }

    /// Starts the queue; QEMU signals requests by `kick`.
    pub(super) fn start(&self, kick: Option<OwnedFd>) -> io::Result<()> {
        let kick = kick.map(checked_eventfd).transpose()?;
        self.change(|state| {
            state.kick = kick.map(Arc::new);
            state.stopping = false;
            state.ring.set_ready(true);
        });
        Ok(())
    }

    pub(super) fn set_call(&self, call: Option<OwnedFd>) -> io::Result<()> {
        self.lock().call = call.map(checked_eventfd).transpose()?;
        Ok(())
    }

    /// Ends injected delays, and takes no more requests.
    pub(super) fn hurry(&self) {
        self.change(|state| state.stopping = true);
        self.changed.notify_all();
    }

    /// Stops the queue once no request is in flight; returns the index of the next request.
    pub(super) fn stop(&self) -> u16 {
        self.hurry();
        let mut state = self.lock();
        while state.in_flight > 0 {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.kick = None;
        state.call = None;
        state.ring.set_ready(false);
        state.ring.next_avail()
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        self.change(|state| state.ending = true);
    }
}

/// Checks that a descriptor is an eventfd, and sets O_NONBLOCK: QEMU's eventfds have that flag, but
/// another front end's might block for ever. A descriptor of another kind might block in spite of
/// the flag, might always be readable, or might be the front end's own end of the connection, which
/// would then stay open after the front end has ended.
fn checked_eventfd(fd: OwnedFd) -> io::Result<OwnedFd> {
    let name = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    if name.as_bytes() != b"anon_inode:[eventfd]" {
        return Err(io::Error::other("a queue's descriptor is not an eventfd"));
    }
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    Ok(fd)
}
