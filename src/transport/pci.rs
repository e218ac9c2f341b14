//! Virtio over PCI, modern devices (virtio 1.2, section 4.1).

use super::{
    Address, DEVICE_TYPE, Device, DeviceFunction, DeviceList, DeviceStatus, DeviceType,
    FILE_SYSTEM_DEVICE_ID, FsTransport, InterruptStatus, PhysAddr, Transport, TransportError,
    VirtioError, config::ConfigSpace,
};
use crate::hal::Hal;
use core::{fmt, mem::size_of, ptr::NonNull};
use heapless::Vec;
use safe_mmio::{
    UniqueMmioPointer, field, field_shared,
    fields::{ReadOnly, ReadPure, ReadPureWrite, WriteOnly},
};
pub use virtio_drivers::transport::pci::bus::{Cam, ConfigurationAccess, MmioCam};
use virtio_drivers::transport::pci::{
    VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG, VIRTIO_VENDOR_ID,
    bus::{BarInfo, Command, PCI_CAP_ID_VNDR, PciRoot},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// PCI device IDs of modern devices start here (section 4.1.2.1).
const MODERN_DEVICE_ID_BASE: u16 = 0x1040;
/// What the vendor and device ID of a modern file system device read as.
const FILE_SYSTEM_DEVICE: u32 =
    ((MODERN_DEVICE_ID_BASE + FILE_SYSTEM_DEVICE_ID) as u32) << 16 | VIRTIO_VENDOR_ID as u32;
/// What the vendor and device ID of nothing read as.
const ABSENT: u32 = u32::MAX;
/// Offset of the word with the header type in its third byte (PCI 3.0, 6.1), whose uppermost bit
/// says that there is more than one function.
const HEADER_TYPE: u8 = 0x0c;
const MULTI_FUNCTION: u8 = 1 << 7;
/// The header type of a bridge.
const BRIDGE: u8 = 1;
/// Offset of the bus numbers in a bridge's configuration header (PCI-to-PCI bridge 1.2, 3.2.5).
const BRIDGE_BUS_NUMBERS: u8 = 0x18;
/// The most capabilities that fit into 256 bytes of configuration space behind its 64-byte header;
/// a longer list runs in a circle.
const MAX_CAPABILITIES: usize = 48;
/// Queues whose notification address is kept: hiprio and the first request queue.
const QUEUES: usize = 2;

/// `virtio_pci_common_cfg` (section 4.1.4.3).
#[repr(C)]
struct CommonConfig {
    device_feature_select: ReadPureWrite<u32>,
    device_feature: ReadPure<u32>,
    driver_feature_select: ReadPureWrite<u32>,
    driver_feature: ReadPureWrite<u32>,
    config_msix_vector: ReadPureWrite<u16>,
    num_queues: ReadPure<u16>,
    device_status: ReadPureWrite<u8>,
    config_generation: ReadPure<u8>,
    queue_select: ReadPureWrite<u16>,
    queue_size: ReadPureWrite<u16>,
    queue_msix_vector: ReadPureWrite<u16>,
    queue_enable: ReadPureWrite<u16>,
    queue_notify_off: ReadPure<u16>,
    // The addresses are pairs of 32-bit registers: no device must take 64-bit accesses
    // (section 4.1.3.1).
    queue_desc: [ReadPureWrite<u32>; 2],
    queue_driver: [ReadPureWrite<u32>; 2],
    queue_device: [ReadPureWrite<u32>; 2],
}

const _: () = assert!(core::mem::offset_of!(CommonConfig, queue_desc) == 0x20);

/// Where a platform lets a device's memory be.
pub struct BarRules<'a> {
    /// Whether device memory of that address and size, in bytes, is mapped and is neither RAM nor
    /// another device. A device on a hostile host may claim to be anywhere.
    pub accept: &'a dyn Fn(u64, u64) -> bool,
    /// Bytes of 32-bit PCI memory space that BARs without an address are placed in, on platforms
    /// whose firmware places none; what was used is taken off its start.
    pub unassigned: Option<core::ops::Range<u64>>,
}

impl fmt::Debug for BarRules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BarRules")
            .field("unassigned", &self.unassigned)
            .finish_non_exhaustive()
    }
}

