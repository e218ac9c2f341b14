//! Rests: the CPU halts until the timer of its local APIC wakes it, so that the host's threads can
//! use the processor that would otherwise poll (Intel SDM volume 3, chapter "Advanced Programmable
//! Interrupt Controller").

use crate::{cpuid, exceptions::TIMER_VECTOR};
use core::{ptr::with_exposed_provenance_mut, time::Duration};
use x86_64::{
    instructions::{interrupts, nop},
    registers::model_specific::{ApicBase, ApicBaseFlags, Msr},
};

/// The address of the registers after a reset. An APIC that was moved is not used.
const BASE: usize = 0xfee0_0000;
/// The first of the corresponding registers in x2APIC mode, one for each 16 bytes.
const FIRST_MSR: u32 = 0x800;
/// Task priority: interrupts below it wait.
const PRIORITY: usize = 0x80;
/// Spurious-interrupt vector register; bit 8 enables the APIC.
const SPURIOUS: usize = 0xf0;
const ENABLE: u32 = 1 << 8;
/// The timer's entry in the local vector table; unless bit 16 masks it, it fires once.
const TIMER: usize = 0x320;
const MASKED: u32 = 1 << 16;
/// The initial count of the timer; 0 stops it.
const COUNT: usize = 0x380;
/// The current count of the timer.
const LEFT: usize = 0x390;
/// The divisor of the timer's clock.
const DIVIDE: usize = 0x3e0;
const BY_ONE: u32 = 0b1011;

/// The registers that this module changes; the one that enables the APIC is the last.
const CHANGED: [usize; 4] = [PRIORITY, DIVIDE, TIMER, SPURIOUS];

/// The timer, and the previous values of the registers.
#[derive(Clone, Copy, Debug)]
pub struct Alarm {
    apic: LocalApic,
    registers: [u32; CHANGED.len()],
}

/// The access to the registers.
#[derive(Clone, Copy, Debug)]
enum LocalApic {
    /// In memory.
    XApic,
    /// As model-specific registers: SeaBIOS chooses this where there may be more than 255 processors.
    X2Apic,
}

impl Alarm {
    /// Sets the timer up, if there is a local APIC at its default address. QEMU's timer counts
    /// nanoseconds; the unit of others is unknown.
    pub fn new() -> Option<Self> {
        if !cpuid::has_apic() {
            return None;
        }
        let (frame, flags) = ApicBase::read();
        if !flags.contains(ApicBaseFlags::LAPIC_ENABLE) {
            return None;
        }
        let apic = if flags.contains(ApicBaseFlags::X2APIC_ENABLE) {
            LocalApic::X2Apic
        } else if frame.start_address().as_u64() == BASE as u64 {
            LocalApic::XApic
        } else {
            return None;
        };
        let registers = CHANGED.map(|register| apic.read(register));
        // A disabled APIC keeps the timer masked.
        apic.write(SPURIOUS, ENABLE | u32::from(TIMER_VECTOR));
        apic.write(PRIORITY, 0);
        apic.write(DIVIDE, BY_ONE);
        apic.write(TIMER, TIMER_VECTOR.into());
        Some(Self { apic, registers })
    }

    /// Lets the timer count down from its maximum while `measure` runs, which can read the current
    /// count.
    pub fn while_counting<R>(&self, measure: impl FnOnce(&dyn Fn() -> u32) -> R) -> R {
        self.apic.write(TIMER, MASKED | u32::from(TIMER_VECTOR));
        self.apic.write(COUNT, u32::MAX);
        let result = measure(&|| self.apic.read(LEFT));
        self.apic.write(COUNT, 0);
        self.apic.write(TIMER, TIMER_VECTOR.into());
        result
    }

    /// Halts for about `duration`, at most 4 s.
    pub fn rest(&self, duration: Duration) {
        let count = u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX);
        // A count of 0 would never expire.
        self.apic.write(COUNT, count.max(1));
        // An interrupt before the halt stays pending and ends the halt.
        interrupts::enable_and_hlt();
        interrupts::disable();
        self.apic.write(COUNT, 0);
    }

    /// Restores the registers, and leaves no interrupt of the timer pending.
    pub fn let_go(&self) {
        self.apic.write(TIMER, MASKED);
        // An interrupt since the last rest is delivered between the first two writes.
        interrupts::enable();
        nop();
        interrupts::disable();
        for (register, value) in CHANGED.into_iter().zip(self.registers) {
            self.apic.write(register, value);
        }
    }
}

impl LocalApic {
    fn read(self, register: usize) -> u32 {
        match self {
            Self::XApic => {
                let register = with_exposed_provenance_mut::<u32>(BASE + register);
                // SAFETY: the first 4 GiB are mapped, and these registers can be read without an
                // effect.
                unsafe { register.read_volatile() }
            }
            // SAFETY: the mode has these registers; the same holds for them.
            Self::X2Apic => unsafe { Msr::new(msr(register)).read() as u32 },
        }
    }

    fn write(self, register: usize, value: u32) {
        match self {
            Self::XApic => {
                let register = with_exposed_provenance_mut::<u32>(BASE + register);
                // SAFETY: as above; they are this module's alone, and it enables no interrupt but
                // the timer's, which has a handler.
                unsafe { register.write_volatile(value) };
            }
            // SAFETY: as above.
            Self::X2Apic => unsafe { Msr::new(msr(register)).write(value.into()) },
        }
    }
}

/// The number of the model-specific register (Intel SDM volume 3, 11.12.1.2).
fn msr(register: usize) -> u32 {
    FIRST_MSR + register as u32 / 16
}
