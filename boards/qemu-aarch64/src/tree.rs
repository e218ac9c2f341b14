//! The facts in the device tree that this board needs. Pure; tested on the host.
//!
//! Names and conventions are those of the Devicetree Specification 0.4 and of the kernel's bindings
//! for each `compatible` string. Devices are searched only among the children of the root, where
//! `virt` has them, and where addresses are physical.

use bootshare::boot::memory::{MAX_REGIONS, MemoryKind, MemoryMap, MemoryRegion, Range};
use dtoolkit::{
    Cells, Node, Property, ToCellInt,
    fdt::{Fdt, FdtNode},
    standard::{NodeStandard, Status},
};
use heapless::Vec;

/// `virt` has 32 virtio-mmio slots.
const MAX_SLOTS: usize = 32;
/// The greatest number of banks of RAM, and of reserved ranges: even if each reserved range splits
/// a bank, the memory map has room for all.
const MAX_RANGES: usize = 32;
const _: () = assert!(3 * MAX_RANGES <= MAX_REGIONS);

/// The greatest number of devices of a [`Kind`].
const MAX_DEVICES: usize = 128;

/// Space code in the first cell of a PCI `ranges` entry, and its value for 32-bit memory (PCI bus
/// binding to IEEE 1275, section 2.2.1.1).
const PCI_SPACE_MASK: u32 = 0b11 << 24;
const PCI_MEMORY_32: u32 = 0b10 << 24;

/// Configuration space of one bus in an ECAM window (PCI Express 5.0, section 7.2.2).
pub const ECAM_BUS_SIZE: u64 = 1 << 20;

/// The instruction that calls the firmware (`/psci`, property `method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// Hypervisor call.
    Hvc,
    /// Secure monitor call.
    Smc,
}

/// A generic ECAM host bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// Configuration space, from bus 0.
    pub ecam: Range,
    /// 32-bit memory window, at the same addresses on the bus as for the processor.
    pub window: Range,
}

/// The interrupt controller and its version; this is the range of its distributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptController {
    /// The range of the processor interface.
    V2([Range; 2]),
    /// The range of the redistributors, or the first region of them.
    V3([Range; 2]),
}

/// A list has more entries than there is room for.
fn too_many<T>(_: T) -> &'static str {
    "the device tree has more than 32 ranges of one kind of memory"
}

/// The bytes of the property `name`, for as long as the tree lives.
fn property<'a>(node: FdtNode<'a>, name: &str) -> Option<&'a [u8]> {
    let property = node.properties().find(|found| found.name() == name)?;
    property.value_as().ok()
}

/// The first string of a property, without its NUL.
fn string<'a>(node: FdtNode<'a>, name: &str) -> Option<&'a [u8]> {
    property(node, name)?.split(|byte| *byte == 0).next()
}

/// Whether the node is neither disabled nor failed.
fn is_enabled(node: &FdtNode<'_>) -> bool {
    matches!(node.status(), Ok(Status::Okay))
}

/// One range of `reg` or `ranges`; `None` if it is empty or does not fit into 64 bits.
fn range(start: Cells<'_>, size: Cells<'_>) -> Option<Range> {
    let (start, size): (u64, u64) = (start.to_int().ok()?, size.to_int().ok()?);
    Some(Range::with_size(start, size)).filter(|range| range.size() > 0)
}

/// The ranges of a node's `reg`.
fn ranges<'a>(node: FdtNode<'a>) -> impl Iterator<Item = Range> + 'a {
    let reg = node.reg().ok().flatten();
    reg.into_iter()
        .flatten()
        .filter_map(|reg| range(reg.address, reg.size))
}

/// The kinds of devices that the firmware uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    /// PL011.
    Console,
    FwCfg,
    Gic2,
    Gic3,
    /// A virtio-mmio slot.
    Slot,
    PciHost,
}

impl Kind {
    /// The kind of an enabled node, determined in one pass over its properties, because the tree
    /// has hundreds.
    fn of(node: FdtNode<'_>) -> Option<Self> {
        let mut kind = None;
        for property in node.properties() {
            match property.name() {
                "status" if !is_enabled(&node) => return None,
                "device_type" if property.value() == b"memory\0" => kind = Some(Self::Memory),
                "compatible" => {
                    let mut names = property.value().split(|byte| *byte == 0);
                    kind = kind.or_else(|| names.find_map(Self::compatible));
                }
                _ => {}
            }
        }
        kind
    }