/// Looks for file system devices on bus 0 and every bus behind a bridge that has its bus numbers.
///
/// Those found are appended to `found` until it is full. BARs are placed and address decoding and
/// bus mastering turned on for file system devices only.
///
/// # Safety
///
/// * `configuration` must reach the configuration space of a PCI bus that nothing else uses
///   meanwhile.
/// * Memory that `rules.accept` says yes to must be mapped as device memory for the rest of the
///   program, at the address that `H::mmio_phys_to_virt` gives, and used by nothing else.
pub unsafe fn scan<H: Hal, C: ConfigurationAccess>(
    configuration: C,
    mut rules: BarRules<'_>,
    found: &mut DeviceList,
) {
    // SAFETY: the clone only reads identity, capability and bus number fields, which nobody
    // writes.
    let reader = unsafe { configuration.unsafe_clone() };
    let mut root = PciRoot::new(configuration);
    let mut seen = [false; 256];
    let mut buses: Vec<u8, 32> = Vec::new();
    _ = buses.push(0);
    while let Some(bus) = buses.pop() {
        match seen.get_mut(usize::from(bus)) {
            Some(seen) if !*seen => *seen = true,
            _ => continue,
        }
        for function in functions(&reader, bus) {
            if header_type(&reader, function) & !MULTI_FUNCTION == BRIDGE {
                let secondary = (reader.read_word(function, BRIDGE_BUS_NUMBERS) >> 8) as u8;
                if buses.push(secondary).is_err() {
                    log::warn!("too many PCI bridges: bus {secondary:#04x} is not looked at");
                }
            }
            if reader.read_word(function, 0) != FILE_SYSTEM_DEVICE {
                continue;
            }
            let transport = open::<H, C>(&mut root, &reader, function, &mut rules);
            let device = Device {
                address: Address::Pci(function),
                transport: transport.map(FsTransport::Pci),
            };
            if found.push(device).is_err() {
                log::warn!("too many file system devices: the one at {function} is not used");
                return;
            }
        }
    }
}

/// The functions of a bus. A device without a first function has none, and most have no other
/// (PCI 3.0, 3.2.2.3.4): each look at one that is not there leaves the guest, too.
fn functions<C: ConfigurationAccess>(reader: &C, bus: u8) -> impl Iterator<Item = DeviceFunction> {
    let is_there = |function: &DeviceFunction| reader.read_word(*function, 0) != ABSENT;
    let all = (0..32).flat_map(move |device| {
        let numbered = move |function| DeviceFunction {
            bus,
            device,
            function,
        };
        let first = numbered(0);
        let count = if !is_there(&first) {
            0
        } else if header_type(reader, first) & MULTI_FUNCTION == 0 {
            1
        } else {
            8
        };
        (0..count).map(numbered)
    });
    all.filter(is_there)
}

fn header_type<C: ConfigurationAccess>(reader: &C, function: DeviceFunction) -> u8 {
    (reader.read_word(function, HEADER_TYPE) >> 16) as u8
}

/// A structure of the device inside a BAR (`virtio_pci_cap`, section 4.1.4).
#[derive(Clone, Copy)]
struct Structure {
    bar: u8,
    offset: u32,
    length: u32,
}

/// The structures that a modern device must have.
#[derive(Default)]
struct Structures {
    common: Option<Structure>,
    notify: Option<(Structure, u32)>,
    isr: Option<Structure>,
    device: Option<Structure>,
}

impl Structures {
    /// Collects the first capability of each kind; a driver must ignore the others (section
    /// 4.1.4.1).
    fn read<C: ConfigurationAccess>(
        root: &PciRoot<C>,
        reader: &C,
        function: DeviceFunction,
    ) -> Self {
        /// Offsets inside a virtio capability, from its start.
        const BAR: u8 = 4;
        const OFFSET: u8 = 8;
        const LENGTH: u8 = 12;
        const NOTIFY_MULTIPLIER: u8 = 16;

        let mut all = Self::default();
        for capability in root.capabilities(function).take(MAX_CAPABILITIES) {
            let [length, kind] = capability.private_header.to_le_bytes();
            // The capability must lie inside the 256 bytes of configuration space.
            let inside = |size: u8| length >= size && capability.offset.checked_add(size).is_some();
            if capability.id != PCI_CAP_ID_VNDR || !inside(16) {
                continue;
            }
            let word = |at: u8| reader.read_word(function, capability.offset.wrapping_add(at));
            let structure = Structure {
                bar: word(BAR) as u8,
                offset: word(OFFSET),
                length: word(LENGTH),
            };
            match kind {
                VIRTIO_PCI_CAP_COMMON_CFG => _ = all.common.get_or_insert(structure),
                VIRTIO_PCI_CAP_NOTIFY_CFG if inside(20) => {
                    _ = all
                        .notify
                        .get_or_insert((structure, word(NOTIFY_MULTIPLIER)));
                }
                VIRTIO_PCI_CAP_ISR_CFG => _ = all.isr.get_or_insert(structure),
                VIRTIO_PCI_CAP_DEVICE_CFG => _ = all.device.get_or_insert(structure),
                _ => {}
            }
        }
        all
    }
}

