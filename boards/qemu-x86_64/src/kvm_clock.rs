//! The time-stamp counter's frequency, from KVM's clock: a page of memory that KVM fills with the
//! factors that convert counts to nanoseconds (Linux, Documentation/virt/kvm/x86/msr.rst,
//! `MSR_KVM_SYSTEM_TIME_NEW`).

use crate::{cpuid, tsc};
use core::{
    cell::UnsafeCell,
    sync::atomic::{Ordering, fence},
};
use x86_64::registers::model_specific::Msr;

const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// The bit in the register that makes KVM update the structure.
const ENABLE: u64 = 1;

/// `struct pvclock_vcpu_time_info`.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct TimeInfo {
    /// Odd during an update; 0 before the first one.
    version: u32,
    _padding: u32,
    tsc_timestamp: u64,
    system_time: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    _more_padding: [u8; 2],
}

/// Memory that KVM writes to.
struct Shared(UnsafeCell<TimeInfo>);

// SAFETY: the firmware has one thread, and reads it by `read_volatile` only.
unsafe impl Sync for Shared {}

static INFO: Shared = Shared(UnsafeCell::new(TimeInfo {
    version: 0,
    _padding: 0,
    tsc_timestamp: 0,
    system_time: 0,
    multiplier: 0,
    shift: 0,
    flags: 0,
    _more_padding: [0; 2],
}));

/// The frequency in Hz, if KVM provides it. KVM's clock is disabled afterwards.
pub fn tsc_hz() -> Option<u64> {
    if !cpuid::has_kvm_clock() {
        return None;
    }
    let mut register = Msr::new(SYSTEM_TIME);
    let info = INFO.0.get();
    // SAFETY: KVM has this register. Memory is mapped at its physical addresses; the structure is
    // aligned to its size, so it does not cross a page; nothing else is there.
    unsafe { register.write(info.expose_provenance() as u64 | ENABLE) };
    // KVM fills it before the processor continues, and changes the two factors only together with
    // the counter.
    fence(Ordering::SeqCst);
    // SAFETY: the static is initialised, and any bytes that KVM writes are valid values of its
    // fields.
    let TimeInfo {
        version,
        multiplier,
        shift,
        ..
    } = unsafe { info.read_volatile() };
    // SAFETY: as above; from here on KVM does not write to the structure.
    unsafe { register.write(0) };
    if version == 0 {
        return None;
    }
    tsc::of_kvm_clock(multiplier, shift)
}
