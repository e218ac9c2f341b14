//! The configuration space of PCI functions (PCI 3.0, chapter 6): which functions exist, their BARs and capabilities.

use super::Accept;
use crate::transport::{DeviceFunction, TransportError};
use core::iter;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, Status};

/// The first configuration word if there is no function.
pub(super) const ABSENT: u32 = u32::MAX;

// Offsets of words in the configuration header (PCI 3.0, 6.1; PCI-to-PCI bridge 1.2, 3.2).

/// Command register in the lower half, status register in the upper half.
pub(super) const COMMAND: u8 = 0x04;
/// Class and subclass are in the upper half.
pub(super) const CLASS: u8 = 0x08;
pub(super) const HOST_BRIDGE: u32 = 0x0600;
/// The header type is the third byte; its highest bit means that there is more than one function.
pub(super) const HEADER_TYPE: u8 = 0x0c;
pub(super) const MULTI_FUNCTION: u8 = 1 << 7;
/// The header type of a bridge.
pub(super) const BRIDGE: u8 = 1;
pub(super) const FIRST_BAR: u8 = 0x10;
/// A bridge's primary, secondary and subordinate bus number, one byte each.
pub(super) const BUS_NUMBERS: u8 = 0x18;
pub(super) const CAPABILITIES: u8 = 0x34;

/// The most capabilities that fit into 256 bytes of configuration space after its 64-byte header; a
/// longer list must be circular.
pub(super) const MAX_CAPABILITIES: usize = 48;
/// The functions of a bus.
pub(super) struct Functions {
    bus: u8,
    /// The next device and function number; the function is the lower three bits.
    next: u16,
}

impl Functions {
    pub(super) fn on(bus: u8) -> Self {
        Self { bus, next: 0 }
    }

    /// The next function that exists. A device without function 0 has no others, and neither has one
    /// without the multi-function bit (PCI 3.0, 3.2.2.3.4); these are not read, since each access is
    /// an exit to the hypervisor.
    pub(super) fn next<C: ConfigurationAccess>(
        &mut self,
        configuration: &C,
    ) -> Option<DeviceFunction> {
        while self.next < 32 << 3 {
            let at = DeviceFunction {
                bus: self.bus,
                device: (self.next >> 3) as u8,
                function: (self.next & 0b111) as u8,
            };
            let is_there = configuration.read_word(at, 0) != ABSENT;
            let has_others = || header_type(configuration, at) & MULTI_FUNCTION != 0;
            let is_only = at.function == 0 && !(is_there && has_others());
            self.next = self.next.saturating_add(if is_only { 8 } else { 1 });
            if is_there {
                return Some(at);
            }
        }
        None
    }
}

fn header_type<C: ConfigurationAccess>(configuration: &C, at: DeviceFunction) -> u8 {
    (configuration.read_word(at, HEADER_TYPE) >> 16) as u8
}

pub(super) fn is_bridge<C: ConfigurationAccess>(configuration: &C, at: DeviceFunction) -> bool {
    header_type(configuration, at) & !MULTI_FUNCTION == BRIDGE
}

/// Whether this function shows that there are more root buses than bus 0: it is a second host bridge
/// there, such as QEMU's `pxb` and `pxb-pcie`.
pub(super) fn has_more_roots<C: ConfigurationAccess>(
    configuration: &C,
    at: DeviceFunction,
) -> bool {
    at.bus == 0 && at.device != 0 && configuration.read_word(at, CLASS) >> 16 == HOST_BRIDGE
}

pub(super) fn command<C: ConfigurationAccess>(configuration: &C, at: DeviceFunction) -> Command {
    Command::from_bits_retain(configuration.read_word(at, COMMAND) as u16)
}

/// Writes the command register. The status bits are written as zeroes, which leaves them unchanged.
pub(super) fn set_command<C: ConfigurationAccess>(
    configuration: &mut C,
    at: DeviceFunction,
    command: Command,
) {
    configuration.write_word(at, COMMAND, command.bits().into());
}

/// The offsets and the first words of the function's capabilities (PCI 3.0, 6.7).
pub(super) fn capabilities<C: ConfigurationAccess>(
    configuration: &C,
    at: DeviceFunction,
) -> impl Iterator<Item = (u8, u32)> {
    let status = Status::from_bits_retain((configuration.read_word(at, COMMAND) >> 16) as u16);
    let word = move |pointer: u32| {
        let offset = pointer as u8 & !0b11;
        (offset >= 0x40).then(|| (offset, configuration.read_word(at, offset)))
    };
    let first = status
        .contains(Status::CAPABILITIES_LIST)
        .then(|| configuration.read_word(at, CAPABILITIES))
        .and_then(word);
    iter::successors(first, move |(_, header)| word(header >> 8)).take(MAX_CAPABILITIES)
}

