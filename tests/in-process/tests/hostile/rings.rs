//! Invalid entries of the used ring.

use crate::rig::{LARGE, cases, check, in_chunks, share, spoiling};
use bootshare::{Error, fuse::Violation};
use bootshare_test_device::{Opcode, Reply, VirtualClock};

/// The error with the default deadline.
const TIMED_OUT: Error = Error::TimedOut { after_ms: 10_000 };

/// Changes the used ring's entry for one LOOKUP. Returns the error, if any.
fn lookup_gives(spoil: impl Fn(Reply) -> Reply + Send + 'static) -> Option<Error> {
    let mut count = 0;
    let device = spoiling(Opcode::Lookup, move |_, good| {
        count += 1;
        if count == 3 { spoil(good) } else { good }
    });
    let share = share(&device);
    share.metadata("file").unwrap();
    share.metadata("file").unwrap();
    let first = share.metadata("file").err();
    let second = share.metadata("file").err();
    if second.is_some() {
        assert!(!device.is_live(), "a device in disorder is reset");
        assert_eq!(share.metadata("file").err(), Some(Error::Disconnected));
        assert_eq!(share.statistics().err(), Some(Error::Disconnected));
        assert_eq!(share.unmount(), Err(Error::Disconnected));
    } else {
        share.unmount().unwrap();
    }
    check(&device);
    first.or(second)
}

#[test]
fn chains_that_are_not_in_flight() {
    let wrong = Some(Error::Protocol(Violation::UsedId));
    for id in cases([1, 2, 7, 63, 64, 65, 0x7fff, 0xffff]) {
        assert_eq!(lookup_gives(move |good| good.id(id)), wrong, "{id}");
    }
    // `virtio-drivers` uses the low 16 bits; the upper bits are ignored or refused.
    for id in cases([0x1_0000, 0xffff_0000, 0x1_0040, u32::MAX]) {
        let error = lookup_gives(move |good| good.id(id));
        assert!(error.is_none() || error == wrong, "{id:#x}: {error:?}");
    }
}

#[test]
fn chains_returned_twice() {
    for times in cases([2, 3, 64, 65, 1000]) {
        let error = lookup_gives(move |good| good.times(times));
        assert_eq!(error, Some(Error::Protocol(Violation::UsedId)), "{times}");
    }
}

#[test]
fn indices_that_jump() {
    for by in cases([1, 2, 62, 63, 64, 65, 0x7fff, 0x8000, 0xffff]) {
        let error = lookup_gives(move |good| good.jump(by));
        // A jump of 65535 leaves the index where it was: the completion is lost, and the request times out.
        let expected = [Some(Error::Protocol(Violation::UsedId)), Some(TIMED_OUT)];
        assert!(expected.contains(&error), "{by}: {error:?}");
    }
}

#[test]
fn an_index_without_a_new_entry() {
    // The ring's entry is that of an older completion of the same chain. Its length does not fit a reply that was
    // not written.
    let error = lookup_gives(|_| Reply::none().times(0).jump(1));
    assert_eq!(error, Some(Error::Protocol(Violation::ReplyLength)));
    let error = lookup_gives(|good| good.times(0));
    assert_eq!(error, Some(TIMED_OUT));
}

#[test]
fn the_chain_of_another_request_during_a_read() {
    // The entry is changed while 16 READs are in flight, all with buffers of a caller.
    for id in cases([0u32, 1, 3, 6, 45, 47, 48, 63, 64, 1000]) {
        for times in cases([1, 2]) {
            let mut count = 0;
            let device = spoiling(Opcode::Read, move |_, good| {
                count += 1;
                if count == 20 {
                    good.id(id).times(times)
                } else {
                    good.after(2 * VirtualClock::TICK)
                }
            });
            let share = device.mount(in_chunks()).unwrap();
            let file = share.open("large").unwrap();
            let mut buf = vec![0; LARGE as usize];
            let error = file.read_at(0, &mut buf).err();
            assert!(
                matches!(error, Some(Error::Protocol(_) | Error::TimedOut { .. })),
                "{id} {times}: {error:?}"
            );
            // The device was reset, so the buffer belongs to the caller again.
            assert!(!device.is_live());
            buf.fill(0x55);
            (0..1000).for_each(|_| device.tick());
            assert!(buf.iter().all(|&byte| byte == 0x55));
            assert_eq!(file.read_at(0, &mut buf), Err(Error::Disconnected));
            drop(file);
            assert_eq!(share.unmount(), Err(Error::Disconnected));
            check(&device);
        }
    }
}
