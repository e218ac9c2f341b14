//! Rests: the CPU halts until the timer of its local APIC wakes it, so that the host's own threads
//! have the processor that would spin (Intel SDM volume 3, chapter "Advanced Programmable Interrupt
//! Controller").

use crate::{cpuid, exceptions::TIMER_VECTOR};
use core::{ptr::with_exposed_provenance_mut, time::Duration};
use x86_64::{
    instructions::{interrupts, nop},
    registers::model_specific::{ApicBase, ApicBaseFlags},
};

/// Where the registers are after a reset. An APIC that was moved is left alone.
const BASE: usize = 0xfee0_0000;
/// Task priority: interrupts below it wait.
const PRIORITY: usize = 0x80;
/// Spurious-interrupt vector register; bit 8 enables the APIC.
const SPURIOUS: usize = 0xf0;
const ENABLE: u32 = 1 << 8;
/// The timer's entry in the local vector table; unless bit 16 masks it, it fires once.
const TIMER: usize = 0x320;
const MASKED: u32 = 1 << 16;
/// What the timer counts down from; 0 stops it.
const COUNT: usize = 0x380;
/// What the timer's clock is divided by.
const DIVIDE: usize = 0x3e0;
const BY_ONE: u32 = 0b1011;

/// The registers that are changed here, the enabling one last.
const CHANGED: [usize; 4] = [PRIORITY, DIVIDE, TIMER, SPURIOUS];

/// The timer, and how the registers were before.
#[derive(Clone, Copy, Debug)]
pub struct Alarm {
    registers: [u32; CHANGED.len()],
}

impl Alarm {
    /// Takes the timer, if there is one that works as on QEMU: it counts nanoseconds there, and
    /// elsewhere something else, so that it is not for measuring.
    pub fn new() -> Option<Self> {
        if !cpuid::has_apic() {
            return None;
        }
        let (frame, flags) = ApicBase::read();
        let is_plain = flags.contains(ApicBaseFlags::LAPIC_ENABLE)
            && !flags.contains(ApicBaseFlags::X2APIC_ENABLE)
            && frame.start_address().as_u64() == BASE as u64;
        if !is_plain {
            return None;
        }
        let registers = CHANGED.map(read);
        // A disabled APIC keeps the timer masked.
        write(SPURIOUS, ENABLE | u32::from(TIMER_VECTOR));
        write(PRIORITY, 0);
        write(DIVIDE, BY_ONE);
        write(TIMER, TIMER_VECTOR.into());
        Some(Self { registers })
    }

    /// Halts for about so long, 4 s at most.
    pub fn rest(&self, duration: Duration) {
        let count = u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX);
        // A count of 0 would never end.
        write(COUNT, count.max(1));
        // An interrupt that comes before the halt is kept for it.
        interrupts::enable_and_hlt();
        interrupts::disable();
        write(COUNT, 0);
    }

    /// Leaves the registers as they were, and no interrupt of the timer pending.
    pub fn let_go(&self) {
        write(TIMER, MASKED);
        // One that came since the last rest is delivered between the first two.
        interrupts::enable();
        nop();
        interrupts::disable();
        for (register, value) in CHANGED.into_iter().zip(self.registers) {
            write(register, value);
        }
    }
}

fn read(register: usize) -> u32 {
    let register = with_exposed_provenance_mut::<u32>(BASE + register);
    // SAFETY: the first 4 GiB are mapped, and these registers can be read without an effect.
    unsafe { register.read_volatile() }
}

fn write(register: usize, value: u32) {
    let register = with_exposed_provenance_mut::<u32>(BASE + register);
    // SAFETY: as above; they are this module's alone, and it enables no interrupt but the timer's,
    // which has a handler.
    unsafe { register.write_volatile(value) };
}
