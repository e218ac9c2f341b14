//! Rests: the processor waits for its timer's interrupt, so that the host's threads can use the
//! processor that would otherwise poll. Interrupts stay masked: a pending one is enough to end WFI
//! (Arm architecture reference manual, "Wait for Interrupt").
//!
//! The interrupt controller has to signal that interrupt to the processor. `virt` has a GICv2 or a
//! GICv3; both are supported. WFE with the timer's event stream would need no interrupt controller,
//! but QEMU's TCG does not wait at WFE, and KVM keeps the host's processor busy during it.

use crate::{counter, cpu, mapping, tree::InterruptController};
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
/// A priority mask that lets interrupts of every priority through.
const ALL: u32 = 0xff;
/// The longest time that a hypervisor may take to deliver an interrupt.
const PATIENCE: Duration = Duration::from_millis(1);

/// Registers of the distributor (GIC architecture specification 2.0, section 4.1.2). A GICv3 has
/// those of private interrupts in the processor's redistributor (3.0, section 12.11).
#[repr(C)]
struct Distributor {
    control: ReadPureWrite<u32>,
    reserved_004: [u32; 31],
    group: ReadPureWrite<u32>,
    reserved_084: [u32; 31],
    set_enable: ReadPureWrite<u32>,
    reserved_104: [u32; 31],
    clear_enable: ReadPureWrite<u32>,
}

const _: () = assert!(core::mem::offset_of!(Distributor, group) == 0x80);
const _: () = assert!(core::mem::offset_of!(Distributor, set_enable) == 0x100);
const _: () = assert!(core::mem::offset_of!(Distributor, clear_enable) == 0x180);

/// GICD_CTLR of a GICv3: enables group 1, the group of the timer's interrupt.
const ENABLE_GROUP_1: u32 = 1 << 1;

/// Registers of a GICv2's interface to the processor (2.0, section 4.1.3).
#[repr(C)]
struct Interface {
    control: ReadPureWrite<u32>,
    priority_mask: ReadPureWrite<u32>,
    reserved_008: [u32; 4],
    highest_pending: ReadPure<u32>,
}

const _: () = assert!(core::mem::offset_of!(Interface, highest_pending) == 0x18);

/// Registers of a GICv3's redistributor, in two frames of 64 KiB (3.0, sections 12.10 and 12.11).
#[repr(C)]
struct Redistributor {
    reserved_000: [u32; 3],
    /// The upper half of GICR_TYPER: which processor it belongs to.
    affinity: ReadPure<u32>,
    reserved_010: u32,
    waker: ReadPureWrite<u32>,
    reserved_018: [u32; 0x3ffa],
    private: Distributor,
}

const _: () = assert!(core::mem::offset_of!(Redistributor, waker) == 0x14);
const _: () = assert!(core::mem::offset_of!(Redistributor, private) == 0x1_0000);

/// GICR_WAKER: the redistributor signals nothing to the processor.
const SLEEP: u32 = 1 << 1;

/// The part of the interrupt controller for this processor.
enum Processor {
    V2(UniqueMmioPointer<'static, Interface>),
    /// Its interface consists of system registers.
    V3(UniqueMmioPointer<'static, Redistributor>),
}

/// The state that a rest changes.
#[derive(Clone, Copy)]
struct State {
    distributor: u32,
    /// 0 on a GICv2.
    waker: u32,
    group: u32,
    enabled: u32,
    /// The priority mask, and whether interrupts (on a GICv3, of group 1) are enabled.
    interface: [u32; 2],
}

/// The interrupt controller, with its previous state and the timer's.
struct Controller {
    distributor: UniqueMmioPointer<'static, Distributor>,
    processor: Processor,
    before: State,
    timer: [u64; 2],
    rests: u32,
}

static CONTROLLER: Mutex<Option<Controller>> = Mutex::new(None);

/// Enables [`rest`] with this interrupt controller if a test of it succeeds.
///
/// # Safety
///
/// The controller must exist as the device tree describes it, and have no other user. This must be called once.
pub unsafe fn use_controller(controller: InterruptController) {
    // The timer of this level has other names and another interrupt.
    if cpu::has_host_extensions() {
        return;
    }
    let (distributor, processor) = match controller {
        InterruptController::V2([distributor, interface]) => {
            // SAFETY: the caller promises it.
            let interface = unsafe { registers(interface) };
            (distributor, interface.map(Processor::V2))
        }
        InterruptController::V3([distributor, redistributors]) => {
            // SAFETY: as above. The first one is that of the first processor, which runs this.
            let first = unsafe { registers::<Redistributor>(redistributors) };
            let is_ours = |redistributor: &UniqueMmioPointer<'_, Redistributor>| {
                field_shared!(redistributor, affinity).read() == cpu::affinity()
            };
            let first = first.filter(|first| cpu::has_interrupt_registers() && is_ours(first));
            (distributor, first.map(Processor::V3))
        }
    };
    // SAFETY: as above.
    let distributor = unsafe { registers(distributor) };
    let (Some(distributor), Some(processor)) = (distributor, processor) else {
        return;
    };
    let mut controller = Controller::new(distributor, processor);
    if controller.set_up() {
        *CONTROLLER.lock() = Some(controller);
    } else {
        controller.let_go();
    }
}

/// The registers, if they are in the first GiB, which is device memory and mapped for ever.
///
/// # Safety
///
/// The registers must be there, and nothing else may use them.
unsafe fn registers<T>(range: Range) -> Option<UniqueMmioPointer<'static, T>> {
    let is_usable = mapping::is_low_device(range)
        && range.size() >= size_of::<T>() as u64
        && range.start.is_multiple_of(align_of::<T>() as u64);
    let pointer = NonNull::new(with_exposed_provenance_mut(range.start as usize))?;
    // SAFETY: the caller promises it.
    is_usable.then(|| unsafe { UniqueMmioPointer::new(pointer) })
}

