//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2).

use super::{
    DEVICE_TYPE, DeviceStatus, DeviceType, FILE_SYSTEM_DEVICE_ID, InterruptStatus, PhysAddr,
    Transport, TransportError, VirtioError, config::ConfigSpace,
};
use core::{mem::size_of, ptr::NonNull};
use safe_mmio::{
    UniqueMmioPointer, field, field_shared,
    fields::{ReadPure, ReadPureWrite, WriteOnly},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// "virt" in little endian (section 4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// The register layout before virtio 1.0, which is still QEMU's default.
const VERSION_LEGACY: u32 = 1;
const VERSION_MODERN: u32 = 2;

/// The register block (section 4.2.2, table 4.1).
#[repr(C)]
struct Registers {
    magic: ReadPure<u32>,
    version: ReadPure<u32>,
    device_id: ReadPure<u32>,
    vendor_id: ReadPure<u32>,
    device_features: ReadPure<u32>,
    device_features_sel: WriteOnly<u32>,
    reserved_018: [u32; 2],
    driver_features: WriteOnly<u32>,
    driver_features_sel: WriteOnly<u32>,
    reserved_028: [u32; 2],
    queue_sel: WriteOnly<u32>,
    queue_num_max: ReadPure<u32>,
    queue_num: WriteOnly<u32>,
    reserved_03c: [u32; 2],
    queue_ready: ReadPureWrite<u32>,
    reserved_048: [u32; 2],
    queue_notify: WriteOnly<u32>,
    reserved_054: [u32; 3],
    interrupt_status: ReadPure<u32>,
    interrupt_ack: WriteOnly<u32>,
    reserved_068: [u32; 2],
    status: ReadPureWrite<u32>,
    reserved_074: [u32; 3],
    queue_desc_low: WriteOnly<u32>,
    queue_desc_high: WriteOnly<u32>,
    reserved_088: [u32; 2],
    queue_driver_low: WriteOnly<u32>,
    queue_driver_high: WriteOnly<u32>,
    reserved_098: [u32; 2],
    queue_device_low: WriteOnly<u32>,
    queue_device_high: WriteOnly<u32>,
    reserved_0a8: [u32; 21],
    config_generation: ReadPure<u32>,
}

/// The configuration space follows the registers (section 4.2.2).
const CONFIG_OFFSET: usize = 0x100;
const _: () = assert!(size_of::<Registers>() == CONFIG_OFFSET);
const _: () = assert!(core::mem::offset_of!(Registers, queue_notify) == 0x50);
const _: () = assert!(core::mem::offset_of!(Registers, status) == 0x70);

/// A file system device's virtio-mmio registers.
#[derive(Debug)]
pub struct MmioTransport<'a> {
    registers: UniqueMmioPointer<'a, Registers>,
    config: ConfigSpace<'a>,
}

/// Checks whether a file system device is at `base`.
///
/// Returns `None` if there is none: no virtio-mmio block, an empty slot (device ID 0), or another
/// kind of device. Only the magic value, the version and the device ID are read.
///
/// # Errors
///
/// For a file system device that cannot be used: [`TransportError::Legacy`],
/// [`TransportError::Version`], or [`TransportError::TooSmall`] if `size` is below 0x100 bytes.
///
/// # Safety
///
/// `base` must point to `size` bytes of mapped device memory, 4-byte aligned, whose first twelve
/// bytes can be read without side effects; if it is a virtio-mmio register block, nothing else may
/// use it for `'a`.
///
/// The methods of a transport are safe, but they let the device access any address. So the caller
/// vouches for all that the transport, or a wrapper of it, is used with: addresses of queues and
/// buffers must come from a [`Hal`](crate::hal::Hal) that fits the device, and the status must be the
/// device's own.
pub unsafe fn probe<'a>(
    base: NonNull<u8>,
    size: usize,
) -> Option<Result<MmioTransport<'a>, TransportError>> {
    let Some(config_size) = size.checked_sub(CONFIG_OFFSET) else {
        return Some(Err(TransportError::TooSmall));
    };
    // SAFETY: the caller promises a mapped, aligned region of `size` bytes, which is at least
    // `CONFIG_OFFSET`, the size of the registers, for `'a` and without other users.
    let registers = unsafe { UniqueMmioPointer::new(base.cast::<Registers>()) };
    if field_shared!(registers, magic).read() != MAGIC
        || field_shared!(registers, device_id).read() != u32::from(FILE_SYSTEM_DEVICE_ID)
    {
        return None;
    }
    match field_shared!(registers, version).read() {
        VERSION_MODERN => {}
        VERSION_LEGACY => return Some(Err(TransportError::Legacy)),
        version => return Some(Err(TransportError::Version(version))),
    }
    // SAFETY: `size >= CONFIG_OFFSET`, so this stays within (or one past) the caller's region.
    let config = unsafe { base.add(CONFIG_OFFSET) };
    let config = NonNull::slice_from_raw_parts(config.cast::<ReadPureWrite<u8>>(), config_size);
    // SAFETY: this is the rest of the caller's region, disjoint from `registers`.
    let config = unsafe { UniqueMmioPointer::new(config) };
    Some(Ok(MmioTransport {
        registers,
        config: ConfigSpace::new(config),
    }))
}

