//! The fw_cfg device of QEMU's PCs.

use crate::clock::Clock;
use bootshare_qemu::fw_cfg::{FwCfg, Register};
use x86_64::instructions::port::Port;

/// The DMA register (QEMU, docs/specs/fw_cfg.rst, "x86 register locations").
pub struct Ports {
    high: Port<u32>,
    low: Port<u32>,
}

/// The device, if there is one.
///
/// # Safety
///
/// Nothing else may use it.
pub unsafe fn open(clock: Clock) -> Option<FwCfg<Ports, Clock>> {
    let ports = Ports {
        high: Port::new(0x514),
        low: Port::new(0x518),
    };
    // SAFETY: these ports belong to fw_cfg on QEMU and to no device on a PC; the caller promises
    // that nothing else uses them. Memory is mapped at its physical addresses, and coherent with
    // DMA on every PC.
    unsafe { FwCfg::find(ports, clock) }
}

impl Register for Ports {
    fn read(&self) -> [u32; 2] {
        let [mut high, mut low] = [self.high.clone(), self.low.clone()];
        // SAFETY: reading has no effect.
        let high = unsafe { high.read() };
        // SAFETY: as above.
        let low = unsafe { low.read() };
        [high, low].map(u32::from_be)
    }

    fn write(&mut self, halves: [u32; 2]) {
        let [high, low] = halves.map(u32::to_be);
        // SAFETY: this half only prepares the address.
        unsafe { self.high.write(high) };
        // SAFETY: the transfer that this starts is into memory that `FwCfg` has lent to the device.
        unsafe { self.low.write(low) };
    }
}
