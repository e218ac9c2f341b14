//! Tests with hostile or broken front ends and guests: each may harm only itself.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use bootshare_host::serve::Options;
use rustix::event::{PollFd, PollFlags, poll};
use vhost::VhostBackend;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::rig::{AVAILABLE, Guest, LIMIT, LOOKUP, NEVER, PLACES, RING, Rig, content, words};

/// VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX, VHOST_USER_F_PROTOCOL_FEATURES and VIRTIO_F_VERSION_1.
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

/// A vhost-user message: version 1, no reply requested.
fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let header = words(&[request, 1, body.len() as u32]);
    [&header[..], body].concat()
}

/// Whether the server closes the connection within the limit.
fn hangs_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut fds, Some(&LIMIT)).unwrap() == 1
}

/// Connects as the only front end. Retries while a connection that has just ended still counts.
fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(&message(1, &[])).unwrap();
        let mut reply = [0; 20];
        if stream.read_exact(&mut reply).is_ok() {
            return stream;
        }
        assert!(Instant::now() < deadline, "never served");
    }
}

#[test]
fn an_invalid_message_ends_only_its_connection() {
    let rig = Rig::new(2, "");
    let long = |numbers: &[u64]| -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect()
    };
    let messages: [(&str, Vec<u8>); 12] = [
        ("zeroes", vec![0; 64]),
        ("ones", vec![0xff; 64]),
        ("text", b"GET / HTTP/1.0\r\n\r\n".repeat(4)),
        ("an unknown request", message(999, &[0; 8])),
        (
            "an owner twice",
            [message(3, &[]), message(3, &[])].concat(),
        ),
        (
            "features that were not offered",
            message(2, &long(&[1 << 40])),
        ),
        (
            "protocol features that were not offered",
            message(16, &long(&[1 << 9])),
        ),
        ("a queue that is not there", message(8, &words(&[77, 128]))),
        (
            "a queue of a size that is no power of two",
            message(8, &words(&[1, 100])),
        ),
        (
            "rings outside the memory",
            message(9, &[&words(&[1, 0])[..], &long(&[0, 0, 0, 0])].concat()),
        ),
        ("a table without regions", message(5, &words(&[0, 0]))),
        (
            "a region without a descriptor",
            message(5, &[&words(&[1, 0])[..], &long(&[0, 4096, 0, 0])].concat()),
        ),
    ];
    for (what, bytes) in messages {
        let mut stream = connect(&rig.socket());
        stream.write_all(&bytes).unwrap();
        assert!(hangs_up(&stream), "{what}");
        drop(stream);
        // The next front end is served.
        drop(connect(&rig.socket()));
    }
    let failure = rig.server.failure().expect("the failure is reported");
    assert!(
        failure.contains("an invalid message"),
        "the first one: {failure}"
    );
    rig.guest().open();
}

#[test]
fn a_truncated_message_ends_its_connection() {
    let rig = Rig::new(2, "");
    for part in [8, 12, 15] {
        let mut stream = connect(&rig.socket());
        stream.write_all(&message(2, &[0; 8])[..part]).unwrap();
        assert!(hangs_up(&stream), "{part}");
    }
    Guest::connect_when_free(&rig.socket()).open();
}

#[test]
fn the_death_of_qemu_is_not_a_failure() {
    // If this thread is delayed, the server takes a cut message for an invalid one.
    assert!((0..10).any(|_| is_served_after_deaths()));
}

/// Connections end at any place of a message. Returns whether the server took none of them for a failure.
fn is_served_after_deaths() -> bool {
    let rig = Rig::new(2, "");
    for part in [0, 8, 12, 15] {
        for _ in 0..5 {
            let mut stream = connect(&rig.socket());
            stream.write_all(&message(2, &[0; 8])[..part]).unwrap();
        }
    }
    Guest::connect_when_free(&rig.socket()).open();
    rig.server.failure().is_none()
}

#[test]
fn a_second_qemu_is_refused() {
    let rig = Rig::new(2, "");
    // The first front end is connected and sends nothing.
    let first = connect(&rig.socket());
    for _ in 0..3 {
        let mut second = UnixStream::connect(rig.socket()).unwrap();
        let mut nothing = Vec::new();
        // The connection may be reset before it has read the data.
        let _ = second.write_all(&message(1, &[]));
        let _ = second.read_to_end(&mut nothing);
        assert!(nothing.is_empty());
    }
    drop(first);
    let mut guest = Guest::connect_when_free(&rig.socket());
    let file = guest.open();
    assert!(hangs_up(&UnixStream::connect(rig.socket()).unwrap()));
    guest.send_read(&file, 0, 100);
    assert_eq!(guest.answer().1[16..], content()[..100]);
    assert_eq!(rig.server.failure(), None);
}

