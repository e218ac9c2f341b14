//! The transport of a virtio-pci device: its structures in device memory (virtio 1.2, section 4.1.4).

use super::{
    Accept,
    configuration::{Bars, capabilities},
};
use crate::hal::Hal;
use crate::transport::{
    DEVICE_TYPE, DeviceFunction, DeviceStatus, DeviceType, InterruptStatus, PhysAddr, Transport,
    TransportError, VirtioError, config::ConfigSpace,
};
use core::{mem::size_of, ptr::NonNull};
use safe_mmio::{
    UniqueMmioPointer, field, field_shared,
    fields::{ReadOnly, ReadPure, ReadPureWrite, WriteOnly},
};
use virtio_drivers::transport::pci::{
    VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG,
    bus::{ConfigurationAccess, PCI_CAP_ID_VNDR},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

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

/// Location of a structure in device memory (`virtio_pci_cap`, section 4.1.4).
pub(super) struct Place {
    pub(super) address: u64,
    /// In bytes.
    pub(super) length: u32,
    /// `notify_off_multiplier`; 0 for other structures.
    pub(super) multiplier: u32,
}

impl Place {
    fn overlaps(&self, other: &Self) -> bool {
        let end = |place: &Self| place.address.saturating_add(place.length.into());
        self.address < end(other) && other.address < end(self)
    }
}

/// Locations of the device's structures: aligned, large enough, accepted by the platform, and disjoint.
pub(super) struct Places {
    common: Place,
    pub(super) notify: Place,
    isr: Place,
    device: Place,
}

impl Places {
    /// Takes the first usable capability of each kind, as a driver must (section 4.1.4.1): QEMU's
    /// `modern-pio-notify=on` puts notifications through an I/O BAR first.
    pub(super) fn find<C: ConfigurationAccess>(
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
        let places = [common?, notify?, isr?, device?];
        let mut others = places.as_slice();
        while let [place, rest @ ..] = others {
            if rest.iter().any(|other| place.overlaps(other)) {
                return Err(TransportError::Overlap);
            }
            others = rest;
        }
        let [common, notify, isr, device] = places;
        Ok(Self {
            common,
            notify,
            isr,
            device,
        })
    }
}

/// A pointer to a `T` of device memory at `address`.
///
/// # Safety
///
/// A `T` of device memory must be mapped there for ever, without other users, except for what [`probe`]
/// says about functions with the same addresses.
///
/// [`probe`]: super::probe
unsafe fn region<H: Hal, T>(address: u64) -> UniqueMmioPointer<'static, T> {
    // SAFETY: the caller promises device memory of that size at that address.
    let pointer = unsafe { H::mmio_phys_to_virt(address, size_of::<T>()) };
    // SAFETY: the caller promises that it stays mapped, and who else may use it.
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
    // SAFETY: the caller promises that it stays mapped, and who else may use it.
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
    /// no other user, as for [`region`].
    pub(super) unsafe fn new<H: Hal>(places: Places) -> Result<Self, TransportError> {
        let notify_slots = (places.notify.length / 2) as usize;
        let device_size = places.device.length as usize;
        let mut transport = Self {
            // SAFETY: promised by the caller; `Places` are aligned, large enough, and disjoint.
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
