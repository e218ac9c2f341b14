//! Bus numbers, BARs and bridges' windows, on machines where no firmware has seen to them.

use super::{
    BUS_NUMBERS, Bar, Bars, ConfigurationAccess, DeviceFunction, Functions, command,
    has_more_roots, is_bridge, set_command,
};
use core::ops::Range;
use virtio_drivers::transport::pci::bus::Command;

// Offsets in a bridge's configuration header (PCI-to-PCI bridge 1.2, 3.2.5).

/// Ends of the window of memory: the upper 12 bits of the first and the last address.
const MEMORY_WINDOW: u8 = 0x20;
/// The same of prefetchable memory.
const PREFETCHABLE_WINDOW: u8 = 0x24;
/// A window whose last address is below its first one: nothing goes through.
const CLOSED: u32 = 0x0000_fff0;
/// What a window's ends are multiples of.
const WINDOW_UNIT: u64 = 1 << 20;

/// How many bridges may be behind one another.
const MAX_DEPTH: u8 = 32;

/// Sets a whole PCI up, for machines on which no firmware has.
///
/// Buses are numbered depth first, up to `last_bus`; memory BARs are placed in `window`, bytes of
/// 32-bit memory space; bridges get windows that hold what is behind them, and pass it on. What
/// there is not enough room or numbers for stays without, and decodes nothing. Whatever was set up
/// before is lost. Ports are nobody's business here: BARs for them stay as they are, and bridges'
/// windows closed by their command register. Where bus 0 has a second host bridge, other root buses
/// are looked for and set up, too.
///
/// The order of everything is that of the numbers of buses, devices and functions, so that the same
/// machine is set up in the same way each time.
pub fn set_up<C: ConfigurationAccess>(configuration: &mut C, window: Range<u64>, last_bus: u8) {
    // A bridge's window at the end of it must not reach further.
    let window = window.start..window.end & !WINDOW_UNIT.wrapping_sub(1);
    // Without numbers, bridges pass nothing on: what answers now is a root bus.
    let mut functions = Functions::on(0);
    let mut more_roots = false;
    while let Some(at) = functions.next(configuration) {
        if is_bridge(configuration, at) {
            configuration.write_word(at, BUS_NUMBERS, 0);
        }
        more_roots |= has_more_roots(configuration, at);
    }
    let mut set_up = SetUp {
        configuration,
        window,
        last_bus: 0,
        limit: 0,
    };
    let mut root = Some(0u8);
    while let Some(bus) = root {
        let candidates = bus.saturating_add(1)..=last_bus;
        root = candidates
            .filter(|_| more_roots)
            .find(|bus| Functions::on(*bus).next(set_up.configuration).is_some());
        set_up.last_bus = bus;
        set_up.limit = root.map_or(last_bus, |next| next.saturating_sub(1));
        set_up.bus(bus, MAX_DEPTH);
    }
}

struct SetUp<'a, C> {
    configuration: &'a mut C,
    /// What is left of the memory.
    window: Range<u64>,
    /// The last number that a bus was given.
    last_bus: u8,
    /// The last number that may be given.
    limit: u8,
}

impl<C: ConfigurationAccess> SetUp<'_, C> {
    /// Sets up a bus, and with it all that is behind it, if that is not too deep.
    fn bus(&mut self, bus: u8, depth: u8) {
        let mut bridges = false;
        let mut functions = Functions::on(bus);
        while let Some(at) = functions.next(self.configuration) {
            self.place(at);
            if is_bridge(self.configuration, at) {
                // Or it could take what is meant for another one.
                self.configuration.write_word(at, BUS_NUMBERS, 0);
                bridges = true;
            }
        }
        let mut functions = Functions::on(bus);
        while bridges && let Some(at) = functions.next(self.configuration) {
            if is_bridge(self.configuration, at) && self.last_bus < self.limit && depth > 0 {
                self.bridge(at, depth);
            }
        }
    }

    /// Sets up a bridge, and all that is behind it.
    fn bridge(&mut self, at: DeviceFunction, depth: u8) {
        let behind = self.last_bus.saturating_add(1);
        self.last_bus = behind;
        // Until it is known which is the last one behind it, all are.
        self.number(at, behind, self.limit);
        self.align();
        let start = self.window.start;
        self.bus(behind, depth.saturating_sub(1));
        self.number(at, behind, self.last_bus);
        self.align();

        let last = self.window.start.saturating_sub(1);
        let window = if self.window.start == start {
            CLOSED
        } else {
            // Both are below 4 GiB, as the whole of it.
            (start >> 16) as u32 & 0xfff0 | last as u32 & 0xfff0_0000
        };
        self.configuration.write_word(at, MEMORY_WINDOW, window);
        self.configuration
            .write_word(at, PREFETCHABLE_WINDOW, CLOSED);
        let command = command(self.configuration, at);
        let enabled = Command::MEMORY_SPACE | Command::BUS_MASTER;
        set_command(self.configuration, at, command | enabled);
    }

    fn number(&mut self, at: DeviceFunction, behind: u8, last: u8) {
        let numbers = u32::from_le_bytes([at.bus, behind, last, 0]);
        self.configuration.write_word(at, BUS_NUMBERS, numbers);
    }

    /// Places the function's memory BARs, or takes their addresses away.
    fn place(&mut self, at: DeviceFunction) {
        let before = command(self.configuration, at);
        let silent = before & !Command::MEMORY_SPACE;
        set_command(self.configuration, at, silent);
        let Bars(bars) = Bars::read(self.configuration, at);
        if bars.iter().all(Option::is_none) && !is_bridge(self.configuration, at) {
            set_command(self.configuration, at, before);
        }
        for (bar, index) in bars.into_iter().zip(0u8..) {
            let Some(bar) = bar else { continue };
            let address = self.carve(bar.size);
            if address.is_none() {
                let size = bar.size;
                log::debug!("no PCI memory is left for BAR {index} of {at}, {size:#x} bytes");
            }
            let address = address.unwrap_or(0);
            Bar { address, ..bar }.write(self.configuration, at, index);
        }
    }

    /// Takes `size` bytes, aligned to their size as a BAR must be.
    fn carve(&mut self, size: u64) -> Option<u64> {
        if !size.is_power_of_two() {
            return None;
        }
        let address = self.window.start.checked_next_multiple_of(size)?;
        let end = address.checked_add(size)?;
        if end > self.window.end {
            return None;
        }
        self.window.start = end;
        Some(address)
    }

    /// Goes to the next address at which a bridge's window may start or end.
    fn align(&mut self) {
        let aligned = self.window.start.checked_next_multiple_of(WINDOW_UNIT);
        self.window.start = aligned.unwrap_or(self.window.end).min(self.window.end);
    }
}
