//! The embedded server as QEMU sees it, over vhost-user, without QEMU: queues in memory of this
//! process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use bootshare_host::serve::{MAX_REQUEST_QUEUES, Options, Server, Trace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Longer than anything here takes on a busy machine.
const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// How long something is waited for that must not come.
const NEVER: Duration = Duration::from_millis(200);

const RING: u16 = 128;

// The layout of a queue's memory, with a place of 1 MiB and a page for each request.
const MEMORY: usize = 80 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const PLACES: u64 = 0x10_0000;
const PLACE: u64 = 0x10_1000;

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;

/// A share, its server, and where the server listens.
struct Rig {
    dir: TempDir,
    server: Server,
}

impl Rig {
    fn new(threads: usize, fault: &str) -> Self {
        Self::with(|options| {
            options.request_queues = MAX_REQUEST_QUEUES;
            options.threads = threads;
            if !fault.is_empty() {
                options.fault = Some(fault.parse().unwrap());
            }
        })
    }

    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::write(dir.path().join("share/file"), content()).unwrap();
        let mut options = Options::new("test", vec![dir.path().join("share")]);
        change(&mut options);
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let server = Server::start(&options, listener).unwrap();
        Self { dir, server }
    }

    fn guest(&self) -> Guest {
        self.guest_with_queues(1)
    }

    fn guest_with_queues(&self, count: usize) -> Guest {
        Guest::connect(&self.dir.path().join("socket"), count)
    }
}

fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| (n / 3) as u8).collect()
}

/// A machine that is nothing but memory and queues of requests; by itself it is the first of them.
struct Guest {
    frontend: Frontend,
    queues: Vec<Queue>,
}

/// A queue of requests, and its part of the memory.
struct Queue {
    number: usize,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    sent: u16,
    seen: u16,
}

impl Deref for Guest {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queues[0]
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }
}

impl Guest {
    /// Connects with `count` request queues, which are behind the hiprio queue.
    fn connect(socket: &Path, count: usize) -> Self {
        let file: File = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)
            .unwrap()
            .into();
        let size = count * MEMORY;
        file.set_len(size as u64).unwrap();
        let ranges = [(GuestAddress(0), size, Some(FileOffset::new(file, 0)))];
        let memory = GuestMemoryMmap::from_ranges_with_files(&ranges).unwrap();
        let mut frontend = Frontend::connect(socket, u64::MAX).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        frontend.set_features(features).unwrap();
        let features = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(features).unwrap();
        let region = memory.find_region(GuestAddress(0)).unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        let queue = |number| Queue {
            number,
            memory: memory.clone(),
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            sent: 0,
            seen: 0,
        };
        let mut guest = Self {
            frontend,
            queues: (1..=count).map(queue).collect(),
        };
        guest.start();
        guest
    }

    /// Sets the request queues up, empty.
    fn start(&mut self) {
        for queue in &mut self.queues {
            queue.start(&mut self.frontend);
        }
    }

    /// Takes the queues back from the device.
    fn stop(&mut self) {
        for queue in &self.queues {
            self.frontend.get_vring_base(queue.number).unwrap();
        }
    }

    /// What QEMU does when the guest resets the device.
    fn reset(&mut self) {
        self.stop();
        self.start();
    }
}

impl Queue {
    fn start(&mut self, frontend: &mut Frontend) {
        (self.sent, self.seen) = (0, 0);
        self.write(DESCRIPTORS, &[0; 0x3000]);
        let host = self.memory.get_host_address(self.at(0)).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: host + DESCRIPTORS,
            used_ring_addr: host + USED,
            avail_ring_addr: host + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_num(self.number, RING).unwrap();
        frontend.set_vring_addr(self.number, &config).unwrap();
        frontend.set_vring_base(self.number, 0).unwrap();
        frontend.set_vring_call(self.number, &self.call).unwrap();
        frontend.set_vring_kick(self.number, &self.kick).unwrap();
        frontend.set_vring_enable(self.number, true).unwrap();
    }

    /// Where a place of the queue's memory is in the guest's.
    fn at(&self, address: u64) -> GuestAddress {
        GuestAddress(((self.number - 1) * MEMORY) as u64 + address)
    }

