//! The interface between the boot flow and a machine.

use crate::{
    boot::{
        Architecture,
        memory::{MemoryMap, Range},
    },
    hal::{Clock, Hal},
    transport::{DeviceList, Transport},
};
use core::time::Duration;
use heapless::Vec;

/// How the firmware ends when it starts no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything requested was done.
    Success,
    /// Something failed; an error message was printed on the console.
    Failure,
}

/// A payload in memory, ready to be entered.
#[derive(Clone, Debug)]
pub struct HandOff {
    /// Physical address of the first instruction.
    pub entry: u64,
    /// Physical address of its parameters: the zero page (in RSI) or the start info (in EBX) on x86-64, the device
    /// tree (in x0) on arm64.
    pub argument: u64,
    /// How it is entered.
    pub protocol: Protocol,
    /// Memory that the payload may use before it enables its caches: its image, including the memory after the
    /// content of the file, and the device tree. arm64 requires only the image to be cleaned from the caches
    /// (booting.rst), and cleaning an initrd of 256 MiB takes as long as reading it.
    pub loaded: Vec<Range, 24>,
}

/// How a payload is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit Linux boot protocol of the board's architecture (boot.rst, booting.rst).
    Linux,
    /// Xen's direct boot ABI, PVH (`docs/misc/pvh.pandoc`), only on x86-64: 32-bit protected mode without paging.
    /// All addresses are below 4 GiB.
    Pvh {
        /// A free page for the code that leaves 64-bit mode.
        trampoline: u64,
        /// The part of the payload to move once the firmware is no longer needed.
        moved: Option<Move>,
    },
}

/// A part of a payload whose final addresses are occupied by the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its current addresses.
    pub from: Range,
    /// Its final physical address.
    pub to: u64,
}

/// A machine, described by a crate in `boards/`: facts, no policy.
///
/// Memory is identity-mapped: all usable regions of [`Board::memory_map`] below [`Board::mapped_end`], and the
/// devices found, can be accessed at their physical addresses.
pub trait Board {
    /// DMA memory.
    type Hal: Hal;
    /// The clock.
    type Clock: Clock + Copy;
    /// The transport of its devices: [`FsTransport`](crate::transport::FsTransport), or one of the board's own.
    type Transport: Transport;

    /// The architecture of payloads that the machine can run.
    const ARCHITECTURE: Architecture;

    /// The clock; it runs from the first call on.
    fn clock(&self) -> Self::Clock;

    /// The time on the clock at the firmware's first instruction, or as soon after it as it could be read.
    fn entered(&self) -> Duration;

    /// Writes to the console. Line ends are `\n`; the board converts them for its terminal.
    ///
    /// This has no `self` because the logger and the panic handler call it, too.
    fn write_console(text: &[u8]);

    /// A byte typed at the console, if there is one; never waits. Bytes may be lost while this is not called.
    fn read_console() -> Option<u8>;

    /// The firmware's own command line, with its options. It may hold any bytes except NUL.
    fn command_line(&self) -> &'static [u8];

    /// The machine's memory, as it is passed on to the kernel.
    fn memory_map(&self) -> &MemoryMap;

    /// Usable memory that is in use until the hand-off: the firmware with its stack and tables, and the data that
    /// the platform has passed to it (start info, device tree, command line).
    fn occupied(&self) -> Vec<Range, 8>;

    /// End of identity-mapped memory: nothing is loaded at or above it.
    fn mapped_end(&self) -> u64;

    /// The device tree blob from the platform, if there is one.
    fn device_tree(&self) -> Option<&'static [u8]> {
        None
    }

    /// Physical address of the ACPI root pointer; 0 if there is none.
    fn acpi_rsdp(&self) -> u64 {
        0
    }

    /// Whether the processor supports pages of this size in bytes. This is asked for arm64 kernels.
    fn has_pages(&self, _bytes: u32) -> bool {
        true
    }

    /// Words that this machine adds to the payload's command line, each as `key=value`, unless the command line has
    /// the key already.
    fn payload_words(&self) -> Vec<heapless::String<64>, 16> {
        Vec::new()
    }

    /// Finds the virtio file system devices, in a fixed order.
    fn find_devices(&mut self) -> DeviceList<Self::Transport>;

    /// Starts the payload, with interrupts disabled.
    ///
    /// # Safety
    ///
    /// `hand_off` must describe a payload of this architecture that is complete in memory, and no device may write
    /// to memory any more.
    unsafe fn start(&mut self, hand_off: &HandOff) -> !;

    /// Ends the machine with this status, or halts if it cannot be ended.
    fn exit(status: ExitStatus) -> !;

    /// Turns the machine off, or exits with success if it cannot be turned off.
    fn power_off() -> !;

    /// Resets the machine.
    fn reset() -> !;
}