/// A memory BAR with its address and size.
#[derive(Clone, Copy)]
pub(super) struct Bar {
    pub(super) address: u64,
    /// In bytes; not 0.
    pub(super) size: u64,
    pub(super) is_64_bit: bool,
}

impl Bar {
    pub(super) fn register(index: u8) -> u8 {
        FIRST_BAR.saturating_add(index.saturating_mul(4))
    }

    /// Reads a BAR. The function's address decoding must be disabled (PCI 3.0, 6.2.5.1). `None` if the
    /// BAR is unused or an I/O BAR.
    pub(super) fn read<C: ConfigurationAccess>(
        configuration: &mut C,
        at: DeviceFunction,
        index: u8,
    ) -> Option<Self> {
        const PORTS: u32 = 1;
        const WIDTH: u32 = 0b110;
        const WIDTH_64: u32 = 0b100;
        /// The bits that are not part of the address.
        const FLAGS: u64 = 0b1111;

        let register = Self::register(index);
        let low = configuration.read_word(at, register);
        if low & PORTS != 0 {
            return None;
        }
        // After writing all ones, exactly the writable address bits read as ones.
        let mut ask = |register| {
            let value = configuration.read_word(at, register);
            configuration.write_word(at, register, u32::MAX);
            let mask = configuration.read_word(at, register);
            configuration.write_word(at, register, value);
            (value, mask)
        };
        let (_, low_mask) = ask(register);
        if low_mask == 0 {
            return None;
        }
        let is_64_bit = low & WIDTH == WIDTH_64;
        let (high, high_mask) = match is_64_bit {
            true => ask(register.saturating_add(4)),
            false => (0, u32::MAX),
        };
        let join = |high: u32, low: u32| (u64::from(high) << 32 | u64::from(low)) & !FLAGS;
        let size = join(high_mask, low_mask).wrapping_neg();
        (size != 0).then_some(Self {
            address: join(high, low),
            size,
            is_64_bit,
        })
    }

    pub(super) fn write<C: ConfigurationAccess>(
        self,
        configuration: &mut C,
        at: DeviceFunction,
        index: u8,
    ) {
        let register = Self::register(index);
        configuration.write_word(at, register, self.address as u32);
        if self.is_64_bit {
            let high = (self.address >> 32) as u32;
            configuration.write_word(at, register.saturating_add(4), high);
        }
    }
}

/// A function's memory BARs.
pub(super) struct Bars(pub(super) [Option<Bar>; 6]);

impl Bars {
    pub(super) fn read<C: ConfigurationAccess>(configuration: &mut C, at: DeviceFunction) -> Self {
        let count = match header_type(configuration, at) & !MULTI_FUNCTION {
            0 => 6,
            BRIDGE => 2,
            _ => 0,
        };
        let mut bars = [None; 6];
        let mut numbered = bars.iter_mut().zip(0u8..count);
        while let Some((bar, index)) = numbered.next() {
            *bar = Bar::read(configuration, at, index);
            if bar.is_some_and(|bar| bar.is_64_bit) && numbered.next().is_none() {
                // Its upper half would be after the last BAR.
                *bar = None;
            }
        }
        Self(bars)
    }

    /// The address of a structure of `length` bytes at `offset` in BAR number `bar`. The structure must
    /// have at least `minimum` bytes, be inside the BAR and aligned for 32-bit registers, and the
    /// platform must accept the BAR.
    pub(super) fn locate(
        &self,
        bar: u8,
        offset: u32,
        length: u32,
        minimum: usize,
        accept: Accept<'_>,
    ) -> Result<u64, TransportError> {
        let (address, size) = match self.0.get(usize::from(bar)) {
            Some(Some(bar)) => (bar.address, bar.size),
            _ => (0, 0),
        };
        let usable = address != 0
            && address.checked_add(size).is_some()
            && u64::from(offset).saturating_add(length.into()) <= size
            && length as usize >= minimum
            && offset.is_multiple_of(4)
            && accept(address, size);
        if usable {
            Ok(address.saturating_add(offset.into()))
        } else {
            Err(TransportError::Bar { bar, address })
        }
    }
}