#[test]
fn queued_requests_are_dropped_when_the_server_stops() {
    for threads in [0, 2] {
        let mut rig = Rig::new(threads, "delay=300ms@LOOKUP");
        let mut guest = rig.guest();
        guest.init();
        for _ in 0..RING / 2 {
            guest.send(LOOKUP, 1, b"file\0", 4096);
        }
        assert!(guest.is_answered(LIMIT));
        // One after the other, the answers would take 19 s; the server waits for at most 10 s.
        let start = Instant::now();
        rig.server.stop();
        assert!(start.elapsed() < Duration::from_secs(9));
        assert_eq!(rig.server.failure(), None);
    }
}

/// This bounds the time of a reset and of SIGTERM, whatever is queued.
#[test]
fn a_stop_waits_only_for_the_requests_that_are_being_answered() {
    for threads in [0, 2] {
        for ends in [false, true] {
            let mut rig = Rig::new(threads, "delay=100000s@READ");
            let mut guest = rig.guest();
            let file = guest.open();
            let before = guest.used_index();
            for _ in 0..RING / 2 {
                guest.send_read(&file, 0, 100);
            }
            // Meanwhile all threads take a request.
            assert!(!guest.is_answered(NEVER.try_into().unwrap()));
            if ends {
                rig.server.stop();
            } else {
                guest.stop();
            }
            // One in the queue's thread, and one in each of the pool's.
            let answered = usize::from(guest.used_index() - before);
            assert!(answered <= threads + 1, "{answered} with {threads} threads");
        }
    }
}

#[test]
fn requests_unanswered_at_a_stop_are_answered_after_it() {
    // If this thread is delayed, all are answered before the stop.
    let is_stopped = |threads| (0..10).any(|_| is_stopped_among_requests(threads));
    assert!([0, 2].into_iter().all(is_stopped), "the stop waits for all");
}

/// Stops a queue with many requests and lets it go on. Returns whether some were not answered before.
fn is_stopped_among_requests(threads: usize) -> bool {
    let rig = Rig::new(threads, "delay=20ms@LOOKUP");
    let mut guest = rig.guest();
    guest.init();
    let before = guest.used_index();
    for _ in 0..RING / 2 {
        guest.send(LOOKUP, 1, b"file\0", 4096);
    }
    let base = guest.frontend.get_vring_base(1).unwrap();
    let answered = guest.used_index() - before;
    assert_eq!(
        base,
        u32::from(guest.used_index()),
        "every taken request is answered"
    );
    // The machine continues, as after the monitor's `stop` and `cont`.
    guest.go_on(base as u16);
    for _ in 0..RING / 2 {
        let (_, reply) = guest.answer();
        assert_eq!(reply.len(), 16 + 128);
    }
    assert_eq!(guest.used_index(), guest.sent);
    answered < RING / 2
}