    fn compatible(name: &[u8]) -> Option<Self> {
        match name {
            b"arm,pl011" => Some(Self::Console),
            b"qemu,fw-cfg-mmio" => Some(Self::FwCfg),
            b"arm,cortex-a15-gic" => Some(Self::Gic2),
            b"arm,gic-v3" => Some(Self::Gic3),
            b"virtio,mmio" => Some(Self::Slot),
            b"pci-host-ecam-generic" => Some(Self::PciHost),
            _ => None,
        }
    }
}

/// The device tree, with the offsets of the machine's devices in it.
pub struct Tree<'a> {
    fdt: Fdt<'a>,
    devices: Vec<(Kind, FdtNode<'a>), MAX_DEVICES>,
}

impl<'a> Tree<'a> {
    /// Reads the tree in `blob`, which must have the tree's size.
    ///
    /// # Errors
    ///
    /// What is wrong with the tree.
    pub fn read(blob: &'a [u8]) -> Result<Self, &'static str> {
        let fdt = Fdt::new(blob).map_err(|_| "the device tree is malformed")?;
        let mut devices = Vec::new();
        for node in fdt.root().children() {
            if let Some(kind) = Kind::of(node) {
                let pushed = devices.push((kind, node));
                pushed.map_err(|_| "the device tree has more than 128 devices to look at")?;
            }
        }
        Ok(Self { fdt, devices })
    }

    /// The blob of the tree.
    pub fn blob(&self) -> &'a [u8] {
        self.fdt.data()
    }

