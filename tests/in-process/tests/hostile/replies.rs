//! Replies that no correct server sends: headers, attributes, error numbers, versions.

use crate::rig::{CONTENT, OFTEN, broken, cases, check, share, spoiling};
use bootshare::{
    Error, Options,
    fuse::{Errno, Violation},
};
use bootshare_test_device::{Opcode, Reply, Request};

/// Asserts the result of a LOOKUP whose reply is changed by `spoil`, and that the next LOOKUP works.
#[track_caller]
fn lookup_gives(
    expected: Result<u64, Error>,
    mut spoil: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
) {
    let mut first = true;
    let device = spoiling(Opcode::Lookup, move |request, good| {
        if std::mem::take(&mut first) {
            spoil(request, good)
        } else {
            good
        }
    });
    let share = share(&device);
    assert_eq!(share.metadata("file").map(|meta| meta.len()), expected);
    let again = share.metadata("file").unwrap();
    assert_eq!(again.len(), CONTENT.len() as u64, "the share still works");
    share.unmount().unwrap();
    check(&device);
}

/// The length of a good LOOKUP reply.
const ENTRY: u32 = 16 + 128;

#[test]
fn inconsistent_lengths() {
    let wrong = broken(Violation::ReplyLength);
    for used in cases([1, 15, 16, ENTRY - 1, ENTRY + 1, 4096, u32::MAX]) {
        lookup_gives(wrong, move |_, good| good.used(used));
    }
    for length in cases([0, 1, 15, 17, ENTRY - 1, ENTRY + 1, 1 << 31, u32::MAX]) {
        let patched = move |good: Reply| good.patch(0, &length.to_le_bytes());
        lookup_gives(wrong, move |_, good| patched(good));
        lookup_gives(wrong, move |_, good| patched(good).used(length));
        lookup_gives(wrong, move |_, good| patched(good).used(0));
    }
    for body in cases([0, 1, 40, 127, 129]) {
        lookup_gives(wrong, move |request, _| Reply::ok(request, &vec![1; body]));
    }
    // Nothing was written: an old reply in the slot must not be used.
    lookup_gives(wrong, |_, _| Reply::none());
    lookup_gives(wrong, |_, _| Reply::none().used(ENTRY));
    // Old versions of libkrun report 0 bytes for each reply; the length in the header is used then.
    lookup_gives(Ok(CONTENT.len() as u64), |_, good| good.used(0));
}

#[test]
fn the_last_reply_does_not_answer_the_next_request() {
    // The second reply reports a length without writing anything; its slot contains an old good reply.
    let mut count = 0;
    let device = spoiling(Opcode::Lookup, move |_, good| {
        count += 1;
        if count == 1 {
            good
        } else {
            Reply::none().used(ENTRY)
        }
    });
    let share = share(&device);
    share.metadata("file").unwrap();
    assert_eq!(
        share.metadata("file").err(),
        Some(Error::Protocol(Violation::ReplyLength))
    );
    share.unmount().unwrap();
    check(&device);
}

#[test]
fn replies_to_other_requests() {
    for unique in [0, 1, 2, 5, u64::MAX] {
        lookup_gives(broken(Violation::ReplyUnique), move |_, good| {
            good.patch(8, &unique.to_le_bytes())
        });
    }
}

#[test]
fn invalid_error_numbers() {
    for error in [1, 2, i32::MAX, -4096, i32::MIN] {
        lookup_gives(broken(Violation::ErrorRange), move |request, _| {
            Reply::with_header(16, error, request.unique(), &[])
        });
    }
    lookup_gives(broken(Violation::ReplyLength), |_, good| {
        good.patch(4, &(-2i32).to_le_bytes())
    });
}

#[test]
fn invalid_nodes_and_attributes() {
    // Offsets in fuse_entry_out, which follows the reply's header.
    const NODE: usize = 16;
    const ATTR: usize = 16 + 40;
    lookup_gives(Err(Error::NotFound), |_, good| good.patch(NODE, &[0; 8]));
    lookup_gives(broken(Violation::NodeId), |_, good| {
        good.patch(NODE, &1u64.to_le_bytes())
    });
    let attributes = |at: usize, bytes: Vec<u8>| {
        lookup_gives(broken(Violation::Attributes), move |_, good| {
            good.patch(ATTR + at, &bytes)
        });
    };
    for size in [1u64 << 63, u64::MAX] {
        attributes(8, size.to_le_bytes().to_vec());
    }
    for nanoseconds in [1_000_000_000, u32::MAX] {
        attributes(52, nanoseconds.to_le_bytes().to_vec());
    }
    for mode in [0u32, 0o644, 0o170_644, u32::MAX, 0o3_100_644] {
        attributes(60, mode.to_le_bytes().to_vec());
    }
}

