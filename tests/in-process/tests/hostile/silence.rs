//! Hosts that never answer, or stop answering.

use crate::rig::{
    CHUNK, LARGE, cases, check, in_chunks, read_large, share, silent_after, spoiling, ticks, tree,
};
use bootshare::session::pages_per_share;
use bootshare::{DeviceError, Error, Options, Share, hal::Clock};
use bootshare_test_device::{
    Device, Opcode, Reply, Stopped, TestHal, TestShare, VirtualClock, raw::Reset,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

const DEADLINE: Duration = Duration::from_secs(10);

fn timed_out<T>() -> Result<T, Error> {
    Err(Error::TimedOut {
        after_ms: DEADLINE.as_millis() as u32,
    })
}

fn silent(opcode: Opcode) -> Device {
    spoiling(opcode, |_, good| good.never())
}

#[test]
fn each_request_has_a_deadline() {
    let device = silent(Opcode::Init);
    assert_eq!(
        device.mount(Options::default()).err(),
        timed_out::<()>().err()
    );
    check(&device);
    type Act = fn(&TestShare) -> Option<Error>;
    let acts: [(Opcode, Act); 8] = [
        (Opcode::Lookup, |share| share.metadata("file").err()),
        (Opcode::GetAttr, |share| share.metadata("/").err()),
        (Opcode::ReadLink, |share| share.metadata("link").err()),
        (Opcode::Open, |share| share.open("file").err()),
        (Opcode::Read, |share| {
            share.open("file").unwrap().read_at(0, &mut [0; 10]).err()
        }),
        (Opcode::StatFs, |share| share.statistics().err()),
        (Opcode::OpenDir, |share| share.read_dir("dir").err()),
        (Opcode::ReadDir, |share| {
            share.read_dir("dir").unwrap().next().unwrap().err()
        }),
    ];
    for (opcode, act) in cases(acts) {
        let device = silent(opcode);
        let share = share(&device);
        assert_eq!(act(&share), timed_out::<()>().err(), "{opcode:?}");
        assert!(!device.is_live(), "it was reset");
        // After the timeout the share is lost, and everything fails at once.
        let disconnected = Some(Error::Disconnected);
        assert_eq!(share.metadata("file").err(), disconnected);
        assert_eq!(share.metadata("/").err(), disconnected);
        assert_eq!(share.open("file").err(), disconnected);
        assert_eq!(share.read_dir("dir").err(), disconnected);
        assert_eq!(share.statistics().err(), disconnected);
        assert_eq!(share.unmount(), Err(Error::Disconnected));
        check(&device);
        // Another device can be used.
        let again = Device::new(tree());
        let share = crate::rig::share(&again);
        share.unmount().unwrap();
    }
}

#[test]
fn a_read_with_one_chunk_that_never_comes() {
    for reset in [Reset::AtOnce, Reset::After(ticks(1) as u32)] {
        let device = spoiling(Opcode::Read, |request, good| {
            if request.offset() == 18 * CHUNK {
                good.never()
            } else {
                good
            }
        });
        let share = device.mount(in_chunks()).unwrap();
        device.quirk(|quirks| quirks.reset = reset);
        let file = share.open("large").unwrap();
        let mut buf = vec![0; LARGE as usize];
        assert_eq!(file.read_at(0, &mut buf), timed_out());
        // The device could write to the buffer until it confirmed its reset; now the buffer belongs to the caller.
        assert!(!device.is_live());
        buf.fill(0x55);
        (0..ticks(100)).for_each(|_| device.tick());
        assert!(buf.iter().all(|&byte| byte == 0x55));
        assert_eq!(file.read_at(0, &mut buf), Err(Error::Disconnected));
        assert_eq!(
            file.read_at(0, &mut []),
            Ok(0),
            "an empty read needs no host"
        );
        drop(file);
        assert_eq!(share.unmount(), Err(Error::Disconnected));
        check(&device);
    }
}

#[test]
fn a_reply_after_the_deadline_is_not_written_to_the_callers_buffer() {
    let device = spoiling(Opcode::Read, |_, good| good.after(Duration::from_secs(50)));
    let share = share(&device);
    let file = share.open("large").unwrap();
    let mut buf = vec![0x55; LARGE as usize];
    assert_eq!(file.read_at(0, &mut buf), timed_out());
    (0..ticks(100)).for_each(|_| device.tick());
    assert!(buf.iter().all(|&byte| byte == 0x55));
    drop(file);
    drop(share);
    check(&device);
}

#[test]
fn progress_keeps_a_slow_host_alive() {
    // Each reply comes a second before the deadline. The last chunk takes two replies, at a time when
    // the first request would have exceeded the limit of a single request.
    let device = spoiling(Opcode::Read, |request, good| {
        let reply = match request.offset() == LARGE - CHUNK {
            true => Reply::ok(request, &good.body()[..1]),
            false => good,
        };
        reply.after(Duration::from_secs(9))
    });
    let share = device.mount(in_chunks().with_depth(1)).unwrap();
    read_large(&share);
    share.unmount().unwrap();
    check(&device);
}

#[test]
#[cfg_attr(
    miri,
    ignore = "it takes 24,000 ticks, for Miri more than a quarter of an hour"
)]
fn a_request_has_a_limit_even_if_the_host_answers_others() {
    // As many other requests may be answered before it as there are slots, each just within the deadline.
    let limit = Err(Error::TimedOut {
        after_ms: 24 * DEADLINE.as_millis() as u32,
    });
    let tick = VirtualClock::TICK;
    // One READ is never answered, all others are.
    let mut first = true;
    let device = spoiling(Opcode::Read, move |_, good| {
        if std::mem::take(&mut first) {
            good.never()
        } else {
            good.after(DEADLINE - 200 * tick)
        }
    });
    let share = device.mount(in_chunks().with_depth(2)).unwrap();
    let file = share.open("large").unwrap();
    let mut buf = vec![0; LARGE as usize];
    assert_eq!(file.read_at(0, &mut buf), limit);
    drop(file);
    drop(share);
    check(&device);
    // Each reply has one byte.
    let device = spoiling(Opcode::Read, move |request, good| {
        Reply::ok(request, &good.body()[..1]).after(DEADLINE - 200 * tick)
    });
    let share = device.mount(in_chunks().with_depth(1)).unwrap();
    let file = share.open("large").unwrap();
    assert_eq!(file.read_at(0, &mut buf), limit);
    drop(file);
    drop(share);
    check(&device);
}

