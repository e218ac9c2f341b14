//! Memory types: which addresses are memory, for the caches (Intel SDM volume 3, 12.11).
//!
//! An operating system takes them from its firmware; without, Linux does without write combining.
//! It makes the other processors' like those of the boot processor.

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
/// Of a variable range's mask.
const VALID: u64 = 1 << 11;
/// Of the default type: MTRRs count, and so do the fixed ones.
const ENABLE: u64 = 1 << 11 | 1 << 10;

/// Makes everything write-back but 640 KiB to 1 MiB and `devices`: each of a power of two in size
/// and aligned to that. Leaves things alone where the CPU has not enough MTRRs.
pub fn set_up(devices: &[Range], physical_end: u64) {
    const FIXED: u64 = 1 << 8;

    if __cpuid(1).edx & 1 << 12 == 0 {
        return;
    }
    // SAFETY: the CPU has MTRRs, and so this register.
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
    // SAFETY: the CPU has it, as `set_up` checked; whatever the type, memory keeps its content:
    // after a reset the caches hold nothing that memory does not.
    unsafe { Msr::new(register).write(value) };
}
