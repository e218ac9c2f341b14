//! A share, its server, and a simulated machine that consists of memory and queues.

use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use bootshare_host::serve::{MAX_REQUEST_QUEUES, Options, Server};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// A time limit longer than any step takes on a busy machine.
pub const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// How long a test waits for something that must not happen.
pub const NEVER: Duration = Duration::from_millis(200);

pub const RING: u16 = 128;

// The layout of a queue's memory: the rings, and 1 MiB and a page for each request.
pub const MEMORY: usize = 80 << 20;
pub const DESCRIPTORS: u64 = 0;
pub const AVAILABLE: u64 = 0x1000;
pub const USED: u64 = 0x2000;
pub const PLACES: u64 = 0x10_0000;
pub const PLACE: u64 = 0x10_1000;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const RELEASE: u32 = 18;
pub const INIT: u32 = 26;

/// A share, its server, and the server's socket.
pub struct Rig {
    pub dir: TempDir,
    pub server: Server,
}

impl Rig {
    pub fn new(threads: usize, fault: &str) -> Self {
        Self::with(|options| {
            options.request_queues = MAX_REQUEST_QUEUES;
            options.threads = threads;
            if !fault.is_empty() {
                options.fault = Some(fault.parse().unwrap());
            }
        })
    }

    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::write(dir.path().join("share/file"), content()).unwrap();
        let mut options = Options::new("test", vec![dir.path().join("share")]);
        change(&mut options);
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let server = Server::start(&options, listener).unwrap();
        Self { dir, server }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn guest(&self) -> Guest {
        self.guest_with_queues(1)
    }

    pub fn guest_with_queues(&self, count: usize) -> Guest {
        Guest::connect(&self.socket(), count)
    }
}

pub fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| (n / 3) as u8).collect()
}

/// A machine that consists of memory and request queues. It dereferences to its first queue.
pub struct Guest {
    pub frontend: Frontend,
    pub queues: Vec<Queue>,
    /// The file that is the guest's memory.
    pub file: File,
}

/// A request queue, and its part of the memory.
pub struct Queue {
    pub number: usize,
    pub memory: GuestMemoryMmap,
    pub kick: EventFd,
    pub call: EventFd,
    pub sent: u16,
    pub seen: u16,
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
    /// Connects with `count` request queues, which follow the hiprio queue.
    pub fn connect(socket: &Path, count: usize) -> Self {
        Self::start_with(Frontend::connect(socket, u64::MAX).unwrap(), count)
    }

    fn start_with(mut frontend: Frontend, count: usize) -> Self {
        let file: File = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)
            .unwrap()
            .into();
        let size = count * MEMORY;
        file.set_len(size as u64).unwrap();
        let own = file.try_clone().unwrap();
        let ranges = [(GuestAddress(0), size, Some(FileOffset::new(file, 0)))];
        let memory = GuestMemoryMmap::from_ranges_with_files(&ranges).unwrap();
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
            kick: EventFd::new(EFD_CLOEXEC).unwrap(),
            call: EventFd::new(EFD_CLOEXEC).unwrap(),
            sent: 0,
            seen: 0,
        };
        let mut guest = Self {
            frontend,
            queues: (1..=count).map(queue).collect(),
            file: own,
        };
        guest.start();
        guest
    }

    /// Waits until no other guest is served, then connects with one request queue.
    pub fn connect_when_free(socket: &Path) -> Self {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(guest) = Self::try_connect(socket) {
                return guest;
            }
            assert!(Instant::now() < deadline, "never served");
        }
    }

    /// Connects with one request queue. Returns `None` if another guest is served; the server then closes the
    /// connection.
    pub fn try_connect(socket: &Path) -> Option<Self> {
        let frontend = Frontend::connect(socket, u64::MAX).unwrap();
        frontend.get_features().ok()?;
        Some(Self::start_with(frontend, 1))
    }

    /// Sets up the request queues, empty.
    pub fn start(&mut self) {
        for queue in &mut self.queues {
            queue.start(&mut self.frontend);
        }
    }

    /// Negotiates other features than all the offered ones, and restarts the queues.
    pub fn agree_to(&mut self, features: impl Fn(u64) -> u64) {
        self.stop();
        let offered = self.frontend.get_features().unwrap();
        self.frontend.set_features(features(offered)).unwrap();
        self.start();
    }

    /// Takes the queues back from the device (GET_VRING_BASE).
    pub fn stop(&mut self) {
        for queue in &self.queues {
            self.frontend.get_vring_base(queue.number).unwrap();
        }
    }

    /// What QEMU does when a stopped machine continues.
    pub fn go_on(&mut self, next: u16) {
        self.queues[0].configure(&mut self.frontend, next, AVAILABLE);
    }

    /// Starts the first queue with its available ring at another address.
    pub fn configure_at(&mut self, available: u64) {
        self.queues[0].configure(&mut self.frontend, 0, available);
    }

    /// What QEMU does when the guest resets the device.
    pub fn reset(&mut self) {
        self.stop();
        self.start();
    }
}

