//! Replies that no server should give.

use crate::rig::{
    CHUNK, CONTENT, LARGE, OFTEN, cases, check, in_chunks, is_large, share, spoiling, tree,
};
use bootshare::{
    Error, Options,
    fuse::{Errno, Violation},
};
use bootshare_tests::{
    Device, Node, Opcode, Order, Quirks, Reply, Request, Scripted, Tree, dirent, mount,
};

/// Spoils the first LOOKUP and says what comes of it. The second one is good, and the share goes
/// on.
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
    assert_eq!(again.len(), CONTENT.len() as u64, "the share goes on");
    share.unmount().unwrap();
    check(&device);
}

fn broken<T>(violation: Violation) -> Result<T, Error> {
    Err(Error::Protocol(violation))
}

/// Bytes of a good LOOKUP reply.
const ENTRY: u32 = 16 + 128;

#[test]
fn lengths_that_do_not_agree() {
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
        lookup_gives(wrong, move |request, _| {
            Reply::ok(request, vec![1; body].as_slice())
        });
    }
    // Nothing was written: what stood in the slot before must not speak.
    lookup_gives(wrong, |_, _| Reply::none());
    lookup_gives(wrong, |_, _| Reply::none().used(ENTRY));
    // Old libkrun reports 0 for everything; the header says enough.
    lookup_gives(Ok(CONTENT.len() as u64), |_, good| good.used(0));
}

#[test]
fn the_last_reply_does_not_answer_the_next_request() {
    // The second reply reports a length and writes nothing; the slot had a good one in it.
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
fn errors_that_are_none() {
    for error in [1, 2, i32::MAX, -4096, i32::MIN] {
        lookup_gives(broken(Violation::ErrorRange), move |request, _| {
            Reply::with_header(16, error, request.unique, &[])
        });
    }
    lookup_gives(broken(Violation::ReplyLength), |_, good| {
        good.patch(4, &(-2i32).to_le_bytes())
    });
}

#[test]
fn nodes_and_attributes_that_can_not_be() {
    // Offsets in fuse_entry_out behind the reply's header.
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
fn every_error_number_of_every_request() {
    // All of them, or the ones next to the ends for an interpreter.
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
            Reply::error(request, now)
        });
        let share = share(&device);
        for errno in (1..=4095).step_by(step as usize) {
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
    let minor = mount(&device, Options::default()).map(|share| share.protocol().1);
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
        let short =
            move |request: &Request, good: Reply| Reply::ok(request, &good.bytes[16..16 + size]);
        assert_eq!(mounting(short), wrong, "{size}");
    }
    assert_eq!(
        mounting(|request, _| Reply::error(request, libc::EPROTO)),
        Err(Error::Host(Errno::EPROTO))
    );
    assert_eq!(mounting(|_, _| Reply::none()), wrong);
}

/// What a device that answers READDIR like this gives: names, and the error at the end.
fn listing(
    script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
) -> (Vec<Vec<u8>>, Option<Error>) {
    let device = spoiling(Opcode::ReadDir, script);
    let share = share(&device);
    let mut names = Vec::new();
    let mut error = None;
    let mut entries = share.read_dir("dir").unwrap();
    for entry in entries.by_ref() {
        match entry {
            Ok(entry) => names.push(entry.file_name().to_vec()),
            Err(found) => error = Some(found),
        }
    }
    assert!(entries.next().is_none(), "it stays ended");
    drop(entries);
    share.unmount().unwrap();
    check(&device);
    (names, error)
}

/// The first READDIR gives these bytes, the next ones nothing.
fn listing_of(bytes: Vec<u8>) -> (Vec<Vec<u8>>, Option<Error>) {
    listing(move |request, _| {
        let all: &[u8] = if request.offset() == 0 { &bytes } else { &[] };
        Reply::ok(request, all)
    })
}