#[test]
fn a_full_eventfd_does_not_block_the_server() {
    let mut rig = Rig::new(2, "");
    let mut guest = rig.guest();
    // Without EVENT_IDX, each answer is signalled.
    guest.agree_to(|offered| offered & !EVENT_IDX);
    guest.init();
    // The eventfd is blocking and full: a write of 1 would block.
    let full = EventFd::new(EFD_CLOEXEC).unwrap();
    full.write(u64::MAX - 1).unwrap();
    guest.frontend.set_vring_call(1, &full).unwrap();
    guest.frontend.get_features().unwrap();
    for _ in 0..10 {
        guest.send(LOOKUP, 1, b"file\0", 4096);
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while guest.used_index() != guest.sent {
        assert!(Instant::now() < deadline, "not answered");
        thread::yield_now();
    }
    guest.reset();
    guest.frontend.set_vring_call(1, &full).unwrap();
    guest.frontend.get_features().unwrap();
    guest.send(LOOKUP, 1, b"file\0", 4096);
    rig.server.stop();
    assert_eq!(rig.server.failure(), None);
}

#[test]
fn the_eventfd_of_a_kick_can_be_replaced() {
    let rig = Rig::new(2, "");
    let mut guest = rig.guest();
    guest.init();
    let old = std::mem::replace(
        &mut guest.kick,
        EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap(),
    );
    let new = guest.kick.try_clone().unwrap();
    guest.frontend.set_vring_kick(1, &new).unwrap();
    // The message above has no reply; the reply to this one comes after it was handled.
    guest.frontend.get_features().unwrap();
    assert!(
        guest.ask(LOOKUP, 1, b"file\0").is_ok(),
        "the new eventfd is used"
    );
    // Nothing reads the old eventfd any more, so no thread is woken by it. Its counter is cleared first: the server
    // may have seen INIT in the ring without reading the kick.
    let _ = old.read();
    old.write(7).unwrap();
    assert!(guest.ask(LOOKUP, 1, b"file\0").is_ok());
    thread::sleep(NEVER);
    assert_eq!(old.read().unwrap(), 7, "nobody reads it");
}

#[test]
fn a_descriptor_that_is_no_eventfd_ends_its_connection_only() {
    let rig = Rig::new(2, "");
    // The last one is the front end's own end of the connection.
    for what in ["/dev/null", "/dev/zero", "itself"] {
        for is_kick in [true, false] {
            let guest = Guest::connect_when_free(&rig.socket());
            let stream = guest.frontend.as_raw_fd();
            // SAFETY: the front end is open.
            let stream = unsafe { std::os::fd::BorrowedFd::borrow_raw(stream) };
            let fd = match what {
                "itself" => stream.try_clone_to_owned().unwrap(),
                path => fs::File::open(path).unwrap().into(),
            };
            // SAFETY: the number is given to one owner.
            let fd = unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) };
            let set = if is_kick {
                Frontend::set_vring_kick
            } else {
                Frontend::set_vring_call
            };
            set(&guest.frontend, 1, &fd).unwrap();
            drop(fd);
            let mut fds = [PollFd::new(&stream, PollFlags::RDHUP)];
            assert_eq!(poll(&mut fds, Some(&LIMIT)).unwrap(), 1, "{what} {is_kick}");
        }
    }
    Guest::connect_when_free(&rig.socket()).open();
    let failure = rig.server.failure().expect("it is reported");
    assert!(failure.contains("not an eventfd"), "{failure}");
}

#[test]
fn more_memory_regions_than_qemu_has_end_their_connection_only() {
    let rig = Rig::new(2, "");
    let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 0x1000).unwrap();
    for count in [8, 9] {
        let stream = connect(&rig.socket());
        let region = |number: u64| [number << 12, 0x1000, number << 12, 0];
        let regions = (0..count).flat_map(region).flat_map(u64::to_le_bytes);
        let body: Vec<u8> = words(&[count as u32, 0])
            .into_iter()
            .chain(regions)
            .collect();
        let files = vec![memory.as_raw_fd(); count as usize];
        stream
            .send_with_fds(&[&message(5, &body)[..]], &files)
            .unwrap();
        // GET_FEATURES: it is answered if the regions were accepted.
        let _ = (&stream).write_all(&message(1, &[]));
        let answered = (&stream).read_exact(&mut [0; 20]).is_ok();
        assert_eq!(answered, count == 8, "{count}");
    }
    Guest::connect_when_free(&rig.socket()).open();
}

#[test]
fn truncated_guest_memory_ends_only_its_connection() {
    // The process has the memory of three guests mapped. The signal handler must replace that of the right one.
    let rigs = [(); 3].map(|()| Rig::new(2, ""));
    let open = |rig: &Rig| {
        let mut guest = Guest::connect_when_free(&rig.socket());
        let file = guest.open();
        (guest, file)
    };
    let read = |guest: &mut Guest, file: &(u64, Vec<u8>)| {
        guest.send_read(file, 0, 100);
        assert_eq!(guest.answer().1[16..], content()[..100]);
    };
    for (number, rig) in rigs.iter().enumerate() {
        let mut guests = rigs.each_ref().map(open);
        for (guest, file) in &mut guests {
            read(guest, file);
        }
        // The server has mapped the file as well, and must not touch it any more.
        let guest = &guests[number].0;
        guest.file.set_len(0).unwrap();
        guest.kick.write(1).unwrap();
        let stream = guest.frontend.as_raw_fd();
        // SAFETY: the front end is open, so the descriptor is valid.
        let stream = unsafe { std::os::fd::BorrowedFd::borrow_raw(stream) };
        let mut fds = [PollFd::new(&stream, PollFlags::RDHUP)];
        assert_eq!(
            poll(&mut fds, Some(&LIMIT)).unwrap(),
            1,
            "the server closes the connection"
        );
        for (other, (guest, file)) in guests.iter_mut().enumerate() {
            if other != number {
                read(guest, file);
            }
        }
        drop(guests);
        let (mut guest, file) = open(rig);
        read(&mut guest, &file);
        let failure = rig.server.failure().expect("the failure is reported");
        assert!(failure.contains("memory file was cut short"), "{failure}");
    }
}

