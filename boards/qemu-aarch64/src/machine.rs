//! The implementation of the boot flow's `Board` for `virt`.

use crate::{
    clock::Clock,
    console, counter, cpu, exit, fw_cfg,
    mapping::{self, Image, MAPPED_END, RAM_START, Table},
    pvpanic, rest,
    tree::{ECAM_BUS_SIZE, PciHost, Tree},
};
use bootshare::{
    boot::memory::{MemoryMap, Range},
    hal::IdentityHal,
    loader::{Architecture, Board, ExitStatus, HandOff},
    transport::{
        DeviceList, FsTransport,
        pci::{self, Ecam},
    },
};
use bootshare_qemu::slots;
use core::{
    ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut},
    slice,
    time::Duration,
};
use heapless::Vec;
use spin::Once;

/// The magic number of a device tree blob, big-endian; the blob's size follows.
const TREE_MAGIC: [u8; 4] = 0xd00d_feed_u32.to_be_bytes();
/// The end of the RAM in which the device tree may be, which `start` maps.
const FIRST_MAPPED_END: u64 = 2 << 30;

/// The greatest size of a command line from fw_cfg in bytes.
const MAX_COMMAND_LINE: usize = 4096;

/// The ends of the image's parts, from the linker script; only the addresses are used.
mod symbols {
    use core::cell::UnsafeCell;

    /// A symbol without content: only its address is used.
    #[repr(C)]
    pub struct Symbol(UnsafeCell<[u8; 0]>);
    // SAFETY: it has no content.
    unsafe impl Sync for Symbol {}

    impl Symbol {
        pub fn address(&self) -> u64 {
            (&raw const *self).addr() as u64
        }
    }

    unsafe extern "C" {
        pub safe static __image_start: Symbol;
        pub safe static __rodata_start: Symbol;
        pub safe static __data_start: Symbol;
        pub safe static __stack_guard: Symbol;
        pub safe static __stack_start: Symbol;
        pub safe static __image_end: Symbol;
    }
}

unsafe extern "C" {
    // The translation tables of `start`: 512 words each, which the processor only reads.
    safe static bootshare_level1: Table;
    safe static bootshare_level2: Table;
    safe static bootshare_level3: Table;
}

/// QEMU's `virt` machine.
pub struct Virt {
    /// The timer's count at the first instruction.
    entered: u64,
    tree: Tree<'static>,
    command_line: &'static [u8],
    memory: MemoryMap,
    /// Whether the devices were searched: a second search would create a second transport for each.
    searched: bool,
    pci: Result<Option<PciHost>, &'static str>,
}

/// Called by the entry code. `x0` is as it was on entry; `entered` is the timer's count at the first
/// instruction.
pub extern "C" fn main(x0: u64, entered: u64) -> ! {
    // SAFETY: called once, from the entry code, with `x0` as it was on entry.
    match unsafe { Virt::new(x0, entered) } {
        // SAFETY: the board's memory map, the occupied and the mapped ranges come from the device
        // tree and the linker, and `mapping` made the map accordingly; this runs once.
        Ok(board) => unsafe { bootshare::loader::run(board) },
        Err(why) => {
            console::error(format_args!("{why}"));
            exit::exit(ExitStatus::Failure)
        }
    }
}

impl Virt {
    /// Reads the device tree and maps the devices in it.
    ///
    /// # Errors
    ///
    /// What is wrong with the device tree.
    ///
    /// # Safety
    ///
    /// Must be called once, with the value of `x0` on entry.
    unsafe fn new(x0: u64, entered: u64) -> Result<Self, &'static str> {
        // SAFETY: `x0` comes from the platform, and nothing writes to the tree.
        let tree = unsafe { find_tree(x0) }?;
        let tree = Tree::read(tree)?;
        if let Some(registers) = tree.console() {
            console::use_registers(registers);
        }
        if let Some(conduit) = tree.psci_conduit() {
            exit::use_conduit(conduit);
        }
        if cpu::counter_frequency_hz() == 0 {
            return Err("the timer's frequency is not set (CNTFRQ_EL0 is 0)");
        }
        let memory = tree.memory_map()?;
        let pci = tree.pci_host();

