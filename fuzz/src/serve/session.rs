//! The actions of a front end.

use super::LIMIT;
use super::frontend::{Frontend, event, is_ready, memory, message, odd};
use crate::source::Source;
use rustix::{event::PollFlags, fs::ftruncate, io::pwrite};
use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    thread,
    time::{Duration, Instant},
};

// Messages (vhost-user.rst, front-end message types).
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const RESET_OWNER: u32 = 4;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;

/// VIRTIO_F_VERSION_1 and INDIRECT_DESC, EVENT_IDX, VHOST_USER_F_PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 32 | 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL: u64 = 1 << 30;

/// VHOST_USER_PROTOCOL_F_MQ and REPLY_ACK; the flag of a message that asks for an acknowledgement.
const MQ: u64 = 1;
const REPLY_ACK: u64 = 1 << 3;
const NEED_REPLY: u32 = 1 << 3;

// Offsets in the memory's file. Each queue has a part of it; requests and replies follow the queues.
const SIZE: u64 = 0x1_0000;
const HALF: u64 = 0x8000;
const QUEUE: u64 = 0x2000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const INDIRECT: u64 = 0x1000;
const REQUESTS: u64 = HALF;
const REQUEST: u64 = 0x400;
const REPLIES: u64 = 0xa000;
const REPLY: u64 = 0x800;

/// The number of requests in flight at the same time; each has its own descriptors.
const SLOTS: u16 = 8;
const CHAIN: u16 = 8;
const RING: u16 = 64;

/// The address where QEMU would have mapped the memory.
const USER: u64 = 0x7f00_0000_0000;

/// Longer programs would not test more.
const MOST_STEPS: usize = 24;

// FUSE operations (linux/fuse.h).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const BATCH_FORGET: u32 = 42;
const READDIRPLUS: u32 = 44;
const LSEEK: u32 = 46;

const NAMES: [&[u8]; 12] = [
    b"file\0",
    b"dir\0",
    b"link\0",
    b"empty\0",
    b"same\0",
    b"hole\0",
    b"deep\0",
    b"lower\0",
    b"missing\0",
    b"..\0",
    b"dir/deep\0",
    b"",
];

struct Queue {
    number: u8,
    kick: OwnedFd,
    call: OwnedFd,
    /// The index of the next request in the available ring.
    next: u16,
    /// Whether the server may be listening to `kick`.
    live: bool,
}

pub struct Session {
    frontend: Frontend,
    memory: std::fs::File,
    queues: [Queue; 2],
    /// The size of the gap between the halves of the guest's memory.
    gap: u64,
    need_reply: u32,
    /// Nodes and handles that the server has returned.
    nodes: Vec<u64>,
    handles: Vec<u64>,
    unique: u64,
    answers: usize,
    ending: u8,
}

impl Session {
    /// Sets up the device according to the first byte; `None` if the server does not answer.
    pub fn new(mut frontend: Frontend, source: &mut Source<'_>) -> Option<Self> {
        frontend.say(GET_FEATURES, &[]);
        frontend.reply_within(LIMIT)?;
        let queue = |number| Queue {
            number,
            kick: event(),
            call: event(),
            next: 0,
            live: false,
        };
        let mode = source.u8();
        let mut session = Self {
            frontend,
            memory: memory(SIZE).into(),
            queues: [queue(0), queue(1)],
            gap: u64::from(mode >> 4 & 1) * 0x10_0000,
            need_reply: 0,
            nodes: Vec::new(),
            handles: Vec::new(),
            unique: 0,
            answers: 0,
            ending: mode >> 6,
        };
        if mode & 1 == 0 {
            session.set_up(mode);
        }
        Some(session)
    }

