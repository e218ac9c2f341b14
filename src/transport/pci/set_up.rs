//! Assigns bus numbers, BARs and bridge windows, on machines where no firmware has done so.

use super::configuration::{
    BUS_NUMBERS, Bar, Bars, Functions, command, has_more_roots, is_bridge, set_command,
};
use crate::transport::DeviceFunction;
use core::ops::Range;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess};

// Offsets in a bridge's configuration header (PCI-to-PCI bridge 1.2, 3.2.5).

/// Memory window: the upper 12 bits of its first and its last address.
const MEMORY_WINDOW: u8 = 0x20;
/// Prefetchable memory window, in the same format.
const PREFETCHABLE_WINDOW: u8 = 0x24;
/// A closed window: its last address is below its first one.
const CLOSED: u32 = 0x0000_fff0;
/// The alignment of a window's start and end.
const WINDOW_UNIT: u64 = 1 << 20;

/// How many bridges may be nested.
const MAX_DEPTH: u8 = 32;

/// Sets up all PCI buses, for machines on which no firmware has done so.
///
/// Buses are numbered depth first, up to `last_bus`; memory BARs are placed in `window`, bytes of
/// 32-bit memory space; bridges get windows that contain the BARs behind them, and forward accesses to
/// them. A BAR or bridge for which no memory or number is left gets none, and decodes nothing. An
/// earlier set-up is overwritten. I/O ports are not used: I/O BARs are left unchanged, and the command
/// registers of bridges keep their I/O windows closed. If bus 0 has a second host bridge, other root
/// buses are searched for and set up too.
///
/// Everything is done in the order of bus, device and function numbers, so that the same machine is
/// always set up in the same way.
pub fn set_up<C: ConfigurationAccess>(configuration: &mut C, window: Range<u64>, last_bus: u8) {
    // The last bridge window ends at a multiple of this unit and must not reach past the memory.
    let window = window.start..window.end & !WINDOW_UNIT.wrapping_sub(1);
    // Without bus numbers, bridges forward nothing: every other bus that answers is a root bus.
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
    /// The memory that is still free.
    window: Range<u64>,
    /// The last bus number assigned.
    last_bus: u8,
    /// The highest bus number that may be assigned.
    limit: u8,
}

