//! The device: what it is like, what it answers, and what it does to the rings.
//!
//! It runs inside of this process, so that it may not do all that a device can: what was lent to
//! it and came back is freed memory, and to write there would end the fuzzer, not the client. So a
//! device either lies about which chains are done, and then answers all it takes at once; or it
//! answers late, and then names the right chains.

use crate::source::Source;
use bootshare::hal::Clock;
use bootshare_tests::{
    Answer, Backend, Chain, Device, Node, Opcode, Order, Quirks, Reply, Request, Reset,
    TestTransport, Tree, VirtualClock, When, dirent,
};
use std::{
    cell::{Cell, RefCell},
    ptr::with_exposed_provenance_mut,
    rc::Rc,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Size of the file `large` in bytes.
pub const LARGE: u64 = 20_000;

/// What the device shares; see `program` for the paths in it.
fn tree() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(|| {
        let link = |target: &str| Node::Link(target.as_bytes().to_vec());
        let tree = Tree::new()
            .with("file", Node::File(b"content of the file".to_vec()))
            .with("dir", Node::Dir)
            .with("link", link("file"))
            .with("large", Node::Pattern(LARGE))
            .with("absolute", link("/dir/../file"))
            .with("loop", link("loop"))
            .with("fifo", Node::Other(0o010_644))
            .with("many", Node::Dir)
            .with_in(3, "one", Node::File(b"1".to_vec()))
            .with_in(3, "two", Node::Dir)
            .with_in(3, "up", link("../dir/one"));
        // More than one READDIR gives.
        (0..40).fold(tree, |tree, n| {
            let name = [b'a' + n; 120];
            tree.with_in(9, name, Node::File(Vec::new()))
        })
    })
}

/// What a device is like.
#[derive(Clone, Debug)]
pub struct Plan {
    quirks: Quirks,
    /// It answers late, rather than lie about its rings.
    late: bool,
    scribbles: Vec<Scribble>,
    /// Its configuration is another each time it is read.
    config_noise: u8,
    /// Bits of the status that it sets for no reason.
    status_noise: u8,
    odd: bool,
}

/// Bytes that the device writes where it has no business to write any.
#[derive(Clone, Copy, Debug)]
struct Scribble {
    /// After so many looks and notifications.
    event: u32,
    queue: usize,
    area: Area,
    offset: u16,
    bytes: [u8; 4],
}

#[derive(Clone, Copy, Debug)]
enum Area {
    Used,
    Descriptors,
    Available,
}

impl Plan {
    pub fn read(source: &mut Source<'_>) -> Self {
        let mut quirks = Quirks::default();
        let oddities = source.u8();
        let odd = |bit: u8| oddities >> bit & 1 != 0;
        let way = source.u8();
        let late = way & 1 != 0;
        quirks.order = match way >> 1 & 3 {
            0 | 1 => Order::Asked,
            2 => Order::Reversed,
            _ => Order::Shuffled(way.into()),
        };
        if late {
            quirks.polls = way >> 3 & 1 != 0;
            quirks.reset = Reset::After(u32::from(way >> 4 & 7));
        }
        if odd(0) {
            quirks.features = source.edge();
        }
        quirks.accepts_features = !odd(1);
        if odd(2) {
            let count = source.below(4);
            quirks.queues = (0..count).map(|_| source.edge() as u32).collect();
        }
        if odd(3) {
            quirks.config = source.short_bytes().to_vec();
        }
        if odd(4) {
            quirks.generation_lasts = source.u8().into();
        }
        quirks.queues_in_use = odd(5);
        let config_noise = if odd(6) { source.u8() } else { 0 };
        let status_noise = if odd(7) { source.u8() } else { 0 };
        let scribbles = (0..source.below(5)).map(|_| Scribble {
            event: u32::from(source.u16()) % 1024,
            queue: source.below(2),
            area: [Area::Used, Area::Descriptors, Area::Available][source.below(3)],
            offset: source.u16(),
            bytes: source.u32().to_le_bytes(),
        });
        let scribbles: Vec<_> = scribbles.collect();
        Self {
            odd: oddities != 0 || !scribbles.is_empty(),
            scribbles: if late { Vec::new() } else { scribbles },
            quirks,
            late,
            config_noise,
            status_noise,
        }
    }

    /// The device, which does with each request what `script` says.
    pub fn device(&self, script: &[u8]) -> (Device, Arc<Hostile>) {
        let hostile = Arc::new(Hostile {
            script: Mutex::new((script.to_vec(), 0)),
            late: self.late,
            honest: AtomicBool::new(!self.odd),
        });
        let device = Device::with_quirks(Arc::clone(&hostile), self.quirks.clone());
        (device, hostile)
    }
}

