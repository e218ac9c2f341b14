//! Devices with several request queues, of which not all need be usable.

use crate::rig::{CHUNKS, LARGE, cases, check, in_chunks, is_large, spoiling};
use bootshare::{Error, Options, fuse::Violation, session::pages_per_share};
use bootshare_test_device::{Device, Opcode, TestHal, raw::Quirks};
use std::sync::{Arc, Mutex};

/// A device that says it has so many request queues, with the sizes of all its queues.
fn offering(device: &Device, offered: u32, sizes: Vec<u32>) {
    device.quirk(|quirks| {
        quirks.queues = sizes;
        quirks.config = Quirks::config_of(b"test", offered);
    });
}

/// How often each of the queues is used to read a large file; the DMA pages that it takes.
fn reading(offered: u32, sizes: Vec<u32>, options: Options) -> (Vec<usize>, usize) {
    let queues = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&queues);
    let device = spoiling(Opcode::Read, move |request, good| {
        noted.lock().unwrap().push(request.queue());
        good
    });
    offering(&device, offered, sizes);
    let share = device.mount(options).unwrap();
    let file = share.open("large").unwrap();
    let mut buf = vec![0; LARGE as usize];
    file.read_exact_at(0, &mut buf).unwrap();
    assert!(is_large(&buf, 0));
    drop(file);
    let pages = TestHal::pages();
    share.unmount().unwrap();
    check(&device);
    let queues = queues.lock().unwrap();
    let last = queues.iter().max().copied().unwrap_or(0);
    let count = |queue| queues.iter().filter(|&&used| used == queue).count();
    ((1..=last).map(count).collect(), pages)
}

#[test]
fn as_many_are_used_as_are_offered_up_to_four() {
    for (offered, used) in [
        (4, 4),
        (0, 1),
        (1, 1),
        (2, 2),
        (3, 3),
        (5, 4),
        (u32::MAX, 4),
    ] {
        let (reads, pages) = reading(offered, vec![64; 8], in_chunks());
        assert_eq!(reads.len(), used, "{offered}: {reads:?}");
        assert_eq!(reads.iter().sum::<usize>(), CHUNKS as usize);
        // No queue waits while another has all the work.
        let least = CHUNKS as usize / used / 2;
        assert!(
            reads.iter().all(|&count| count > least),
            "{offered}: {reads:?}"
        );
        assert_eq!(pages, pages_per_share(used));
    }
}

#[test]
fn no_more_are_used_than_the_options_allow() {
    for (allowed, used) in cases([(1, 1), (3, 3), (0, 1), (9, 4)]) {
        let options = in_chunks().with_request_queues(allowed);
        let (reads, pages) = reading(8, vec![64; 9], options);
        assert_eq!((reads.len(), pages), (used, pages_per_share(used)));
    }
}

#[test]
fn one_that_is_not_usable_is_done_without() {
    for (sizes, used) in cases([
        (vec![64, 64, 64, 63, 64], 2),
        (vec![64, 64], 1),
        (vec![8, 64, 0], 1),
    ]) {
        let (reads, pages) = reading(4, sizes, in_chunks());
        assert_eq!((reads.len(), pages), (used, pages_per_share(used)));
    }
    // Nor is memory for all of them needed.
    TestHal::limit(pages_per_share(2) + 1);
    let (reads, _) = reading(4, vec![64; 5], in_chunks());
    assert_eq!(reads.len(), 2);
}

#[test]
fn chains_that_are_not_in_flight_in_that_queue() {
    // In flight in another one, or in none.
    let mut left = 10;
    let device = spoiling(Opcode::Read, move |_, good| {
        left -= 1;
        if left == 0 { good.id(61) } else { good }
    });
    offering(&device, 4, vec![64; 5]);
    let share = device.mount(in_chunks()).unwrap();
    let file = share.open("large").unwrap();
    let read = file.read_at(0, &mut vec![0; LARGE as usize]);
    assert_eq!(read, Err(Error::Protocol(Violation::UsedId)));
    assert!(!device.is_live());
    drop(file);
    // Resumed, all of them are there again.
    share.resume().unwrap();
    assert_eq!(TestHal::pages(), pages_per_share(4));
    let file = share.open("large").unwrap();
    let mut buf = vec![0; LARGE as usize];
    file.read_exact_at(0, &mut buf).unwrap();
    assert!(is_large(&buf, 0));
    drop(file);
    share.unmount().unwrap();
    check(&device);
}
