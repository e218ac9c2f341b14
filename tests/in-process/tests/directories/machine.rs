//! A machine for the boot flow in ordinary memory: its share is a tree in memory, and its hand-off ends the run and
//! keeps what the kernel would have been given.

use bootshare::{
    boot::memory::{MemoryKind, MemoryMap, MemoryRegion, Range},
    loader::{Architecture, Board, ExitStatus, HandOff, run},
    transport::{Address, Device as Found, DeviceList},
};
use bootshare_test_device::{
    Device, Opcode, TestHal, TestTransport, Tree,
    raw::{Quirks, RealClock},
};
use dtoolkit::{Node, Property, fdt::Fdt};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    cell::RefCell,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The machine's memory in bytes: enough for a small kernel and the lists of the boot flow.
const MEMORY: usize = 64 << 20;

/// How a boot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A kernel was started, with this command line and initrd, on arm64 on what its device tree says.
    Started {
        told: String,
        initrd: Vec<u8>,
        compatible: String,
    },
    /// Nothing was started.
    Failed,
    /// Commands were run.
    Done,
}

/// A finished boot.
pub struct Boot {
    pub end: End,
    /// The output on the console.
    pub lines: Vec<String>,
    /// The requests by kind, without INIT and DESTROY.
    pub requests: BTreeMap<Opcode, usize>,
}

impl Boot {
    /// The first line with `part` in it.
    #[track_caller]
    pub fn line(&self, part: &str) -> &str {
        let found = self.lines.iter().find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no line has {part:?}: {:#?}", self.lines))
    }

    #[track_caller]
    pub fn lacks(&self, part: &str) {
        let found = self.lines.iter().find(|line| line.contains(part));
        assert_eq!(found, None);
    }

    /// The output of commands.
    pub fn output(&self) -> Vec<&str> {
        let lines = self.lines.iter().map(String::as_str);
        lines.filter(|l| !l.starts_with("bootshare: ")).collect()
    }

    /// The kernel's command line.
    #[track_caller]
    pub fn told(&self) -> &str {
        match &self.end {
            End::Started { told, .. } => told,
            end => panic!("{end:?}: {:#?}", self.lines),
        }
    }

    /// `compatible` of the root of the kernel's device tree.
    #[track_caller]
    pub fn compatible(&self) -> &str {
        match &self.end {
            End::Started { compatible, .. } => compatible,
            end => panic!("{end:?}: {:#?}", self.lines),
        }
    }

    /// The content of the kernel's initrd.
    #[track_caller]
    pub fn initrd(&self) -> &[u8] {
        match &self.end {
            End::Started { initrd, .. } => initrd,
            end => panic!("{end:?}: {:#?}", self.lines),
        }
    }
}

/// Boots `trees`, each a share, on a machine of that architecture, with these options.
#[track_caller]
pub fn boot(architecture: Architecture, trees: &[Tree], options: &str) -> Boot {
    let devices = trees.iter().cloned().map(Device::new);
    boot_from(architecture, devices.collect(), options)
}

/// As [`boot`], from devices.
#[track_caller]
pub fn boot_from(architecture: Architecture, devices: Vec<Device>, options: &str) -> Boot {
    // Log level, logger and the number of errors are global to the process.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (device, number) in devices.iter().zip(1..) {
        let mut config = [0; 40];
        let tag = format!("share{number}");
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[36] = 1;
        device.quirk(|quirks: &mut Quirks| quirks.config = config.to_vec());
    }
    CONSOLE.take();
    let layout = Layout::from_size_align(MEMORY, 2 << 20).unwrap();
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    assert!(!memory.is_null());
    let machine = Parts {
        devices: devices.clone(),
        memory: Range::with_size(memory.expose_provenance() as u64, MEMORY as u64),
        command_line: options.as_bytes().to_vec().leak(),
        clock: RealClock::default(),
    };
    let end = catch_unwind(AssertUnwindSafe(|| match architecture {
        // SAFETY: the memory was allocated above, and nothing else uses it.
        Architecture::X86_64 => unsafe { run(Machine::<true>::of(machine)) },
        // SAFETY: as above.
        Architecture::Aarch64 => unsafe { run(Machine::<false>::of(machine)) },
    }));
    let end = match end.unwrap_err().downcast::<End>() {
        Ok(end) => *end,
        Err(panic) => resume_unwind(panic),
    };
    // SAFETY: it was allocated above with this layout, and the boot flow has ended.
    unsafe { dealloc(memory, layout) };
    let mut requests = BTreeMap::new();
    for device in &devices {
        device.log(|log| {
            assert_eq!(log.problems(), Vec::<String>::new());
            for (opcode, count) in log.counts() {
                *requests.entry(opcode).or_default() += count;
            }
        });
    }
    requests.retain(|opcode, _| !matches!(opcode, Opcode::Init | Opcode::Destroy));
    let text = String::from_utf8(CONSOLE.take()).unwrap();
    Boot {
        end,
        lines: text.lines().map(str::to_owned).collect(),
        requests,
    }
}