/// A server that follows a script.
#[derive(Debug)]
pub struct Hostile {
    /// The script, and how far it was followed.
    script: Mutex<(Vec<u8>, usize)>,
    late: bool,
    honest: AtomicBool,
}

impl Hostile {
    /// Whether the device has done nothing yet that an honest one would not do.
    pub fn was_honest(&self) -> bool {
        self.honest.load(Ordering::Relaxed)
    }
}

impl Backend for Hostile {
    fn answer(&self, chain: &Chain, request: &Request) -> Answer {
        let mut reply = tree().reply(request);
        let mut script = self.script.lock().expect("no panic on the way");
        let (bytes, at) = &mut *script;
        let mut source = Source::new(&bytes[*at..]);
        // Most replies are good ones, and several lies may be in one.
        for _ in 0..3 {
            let directive = source.u8();
            if directive & 0x7f != 0 {
                self.honest.store(false, Ordering::Relaxed);
                reply = spoil(&mut source, directive & 0x7f, self.late, request, reply);
            }
            if directive < 0x80 {
                break;
            }
        }
        *at = bytes.len() - source.left();
        let Reply { bytes, mut answer } = reply;
        if answer.when == When::Now {
            chain.write(&bytes);
        } else {
            answer.bytes = Some(bytes);
        }
        answer
    }
}

/// One lie.
fn spoil(
    source: &mut Source<'_>,
    lie: u8,
    late: bool,
    request: &Request,
    mut reply: Reply,
) -> Reply {
    match lie % 14 {
        0 => {
            let bytes = source.u64().to_le_bytes();
            let width = [1, 2, 4, 8][source.below(4)];
            let at = usize::from(source.u8()) * width;
            if at + width <= reply.bytes.len() {
                reply = reply.patch(at, &bytes[..width]);
            }
            reply
        }
        1 => header(reply, 0, &(source.edge() as u32).to_le_bytes()),
        2 => header(reply, 4, &(source.edge() as u32).to_le_bytes()),
        3 => header(reply, 8, &source.edge().to_le_bytes()),
        4 => {
            let size = usize::from(source.u16()) % (reply.bytes.len() + 1);
            reply.bytes.truncate(size);
            reply.answer.used = size as u32;
            header(reply, 0, &(size as u32).to_le_bytes())
        }
        5 => reply.used(source.edge() as u32),
        6 => Reply::error(request, i32::from(source.u8())),
        7 => Reply::ok(request, source.short_bytes()),
        8 => {
            let mut entries = Vec::new();
            for _ in 0..source.below(8) {
                let (offset, file_type) = (source.edge(), source.u8());
                entries.extend(dirent(5, offset, file_type.into(), source.short_bytes()));
            }
            entries.truncate(request.size() as usize);
            Reply::ok(request, entries.as_slice())
        }
        9 => attributes(source, request, reply),
        10 => reply.never(),
        11 if late => reply.after(source.u8().into()),
        12 if late => reply.after(1),
        11 => reply.id(source.edge() as u32),
        12 => reply.times(source.below(4) as u32),
        _ if late => reply.after(2),
        _ => reply.jump(source.u16()),
    }
}

fn header(reply: Reply, at: usize, bytes: &[u8]) -> Reply {
    if at + bytes.len() <= reply.bytes.len() {
        reply.patch(at, bytes)
    } else {
        reply
    }
}

/// Another node or other attributes, where the reply has some.
fn attributes(source: &mut Source<'_>, request: &Request, mut reply: Reply) -> Reply {
    const MODES: [u32; 8] = [
        0o100_644, 0o040_755, 0o120_777, 0o010_644, 0o020_644, 0o060_644, 0o140_755, 0o170_000,
    ];
    let start = match request.opcode {
        Opcode::Lookup => 16 + 40,
        Opcode::GetAttr => 16 + 16,
        _ => return reply,
    };
    let what = source.u8();
    if what & 1 != 0 && request.opcode == Opcode::Lookup {
        reply = header(reply, 16, &source.edge().to_le_bytes());
    }
    if what & 2 != 0 {
        let mode = MODES[source.below(MODES.len())];
        reply = header(reply, start + 60, &mode.to_le_bytes());
    }
    if what & 4 != 0 {
        reply = header(reply, start + 8, &source.edge().to_le_bytes());
    }
    if what & 8 != 0 {
        reply = header(reply, start + 52, &source.u32().to_le_bytes());
    }
    reply
}

