//! Panics in the platform's code: the caller never gets a buffer back while the device may write to it.

use crate::{
    logger::on_log,
    rig::{CHUNK, LARGE, check, in_chunks, spoiling, ticks},
};
use bootshare::{Error, Options, Share, hal::Clock};
use bootshare_test_device::{Device, Opcode, TestHal, VirtualClock, raw::Reset};
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    time::Duration,
};

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
