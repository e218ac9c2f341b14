//! Rests: the processor waits for its timer's interrupt, so that the host's own threads have the one
//! that would spin. Interrupts stay masked: one that is pending is enough to wake from WFI (Arm
//! architecture reference manual, "Wait for Interrupt").
//!
//! For that the interrupt controller has to tell the processor of it. A GICv2 is known here, which
//! `virt` has by default.

use crate::{cpu, mapping};
use bootshare::boot::memory::Range;
use core::{
    ptr::{NonNull, with_exposed_provenance_mut},
    time::Duration,
};
use safe_mmio::{
    UniqueMmioPointer, field, field_shared,
    fields::{ReadPure, ReadPureWrite},
};
use spin::Mutex;

/// The virtual timer's interrupt, a private one (PPI 11 in the kernel's binding).
const INTERRUPT: u32 = 27;
const ENABLE: u32 = 1;
/// Lets interrupts of every priority through.
const ALL: u32 = 0xff;

/// Registers of the distributor (GIC architecture specification 2.0, section 4.1.2).
#[repr(C)]
struct Distributor {
    control: ReadPureWrite<u32>,
    reserved_004: [u32; 63],
    set_enable: ReadPureWrite<u32>,
    reserved_104: [u32; 31],
    clear_enable: ReadPureWrite<u32>,
}

const _: () = assert!(core::mem::offset_of!(Distributor, set_enable) == 0x100);
const _: () = assert!(core::mem::offset_of!(Distributor, clear_enable) == 0x180);

/// Registers of the processor's own interface (section 4.1.3).
#[repr(C)]
struct Interface {
    control: ReadPureWrite<u32>,
    priority_mask: ReadPureWrite<u32>,
    reserved_008: [u32; 4],
    highest_pending: ReadPure<u32>,
}

const _: () = assert!(core::mem::offset_of!(Interface, highest_pending) == 0x18);

/// The interrupt controller, and how it was before.
struct Controller {
    distributor: UniqueMmioPointer<'static, Distributor>,
    interface: UniqueMmioPointer<'static, Interface>,
    before: [u32; 3],
    was_enabled: bool,
}

static CONTROLLER: Mutex<Option<Controller>> = Mutex::new(None);

/// Rests from now on, if the interrupt controller with these registers, of distributor and
/// interface, does what it should.
///
/// # Safety
///
/// They must be what the device tree says, with no other user; to be called once.
pub unsafe fn use_controller([distributor, interface]: [Range; 2]) {
    let is_usable = |range, size| {
        mapping::is_low_device(range)
            && range.size() >= size as u64
            && range.start.is_multiple_of(4)
    };
    // The timer of this level has another name there, and another interrupt.
    if cpu::has_host_extensions()
        || !is_usable(distributor, size_of::<Distributor>())
        || !is_usable(interface, size_of::<Interface>())
    {
        return;
    }
    let pointer = |range: Range| with_exposed_provenance_mut::<()>(range.start as usize);
    let (Some(distributor), Some(interface)) = (
        NonNull::new(pointer(distributor)),
        NonNull::new(pointer(interface)),
    ) else {
        return;
    };
    // SAFETY: the caller promises a distributor, of which nobody else has a pointer; device memory
    // of the first GiB is always mapped.
    let distributor = unsafe { UniqueMmioPointer::<Distributor>::new(distributor.cast()) };
    // SAFETY: as above.
    let interface = unsafe { UniqueMmioPointer::<Interface>::new(interface.cast()) };
    let mut controller = Controller {
        before: [
            field_shared!(distributor, control).read(),
            field_shared!(interface, control).read(),
            field_shared!(interface, priority_mask).read(),
        ],
        was_enabled: field_shared!(distributor, set_enable).read() & 1 << INTERRUPT != 0,
        distributor,
        interface,
    };
    if controller.set_up() {
        *CONTROLLER.lock() = Some(controller);
    } else {
        controller.let_go();
    }
}

impl Controller {
    /// Whether the timer's interrupt reaches the processor.
    fn set_up(&mut self) -> bool {
        field!(self.interface, priority_mask).write(ALL);
        field!(self.interface, control).write(ENABLE);
        field!(self.distributor, set_enable).write(1 << INTERRUPT);
        field!(self.distributor, control).write(ENABLE);
        cpu::set_timer(0);
        let pending = field_shared!(self.interface, highest_pending).read() & 0x3ff;
        cpu::stop_timer();
        pending == INTERRUPT
    }

    fn let_go(&mut self) {
        let [distributor, interface, mask] = self.before;
        field!(self.distributor, control).write(distributor);
        if !self.was_enabled {
            field!(self.distributor, clear_enable).write(1 << INTERRUPT);
        }
        field!(self.interface, control).write(interface);
        field!(self.interface, priority_mask).write(mask);
    }
}

/// Waits for about so long, if that is known to end.
pub fn rest(duration: Duration) {
    if CONTROLLER.lock().is_none() {
        core::hint::spin_loop();
        return;
    }
    let nanoseconds = duration.as_nanos().min(1_000_000_000) as u64;
    let ticks = nanoseconds.saturating_mul(cpu::counter_frequency_hz()) / 1_000_000_000;
    // The register takes a signed number of 32 bits.
    cpu::set_timer(ticks.min(i32::MAX as u64));
    cpu::wait_for_interrupt();
    cpu::stop_timer();
}

/// Leaves everything as it was.
pub fn let_go() {
    if let Some(mut controller) = CONTROLLER.lock().take() {
        controller.let_go();
    }
}