#[test]
fn a_node_with_bad_attributes_is_forgotten() {
    let device = spoiling(Opcode::Lookup, |request, good| match request.name() {
        b"one" => good.patch(16 + 40 + 52, &u32::MAX.to_le_bytes()),
        _ => good,
    });
    let share = share(&device);
    let dir = share.open_dir("dir").unwrap();
    for _ in 0..OFTEN {
        let wrong = Some(Error::Protocol(Violation::Attributes));
        assert_eq!(share.metadata("dir/one").err(), wrong);
        assert_eq!(dir.symlink_metadata("one").err(), wrong);
    }
    drop(dir);
    share.unmount().unwrap();
    device.log(|log| assert_eq!(log.at_destroy, [Default::default()]));
    check(&device);
}

#[test]
fn an_interrupted_request_is_repeated_a_few_times() {
    for errno in [Errno::EINTR, Errno::EAGAIN] {
        for (opcode, times) in cases([
            (Opcode::Read, 16),
            (Opcode::Lookup, 16),
            (Opcode::Read, u32::MAX),
            (Opcode::ReadDir, 16),
            (Opcode::Lookup, u32::MAX),
        ]) {
            let mut left = times;
            let device = spoiling(opcode, move |request, good| {
                left -= u32::from(left > 0);
                if left > 0 {
                    Reply::error(request, errno)
                } else {
                    good
                }
            });
            let share = share(&device);
            let read = share
                .open("file")
                .and_then(|file| file.read_at(0, &mut [0; 4]));
            let listed = share
                .read_dir("dir")
                .and_then(|mut dir| dir.next().unwrap());
            let error = read.err().or(listed.err());
            let expected = (times > 16).then_some(Error::Host(errno));
            assert_eq!(error, expected, "{opcode:?}");
            share.unmount().unwrap();
            check(&device);
        }
    }
}

#[test]
fn destroy_is_sent_once_whatever_the_answer() {
    for errno in [Errno::EINTR, Errno::EAGAIN, Errno::ENOSYS] {
        let device = spoiling(Opcode::Destroy, move |request, _| {
            Reply::error(request, errno)
        });
        share(&device).unmount().unwrap();
        let sent = device.log(|log| log.counts()[&Opcode::Destroy]);
        assert_eq!(sent, 1, "{errno:?}");
        check(&device);
    }
}

#[test]
fn every_error_number_of_every_request() {
    // All error numbers; under Miri only those next to the limits.
    let step = if cfg!(miri) { 2047 } else { 1 };
    for opcode in [
        Opcode::Lookup,
        Opcode::GetAttr,
        Opcode::ReadLink,
        Opcode::Open,
        Opcode::Read,
        Opcode::StatFs,
        Opcode::OpenDir,
        Opcode::ReadDir,
    ] {
        let mut errno = 0;
        let device = spoiling(opcode, move |request, _| {
            let now = errno + 1;
            errno = (errno + step) % 4095;
            Reply::error_number(request, now)
        });
        let share = share(&device);
        // Requests that failed with EINTR or EAGAIN are sent again, and a path that failed with ESTALE is looked up
        // again.
        let of_a_path = ![Opcode::Read, Opcode::ReadDir, Opcode::StatFs].contains(&opcode);
        let final_ones = |&errno: &i32| {
            !(matches!(errno, libc::EINTR | libc::EAGAIN) || of_a_path && errno == libc::ESTALE)
        };
        for errno in (1..=4095).step_by(step as usize).filter(final_ones) {
            let error = match opcode {
                Opcode::Lookup => share.metadata("file").err(),
                Opcode::GetAttr => share.metadata("/").err(),
                Opcode::ReadLink => share.metadata("link").err(),
                Opcode::Open => share.open("file").err(),
                Opcode::Read => share.open("file").unwrap().read_at(0, &mut [0; 4]).err(),
                Opcode::StatFs => share.statistics().err(),
                Opcode::OpenDir => share.read_dir("dir").err(),
                _ => share.read_dir("dir").unwrap().next().unwrap().err(),
            };
            let expected = match errno {
                libc::ENOENT => Error::NotFound,
                libc::EACCES | libc::EPERM => Error::PermissionDenied,
                libc::ENOTDIR => Error::NotADirectory,
                libc::EISDIR => Error::IsADirectory,
                libc::ELOOP => Error::TooManyLinks,
                libc::ENAMETOOLONG => Error::NameTooLong,
                _ => {
                    let Some(Error::Host(host)) = error else {
                        panic!("{opcode:?} {errno}: {error:?}");
                    };
                    assert_eq!(i32::from(host.get()), errno);
                    continue;
                }
            };
            assert_eq!(error, Some(expected), "{opcode:?} {errno}");
        }
        share.unmount().unwrap();
        check(&device);
    }
}

