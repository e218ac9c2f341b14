//! Memory types: which addresses are cached (Intel SDM volume 3, 12.11).
//!
//! An operating system relies on its firmware for them; without them, Linux does not use write
//! combining. Linux copies those of the boot processor to the others.

use bootshare::boot::memory::Range;
use core::arch::x86_64::__cpuid;
use x86_64::registers::model_specific::Msr;

const CAPABILITIES: u32 = 0xfe;
/// Pairs of base and mask.
const VARIABLE: u32 = 0x200;
const FIXED_64K_00000: u32 = 0x250;
const FIXED_16K_80000: u32 = 0x258;
const DEFAULT_TYPE: u32 = 0x2ff;

/// Memory type write-back; uncacheable is 0.
const WRITE_BACK: u64 = 6;
/// The valid bit of a variable range's mask.
const VALID: u64 = 1 << 11;
/// The bits of the default type that enable MTRRs and fixed ranges.
const ENABLE: u64 = 1 << 11 | 1 << 10;

/// Makes everything write-back except 640 KiB to 1 MiB and `devices`; each of those has a power of
/// two as its size and is aligned to it. Changes nothing if the CPU has too few MTRRs.
pub fn set_up(devices: &[Range], physical_end: u64) {
    const FIXED: u64 = 1 << 8;

    if __cpuid(1).edx & 1 << 12 == 0 {
        return;
    }
    // SAFETY: the CPU has MTRRs and therefore this register.
    let capabilities = unsafe { Msr::new(CAPABILITIES).read() };
    if capabilities & FIXED == 0 || (capabilities & 0xff) < devices.len() as u64 {
        return;
    }
    for register in [FIXED_64K_00000, FIXED_16K_80000] {
        write(register, u64::from_ne_bytes([WRITE_BACK as u8; 8]));
    }
    for (device, register) in devices.iter().zip((VARIABLE..).step_by(2)) {
        write(register, device.start);
        let mask = (physical_end - 1) & !(device.size() - 1);
        write(register + 1, mask | VALID);
    }
    write(DEFAULT_TYPE, ENABLE | WRITE_BACK);
}

/// Writes an MTRR.
fn write(register: u32, value: u64) {
    // SAFETY: `set_up` checked that the CPU has the register. Memory keeps its content with any
    // type: after a reset the caches contain nothing that memory does not.
    unsafe { Msr::new(register).write(value) };
}
