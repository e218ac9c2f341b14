//! A PCI machine for tests: functions, and bridges that forward configuration accesses to the buses
//! behind them.

use super::configuration::{
    ABSENT, BRIDGE, BUS_NUMBERS, CAPABILITIES, CLASS, COMMAND, FIRST_BAR, HEADER_TYPE,
    MULTI_FUNCTION,
};
use crate::transport::DeviceFunction;
use core::{cell::RefCell, ops::RangeInclusive};
use std::{collections::BTreeMap, vec::Vec};
use virtio_drivers::transport::pci::bus::ConfigurationAccess;

/// The location of a function.
#[derive(Clone, Copy)]
pub enum Bus {
    /// On the root bus of that number.
    Root(u8),
    /// Behind the bridge of that index.
    Behind(usize),
}

/// A function: the words of its configuration space, and which of their bits can be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    pub words: BTreeMap<u8, u32>,
    writable: BTreeMap<u8, u32>,
}

impl Function {
    fn new(id: u32) -> Self {
        Self {
            words: [(0, id)].into(),
            writable: [(COMMAND, 0xffff)].into(),
        }
    }

    pub fn device() -> Self {
        // Device 0x1040 + 26 of virtio's vendor (virtio 1.2, section 4.1.2).
        Self::new(0x105a_1af4)
    }

    pub fn bridge() -> Self {
        let mut bridge = Self::new(0x000c_1b36);
        bridge.words.insert(HEADER_TYPE, u32::from(BRIDGE) << 16);
        let windows = [
            (BUS_NUMBERS, u32::MAX),
            (0x20, 0xfff0_fff0),
            (0x24, 0xfff0_fff0),
        ];
        bridge.writable.extend(windows);
        bridge
    }

    pub fn host_bridge() -> Self {
        let mut bridge = Self::new(0x000b_1b36);
        bridge.words.insert(CLASS, 0x0600_0000);
        bridge
    }

    /// One of several of its device.
    pub fn with_others(mut self) -> Self {
        *self.words.entry(HEADER_TYPE).or_default() |= u32::from(MULTI_FUNCTION) << 16;
        self
    }

    /// With a BAR of so many bytes, and these bits for its kind.
    pub fn with_bar(mut self, index: u8, size: u64, kind: u32) -> Self {
        let register = FIRST_BAR + 4 * index;
        let mask = size.wrapping_neg();
        self.words.insert(register, kind);
        self.writable.insert(register, mask as u32);
        if kind & 0b111 == 0b100 {
            self.writable.insert(register + 4, (mask >> 32) as u32);
        }
        self
    }

    /// With a virtio capability, in front of those it has: of that kind, in that BAR, with offset,
    /// length and multiplier.
    pub fn with_capability(mut self, kind: u8, bar: u32, place: [u32; 3]) -> Self {
        let next = self.word(CAPABILITIES) as u8;
        let offset = if next == 0 { 0x40 } else { next + 20 };
        self.words.insert(CAPABILITIES, offset.into());
        *self.words.entry(COMMAND).or_default() |= 1 << 20;
        let header = u32::from_le_bytes([0x09, next, 20, kind]);
        let words = [header, bar, place[0], place[1], place[2]];
        self.words.extend((offset..=u8::MAX).step_by(4).zip(words));
        self
    }

    fn is_bridge(&self) -> bool {
        self.word(HEADER_TYPE) >> 16 & u32::from(BRIDGE) != 0
    }

    pub fn word(&self, register: u8) -> u32 {
        self.words.get(&register).copied().unwrap_or(0)
    }
}

#[derive(Default)]
pub struct Machine {
    /// Where each is: bus, device, function.
    places: Vec<(Bus, u8, u8)>,
    pub functions: Vec<Function>,
    /// Functions that were looked at.
    pub read: RefCell<Vec<DeviceFunction>>,
}

impl Machine {
    /// Adds a function, and gives its index.
    pub fn add(&mut self, bus: Bus, device: u8, function: u8, what: Function) -> usize {
        self.places.push((bus, device, function));
        self.functions.push(what);
        self.functions.len() - 1
    }

    /// Adds a chain of `count` nested bridges, the first on bus 0; returns the index of the innermost one.
    pub fn add_chain(&mut self, count: usize) -> usize {
        (0..count).fold(0, |last, index| {
            let bus = if index == 0 {
                Bus::Root(0)
            } else {
                Bus::Behind(last)
            };
            self.add(bus, 1, 0, Function::bridge())
        })
    }

    /// Whether `bus` has the number `wanted`, and the bridges before it forward what is for it.
    fn has_number(&self, bus: Bus, wanted: u8) -> bool {
        match bus {
            Bus::Root(number) => number == wanted,
            Bus::Behind(bridge) => {
                self.numbers_behind(bridge).start() == &wanted && self.is_forwarded(bus, wanted)
            }
        }
    }

    /// Whether accesses to bus `wanted` are forwarded to `bus`.
    fn is_forwarded(&self, bus: Bus, wanted: u8) -> bool {
        let Bus::Behind(bridge) = bus else {
            return true;
        };
        let numbers = self.numbers_behind(bridge);
        let passes = *numbers.start() != 0 && numbers.contains(&wanted);
        passes && self.is_forwarded(self.places[bridge].0, wanted)
    }

    /// The numbers of the bus behind a bridge and of all buses behind that.
    fn numbers_behind(&self, bridge: usize) -> RangeInclusive<u8> {
        let [_, secondary, subordinate, _] = self.functions[bridge].word(BUS_NUMBERS).to_le_bytes();
        secondary..=subordinate
    }

    fn find(&self, at: DeviceFunction) -> Option<usize> {
        self.places.iter().position(|&(bus, device, function)| {
            (device, function) == (at.device, at.function) && self.has_number(bus, at.bus)
        })
    }

    /// The memory window that a bridge forwards; `None` if it is closed, or for another function.
    pub fn window(&self, bridge: usize) -> Option<core::ops::Range<u64>> {
        let word = self.functions[bridge].word(0x20);
        let start = u64::from(word & 0xfff0) << 16;
        let end = u64::from(word & 0xfff0_0000) + (1 << 20);
        let is_bridge = self.functions[bridge].is_bridge();
        (is_bridge && start < end).then_some(start..end)
    }

    /// The bridges before a function, the nearest first.
    pub fn bridges_before(&self, index: usize) -> Vec<usize> {
        let before = |bus| match bus {
            Bus::Behind(bridge) => Some(bridge),
            Bus::Root(_) => None,
        };
        let first = before(self.places[index].0);
        core::iter::successors(first, |bridge| before(self.places[*bridge].0)).collect()
    }
}

impl ConfigurationAccess for Machine {
    fn read_word(&self, at: DeviceFunction, register: u8) -> u32 {
        self.read.borrow_mut().push(at);
        self.find(at)
            .map_or(ABSENT, |index| self.functions[index].word(register))
    }

    fn write_word(&mut self, at: DeviceFunction, register: u8, data: u32) {
        let Some(index) = self.find(at) else { return };
        let function = &mut self.functions[index];
        let end = if function.is_bridge() {
            BUS_NUMBERS
        } else {
            0x28
        };
        let bars = FIRST_BAR..end;
        let decodes = function.word(COMMAND) & 0b10 != 0;
        assert!(!(decodes && bars.contains(&register)), "{at} moves");
        let mask = function.writable.get(&register).copied().unwrap_or(0);
        let word = function.word(register) & !mask | data & mask;
        function.words.insert(register, word);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        panic!("nobody needs another");
    }
}
