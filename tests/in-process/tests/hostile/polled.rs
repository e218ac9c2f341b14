//! A session that is polled, without a clock and without waiting, as a kernel uses it.

use crate::rig::{CHUNK, CONTENT, LARGE, check, is_large, spoiling, tree};
use bootshare::{
    Error, Options,
    fuse::{Forget, Lookup, NodeId, Open, Operation, Read, Release, StatFs},
    hal::PAGE_SIZE,
    session::{Priority, Session, Ticket},
    transport::InterruptStatus,
};
use bootshare_test_device::{Device, IommuHal, Opcode, TestHal, TestTransport, VirtualClock};
use std::{ptr::NonNull, time::Duration};

type TestSession = Session<TestTransport, IommuHal>;

/// The time between two polls.
const STEP: Duration = Duration::from_millis(100);

/// A session, its device, and the current time.
struct Rig {
    session: TestSession,
    device: Device,
    now: Duration,
}

impl Rig {
    fn new(device: Device) -> Self {
        let session = Session::start(device.transport(), Options::default()).unwrap();
        let now = Duration::ZERO;
        let mut rig = Self {
            session,
            device,
            now,
        };
        while rig.session.is_changing() {
            rig.look();
        }
        rig
    }

    /// Polls once, and lets the time pass until the next poll.
    fn look(&mut self) {
        self.session.kick();
        while self.session.poll() {}
        self.session.tick(self.now);
        self.now += STEP;
        (0..VirtualClock::ticks(STEP)).for_each(|_| self.device.tick());
    }

    fn call<O: Operation>(&mut self, operation: &O) -> Result<O::Reply, Error> {
        let epoch = self.session.epoch();
        let ticket = self
            .session
            .submit(epoch, operation)?
            .expect("there is room");
        loop {
            self.look();
            if let Some(reply) = self.session.take(operation, ticket)? {
                return Ok(reply);
            }
        }
    }

    fn lookup(&mut self, name: &[u8]) -> Result<NodeId, Error> {
        let parent = NodeId::ROOT;
        let entry = self.call(&Lookup { parent, name })?;
        entry.map(|entry| entry.node).ok_or(Error::NotFound)
    }

    /// Submits a READ at `offset` of a file.
    fn read(&mut self, read: Read, offset: u64, to: NonNull<[u8]>) -> Option<Ticket> {
        let epoch = self.session.epoch();
        let read = Read { offset, ..read };
        // SAFETY: the tests read or free the buffer only once the session no longer has the ticket.
        unsafe { self.session.submit_read(epoch, read, to) }.unwrap()
    }

    fn open(&mut self, name: &[u8]) -> Read {
        let node = self.lookup(name).unwrap();
        let handle = self
            .call(&Open {
                node,
                is_dir: false,
            })
            .unwrap();
        Read {
            node,
            handle,
            offset: 0,
            size: 0,
            is_dir: false,
        }
    }
}

#[test]
fn a_file_is_looked_up_opened_read_and_closed() {
    let device = spoiling(Opcode::Read, |_, good| good.after(STEP));
    let mut rig = Rig::new(device.clone());
    assert!(rig.session.is_connected());
    assert_eq!(rig.lookup(b"missing"), Err(Error::NotFound));
    assert_eq!(rig.lookup(b"a/b"), Err(Error::InvalidName));
    let read = rig.open(b"large");
    // As many READs at the same time as the queue has space for.
    let mut buf = vec![0; LARGE as usize];
    let mut chunks: Vec<_> = buf
        .chunks_mut(CHUNK as usize)
        // Pointers, because moving a reference would count as an access, in a race with the device.
        .map(NonNull::from)
        .zip((0..).step_by(CHUNK as usize))
        .collect();
    let mut under_way = Vec::new();
    let mut most = 0;
    while !chunks.is_empty() || !under_way.is_empty() {
        while let Some((chunk, offset)) = chunks.pop() {
            let Some(ticket) = rig.read(read, offset, chunk) else {
                chunks.push((chunk, offset));
                break;
            };
            assert_eq!(ticket.lent(), chunk.len());
            under_way.push((ticket, chunk));
        }
        most = most.max(under_way.len());
        if under_way.len() == 21 {
            // One descriptor is free, and some slots.
            let (epoch, node) = (rig.session.epoch(), read.node);
            assert_eq!(rig.session.submit(epoch, &StatFs { node }), Ok(None));
        }
        assert_eq!(TestHal::shared(), under_way.len());
        rig.look();
        let session = &mut rig.session;
        under_way.retain(
            |(ticket, chunk)| match session.take(&read, *ticket).unwrap() {
                None => true,
                Some(size) => {
                    assert_eq!(size, chunk.len());
                    false
                }
            },
        );
    }
    assert_eq!(most, 21, "what a queue takes");
    assert!(is_large(&buf, 0));
    // Close the file, and forget the node.
    let epoch = rig.session.epoch();
    let Read { node, handle, .. } = read;
    let release = Release {
        node,
        handle,
        is_dir: false,
    };
    let session = &mut rig.session;
    assert_eq!(session.post(epoch, &release, Priority::Normal), Ok(true));
    let forget = Forget { node, nlookup: 1 };
    assert_eq!(session.post(epoch, &forget, Priority::High), Ok(true));
    rig.look();
    device.log(|log| {
        assert_eq!(log.balance(), Default::default());
        assert_eq!(log.problems(), Vec::<String>::new());
    });
    drop(rig);
    check(&device);
}