#[test]
fn needs_reset_fails_at_once() {
    for opcode in [Opcode::StatFs, Opcode::Read] {
        let device = silent(opcode);
        let share = share(&device);
        let file = share.open("large").unwrap();
        device.quirk(|quirks| quirks.status_noise = 64);
        let error = match opcode {
            Opcode::StatFs => share.statistics().err(),
            _ => file.read_at(0, &mut [0; 10]).err(),
        };
        assert_eq!(error, Some(Error::Device(DeviceError::NeedsReset)));
        assert!(!device.is_live());
        // After the reset the device works again.
        device.quirk(|quirks| quirks.status_noise = 0);
        share.resume().unwrap();
        share.metadata("file").unwrap();
        drop(file);
        share.unmount().unwrap();
        check(&device);
    }
}

#[test]
fn a_rest_is_not_longer_than_the_deadline_allows() {
    /// A clock that rests for the whole time that it may, and records it.
    struct Resting(VirtualClock, AtomicU64);
    impl Clock for Resting {
        fn now(&self) -> Duration {
            self.0.now() + Duration::from_micros(self.1.load(Relaxed))
        }
        fn relax(&self) {
            self.0.relax();
        }
        fn rest(&self, at_most: Duration) {
            self.1.fetch_add(at_most.as_micros() as u64, Relaxed);
            self.0.relax();
        }
        fn stop(&self, why: &str) -> ! {
            self.0.stop(why)
        }
    }
    let device = silent(Opcode::Read);
    let clock = Resting(VirtualClock::new(&device), AtomicU64::new(0));
    let deadline = Duration::from_millis(300);
    // Half a GiB in flight, which is never touched: a rest of 16 ms.
    let options = Options::default()
        .with_chunk_size(1 << 25)
        .with_deadline(deadline);
    let share = Share::<_, _, TestHal>::mount_with(device.transport(), &clock, options).unwrap();
    let file = share.open("large").unwrap();
    let mut buf = vec![0; 1 << 29];
    let before = clock.now();
    assert_eq!(
        file.read_at(0, &mut buf),
        Err(Error::TimedOut { after_ms: 300 })
    );
    let waited = clock.now() - before;
    let margin = Duration::from_millis(50) + 5 * VirtualClock::TICK;
    assert!(waited < deadline + margin, "{waited:?}");
    assert!(clock.1.load(Relaxed) > 0, "it rested");
    drop(file);
    drop(share);
    check(&device);
}

