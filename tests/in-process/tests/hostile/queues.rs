//! Devices with several request queues, some of them unusable.

use crate::rig::{CHUNKS, LARGE, cases, check, in_chunks, read_large, spoiling};
use bootshare::{Error, Options, fuse::Violation, session::pages_per_share};
use bootshare_test_device::{Device, Opcode, TestHal, raw::Quirks};
use std::sync::{Arc, Mutex};

/// Makes the device offer this number of request queues, with these sizes for all its queues.
fn offering(device: &Device, offered: u32, sizes: Vec<u32>) {
    device.quirk(|quirks| {
        quirks.queues = sizes;
        quirks.config = Quirks::config_of(b"test", offered);
    });
}

/// Reads a large file. Returns the number of READs on each queue, and the number of DMA pages in use.
fn reading(offered: u32, sizes: Vec<u32>, options: Options) -> (Vec<usize>, usize) {
    let queues = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&queues);
    let device = spoiling(Opcode::Read, move |request, good| {
        noted.lock().unwrap().push(request.queue());
        good
    });
    offering(&device, offered, sizes);
    let share = device.mount(options).unwrap();
    read_large(&share);
    let pages = TestHal::pages();
    share.unmount().unwrap();
    check(&device);
    let queues = queues.lock().unwrap();
    let last = queues.iter().max().copied().unwrap_or(0);
    let count = |queue| queues.iter().filter(|&&used| used == queue).count();
    ((1..=last).map(count).collect(), pages)
}

#[test]
fn the_client_uses_all_offered_queues_up_to_four() {
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
        // The READs are spread evenly over the queues.
        let least = CHUNKS as usize / used / 2;
        assert!(
            reads.iter().all(|&count| count > least),
            "{offered}: {reads:?}"
        );
        assert_eq!(pages, pages_per_share(used));
    }
}

#[test]
fn the_client_uses_no_more_queues_than_the_options_allow() {
    for (allowed, used) in cases([(1, 1), (3, 3), (0, 1), (9, 4)]) {
        let options = in_chunks().with_request_queues(allowed);
        let (reads, pages) = reading(8, vec![64; 9], options);
        assert_eq!((reads.len(), pages), (used, pages_per_share(used)));
    }
}

#[test]
fn an_unusable_queue_is_left_out() {
    for (sizes, used) in cases([
        (vec![64, 64, 64, 63, 64], 2),
        (vec![64, 64], 1),
        (vec![8, 64, 0], 1),
    ]) {
        let (reads, pages) = reading(4, sizes, in_chunks());
        assert_eq!((reads.len(), pages), (used, pages_per_share(used)));
    }
    // A lack of memory also reduces the number of queues.
    TestHal::limit(pages_per_share(2) + 1);
    let (reads, _) = reading(4, vec![64; 5], in_chunks());
    assert_eq!(reads.len(), 2);
}

#[test]
fn chains_that_are_not_in_flight_in_that_queue() {
    // The chain is in flight in another queue, or in none.
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
    // After `resume`, all queues are in use again.
    share.resume().unwrap();
    assert_eq!(TestHal::pages(), pages_per_share(4));
    read_large(&share);
    share.unmount().unwrap();
    check(&device);
}
