//! The machine, as the boot flow wants to know it.

use crate::{
    acpi::{self, SoftOff},
    clock::Clock,
    console, cpuid, entry, exceptions, exit,
    paging::{self, Paging},
    pci::{self, Configuration},
    pic, placement, pvh, rom,
    start_info::{self, StartInfo},
    words,
};
use bootshare::{
    boot::memory::{MemoryMap, Range},
    hal::IdentityHal,
    loader::{Architecture, Board, ExitStatus, HandOff, Protocol},
    transport::{
        Address, Device, DeviceList, FsTransport, mmio,
        pci::{scan, set_up},
    },
};
use core::{arch::asm, cell::RefCell, ptr, time::Duration};
use heapless::Vec;
use spin::Once;

/// The virtio-mmio slots of `microvm` (QEMU's `include/hw/i386/microvm.h`): 8 without ACPI, 24
/// with it, the same first one.
const SLOTS: u64 = 24;
pub const FIRST_SLOT: u64 = 0xfeb0_0000;
pub const SLOT_SIZE: usize = 0x200;

/// End of the memory that is mapped from the first, devices in it as well.
const FIRST_MAPPED_END: u64 = 4 << 30;

/// What the platform told. Static, because the command line is to outlive everything.
static START_INFO: Once<StartInfo> = Once::new();

/// One of QEMU's `microvm`, `q35` and `pc`.
pub struct Machine {
    info: &'static StartInfo,
    /// The clock's count at the first instruction.
    entered: u64,
    clock: Clock,
    paging: Paging,
    /// The devices were given away.
    searched: bool,
}

/// Where the entry code goes: from here on it is Rust. `start_info` is 0 in a ROM; `entered` is the
/// time-stamp counter's count at the first instruction.
pub extern "sysv64" fn main(start_info: u32, entered: u64) -> ! {
    console::init();
    exceptions::init();
    pic::mask_all();
    let Some(mut paging) = Paging::take() else {
        exit::fail(format_args!(
            "the firmware was entered twice; reset the machine"
        ));
    };
    let clock = Clock::calibrate();
    let mapped_end = paging.mapped_end();
    let is_rom = start_info == 0;
    let info = START_INFO.call_once(|| {
        if is_rom {
            // SAFETY: `Paging::take` lets this happen once; it has mapped the first 4 GiB, and
            // nothing but the ROM's copy in memory has run.
            let info = unsafe { rom::read(clock) };
            return info.unwrap_or_else(|error| exit::fail(format_args!("{error}")));
        }
        start_info::read(start_info.into(), &|address, buffer| {
            read_memory(address, buffer, mapped_end)
        })
        .unwrap_or_else(|error| exit::fail(format_args!("{error}")))
    });
    // Not before: the start info's memory map may be in page 0.
    paging.protect(&[entry::STACK.guard(), exceptions::STACK.guard()]);
    let machine = Machine {
        info,
        entered,
        clock,
        paging,
        searched: false,
    };
    // SAFETY: the memory map is the platform's, `occupied` and `mapped_end` are what the linker and
    // `paging` made, and `Paging::take` lets this happen once.
    unsafe { bootshare::loader::run(machine) }
}

/// What powers the machine off, in memory that is mapped; `None` if nothing is known to.
pub fn soft_off() -> Option<SoftOff> {
    let info = START_INFO.get().filter(|info| info.rsdp != 0)?;
    let off = acpi::soft_off(info.rsdp, &|address, buffer| {
        read_memory(address, buffer, FIRST_MAPPED_END)
    })?;
    match off {
        SoftOff::Memory(FIRST_MAPPED_END.., _) => None,
        off => Some(off),
    }
}