fn mounting(script: impl FnMut(&Request, Reply) -> Reply + Send + 'static) -> Result<u32, Error> {
    let device = spoiling(Opcode::Init, script);
    let minor = device
        .mount(Options::default())
        .map(|share| share.protocol().1);
    check(&device);
    minor
}

#[test]
fn versions() {
    let answering = |major: u32, minor: u32| {
        mounting(move |_, good| {
            good.patch(16, &major.to_le_bytes())
                .patch(20, &minor.to_le_bytes())
        })
    };
    assert_eq!(answering(7, 31), Ok(31));
    assert_eq!(answering(7, 38), Ok(38));
    let newest = answering(7, u32::MAX).unwrap();
    assert!((38..100).contains(&newest), "the client's own: {newest}");
    for (major, minor) in [
        (7, 30),
        (7, 0),
        (6, 38),
        (8, 0),
        (0, 0),
        (u32::MAX, u32::MAX),
    ] {
        let violation = Violation::Version { major, minor };
        assert_eq!(answering(major, minor), broken(violation));
    }
    let wrong = broken(Violation::ReplyLength);
    for size in [0, 8, 24, 63] {
        let short = move |request: &Request, good: Reply| Reply::ok(request, &good.body()[..size]);
        assert_eq!(mounting(short), wrong, "{size}");
    }
    assert_eq!(
        mounting(|request, _| Reply::error(request, Errno::EPROTO)),
        Err(Error::Host(Errno::EPROTO))
    );
    assert_eq!(mounting(|_, _| Reply::none()), wrong);
}

#[test]
fn unmounting_copes_with_any_reply_to_destroy() {
    type Spoil = fn(&Request, Reply) -> Reply;
    let cases: [(Spoil, bool); 7] = [
        (|_, good| good, true),
        (|request, _| Reply::ok(request, &[]), true),
        (|request, _| Reply::error(request, Errno::ENOSYS), true),
        (|request, _| Reply::ok(request, &[1; 100]), true),
        (|_, good| good.used(u32::MAX), true),
        (|_, _| Reply::with_header(16, 0, 99, &[]), false),
        (|_, good| good.never(), false),
    ];
    for (spoil, well) in cases {
        let device = spoiling(Opcode::Destroy, spoil);
        let share = share(&device);
        share.metadata("file").unwrap();
        assert_eq!(share.unmount().is_ok(), well);
        check(&device);
    }
}

#[test]
fn replies_to_requests_without_a_reply() {
    // FORGET has no writable descriptor, but a device may report written bytes nevertheless.
    let device = spoiling(Opcode::Forget, |_, good| good.used(u32::MAX));
    let share = share(&device);
    for _ in 0..OFTEN {
        share.metadata("dir/one").unwrap();
    }
    share.unmount().unwrap();
    check(&device);
    // The reply to RELEASE is ignored.
    let device = spoiling(Opcode::Release, |_, good| good.patch(8, &[7; 8]).used(9999));
    let share = crate::rig::share(&device);
    for _ in 0..OFTEN {
        assert_eq!(share.open("file").unwrap().read_at(0, &mut [0; 4]), Ok(4));
    }
    share.unmount().unwrap();
    check(&device);
}