#[test]
fn the_driver_is_interrupted_only_if_it_wants_to_be() {
    let rig = Rig::new(0, "");
    let mut guest = rig.guest();
    let offered = guest.frontend.get_features().unwrap();
    for feature in [INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1] {
        assert_ne!(offered & feature, 0, "{feature:#x}");
    }
    let is_interrupted = |guest: &Guest, limit: rustix::event::Timespec| {
        // SAFETY: the guest keeps the eventfd open.
        let call = unsafe { std::os::fd::BorrowedFd::borrow_raw(guest.call.as_raw_fd()) };
        let mut fds = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
        poll(&mut fds, Some(&limit)).unwrap() == 1
    };
    let never = NEVER.try_into().unwrap();
    let send = |guest: &mut Guest| {
        guest.send(LOOKUP, 1, b"file\0", 4096);
        while guest.used_index() != guest.sent {
            thread::yield_now();
        }
    };
    for event_idx in [true, false] {
        guest.agree_to(|offered| {
            if event_idx {
                offered
            } else {
                offered & !EVENT_IDX
            }
        });
        guest.init();
        if is_interrupted(&guest, never) {
            guest.call.read().unwrap();
        }
        // With EVENT_IDX, `used_event` asks for the third answer from here; without it, VRING_AVAIL_F_NO_INTERRUPT
        // is used.
        let third = guest.used_index() + 2;
        let wants = |guest: &Guest, wanted: bool| match event_idx {
            true => guest.write(AVAILABLE + 4 + 2 * u64::from(RING), &third.to_le_bytes()),
            false => guest.write(AVAILABLE, &u16::from(!wanted).to_le_bytes()),
        };
        wants(&guest, false);
        send(&mut guest);
        send(&mut guest);
        assert!(!is_interrupted(&guest, never), "event_idx {event_idx}");
        wants(&guest, true);
        send(&mut guest);
        assert!(is_interrupted(&guest, LIMIT), "event_idx {event_idx}");
        guest.call.read().unwrap();
    }
}

#[test]
fn a_queue_is_enabled_by_a_message_or_without_protocol_features_from_the_start() {
    let rig = Rig::new(0, "");
    let mut guest = rig.guest();
    let offered = guest.frontend.get_features().unwrap();
    for protocol_features in [true, false] {
        guest.reset();
        guest.init();
        guest.stop();
        guest.frontend.set_vring_enable(1, false).unwrap();
        if !protocol_features {
            let features = offered & !PROTOCOL_FEATURES;
            guest.frontend.set_features(features).unwrap();
        }
        let next = guest.sent;
        guest.queues[0].set_up(&mut guest.frontend, next, AVAILABLE);
        guest.send(LOOKUP, 1, b"file\0", 4096);
        let limit = match protocol_features {
            true => NEVER.try_into().unwrap(),
            false => LIMIT,
        };
        assert_eq!(guest.is_answered(limit), !protocol_features);
        if protocol_features {
            guest.frontend.set_vring_enable(1, true).unwrap();
        }
        guest.answer();
    }
}

#[test]
fn a_queue_that_was_not_set_up_is_not_accessed() {
    // The device has four queues and the machine uses one. The addresses of the other rings would be 0.
    let rig = Rig::with(|options| options.request_queues = 4);
    let mut guest = rig.guest();
    for _ in 0..10 {
        guest.agree_to(|offered| offered & !EVENT_IDX);
        guest.frontend.get_features().unwrap();
        guest.init();
        assert_eq!(
            guest.read(8, 8),
            [56, 0, 0, 0, 1, 0, 1, 0],
            "the first descriptor"
        );
        assert_eq!(guest.read(0, 8), PLACES.to_le_bytes());
    }
}

#[test]
fn a_share_has_no_more_threads_than_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut options = Options::new("test", vec![dir.path().into()]);
    options.threads = 20_000;
    let error = bootshare_host::serve::Server::start(&options, listener).err();
    let error = format!("{:#}", error.expect("it is refused"));
    assert!(error.contains("at most 256"), "{error}");
}