impl<C: ConfigurationAccess> SetUp<'_, C> {
    /// Sets up a bus and, down to the depth limit, all buses behind it.
    fn bus(&mut self, bus: u8, depth: u8) {
        let mut bridges = false;
        let mut functions = Functions::on(bus);
        while let Some(at) = functions.next(self.configuration) {
            self.place(at);
            if is_bridge(self.configuration, at) {
                // With an old bus number, this bridge could forward accesses that are meant for another one.
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

    /// Sets up a bridge and all buses behind it.
    fn bridge(&mut self, at: DeviceFunction, depth: u8) {
        let behind = self.last_bus.saturating_add(1);
        self.last_bus = behind;
        // Forward all remaining numbers until the last one behind this bridge is known.
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
            // Both are below 4 GiB, as is the whole memory space for BARs.
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

    /// Assigns addresses to the function's memory BARs, or clears them if no memory is left.
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

    /// Takes `size` bytes of the free memory, aligned to their size as a BAR must be.
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

    /// Advances the free memory to an address at which a bridge window may start or end.
    fn align(&mut self) {
        let aligned = self.window.start.checked_next_multiple_of(WINDOW_UNIT);
        self.window.start = aligned.unwrap_or(self.window.end).min(self.window.end);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        configuration::{CAPABILITIES, COMMAND, HEADER_TYPE},
        fake::{Bus, Function, Machine},
    };
    use super::*;
    use core::cell::Cell;
    use std::vec::Vec;

    const WINDOW: Range<u64> = 0x1000_0000..0x3eff_0000;

    fn fs() -> Function {
        Function::device()
            .with_bar(0, 0x20, 1)
            .with_bar(1, 0x1000, 0)
            .with_bar(4, 0x4000, 0b1100)
    }

    fn numbers(machine: &Machine, bridge: usize) -> [u8; 3] {
        let [own, behind, last, _] = machine.functions[bridge].word(BUS_NUMBERS).to_le_bytes();
        [own, behind, last]
    }

    /// Addresses and sizes of a function's placed memory BARs.
    fn bars(machine: &Machine, index: usize) -> Vec<Range<u64>> {
        let mut one = Machine::default();
        let mut copy = machine.functions[index].clone();
        copy.words.remove(&COMMAND);
        one.add(Bus::Root(0), 0, 0, copy);
        let at = DeviceFunction {
            bus: 0,
            device: 0,
            function: 0,
        };
        let Bars(bars) = Bars::read(&mut one, at);
        let placed = bars.into_iter().flatten().filter(|bar| bar.address != 0);
        placed
            .map(|bar| bar.address..bar.address + bar.size)
            .collect()
    }

    /// How many BARs are placed. Each is where it may be, apart from all others, in the windows of
    /// all bridges before it and of no other.
    fn placed(machine: &Machine) -> usize {
        let mut placed = Vec::new();
        for index in 0..machine.functions.len() {
            let before = machine.bridges_before(index);
            for bar in bars(machine, index) {
                assert_eq!(bar.start % (bar.end - bar.start), 0);
                assert!(WINDOW.start <= bar.start && bar.end <= WINDOW.end);
                for bridge in 0..machine.functions.len() {
                    let window = machine.window(bridge).unwrap_or(0..0);
                    if before.contains(&bridge) {
                        assert!(window.start <= bar.start && bar.end <= window.end);
                    } else {
                        assert!(bar.end <= window.start || window.end <= bar.start);
                    }
                }
                placed.push(bar);
            }
        }
        placed.sort_by_key(|bar| bar.start);
        assert!(placed.is_sorted_by(|first, second| first.end <= second.start));
        placed.len()
    }

    /// A switch, a bridge with a BAR behind a bridge, devices of more than one function.
    fn tree() -> (Machine, Vec<usize>) {
        let mut machine = Machine::default();
        let port = machine.add(Bus::Root(0), 1, 0, Function::bridge().with_others());
        let empty = machine.add(Bus::Root(0), 1, 3, Function::bridge());
        let other = machine.add(Bus::Root(0), 2, 0, Function::bridge());
        machine.add(Bus::Root(0), 3, 0, fs());
        let up = machine.add(Bus::Behind(port), 0, 0, Function::bridge());
        let down = machine.add(Bus::Behind(up), 4, 0, Function::bridge());
        machine.add(Bus::Behind(down), 0, 0, fs());
        let pci = Function::bridge().with_bar(0, 0x100, 0b100);
        let pci = machine.add(Bus::Behind(other), 0, 0, pci);
        machine.add(Bus::Behind(pci), 5, 0, fs().with_others());
        machine.add(Bus::Behind(pci), 5, 1, fs().with_bar(2, 64 << 20, 0b1000));
        (machine, [port, up, down, empty, other, pci].into())
    }

    #[test]
    fn buses_are_numbered_depth_first() {
        let (mut machine, bridges) = tree();
        set_up(&mut machine, WINDOW, 255);
        let all: Vec<_> = bridges.iter().map(|at| numbers(&machine, *at)).collect();
        let expected = [
            [0, 1, 3],
            [1, 2, 3],
            [2, 3, 3],
            [0, 4, 4],
            [0, 5, 6],
            [5, 6, 6],
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn memory_is_placed_once_and_inside_the_windows_of_all_bridges_before_it() {
        let (mut machine, bridges) = tree();
        set_up(&mut machine, WINDOW, 255);
        assert_eq!(placed(&machine), 4 * 2 + 1 + 1);
        // Windows of bridges on one bus do not overlap; a bridge without devices has no window.
        let [port, _, _, empty, other, _] = bridges[..] else {
            panic!()
        };
        assert!(machine.window(port).unwrap().end <= machine.window(other).unwrap().start);
        assert_eq!(machine.window(empty), None);
        for bridge in bridges {
            assert_eq!(machine.functions[bridge].word(COMMAND) & 0b110, 0b110);
            assert_eq!(machine.functions[bridge].word(PREFETCHABLE_WINDOW), CLOSED);
        }
    }

    #[test]
    fn a_second_set_up_gives_the_same_result() {
        let (mut machine, bridges) = tree();
        set_up(&mut machine, WINDOW, 255);
        let first = machine.functions.clone();
        set_up(&mut machine, WINDOW, 255);
        assert!(first == machine.functions);
        // Circular bus numbers of an earlier set-up have no effect.
        for bridge in bridges {
            let words = &mut machine.functions[bridge].words;
            words.insert(BUS_NUMBERS, 0x00ff_0100);
        }
        set_up(&mut machine, WINDOW, 255);
        assert!(first == machine.functions);
    }

    #[test]
    fn a_stale_bridge_number_does_not_capture_accesses_to_another_bridge() {
        let mut machine = Machine::default();
        let port = machine.add(Bus::Root(0), 1, 0, Function::bridge());
        let stale = machine.add(Bus::Behind(port), 5, 0, Function::bridge());
        machine.add(Bus::Behind(stale), 0, 0, fs());
        let first = machine.add(Bus::Behind(port), 4, 0, Function::bridge());
        machine.add(Bus::Behind(first), 0, 0, fs());
        machine.functions[stale]
            .words
            .insert(BUS_NUMBERS, 0x0002_0201);
        set_up(&mut machine, WINDOW, 255);
        assert_eq!(numbers(&machine, first), [1, 2, 2]);
        assert_eq!(numbers(&machine, stale), [1, 3, 3]);
        assert_eq!(placed(&machine), 2 * 2);
    }

    #[test]
    fn devices_without_memory_bars_are_not_changed() {
        let mut machine = Machine::default();
        let ports = Function::device().with_bar(0, 0x20, 1);
        let ports = machine.add(Bus::Root(0), 1, 0, ports);
        machine.functions[ports].words.insert(COMMAND, 0b111);
        set_up(&mut machine, WINDOW, 255);
        assert_eq!(machine.functions[ports].word(COMMAND), 0b111);
    }

    #[test]
    fn a_device_does_not_decode_addresses_while_its_memory_is_placed() {
        // The machine of the test checks it. The BARs take all memory.
        let mut machine = Machine::default();
        let device = Function::device()
            .with_bar(0, 1 << 20, 0)
            .with_bar(1, 1 << 20, 0);
        let device = machine.add(Bus::Root(0), 1, 0, device);
        machine.functions[device].words.insert(COMMAND, 0b111);
        set_up(&mut machine, 0x1000_0000..0x1020_0000, 255);
        assert_eq!(machine.functions[device].word(COMMAND), 0b101);
        let expected = [0x1000_0000..0x1010_0000, 0x1010_0000..0x1020_0000];
        assert_eq!(bars(&machine, device), expected);
    }

    #[test]
    fn a_bar_without_space_gets_no_address() {
        let mut machine = Machine::default();
        let large = Function::device()
            .with_bar(0, 1 << 30, 0)
            .with_bar(2, 1 << 40, 0b1100);
        let large = machine.add(Bus::Root(0), 1, 0, large);
        let small = machine.add(Bus::Root(0), 2, 0, fs());
        // The last MiB of the windows below is incomplete, so a bridge cannot forward it.
        let bridge = machine.add(Bus::Root(0), 3, 0, Function::bridge());
        let behind = machine.add(Bus::Behind(bridge), 0, 0, fs());
        let odd = machine.add(
            Bus::Root(0),
            4,
            0,
            Function::device().with_bar(0, 0x3000, 0),
        );
        set_up(&mut machine, WINDOW, 255);
        assert_eq!(placed(&machine), 2 * 2);
        assert_eq!(bars(&machine, odd), []);
        set_up(&mut machine, 0x1000_0000..0x100f_0000, 255);
        assert_eq!(bars(&machine, large), []);
        assert_eq!(bars(&machine, small), []);
        set_up(&mut machine, 0x1000_0000..0x101f_0000, 255);
        assert_eq!(bars(&machine, large), []);
        assert_eq!(bars(&machine, small).len(), 2);
        assert_eq!(bars(&machine, behind), []);
        assert_eq!(machine.window(bridge), None);
    }

    #[test]
    fn other_root_buses_have_the_numbers_up_to_the_next() {
        let mut machine = Machine::default();
        machine.add(Bus::Root(0), 0, 0, Function::host_bridge());
        machine.add(Bus::Root(0), 1, 0, Function::host_bridge());
        for root in [0, 2, 0x40] {
            for device in [3, 4] {
                machine.add(Bus::Root(root), device, 0, Function::bridge());
            }
        }
        for bus in [Bus::Root(2), Bus::Behind(2)] {
            machine.add(bus, 7, 0, fs());
        }
        set_up(&mut machine, WINDOW, 255);
        let all = (2..8).map(|bridge| numbers(&machine, bridge));
        let none = [0, 0, 0];
        let expected = [
            [0, 1, 1],
            none,
            [2, 3, 3],
            [2, 4, 4],
            [0x40, 0x41, 0x41],
            [0x40, 0x42, 0x42],
        ];
        assert_eq!(all.collect::<Vec<_>>(), expected);
        assert_eq!(placed(&machine), 2 * 2);
    }

    #[test]
    fn bus_numbers_end_at_the_last_bus_and_at_the_greatest_depth() {
        // Each access of the test's machine looks through all functions, so Miri gets a small one.
        let (devices, functions, depth, last) = if cfg!(miri) {
            (4, 1, 34, 36)
        } else {
            (32, 8, 200, 255)
        };
        let mut machine = Machine::default();
        for device in 0..devices {
            for function in 0..functions {
                let bridge = Function::bridge().with_others();
                machine.add(Bus::Root(0), device, function, bridge);
            }
        }
        let bridges = machine.functions.len();
        for last_bus in [0, 3, 15, last] {
            set_up(&mut machine, WINDOW, last_bus);
            let all = (0..bridges).map(|bridge| numbers(&machine, bridge)[1]);
            assert_eq!(all.max(), Some(last_bus.min(bridges.min(255) as u8)));
        }
        let mut machine = Machine::default();
        machine.add_chain(depth);
        set_up(&mut machine, WINDOW, last);
        let depth = (0..depth).filter(|bridge| numbers(&machine, *bridge)[1] != 0);
        assert_eq!(depth.count(), MAX_DEPTH.into());
    }

    /// The configuration space of a hostile host: almost every read returns a random value.
    struct Liar {
        state: Cell<u64>,
        accesses: Cell<usize>,
    }

    impl ConfigurationAccess for Liar {
        fn read_word(&self, _: DeviceFunction, register: u8) -> u32 {
            self.accesses.set(self.accesses.get() + 1);
            let next = self.state.get().wrapping_mul(0x5851_f42d_4c95_7f2d) | 1;
            self.state.set(next.rotate_left(23).wrapping_add(1));
            let random = (next >> 32) as u32;
            match register {
                // A bridge or a device, always with more than one function.
                HEADER_TYPE => random & 0x0081_0000 | 0x0080_0000,
                CAPABILITIES => 0x40,
                _ => random,
            }
        }

        fn write_word(&mut self, _: DeviceFunction, _: u8, _: u32) {
            self.accesses.set(self.accesses.get() + 1);
        }

        unsafe fn unsafe_clone(&self) -> Self {
            panic!("nobody needs another");
        }
    }

    #[test]
    fn random_configuration_spaces_take_a_bounded_number_of_accesses() {
        let last_bus = if cfg!(miri) { 3 } else { 255 };
        for seed in 1..4 {
            let mut liar = Liar {
                state: Cell::new(seed),
                accesses: Cell::new(0),
            };
            set_up(&mut liar, WINDOW, last_bus);
            // 256 functions of each bus, each looked at twice, with six BARs.
            let functions = (usize::from(last_bus) + 1) * 256;
            assert!(liar.accesses.get() < functions * 2 * 50);
            assert!(
                liar.accesses.get() > functions,
                "the random functions were not examined"
            );
        }
    }
}
