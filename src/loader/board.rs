//! What the boot flow asks of a machine.

pub use crate::boot::image::Architecture;

use crate::{
    boot::memory::{MemoryMap, Range},
    hal::{Clock, Hal},
    transport::{DeviceList, Transport},
};
use core::time::Duration;
use heapless::Vec;

/// How the firmware ends when it starts no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything that was asked for was done.
    Success,
    /// Something failed; an error line on the console says what.
    Failure,
}

/// A payload that lies in memory, ready to be entered.
#[derive(Clone, Debug)]
pub struct HandOff {
    /// Physical address of the first instruction.
    pub entry: u64,
    /// Its one argument: the zero page in RSI or the start info in EBX on x86-64, the device tree in
    /// x0 on arm64.
    pub argument: u64,
    /// How it is entered.
    pub protocol: Protocol,
    /// Memory that the payload may use before it turns its caches on: its image, with what it has
    /// behind the file's end, and the device tree. arm64 kernels ask for the image alone
    /// (booting.rst), and to clean an initrd of 256 MiB as well takes as long as to read it.
    pub loaded: Vec<Range, 24>,
}

/// How a payload is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit Linux boot protocol of the board's architecture (boot.rst, booting.rst).
    Linux,
    /// Xen's direct boot ABI, PVH (`docs/misc/pvh.pandoc`), on x86-64 alone: 32-bit protected mode
    /// without paging. All addresses are below 4 GiB.
    Pvh {
        /// A page for the code that leaves 64-bit mode, outside of everything else.
        trampoline: u64,
        /// What is to be moved when nothing of the firmware is needed any more.
        moved: Option<Move>,
    },
}

/// A part of a payload that belongs where the firmware is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where it lies.
    pub from: Range,
    /// Physical address that it goes to.
    pub to: u64,
}

/// A machine, as its `boards/` crate describes it: facts, no policy.
///
/// Memory is identity-mapped: every address of [`Board::memory_map`]'s usable regions below
/// [`Board::mapped_end`] can be read and written, and so can the devices found.
pub trait Board {
    /// DMA memory.
    type Hal: Hal;
    /// The clock.
    type Clock: Clock + Copy;
    /// The way to its devices: [`FsTransport`](crate::transport::FsTransport), or one of its own.
    type Transport: Transport;

    /// What the machine can run.
    const ARCHITECTURE: Architecture;

    /// The clock; works from the first call.
    fn clock(&self) -> Self::Clock;

    /// What the clock showed at the firmware's first instruction, or as soon after it as could be
    /// read.
    fn entered(&self) -> Duration;

    /// Writes to the console. Line ends are `\n`; the board adds what its terminal wants.
    ///
    /// No `self`: the logger and the panic handler write too.
    fn write_console(text: &[u8]);

    /// A byte that was typed at the console, if one is there: never waits. What is pressed while
    /// nobody reads may be lost.
    fn read_console() -> Option<u8>;

    /// The firmware's own command line, where its options stand. Any bytes, without a NUL.
    fn command_line(&self) -> &'static [u8];

    /// The machine's memory, as the kernel is to see it.
    fn memory_map(&self) -> &MemoryMap;

    /// Usable memory that is taken until the hand-off: the firmware itself with its stack and
    /// tables, and what the platform left there for it (start info, device tree, command line).
    fn occupied(&self) -> Vec<Range, 8>;

    /// End of identity-mapped memory: nothing is loaded at or above it.
    fn mapped_end(&self) -> u64;

    /// The device tree blob that the platform gave, if it gave one.
    fn device_tree(&self) -> Option<&'static [u8]> {
        None
    }

    /// Physical address of the ACPI root pointer; 0 if there is none.
    fn acpi_rsdp(&self) -> u64 {
        0
    }

    /// Whether the processor supports pages of so many bytes, for arm64 kernels that say which they
    /// use.
    fn has_pages(&self, _bytes: u32) -> bool {
        true
    }

    /// Words for the payload's command line that this machine wants, each as `key=value`; a word
    /// whose key the command line already has is left out.
    fn payload_words(&self) -> Vec<heapless::String<64>, 16> {
        Vec::new()
    }

    /// Looks for virtio file system devices, in a fixed order.
    fn find_devices(&mut self) -> DeviceList<Self::Transport>;

    /// Leaves the firmware for the payload. Interrupts are off; nothing returns here.
    ///
    /// # Safety
    ///
    /// `hand_off` must describe a payload of this architecture, complete in memory, and no device
    /// may write to memory any more.
    unsafe fn start(&mut self, hand_off: &HandOff) -> !;

    /// Ends the machine with that status, or halts where a machine can't be ended.
    fn exit(status: ExitStatus) -> !;

    /// Turns the machine off; ends it with success where that can't be had.
    fn power_off() -> !;

    /// Resets the machine.
    fn reset() -> !;
}
