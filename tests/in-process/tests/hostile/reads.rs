//! File data that is cut, late, reordered, too long, or too large for a ring.

use crate::rig::{
    CHUNK, LARGE, broken, cases, check, in_chunks, is_large, read_large, spoiling, tree,
};
use bootshare::{
    Error,
    fuse::{Errno, Violation},
};
use bootshare_test_device::{Device, Opcode, Reply, Request, VirtualClock, raw::Order};

/// Reads `large` completely in chunks, from a device whose READ replies come from `script`.
fn reading(
    order: Order,
    script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
) -> (Result<usize, Error>, Vec<u8>) {
    let device = spoiling(Opcode::Read, script);
    device.quirk(|quirks| quirks.order = order);
    let share = device.mount(in_chunks()).unwrap();
    let mut buf = vec![0xee; (LARGE + 5 * CHUNK) as usize];
    let file = share.open("large").unwrap();
    let read = file.read_at(0, &mut buf);
    drop(file);
    _ = share.unmount();
    check(&device);
    (read, buf)
}

/// The orders of the replies.
fn orders() -> impl Iterator<Item = Order> {
    let all = [Order::Shuffled(5), Order::Reversed, Order::Asked];
    all.into_iter().take(if cfg!(miri) { 1 } else { all.len() })
}

/// The good reply, with only the first `size` bytes of data.
fn cut(request: &Request, good: &Reply, size: usize) -> Reply {
    let data = good.body();
    Reply::ok(request, &data[..size.min(data.len())])
}

#[test]
fn reads_continue_after_short_replies() {
    for order in orders() {
        for divisor in cases([2, 3, CHUNK as usize]) {
            let (read, buf) = reading(order, move |request, good| {
                let size = (good.body().len()).div_ceil(divisor);
                cut(request, &good, size)
            });
            assert_eq!(read, Ok(LARGE as usize), "{order:?} {divisor}");
            assert!(is_large(&buf[..LARGE as usize], 0));
        }
    }
}

#[test]
fn replies_may_be_late_and_in_any_order() {
    let seeds = if cfg!(miri) { 1 } else { 50 };
    for seed in 0..seeds {
        let mut count = seed;
        let (read, buf) = reading(Order::Shuffled(seed), move |_, good| {
            count = count
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            good.after(VirtualClock::TICK * (count >> 54) as u32)
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
fn a_gap_in_the_middle_of_a_file() {
    // An empty reply in the middle, followed by data: the file counts as ending at the empty reply.
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
fn a_file_that_grows_beyond_its_end() {
    // First comes the reply with the end of the file, then the data before and after it.
    let (read, buf) = reading(Order::Asked, |request, good| {
        match request.offset() / CHUNK {
            5 => cut(request, &good, 0),
            3 => good.after(100 * VirtualClock::TICK),
            _ => good.after(50 * VirtualClock::TICK),
        }
    });
    assert_eq!(read, Ok(5 * CHUNK as usize));
    assert!(is_large(&buf[..5 * CHUNK as usize], 0));
}

#[test]
fn at_least_one_read_and_no_more_than_fit_into_a_queue_are_in_flight() {
    for depth in [0, usize::MAX] {
        let device = Device::new(tree());
        let share = device.mount(in_chunks().with_depth(depth)).unwrap();
        read_large(&share);
        share.unmount().unwrap();
        check(&device);
    }
}

#[test]
fn a_full_reply_is_not_the_end_of_a_file() {
    // LOOKUP reports five chunks, and the file has more.
    let device = Device::with_script(tree(), |request, good| match request.opcode() {
        Opcode::Lookup => good.patch(16 + 40 + 8, &u64::to_le_bytes(5 * CHUNK)),
        _ => good,
    });
    let share = device.mount(in_chunks().with_depth(1)).unwrap();
    read_large(&share);
    share.unmount().unwrap();
    check(&device);
}

#[test]
fn a_whole_file_is_read_even_if_its_reported_size_is_wrong() {
    // LOOKUP reports a wrong size, as for files of `/proc` and for growing files; the file has 100 bytes.
    for said in [0, 19, 50, 99, 100, 101, 5000] {
        let device = Device::with_script(tree(), move |request, good| match request.opcode() {
            Opcode::Lookup => good.patch(16 + 40 + 8, &u64::to_le_bytes(said)),
            Opcode::Read => Reply::content(request, &[b'x'; 100]),
            _ => good,
        });
        let share = crate::rig::share(&device);
        for room in [0, 50, 99, 100, 101, 1000] {
            let mut buf = vec![0; room];
            let read = share.read("file", &mut buf).map(|bytes| bytes.len());
            // If the reported size fills the buffer exactly, it is trusted, although the file may have grown.
            let believed = said == room as u64;
            let fits = room >= 100 && said <= room as u64;
            let expected = match (fits, believed) {
                (true, _) => Ok(100),
                (_, true) => Ok(room),
                _ => Err(Error::BufferTooSmall),
            };
            assert_eq!(read, expected, "{said} said, room for {room}");
        }
        share.unmount().unwrap();
        check(&device);
    }
}

#[test]
fn more_data_than_was_asked_for() {
    for extra in [1, 100, LARGE as usize] {
        let (read, _) = reading(Order::Asked, move |request, good| {
            let mut data = good.body().to_vec();
            data.resize(data.len() + extra, 0xbb);
            Reply::ok(request, &data)
        });
        assert_eq!(read, broken(Violation::ReplyLength));
    }
}

#[test]
fn one_bad_chunk_among_good_ones() {
    type Spoil = fn(&Request, Reply) -> Reply;
    let spoilt: [(Spoil, Error); 6] = [
        (
            |request, _| Reply::error(request, Errno::EIO),
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
                    good.after(3 * VirtualClock::TICK)
                }
            });
            assert_eq!(read, Err(error), "{order:?}");
        }
    }
}

// Miri would allocate and write all of this memory.
#[cfg(not(miri))]
#[test]
fn the_largest_chunks_fit_a_descriptor_chain() {
    use crate::rig::CONTENT;

    // The buffers of one chain may have 2^32 bytes in all, headers included (virtio 1.2, section 2.7.5). The memory
    // is never touched, so it uses no pages.
    let mut buf = vec![0; (1 << 32) + 4096];
    let device = Device::new(tree());
    let options = bootshare::Options::default().with_chunk_size(u32::MAX);
    let share = device.mount(options).unwrap();
    let file = share.open("file").unwrap();
    assert_eq!(file.read_at(0, &mut buf), Ok(CONTENT.len()));
    drop(file);
    share.unmount().unwrap();
    check(&device);
}
