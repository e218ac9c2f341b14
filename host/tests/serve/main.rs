//! Tests of the embedded server over vhost-user, without QEMU: the queues are in memory of this process.

mod hostile;
mod limits;
mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use bootshare_host::serve::{MAX_REQUEST_QUEUES, Trace};
use rustix::event::{PollFd, PollFlags, poll};
use vhost::VhostBackend;

use rig::{
    AVAILABLE, FORGET, GETATTR, Guest, INIT, LIMIT, LOOKUP, MEMORY, NEVER, OPEN, Queue, RELEASE,
    RING, Rig, content, words,
};

/// Reads the whole file repeatedly, with 16 reads in flight.
fn read_much(queue: &mut Queue, file: &(u64, Vec<u8>)) {
    let content = content();
    let mut expected = BTreeMap::new();
    for round in 0..20_u32 {
        for index in 0..16 {
            let (offset, size) = (round * 1000 + index * 150_000, 1000 << (index % 10));
            let number = queue.send_read(file, offset, size);
            expected.insert(number % (RING / 2), (offset as usize, size as usize));
        }
        for _ in 0..16 {
            let (number, reply) = queue.answer();
            let (offset, size) = expected.remove(&number).unwrap();
            let end = (offset + size).min(content.len());
            assert!(reply[16..] == content[offset..end], "{offset} {size}");
        }
    }
}

#[test]
fn many_reads_at_once_are_all_answered() {
    for threads in [0, 1, 4] {
        for queues in [1, MAX_REQUEST_QUEUES as usize] {
            let rig = Rig::new(threads, "");
            let mut guest = rig.guest_with_queues(queues);
            let file = guest.open();
            thread::scope(|scope| {
                for queue in &mut guest.queues {
                    scope.spawn(|| read_much(queue, &file));
                }
            });
            assert_eq!(rig.server.failure(), None);
        }
    }
}

#[test]
fn a_slow_read_does_not_delay_other_reads() {
    // The first READ waits longer than this test runs.
    let rig = Rig::new(2, "delay=100000s@READ:1");
    let mut guest = rig.guest();
    let file = guest.open();
    let slow = guest.send_read(&file, 0, 100);
    for _ in 0..10 {
        let fast = guest.send_read(&file, 0, 100);
        assert_eq!(guest.answer().0, fast % (RING / 2));
    }
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
    // The pending READ is answered when the queue is stopped, so that nothing is written afterwards.
    guest.stop();
    assert_eq!(guest.used_index(), guest.seen + 1);
    assert_eq!(guest.answer().0, slow);
}

#[test]
fn a_queue_does_not_wait_for_another_queue() {
    // A delayed server has not taken the slow request when its queue is stopped.
    let is_taken = |threads| (0..10).any(|_| answers_beside_a_slow_queue(threads));
    assert!([0, 2].into_iter().all(is_taken), "never answered");
}

/// One queue answers while the request of another one waits. Returns whether the latter is answered when its
/// queue is stopped.
fn answers_beside_a_slow_queue(threads: usize) -> bool {
    let rig = Rig::new(threads, "delay=100000s@LOOKUP:2");
    let mut guest = rig.guest_with_queues(2);
    let file = guest.open();
    let [first, second] = &mut guest.queues[..] else {
        unreachable!();
    };
    let slow = first.send(LOOKUP, 1, b"file\0", 4096);
    for _ in 0..10 {
        second.send_read(&file, 0, 100);
        assert_eq!(second.answer().1[16..], content()[..100]);
    }
    assert!(!first.is_answered(NEVER.try_into().unwrap()));
    // Queue 2 stops at once, queue 1 once its LOOKUP has been answered.
    guest.frontend.get_vring_base(2).unwrap();
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
    let base = guest.frontend.get_vring_base(1).unwrap();
    assert_eq!(u32::from(guest.used_index()), base);
    guest.used_index() == guest.seen + 1 && guest.answer().0 == slow
}