#[test]
fn deadlines_are_exact() {
    for deadline in [0, 1, 500, 60_000].map(Duration::from_millis) {
        let mut first = true;
        let device = spoiling(Opcode::Lookup, move |_, good| {
            if std::mem::take(&mut first) {
                good.after(deadline + Duration::from_secs(10))
            } else {
                good
            }
        });
        let options = Options::default().with_deadline(deadline);
        let share = device.mount(options).unwrap();
        assert_eq!(
            share.metadata("file").err(),
            Some(Error::TimedOut {
                after_ms: deadline.as_millis() as u32
            })
        );
        drop(share);
        check(&device);
    }
}

#[test]
fn posted_requests_that_are_never_answered() {
    // At most 24 slots and 8 FORGETs can be in flight; the next request waits, with a deadline.
    for opcode in [Opcode::Release, Opcode::Forget, Opcode::ReleaseDir] {
        let device = silent(opcode);
        let share = share(&device);
        let mut lost = None;
        for round in 0..100 {
            let opened = share.open("file").map(drop);
            let listed = share.read_dir("dir").map(drop);
            if let Err(error) = opened.and(listed) {
                lost = Some((round, error));
                break;
            }
        }
        let (round, error) = lost.expect("no request waits for ever");
        assert!(round > 0, "{opcode:?}: the first ones have room");
        assert!(
            matches!(error, Error::TimedOut { .. } | Error::Disconnected),
            "{opcode:?}: {error:?}"
        );
        assert_eq!(share.metadata("/").err(), Some(Error::Disconnected));
        assert_eq!(share.unmount(), Err(Error::Disconnected));
        check(&device);
    }
}

#[test]
fn unmounting_waits_for_posted_requests() {
    let device = spoiling(Opcode::Release, |_, good| {
        good.after(Duration::from_secs(5))
    });
    let share = share(&device);
    drop(share.open("file").unwrap());
    share.unmount().unwrap();
    device.log(|log| {
        let last = log.requests.last().unwrap();
        assert_eq!(last.opcode(), Opcode::Destroy);
    });
    check(&device);

    let device = silent(Opcode::Release);
    let share = crate::rig::share(&device);
    drop(share.open("file").unwrap());
    assert_eq!(share.unmount(), timed_out());
    check(&device);
}

/// Runs `act` with a device that never confirms a reset, and returns the message of `Clock::stop`.
#[track_caller]
fn stops<R>(act: impl FnOnce() -> R) -> String {
    let result = catch_unwind(AssertUnwindSafe(act));
    let Err(payload) = result else {
        panic!("it returned");
    };
    let Stopped(why) = *payload.downcast::<Stopped>().expect("Clock::stop");
    assert!(why.contains("does not confirm its reset"), "{why}");
    why
}

/// From now on the device does not confirm resets.
fn refuse(device: &Device) {
    device.quirk(|quirks| quirks.reset = Reset::Never);
}