/// The low and high halves of an address, for the register pairs.
fn halves(address: PhysAddr) -> (u32, u32) {
    (address as u32, (address >> 32) as u32)
}

impl Transport for MmioTransport<'_> {
    fn device_type(&self) -> DeviceType {
        DEVICE_TYPE
    }

    fn read_device_features(&mut self) -> u64 {
        field!(self.registers, device_features_sel).write(0);
        let low = field_shared!(self.registers, device_features).read();
        field!(self.registers, device_features_sel).write(1);
        let high = field_shared!(self.registers, device_features).read();
        u64::from(high) << 32 | u64::from(low)
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        let (low, high) = halves(driver_features);
        field!(self.registers, driver_features_sel).write(0);
        field!(self.registers, driver_features).write(low);
        field!(self.registers, driver_features_sel).write(1);
        field!(self.registers, driver_features).write(high);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        field!(self.registers, queue_sel).write(queue.into());
        field_shared!(self.registers, queue_num_max).read()
    }

    fn notify(&mut self, queue: u16) {
        field!(self.registers, queue_notify).write(queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(field_shared!(self.registers, status).read())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        field!(self.registers, status).write(status.bits());
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // A legacy register; version 2 does not have it.
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
        field!(self.registers, queue_sel).write(queue.into());
        field!(self.registers, queue_num).write(size);
        let (low, high) = halves(descriptors);
        field!(self.registers, queue_desc_low).write(low);
        field!(self.registers, queue_desc_high).write(high);
        let (low, high) = halves(driver_area);
        field!(self.registers, queue_driver_low).write(low);
        field!(self.registers, queue_driver_high).write(high);
        let (low, high) = halves(device_area);
        field!(self.registers, queue_device_low).write(low);
        field!(self.registers, queue_device_high).write(high);
        field!(self.registers, queue_ready).write(1);
    }

    fn queue_unset(&mut self, queue: u16) {
        field!(self.registers, queue_sel).write(queue.into());
        field!(self.registers, queue_ready).write(0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        field!(self.registers, queue_sel).write(queue.into());
        field_shared!(self.registers, queue_ready).read() != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let pending = field_shared!(self.registers, interrupt_status).read();
        field!(self.registers, interrupt_ack).write(pending);
        InterruptStatus::from_bits_retain(pending)
    }

    fn read_config_generation(&self) -> u32 {
        field_shared!(self.registers, config_generation).read()
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
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

    /// A register block in memory: magic value, version, device ID, and zeros.
    fn block(version: u32, device_id: u32) -> [u32; 0x200 / 4] {
        let mut block = [0; 0x200 / 4];
        block[0] = MAGIC;
        block[1] = version;
        block[2] = device_id;
        block
    }

    fn probe_block(block: &mut [u32]) -> Option<Result<MmioTransport<'_>, TransportError>> {
        let size = size_of_val(block);
        // SAFETY: the block is plain memory, borrowed for as long as the transport lives.
        unsafe { probe(NonNull::from(block).cast(), size) }
    }

    #[test]
    fn a_modern_file_system_device_is_found() {
        let mut registers = block(2, 26);
        registers[0x100 / 4] = u32::from_le_bytes(*b"tag\0");
        let transport = probe_block(&mut registers).unwrap().unwrap();
        assert_eq!(transport.read_config_space::<u8>(1), Ok(b'a'));
        assert_eq!(
            transport.read_config_space::<u8>(0x100),
            Err(VirtioError::ConfigSpaceTooSmall)
        );
        assert_eq!(
            transport.read_config_space::<u32>(2),
            Err(VirtioError::InvalidParam)
        );
    }

    #[test]
    fn a_legacy_device_is_named_with_the_remedy() {
        let error = probe_block(&mut block(1, 26)).unwrap().unwrap_err();
        assert_eq!(error, TransportError::Legacy);
        assert!(std::format!("{error}").contains("force-legacy=false"));
    }

    #[test]
    fn other_devices_and_empty_slots_are_passed_over() {
        assert!(probe_block(&mut block(2, 0)).is_none());
        assert!(probe_block(&mut block(1, 2)).is_none());
        assert!(probe_block(&mut [0xffff_ffff; 0x200 / 4]).is_none());
    }

    #[test]
    fn an_odd_version_or_size_is_an_error() {
        let error = probe_block(&mut block(7, 26)).unwrap().unwrap_err();
        assert_eq!(error, TransportError::Version(7));
        let mut registers = block(2, 26);
        let error = probe_block(&mut registers[..0x80 / 4]).unwrap();
        assert_eq!(error.unwrap_err(), TransportError::TooSmall);
    }

    /// Makes each call of a driver once on a transport with these registers.
    fn calls_reach_their_registers(transport: &mut impl Transport, registers: &[AtomicU32; 128]) {
        let get = |offset: usize| registers[offset / 4].load(Relaxed);
        let set = |offset: usize, value| registers[offset / 4].store(value, Relaxed);
        set(0x10, 0x8000_0003); // the same for both halves of the features
        assert_eq!(transport.read_device_features(), 0x8000_0003_8000_0003);
        assert_eq!(get(0x14), 1);
        transport.write_driver_features(0x12_3456_789a);
        assert_eq!((get(0x24), get(0x20)), (1, 0x12));
        set(0x34, 1024);
        assert_eq!(transport.max_queue_size(3), 1024);
        assert_eq!(get(0x30), 3);
        transport.queue_set(2, 64, 1 << 32 | 0x1000, 2 << 32 | 0x2000, 3 << 32 | 0x3000);
        assert_eq!([0x30, 0x38, 0x44].map(get), [2, 64, 1]);
        let addresses = [0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4].map(get);
        assert_eq!(addresses, [0x1000, 1, 0x2000, 2, 0x3000, 3]);
        assert!(transport.queue_used(1));
        transport.queue_unset(2);
        assert_eq!(get(0x30), 2);
        assert!(!transport.queue_used(1));
        assert_eq!(get(0x30), 1);
        transport.notify(7);
        assert_eq!(get(0x50), 7);
        transport.set_status(DeviceStatus::DRIVER);
        assert_eq!(get(0x70), 2);
        set(0x70, 0x40);
        assert_eq!(transport.get_status(), DeviceStatus::DEVICE_NEEDS_RESET);
        set(0x60, 1);
        assert!(transport.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
        assert_eq!(get(0x64), 1);
        set(0xfc, 9);
        assert_eq!(transport.read_config_generation(), 9);
        assert_eq!(transport.write_config_space(0xfc, 0xabcd_u32), Ok(()));
        assert_eq!(get(0x1fc), 0xabcd);
        assert_eq!(transport.read_config_space(0xfc), Ok(0xabcd_u32));
        assert!(!transport.requires_legacy_layout());
        for offset in [0x44, 0x50, 0x64, 0x70, 0x1fc] {
            set(offset, 0);
        }
    }

    #[cfg(feature = "pci")]
    #[test]
    fn each_call_reaches_its_registers_directly_and_through_the_types_that_pass_it_on() {
        use crate::transport::{ByRef, FsTransport};
        let registers = block(2, 26).map(AtomicU32::new);
        let (base, size) = (NonNull::from(&registers).cast(), size_of_val(&registers));
        // SAFETY: the registers are atomics in ordinary memory, which outlive the transport.
        let mut transport = unsafe { probe(base, size) }.unwrap().unwrap();
        calls_reach_their_registers(&mut transport, &registers);
        let mut transport = FsTransport::Mmio(transport);
        calls_reach_their_registers(&mut transport, &registers);
        calls_reach_their_registers(&mut ByRef(&mut transport), &registers);
    }
}
