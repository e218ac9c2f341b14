//! Model checking of a virtqueue with loom. It runs the ring's own code and a device that follows the specification
//! (virtio 1.2, sections 2.7.7 and 2.7.13), in every interleaving with at most two preemptions, and with every
//! value that C11's memory model allows for a load.

mod error {
    pub use bootshare::DeviceError;
}
use bootshare::{fuse, hal};

mod memory;
#[path = "../../../../src/session/ring.rs"]
mod ring;
mod slots {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Slot(pub u8);
}

use bootshare::transport::{
    DeviceStatus, DeviceType, InterruptStatus, PhysAddr, Transport, VirtioError,
};
use bootshare_test_device::TestHal;
use loom::{
    sync::{
        Arc, Notify,
        atomic::Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
    thread,
};
use memory::{MADE, Memory, fence};
use ring::{Buffer, Ring};
use slots::Slot;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The number of descriptors: the third request reuses the first one's.
const SIZE: usize = 2;
const REQUESTS: u16 = 3;
/// The most preemptions in one interleaving.
const PREEMPTIONS: usize = 2;
type TestRing = Ring<TestHal, SIZE>;

/// The offset of the available ring in the driver's page.
const AVAILABLE: usize = 16 * SIZE;

/// The device.
struct Device {
    driver: Arc<Memory>,
    device: Arc<Memory>,
    /// The notifications by the driver; `interrupt` has the device's.
    doorbell: Arc<Notify>,
    interrupt: Arc<Notify>,
}

impl Device {
    /// Serves all requests, and sleeps when there are none.
    fn run(&self) {
        for done in 0..REQUESTS {
            let index = self.driver.atomic(AVAILABLE + 2);
            while index.load(Acquire) == done {
                // Suppressed notifications are enabled before the last check of the index.
                self.device.atomic(0).store(0, Relaxed);
                fence(SeqCst);
                if index.load(Acquire) == done {
                    self.doorbell.wait();
                }
            }
            self.device.atomic(0).store(1, Relaxed);
            let place = usize::from(done) % SIZE;
            let head: u16 = self.driver.read(AVAILABLE + 4 + 2 * place);
            let descriptor = 16 * usize::from(head);
            let request: u64 = self.driver.read(descriptor);
            assert_eq!(
                request,
                address(done),
                "the request that was made available"
            );
            assert_eq!(self.driver.read::<u64>(descriptor + 8) as u32, size(done));
            self.device.write(4 + 8 * place, u32::from(head));
            self.device.write(8 + 8 * place, size(done));
            self.device.atomic(2).store(done + 1, Release);
            fence(SeqCst);
            if self.driver.atomic(AVAILABLE).load(Relaxed) == 0 {
                self.interrupt.notify();
            }
        }
    }
}

fn address(number: u16) -> u64 {
    0x1000 * u64::from(number + 1)
}

fn size(number: u16) -> u32 {
    7 + u32::from(number)
}

/// A transport: the ring uses only the notification and the set-up of the queue.
struct Doorbell(Arc<Notify>);

impl Transport for Doorbell {
    fn notify(&mut self, _: u16) {
        self.0.notify();
    }

    fn max_queue_size(&mut self, _: u16) -> u32 {
        SIZE as u32
    }

    fn queue_used(&mut self, _: u16) -> bool {
        false
    }

    fn queue_set(&mut self, _: u16, _: u32, _: PhysAddr, _: PhysAddr, _: PhysAddr) {}

    fn device_type(&self) -> DeviceType {
        unreachable!("a ring does not set up its device")
    }

    fn read_device_features(&mut self) -> u64 {
        unreachable!("a ring does not set up its device")
    }

    fn write_driver_features(&mut self, _: u64) {
        unreachable!("a ring does not set up its device")
    }

    fn get_status(&self) -> DeviceStatus {
        unreachable!("a ring does not set up its device")
    }

    fn set_status(&mut self, _: DeviceStatus) {
        unreachable!("a ring does not set up its device")
    }

    fn set_guest_page_size(&mut self, _: u32) {
        unreachable!("a ring does not set up its device")
    }

    fn requires_legacy_layout(&self) -> bool {
        unreachable!("a ring does not set up its device")
    }

    fn queue_unset(&mut self, _: u16) {
        unreachable!("a ring does not set up its device")
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        unreachable!("a ring does not set up its device")
    }

    fn read_config_generation(&self) -> u32 {
        unreachable!("a ring does not set up its device")
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, _: usize) -> Result<T, VirtioError> {
        unreachable!("a ring does not set up its device")
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> Result<(), VirtioError> {
        unreachable!("a ring does not set up its device")
    }
}

/// Sends all requests, as many at a time as the ring has space for, and calls `idle` while no reply has come.
fn drive(ring: &mut TestRing, doorbell: &mut Doorbell, mut idle: impl FnMut(&mut TestRing)) {
    let (mut sent, mut done) = (0, 0);
    while done < REQUESTS {
        while sent < REQUESTS && ring.room() > 0 {
            let request = Buffer {
                address: address(sent),
                size: size(sent),
                writable: false,
                shared: None,
            };
            // SAFETY: the modelled device accesses no buffer.
            unsafe { ring.add(Slot(sent as u8), &[request]) }.expect("there is room");
            sent += 1;
            ring.kick(doorbell);
        }
        match ring.pop().expect("the device keeps to the rules") {
            Some(come) => {
                assert_eq!(come, (Slot(done as u8), size(done)));
                done += 1;
            }
            None => idle(ring),
        }
    }
}

/// Tries all interleavings. loom reports a deadlock if both sides sleep, and an error for an access that is not
/// ordered after another thread's.
fn check(with_interrupts: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(move || {
        MADE.take();
        let (doorbell, interrupt) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mut transport = Doorbell(Arc::clone(&doorbell));
        let mut ring = TestRing::new(&mut transport, 1).expect("it is set up");
        let [driver, device] = MADE.take().try_into().ok().expect("two pages");
        // At first the driver polls.
        device.atomic(0).store(1, Relaxed);
        let device = Device {
            driver,
            device,
            doorbell,
            interrupt: Arc::clone(&interrupt),
        };
        let device = thread::spawn(move || device.run());
        let mut is_wanted = false;
        drive(&mut ring, &mut transport, |ring| {
            if !with_interrupts {
                thread::yield_now();
            } else if is_wanted {
                interrupt.wait();
            } else {
                // Completions before this call cause no interrupt, so the driver polls once more before it sleeps.
                ring.set_interrupts(true);
                is_wanted = true;
            }
        });
        device.join().expect("no panic");
    });
}

#[test]
fn polling_misses_no_request_and_no_reply() {
    check(false);
}

#[test]
fn interrupts_miss_no_request_and_no_reply() {
    check(true);
}