#[test]
fn a_ring_is_polled_between_requests_in_quick_succession_only() {
    let rig = Rig::new(2, "");
    let mut guest = rig.guest();
    guest.init();
    // The server stops polling before the request is in the ring if this thread has to wait for a processor, so
    // one request of many is enough.
    let polls = (0..1000).any(|_| {
        guest.ask(GETATTR, 1, &[0; 16]).unwrap();
        guest.ask(GETATTR, 1, &[0; 16]).unwrap();
        guest.send_without_kick(GETATTR, 1, &[0; 16], 4096);
        let is_answered = guest.is_answered(Duration::from_millis(10).try_into().unwrap());
        guest.kick.write(1).unwrap();
        guest.answer();
        is_answered
    });
    let processors = thread::available_parallelism().unwrap().get();
    assert!(polls || processors == 1);
    // A delayed server may find a request in its last look before it sleeps.
    let sleeps = (0..10).any(|_| {
        thread::sleep(NEVER);
        guest.send_without_kick(GETATTR, 1, &[0; 16], 4096);
        let is_answered = guest.is_answered(NEVER.try_into().unwrap());
        guest.kick.write(1).unwrap();
        guest.answer();
        !is_answered
    });
    assert!(sleeps, "still polled");
}

#[test]
fn nothing_is_written_after_a_reset() {
    for threads in [0, 4] {
        let rig = Rig::new(threads, "");
        let mut guest = rig.guest_with_queues(2);
        for _ in 0..100 {
            let file = guest.open();
            let mut places = Vec::new();
            for index in 0..16 {
                for queue in &mut guest.queues {
                    places.push(queue.send_read(&file, index * 1000, 1 << 20));
                }
            }
            guest.reset();
            // The guest's memory belongs to the guest again.
            let places = || places.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
            for pair in places() {
                for (queue, number) in guest.queues.iter().zip(pair) {
                    queue.write(Queue::place(number) + 0x1000, &[0xdd; 4096]);
                }
            }
            guest.init();
            for pair in places().skip(1) {
                for (queue, number) in guest.queues.iter().zip(pair) {
                    let bytes = queue.read(Queue::place(number) + 0x1000, 4096);
                    assert!(bytes == [0xdd; 4096], "written after the reset");
                }
            }
            guest.reset();
        }
    }
}

#[test]
fn one_qemu_after_the_other_is_served() {
    let rig = Rig::new(2, "");
    for _ in 0..3 {
        // A process that another test starts has a copy of the last connection for a moment.
        let mut guest = Guest::connect_when_free(&rig.socket());
        let (node, handle) = guest.open();
        guest.send_read(&(node, handle), 0, 100);
        assert_eq!(guest.answer().1[16..], content()[..100]);
        // The first guest ends without DESTROY; its file is closed when the next one mounts.
    }
    assert_eq!(rig.server.failure(), None);
}

#[test]
fn a_server_stops_in_any_state() {
    // The server is stopped before a connection, with a connection, during a request, and by its end.
    for step in 0..4 {
        let mut rig = Rig::new(2, "delay=100000s@READ:1");
        let guest = (step > 0).then(|| rig.guest());
        if let (2 | 3, Some(mut guest)) = (step, guest) {
            let file = guest.open();
            guest.send_read(&file, 0, 100);
            if step == 3 {
                drop(rig);
                assert!(guest.frontend.get_features().is_err());
                continue;
            }
            rig.server.stop();
            assert!(
                guest.frontend.get_features().is_err(),
                "the connection is closed"
            );
        }
        rig.server.stop();
        assert_eq!(rig.server.failure(), None);
    }
}

#[test]
fn a_panic_fails_the_request_and_is_reported() {
    let rig = Rig::new(2, "panic=LOOKUP:1");
    let mut guest = rig.guest();
    guest.init();
    assert_eq!(guest.ask(LOOKUP, 1, b"file\0"), Err(libc::EIO));
    let failure = rig.server.failure().expect("the failure is reported");
    assert!(failure.contains("as the fault asks"), "{failure}");
    // The next request is answered.
    assert!(guest.ask(LOOKUP, 1, b"file\0").is_ok());
}