    fn set_up(&mut self, mode: u8) {
        self.frontend.say(SET_OWNER, &[]);
        let mut features = FEATURES;
        if mode & 2 == 0 {
            features |= EVENT_IDX;
        }
        if mode & 4 == 0 {
            features |= PROTOCOL;
        }
        self.frontend.say(SET_FEATURES, &features.to_le_bytes());
        if mode & 4 == 0 {
            let protocol = if mode & 8 == 0 { MQ } else { MQ | REPLY_ACK };
            self.frontend.say(GET_PROTOCOL_FEATURES, &[]);
            self.frontend.reply();
            self.frontend
                .say(SET_PROTOCOL_FEATURES, &protocol.to_le_bytes());
        }
        self.set_memory(&[]);
        for index in 0..self.queues.len() {
            self.set_up_queue(index);
        }
        if mode & 0x20 == 0 {
            // FUSE 7.36 with all options.
            let body = words(&[7, 36, 1 << 20, u32::MAX]);
            self.make_request(0, INIT, 0, &body);
            self.settle(1);
        }
    }

    /// Runs the input's actions. Returns the number of answered requests.
    pub fn run(mut self, source: &mut Source<'_>) -> usize {
        for _ in 0..MOST_STEPS {
            if source.is_empty() || self.frontend.over {
                break;
            }
            self.step(source);
        }
        match self.ending {
            0 => {
                for queue in 0..2 {
                    self.stop(queue);
                }
            }
            1 => {}
            2 => self.frontend.wait_for_end(),
            _ => self
                .frontend
                .send(&message(SET_FEATURES, 1, &[0; 8])[..15], &[]),
        }
        self.answers
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(16) {
            0..=4 => {
                self.request(source, 0);
                self.settle(1);
            }
            5 => {
                let count = 2 + source.below(7) as u16;
                for slot in 0..count.min(SLOTS) {
                    self.request(source, slot);
                }
                if source.flag() {
                    self.kick(1);
                } else {
                    self.settle(1);
                }
            }
            6 => self.chain(source),
            7 => self.scribble(source),
            8 => self.setting(source),
            9 => self.any_message(source),
            10 => self.stop(source.below(2)),
            11 => self.set_up_queue(1 - source.below(2)),
            12 => {
                let size = match source.below(4) {
                    0 => 0,
                    1 => HALF,
                    2 => USED + 2,
                    _ => source.edge() & (2 * SIZE - 1),
                };
                // The memory may be sealed.
                let _ = ftruncate(&self.memory, size);
            }
            13 => self.odd_memory(source),
            14 => {
                let bytes = message(source.below(48) as u32, 1, source.short_bytes());
                let (first, rest) = bytes.split_at(source.below(256).min(bytes.len()));
                self.frontend.send(first, &[]);
                if source.flag() {
                    self.frontend.send(rest, &[]);
                }
                self.frontend.reply();
            }
            _ => {
                let queue = source.below(2);
                self.kick(queue);
                self.frontend.reply();
            }
        }
    }

    /// Sends a message that may request an acknowledgement, which is then read.
    fn say(&mut self, request: u32, body: &[u8], fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let flags = 1 | self.need_reply;
        self.frontend.send(&message(request, flags, body), &fds);
        if self.need_reply != 0 {
            self.frontend.reply();
        }
    }

    /// The guest's address of an offset in the memory's file.
    fn guest(&self, offset: u64) -> u64 {
        offset + if offset < HALF { 0 } else { self.gap }
    }

    /// Sends the memory table: two regions of one file, and `more`.
    fn set_memory(&mut self, more: &[([u64; 4], OwnedFd)]) {
        let halves = [
            [0, HALF, USER, 0],
            [self.guest(HALF), SIZE - HALF, USER + HALF, HALF],
        ];
        let regions = halves.iter().chain(more.iter().map(|(region, _)| region));
        let mut body = words(&[2 + more.len() as u32, 0]);
        body.extend(regions.flatten().flat_map(|number| number.to_le_bytes()));
        let own = self.memory.as_fd();
        let more = more.iter().map(|(_, file)| file.as_fd());
        let fds: Vec<_> = [own, own].into_iter().chain(more).collect();
        self.frontend.send(&message(SET_MEM_TABLE, 1, &body), &fds);
    }