    fn place(number: u16) -> u64 {
        PLACES + u64::from(number % (RING / 2)) * PLACE
    }

    /// Sends a request with `room` bytes for its reply; its number is among those that were sent.
    fn send(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> u16 {
        let number = self.sent;
        let place = Self::place(number);
        let mut request = (40 + body.len() as u32).to_le_bytes().to_vec();
        request.extend(opcode.to_le_bytes());
        request.extend(u64::from(number).to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        self.write(place, &request);
        self.write(place + 0x1000, &vec![0xee; room as usize]);
        let first = number % (RING / 2) * 2;
        self.descriptor(first, place, request.len() as u32, 1, first + 1);
        self.descriptor(first + 1, place + 0x1000, room, 2, 0);
        let slot = AVAILABLE + 4 + u64::from(number % RING) * 2;
        self.write(slot, &first.to_le_bytes());
        self.sent += 1;
        self.write(AVAILABLE + 2, &self.sent.to_le_bytes());
        self.kick.write(1).unwrap();
        number
    }

    fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = self.at(address).0.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(DESCRIPTORS + u64::from(index) * 16, &bytes);
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, self.at(address)).unwrap();
    }

    fn read(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.memory
            .read_slice(&mut bytes, self.at(address))
            .unwrap();
        bytes
    }

