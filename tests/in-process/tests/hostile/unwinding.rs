//! Panics in the platform's code: the caller never gets a buffer back while the device may write to it.

use crate::{
    logger::on_log,
    rig::{CHUNK, LARGE, check, in_chunks, spoiling, ticks, tree},
};
use bootshare::{
    Error, Options, Share,
    hal::Clock,
    session::Session,
    transport::{
        DeviceStatus, DeviceType, InterruptStatus, PhysAddr, Transport, VirtioError as Refused,
    },
};
use bootshare_test_device::{Device, Opcode, TestHal, TestTransport, VirtualClock, raw::Reset};
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    time::Duration,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

thread_local! {
    /// The function that panics next on this thread.
    static ARMED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Panics, once, if `what` is armed.
fn trap(what: &str) {
    if ARMED.get() == Some(what) {
        ARMED.set(None);
        panic!("in {what}");
    }
}

struct Panicking(VirtualClock);

impl Clock for Panicking {
    fn now(&self) -> Duration {
        trap("now");
        self.0.now()
    }

    fn relax(&self) {
        trap("relax");
        self.0.relax();
    }

    fn rest(&self, at_most: Duration) {
        trap("rest");
        self.0.rest(at_most);
    }

    fn stop(&self, why: &str) -> ! {
        self.0.stop(why)
    }
}

/// A transport whose calls that concern the device's status may panic.
struct PanickingTransport(TestTransport);

impl Transport for PanickingTransport {
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        trap("read_device_features");
        self.0.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.0.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        trap("get_status");
        self.0.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            trap("reset");
        }
        self.0.set_status(status);
        if status.contains(DeviceStatus::DRIVER_OK) {
            trap("DRIVER_OK");
        }
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.0.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }

    fn queue_set(&mut self, queue: u16, size: u32, d: PhysAddr, a: PhysAddr, u: PhysAddr) {
        self.0.queue_set(queue, size, d, a, u);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }

    fn read_config_space<V: FromBytes + IntoBytes>(&self, offset: usize) -> Result<V, Refused> {
        self.0.read_config_space(offset)
    }

    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> Result<(), Refused> {
        self.0.write_config_space(offset, value)
    }
}

type PanickingSession = Session<PanickingTransport, TestHal>;

fn session(device: &Device) -> PanickingSession {
    let transport = PanickingTransport(device.transport());
    Session::start(transport, Options::default()).unwrap()
}

/// Polls until the session is connected or reset.
fn settle(device: &Device, session: &mut PanickingSession) {
    while session.is_changing() {
        session.poll();
        device.tick();
    }
}

#[test]
fn a_panic_in_the_drop_of_a_session_does_not_free_memory_that_the_device_has() {
    on_log(|line| {
        if line.contains("memory is lost") {
            trap("log");
        }
    });
    for what in ["log", "reset", "get_status"] {
        let device = Device::new(tree());
        let mut session = session(&device);
        settle(&device, &mut session);
        assert!(session.is_connected());
        device.quirk(|quirks| quirks.reset = Reset::Never);
        let pages = TestHal::pages();
        ARMED.set(Some(what));
        catch_unwind(AssertUnwindSafe(|| drop(session))).unwrap_err();
        assert_eq!(ARMED.get(), None);
        assert_eq!(TestHal::pages(), pages, "{what}");
    }
}

#[test]
fn a_session_whose_set_up_panicked_is_not_reset_until_it_was_reset_again() {
    for what in ["read_device_features", "DRIVER_OK"] {
        for polls in [false, true] {
            let device = Device::new(tree());
            let mut session = session(&device);
            ARMED.set(Some(what));
            catch_unwind(AssertUnwindSafe(|| session.poll())).unwrap_err();
            assert_eq!(ARMED.get(), None);
            assert!(!session.is_reset() && session.is_changing(), "{what}");
            let resets = device.resets();
            if polls {
                settle(&device, &mut session);
                assert!(session.is_reset());
            }
            drop(session);
            assert_eq!(device.resets(), resets + 1, "{what}");
            check(&device);
        }
    }
}