    fn odd_memory(&mut self, source: &mut Source<'_>) {
        if source.flag() {
            // A new file. The old one is unmapped, perhaps with requests in flight.
            self.memory = memory(SIZE).into();
        }
        let count = source.below(40);
        let more: Vec<_> = (0..count)
            .map(|_| {
                let region = match source.below(4) {
                    // Adjacent regions.
                    0 => [0x20_0000 + source.u64() % 64 * 0x1000, 0x1000, 0, 0],
                    1 => [source.edge(), source.edge(), source.edge(), source.edge()],
                    2 => [0x20_0000, source.edge(), USER + SIZE, 0],
                    _ => [u64::MAX - 0xfff, 0x1000, u64::MAX - 0xfff, 0x1000],
                };
                let file = if source.flag() {
                    odd(source, &self.frontend)
                } else {
                    memory(source.edge() & 0xf_ffff)
                };
                (region, file)
            })
            .collect();
        self.set_memory(&more);
    }

    fn set_up_queue(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        let number = u32::from(queue.number);
        queue.next = 0;
        queue.live = true;
        let base = u64::from(number) * QUEUE;
        // If the file was truncated, the write extends it.
        let _ = self.memory.write_at(&[0; USED as usize + 0x400], base);
        let at = USER + base;
        let address = [at, at + USED, at + AVAILABLE, 0];
        let address = address.iter().flat_map(|number| number.to_le_bytes());
        let address: Vec<_> = words(&[number, 0]).into_iter().chain(address).collect();
        for (request, body) in [
            (SET_VRING_NUM, words(&[number, RING.into()])),
            (SET_VRING_ADDR, address),
            (SET_VRING_BASE, words(&[number, 0])),
        ] {
            self.frontend.say(request, &body);
        }
        let body = u64::from(number).to_le_bytes();
        let queue = &self.queues[index];
        for (request, event) in [(SET_VRING_CALL, &queue.call), (SET_VRING_KICK, &queue.kick)] {
            self.frontend
                .send(&message(request, 1, &body), &[event.as_fd()]);
        }
        self.frontend.say(SET_VRING_ENABLE, &words(&[number, 1]));
    }

    fn stop(&mut self, index: usize) {
        self.queues[index].live = false;
        let body = words(&[self.queues[index].number.into(), 0]);
        self.frontend.say(GET_VRING_BASE, &body);
        self.frontend.reply();
    }