#[test]
fn entries_and_targets_come_one_page_at_a_time() {
    let mut rig = Rig::new(Device::new(tree()));
    let node = rig.lookup(b"dir").unwrap();
    let handle = rig.call(&Open { node, is_dir: true }).unwrap();
    let list = Read {
        node,
        handle,
        offset: 0,
        size: PAGE_SIZE as u32,
        is_dir: true,
    };
    let session = &mut rig.session;
    let epoch = session.epoch();
    let ticket = session
        .submit_into(epoch, &list)
        .unwrap()
        .expect("there is room");
    assert_eq!(
        session.submit_into(epoch, &list),
        Ok(None),
        "the page is taken"
    );
    rig.look();
    let mut page = [0; PAGE_SIZE];
    let session = &mut rig.session;
    let size = session
        .take_into(&list, ticket, &mut page)
        .unwrap()
        .expect("it has come");
    let entries = bootshare::fuse::Dirents::new(&page[..size]);
    assert!(
        entries
            .map(Result::unwrap)
            .any(|entry| entry.name == b"one")
    );
    let again = session
        .submit_into(epoch, &list)
        .unwrap()
        .expect("it is free");
    // After `abandon`, the page is free once the reply has arrived.
    session.abandon(again);
    assert_eq!(session.submit_into(epoch, &list), Ok(None));
    rig.look();
    assert!(rig.session.submit_into(epoch, &list).unwrap().is_some());
}

#[test]
fn a_ticket_is_for_one_request_only() {
    let mut rig = Rig::new(Device::new(tree()));
    let (epoch, statistics) = (rig.session.epoch(), StatFs { node: NodeId::ROOT });
    let [first, second] = [(); 2].map(|()| {
        let ticket = rig.session.submit(epoch, &statistics).unwrap().unwrap();
        assert!(rig.session.has(ticket));
        rig.look();
        assert!(rig.session.take(&statistics, ticket).unwrap().is_some());
        assert!(!rig.session.has(ticket));
        ticket
    });
    // The slot of both is used again.
    let third = rig.session.submit(epoch, &statistics).unwrap().unwrap();
    rig.look();
    for ticket in [first, second] {
        assert!(!rig.session.has(ticket));
        assert_eq!(
            rig.session.take(&statistics, ticket),
            Err(Error::Disconnected)
        );
    }
    assert!(rig.session.take(&statistics, third).unwrap().is_some());
}

#[test]
fn posted_requests_leave_slots_for_others() {
    let device = Device::with_script(tree(), |request, good| match request.opcode() {
        Opcode::Release | Opcode::Forget => good.never(),
        _ => good,
    });
    let mut rig = Rig::new(device);
    let Read { node, handle, .. } = rig.open(b"file");
    let release = Release {
        node,
        handle,
        is_dir: false,
    };
    let forget = Forget { node, nlookup: 1 };
    let epoch = rig.session.epoch();
    let session = &mut rig.session;
    let mut posted = 0;
    while session.post(epoch, &release, Priority::Normal).unwrap() {
        posted += 1;
    }
    while session.post(epoch, &forget, Priority::High).unwrap() {
        posted += 1;
    }
    assert_eq!(posted, 20 + 2);
    rig.lookup(b"dir").unwrap();
}

#[test]
fn a_silent_host_is_given_up_by_the_callers_clock() {
    let device = spoiling(Opcode::Read, |_, good| good.never());
    let mut rig = Rig::new(device.clone());
    let read = rig.open(b"file");
    let mut buf = vec![0; CONTENT.len()];
    let ticket = rig.read(read, 0, NonNull::from(&mut buf[..])).unwrap();
    let start = rig.now;
    while rig.session.take(&read, ticket) == Ok(None) {
        rig.look();
    }
    let waited = rig.now - start;
    assert!((10..12).contains(&waited.as_secs()), "{waited:?}");
    let timed_out = Err(Error::TimedOut { after_ms: 10_000 });
    assert_eq!(rig.session.take(&read, ticket), timed_out);
    // The session keeps the buffer until the reset is confirmed.
    while rig.session.is_changing() {
        assert!(rig.session.has(ticket));
        rig.look();
    }
    assert!(!rig.session.has(ticket) && rig.session.is_reset());
    assert_eq!(TestHal::shared(), 0);
    let epoch = rig.session.epoch();
    let node = NodeId::ROOT;
    let open = Open { node, is_dir: true };
    assert_eq!(rig.session.submit(epoch, &open), Err(Error::Disconnected));
    // A new session, in which tickets and nodes of the first one are not valid.
    rig.session.resume();
    while rig.session.is_changing() {
        rig.look();
    }
    assert!(rig.session.is_connected());
    assert_eq!(rig.session.submit(epoch, &open), Err(Error::Disconnected));
    assert_eq!(rig.session.take(&read, ticket), timed_out);
    rig.call(&open).unwrap();
    drop(rig);
    check(&device);
}

