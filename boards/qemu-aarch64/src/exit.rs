//! How the machine ends: several methods, tried one after the other.
//!
//! | | success | failure |
//! |---|---|---|
//! | first | semihosting, QEMU's status is 32 | semihosting, QEMU's status is 33 |
//! | then | PSCI's SYSTEM_OFF, QEMU's status is 0 | [`pvpanic`], QEMU's status is 1 |
//! | last | the machine halts | the machine halts |
//!
//! After a failure the machine is neither powered off nor reset: QEMU's status would be 0 (a reset
//! without `-no-reboot` would even start the firmware again, without end).
//!
//! An attempt may itself raise an exception: semihosting is an undefined instruction if QEMU has it
//! disabled, and so is a PSCI call through the wrong conduit. The exception handler calls [`exit`]
//! again, which counts the attempts and continues with the next one.

use crate::{console, cpu, pvpanic, tree::Conduit};
use bootshare::loader::ExitStatus;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use smccc::{Hvc, Smc, psci};

/// Added to the status for QEMU: QEMU's own failures have status 1, so `0x20` and `0x21` are the
/// firmware's. `host/` has the same constant.
const STATUS_BASE: u64 = 0x20;

/// The number of attempts so far, and whether they report a success.
static ATTEMPTS: AtomicU8 = AtomicU8::new(0);
static IS_SUCCESS: AtomicBool = AtomicBool::new(false);

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

/// Whether an attempt to end the machine has begun; an exception is then a part of that attempt.
pub fn has_begun() -> bool {
    ATTEMPTS.load(Ordering::Relaxed) != 0
}

/// Ends QEMU with this status, or with that of the first call; halts if QEMU cannot be ended.
pub fn exit(status: ExitStatus) -> ! {
    if !has_begun() {
        IS_SUCCESS.store(status == ExitStatus::Success, Ordering::Relaxed);
    }
    let is_success = IS_SUCCESS.load(Ordering::Relaxed);
    loop {
        match ATTEMPTS.fetch_add(1, Ordering::Relaxed) {
            0 => cpu::semihosting_exit(STATUS_BASE + u64::from(!is_success)),
            1 if is_success => system_off(),
            // QEMU ends a moment later.
            1 if pvpanic::report() => break,
            1 => {}
            _ => {
                console::write(
                    b"bootshare: the machine halts; to end QEMU here, start it with \
                      -semihosting-config enable=on,target=native, or for KVM with \
                      -action panic=exit-failure -device pvpanic-pci,events=1\n",
                );
                break;
            }
        }
    }
    loop {
        cpu::wait();
    }
}

/// Returns only if the attempt failed.
fn system_off() {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => _ = psci::system_off::<Hvc>(),
        2 => _ = psci::system_off::<Smc>(),
        _ => {}
    }
}

/// Powers the machine off; if that is not possible, ends QEMU with success.
pub fn power_off() -> ! {
    system_off();
    exit(ExitStatus::Success)
}

/// Resets the machine; if that is not possible, ends QEMU with a failure.
pub fn reset() -> ! {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => _ = psci::system_reset::<Hvc>(),
        2 => _ = psci::system_reset::<Smc>(),
        _ => {}
    }
    exit(ExitStatus::Failure)
}