thread_local! {
    /// What was written to the console.
    static CONSOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Parts {
    devices: Vec<Device>,
    memory: Range,
    command_line: &'static [u8],
    clock: RealClock,
}

struct Machine<const X86: bool> {
    parts: Parts,
    map: MemoryMap,
    tree: &'static [u8],
}

impl<const X86: bool> Machine<X86> {
    fn of(parts: Parts) -> Self {
        let mut map = MemoryMap::new();
        let (range, kind) = (parts.memory, MemoryKind::Usable);
        map.push(MemoryRegion { range, kind }).unwrap();
        let tree = Vec::leak(device_tree(&["linux,dummy-virt"]));
        Self { parts, map, tree }
    }
}

impl<const X86: bool> Board for Machine<X86> {
    type Hal = TestHal;
    type Clock = RealClock;
    type Transport = TestTransport;

    const ARCHITECTURE: Architecture = if X86 {
        Architecture::X86_64
    } else {
        Architecture::Aarch64
    };

    fn clock(&self) -> RealClock {
        self.parts.clock
    }

    fn entered(&self) -> Duration {
        Duration::ZERO
    }

    fn write_console(text: &[u8]) {
        CONSOLE.with_borrow_mut(|console| console.extend_from_slice(text));
    }

    fn read_console() -> Option<u8> {
        None
    }

    fn command_line(&self) -> &'static [u8] {
        self.parts.command_line
    }

    fn memory_map(&self) -> &MemoryMap {
        &self.map
    }

    fn occupied(&self) -> heapless::Vec<Range, 8> {
        heapless::Vec::new()
    }

    fn mapped_end(&self) -> u64 {
        self.parts.memory.end
    }

    fn device_tree(&self) -> Option<&'static [u8]> {
        (!X86).then_some(self.tree)
    }

    fn find_devices(&mut self) -> DeviceList<TestTransport> {
        let devices = self.parts.devices.iter().zip(0..);
        devices
            .map(|(device, number)| Found {
                address: Address::Mmio(number),
                transport: Ok(device.transport()),
            })
            .collect()
    }

    unsafe fn start(&mut self, hand_off: &HandOff) -> ! {
        let argument = bytes(Range::with_size(hand_off.argument, 0x1000));
        resume_unwind(Box::new(if X86 {
            zero_page(argument)
        } else {
            let size = u32::from_be_bytes(argument[4..8].try_into().unwrap());
            chosen(bytes(Range::with_size(hand_off.argument, size.into())))
        }))
    }

    fn exit(status: ExitStatus) -> ! {
        resume_unwind(Box::new(match status {
            ExitStatus::Success => End::Done,
            ExitStatus::Failure => End::Failed,
        }))
    }

    fn power_off() -> ! {
        Self::exit(ExitStatus::Success)
    }

    fn reset() -> ! {
        Self::exit(ExitStatus::Success)
    }
}

/// Bytes of the machine's memory.
fn bytes<'m>(range: Range) -> &'m [u8] {
    let start = std::ptr::with_exposed_provenance(range.start as usize);
    // SAFETY: the boot flow has put something there, in memory that lives until the boot was looked at.
    unsafe { std::slice::from_raw_parts(start, range.size() as usize) }
}

/// Reads a zero page (boot.rst and zero-page.rst).
fn zero_page(page: &[u8]) -> End {
    let number = |low: usize, high: usize| {
        let half = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        u64::from(half(low)) | u64::from(half(high)) << 32
    };
    let line = bytes(Range::with_size(number(0x228, 0xc8), 4096));
    let end = line.iter().position(|&byte| byte == 0).unwrap();
    let initrd = Range::with_size(number(0x218, 0xc0), number(0x21c, 0xc4));
    End::Started {
        told: String::from_utf8(line[..end].to_vec()).unwrap(),
        initrd: match initrd.size() {
            0 => Vec::new(),
            _ => bytes(initrd).to_vec(),
        },
        compatible: String::new(),
    }
}

