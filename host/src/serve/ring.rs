//! A queue that knows which of its requests are being answered.
//!
//! When the guest resets the device, QEMU stops the queues and then tells the guest that it is done:
//! from there on the guest's memory is its own again. vhost-user-backend stops a queue at once, also
//! while threads still read files into that memory; this one waits for them first.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{DescriptorChain, Error, QueueOwnedT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};

use super::lock;

/// The guest's memory.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A request as the guest wrote it.
pub(super) type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// The requests that are being answered.
#[derive(Default)]
struct Flight {
    state: Mutex<FlightState>,
    changed: Condvar,
}

#[derive(Default)]
struct FlightState {
    count: usize,
    stopping: bool,
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, FlightState> {
        lock(&self.state)
    }

    /// Ends all waiting.
    fn hurry(&self) -> MutexGuard<'_, FlightState> {
        let mut state = self.lock();
        state.stopping = true;
        self.changed.notify_all();
        state
    }

    fn stop(&self) {
        let mut state = self.hurry();
        while state.count > 0 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A request that is being answered; dropping it lets the queue stop.
pub(super) struct InFlight(Arc<Flight>);

impl InFlight {
    /// Waits, but not while the queue is to be stopped.
    pub(super) fn wait(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.0.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if state.stopping || left.is_zero() {
                return;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.lock().count -= 1;
        self.0.changed.notify_all();
    }
}

/// A queue. Clones are the same queue.
#[derive(Clone)]
pub(super) struct Ring {
    vring: VringMutex<Memory>,
    flight: Arc<Flight>,
}

impl Ring {
    /// The next request, if there is one.
    pub(super) fn take(&self, memory: &Memory) -> Result<Option<(Chain, InFlight)>, Error> {
        let mut state = self.vring.get_mut();
        let queue = state.get_queue_mut();
        let Some(chain) = queue.iter(memory.memory())?.next() else {
            return Ok(None);
        };
        self.flight.lock().count += 1;
        Ok(Some((chain, InFlight(Arc::clone(&self.flight)))))
    }

    /// Ends all waiting: QEMU is gone.
    pub(super) fn hurry(&self) {
        drop(self.flight.hurry());
    }

    /// Gives a request back with `used` bytes written.
    pub(super) fn give_back(&self, head: u16, used: u32) {
        let mut state = self.vring.get_mut();
        // Both fail only when the guest or QEMU took away what they need: then nobody is waiting.
        let _ = state.add_used(head, used);
        let _ = state.signal_used_queue();
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

/// What the queue does as the library has it.
macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, $($arg: $type),*) -> $result {
            self.vring.$name($($arg),*)
        }
    )*};
}

impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        Ok(Self {
            vring: VringMutex::new(memory, max_queue_size)?,
            flight: Arc::default(),
        })
    }

    fn set_queue_ready(&self, ready: bool) {
        self.vring.set_queue_ready(ready);
        if ready {
            self.flight.lock().stopping = false;
        } else {
            self.flight.stop();
        }
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.vring.read_kick() {
            // A reset has put a new eventfd in the place of the one that woke the queue's thread: an
            // error would end the thread.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            read => read,
        }
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.vring.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.vring.get_mut()
    }

    forward! {
        add_used(desc_index: u16, len: u32) -> Result<(), Error>;
        signal_used_queue() -> io::Result<()>;
        enable_notification() -> Result<bool, Error>;
        disable_notification() -> Result<(), Error>;
        needs_notification() -> Result<bool, Error>;
        set_enabled(enabled: bool) -> ();
        set_queue_info(desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), Error>;
        queue_next_avail() -> u16;
        set_queue_next_avail(base: u16) -> ();
        set_queue_next_used(idx: u16) -> ();
        queue_used_idx() -> Result<u16, Error>;
        set_queue_size(num: u16) -> ();
        set_queue_event_idx(enabled: bool) -> ();
        set_kick(file: Option<File>) -> ();
        set_call(file: Option<File>) -> ();
        set_err(file: Option<File>) -> ();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_kick_that_is_gone_is_none() {
        let ring = Ring::new(Memory::new(GuestMemoryMmap::new()), 128).unwrap();
        ring.set_enabled(true);
        let kick = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        ring.set_kick(Some(kick.into()));
        assert!(ring.read_kick().unwrap());
        assert!(!ring.read_kick().unwrap());
    }
}