    /// The enabled children of the root of this kind.
    fn all(&self, kind: Kind) -> impl Iterator<Item = FdtNode<'a>> {
        let devices = self.devices.iter();
        devices.filter_map(move |(found, node)| (*found == kind).then_some(*node))
    }

    /// The firmware's command line: `/chosen`, property `bootargs`.
    pub fn command_line(&self) -> &'a [u8] {
        let chosen = self.fdt.find_node("/chosen");
        chosen
            .and_then(|chosen| string(chosen, "bootargs"))
            .unwrap_or_default()
    }

    /// QEMU's fw_cfg device.
    pub fn fw_cfg(&self) -> Option<Range> {
        ranges(self.all(Kind::FwCfg).next()?).next()
    }

    /// The interrupt controller, if its kind is supported.
    pub fn interrupt_controller(&self) -> Option<InterruptController> {
        let registers = |kind| {
            let mut registers = ranges(self.all(kind).next()?);
            Some([registers.next()?, registers.next()?])
        };
        let v2 = registers(Kind::Gic2).map(InterruptController::V2);
        v2.or_else(|| registers(Kind::Gic3).map(InterruptController::V3))
    }

    /// Physical address of the PL011 that `/chosen`, property `stdout-path` names, or else of the
    /// first one.
    pub fn console(&self) -> Option<Range> {
        let address = |node: FdtNode<'_>| ranges(node).next();
        let named = || {
            let tree = self.fdt;
            let path = string(tree.find_node("/chosen")?, "stdout-path")?;
            // Options may follow, as in `serial0:115200n8`.
            let path = path.split(|byte| *byte == b':').next()?;
            let path = match path.first()? {
                b'/' => path,
                _ => string(
                    tree.find_node("/aliases")?,
                    core::str::from_utf8(path).ok()?,
                )?,
            };
            let node = tree.find_node(core::str::from_utf8(path).ok()?)?;
            address(node).filter(|_| Kind::of(node) == Some(Kind::Console))
        };
        named().or_else(|| self.all(Kind::Console).find_map(address))
    }

    /// How PSCI is called, if there is PSCI 0.2 or later: earlier versions cannot power the machine
    /// off.
    pub fn psci_conduit(&self) -> Option<Conduit> {
        let node = self.fdt.find_node("/psci").filter(is_enabled)?;
        let mut kinds = property(node, "compatible")?.split(|byte| *byte == 0);
        if !kinds.any(|kind| matches!(kind, b"arm,psci-0.2" | b"arm,psci-1.0")) {
            return None;
        }
        match string(node, "method")? {
            b"hvc" => Some(Conduit::Hvc),
            b"smc" => Some(Conduit::Smc),
            _ => None,
        }
    }

    /// RAM in ascending order without overlaps. Reserved ranges are removed from it and listed as
    /// reserved.
    ///
    /// # Errors
    ///
    /// What is wrong with the tree: it has no RAM, or more ranges than there is room for.
    pub fn memory_map(&self) -> Result<MemoryMap, &'static str> {
        let mut ram: Vec<Range, MAX_RANGES> = Vec::new();
        for bank in self.all(Kind::Memory).flat_map(ranges) {
            insert(&mut ram, bank)?;
        }
        if ram.is_empty() {
            return Err("the device tree names no memory");
        }

        let mut reserved: Vec<Range, MAX_RANGES> = Vec::new();
        let entries = self
            .fdt
            .memory_reservations()
            .map(|entry| Range::with_size(entry.address(), entry.size()));
        let nodes = self.fdt.find_node("/reserved-memory");
        let nodes = nodes.into_iter().flat_map(|parent| parent.children());
        for range in entries.chain(nodes.filter(is_enabled).flat_map(ranges)) {
            insert(&mut reserved, range)?;
        }

        let mut map = MemoryMap::new();
        let mut push = |start, end, kind| {
            if start < end {
                let range = Range { start, end };
                map.push(MemoryRegion { range, kind }).map_err(too_many)?;
            }
            Ok(())
        };
        for bank in &ram {
            let mut free = bank.start;
            for taken in reserved.iter().filter(|taken| taken.overlaps(bank)) {
                let (start, end) = (taken.start.max(bank.start), taken.end.min(bank.end));
                push(free, start, MemoryKind::Usable)?;
                push(start, end, MemoryKind::Reserved)?;
                free = end;
            }
            push(free, bank.end, MemoryKind::Usable)?;
        }
        Ok(map)
    }

    /// virtio-mmio slots, in the order in which QEMU fills them: from the highest address down.
    ///
    /// QEMU assigns the last slot to the first virtio device of its command line, so this is the
    /// order in which the user named the devices.
    pub fn mmio_slots(&self) -> Vec<Range, MAX_SLOTS> {
        let mut slots: Vec<Range, MAX_SLOTS> = Vec::new();
        for node in self.all(Kind::Slot) {
            let Some(slot) = ranges(node).next() else {
                continue;
            };
            let below = |other: &Range| other.start < slot.start;
            let at = slots.iter().position(below).unwrap_or(slots.len());
            if slots.insert(at, slot).is_err() {
                log::warn!(
                    "more than {MAX_SLOTS} virtio-mmio slots: the one at {slot:?} is not looked at"
                );
            }
        }
        slots
    }

    /// The PCI host bridge, if there is one.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    pub fn pci_host(&self) -> Result<Option<PciHost>, &'static str> {
        let Some(node) = self.all(Kind::PciHost).next() else {
            return Ok(None);
        };
        let mut ecam = ranges(node).next().ok_or("it has no registers")?;
        let buses = match property(node, "bus-range") {
            None => 256,
            Some(&[0, 0, 0, 0, 0, 0, 0, last]) => u64::from(last) + 1,
            Some(_) => return Err("its buses do not start at 0"),
        };
        ecam.end = ecam
            .end
            .min(ecam.start.saturating_add(buses * ECAM_BUS_SIZE));

        let windows = node.ranges().ok().flatten();
        let window = windows.into_iter().flatten().find_map(|window| {
            let [space, high, low] = window.child_bus_address.as_ref() else {
                return None;
            };
            let on_bus = u64::from(high.get()) << 32 | u64::from(low.get());
            let range = range(window.parent_bus_address, window.length)?;
            (space.get() & PCI_SPACE_MASK == PCI_MEMORY_32 && on_bus == range.start)
                .then_some(range)
        });
        let window = window.ok_or("it has no 32-bit memory window that is mapped one to one")?;
        Ok(Some(PciHost { ecam, window }))
    }
}