#[test]
fn the_status_is_read_ten_times_a_second() {
    // Each read is an exit to the hypervisor.
    let device = spoiling(Opcode::StatFs, |_, good| good.never());
    let mut rig = Rig::new(device.clone());
    let (node, epoch, start) = (NodeId::ROOT, rig.session.epoch(), rig.now);
    let session = &mut rig.session;
    assert!(session.submit(epoch, &StatFs { node }).unwrap().is_some());
    session.kick();
    session.tick(start);
    device.quirk(|quirks| quirks.status_noise = 64); // `DEVICE_NEEDS_RESET`
    session.tick(start + Duration::from_millis(99));
    assert!(session.is_connected());
    session.tick(start + Duration::from_millis(100));
    assert!(!session.is_connected());
    drop(rig);
    check(&device);
}

#[test]
fn a_failed_session_reports_the_reason_before_its_reset() {
    type End = fn(&mut TestSession);
    let ends: [(End, bool); 3] = [
        (|session| assert!(session.poll()), false),
        (Session::disconnect, false),
        (Session::resume, true),
    ];
    for (end, connects) in ends {
        let device = spoiling(Opcode::StatFs, |_, good| good.never());
        let mut rig = Rig::new(device.clone());
        let node = NodeId::ROOT;
        let epoch = rig.session.epoch();
        let session = &mut rig.session;
        assert!(session.submit(epoch, &StatFs { node }).unwrap().is_some());
        session.kick();
        let deadline = Duration::from_secs(10);
        assert_eq!(session.tick(STEP), deadline);
        assert_eq!(session.tick(STEP + deadline), Duration::ZERO);
        let resets = device.resets();
        assert_eq!(session.failure(), Error::TimedOut { after_ms: 10_000 });
        assert!(session.is_changing() && !session.is_connected());
        assert_eq!(
            session.tick(STEP + 2 * deadline),
            Duration::ZERO,
            "poll at once"
        );
        assert!(device.is_live());
        end(session);
        assert_eq!(device.resets(), resets + 1);
        while rig.session.is_changing() {
            rig.look();
        }
        assert_eq!(rig.session.is_connected(), connects);
        assert_eq!(rig.session.is_reset(), !connects);
        drop(rig);
        check(&device);
    }
}

#[test]
fn a_session_that_ends_while_it_is_resumed_leaves_the_device_reset() {
    for disconnects in [false, true] {
        let device = Device::new(tree());
        let mut rig = Rig::new(device.clone());
        rig.session.disconnect();
        rig.session.resume();
        if disconnects {
            rig.session.disconnect();
            while rig.session.is_changing() {
                rig.look();
            }
            assert!(rig.session.is_reset());
        }
        drop(rig);
        check(&device);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri writes all of the 4 GiB")]
fn a_gibibyte_of_a_larger_buffer_is_lent() {
    let mut rig = Rig::new(Device::new(tree()));
    let read = rig.open(b"file");
    // Its size, cut to 32 bits, is 5. Almost none of it is ever touched.
    let mut buf = vec![0; (4 << 30) + 5];
    let ticket = rig.read(read, 0, NonNull::from(&mut buf[..])).unwrap();
    assert_eq!(ticket.lent(), 1 << 30);
    rig.look();
    assert_eq!(rig.session.take(&read, ticket), Ok(Some(CONTENT.len())));
    assert!(buf.starts_with(CONTENT));
}

#[test]
fn interrupts_come_only_if_they_are_enabled() {
    let device = Device::new(tree());
    let mut rig = Rig::new(device.clone());
    rig.lookup(b"file").unwrap();
    assert_eq!(device.interrupts(), 0);
    rig.session.set_interrupts(true);
    rig.lookup(b"file").unwrap();
    assert_eq!(device.interrupts(), 1);
    assert!(rig.session.acknowledge() == InterruptStatus::QUEUE_INTERRUPT);
    assert!(rig.session.acknowledge().is_empty());
    // Interrupts stay enabled in the next session.
    rig.session.disconnect();
    rig.session.resume();
    while rig.session.is_changing() {
        rig.look();
    }
    assert_eq!(device.interrupts(), 2, "for INIT");
    rig.session.set_interrupts(false);
    rig.lookup(b"file").unwrap();
    assert_eq!(device.interrupts(), 2);
    drop(rig);
    check(&device);
}