/// Copies from physical memory; `false` if it is not mapped or is the firmware's own.
fn read_memory(address: u64, buffer: &mut [u8], mapped_end: u64) -> bool {
    let range = Range::with_size(address, buffer.len() as u64);
    let image = paging::image();
    let outside = range.end <= image.text || range.start >= image.end;
    if range.start == 0 || range.end > mapped_end || !outside {
        return false;
    }
    let source = ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the range is mapped, and outside the image: it overlaps no Rust object.
    unsafe { source.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
    true
}

impl Board for Machine {
    type Hal = IdentityHal;
    type Clock = Clock;
    type Transport = FsTransport;

    const ARCHITECTURE: Architecture = Architecture::X86_64;

    fn clock(&self) -> Clock {
        self.clock
    }

    fn entered(&self) -> Duration {
        self.clock.at(self.entered)
    }

    fn write_console(text: &[u8]) {
        console::write(text);
    }

    fn read_console() -> Option<u8> {
        console::read()
    }

    fn command_line(&self) -> &'static [u8] {
        &self.info.command_line
    }

    fn memory_map(&self) -> &MemoryMap {
        &self.info.memory_map
    }

    fn occupied(&self) -> Vec<Range, 8> {
        let image = paging::image();
        let mut occupied = Vec::new();
        for range in [
            // Not mapped, so that a null pointer is an exception.
            Range::with_size(0, crate::tables::PAGE),
            Range {
                start: image.text,
                end: image.end,
            },
        ] {
            // Two of eight.
            _ = occupied.push(range);
        }
        occupied
    }

    fn mapped_end(&self) -> u64 {
        self.paging.mapped_end()
    }

    fn acpi_rsdp(&self) -> u64 {
        self.info.rsdp
    }

    fn payload_words(&self) -> Vec<heapless::String<64>, 16> {
        // Linux on `microvm` has nothing better than the PIT to measure its clock with, and under
        // emulation it fails at that in some of its boots and hangs.
        words::for_kernel(&self.info.command_line, cpuid::is_tcg(), self.clock.khz())
    }

    fn find_devices(&mut self) -> DeviceList {
        let mut found = DeviceList::new();
        if core::mem::replace(&mut self.searched, true) {
            log::warn!("the devices were given away by the first search");
            return found;
        }
        let mut configuration = if let Some(ports) = pci::Ports::find() {
            // SeaBIOS has set it up, or our ROM.
            Configuration::Ports(ports)
        } else {
            self.probe_slots(&mut found);
            // SAFETY: without ports this is `microvm`; the first 4 GiB are mapped, and this line
            // runs once.
            let Some(mut express) = (unsafe { Configuration::find_express() }) else {
                return found;
            };
            set_up(&mut express, pci::EXPRESS_WINDOW, u8::MAX);
            express
        };
        let Self { info, paging, .. } = self;
        let paging = RefCell::new(paging);
        let accept = |address, size| {
            let bar = Range::with_size(address, size);
            placement::is_device_memory(&info.memory_map, bar)
                && paging.borrow_mut().map_device(bar)
        };
        // SAFETY: nothing else uses PCI, and this line runs once. What the rules accept is mapped,
        // outside of everything that the platform's memory map or the chipset claims.
        unsafe { scan::<IdentityHal, _>(&mut configuration, &accept, &mut found) };
        found
    }

    unsafe fn start(&mut self, hand_off: &HandOff) -> ! {
        self.clock.let_go();
        self.paging.lift_protection();
        if let Protocol::Pvh { trampoline, moved } = hand_off.protocol {
            // SAFETY: the caller promises a payload for PVH; all memory is mapped, writable and
            // executable.
            unsafe { pvh::start(hand_off, trampoline, moved) }
        }
        // SAFETY: the caller promises that a payload is at `entry` which expects what the 64-bit
        // Linux boot protocol says: `argument` in RSI, flat segments with these selectors, an
        // identity map and interrupts off. The firmware's memory stays as it is until the payload
        // takes it, and nothing comes back here.
        unsafe {
            asm!(
                "cli",
                "cld",
                "mov ds, ecx",
                "mov es, ecx",
                "mov ss, ecx",
                "xor ebp, ebp",
                "jmp rax",
                in("rax") hand_off.entry,
                in("rsi") hand_off.argument,
                in("ecx") u32::from(entry::DATA_SELECTOR),
                options(noreturn, nostack)
            )
        }
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

impl Machine {
    /// Looks into the slots of `microvm`, from the last to the first: QEMU fills them in this
    /// order, so the devices come in that of its command line.
    fn probe_slots(&self, found: &mut DeviceList) {
        for slot in (0..SLOTS).rev() {
            let address = FIRST_SLOT + slot * SLOT_SIZE as u64;
            let Some(base) = ptr::NonNull::new(ptr::with_exposed_provenance_mut(address as usize))
            else {
                continue;
            };
            // SAFETY: without PCI this is `microvm`, where the slots, or nothing, are at these
            // addresses below 4 GiB, which is mapped; reading an empty slot has no effect. Each
            // slot is probed once.
            let probed = unsafe { mmio::probe(base, SLOT_SIZE) };
            let Some(transport) = probed else {
                continue;
            };
            let device = Device {
                address: Address::Mmio(address),
                transport: transport.map(FsTransport::Mmio),
            };
            if found.push(device).is_err() {
                log::warn!("too many file system devices: the one at {address:#x} is not used");
                return;
            }
        }
    }
}