        let image = Image {
            text: between(&symbols::__image_start, &symbols::__rodata_start),
            constants: between(&symbols::__rodata_start, &symbols::__data_start),
            stack_guard: stack_guard(),
        };
        let ecam = pci.iter().flatten().map(|host| host.ecam).next();
        mapping::refine(
            [&bootshare_level1, &bootshare_level2, &bootshare_level3],
            &memory,
            ecam.as_slice(),
            image,
        );
        // SAFETY: the tables map the image, the RAM, the device tree's place, and the devices of
        // the first GiB. Nothing else is in use.
        unsafe { cpu::tables_changed() };
        if let Ok(Some(host)) = &pci
            && is_device(host.ecam)
            && is_device(host.window)
        {
            // SAFETY: both are mapped as device memory, for ever.
            unsafe { pvpanic::use_bus(host.clone()) };
        }
        if let Some(controller) = tree.interrupt_controller() {
            // SAFETY: the device tree describes the device, and this runs once.
            unsafe { rest::use_controller(controller) };
        }
        let command_line = match tree.command_line() {
            [] => command_line_from_fw_cfg(&tree)?,
            line => line,
        };
        Ok(Self {
            entered,
            tree,
            command_line,
            memory,
            searched: false,
            pci,
        })
    }

    fn find_mmio(&self, found: &mut DeviceList) {
        for slot in self.tree.mmio_slots() {
            if !slot.start.is_multiple_of(4) || !is_device(slot) {
                log::warn!("virtio-mmio slot at {slot:?} is not in device memory: not looked at");
                continue;
            }
            // SAFETY: aligned device memory, mapped for ever, which the device tree describes as a
            // virtio-mmio register block. `find_devices` runs this once for each slot in the tree.
            if !unsafe { slots::probe(slot.start, slot.size() as usize, found) } {
                return;
            }
        }
    }

    fn find_pci(&self, found: &mut DeviceList) {
        let (ecam, window) = match &self.pci {
            Ok(Some(PciHost { ecam, window })) => (*ecam, *window),
            Ok(None) => return,
            Err(why) => {
                log::warn!("the PCI host bridge is not used: {why}");
                return;
            }
        };
        if !is_device(ecam) || !is_device(window) {
            log::warn!(
                "the PCI host bridge is not used: {ecam:?} and {window:?} are not both in device \
                 memory"
            );
            return;
        }
        // SAFETY: mapped as device memory for ever; the device tree describes it as configuration
        // space. `find_devices` runs this once, so it is the only user.
        let mut configuration = unsafe { Ecam::new(device_pointer(ecam), ecam.size() as usize) };
        let accept = |address: u64, size: u64| {
            let bar = Range::with_size(address, size);
            bar.start >= window.start && bar.end <= window.end && !bar.overlaps(&ecam)
        };
        let last_bus = (ecam.size() / ECAM_BUS_SIZE).saturating_sub(1);
        let last_bus = u8::try_from(last_bus).unwrap_or(u8::MAX);
        pci::set_up(&mut configuration, window.start..window.end, last_bus);
        // SAFETY: nothing else uses the bus; the window is mapped as device memory for ever, at the
        // addresses that `IdentityHal` returns.
        unsafe { pci::scan::<IdentityHal, _>(&mut configuration, &accept, found) };
    }
}

/// The firmware's options if the machine was started without `-kernel` and therefore without
/// `-append`.
fn command_line_from_fw_cfg(tree: &Tree<'_>) -> Result<&'static [u8], &'static str> {
    static LINE: Once<Vec<u8, MAX_COMMAND_LINE>> = Once::new();

    let Some(registers) = tree.fw_cfg() else {
        return Ok(&[]);
    };
    // SAFETY: the device tree describes it, and `Virt::new`, the only caller, runs once.
    match unsafe { fw_cfg::open(registers) } {
        Some(mut device) => Ok(LINE.try_call_once(|| device.command_line())?),
        None => Ok(&[]),
    }
}