/// Whether the device writes to `buf` after the read has returned.
fn is_written(device: &Device, buf: &mut [u8]) -> bool {
    buf.fill(0x55);
    (0..ticks(30)).for_each(|_| device.tick());
    // Compared in pieces: Miri needs minutes for 4 MiB of single bytes.
    let mut pieces = std::hint::black_box(&*buf).chunks(4096);
    pieces.any(|piece| *piece != [0x55; 4096][..piece.len()])
}

#[test]
fn a_panic_of_clock_or_logger_in_a_read_unwinds_after_the_reset() {
    on_log(|line| {
        if line.contains("resetting") {
            trap("log");
        }
    });
    for what in ["now", "relax", "rest", "log", "stop"] {
        // The reply comes after the deadline: if the device was not reset, it would be written to the buffer.
        let device = spoiling(Opcode::Read, |_, good| good.after(Duration::from_secs(15)));
        // Much data is outstanding, so the clock's `rest` is called.
        let options = Options::default().with_chunk_size(4 << 20);
        let clock = Panicking(VirtualClock::new(&device));
        let share = Share::<_, _, TestHal>::mount_with(device.transport(), clock, options).unwrap();
        let file = share.open("large").unwrap();
        let size = if what == "rest" {
            4 << 20
        } else {
            LARGE as usize
        };
        let mut buf = vec![0; size];
        if what == "stop" {
            // The test's clock panics in `stop`, after switching the device off.
            device.quirk(|quirks| quirks.reset = Reset::Never);
        } else {
            ARMED.set(Some(what));
        }
        let read = catch_unwind(AssertUnwindSafe(|| file.read_at(0, &mut buf)));
        assert!(read.is_err(), "{what}: {read:?}");
        assert_eq!(ARMED.get(), None);
        assert!(!device.is_live(), "{what}");
        assert!(!is_written(&device, &mut buf), "{what}");
        assert_eq!(TestHal::shared(), 0);
        drop(file);
        drop(share);
        check(&device);
    }
}

#[test]
fn a_panic_during_a_request_does_not_lose_its_slot() {
    let device = spoiling(Opcode::StatFs, |_, good| good.after(Duration::from_secs(1)));
    let clock = Panicking(VirtualClock::new(&device));
    let options = Options::default();
    let share = Share::<_, _, TestHal>::mount_with(device.transport(), clock, options).unwrap();
    // More often than there are slots.
    for _ in 0..crate::rig::OFTEN {
        ARMED.set(Some("relax"));
        catch_unwind(AssertUnwindSafe(|| share.statistics())).unwrap_err();
        assert!(share.statistics().is_ok());
    }
    share.unmount().unwrap();
    check(&device);
}

/// Set in the child process that should abort.
const CHILD: &str = "BOOTSHARE_TEST_ABORTS";

// Miri cannot start processes.
#[cfg(not(miri))]
#[test]
fn a_clock_that_panics_in_stop_aborts_the_program() {
    struct Stubborn(VirtualClock);
    impl Clock for Stubborn {
        fn now(&self) -> Duration {
            self.0.now()
        }
        fn relax(&self) {
            self.0.relax();
        }
        fn stop(&self, why: &str) -> ! {
            panic!("{why}");
        }
    }
    if std::env::var_os(CHILD).is_none() {
        let this = "unwinding::a_clock_that_panics_in_stop_aborts_the_program";
        let child = Command::new(std::env::current_exe().unwrap())
            .args([this, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(said.contains("had a buffer of the caller's"), "{said}");
        assert!(!said.contains("it returned"), "{said}");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{said}");
        return;
    }
    let device = spoiling(Opcode::Read, |_, good| good.never());
    let clock = Stubborn(VirtualClock::new(&device));
    let share = Share::<_, _, TestHal>::mount_with(device.transport(), clock, in_chunks()).unwrap();
    let file = share.open("large").unwrap();
    device.quirk(|quirks| quirks.reset = Reset::Never);
    let mut buf = vec![0; CHUNK as usize];
    let read = catch_unwind(AssertUnwindSafe(|| file.read_at(0, &mut buf)));
    eprintln!("it came back: {:?}", read.map_err(|_| Error::Disconnected));
}
