//! The ways to end the machine, tried one after the other.
//!
//! An attempt may itself raise an exception: semihosting is an undefined instruction where nobody
//! listens, and so is a PSCI call through the wrong conduit. The exception handler comes back to
//! [`exit`], which remembers what was tried and goes on with the next.

use crate::{cpu, tree::Conduit};
use bootshare::loader::ExitStatus;
use core::sync::atomic::{AtomicU8, Ordering};
use smccc::{Hvc, Smc, psci};

/// Added to the status for QEMU: its own failures are 1, so `0x20` and `0x21` are the firmware's.
/// `host/` knows it too.
const STATUS_BASE: u64 = 0x20;

/// Attempts so far.
static ATTEMPTS: AtomicU8 = AtomicU8::new(0);

/// How PSCI is called: 0 unknown, 1 HVC, 2 SMC.
static CONDUIT: AtomicU8 = AtomicU8::new(0);

/// Remembers how PSCI is called.
pub fn use_conduit(conduit: Conduit) {
    let value = match conduit {
        Conduit::Hvc => 1,
        Conduit::Smc => 2,
    };
    CONDUIT.store(value, Ordering::Relaxed);
}

/// Whether an attempt to end the machine has begun: an exception is then part of it.
pub fn has_begun() -> bool {
    ATTEMPTS.load(Ordering::Relaxed) != 0
}

/// Ends QEMU with that status; or else powers the machine off; or else halts.
pub fn exit(status: ExitStatus) -> ! {
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    if attempt == 0 {
        cpu::semihosting_exit(match status {
            ExitStatus::Success => STATUS_BASE,
            ExitStatus::Failure => STATUS_BASE + 1,
        });
    }
    if attempt <= 1 {
        ATTEMPTS.store(2, Ordering::Relaxed);
        system_off();
    }
    loop {
        cpu::wait();
    }
}

/// Returns only if it failed.
fn system_off() {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => _ = psci::system_off::<Hvc>(),
        2 => _ = psci::system_off::<Smc>(),
        _ => {}
    }
}

/// Powers the machine off; ends QEMU with success where that can't be had.
pub fn power_off() -> ! {
    system_off();
    exit(ExitStatus::Success)
}

/// Resets the machine; ends QEMU where that can't be had.
pub fn reset() -> ! {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => _ = psci::system_reset::<Hvc>(),
        2 => _ = psci::system_reset::<Smc>(),
        _ => {}
    }
    exit(ExitStatus::Failure)
}
