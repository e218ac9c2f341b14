//! The two 8259A interrupt controllers: every line is masked, for the firmware and for its payload.
//!
//! No boot protocol says in what state a payload finds them, so most payloads set them up before
//! they enable interrupts. Linux does not where ACPI says that the hardware is reduced, as on
//! `microvm`. There SeaBIOS leaves them as after a reset as well: all lines unmasked, the first
//! vector 0, and the PIT ticking on line 0. Linux would take the first tick for a divide error.

use pic8259::ChainedPics;

/// The first of the controllers' 16 vectors: behind those of the CPU's own exceptions and the
/// [timer](crate::exceptions::TIMER_VECTOR)'s. No interrupt is delivered with them.
const FIRST_VECTOR: u8 = 0x30;

/// Initialises both controllers, which forgets pending and unfinished interrupts, and masks all of
/// their lines. Without such controllers (`-M microvm,pic=off`) this does nothing.
pub fn mask_all() {
    // SAFETY: the vectors are none of the CPU's own.
    let mut controllers = unsafe { ChainedPics::new_contiguous(FIRST_VECTOR) };
    // SAFETY: the ports are the controllers' or nobody's, and interrupts are off.
    unsafe { controllers.disable() };
    // SAFETY: as above. It keeps the masks.
    unsafe { controllers.initialize() };
}
