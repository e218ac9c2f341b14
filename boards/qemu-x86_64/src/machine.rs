//! The implementation of the boot flow's `Board` for QEMU's PCs.

use crate::{
    clock::Clock,
    console, cpuid, exceptions, exit,
    paging::{self, Paging},
    pci::{self, Configuration},
    pic, placement, pvh, rom, slots,
    stack::{EXCEPTION_STACK, STACK},
    start_info::{self, StartInfo},
    words,
};
use bootshare::{
    boot::memory::{MemoryMap, Range},
    hal::IdentityHal,
    loader::{Architecture, Board, ExitStatus, HandOff, Protocol},
    transport::{
        DeviceList, FsTransport,
        pci::{scan, set_up},
    },
};
use core::{arch::asm, cell::RefCell, time::Duration};
use heapless::Vec;
use spin::Once;

/// The start info from PVH or from the ROM. Static, because the command line is `'static`.
static START_INFO: Once<StartInfo> = Once::new();

/// One of QEMU's `microvm`, `q35` and `pc`.
pub struct Machine {
    info: &'static StartInfo,
    /// The clock's count at the first instruction.
    entered: u64,
    clock: Clock,
    paging: Paging,
    /// Whether the devices were searched: a second search would create a second transport for each.
    searched: bool,
}

/// Called by the entry code. `start_info` is the address of PVH's start info, 0 in a ROM; `entered` is
/// the time-stamp counter's count at the first instruction.
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
            // SAFETY: `Paging::take` succeeds once; it has mapped the first 4 GiB, and nothing but
            // the ROM's copy in memory has run.
            let info = unsafe { rom::read(clock) };
            return info.unwrap_or_else(|error| exit::fail(format_args!("{error}")));
        }
        let mapped = Range::with_size(0, mapped_end);
        start_info::read(start_info.into(), &|address, buffer| {
            paging::read(address, buffer, mapped)
        })
        .unwrap_or_else(|error| exit::fail(format_args!("{error}")))
    });
    exit::use_acpi(info.rsdp);
    // Not earlier, because the start info's memory map may be in page 0.
    paging.protect(&[STACK.guard(), EXCEPTION_STACK.guard()]);
    let machine = Machine {
        info,
        entered,
        clock,
        paging,
        searched: false,
    };
    // SAFETY: the memory map is the platform's, `occupied` and `mapped_end` come from the linker
    // and `paging`, and `Paging::take` succeeds once.
    unsafe { bootshare::loader::run(machine) }
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
            // Page 0 is not mapped, so that a null pointer causes an exception.
            Range::with_size(0, crate::tables::PAGE),
            Range {
                start: image.text,
                end: image.end,
            },
        ] {
            // It fits: these are two ranges of at most eight.
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
        // Linux on `microvm` has only the PIT to measure its clock with, and under emulation that
        // measurement fails in some boots, which then hang.
        words::for_kernel(&self.info.command_line, cpuid::is_tcg(), self.clock.khz())
    }

    fn find_devices(&mut self) -> DeviceList {
        let mut found = DeviceList::new();
        if core::mem::replace(&mut self.searched, true) {
            log::warn!("the devices were given away by the first search");
            return found;
        }
        let mut configuration = if let Some(ports) = pci::Ports::find() {
            // SeaBIOS, or our ROM, has set it up.
            Configuration::Ports(ports)
        } else {
            // SAFETY: without PCI this is `microvm`; the first 4 GiB are mapped, and this line
            // runs once.
            unsafe { slots::probe(&mut found) };
            // SAFETY: as above.
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
        // outside of everything that the platform's memory map or the chipset claims. Below 4 GiB, or
        // in a page of 1 GiB, the mapping is one of ordinary memory: its caching is up to the MTRRs,
        // and makes no difference for registers that a hypervisor emulates. The shares use
        // `IdentityHal`, which fits the identity map.
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
                in("ecx") u32::from(exceptions::DATA_SELECTOR),
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
