//! Virtio over PCI, modern devices (virtio 1.2, section 4.1).

mod ecam;
#[cfg(test)]
mod fake;
mod set_up;

use super::{
    Address, DEVICE_TYPE, Device, DeviceFunction, DeviceList, DeviceStatus, DeviceType,
    FILE_SYSTEM_DEVICE_ID, FsTransport, InterruptStatus, PhysAddr, Transport, TransportError,
    VirtioError, config::ConfigSpace,
};
use crate::hal::Hal;
use core::{iter, mem::size_of, ptr::NonNull};
pub use ecam::Ecam;
use safe_mmio::{
    UniqueMmioPointer, field, field_shared,
    fields::{ReadOnly, ReadPure, ReadPureWrite, WriteOnly},
};
pub use set_up::set_up;
pub use virtio_drivers::transport::pci::bus::{Cam, ConfigurationAccess, MmioCam};
use virtio_drivers::transport::pci::{
    VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG, VIRTIO_VENDOR_ID,
    bus::{Command, PCI_CAP_ID_VNDR, Status},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The first PCI device ID of modern devices (section 4.1.2.1).
const MODERN_DEVICE_ID_BASE: u16 = 0x1040;
/// The first configuration word (vendor and device ID) of a modern file system device.
const FILE_SYSTEM_DEVICE: u32 =
    ((MODERN_DEVICE_ID_BASE + FILE_SYSTEM_DEVICE_ID) as u32) << 16 | VIRTIO_VENDOR_ID as u32;
/// The first configuration word if there is no function.
const ABSENT: u32 = u32::MAX;

// Offsets of words in the configuration header (PCI 3.0, 6.1; PCI-to-PCI bridge 1.2, 3.2).

/// Command register in the lower half, status register in the upper half.
const COMMAND: u8 = 0x04;
/// Class and subclass are in the upper half.
const CLASS: u8 = 0x08;
const HOST_BRIDGE: u32 = 0x0600;
/// The header type is the third byte; its highest bit means that there is more than one function.
const HEADER_TYPE: u8 = 0x0c;
const MULTI_FUNCTION: u8 = 1 << 7;
/// The header type of a bridge.
const BRIDGE: u8 = 1;
const FIRST_BAR: u8 = 0x10;
/// A bridge's primary, secondary and subordinate bus number, one byte each.
const BUS_NUMBERS: u8 = 0x18;
const CAPABILITIES: u8 = 0x34;

/// The most capabilities that fit into 256 bytes of configuration space after its 64-byte header; a
/// longer list must be circular.
const MAX_CAPABILITIES: usize = 48;
/// Number of queues that can be used, including hiprio: their notification addresses are stored. A
/// device may have more, which are reported as not available.
const QUEUES: usize = 8;

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
    // Addresses are pairs of 32-bit registers, because a device need not support 64-bit accesses
    // (section 4.1.3.1).
    queue_desc: [ReadPureWrite<u32>; 2],
    queue_driver: [ReadPureWrite<u32>; 2],
    queue_device: [ReadPureWrite<u32>; 2],
}

const _: () = assert!(core::mem::offset_of!(CommonConfig, queue_desc) == 0x20);

/// Whether the platform accepts device memory at that address and of that size in bytes: it must be
/// mapped, and neither RAM nor another device. A hostile host may place a BAR anywhere.
pub type Accept<'a> = &'a dyn Fn(u64, u64) -> bool;