#[test]
fn directory_entries() {
    let good = dirent(7, 1, 8, b"good");
    let bad_entry = Some(Error::Protocol(Violation::DirectoryEntry));
    let with_length = |length: u32| {
        let mut entry = dirent(7, 2, 8, b"name");
        entry[16..20].copy_from_slice(&length.to_le_bytes());
        entry
    };
    for bad in cases([
        dirent(7, 2, 8, b""),
        dirent(7, 2, 8, b"/"),
        dirent(7, 2, 8, b"a/b"),
        dirent(7, 2, 8, b"../../etc/passwd"),
        dirent(7, 2, 8, b"a\0"),
        dirent(7, 2, 8, &[b'n'; 256]),
        dirent(7, 2, 8, &[b'n'; 2000]),
        with_length(9),
        with_length(4096),
        with_length(u32::MAX),
        with_length(u32::MAX - 7),
        dirent(7, 2, 8, b"name")[..24].to_vec(),
        dirent(7, 2, 8, b"name")[..27].to_vec(),
        // Without its padding.
        dirent(7, 2, 8, b"name")[..28].to_vec(),
        vec![0; 24],
        vec![0; 4064],
        vec![0xff; 100],
        vec![1],
    ]) {
        let (names, error) = listing_of([&good[..], &bad].concat());
        assert_eq!(names, [b"good"], "{bad:?}");
        assert_eq!(error, bad_entry, "{bad:?}");
        let (names, error) = listing_of(bad);
        assert!(names.is_empty());
        assert_eq!(error, bad_entry);
    }
    let dots = [
        dirent(1, 1, 4, b"."),
        dirent(1, 2, 4, b".."),
        dirent(7, 3, 8, &[b'n'; 255]),
        dirent(7, u64::MAX, u32::MAX, b"strange type"),
    ];
    let (names, error) = listing_of(dots.concat());
    assert_eq!(names, [&[b'n'; 255][..], b"strange type"]);
    assert_eq!(error, None);
}

#[test]
fn directories_that_never_end() {
    let endless = Some(Error::Protocol(Violation::EndlessDirectory));
    // It always starts again where it is.
    let (names, error) = listing(|request, _| {
        let entry = dirent(7, request.offset(), 8, b"again");
        Reply::ok(request, entry.as_slice())
    });
    assert!(names.len() <= 1);
    assert_eq!(error, endless);
    // It goes on once and then stays.
    let (names, error) = listing(|request, _| {
        let entries = [dirent(7, 5, 8, b"one"), dirent(7, 9, 8, b"two")];
        Reply::ok(request, entries.concat().as_slice())
    });
    assert_eq!(names.len(), 2);
    assert_eq!(error, endless);
    // More than was asked for.
    let (_, error) = listing(|request, _| {
        let much = vec![0; request.size() as usize + 8];
        Reply::ok(request, much.as_slice())
    });
    assert_eq!(error, Some(Error::Protocol(Violation::ReplyLength)));
}

#[test]
fn link_targets() {
    let read = |target: Vec<u8>| {
        let device = spoiling(Opcode::ReadLink, move |request, _| {
            Reply::ok(request, target.as_slice())
        });
        let share = share(&device);
        let followed = share.metadata("link").map(|meta| meta.len());
        let mut buf = [0; 4096];
        let read = share.read_link("link", &mut buf).map(<[u8]>::len);
        share.unmount().unwrap();
        check(&device);
        (read, followed)
    };
    let wrong = Violation::LinkTarget;
    assert_eq!(read(Vec::new()), (broken(wrong), broken(wrong)));
    assert_eq!(read(vec![0]), (broken(wrong), broken(wrong)));
    assert_eq!(read(b"fi\0le".to_vec()), (broken(wrong), broken(wrong)));
    assert_eq!(read(b"file\0".to_vec()), (broken(wrong), broken(wrong)));
    assert_eq!(read(vec![b'/'; 4096]), (broken(wrong), broken(wrong)));
    // The longest there is: only slashes, so it is the root.
    assert_eq!(read(vec![b'/'; 4095]), (Ok(4095), Ok(4096)));
    let much = broken(Violation::ReplyLength);
    assert_eq!(
        read(vec![b'a'; 4097]),
        (much, broken(Violation::ReplyLength))
    );
    assert_eq!(read(vec![b'n'; 300]), (Ok(300), Err(Error::NameTooLong)));
    assert_eq!(read(b"link".to_vec()), (Ok(4), Err(Error::TooManyLinks)));
    assert_eq!(
        read(b"link/x/y".to_vec()),
        (Ok(8), Err(Error::TooManyLinks))
    );
    let long = b"./".repeat(2000);
    assert_eq!(
        read([&b"link/"[..], &long].concat()).1,
        Err(Error::PathTooLong)
    );
}