/// Where one queue is.
#[derive(Clone, Copy, Debug)]
struct Place {
    size: u64,
    descriptors: PhysAddr,
    available: PhysAddr,
    used: PhysAddr,
}

/// Where the rings are, and what is still to be done to them.
#[derive(Debug, Default)]
pub struct Rings {
    scribbles: RefCell<Vec<Scribble>>,
    events: Cell<u32>,
    places: RefCell<[Option<Place>; 2]>,
    /// The device does not look at its rings any more: it wrote nonsense to them.
    deaf: Cell<bool>,
}

impl Rings {
    fn event(&self) {
        let now = self.events.get();
        self.events.set(now + 1);
        // The longest program with the slowest answers comes to a quarter of this.
        assert!(now < 1 << 22, "the client waits for ever");
        let mut scribbles = self.scribbles.borrow_mut();
        if scribbles.is_empty() {
            return;
        }
        let places = self.places.borrow();
        scribbles.retain(|scribble| {
            let due = scribble.event <= now;
            if let (true, Some(place)) = (due, places[scribble.queue]) {
                let (start, bytes) = match scribble.area {
                    Area::Used => (place.used, 4 + 8 * place.size),
                    Area::Descriptors => (place.descriptors, 16 * place.size),
                    Area::Available => (place.available, 4 + 2 * place.size),
                };
                self.deaf.set(true);
                let at = start + u64::from(scribble.offset) % (bytes - 3);
                let to = with_exposed_provenance_mut::<[u8; 4]>(at as usize);
                // SAFETY: the driver shared this area with the device and frees it after a reset
                // only, when `places` forgets it. The four bytes lie in it.
                unsafe { to.write_unaligned(scribble.bytes) };
            }
            !due
        });
    }
}

/// Virtual time, in which the device works.
#[derive(Debug)]
pub struct HostileClock {
    inner: VirtualClock,
    rings: Rc<Rings>,
}

impl HostileClock {
    pub fn new(device: &Device, plan: &Plan) -> Self {
        let rings = Rings {
            scribbles: RefCell::new(plan.scribbles.clone()),
            ..Rings::default()
        };
        Self {
            inner: VirtualClock::new(device),
            rings: Rc::new(rings),
        }
    }

    pub fn rings(&self) -> Rc<Rings> {
        Rc::clone(&self.rings)
    }
}

impl Clock for HostileClock {
    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn relax(&self) {
        self.rings.event();
        self.inner.relax();
    }

    fn stop(&self, why: &str) -> ! {
        self.inner.stop(why)
    }
}

/// The transport, through which some of the noise comes.
#[derive(Debug)]
pub struct HostileTransport {
    inner: TestTransport,
    rings: Rc<Rings>,
    config_noise: u8,
    config_reads: Cell<u8>,
    status_noise: DeviceStatus,
}

impl HostileTransport {
    pub fn new(device: &Device, plan: &Plan, rings: Rc<Rings>) -> Self {
        Self {
            inner: device.transport(),
            rings,
            config_noise: plan.config_noise,
            config_reads: Cell::new(0),
            status_noise: DeviceStatus::from_bits_retain(plan.status_noise.into()),
        }
    }
}

impl Transport for HostileTransport {
    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.inner.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.rings.event();
        if !self.rings.deaf.get() {
            self.inner.notify(queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        let status = self.inner.get_status();
        // A device that never confirms its reset stops the machine, which is right, and an end.
        if status.is_empty() {
            self.rings.places.take();
            self.rings.deaf.set(false);
            return status;
        }
        // Whether it takes the features is another oddity.
        status | (self.status_noise - DeviceStatus::FEATURES_OK)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.inner.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.inner
            .queue_set(queue, size, descriptors, driver_area, device_area);
        self.rings.places.borrow_mut()[usize::from(queue)] = Some(Place {
            size: size.into(),
            descriptors,
            available: driver_area,
            used: device_area,
        });
    }

    fn queue_unset(&mut self, queue: u16) {
        self.rings.places.borrow_mut()[usize::from(queue)] = None;
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value: T = self.inner.read_config_space(offset)?;
        let reads = self.config_reads.get().wrapping_add(self.config_noise);
        self.config_reads.set(reads);
        for byte in value.as_mut_bytes() {
            *byte ^= reads;
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        self.inner.write_config_space(offset, value)
    }
}