/// The blob of the device tree: at `x0`, or, if that is 0, at the start of RAM, where QEMU puts it
/// for an ELF file.
///
/// # Safety
///
/// Nothing may write to the blob for the rest of the program.
unsafe fn find_tree(x0: u64) -> Result<&'static [u8], &'static str> {
    let start = if x0 == 0 { RAM_START } else { x0 };
    if !(RAM_START..=FIRST_MAPPED_END - 8).contains(&start) || !start.is_multiple_of(8) {
        return Err(
            "x0 is no address of a device tree; start the firmware with QEMU's -kernel or -bios",
        );
    }
    let header = with_exposed_provenance::<u8>(start as usize);
    // SAFETY: eight bytes of mapped memory, which nothing writes to.
    let header = unsafe { slice::from_raw_parts(header, 8) };
    let (magic, size) = header.split_at(4);
    if magic != TREE_MAGIC {
        return Err("there is no device tree; start the firmware with QEMU's -kernel or -bios");
    }
    let size = u32::from_be_bytes(size.try_into().unwrap_or_default());
    let blob = Range::with_size(start, size.into());
    let image = between(&symbols::__image_start, &symbols::__image_end);
    if blob.end > FIRST_MAPPED_END || blob.overlaps(&image) {
        return Err("the device tree is larger than the memory where it lies");
    }
    // SAFETY: mapped memory of that size which nothing writes to; not part of the image.
    Ok(unsafe { slice::from_raw_parts(header.as_ptr(), size as usize) })
}

/// The page below the stack, which an overflow hits.
pub fn stack_guard() -> Range {
    between(&symbols::__stack_guard, &symbols::__stack_start)
}

fn between(start: &symbols::Symbol, end: &symbols::Symbol) -> Range {
    Range {
        start: start.address(),
        end: end.address(),
    }
}

fn is_device(range: Range) -> bool {
    mapping::is_device(&bootshare_level1, range)
}

/// A pointer to device memory, which is mapped at its physical address.
fn device_pointer(range: Range) -> NonNull<u8> {
    NonNull::new(with_exposed_provenance_mut(range.start as usize)).unwrap_or(NonNull::dangling())
}

impl Board for Virt {
    type Hal = IdentityHal;
    type Clock = Clock;
    type Transport = FsTransport;

    const ARCHITECTURE: Architecture = Architecture::Aarch64;

    fn clock(&self) -> Clock {
        Clock
    }

    fn entered(&self) -> Duration {
        counter::at(self.entered)
    }

    fn write_console(text: &[u8]) {
        console::write(text);
    }

    fn read_console() -> Option<u8> {
        console::read()
    }

    fn command_line(&self) -> &'static [u8] {
        self.command_line
    }

    fn memory_map(&self) -> &MemoryMap {
        &self.memory
    }

    fn occupied(&self) -> Vec<Range, 8> {
        let tree = self.tree.blob();
        let tree = Range::with_size(tree.as_ptr().addr() as u64, tree.len() as u64);
        let image = between(&symbols::__image_start, &symbols::__image_end);
        [image, tree].into_iter().collect()
    }

    fn mapped_end(&self) -> u64 {
        MAPPED_END
    }

    fn device_tree(&self) -> Option<&'static [u8]> {
        Some(self.tree.blob())
    }

    fn has_pages(&self, bytes: u32) -> bool {
        cpu::has_pages(bytes)
    }

    fn find_devices(&mut self) -> DeviceList {
        let mut found = DeviceList::new();
        if core::mem::replace(&mut self.searched, true) {
            return found;
        }
        self.find_mmio(&mut found);
        self.find_pci(&mut found);
        found
    }

    unsafe fn start(&mut self, hand_off: &HandOff) -> ! {
        rest::let_go();
        for range in &hand_off.loaded {
            // SAFETY: the payload was loaded there, so it is mapped as normal memory.
            unsafe { cpu::clean_to_memory(*range) };
        }
        // SAFETY: the caller promises a payload; all that it reads is in memory now.
        unsafe { cpu::enter(hand_off.entry, hand_off.argument) }
    }

    fn exit(status: ExitStatus) -> ! {
        exit::exit(status)
    }

    fn power_off() -> ! {
        exit::power_off()
    }

    fn reset() -> ! {
        exit::reset()
    }
}