#[test]
fn each_fault_has_its_effect() {
    let rig = Rig::new(
        0,
        "error=ESTALE@LOOKUP:1,drop=LOOKUP:2,truncate=20@OPEN,corrupt=5@READ:2",
    );
    let mut guest = rig.guest();
    guest.init();
    assert_eq!(guest.ask(LOOKUP, 1, b"file\0"), Err(libc::ESTALE));
    guest.send(LOOKUP, 1, b"file\0", 4096);
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
    let entry = guest.ask(LOOKUP, 1, b"file\0").unwrap();
    let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
    let number = guest.send(OPEN, node, &words(&[0, 0]), 4096);
    let (answered, reply) = guest.answer();
    assert_eq!((answered, reply.len()), (number, 20));
    let handle = guest.read(Queue::place(number) + 0x1010, 8);
    let file = (node, handle);
    let reply = |guest: &mut Guest| {
        guest.send_read(&file, 0, 64);
        guest.answer().1
    };
    let (first, second) = (reply(&mut guest), reply(&mut guest));
    // The requests differ only in their number.
    let differing = |skip: std::ops::Range<usize>| -> u32 {
        let pairs = first.iter().zip(&second).enumerate();
        pairs
            .filter(|(index, _)| !skip.contains(index))
            .map(|(_, (a, b))| (a ^ b).count_ones())
            .sum()
    };
    let in_number = {
        let (a, b) = (&first[8..16], &second[8..16]);
        let (a, b): ([u8; 8], [u8; 8]) = (a.try_into().unwrap(), b.try_into().unwrap());
        ((u64::from_le_bytes(a) + 1) ^ u64::from_le_bytes(b)).count_ones()
    };
    assert_eq!(differing(8..16) + in_number, 1, "one bit was flipped");
}

#[test]
fn a_corrupted_reply_differs_in_one_bit_and_each_second_one_in_its_header() {
    let rig = Rig::new(0, "corrupt=5@READ");
    let mut guest = rig.guest();
    let file = guest.open();
    let content = content();
    let (mut in_header, mut bytes, mut bits) = (0, BTreeSet::new(), BTreeSet::new());
    for _ in 0..100 {
        let number = guest.send_read(&file, 0, 4096);
        let reply = guest.answer().1;
        let mut sound = words(&[16 + 4096, 0, number.into(), 0]);
        sound.extend(&content[..4096]);
        let changed: Vec<_> = (0..sound.len()).filter(|&n| reply[n] != sound[n]).collect();
        let [place] = changed[..] else {
            panic!("{changed:?}");
        };
        let bit = reply[place] ^ sound[place];
        assert!(bit.is_power_of_two(), "{bit:#x}");
        bits.insert(bit);
        if place < 16 {
            in_header += 1;
            bytes.insert(place);
        }
    }
    assert!((30..70).contains(&in_header), "{in_header}");
    assert!(bytes.len() > 8 && bits.len() == 8, "{bytes:?} {bits:?}");
}

#[test]
fn a_request_without_a_reply_has_nothing_to_corrupt() {
    let rig = Rig::new(0, "corrupt=5@FORGET");
    let mut guest = rig.guest();
    guest.init();
    guest.send(FORGET, 1, &words(&[1, 0]), 0);
    assert!(guest.answer().1.is_empty());
    assert_eq!(rig.server.failure(), None);
}

#[test]
fn disconnect_after_closes_the_connection() {
    let rig = Rig::new(2, "disconnect-after=1");
    let mut guest = rig.guest();
    guest.init();
    guest.send(LOOKUP, 1, b"file\0", 4096);
    let deadline = Instant::now() + Duration::from_secs(60);
    while guest.frontend.get_features().is_ok() {
        assert!(Instant::now() < deadline, "still connected");
    }
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
    assert_eq!(
        rig.server.failure(),
        None,
        "disconnect-after is not a failure"
    );
}

#[test]
fn invalid_queues_do_not_harm_the_server() {
    let rig = Rig::new(2, "");
    let mut guest = rig.guest();
    // Chains without a next descriptor, with a loop, or outside of memory; and an available index that is too far
    // ahead.
    for (address, length, flags, next) in [
        (0, 0, 1, 0),
        (0, 40, 1, 500),
        (u64::MAX - 8, 40, 0, 0),
        (MEMORY as u64 - 4, 4096, 2, 0),
        (0x2000, 7, 4, 0),
        (0x3000, u32::MAX, 3, 1),
    ] {
        guest.descriptor(0, address, length, flags, next);
        guest.descriptor(1, address, length, flags | 1, next);
        guest.write(AVAILABLE + 4, &[0; 256]);
        guest.sent += 3;
        guest.write(AVAILABLE + 2, &guest.sent.to_le_bytes());
        guest.kick.write(1).unwrap();
    }
    guest.write(AVAILABLE + 2, &0x7000_u16.to_le_bytes());
    guest.kick.write(1).unwrap();
    guest.reset();
    guest.open();
    assert_eq!(rig.server.failure(), None);
}