/// Reads `/chosen` of a device tree.
fn chosen(blob: &[u8]) -> End {
    let tree = Fdt::new(blob).unwrap();
    let chosen = tree.find_node("/chosen").unwrap();
    let value = |name| chosen.property(name).map(|found| found.value().to_vec());
    let number = |name| Some(u64::from_be_bytes(value(name)?.try_into().unwrap()));
    let told = value("bootargs").unwrap();
    let told = told.strip_suffix(b"\0").unwrap().to_vec();
    let (start, end) = (number("linux,initrd-start"), number("linux,initrd-end"));
    let initrd = start
        .zip(end)
        .map(|(start, end)| bytes(Range { start, end }));
    End::Started {
        told: String::from_utf8(told).unwrap(),
        initrd: initrd.unwrap_or_default().to_vec(),
        compatible: {
            let value = tree.root().property("compatible").unwrap();
            String::from_utf8(value.value().to_vec()).unwrap()
        },
    }
}

/// A device tree of a root that is `compatible` with these, and nothing else.
pub fn device_tree(compatible: &[&str]) -> Vec<u8> {
    let value: String = compatible.iter().map(|name| format!("{name}\0")).collect();
    let padded = value.len().next_multiple_of(4);
    let mut structure = Vec::new();
    let number = |bytes: &mut Vec<u8>, number: usize| {
        bytes.extend((number as u32).to_be_bytes());
    };
    // FDT_BEGIN_NODE, FDT_PROP, FDT_END_NODE, FDT_END (Devicetree Specification, 5.4.1).
    for word in [1, 0, 3, value.len(), 0] {
        number(&mut structure, word);
    }
    structure.extend(value.as_bytes());
    structure.resize(structure.len() + padded - value.len(), 0);
    number(&mut structure, 2);
    number(&mut structure, 9);
    let strings = b"compatible\0";
    let mut blob = Vec::new();
    let (reservations, start) = (40, 56);
    let end = start + structure.len();
    for word in [
        0xd00d_feed,
        end + strings.len(),
        start,
        end,
        reservations,
        17,
        16,
        0,
        strings.len(),
        structure.len(),
    ] {
        number(&mut blob, word);
    }
    blob.resize(start, 0);
    blob.extend(structure);
    blob.extend(strings);
    blob
}

/// A kernel that consists of a valid header only.
pub fn kernel(architecture: Architecture) -> Vec<u8> {
    let mut kernel = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    match architecture {
        Architecture::Aarch64 => {
            // booting.rst, section 4: image_size and the magic number.
            put(16, &4096_u64.to_le_bytes());
            put(56, b"ARM\x64");
        }
        Architecture::X86_64 => {
            // boot.rst, "The Real-Mode Kernel Header".
            put(0x1f1, &[1]);
            put(0x1f4, &16_u32.to_le_bytes());
            put(0x1fe, &[0x55, 0xaa]);
            put(0x200, &[0xeb, 0x66]);
            put(0x202, b"HdrS");
            put(0x206, &[0x0f, 0x02]);
            put(0x211, &[1]);
            put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
            put(0x230, &0x1000_u32.to_le_bytes());
            put(0x234, &[1, 12]);
            put(0x236, &3_u16.to_le_bytes());
            put(0x238, &2047_u32.to_le_bytes());
            put(0x260, &0x2000_u32.to_le_bytes());
        }
    }
    kernel
}

/// An EFI program with these sections (PE/COFF, "Section Table").
pub fn uki(architecture: Architecture, sections: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let machine: u16 = match architecture {
        Architecture::X86_64 => 0x8664,
        Architecture::Aarch64 => 0xaa64,
    };
    let mut image = vec![0; (0x188 + 40 * sections.len()).max(0x400)];
    let mut place = image.len();
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x84, &machine.to_le_bytes());
    put(0x86, &(sections.len() as u16).to_le_bytes());
    put(0x94, &0xf0_u16.to_le_bytes());
    put(0x98, &0x20b_u16.to_le_bytes());
    for (index, (name, content)) in sections.iter().enumerate() {
        let at = 0x188 + 40 * index;
        let size = (content.len() as u32).to_le_bytes();
        put(at, name.as_bytes());
        put(at + 8, &size);
        put(at + 16, &size);
        put(at + 20, &(place as u32).to_le_bytes());
        place += content.len();
    }
    let contents = sections.iter().flat_map(|(_, content)| content);
    image.extend(contents);
    image
}