/// Addresses and sizes of a function's memory BARs, all placed.
struct Bars([Option<(u64, u64)>; 6]);

impl Bars {
    /// Reads the BARs, and places those that have no address yet.
    fn place<C: ConfigurationAccess>(
        root: &mut PciRoot<C>,
        function: DeviceFunction,
        rules: &mut BarRules<'_>,
    ) -> Result<Self, TransportError> {
        let bars = root
            .bars(function)
            .map_err(|_| TransportError::Capability("BARs"))?;
        let mut placed = [None; 6];
        for ((bar, place), index) in bars.into_iter().zip(&mut placed).zip(0u8..) {
            let Some(bar) = bar else { continue };
            let Some((mut address, size)) = bar.memory_address_size() else {
                continue;
            };
            if let (0, Some(window)) = (address, &mut rules.unassigned) {
                address = carve(window, size).ok_or(TransportError::WindowFull(size))?;
                match bar {
                    BarInfo::Memory { .. } if bar.takes_two_entries() => {
                        root.set_bar_64(function, index, address);
                    }
                    _ => root.set_bar_32(function, index, address as u32),
                }
            }
            *place = Some((address, size));
        }
        Ok(Self(placed))
    }

    /// The physical address of `structure`, if all of its at least `minimum` bytes are inside a
    /// BAR that the platform accepts, aligned for 32-bit registers.
    fn locate(
        &self,
        structure: Structure,
        minimum: usize,
        rules: &BarRules<'_>,
    ) -> Result<u64, TransportError> {
        let bar = structure.bar;
        let (address, size) = self
            .0
            .get(usize::from(bar))
            .copied()
            .flatten()
            .ok_or(TransportError::Bar { bar, address: 0 })?;
        let end = u64::from(structure.offset).saturating_add(structure.length.into());
        let usable = address != 0
            && address.checked_add(size).is_some()
            && end <= size
            && structure.length as usize >= minimum
            && structure.offset.is_multiple_of(4)
            && (rules.accept)(address, size);
        if usable {
            Ok(address.saturating_add(structure.offset.into()))
        } else {
            Err(TransportError::Bar { bar, address })
        }
    }
}

/// Takes `size` bytes, aligned to their size as a BAR must be, from the start of `window`.
fn carve(window: &mut core::ops::Range<u64>, size: u64) -> Option<u64> {
    if !size.is_power_of_two() {
        return None;
    }
    let address = window.start.checked_next_multiple_of(size)?;
    let end = address.checked_add(size)?;
    if end > window.end {
        return None;
    }
    window.start = end;
    Some(address)
}

/// Where a device's structures are in memory: aligned, large enough and where the platform lets
/// them be.
struct Places {
    common: u64,
    isr: u64,
    /// With its size in bytes, and what a queue's offset is multiplied by.
    notify: (u64, u32),
    multiplier: u32,
    /// With its size in bytes.
    device: (u64, u32),
}

impl Places {
    fn find<C: ConfigurationAccess>(
        root: &mut PciRoot<C>,
        function: DeviceFunction,
        structures: Structures,
        rules: &mut BarRules<'_>,
    ) -> Result<Self, TransportError> {
        let missing = TransportError::Capability;
        let common = structures.common.ok_or(missing("common configuration"))?;
        let (notify, multiplier) = structures.notify.ok_or(missing("notifications"))?;
        let isr = structures.isr.ok_or(missing("ISR status"))?;
        let device = structures.device.ok_or(missing("device configuration"))?;
        if !multiplier.is_multiple_of(2) {
            return Err(missing("notifications"));
        }
        let bars = Bars::place(root, function, rules)?;
        let locate = |structure, minimum| bars.locate(structure, minimum, rules);
        Ok(Self {
            common: locate(common, size_of::<CommonConfig>())?,
            isr: locate(isr, 1)?,
            notify: (locate(notify, size_of::<u16>())?, notify.length),
            multiplier,
            device: (locate(device, 1)?, device.length),
        })
    }
}