/// Looks for file system devices on bus 0 and on every bus behind a bridge that has bus numbers. If
/// bus 0 has a second host bridge, all other buses are searched too, because some may be root buses.
///
/// The devices are appended to `found` until it is full, in the order of their bus, device and
/// function numbers, each with the result of [`probe`]. Nothing is written to other functions. On a
/// machine whose firmware has not numbered buses and placed BARs, call [`set_up`] before.
///
/// # Safety
///
/// `configuration` must access the configuration space of a PCI bus that nothing else uses at the
/// same time.
///
/// Memory that `accept` accepts must be mapped as device memory for the rest of the program, at the
/// address that `H::mmio_phys_to_virt` returns, and must have no other user.
pub unsafe fn scan<H: Hal, C: ConfigurationAccess>(
    configuration: &mut C,
    accept: Accept<'_>,
    found: &mut DeviceList,
) {
    // A secondary bus must have a greater number than its bridge's bus, so one pass in ascending order
    // is enough, and circles are impossible.
    let mut reached = [false; 256];
    for bus in 0..=u8::MAX {
        if bus != 0
            && !reached
                .get(usize::from(bus))
                .is_some_and(|reached| *reached)
        {
            continue;
        }
        let mut functions = Functions::on(bus);
        while let Some(at) = functions.next(configuration) {
            if is_bridge(configuration, at) {
                let behind = (configuration.read_word(at, BUS_NUMBERS) >> 8) as u8;
                match reached.get_mut(usize::from(behind)) {
                    Some(reached) if behind > bus => *reached = true,
                    _ => log::warn!(
                        "nothing is looked for behind the PCI bridge at {at}: its bus has the \
                         number {behind:#04x}"
                    ),
                }
            } else if has_more_roots(configuration, at) {
                reached.fill(true);
            }
            // SAFETY: the caller promises the same, and each function is probed once.
            let Some(transport) = (unsafe { probe::<H, C>(configuration, at, accept) }) else {
                continue;
            };
            let device = Device {
                address: Address::Pci(at),
                transport: transport.map(FsTransport::Pci),
            };
            if found.push(device).is_err() {
                log::warn!("too many file system devices: the one at {at} is not used");
                return;
            }
        }
    }
}

/// Probes one function for a file system device, for platforms that know where it is.
///
/// `None` means that there is no function, or that it is another device. If the device can be used,
/// its address decoding and bus mastering are enabled, and its interrupt pin is disabled.
///
/// # Errors
///
/// For a file system device that cannot be used: [`TransportError::Capability`] or
/// [`TransportError::Bar`].
///
/// # Safety
///
/// As for [`scan`]; and no other transport may use this function.
pub unsafe fn probe<H: Hal, C: ConfigurationAccess>(
    configuration: &mut C,
    function: DeviceFunction,
    accept: Accept<'_>,
) -> Option<Result<PciTransport, TransportError>> {
    if configuration.read_word(function, 0) != FILE_SYSTEM_DEVICE {
        return None;
    }
    let before = command(configuration, function);
    set_command(configuration, function, before & !Command::MEMORY_SPACE);
    let bars = Bars::read(configuration, function);
    let places = Places::find(configuration, function, &bars, accept);
    let enabled = Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE;
    let after = match places {
        Ok(_) => before | enabled,
        Err(_) => before,
    };
    set_command(configuration, function, after);
    // SAFETY: `Places` are in device memory that the caller promised to be mapped and used by nothing
    // else, and address decoding is enabled.
    Some(places.and_then(|places| unsafe { PciTransport::new::<H>(places) }))
}

/// The functions of a bus.
struct Functions {
    bus: u8,
    /// The next device and function number; the function is the lower three bits.
    next: u16,
}

impl Functions {
    fn on(bus: u8) -> Self {
        Self { bus, next: 0 }
    }