    /// A message with arbitrary values.
    fn setting(&mut self, source: &mut Source<'_>) {
        self.need_reply = u32::from(source.flag()) * NEED_REPLY;
        let index = match source.below(8) {
            index @ 0..=3 => index as u64,
            _ => source.edge(),
        };
        let number = |source: &mut Source<'_>| match source.below(4) {
            0 => 1 << source.below(17),
            1 => u64::from(source.u8()),
            _ => source.edge(),
        };
        let pair = |source: &mut Source<'_>| words(&[index as u32, number(source) as u32]);
        match source.below(16) {
            0 => self.say(SET_VRING_NUM, &pair(source), &[]),
            1 | 2 => {
                let mut body = words(&[index as u32, source.u8().into()]);
                for _ in 0..4 {
                    let address = match source.below(4) {
                        0 => USER + u64::from(source.u16()),
                        1 => USER + SIZE - u64::from(source.u8()),
                        2 => USER + HALF - u64::from(source.u8()),
                        _ => source.edge(),
                    };
                    body.extend(address.to_le_bytes());
                }
                self.say(SET_VRING_ADDR, &body, &[]);
            }
            3 => self.say(SET_VRING_BASE, &pair(source), &[]),
            4..=8 => {
                let request = [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR][source.below(3)];
                // The flag means that no descriptor is passed.
                let index = index & 0xff | u64::from(source.flag()) << 8;
                let count = [1, 1, 1, 0, 2, 40][source.below(6)];
                let fds: Vec<_> = (0..count).map(|_| odd(source, &self.frontend)).collect();
                self.say(request, &index.to_le_bytes(), &fds);
                if request == SET_VRING_KICK && index < 2 {
                    self.queues[index as usize].live = false;
                }
            }
            9 => self.say(SET_VRING_ENABLE, &pair(source), &[]),
            10 => self.say(SET_FEATURES, &source.edge().to_le_bytes(), &[]),
            11 => self.say(SET_PROTOCOL_FEATURES, &source.edge().to_le_bytes(), &[]),
            12 => self.say(SET_OWNER, &[], &[]),
            13 => self.say(RESET_OWNER, &[], &[]),
            14 => self.say(GET_QUEUE_NUM, &[], &[]),
            _ => self.say(GET_VRING_BASE, &pair(source), &[]),
        }
        self.need_reply = 0;
        self.frontend.reply();
    }

    /// A message with an arbitrary request, size and flags, and any descriptors.
    fn any_message(&mut self, source: &mut Source<'_>) {
        let request = match source.below(4) {
            0 => source.u32(),
            _ => source.below(48) as u32,
        };
        let flags = if source.flag() { source.u32() } else { 1 };
        let body = if source.below(16) == 15 {
            &[0; 5000][..]
        } else {
            source.short_bytes()
        };
        let mut bytes = message(request, flags, body);
        if source.flag() {
            let size = source.edge() as u32;
            bytes[8..12].copy_from_slice(&size.to_le_bytes());
        }
        let count = [0, 0, 1, 2, 8, 33, 64, 253][source.below(8)];
        let one = odd(source, &self.frontend);
        let fds = vec![one.as_fd(); count];
        self.frontend.send(&bytes, &fds);
        self.frontend.reply();
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        // The memory may be full or sealed.
        let _ = pwrite(&self.memory, bytes, offset);
    }

    /// A number in the memory, which may have been truncated.
    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let _ = self.memory.read_at(&mut bytes, offset);
        bytes
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + u64::from(index) * 16, &bytes);
    }

    /// Makes the chain that starts at `head` available on the queue for requests.
    fn available(&mut self, index: usize, head: u16) {
        let queue = &mut self.queues[index];
        let base = u64::from(queue.number) * QUEUE + AVAILABLE;
        let slot = base + 4 + u64::from(queue.next % RING) * 2;
        queue.next = queue.next.wrapping_add(1);
        let next = queue.next;
        self.write(slot, &head.to_le_bytes());
        self.write(base + 2, &next.to_le_bytes());
    }

    /// A request with the usual values.
    fn make_request(&mut self, slot: u16, opcode: u32, node: u64, body: &[u8]) {
        self.unique += 1;
        let mut bytes = words(&[40 + body.len() as u32, opcode]);
        bytes.extend(self.unique.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(body);
        let zeros = [0; 64];
        self.place(slot, &bytes, REPLY, &mut Source::new(&zeros));
    }

    /// A FUSE request from the input, in the slot's space.
    fn request(&mut self, source: &mut Source<'_>, slot: u16) {
        let opcode = match source.below(24) {
            0 => LOOKUP,
            1 => OPEN,
            2 => READ,
            3 => OPENDIR,
            4 => READDIR,
            5 => READDIRPLUS,
            6 => GETXATTR,
            7 => LISTXATTR,
            8 => LSEEK,
            9 => FORGET,
            10 => BATCH_FORGET,
            11 => RELEASE,
            12 => RELEASEDIR,
            13 => INIT,
            14 => source.edge() as u32,
            _ => source.below(56) as u32,
        };
        let node = match source.below(12) {
            0 => 1,
            index @ 1..=9 => pick(&self.nodes, index),
            10 => 1 + u64::from(source.u8()),
            _ => source.edge(),
        };
        let handle = match source.below(8) {
            index @ 0..=5 => pick(&self.handles, index),
            6 => source.u8().into(),
            _ => source.edge(),
        };
        let edge = |source: &mut Source<'_>, usual: u64| match source.below(4) {
            0..=2 => usual,
            _ => source.edge(),
        };
        let body = match opcode {
            _ if source.below(12) == 11 => source.short_bytes().to_vec(),
            LOOKUP => match source.below(13) {
                12 => source.short_bytes().to_vec(),
                index => NAMES[index].to_vec(),
            },
            OPEN | OPENDIR => words(&[edge(source, 0) as u32, 0]),
            READ | READDIR | READDIRPLUS => {
                let size = [0x700, 16, 0x2_0000, 1 << 20][source.below(4)];
                let mut body = handle.to_le_bytes().to_vec();
                body.extend(edge(source, 0).to_le_bytes());
                body.extend(words(&[edge(source, size) as u32, 0, 0, 0, 0, 0]));
                body
            }
            RELEASE | RELEASEDIR => {
                let mut body = handle.to_le_bytes().to_vec();
                body.extend([0; 16]);
                body
            }
            GETXATTR => {
                let mut body = words(&[edge(source, 0) as u32, 0]);
                body.extend(b"user.overlay.opaque\0");
                body
            }
            LISTXATTR => words(&[edge(source, 0) as u32, 0]),
            LSEEK => {
                let mut body = handle.to_le_bytes().to_vec();
                body.extend(edge(source, 0).to_le_bytes());
                body.extend(words(&[3 + edge(source, 0) as u32 % 3, 0]));
                body
            }
            FORGET => edge(source, 1).to_le_bytes().to_vec(),
            BATCH_FORGET => {
                let mut body = words(&[edge(source, 2) as u32, 0]);
                for index in 1..3 {
                    body.extend(pick(&self.nodes, index).to_le_bytes());
                    body.extend(edge(source, 1).to_le_bytes());
                }
                body
            }
            INIT => {
                let minor = edge(source, 36) as u32;
                words(&[7, minor, 1 << 20, source.u32()])
            }
            _ => source.short_bytes().to_vec(),
        };
        self.unique += 1;
        let len = edge(source, 40 + body.len() as u64) as u32;
        let mut bytes = words(&[len, opcode]);
        bytes.extend(self.unique.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(body);
        if source.below(16) == 15 {
            bytes.truncate(source.u8().into());
        }
        let room = match source.below(8) {
            0..=5 => REPLY,
            6 => source.u8().into(),
            _ => source.edge(),
        };
        self.place(slot, &bytes, room, source);
        if slot == 0 && matches!(opcode, LOOKUP | OPEN | OPENDIR | READ) {
            self.settle(1);
            let reply = REPLIES;
            let [length, error]: [u32; 2] =
                [0, 4].map(|at| u32::from_le_bytes(self.read(reply + at)));
            let first = u64::from_le_bytes(self.read(reply + 16));
            if error == 0 && length >= 24 {
                match opcode {
                    LOOKUP => self.nodes.push(first),
                    OPEN | OPENDIR => self.handles.push(first),
                    _ => {}
                }
            }
        }
    }

    /// Writes a request to memory, and a descriptor chain for it to the ring.
    fn place(&mut self, slot: u16, bytes: &[u8], room: u64, source: &mut Source<'_>) {
        let request = REQUESTS + u64::from(slot) * REQUEST;
        let reply = REPLIES + u64::from(slot) * REPLY;
        self.write(request, bytes);
        self.write(reply, &[0xff; 24]);
        let (request, reply) = (self.guest(request), self.guest(reply));
        // Up to three readable descriptors and up to four writable ones.
        let mut parts = Vec::new();
        let cut = source.u8() as usize;
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        if !head.is_empty() {
            parts.push((request, head.len() as u32, 0));
        }
        if !tail.is_empty() {
            parts.push((request + head.len() as u64, tail.len() as u32, 0));
        }
        let mut left = room as u32;
        let mut at = reply;
        for _ in 0..source.below(4) {
            let size = left.min(source.u8().into());
            parts.push((at, size, 2));
            at += u64::from(size);
            left -= size;
        }
        parts.push((at, left, 2));
        let queue = usize::from(source.below(16) != 15);
        let indirect = source.below(4) == 3;
        let base = u64::from(self.queues[queue].number) * QUEUE;
        let first = slot * CHAIN;
        let (table, start) = if indirect {
            (base + INDIRECT + u64::from(slot) * 0x100, 0)
        } else {
            (base, first)
        };
        let count = parts.len() as u16;
        for (index, (address, len, flags)) in (0..).zip(parts) {
            let is_last = index + 1 == count;
            let next = if is_last { 0 } else { start + index + 1 };
            self.descriptor(
                table,
                start + index,
                address,
                len,
                flags | u16::from(!is_last),
                next,
            );
        }
        if indirect {
            self.descriptor(base, first, self.guest(table), u32::from(count) * 16, 4, 0);
        }
        self.available(queue, first);
    }

    /// An invalid chain: loops, indirect tables, lengths and addresses at the limits.
    fn chain(&mut self, source: &mut Source<'_>) {
        let queue = 1 - source.below(2);
        let base = u64::from(self.queues[queue].number) * QUEUE;
        let table = if source.below(4) == 3 {
            base + INDIRECT
        } else {
            base
        };
        let first = source.below(RING.into()) as u16;
        for index in 0..=source.below(8) as u16 {
            let address = match source.below(8) {
                0 => self.guest(REQUESTS),
                1 => self.guest(REPLIES),
                2 => HALF - u64::from(source.u8()),
                3 => base + u64::from(source.u16()) % QUEUE,
                4 => base + INDIRECT,
                5 => u64::MAX - u64::from(source.u8()),
                _ => source.edge(),
            };
            let len = match source.below(4) {
                0 => 40,
                1 => u32::MAX - u32::from(source.u8()),
                2 => 16 * u32::from(source.u8()),
                _ => source.edge() as u32,
            };
            let next = match source.below(4) {
                0 => first + index + 1,
                1 => first,
                _ => source.u16(),
            };
            let flags = [1, 1, 0, 2, 3, 4, 5, 7][source.below(8)];
            self.descriptor(table, (first + index) % RING, address, len, flags, next);
        }
        self.available(queue, first);
        self.settle(queue);
    }

    /// Writes to arbitrary addresses, mostly to the rings.
    fn scribble(&mut self, source: &mut Source<'_>) {
        let queue = 1 - source.below(2);
        let base = u64::from(self.queues[queue].number) * QUEUE;
        match source.below(4) {
            // A jump of the available ring's index.
            0 => {
                let index = source.edge() as u16;
                self.queues[queue].next = index;
                self.write(base + AVAILABLE + 2, &index.to_le_bytes());
            }
            // The used ring's index, which belongs to the server.
            1 => self.write(base + USED + 2, &source.u16().to_le_bytes()),
            // Flags and the event index.
            2 => {
                self.write(base + AVAILABLE, &source.u16().to_le_bytes());
                let event = base + AVAILABLE + 4 + 2 * u64::from(RING);
                self.write(event, &source.u16().to_le_bytes());
            }
            _ => self.write(u64::from(source.u16()) % SIZE, source.short_bytes()),
        }
        self.settle(queue);
    }

    fn kick(&self, index: usize) {
        // The eventfd is never full.
        let _ = rustix::io::write(&self.queues[index].kick, &1_u64.to_ne_bytes());
    }

    /// Kicks twice and waits until the server has read both kicks. Then it has taken everything that was in the
    /// ring at the first kick.
    fn settle(&mut self, index: usize) {
        if !self.queues[index].live || self.frontend.over {
            return;
        }
        for _ in 0..2 {
            self.kick(index);
            let start = Instant::now();
            while is_ready(&self.queues[index].kick, PollFlags::IN, Duration::ZERO) {
                // The server does not listen.
                if start.elapsed() > self.frontend.patience {
                    self.queues[index].live = false;
                    return;
                }
                thread::sleep(Duration::from_micros(20));
            }
        }
        if is_ready(&self.queues[index].call, PollFlags::IN, Duration::ZERO) {
            // The eventfd is ready.
            let _ = rustix::io::read(&self.queues[index].call, &mut [0; 8]);
            self.answers += 1;
        }
    }
}

fn pick(known: &[u64], index: usize) -> u64 {
    let last = known.len().saturating_sub(index);
    known.get(last).or(known.last()).copied().unwrap_or(1)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