#[test]
fn trees_without_a_bottom() {
    // Whatever is looked up is a directory; whatever is a link leads deeper.
    let device = spoiling(Opcode::Lookup, |request, _| {
        Tree::new().with(request.name(), Node::Dir).reply(&Request {
            node: 1,
            ..request.clone()
        })
    });
    let share = share(&device);
    let deep = "d/".repeat(1000);
    assert_eq!(share.metadata(deep).err(), Some(Error::PathTooLong));
    assert!(share.metadata("d/".repeat(256)).is_ok());
    share.unmount().unwrap();
    device.log(|log| assert_eq!(log.at_destroy.last(), Some(&Default::default())));
    check(&device);

    let device = Device::new(Scripted::new(tree(), |request, good| {
        match request.opcode {
            Opcode::Lookup => Tree::new()
                .with(request.name(), Node::Link(b"?".to_vec()))
                .reply(&Request {
                    node: 1,
                    ..request.clone()
                }),
            Opcode::ReadLink => {
                let target = format!("deeper-{}/x", request.unique);
                Reply::ok(request, target.as_bytes())
            }
            _ => good,
        }
    }));
    let share = crate::rig::share(&device);
    assert_eq!(share.metadata("a").err(), Some(Error::TooManyLinks));
    share.unmount().unwrap();
    check(&device);
}

/// Reads `large` whole, chunk by chunk, from a device that answers READ like this.
fn reading(
    order: Order,
    script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
) -> (Result<usize, Error>, Vec<u8>) {
    let quirks = Quirks {
        order,
        ..Quirks::default()
    };
    let backend = Scripted::spoiling(tree(), Opcode::Read, script);
    let device = Device::with_quirks(backend, quirks);
    let share = mount(&device, in_chunks()).unwrap();
    let mut buf = vec![0xee; (LARGE + 5 * CHUNK) as usize];
    let file = share.open("large").unwrap();
    let read = file.read_at(0, &mut buf);
    drop(file);
    _ = share.unmount();
    check(&device);
    (read, buf)
}

/// In which answers come.
fn orders() -> impl Iterator<Item = Order> {
    let all = [Order::Shuffled(5), Order::Reversed, Order::Asked];
    all.into_iter().take(if cfg!(miri) { 1 } else { all.len() })
}

/// The good reply, cut to its first `size` bytes of data.
fn cut(request: &Request, good: &Reply, size: usize) -> Reply {
    let data = &good.bytes[16..];
    Reply::ok(request, &data[..size.min(data.len())])
}

#[test]
fn short_answers_are_gone_on_from() {
    for order in orders() {
        for divisor in cases([2, 3, CHUNK as usize]) {
            let (read, buf) = reading(order, move |request, good| {
                let size = (good.bytes.len() - 16).div_ceil(divisor);
                cut(request, &good, size)
            });
            assert_eq!(read, Ok(LARGE as usize), "{order:?} {divisor}");
            assert!(is_large(&buf[..LARGE as usize], 0));
        }
    }
}

#[test]
fn answers_late_and_in_any_order() {
    let seeds = if cfg!(miri) { 1 } else { 50 };
    for seed in 0..seeds {
        let mut count = seed;
        let (read, buf) = reading(Order::Shuffled(seed), move |_, good| {
            count = count
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            good.after(count >> 54)
        });
        assert_eq!(read, Ok(LARGE as usize), "{seed}");
        assert!(is_large(&buf[..LARGE as usize], 0));
    }
}

#[test]
fn a_file_that_ends_before_its_size() {
    for end in cases([LARGE / 2 + 7, CHUNK, CHUNK + 1, CHUNK - 1, 1, 0]) {
        for order in orders() {
            let (read, buf) = reading(order, move |request, good| {
                let left = end.saturating_sub(request.offset());
                cut(request, &good, left as usize)
            });
            assert_eq!(read, Ok(end as usize));
            assert!(is_large(&buf[..end as usize], 0));
        }
    }
}

#[test]
fn a_hole_where_the_host_has_nothing() {
    // An empty answer in the middle and data behind it: the file ends at the hole.
    for order in orders() {
        let (read, buf) = reading(order, |request, good| {
            if request.offset() == 7 * CHUNK {
                cut(request, &good, 0)
            } else {
                good
            }
        });
        assert_eq!(read, Ok(7 * CHUNK as usize), "{order:?}");
        assert!(is_large(&buf[..7 * CHUNK as usize], 0));
    }
}