    /// The next function that exists. A device without function 0 has no others, and neither has one
    /// without the multi-function bit (PCI 3.0, 3.2.2.3.4); these are not read, since each access is
    /// an exit to the hypervisor.
    fn next<C: ConfigurationAccess>(&mut self, configuration: &C) -> Option<DeviceFunction> {
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

fn is_bridge<C: ConfigurationAccess>(configuration: &C, at: DeviceFunction) -> bool {
    header_type(configuration, at) & !MULTI_FUNCTION == BRIDGE
}

/// Whether this function shows that there are more root buses than bus 0: it is a second host bridge
/// there, such as QEMU's `pxb` and `pxb-pcie`.
fn has_more_roots<C: ConfigurationAccess>(configuration: &C, at: DeviceFunction) -> bool {
    at.bus == 0 && at.device != 0 && configuration.read_word(at, CLASS) >> 16 == HOST_BRIDGE
}

fn command<C: ConfigurationAccess>(configuration: &C, at: DeviceFunction) -> Command {
    Command::from_bits_retain(configuration.read_word(at, COMMAND) as u16)
}

/// Writes the command register. The status bits are written as zeroes, which leaves them unchanged.
fn set_command<C: ConfigurationAccess>(
    configuration: &mut C,
    at: DeviceFunction,
    command: Command,
) {
    configuration.write_word(at, COMMAND, command.bits().into());
}

/// The offsets and the first words of the function's capabilities (PCI 3.0, 6.7).
fn capabilities<C: ConfigurationAccess>(
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
struct Bar {
    address: u64,
    /// In bytes; not 0.
    size: u64,
    is_64_bit: bool,
}

impl Bar {
    fn register(index: u8) -> u8 {
        FIRST_BAR.saturating_add(index.saturating_mul(4))
    }

    /// Reads a BAR. The function's address decoding must be disabled (PCI 3.0, 6.2.5.1). `None` if the
    /// BAR is unused or an I/O BAR.
    fn read<C: ConfigurationAccess>(
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

    fn write<C: ConfigurationAccess>(self, configuration: &mut C, at: DeviceFunction, index: u8) {
        let register = Self::register(index);
        configuration.write_word(at, register, self.address as u32);
        if self.is_64_bit {
            let high = (self.address >> 32) as u32;
            configuration.write_word(at, register.saturating_add(4), high);
        }
    }
}

/// A function's memory BARs.
struct Bars([Option<Bar>; 6]);

impl Bars {
    fn read<C: ConfigurationAccess>(configuration: &mut C, at: DeviceFunction) -> Self {
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
    fn locate(
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

/// Location of a structure in device memory (`virtio_pci_cap`, section 4.1.4).
struct Place {
    address: u64,
    /// In bytes.
    length: u32,
    /// `notify_off_multiplier`; 0 for other structures.
    multiplier: u32,
}

/// Locations of the device's structures: aligned, large enough, and accepted by the platform.
struct Places {
    common: Place,
    notify: Place,
    isr: Place,
    device: Place,
}

impl Places {
    /// Takes the first usable capability of each kind, as a driver must (section 4.1.4.1): QEMU's
    /// `modern-pio-notify=on` puts notifications through an I/O BAR first.
    fn find<C: ConfigurationAccess>(
        configuration: &C,
        function: DeviceFunction,
        bars: &Bars,
        accept: Accept<'_>,
    ) -> Result<Self, TransportError> {
        /// Offsets in a virtio capability, from its start.
        const BAR: u8 = 4;
        const OFFSET: u8 = 8;
        const LENGTH: u8 = 12;
        const NOTIFY_MULTIPLIER: u8 = 16;

        let missing = |name| Err(TransportError::Capability(name));
        let mut common = missing("common configuration");
        let mut notify = missing("notifications");
        let mut isr = missing("ISR status");
        let mut device = missing("device configuration");
        for (offset, header) in capabilities(configuration, function) {
            let [id, _next, size, kind] = header.to_le_bytes();
            let (place, size_needed, minimum) = match kind {
                VIRTIO_PCI_CAP_COMMON_CFG => (&mut common, 16, size_of::<CommonConfig>()),
                VIRTIO_PCI_CAP_NOTIFY_CFG => (&mut notify, 20, size_of::<u16>()),
                VIRTIO_PCI_CAP_ISR_CFG => (&mut isr, 16, 1),
                VIRTIO_PCI_CAP_DEVICE_CFG => (&mut device, 16, 1),
                _ => continue,
            };
            // The capability must lie inside the 256 bytes of configuration space.
            let inside = size >= size_needed && offset.checked_add(size_needed).is_some();
            if place.is_ok() || id != PCI_CAP_ID_VNDR || !inside {
                continue;
            }
            let word = |at: u8| configuration.read_word(function, offset.wrapping_add(at));
            let (bar, length) = (word(BAR) as u8, word(LENGTH));
            let multiplier = match kind {
                VIRTIO_PCI_CAP_NOTIFY_CFG => word(NOTIFY_MULTIPLIER),
                _ => 0,
            };
            if !multiplier.is_multiple_of(2) {
                continue;
            }
            let located = bars.locate(bar, word(OFFSET), length, minimum, accept);
            // If no capability of the kind can be used, the first one's error is reported.
            if located.is_ok() || matches!(place, Err(TransportError::Capability(_))) {
                *place = located.map(|address| Place {
                    address,
                    length,
                    multiplier,
                });
            }
        }
        Ok(Self {
            common: common?,
            notify: notify?,
            isr: isr?,
            device: device?,
        })
    }
}

/// A pointer to a `T` of device memory at `address`.
///
/// # Safety
///
/// A `T` of device memory must be mapped there for ever, without other users.
unsafe fn region<H: Hal, T>(address: u64) -> UniqueMmioPointer<'static, T> {
    // SAFETY: the caller promises device memory of that size at that address.
    let pointer = unsafe { H::mmio_phys_to_virt(address, size_of::<T>()) };
    // SAFETY: the caller promises that it stays mapped and has no other user.
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
    // SAFETY: the caller promises that it stays mapped and has no other user.
    unsafe { UniqueMmioPointer::new(slice) }
}

/// A modern virtio-pci file system device.
#[derive(Debug)]
pub struct PciTransport {
    common: UniqueMmioPointer<'static, CommonConfig>,
    isr: UniqueMmioPointer<'static, ReadOnly<u8>>,
    notify: UniqueMmioPointer<'static, [WriteOnly<u16>]>,
    /// Index into `notify` for each queue, so that a notification is a single write.
    notify_index: [usize; QUEUES],
    config: ConfigSpace<'static>,
}

impl PciTransport {
    /// A transport for the device with its structures at `places`.
    ///
    /// # Safety
    ///
    /// The structures must be mapped as device memory for ever, at the addresses that `H` gives, with
    /// no other user.
    unsafe fn new<H: Hal>(places: Places) -> Result<Self, TransportError> {
        let notify_slots = (places.notify.length / 2) as usize;
        let device_size = places.device.length as usize;
        let mut transport = Self {
            // SAFETY: promised by the caller; `Places` are aligned and large enough.
            common: unsafe { region::<H, _>(places.common.address) },
            // SAFETY: as above.
            isr: unsafe { region::<H, _>(places.isr.address) },
            // SAFETY: as above, for its size.
            notify: unsafe { slice::<H, _>(places.notify.address, notify_slots) },
            notify_index: [0; QUEUES],
            // SAFETY: as above, for its size.
            config: ConfigSpace::new(unsafe { slice::<H, _>(places.device.address, device_size) }),
        };
        let queues = field_shared!(transport.common, num_queues).read();
        for (queue, index) in (0..queues).zip(&mut transport.notify_index) {
            field!(transport.common, queue_select).write(queue);
            let offset = u64::from(field_shared!(transport.common, queue_notify_off).read())
                .saturating_mul(places.notify.multiplier.into());
            // It is even, because the multiplier is.
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
        if usize::from(queue) >= QUEUES {
            return 0;
        }
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
    use super::{
        fake::{Bus, Function, Machine},
        *,
    };
    use core::sync::atomic::{AtomicU16, Ordering::Relaxed};
    use std::vec::Vec;

    fn at(bus: u8, device: u8, function: u8) -> DeviceFunction {
        DeviceFunction {
            bus,
            device,
            function,
        }
    }

    #[test]
    fn functions_are_probed_only_where_they_can_exist() {
        let mut machine = Machine::default();
        for (device, function, what) in [
            (0, 0, Function::device()),
            (0, 1, Function::device()), // not where there is one function
            (2, 3, Function::device()), // not where there is no first one
            (31, 0, Function::bridge().with_others()),
            (31, 2, Function::device()),
            (31, 7, Function::device()),
        ] {
            machine.add(Bus::Root(0), device, function, what);
        }
        let mut functions = Functions::on(0);
        let found: Vec<_> = iter::from_fn(|| functions.next(&machine)).collect();
        assert_eq!(
            found,
            [at(0, 0, 0), at(0, 31, 0), at(0, 31, 2), at(0, 31, 7)]
        );
        let read = machine.read.borrow();
        let can_be_there =
            |at: &DeviceFunction| at.device < 31 && at.function == 0 || at.device == 31;
        assert!(read.iter().all(can_be_there));
    }

    /// Finds all file system devices and refuses them: no memory is accepted.
    fn scan_all(machine: &mut Machine) -> Vec<DeviceFunction> {
        let mut found = DeviceList::new();
        // SAFETY: only this test uses the machine, and no memory is accepted.
        unsafe { scan::<crate::hal::IdentityHal, _>(machine, &|_, _| false, &mut found) };
        let address = |device: &Device| match device.address {
            Address::Pci(at) => at,
            other => panic!("{other}"),
        };
        found.iter().map(address).collect()
    }

    fn number(machine: &mut Machine, bridge: usize, numbers: [u8; 3]) {
        let [own, behind, last] = numbers;
        let numbers = u32::from_le_bytes([own, behind, last, 0]);
        machine.functions[bridge].words.insert(BUS_NUMBERS, numbers);
    }

    #[test]
    fn numbered_buses_are_searched_and_nothing_is_written_but_to_the_devices() {
        let mut machine = Machine::default();
        let bridge = machine.add(Bus::Root(0), 1, 0, Function::bridge());
        let inner = machine.add(Bus::Behind(bridge), 0, 0, Function::bridge());
        machine.add(
            Bus::Behind(inner),
            5,
            0,
            Function::device().with_bar(4, 0x4000, 0b1100),
        );
        machine.add(Bus::Root(0), 9, 0, Function::device());
        number(&mut machine, bridge, [0, 4, 7]);
        number(&mut machine, inner, [4, 6, 6]);
        let before = machine.functions.clone();
        assert_eq!(scan_all(&mut machine), [at(0, 9, 0), at(6, 5, 0)]);
        // Two of them have no address, so the attempt was undone.
        for (after, before) in machine.functions.iter().zip(&before) {
            for (register, word) in &after.words {
                assert_eq!(*word, before.word(*register));
            }
        }
    }

    #[test]
    fn bridges_to_earlier_or_missing_buses_are_skipped() {
        for behind in [0, 1, 2] {
            let mut machine = Machine::default();
            let first = machine.add(Bus::Root(0), 1, 0, Function::bridge());
            let second = machine.add(Bus::Behind(first), 1, 0, Function::bridge());
            let third = machine.add(Bus::Behind(second), 1, 0, Function::bridge());
            machine.add(Bus::Behind(third), 1, 0, Function::device());
            number(&mut machine, first, [0, 1, 255]);
            number(&mut machine, second, [1, 2, 255]);
            number(&mut machine, third, [2, behind, 255]);
            assert_eq!(scan_all(&mut machine), []);
            assert!(machine.read.borrow().len() < 3 * 64);
        }
    }

    #[test]
    fn other_root_buses_are_searched_if_there_is_a_second_host_bridge() {
        let mut machine = Machine::default();
        let host_bridge = machine.add(Bus::Root(0), 0, 0, Function::host_bridge());
        machine.add(Bus::Root(0x40), 3, 0, Function::device());
        assert_eq!(scan_all(&mut machine), []);
        // Nor for a function below a bridge, where the same bits mean something else.
        let second = machine.functions[host_bridge].clone();
        let bridge = machine.add(Bus::Root(0), 1, 0, Function::bridge());
        number(&mut machine, bridge, [0, 1, 1]);
        machine.add(Bus::Behind(bridge), 1, 0, second.clone());
        assert_eq!(scan_all(&mut machine), []);
        machine.add(Bus::Root(0), 7, 0, second);
        assert_eq!(scan_all(&mut machine), [at(0x40, 3, 0)]);
    }

    /// All structures in a BAR of memory.
    fn device() -> Function {
        Function::device()
            .with_bar(4, 0x4000, 0b1100)
            .with_capability(VIRTIO_PCI_CAP_COMMON_CFG, 4, [0, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_ISR_CFG, 4, [0x1000, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_DEVICE_CFG, 4, [0x2000, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x3000, 0x1000, 4])
    }

    /// The places of the structures of a device whose BAR 4 is at 4 GiB.
    fn places(mut device: Function) -> Result<Places, TransportError> {
        device.words.insert(Bar::register(5), 1);
        let mut machine = Machine::default();
        machine.add(Bus::Root(0), 1, 0, device);
        let bars = Bars::read(&mut machine, at(0, 1, 0));
        Places::find(&machine, at(0, 1, 0), &bars, &|address, size| {
            (address, size) == (1 << 32, 0x4000)
        })
    }

    #[test]
    fn the_first_capability_of_a_kind_that_can_be_used_counts() {
        let place = places(device()).unwrap().notify;
        assert_eq!(
            (place.address, place.length, place.multiplier),
            ((1 << 32) + 0x3000, 0x1000, 4)
        );
        // Before it: notifications through an I/O BAR, in a BAR that does not exist, outside of the
        // BAR, too few, at an odd offset.
        let device = device()
            .with_bar(2, 0x20, 1)
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 2, [0, 4, 0])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 6, [0, 0x1000, 4])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x3004, 0x1000, 4])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0, 1, 4])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0, 0x1000, 3]);
        assert_eq!(places(device).unwrap().notify.address, (1 << 32) + 0x3000);
        // Nor is a capability of another vendor used, or one without a multiplier.
        for (at, byte) in [(0, 0x0a), (2, 16)] {
            let mut device =
                self::device().with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x800, 0x100, 8]);
            let first = device.word(CAPABILITIES) as u8;
            let mut header = device.word(first).to_le_bytes();
            header[at] = byte;
            device.words.insert(first, u32::from_le_bytes(header));
            assert_eq!(places(device).unwrap().notify.address, (1 << 32) + 0x3000);
        }
        // Before all of them, a usable one.
        let better =
            self::device().with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x800, 0x100, 8]);
        let place = places(better).unwrap().notify;
        assert_eq!((place.address, place.multiplier), ((1 << 32) + 0x800, 8));
    }

    #[test]
    fn a_device_without_a_usable_structure_is_reported_with_its_first_fault() {
        let none = Function::device().with_bar(4, 0x4000, 0b1100);
        let fault = places(none.clone()).err();
        assert_eq!(
            fault,
            Some(TransportError::Capability("common configuration"))
        );
        let wrong = none
            .with_capability(VIRTIO_PCI_CAP_COMMON_CFG, 1, [0, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_COMMON_CFG, 4, [0x3001, 0x800, 0]);
        let address = 1 << 32;
        assert_eq!(
            places(wrong).err(),
            Some(TransportError::Bar { bar: 4, address })
        );
    }

    #[test]
    fn memory_that_the_platform_does_not_accept_is_not_used() {
        let device = device().with_bar(4, 0x8000, 0b1100);
        let fault = places(device).err();
        let address = 1 << 32;
        assert_eq!(fault, Some(TransportError::Bar { bar: 4, address }));
    }

    #[test]
    fn circular_capability_lists_end() {
        let mut device = device();
        let first = device.word(CAPABILITIES);
        device.words.insert(0x40, 0x09 | first << 8);
        let mut machine = Machine::default();
        machine.add(Bus::Root(0), 1, 0, device);
        assert_eq!(
            capabilities(&machine, at(0, 1, 0)).count(),
            MAX_CAPABILITIES
        );
    }

    #[test]
    fn reading_bars_does_not_change_them() {
        let device = Function::device()
            .with_bar(0, 0x1000, 0)
            .with_bar(1, 0x20, 1)
            .with_bar(2, 1 << 33, 0b1100)
            .with_bar(5, 0x1000, 0b100); // its upper half would be beyond the last one
        let mut machine = Machine::default();
        let index = machine.add(Bus::Root(0), 1, 0, device);
        machine.functions[index].words.insert(Bar::register(3), 6);
        let before = machine.functions[index].clone();
        let Bars(bars) = Bars::read(&mut machine, at(0, 1, 0));
        let bars = bars.map(|bar| bar.map(|bar| (bar.address, bar.size)));
        assert_eq!(
            bars,
            [
                Some((0, 0x1000)),
                None,
                Some((6 << 32, 1 << 33)),
                None,
                None,
                None
            ]
        );
        for (register, word) in &machine.functions[index].words {
            assert_eq!(*word, before.word(*register), "{register:#x}");
        }
        // Both halves of an address are written.
        let address = 10 << 32;
        let moved = Bar::read(&mut machine, at(0, 1, 0), 2).unwrap();
        Bar { address, ..moved }.write(&mut machine, at(0, 1, 0), 2);
        let moved = Bar::read(&mut machine, at(0, 1, 0), 2).unwrap();
        assert_eq!(moved.address, address);
    }

    /// Device memory of 16 KiB: ordinary memory, aligned as a BAR must be.
    #[repr(align(0x4000))]
    struct Memory([AtomicU16; 0x2000]);

    impl Memory {
        fn new() -> Self {
            Self([const { AtomicU16::new(0) }; 0x2000])
        }

        fn get(&self, offset: usize) -> u16 {
            self.0[offset / 2].load(Relaxed)
        }

        fn set(&self, offset: usize, value: u16) {
            self.0[offset / 2].store(value, Relaxed);
        }
    }

    /// Probes [`device`] with its structures in `memory`. Also returns the command register before and
    /// after.
    fn probe_in(memory: &Memory) -> (Result<PciTransport, TransportError>, [u32; 2]) {
        let address = core::ptr::from_ref(memory).expose_provenance() as u64;
        let mut device = device();
        let bars = [address as u32 | 0b1100, (address >> 32) as u32];
        device
            .words
            .extend([4, 5].map(Bar::register).into_iter().zip(bars));
        *device.words.entry(COMMAND).or_default() |= 0b1;
        let mut machine = Machine::default();
        machine.add(Bus::Root(0), 1, 0, device);
        let before = machine.functions[0].word(COMMAND);
        let accept = |start, size| (start, size) == (address, 0x4000);
        // SAFETY: the registers are atomics in ordinary memory, which outlive the transport.
        let transport =
            unsafe { probe::<crate::hal::IdentityHal, _>(&mut machine, at(0, 1, 0), &accept) };
        let after = machine.functions[0].word(COMMAND);
        let transport = transport.expect("a file system device");
        (transport, [before, after].map(|word| word & 0xffff))
    }

    #[test]
    fn each_call_reaches_its_registers() {
        let memory = Memory::new();
        let get = |offset| memory.get(offset);
        let set = |offset, value| memory.set(offset, value);
        set(18, 9); // queues, of which 8 can be used
        set(30, 5); // the place of a queue's notifications, in units of the multiplier
        let (transport, command) = probe_in(&memory);
        let mut transport = FsTransport::Pci(transport.unwrap());
        assert_eq!(command, [0b1, 0b100_0000_0111]);
        assert_eq!(get(22), 7);
        for offset in [4, 6] {
            set(offset, 0x8003); // the same for both halves of the features
        }
        assert_eq!(transport.read_device_features(), 0x8003_8003_8003_8003);
        assert_eq!(get(0), 1);
        transport.write_driver_features(0x3456 << 32 | 0x789a);
        assert_eq!([8, 12, 14].map(get), [1, 0x3456, 0]);
        set(24, 1024);
        assert_eq!(transport.max_queue_size(7), 1024);
        assert_eq!(get(22), 7);
        assert_eq!(transport.max_queue_size(8), 0);
        transport.queue_set(2, 64, 1 << 32 | 0x1000, 2 << 32 | 0x2000, 3 << 32 | 0x3000);
        assert_eq!([22, 24, 28].map(get), [2, 64, 1]);
        let addresses = [32, 36, 40, 44, 48, 52].map(get);
        assert_eq!(addresses, [0x1000, 1, 0x2000, 2, 0x3000, 3]);
        assert!(transport.queue_used(1));
        assert_eq!(get(22), 1);
        set(28, 0);
        assert!(!transport.queue_used(1));
        transport.notify(7);
        assert_eq!(get(0x3000 + 5 * 4), 7);
        transport.notify(8);
        assert_eq!(get(0x3000 + 5 * 4), 7);
        transport.set_status(DeviceStatus::DRIVER);
        assert_eq!(get(20), 2);
        set(20, 9 << 8 | 0x40);
        assert_eq!(transport.get_status(), DeviceStatus::DEVICE_NEEDS_RESET);
        assert_eq!(transport.read_config_generation(), 9);
        set(0x1000, 1);
        assert!(transport.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
        assert_eq!(transport.write_config_space(0xffe, 0xabcd_u16), Ok(()));
        assert_eq!(get(0x2ffe), 0xabcd);
        assert_eq!(transport.read_config_space(0xffe), Ok(0xabcd_u16));
        assert!(!transport.requires_legacy_layout());
    }

    #[test]
    fn a_notification_outside_of_its_structure_is_refused() {
        for (place, usable) in [(0x3ff, true), (0x400, false), (0xffff, false)] {
            let memory = Memory::new();
            memory.set(18, 1);
            memory.set(30, place);
            let fault = probe_in(&memory).0.err();
            let refused = TransportError::Capability("notifications");
            assert_eq!(fault, (!usable).then_some(refused), "{place:#x}");
        }
    }
}