fn open<H: Hal, C: ConfigurationAccess>(
    root: &mut PciRoot<C>,
    reader: &C,
    function: DeviceFunction,
    rules: &mut BarRules<'_>,
) -> Result<PciTransport, TransportError> {
    let structures = Structures::read(root, reader, function);
    // Once, or the BARs' sizes would have it turned off and on for each: QEMU then lays its memory
    // out anew.
    let (_, command) = root.get_status_command(function);
    root.set_command(
        function,
        command & !(Command::IO_SPACE | Command::MEMORY_SPACE),
    );
    let places = Places::find(root, function, structures, rules);
    let enabled = Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE;
    let command = match places {
        Ok(_) => command | enabled,
        Err(_) => command,
    };
    root.set_command(function, command);
    // SAFETY: `Places` are in device memory that the caller of `scan` promised to be mapped and
    // ours, and answer from here on.
    unsafe { PciTransport::new::<H>(places?) }
}

/// A pointer to the device memory at `address`.
///
/// # Safety
///
/// A `T` of device memory must be mapped there for ever, with no other user.
unsafe fn region<H: Hal, T>(address: u64) -> UniqueMmioPointer<'static, T> {
    // SAFETY: the caller promises device memory of that size at that address.
    let pointer = unsafe { H::mmio_phys_to_virt(address, size_of::<T>()) };
    // SAFETY: the caller promises that it stays mapped and is ours alone.
    unsafe { UniqueMmioPointer::new(pointer.cast()) }
}

/// A pointer to `count` elements of device memory at `address`.
///
/// # Safety
///
/// As for [`region`], for the whole slice.
unsafe fn slice<H: Hal, T>(address: u64, count: usize) -> UniqueMmioPointer<'static, [T]> {
    // SAFETY: the caller promises device memory of that size at that address.
    let pointer = unsafe { H::mmio_phys_to_virt(address, count.saturating_mul(size_of::<T>())) };
    let slice = NonNull::slice_from_raw_parts(pointer.cast(), count);
    // SAFETY: the caller promises that it stays mapped and is ours alone.
    unsafe { UniqueMmioPointer::new(slice) }
}

/// A modern virtio-pci file system device.
#[derive(Debug)]
pub struct PciTransport {
    common: UniqueMmioPointer<'static, CommonConfig>,
    isr: UniqueMmioPointer<'static, ReadOnly<u8>>,
    notify: UniqueMmioPointer<'static, [WriteOnly<u16>]>,
    /// Index into `notify` for each queue, read once: a kick is one write.
    notify_index: [usize; QUEUES],
    config: ConfigSpace<'static>,
}

impl PciTransport {
    /// The device whose structures are there.
    ///
    /// # Safety
    ///
    /// They must be mapped as device memory for ever, at the addresses that `H` gives, with no
    /// other user.
    unsafe fn new<H: Hal>(places: Places) -> Result<Self, TransportError> {
        let (notify, notify_size) = places.notify;
        let notify_slots = (notify_size / 2) as usize;
        let (device, device_size) = places.device;
        let mut transport = Self {
            // SAFETY: promised by the caller; `Places` are aligned and large enough.
            common: unsafe { region::<H, _>(places.common) },
            // SAFETY: as above.
            isr: unsafe { region::<H, _>(places.isr) },
            // SAFETY: as above, for its size.
            notify: unsafe { slice::<H, _>(notify, notify_slots) },
            notify_index: [0; QUEUES],
            // SAFETY: as above, for its size.
            config: ConfigSpace::new(unsafe { slice::<H, _>(device, device_size as usize) }),
        };
        for (queue, index) in (0..).zip(&mut transport.notify_index) {
            field!(transport.common, queue_select).write(queue);
            let offset = u64::from(field_shared!(transport.common, queue_notify_off).read())
                .saturating_mul(places.multiplier.into());
            // Even, because the multiplier is.
            *index = usize::try_from(offset / 2).unwrap_or(usize::MAX);
            if *index >= notify_slots {
                return Err(TransportError::Capability("notifications"));
            }
        }
        Ok(transport)
    }
}