#[test]
fn a_file_that_grows_behind_its_end() {
    // The end comes first, the data for what lies before and behind it afterwards.
    let (read, buf) = reading(Order::Asked, |request, good| {
        match request.offset() / CHUNK {
            5 => cut(request, &good, 0),
            3 => good.after(100),
            _ => good.after(50),
        }
    });
    assert_eq!(read, Ok(5 * CHUNK as usize));
    assert!(is_large(&buf[..5 * CHUNK as usize], 0));
}

#[test]
fn more_data_than_was_asked_for() {
    for extra in [1, 100, LARGE as usize] {
        let (read, _) = reading(Order::Asked, move |request, good| {
            let mut data = good.bytes[16..].to_vec();
            data.resize(data.len() + extra, 0xbb);
            Reply::ok(request, data.as_slice())
        });
        assert_eq!(read, broken(Violation::ReplyLength));
    }
}

#[test]
fn one_bad_chunk_among_good_ones() {
    type Spoil = fn(&Request, Reply) -> Reply;
    let spoilt: [(Spoil, Error); 6] = [
        (
            |request, _| Reply::error(request, libc::EIO),
            Error::Host(Errno::EIO),
        ),
        (
            |_, good| good.patch(8, &[0xff; 8]),
            Error::Protocol(Violation::ReplyUnique),
        ),
        (
            |_, good| good.patch(0, &[0xff; 4]),
            Error::Protocol(Violation::ReplyLength),
        ),
        (
            |_, good| good.used(3),
            Error::Protocol(Violation::ReplyLength),
        ),
        (
            |_, good| good.patch(4, &5i32.to_le_bytes()),
            Error::Protocol(Violation::ErrorRange),
        ),
        (
            |_, _| Reply::none(),
            Error::Protocol(Violation::ReplyLength),
        ),
    ];
    for (spoil, error) in cases(spoilt) {
        for order in orders() {
            let (read, _) = reading(order, move |request, good| {
                if request.offset() == 12 * CHUNK {
                    spoil(request, good)
                } else {
                    good.after(3)
                }
            });
            assert_eq!(read, Err(error), "{order:?}");
        }
    }
}

// Miri's memory is all touched.
#[cfg(not(miri))]
#[test]
fn the_largest_chunks_fit_a_descriptor_chain() {
    // The buffers of one chain may have 2^32 bytes in all, headers included (virtio 1.2, section
    // 2.7.5). Nobody touches this memory, so it takes none.
    let mut buf = vec![0; (1 << 32) + 4096];
    let device = Device::new(Scripted::honest(tree()));
    let options = Options::default().with_chunk_size(u32::MAX);
    let share = mount(&device, options).unwrap();
    let file = share.open("file").unwrap();
    assert_eq!(file.read_at(0, &mut buf), Ok(CONTENT.len()));
    drop(file);
    share.unmount().unwrap();
    check(&device);
}

#[test]
fn a_goodbye_is_said_to_anybody() {
    type Spoil = fn(&Request, Reply) -> Reply;
    let cases: [(Spoil, bool); 7] = [
        (|_, good| good, true),
        (|request, _| Reply::ok(request, &[0u8; 0]), true),
        (|request, _| Reply::error(request, libc::ENOSYS), true),
        (|request, _| Reply::ok(request, &[1u8; 100]), true),
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
fn answers_to_what_has_none() {
    // FORGET has no writable descriptor; a device may claim to have written all the same.
    let device = spoiling(Opcode::Forget, |_, good| good.used(u32::MAX));
    let share = share(&device);
    for _ in 0..OFTEN {
        share.metadata("dir/one").unwrap();
    }
    share.unmount().unwrap();
    check(&device);
    // What comes for RELEASE is nobody's business.
    let device = spoiling(Opcode::Release, |_, good| good.patch(8, &[7; 8]).used(9999));
    let share = crate::rig::share(&device);
    for _ in 0..OFTEN {
        assert_eq!(share.open("file").unwrap().read_at(0, &mut [0; 4]), Ok(4));
    }
    share.unmount().unwrap();
    check(&device);
}