#[test]
fn a_queue_too_many_is_reported() {
    let rig = Rig::with(|options| options.request_queues = 1);
    let guest = rig.guest();
    guest.frontend.set_vring_num(2, RING).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(rig.server.failed(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&LIMIT)).unwrap(), 1);
    let failure = rig.server.failure().unwrap();
    assert!(
        failure.contains("num-request-queues must not exceed 1"),
        "{failure}"
    );
}

#[test]
fn a_trace_has_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let rig = Rig::with(|options| {
        options.trace = Some(Trace::create(&path).unwrap().into());
        options.fault = Some("drop=READ:2".parse().unwrap());
    });
    let mut guest = rig.guest();
    let file = guest.open();
    guest.send_read(&file, 4096, 1000);
    guest.answer();
    guest.send_read(&file, 0, 1000);
    // The server takes requests in order, so the READ was taken before this one is answered.
    assert_eq!(guest.ask(LOOKUP, 1, b"nosuch\0"), Err(libc::ENOENT));
    drop(guest);
    drop(rig);
    let mut table = Vec::new();
    bootshare_host::serve::print(&path, &mut table).unwrap();
    let table = String::from_utf8(table).unwrap();
    for parts in [
        &["INIT", "test:", "ok"][..],
        &["LOOKUP", "test:/file ", "ok"],
        &["LOOKUP", "test:/nosuch ", "No such file or directory"],
        &["OPEN", "test:/file ", "ok"],
        &["READ", "test:/file ", "1016", "ok, 1000 at 4096"],
        &[
            "READ",
            "test:/file ",
            "never answered, 1000 at 0 (fault: drop)",
        ],
        &["6 operations in "],
    ] {
        let found = table
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line has {parts:?}:\n{table}");
    }
}

#[test]
fn the_last_request_and_the_last_failure_are_known_by_their_paths() {
    let rig = Rig::new(0, "");
    let last = || rig.server.last_requests().unwrap_or_default();
    assert_eq!(last(), "");
    let mut guest = rig.guest();
    guest.ask(INIT, 0, &words(&[7, 36, 1 << 20, 0])).unwrap();
    assert_eq!(last(), "INIT");
    fs::create_dir(rig.dir.path().join("share/dir")).unwrap();
    fs::write(rig.dir.path().join("share/dir/new\n"), b"0123456789").unwrap();
    let dir = guest.ask(LOOKUP, 1, b"dir\0").unwrap();
    assert_eq!(last(), "LOOKUP /dir");
    guest.ask(GETATTR, 1, &[0; 16]).unwrap();
    assert_eq!(last(), "GETATTR /");
    let dir = u64::from_le_bytes(dir[..8].try_into().unwrap());
    let node = guest.ask(LOOKUP, dir, b"new\n\0").unwrap();
    let node = u64::from_le_bytes(node[..8].try_into().unwrap());
    let handle = guest.ask(OPEN, node, &words(&[0, 0])).unwrap();
    let file = (node, handle[..8].to_vec());
    guest.send_read(&file, 3, 100);
    guest.answer();
    let read = r"READ /dir/new\n: 7 bytes at 3";
    assert_eq!(last(), read);
    let failure = guest.ask(LOOKUP, dir, b"nosuch\0");
    assert_eq!(failure, Err(libc::ENOENT));
    let failed = "LOOKUP /dir/nosuch: No such file or directory (os error 2)";
    let both = format!("{read}; its last failure: {failed}");
    assert_eq!(last(), both);
    // Failures that are no fault, and the end of a handle.
    assert_eq!(guest.ask(4096, dir, &[0; 8]), Err(libc::ENOSYS));
    let prepared = b".bootshare-prepared-0-1\0";
    assert_eq!(guest.ask(LOOKUP, dir, prepared), Err(libc::ENOENT));
    guest
        .ask(RELEASE, node, &[&file.1[..], &[0; 16]].concat())
        .unwrap();
    assert_eq!(last(), both);
    // The guest forgets nodes by FORGET, which has no reply: the directory before its file.
    for node in [dir, node] {
        guest.send(FORGET, node, &words(&[1, 0]), 0);
        guest.answer();
    }
    assert_eq!(last(), both);
    assert_eq!(guest.ask(GETATTR, node, &[0; 16]), Err(libc::ESTALE));
    let stale = "GETATTR: Stale file handle (os error 116)";
    assert_eq!(last(), format!("{read}; its last failure: {stale}"));
    // ... or by its end.
    assert_eq!(guest.ask(LOOKUP, 1, b"nosuch\0"), Err(libc::ENOENT));
    let entry = guest.ask(LOOKUP, 1, b"dir\0").unwrap();
    let dir = u64::from_le_bytes(entry[..8].try_into().unwrap());
    guest.ask(GETATTR, dir, &[0; 16]).unwrap();
    drop(guest);
    Guest::connect_when_free(&rig.socket());
    let failed = "LOOKUP /nosuch: No such file or directory (os error 2)";
    assert_eq!(last(), format!("GETATTR /dir; its last failure: {failed}"));
}