impl Queue {
    pub fn start(&mut self, frontend: &mut Frontend) {
        (self.sent, self.seen) = (0, 0);
        self.write(DESCRIPTORS, &[0; 0x3000]);
        self.configure(frontend, 0, AVAILABLE);
    }

    /// Passes the queue's addresses and the index of the next request to the device, and enables the queue.
    fn configure(&self, frontend: &mut Frontend, next: u16, available: u64) {
        self.set_up(frontend, next, available);
        frontend.set_vring_enable(self.number, true).unwrap();
    }

    /// The same, but does not enable the queue.
    pub fn set_up(&self, frontend: &mut Frontend, next: u16, available: u64) {
        let host = self.memory.get_host_address(self.at(0)).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: host + DESCRIPTORS,
            used_ring_addr: host + USED,
            avail_ring_addr: host + available,
            log_addr: None,
        };
        frontend.set_vring_num(self.number, RING).unwrap();
        frontend.set_vring_addr(self.number, &config).unwrap();
        frontend.set_vring_base(self.number, next).unwrap();
        frontend.set_vring_call(self.number, &self.call).unwrap();
        frontend.set_vring_kick(self.number, &self.kick).unwrap();
    }

    /// The guest address of an offset in the queue's memory.
    pub fn at(&self, address: u64) -> GuestAddress {
        GuestAddress(((self.number - 1) * MEMORY) as u64 + address)
    }

    pub fn place(number: u16) -> u64 {
        PLACES + u64::from(number % (RING / 2)) * PLACE
    }

    /// Sends a request with `room` bytes for its reply. Returns the request's number.
    pub fn send(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> u16 {
        let number = self.send_without_kick(opcode, node, body, room);
        self.kick.write(1).unwrap();
        number
    }

    /// The same, but does not notify the device.
    pub fn send_without_kick(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> u16 {
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
        number
    }

    pub fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = self.at(address).0.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(DESCRIPTORS + u64::from(index) * 16, &bytes);
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, self.at(address)).unwrap();
    }

    pub fn read(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.memory
            .read_slice(&mut bytes, self.at(address))
            .unwrap();
        bytes
    }

    pub fn used_index(&self) -> u16 {
        let bytes = self.read(USED + 2, 2);
        u16::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Whether an answer arrives within the limit.
    pub fn is_answered(&self, limit: Timespec) -> bool {
        loop {
            // `used_event` (virtio 1.2, 2.7.7.2): asks for a notification of the next answer.
            self.write(
                AVAILABLE + 4 + 2 * u64::from(RING),
                &self.seen.to_le_bytes(),
            );
            fence(Ordering::SeqCst);
            if self.used_index() != self.seen {
                return true;
            }
            // SAFETY: the eventfd stays open during the call.
            let call = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let mut fds = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
            if poll(&mut fds, Some(&limit)).unwrap() == 0 {
                return false;
            }
            self.call.read().unwrap();
        }
    }

    /// Waits for the next answer. Returns the request's number and the bytes that were written.
    pub fn answer(&mut self) -> (u16, Vec<u8>) {
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

    /// Sends a request and waits. Returns the reply's body, or its error.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let number = self.send(opcode, node, body, 8192);
        let (answered, reply) = self.answer();
        assert_eq!(answered, number % (RING / 2));
        match i32::from_le_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(reply[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// Mounts the share.
    pub fn init(&mut self) {
        self.ask(INIT, 0, &words(&[7, 36, 1 << 20, 0])).unwrap();
    }

    /// Mounts the share and opens `file`. Returns its node and handle.
    pub fn open(&mut self) -> (u64, Vec<u8>) {
        self.init();
        let entry = self.ask(LOOKUP, 1, b"file\0").unwrap();
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let handle = self.ask(OPEN, node, &words(&[0, 0])).unwrap()[..8].to_vec();
        (node, handle)
    }

    pub fn send_read(&mut self, (node, handle): &(u64, Vec<u8>), offset: u32, size: u32) -> u16 {
        let body = [&handle[..], &words(&[offset, 0, size, 0, 0, 0, 0, 0])].concat();
        self.send(READ, *node, &body, 16 + size)
    }
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