/// Inserts `range` into an ascending list, and merges ranges that touch or overlap.
///
/// # Errors
///
/// There is no room.
fn insert(list: &mut Vec<Range, MAX_RANGES>, range: Range) -> Result<(), &'static str> {
    if range.size() == 0 {
        return Ok(());
    }
    let after = |other: &Range| other.start > range.start;
    let at = list.iter().position(after).unwrap_or(list.len());
    list.insert(at, range).map_err(too_many)?;
    // From the previous range on, each range may now overlap the next one.
    let mut index = at.saturating_sub(1);
    while let Some(&[first, second]) = list.get(index..).and_then(|rest| rest.first_chunk()) {
        if second.start <= first.end {
            list[index].end = first.end.max(second.end);
            list.remove(index + 1);
        } else if index < at {
            index += 1;
        } else {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::{
        memreserve::MemoryReservation,
        model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
    };

    fn cells(cells: &[u32]) -> std::vec::Vec<u8> {
        cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
    }

    fn node(name: &str, properties: &[(&str, &[u8])]) -> DeviceTreeNode {
        let mut node = DeviceTreeNode::new(name).unwrap();
        for (name, value) in properties {
            node.add_property(DeviceTreeProperty::new(*name, *value).unwrap());
        }
        node
    }

    /// A tree whose root has two address and two size cells, as `virt`'s.
    fn tree(children: impl IntoIterator<Item = DeviceTreeNode>) -> DeviceTree {
        let mut tree = DeviceTree::new();
        for name in ["#address-cells", "#size-cells"] {
            let two = DeviceTreeProperty::new(name, &cells(&[2])[..]).unwrap();
            tree.root.add_property(two);
        }
        for child in children {
            tree.root.add_child(child);
        }
        tree
    }

    fn with<T>(tree: &DeviceTree, look: impl FnOnce(&Tree<'_>) -> T) -> T {
        let blob = tree.to_dtb();
        let tree = Tree::read(&blob).unwrap();
        assert_eq!(tree.blob(), blob);
        look(&tree)
    }

    fn memory(name: &str, start: u64, size: u64) -> DeviceTreeNode {
        let reg = [start.to_be_bytes(), size.to_be_bytes()].concat();
        node(name, &[("device_type", b"memory\0"), ("reg", &reg)])
    }

    fn regions(map: &MemoryMap) -> std::vec::Vec<(u64, u64, MemoryKind)> {
        map.iter()
            .map(|region| (region.range.start, region.range.end, region.kind))
            .collect()
    }

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let joined = |ranges: &[(u64, u64)]| {
            let mut list = Vec::new();
            for (start, end) in ranges {
                let (start, end) = (*start, *end);
                insert(&mut list, Range { start, end }).unwrap();
            }
            list.iter()
                .map(|range| (range.start, range.end))
                .collect::<std::vec::Vec<_>>()
        };
        assert_eq!(joined(&[(5, 6), (1, 2), (3, 4)]), [(1, 2), (3, 4), (5, 6)]);
        assert_eq!(joined(&[(1, 3), (5, 7), (3, 5)]), [(1, 7)]);
        assert_eq!(joined(&[(3, 4), (5, 6), (8, 9), (2, 7)]), [(2, 7), (8, 9)]);
        assert_eq!(joined(&[(1, 9), (2, 3), (1, 4), (9, 9)]), [(1, 9)]);
        assert_eq!(joined(&[(2, 3), (2, 5), (0, 1)]), [(0, 1), (2, 5)]);
    }

    #[test]
    fn banks_are_sorted_and_joined() {
        let tree = tree([
            memory("memory@80000000", 0x8000_0000, 0x1000_0000),
            memory("memory@40000000", 0x4000_0000, 0x4000_0000),
        ]);
        let map = with(&tree, |tree| tree.memory_map()).unwrap();
        assert_eq!(
            regions(&map),
            [(0x4000_0000, 0x9000_0000, MemoryKind::Usable)]
        );
    }

    #[test]
    fn reserved_memory_is_taken_out_of_the_ram() {
        let mut parent = node(
            "reserved-memory",
            &[
                ("#address-cells", &cells(&[2])),
                ("#size-cells", &cells(&[2])),
            ],
        );
        parent.add_child(node(
            "a@41000000",
            &[("reg", &cells(&[0, 0x4100_0000, 0, 0x1000]))],
        ));
        // Only a size: Linux places it, so nothing is reserved for us.
        parent.add_child(node("b", &[("size", &cells(&[0, 0x1000]))]));
        let mut tree = tree([memory("memory@40000000", 0x4000_0000, 0x1000_0000), parent]);
        tree.memory_reservations = [
            MemoryReservation::new(0x4f00_0000, 0x1000_0000),
            MemoryReservation::new(0x1000, 0x1000),
        ]
        .into();
        let map = with(&tree, |tree| tree.memory_map()).unwrap();
        assert_eq!(
            regions(&map),
            [
                (0x4000_0000, 0x4100_0000, MemoryKind::Usable),
                (0x4100_0000, 0x4100_1000, MemoryKind::Reserved),
                (0x4100_1000, 0x4f00_0000, MemoryKind::Usable),
                (0x4f00_0000, 0x5000_0000, MemoryKind::Reserved),
            ]
        );
    }

    #[test]
    fn disabled_memory_is_no_memory() {
        let mut secure = memory("secram@e000000", 0x0e00_0000, 0x100_0000);
        secure.add_property(DeviceTreeProperty::new("status", "disabled").unwrap());
        assert!(with(&tree([secure]), |tree| tree.memory_map()).is_err());
        assert!(with(&tree([]), |tree| tree.memory_map()).is_err());
    }

    #[test]
    fn too_many_reserved_ranges_are_an_error_and_not_forgotten() {
        let mut tree = tree([memory("memory@40000000", 0x4000_0000, 0x1000_0000)]);
        tree.memory_reservations = (0..33)
            .map(|index| MemoryReservation::new(0x4000_0000 + index * 0x2000, 0x1000))
            .collect();
        assert!(with(&tree, |tree| tree.memory_map()).is_err());
    }

    #[test]
    fn the_command_line_ends_at_its_nul_and_may_be_any_bytes() {
        let chosen = |value: &[u8]| tree([node("chosen", &[("bootargs", value)])]);
        assert_eq!(
            with(&chosen(b"a=\xff b\0"), |tree| tree.command_line().to_vec()),
            b"a=\xff b"
        );
        assert_eq!(with(&chosen(b""), |tree| tree.command_line().to_vec()), b"");
        assert_eq!(with(&tree([]), |tree| tree.command_line().to_vec()), b"");
    }

    fn uart(name: &str, base: u32) -> DeviceTreeNode {
        let reg = cells(&[0, base, 0, 0x1000]);
        node(
            name,
            &[("compatible", b"arm,pl011\0arm,primecell\0"), ("reg", &reg)],
        )
    }

    #[test]
    fn the_interrupt_controller_has_two_sets_of_registers() {
        let reg = cells(&[0, 0x0800_0000, 0, 0x1_0000, 0, 0x0801_0000, 0, 0x1_0000]);
        let gic = |compatible: &[u8], reg: &[u8]| {
            let properties = [("compatible", compatible), ("reg", reg)];
            with(&tree([node("intc@8000000", &properties)]), |tree| {
                tree.interrupt_controller()
            })
        };
        let both = [0x0800_0000, 0x0801_0000].map(|start| Range::with_size(start, 0x1_0000));
        let (v2, v3) = (InterruptController::V2(both), InterruptController::V3(both));
        assert_eq!(gic(b"arm,cortex-a15-gic\0", &reg), Some(v2));
        assert_eq!(gic(b"arm,cortex-a15-gic\0", &reg[..16]), None);
        assert_eq!(gic(b"arm,gic-v3\0", &reg), Some(v3));
        assert_eq!(gic(b"arm,gic-v5\0", &reg), None);
        assert_eq!(with(&tree([]), |tree| tree.interrupt_controller()), None);
    }

    #[test]
    fn the_console_is_the_one_that_chosen_names() {
        let uarts = || {
            [
                uart("pl011@9000000", 0x0900_0000),
                uart("pl011@9040000", 0x0904_0000),
            ]
        };
        let start = |tree: &DeviceTree| with(tree, |tree| tree.console()).map(|range| range.start);
        let chosen = |path: &[u8]| node("chosen", &[("stdout-path", path)]);

        assert_eq!(start(&tree(uarts())), Some(0x0900_0000));
        let mut named = tree(uarts());
        named.root.add_child(chosen(b"/pl011@9040000\0"));
        assert_eq!(start(&named), Some(0x0904_0000));
        let mut alias = tree(uarts());
        alias.root.add_child(chosen(b"serial1:115200n8\0"));
        alias
            .root
            .add_child(node("aliases", &[("serial1", b"/pl011@9040000\0")]));
        assert_eq!(start(&alias), Some(0x0904_0000));
        let mut nonsense = tree(uarts());
        nonsense.root.add_child(chosen(b"/chosen\0"));
        assert_eq!(start(&nonsense), Some(0x0900_0000));
        assert_eq!(start(&tree([])), None);
    }

    #[test]
    fn fw_cfg_is_found_by_its_kind() {
        let device = |kind: &[u8]| {
            let reg = cells(&[0, 0x0902_0000, 0, 0x18]);
            tree([node(
                "fw-cfg@9020000",
                &[("compatible", kind), ("reg", &reg)],
            )])
        };
        let registers = Range::with_size(0x0902_0000, 0x18);
        assert_eq!(
            with(&device(b"qemu,fw-cfg-mmio\0"), |tree| tree.fw_cfg()),
            Some(registers)
        );
        assert_eq!(with(&device(b"qemu,other\0"), |tree| tree.fw_cfg()), None);
    }

    #[test]
    fn psci_is_called_as_its_node_says() {
        let of = |kinds: &[u8], method: &[u8]| {
            tree([node("psci", &[("compatible", kinds), ("method", method)])])
        };
        let psci = |method: &[u8]| of(b"arm,psci-1.0\0arm,psci-0.2\0arm,psci\0", method);
        assert_eq!(
            with(&psci(b"hvc\0"), |tree| tree.psci_conduit()),
            Some(Conduit::Hvc)
        );
        assert_eq!(
            with(&psci(b"smc\0"), |tree| tree.psci_conduit()),
            Some(Conduit::Smc)
        );
        assert_eq!(with(&psci(b"svc\0"), |tree| tree.psci_conduit()), None);
        let old = of(b"arm,psci\0", b"hvc\0");
        assert_eq!(with(&old, |tree| tree.psci_conduit()), None);
        assert_eq!(with(&tree([]), |tree| tree.psci_conduit()), None);
    }

    #[test]
    fn slots_are_listed_from_the_last() {
        let slot = |name: &str, base| {
            let reg = cells(&[0, base, 0, 0x200]);
            node(name, &[("compatible", b"virtio,mmio\0"), ("reg", &reg)])
        };
        let tree = tree([
            slot("virtio_mmio@a000000", 0x0a00_0000),
            slot("virtio_mmio@a000200", 0x0a00_0200),
        ]);
        let starts: std::vec::Vec<u64> = with(&tree, |tree| tree.mmio_slots())
            .iter()
            .map(|slot| slot.start)
            .collect();
        assert_eq!(starts, [0x0a00_0200, 0x0a00_0000]);
    }

    /// QEMU's bridge: an I/O window, a 32-bit one and a 64-bit one.
    fn pcie(ecam: [u32; 4], buses: [u32; 2], on_bus: u32) -> DeviceTree {
        let windows = [
            [0x100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000],
            [0x200_0000, 0, on_bus, 0, 0x1000_0000, 0, 0x2eff_0000],
            [0x300_0000, 0x80, 0, 0x80, 0, 0x80, 0],
        ];
        tree([node(
            "pcie@10000000",
            &[
                ("compatible", b"pci-host-ecam-generic\0"),
                ("#address-cells", &cells(&[3])),
                ("#size-cells", &cells(&[2])),
                ("reg", &cells(&ecam)),
                ("bus-range", &cells(&buses)),
                ("ranges", &cells(windows.as_flattened())),
            ],
        )])
    }

    #[test]
    fn the_host_bridge_has_a_window_below_4_gib() {
        let tree = pcie([0x40, 0x1000_0000, 0, 0x1000_0000], [0, 255], 0x1000_0000);
        let host = with(&tree, |tree| tree.pci_host()).unwrap().unwrap();
        assert_eq!(host.ecam, Range::with_size(0x40_1000_0000, 0x1000_0000));
        assert_eq!(host.window, Range::with_size(0x1000_0000, 0x2eff_0000));
    }

    #[test]
    fn fewer_buses_make_the_configuration_space_smaller() {
        let tree = pcie([0, 0x3f00_0000, 0, 0x1000_0000], [0, 15], 0x1000_0000);
        let host = with(&tree, |tree| tree.pci_host()).unwrap().unwrap();
        assert_eq!(host.ecam, Range::with_size(0x3f00_0000, 0x100_0000));
    }

    #[test]
    fn an_unknown_host_bridge_is_an_error_and_a_missing_one_is_not() {
        let other_bus = pcie([0, 0x3f00_0000, 0, 0x100_0000], [1, 15], 0x1000_0000);
        assert!(with(&other_bus, |tree| tree.pci_host()).is_err());
        let translated = pcie([0, 0x3f00_0000, 0, 0x100_0000], [0, 15], 0);
        assert!(with(&translated, |tree| tree.pci_host()).is_err());
        assert_eq!(with(&tree([]), |tree| tree.pci_host()), Ok(None));
    }
}