    fn used_index(&self) -> u16 {
        let bytes = self.read(USED + 2, 2);
        u16::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Whether an answer comes within the limit.
    fn is_answered(&self, limit: Timespec) -> bool {
        loop {
            // `used_event` (virtio 1.2, 2.7.7.2): tell of the next answer.
            self.write(
                AVAILABLE + 4 + 2 * u64::from(RING),
                &self.seen.to_le_bytes(),
            );
            fence(Ordering::SeqCst);
            if self.used_index() != self.seen {
                return true;
            }
            // SAFETY: the eventfd outlives the call.
            let call = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let mut fds = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
            if poll(&mut fds, Some(&limit)).unwrap() == 0 {
                return false;
            }
            self.call.read().unwrap();
        }
    }

    /// The next answer: the request's number and the bytes that were written.
    fn answer(&mut self) -> (u16, Vec<u8>) {
        assert!(self.is_answered(LIMIT), "no answer");
        let slot = USED + 4 + u64::from(self.seen % RING) * 8;
        let element = self.read(slot, 8);
        let first = u32::from_le_bytes(element[..4].try_into().unwrap());
        let size = u32::from_le_bytes(element[4..].try_into().unwrap());
        self.seen += 1;
        let number = (first / 2) as u16;
        (
            number,
            self.read(Self::place(number) + 0x1000, size as usize),
        )
    }

    /// Sends a request and waits for its reply's body, or error.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let number = self.send(opcode, node, body, 8192);
        let (answered, reply) = self.answer();
        assert_eq!(answered, number);
        match i32::from_le_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(reply[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// Mounts and opens `file`: its node and its handle.
    fn open(&mut self) -> (u64, Vec<u8>) {
        self.ask(INIT, 0, &words(&[7, 36, 1 << 20, 0])).unwrap();
        let entry = self.ask(LOOKUP, 1, b"file\0").unwrap();
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let handle = self.ask(OPEN, node, &words(&[0, 0])).unwrap()[..8].to_vec();
        (node, handle)
    }

    fn send_read(&mut self, (node, handle): &(u64, Vec<u8>), offset: u32, size: u32) -> u16 {
        let body = [&handle[..], &words(&[offset, 0, size, 0, 0, 0, 0, 0])].concat();
        self.send(READ, *node, &body, 16 + size)
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Reads the file again and again, 16 reads at a time.
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
fn a_read_that_takes_long_does_not_hold_the_others_up() {
    // The first READ takes for ever, as far as this test is concerned.
    let rig = Rig::new(2, "delay=100000s@READ:1");
    let mut guest = rig.guest();
    let file = guest.open();
    let slow = guest.send_read(&file, 0, 100);
    for _ in 0..10 {
        let fast = guest.send_read(&file, 0, 100);
        assert_eq!(guest.answer().0, fast % (RING / 2));
    }
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
    // It is answered when the queue is stopped, so that nothing is written afterwards.
    guest.stop();
    assert_eq!(guest.used_index(), guest.seen + 1);
    assert_eq!(guest.answer().0, slow);
}

#[test]
fn a_queue_does_not_wait_for_another() {
    for threads in [0, 2] {
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
        // The other one stops at once, this one when it is answered.
        guest.frontend.get_vring_base(2).unwrap();
        assert!(!guest.is_answered(NEVER.try_into().unwrap()));
        guest.frontend.get_vring_base(1).unwrap();
        assert_eq!(guest.used_index(), guest.seen + 1);
        assert_eq!(guest.answer().0, slow);
    }
}

#[test]
fn after_a_reset_nothing_is_written_any_more() {
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
            // The memory is the guest's again.
            let places = || places.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
            for pair in places() {
                for (queue, number) in guest.queues.iter().zip(pair) {
                    queue.write(Queue::place(number) + 0x1000, &[0xdd; 4096]);
                }
            }
            guest.ask(INIT, 0, &words(&[7, 36, 0, 0])).unwrap();
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
        let mut guest = rig.guest();
        let (node, handle) = guest.open();
        guest.send_read(&(node, handle), 0, 100);
        assert_eq!(guest.answer().1[16..], content()[..100]);
        // Gone without a farewell; its file is closed when the next one mounts.
    }
    assert_eq!(rig.server.failure(), None);
}

#[test]
fn it_ends_when_told_to_whatever_it_does() {
    // Before anybody connects, with somebody connected, and in the middle of a request.
    for step in 0..3 {
        let mut rig = Rig::new(2, "delay=100000s@READ:1");
        let guest = (step > 0).then(|| rig.guest());
        if let (2, Some(mut guest)) = (step, guest) {
            let file = guest.open();
            guest.send_read(&file, 0, 100);
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
fn a_panic_is_an_error_and_told() {
    let rig = Rig::new(2, "panic=LOOKUP:1");
    let mut guest = rig.guest();
    guest.ask(INIT, 0, &words(&[7, 36, 0, 0])).unwrap();
    assert_eq!(guest.ask(LOOKUP, 1, b"file\0"), Err(libc::EIO));
    let failure = rig.server.failure().expect("it is told");
    assert!(failure.contains("as the fault asks"), "{failure}");
    // The next one is answered.
    assert!(guest.ask(LOOKUP, 1, b"file\0").is_ok());
}

#[test]
fn faults_are_what_they_say() {
    let rig = Rig::new(
        0,
        "error=ESTALE@LOOKUP:1,drop=LOOKUP:2,truncate=20@OPEN,corrupt=5@READ:2",
    );
    let mut guest = rig.guest();
    guest.ask(INIT, 0, &words(&[7, 36, 0, 0])).unwrap();
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
    // Requests differ in their number only.
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
fn it_hangs_up_after_so_many_requests() {
    let rig = Rig::new(2, "disconnect-after=1");
    let mut guest = rig.guest();
    guest.ask(INIT, 0, &words(&[7, 36, 0, 0])).unwrap();
    guest.send(LOOKUP, 1, b"file\0", 4096);
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
    assert!(guest.frontend.get_features().is_err());
    assert_eq!(rig.server.failure(), None, "as it was told to");
}

#[test]
fn queues_without_sense_harm_nobody() {
    let rig = Rig::new(2, "");
    let mut guest = rig.guest();
    // Chains that lead nowhere, into themselves, out of memory; and an index that runs away.
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
fn a_queue_too_many_is_told_of() {
    let rig = Rig::with(|options| options.request_queues = 1);
    let guest = rig.guest();
    guest.frontend.set_vring_num(2, RING).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(rig.server.failed(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&LIMIT)).unwrap(), 1);
    let failure = rig.server.failure().unwrap();
    assert!(failure.contains("num-request-queues may be 1"), "{failure}");
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
    assert_eq!(guest.ask(LOOKUP, 1, b"nosuch\0"), Err(libc::ENOENT));
    guest.send_read(&file, 4096, 1000);
    guest.answer();
    guest.send_read(&file, 0, 1000);
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