#[test]
fn faults_also_work_after_a_reset() {
    let rig = Rig::new(2, "delay=100000s@READ:2");
    let mut guest = rig.guest();
    let file = guest.open();
    guest.send_read(&file, 0, 100);
    guest.answer();
    guest.reset();
    let file = guest.open();
    guest.send_read(&file, 0, 100);
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
}

#[test]
fn the_used_ring_has_the_number_of_written_bytes() {
    let rig = Rig::new(0, "");
    let mut guest = rig.guest();
    guest.open();
    for (opcode, body, room, written) in [
        // No space for the reply's header.
        (LOOKUP, &b"file\0"[..], 15, 0),
        (LOOKUP, b"file\0", 16 + 127, 16),
        (LOOKUP, b"nosuch\0", 16, 16),
        (LOOKUP, b"file\0", 16 + 128, 16 + 128),
        // FORGET has no reply, even if its length is wrong.
        (2, &[0; 8], 64, 0),
        (2, &[0; 3], 64, 0),
        (2, &[], 64, 0),
        // BATCH_FORGET with a wrong count, and INTERRUPT.
        (42, &[0xff; 8], 64, 0),
        (36, &[0; 8], 64, 0),
    ] {
        guest.send(opcode, 1, body, room);
        let (_, reply) = guest.answer();
        assert_eq!(reply.len(), written, "{opcode} {body:?} {room}");
    }
}

#[test]
fn the_first_failure_is_the_reported_one() {
    let rig = Rig::new(0, "panic=LOOKUP:1");
    let mut guest = rig.guest();
    guest.init();
    guest.ask(LOOKUP, 1, b"file\0").unwrap_err();
    // A second failure, which is a consequence of the first one.
    guest.frontend.set_vring_num(77, RING).unwrap();
    // Once the next guest is served, the connection has ended.
    Guest::connect_when_free(&rig.socket());
    let failure = rig.server.failure().unwrap();
    assert!(failure.contains("as the fault asks"), "{failure}");
}

#[test]
fn a_failure_of_the_server_replaces_one_of_a_connection() {
    let rig = Rig::new(0, "panic=LOOKUP:1");
    // Of two connections' failures the first one is reported.
    let _guests = [77, 88].map(|queue| {
        let guest = Guest::connect_when_free(&rig.socket());
        guest.frontend.set_vring_num(queue, RING).unwrap();
        guest
    });
    let mut guest = Guest::connect_when_free(&rig.socket());
    let failure = rig.server.failure().unwrap();
    assert!(failure.contains("queue 77"), "{failure}");
    guest.ask(INIT, 0, &words(&[7, 36, 0, 0])).unwrap();
    guest.ask(LOOKUP, 1, b"file\0").unwrap_err();
    let failure = rig.server.failure().unwrap();
    assert!(failure.contains("as the fault asks"), "{failure}");
}