impl Controller {
    fn new(distributor: UniqueMmioPointer<'static, Distributor>, mut processor: Processor) -> Self {
        let (private, waker, interface) = match &mut processor {
            Processor::V2(interface) => {
                let mask = field_shared!(interface, priority_mask).read();
                let control = field_shared!(interface, control).read();
                (None, 0, [mask, control])
            }
            Processor::V3(redistributor) => {
                let waker = field_shared!(redistributor, waker).read();
                let private = field!(*redistributor, private);
                (Some(private), waker, cpu::interrupt_interface())
            }
        };
        let private = private.as_ref().unwrap_or(&distributor);
        let before = State {
            distributor: field_shared!(distributor, control).read(),
            waker,
            group: field_shared!(private, group).read(),
            enabled: field_shared!(private, set_enable).read(),
            interface,
        };
        Self {
            before,
            distributor,
            processor,
            timer: cpu::timer(),
            rests: 0,
        }
    }

    /// Tests whether the timer's interrupt reaches the processor.
    fn set_up(&mut self) -> bool {
        let mut state = State {
            waker: self.before.waker & !SLEEP,
            enabled: self.before.enabled | 1 << INTERRUPT,
            interface: [ALL, ENABLE],
            ..self.before
        };
        match self.processor {
            Processor::V2(_) => state.distributor = ENABLE,
            Processor::V3(_) => {
                state.distributor |= ENABLE_GROUP_1;
                state.group |= 1 << INTERRUPT;
            }
        }
        self.set(state);
        cpu::set_timer([1, 0]);
        let start = counter::now();
        let reaches = loop {
            let reaches = self.highest_pending() == INTERRUPT;
            if reaches || counter::now().saturating_sub(start) > PATIENCE {
                break reaches;
            }
        };
        cpu::set_timer(self.timer);
        reaches
    }

    fn set(&mut self, state: State) {
        field!(self.distributor, control).write(state.distributor);
        let [mask, let_through] = state.interface;
        let mut private = match &mut self.processor {
            Processor::V2(interface) => {
                field!(*interface, priority_mask).write(mask);
                field!(*interface, control).write(let_through);
                self.distributor.reborrow()
            }
            Processor::V3(redistributor) => {
                field!(*redistributor, waker).write(state.waker);
                cpu::set_interrupt_interface(state.interface);
                field!(*redistributor, private)
            }
        };
        field!(private, group).write(state.group);
        field!(private, set_enable).write(state.enabled);
        field!(private, clear_enable).write(!state.enabled & 1 << INTERRUPT);
    }

    fn highest_pending(&self) -> u32 {
        match &self.processor {
            Processor::V2(interface) => field_shared!(interface, highest_pending).read() & 0x3ff,
            Processor::V3(_) => cpu::highest_pending_interrupt(),
        }
    }

    fn let_go(&mut self) {
        self.set(self.before);
        cpu::set_timer(self.timer);
    }
}

/// Waits for about `duration` if the interrupt controller was set up; otherwise pauses for a moment.
pub fn rest(duration: Duration) {
    let mut controller = CONTROLLER.lock();
    let Some(controller) = controller.as_mut() else {
        core::hint::spin_loop();
        return;
    };
    let nanoseconds = duration.as_nanos().min(1_000_000_000) as u64;
    let ticks = nanoseconds.saturating_mul(cpu::counter_frequency_hz()) / 1_000_000_000;
    cpu::set_timer([1, cpu::counter().saturating_add(ticks)]);
    cpu::wait_for_interrupt();
    cpu::set_timer(controller.timer);
    controller.rests = controller.rests.saturating_add(1);
}

/// Restores the interrupt controller and the timer.
pub fn let_go() {
    // The lock is released before anything is logged.
    let controller = CONTROLLER.lock().take();
    if let Some(mut controller) = controller {
        controller.let_go();
        log::trace!("rested {} times", controller.rests);
    }
}