/// Writes a 64-bit address into its two registers.
macro_rules! write_address {
    ($self:ident, $register:ident, $address:expr) => {{
        let [low, high] = field!($self.common, $register).split();
        let (mut low, mut high) = (low, high);
        low.write($address as u32);
        high.write(($address >> 32) as u32);
    }};
}

impl Transport for PciTransport {
    fn device_type(&self) -> DeviceType {
        DEVICE_TYPE
    }

    fn read_device_features(&mut self) -> u64 {
        field!(self.common, device_feature_select).write(0);
        let low = field_shared!(self.common, device_feature).read();
        field!(self.common, device_feature_select).write(1);
        let high = field_shared!(self.common, device_feature).read();
        u64::from(high) << 32 | u64::from(low)
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        field!(self.common, driver_feature_select).write(0);
        field!(self.common, driver_feature).write(driver_features as u32);
        field!(self.common, driver_feature_select).write(1);
        field!(self.common, driver_feature).write((driver_features >> 32) as u32);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        field!(self.common, queue_select).write(queue);
        field_shared!(self.common, queue_size).read().into()
    }

    fn notify(&mut self, queue: u16) {
        let index = self.notify_index.get(usize::from(queue)).copied();
        if let Some(mut address) = index.and_then(|index| self.notify.get(index)) {
            address.write(queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(field_shared!(self.common, device_status).read().into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        field!(self.common, device_status).write(status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // A legacy register.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        field!(self.common, queue_select).write(queue);
        field!(self.common, queue_size).write(size as u16);
        write_address!(self, queue_desc, descriptors);
        write_address!(self, queue_driver, driver_area);
        write_address!(self, queue_device, device_area);
        field!(self.common, queue_enable).write(1);
    }

    fn queue_unset(&mut self, _queue: u16) {
        // Only a device reset disables a queue (section 4.1.4.3.2).
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        field!(self.common, queue_select).write(queue);
        field_shared!(self.common, queue_enable).read() != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        // Reading clears it (section 4.1.4.5).
        InterruptStatus::from_bits_retain(self.isr.read().into())
    }

    fn read_config_generation(&self) -> u32 {
        field_shared!(self.common, config_generation).read().into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, VirtioError> {
        self.config.read(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), VirtioError> {
        self.config.write(offset, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use std::vec::Vec;

    /// A bus with functions of these header types, and which words of it were read.
    struct Bus {
        functions: &'static [(u8, u8, u8)],
        read: RefCell<Vec<(u8, u8)>>,
    }

    impl ConfigurationAccess for Bus {
        fn read_word(&self, at: DeviceFunction, register: u8) -> u32 {
            self.read.borrow_mut().push((at.device, at.function));
            let mut functions = self.functions.iter();
            let found = functions.find(|found| (found.0, found.1) == (at.device, at.function));
            match (found, register) {
                (None, _) => ABSENT,
                (Some(_), 0) => FILE_SYSTEM_DEVICE,
                (Some(found), HEADER_TYPE) => u32::from(found.2) << 16,
                (Some(_), _) => panic!("nothing else is of interest"),
            }
        }

        fn write_word(&mut self, _: DeviceFunction, _: u8, _: u32) {
            panic!("a look changes nothing");
        }

        unsafe fn unsafe_clone(&self) -> Self {
            panic!("nobody needs another");
        }
    }

    #[test]
    fn functions_are_looked_for_where_there_can_be_some() {
        let bus = Bus {
            functions: &[
                (0, 0, 0),
                (0, 1, 0), // not where there is one function
                (2, 3, 0), // not where there is no first one
                (31, 0, BRIDGE | MULTI_FUNCTION),
                (31, 2, 0),
                (31, 7, 0),
            ],
            read: RefCell::default(),
        };
        let found = functions(&bus, 0).map(|at| (at.device, at.function));
        let found: Vec<_> = found.collect();
        assert_eq!(found, [(0, 0), (31, 0), (31, 2), (31, 7)]);
        let read = bus.read.borrow();
        assert!(read.iter().all(|at| at.1 == 0 || at.0 == 31));
    }
}
