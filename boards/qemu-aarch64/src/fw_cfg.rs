//! The fw_cfg device, which has the firmware's options if QEMU was started without `-kernel`.

use crate::{clock::Clock, mapping};
use bootshare::boot::memory::Range;
use bootshare_qemu::fw_cfg::{FwCfg, Register};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use safe_mmio::{UniqueMmioPointer, field, field_shared, fields::ReadPureWrite};

/// The register block (QEMU, docs/specs/fw_cfg.rst, "Arm register locations").
#[repr(C)]
struct Registers {
    data: u64,
    selector: u16,
    reserved_0a: [u16; 3],
    dma_high: ReadPureWrite<u32>,
    dma_low: ReadPureWrite<u32>,
}

const _: () = assert!(core::mem::offset_of!(Registers, dma_high) == 16);

/// The device's DMA register.
pub struct Mmio(UniqueMmioPointer<'static, Registers>);

impl Register for Mmio {
    fn read(&self) -> [u32; 2] {
        let high = field_shared!(self.0, dma_high).read();
        let low = field_shared!(self.0, dma_low).read();
        [high, low].map(u32::from_be)
    }

    fn write(&mut self, halves: [u32; 2]) {
        let [high, low] = halves.map(u32::to_be);
        field!(self.0, dma_high).write(high);
        field!(self.0, dma_low).write(low);
    }
}

/// The device with these registers, if it supports DMA.
///
/// # Safety
///
/// The device tree must say that they are fw_cfg's, and nothing else may use them.
pub unsafe fn open(registers: Range) -> Option<FwCfg<Mmio, Clock>> {
    if !mapping::is_low_device(registers)
        || registers.size() < size_of::<Registers>() as u64
        || !registers.start.is_multiple_of(8)
    {
        return None;
    }
    let base = NonNull::new(with_exposed_provenance_mut(registers.start as usize))?;
    // SAFETY: aligned registers in the first GiB, which is mapped as device memory for ever; the
    // caller promises that nothing else uses them.
    let registers = unsafe { UniqueMmioPointer::new(base) };
    // SAFETY: the caller promises that it is fw_cfg's register. Memory is mapped at its physical
    // addresses with the caches on, as QEMU's DMA requires.
    unsafe { FwCfg::find(Mmio(registers), Clock) }
}