#[test]
fn a_reset_that_is_never_confirmed_stops_the_machine_if_a_buffer_is_lent() {
    let device = silent(Opcode::Read);
    let share = share(&device);
    refuse(&device);
    let file = share.open("large").unwrap();
    let mut buf = vec![0; CHUNK as usize];
    stops(|| file.read_at(0, &mut buf));
    // The test's clock panics in `stop`. The device is off, so the panic may unwind through the client.
    buf.fill(0x55);
    (0..100).for_each(|_| device.tick());
    assert!(buf.iter().all(|&byte| byte == 0x55));
    drop(file);
    drop(share);
    check(&device);
}

#[test]
fn a_reset_that_is_never_confirmed_is_an_error_if_nothing_is_lent() {
    let not_confirmed = Error::Device(DeviceError::ResetNotConfirmed);
    // When mounting: the device may still write to memory of an earlier driver.
    let device = Device::new(tree());
    refuse(&device);
    assert_eq!(device.mount(Options::default()).err(), Some(not_confirmed));
    assert_eq!(TestHal::pages(), 0, "nothing was taken yet");

    // After an error. When the device confirms the reset later, the client can use it again.
    let device = silent(Opcode::StatFs);
    let share = share(&device);
    refuse(&device);
    assert_eq!(share.statistics().err(), timed_out::<()>().err());
    assert_eq!(share.metadata("file").err(), Some(Error::Disconnected));
    assert_eq!(share.resume(), Err(not_confirmed));
    device.quirk(|quirks| quirks.reset = Reset::AtOnce);
    assert_eq!(share.resume(), Ok(()));
    share.unmount().unwrap();
    check(&device);

    // At the end of a session, with and without DESTROY.
    let device = Device::new(tree());
    let share = crate::rig::share(&device);
    refuse(&device);
    drop(share);
    assert_eq!(TestHal::pages(), pages_per_share(1));
    let device = Device::new(tree());
    let share = crate::rig::share(&device);
    refuse(&device);
    assert_eq!(share.unmount(), Err(not_confirmed));
    let device = silent(Opcode::Destroy);
    let share = crate::rig::share(&device);
    refuse(&device);
    assert_eq!(share.unmount(), Err(not_confirmed));

    // After a failed set-up.
    let device = Device::new(tree());
    device.quirk(|quirks| {
        quirks.queues = vec![128, 3];
        quirks.reset = Reset::NeverAfter(1);
    });
    assert_eq!(device.mount(Options::default()).err(), Some(not_confirmed));

    // Three sessions were set up, and of the fourth one the slots and a ring of two pages. A device may still write to
    // this memory, so it is never freed.
    let of_the_last_one = pages_per_share(0) - 2 + 2;
    assert_eq!(TestHal::pages(), 3 * pages_per_share(1) + of_the_last_one);
}

#[test]
fn the_limit_of_a_reset_is_not_the_deadline() {
    for deadline in [9, 5, 1, 0] {
        let device = Device::new(tree());
        device.quirk(|quirks| quirks.reset = Reset::After(ticks(1) as u32));
        let options = Options::default().with_deadline(Duration::from_millis(deadline));
        device.mount(options).unwrap();
        check(&device);
    }
}

#[test]
fn a_panic_in_the_middle_of_a_read_resets_the_device() {
    let device = silent_after(5);
    let share = device.mount(in_chunks()).unwrap();
    let file = share.open("large").unwrap();
    let mut buf = vec![0; LARGE as usize];
    let read = catch_unwind(AssertUnwindSafe(|| {
        file.read_at_with(0, &mut buf, &mut |_| panic!("in the caller's own code"))
    }));
    assert!(read.is_err());
    assert!(
        !device.is_live(),
        "the device is reset before the buffer is freed"
    );
    assert_eq!(share.metadata("file").err(), Some(Error::Disconnected));
    drop(file);
    drop(share);
    check(&device);
}
