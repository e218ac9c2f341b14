//! The device: its properties, its replies, and its changes to the rings.
//!
//! It runs in this process, so it may not do everything that a real device can do. Memory that was lent to it and
//! returned is freed, and a write there would crash the fuzzer, not show a fault of the client. Therefore a device
//! has one of two modes: it lies about completed chains and answers everything at once, or it answers late and
//! names the right chains.

use crate::source::Source;
use bootshare_test_device::{
    Device, Opcode, Reply, Request, Tree, VirtualClock,
    raw::{Area, Backend, Chain, Order, Quirks, Reset, Scribble, dirent},
};
use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicBool, Ordering},
};

/// The size of the file `large` in bytes.
pub const LARGE: u64 = 20_000;

/// The content of the file `large`.
pub fn large() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| (0..LARGE).map(Tree::pattern).collect())
}

/// The shared tree; `program` has its paths.
fn tree() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(|| {
        let tree = Tree::new()
            .file("file", "content of the file")
            .dir("dir")
            .link("link", "file")
            .file("large", large())
            .link("absolute", "/dir/../file")
            .link("loop", "loop")
            .special("fifo", 0o010_644)
            .dir("many")
            .file("dir/one", "1")
            .dir("dir/two")
            .link("dir/up", "../dir/one");
        // More entries than fit in one READDIR reply.
        (0..40).fold(tree, |tree, n| {
            let name = [b'a' + n; 120];
            tree.file([b"many/", &name[..]].concat(), "")
        })
    })
}

/// The properties of a device.
#[derive(Clone, Debug)]
pub struct Plan {
    quirks: Quirks,
    /// Whether it answers late, instead of lying about its rings.
    late: bool,
    odd: bool,
}

impl Plan {
    pub fn read(source: &mut Source<'_>) -> Self {
        let mut quirks = Quirks {
            // The longest program with the slowest replies takes a quarter of this.
            patience: 1 << 22,
            ..Quirks::default()
        };
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
        } else {
            // Sometimes more request queues than the client uses.
            let queues = 1 + u32::from(way >> 4 & 7);
            quirks.queues.resize(1 + queues as usize, 128);
            quirks.config = Quirks::config_of(b"test", queues);
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
        if odd(6) {
            quirks.config_noise = source.u8();
        }
        if odd(7) {
            quirks.status_noise = source.u8().into();
        }
        let scribbles = (0..source.below(5)).map(|_| Scribble {
            event: u64::from(source.u16()) % 1024,
            queue: source.below(2) as u16,
            area: [Area::Used, Area::Descriptors, Area::Available][source.below(3)],
            offset: source.u16(),
            bytes: source.u32().to_le_bytes(),
        });
        let scribbles: Vec<_> = scribbles.collect();
        let odd = oddities != 0 || !scribbles.is_empty();
        if !late {
            quirks.scribbles = scribbles;
        }
        Self { quirks, late, odd }
    }

    /// A device that treats each request according to `script`.
    pub fn device(&self, script: &[u8]) -> (Device, Arc<Hostile>) {
        let hostile = Arc::new(Hostile {
            script: Mutex::new((script.to_vec(), 0)),
            late: self.late,
            honest: AtomicBool::new(!self.odd),
        });
        let device = Device::with_backend(Arc::clone(&hostile));
        device.quirk(|quirks| *quirks = self.quirks.clone());
        (device, hostile)
    }
}

/// A server that follows a script.
#[derive(Debug)]
pub struct Hostile {
    /// The script, and the number of bytes that were used.
    script: Mutex<(Vec<u8>, usize)>,
    late: bool,
    honest: AtomicBool,
}

impl Hostile {
    /// Whether the device has done only what a correct device would do.
    pub fn was_honest(&self) -> bool {
        self.honest.load(Ordering::Relaxed)
    }
}

impl Backend for Hostile {
    fn answer(&self, _chain: &Chain, request: &Request) -> Reply {
        let mut reply = tree().good_reply(request);
        let mut script = self.script.lock().expect("no thread panicked");
        let (bytes, at) = &mut *script;
        let mut source = Source::new(&bytes[*at..]);
        // Most replies are good; some have several lies.
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
        reply
    }
}

/// Applies one lie to a reply.
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
            if at + width <= reply.size() {
                reply = reply.patch(at, &bytes[..width]);
            }
            reply
        }
        1 => header(reply, 0, &(source.edge() as u32).to_le_bytes()),
        2 => header(reply, 4, &(source.edge() as u32).to_le_bytes()),
        3 => header(reply, 8, &source.edge().to_le_bytes()),
        4 => {
            let size = usize::from(source.u16()) % (reply.size() + 1);
            let reply = reply.cut(size).used(size as u32);
            header(reply, 0, &(size as u32).to_le_bytes())
        }
        5 => reply.used(source.edge() as u32),
        6 => Reply::error_number(request, i32::from(source.u8())),
        7 => Reply::ok(request, source.short_bytes()),
        8 => {
            let mut entries = Vec::new();
            for _ in 0..source.below(8) {
                let (offset, file_type) = (source.edge(), source.u8());
                entries.extend(dirent(5, offset, file_type.into(), source.short_bytes()));
            }
            entries.truncate(request.size() as usize);
            Reply::ok(request, &entries)
        }
        9 => attributes(source, request, reply),
        10 => reply.never(),
        11 if late => reply.after(VirtualClock::TICK * source.u8().into()),
        12 if late => reply.after(VirtualClock::TICK),
        11 => reply.id(source.edge() as u32),
        12 => reply.times(source.below(4) as u32),
        _ if late => reply.after(2 * VirtualClock::TICK),
        _ => reply.jump(source.u16()),
    }
}

fn header(reply: Reply, at: usize, bytes: &[u8]) -> Reply {
    if at + bytes.len() <= reply.size() {
        reply.patch(at, bytes)
    } else {
        reply
    }
}

/// Changes the node or attributes of a reply that has them.
fn attributes(source: &mut Source<'_>, request: &Request, mut reply: Reply) -> Reply {
    const MODES: [u32; 8] = [
        0o100_644, 0o040_755, 0o120_777, 0o010_644, 0o020_644, 0o060_644, 0o140_755, 0o170_000,
    ];
    let start = match request.opcode() {
        Opcode::Lookup => 16 + 40,
        Opcode::GetAttr => 16 + 16,
        _ => return reply,
    };
    let what = source.u8();
    if what & 1 != 0 && request.opcode() == Opcode::Lookup {
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
