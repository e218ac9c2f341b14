//! System registers, cache maintenance and the jump to the payload: all assembly except that of the
//! entry.
//!
//! As `start` explains, the EL1 names also serve EL2 with `HCR_EL2.E2H`; only plain EL2 has names
//! of its own.

use bootshare::boot::memory::Range;
use core::arch::asm;

/// Reads a system register whose read has no side effect.
macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: a read of this register is allowed at EL1 and EL2 (at EL2 only, for an `_el2`
        // name, which `is_plain_el2` guards), and changes nothing.
        unsafe {
            asm!(
                concat!("mrs {value}, ", $register),
                value = out(reg) value,
                options(nomem, nostack, preserves_flags),
            );
        }
        value
    }};
}

/// The exception level, 1 or 2.
pub fn exception_level() -> u64 {
    read!("CurrentEL") >> 2 & 0b11
}

/// Whether the registers have `_el2` names: at EL2 without E2H.
fn is_plain_el2() -> bool {
    const E2H: u64 = 1 << 34;
    exception_level() == 2 && read!("hcr_el2") & E2H == 0
}

/// The frequency of the timer, a 32-bit number.
pub fn counter_frequency_hz() -> u64 {
    read!("cntfrq_el0") & 0xffff_ffff
}

/// The count of the timer.
pub fn counter() -> u64 {
    // SAFETY: a barrier. Without it, the count may be read before earlier instructions have
    // completed.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    read!("cntvct_el0")
}

/// Whether this is EL2 with its host extensions (E2H), where the timers have other names.
pub fn has_host_extensions() -> bool {
    exception_level() == 2 && !is_plain_el2()
}

/// The virtual timer's control and compare registers: bit 0 of the first enables the timer, and its
/// interrupt is pending once the count has reached the second.
pub fn timer() -> [u64; 2] {
    [read!("cntv_ctl_el0"), read!("cntv_cval_el0")]
}

/// Sets these two registers.
pub fn set_timer([control, compare]: [u64; 2]) {
    // SAFETY: nobody else uses the timer, and its interrupt is masked.
    unsafe {
        asm!(
            "msr cntv_cval_el0, {compare}",
            "msr cntv_ctl_el0, {control}",
            "isb",
            compare = in(reg) compare,
            control = in(reg) control,
            options(nostack, preserves_flags),
        );
    }
}

/// The affinity of this processor in the format of GICR_TYPER: levels 3 to 0.
pub fn affinity() -> u32 {
    let mpidr = read!("mpidr_el1");
    (mpidr >> 8 & 0xff00_0000 | mpidr & 0x00ff_ffff) as u32
}

/// Whether translation in one stage supports pages of so many bytes (Arm ARM, ID_AA64MMFR0_EL1,
/// fields TGran4, TGran64 and TGran16).
pub fn has_pages(bytes: u32) -> bool {
    let fields = read!("id_aa64mmfr0_el1");
    match bytes {
        0x1000 => fields >> 28 & 0xf != 0xf,
        0x4000 => fields >> 20 & 0xf != 0,
        0x1_0000 => fields >> 24 & 0xf != 0xf,
        _ => false,
    }
}

/// Whether the interrupt controller is accessed through the registers below, as an arm64 kernel
/// needs it (booting.rst; GIC architecture specification 3.0, ICC_SRE_EL1).
pub fn has_interrupt_registers() -> bool {
    const GIC: u64 = 0xf << 24;
    let is_there = read!("id_aa64pfr0_el1") & GIC != 0;
    is_there
        && match is_plain_el2() {
            true => read!("icc_sre_el2") & 1 != 0,
            false => read!("icc_sre_el1") & 1 != 0,
        }
}

/// The priority mask, and whether interrupts of group 1 are enabled.
///
/// The processor must have the registers.
pub fn interrupt_interface() -> [u32; 2] {
    [read!("icc_pmr_el1") as u32, read!("icc_igrpen1_el1") as u32]
}

/// Sets these two registers.
pub fn set_interrupt_interface([mask, let_through]: [u32; 2]) {
    // SAFETY: interrupts are masked, so that they only end a wait.
    unsafe {
        asm!(
            "msr icc_pmr_el1, {mask}",
            "msr icc_igrpen1_el1, {let_through}",
            "isb",
            mask = in(reg) u64::from(mask),
            let_through = in(reg) u64::from(let_through),
            options(nostack, preserves_flags),
        );
    }
}

/// The number of the pending interrupt with the highest priority.
///
/// The processor must have the registers above.
pub fn highest_pending_interrupt() -> u32 {
    read!("icc_hppir1_el1") as u32
}

/// Waits until an interrupt is pending; the caller knows that one will be.
pub fn wait_for_interrupt() {
    // SAFETY: interrupts are masked, so `wfi` only waits. The barrier completes earlier writes before it.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// The processor's description of an exception.
#[derive(Clone, Copy, Debug)]
pub struct Syndrome {
    /// Exception syndrome register.
    pub esr: u64,
    /// Where it happened.
    pub elr: u64,
    /// The address that faulted, for faults that have one.
    pub far: u64,
}

/// The syndrome of the latest exception.
pub fn syndrome() -> Syndrome {
    if is_plain_el2() {
        Syndrome {
            esr: read!("esr_el2"),
            elr: read!("elr_el2"),
            far: read!("far_el2"),
        }
    } else {
        Syndrome {
            esr: read!("esr_el1"),
            elr: read!("elr_el1"),
            far: read!("far_el1"),
        }
    }
}

/// Makes changes to the translation tables effective.
///
/// # Safety
///
/// The tables must map everything that the program uses from here on.
pub unsafe fn tables_changed() {
    // SAFETY: the caller guarantees the tables. EL2 has entries of its own, and one instruction
    // for them with and without E2H; EL1 may not use it.
    unsafe {
        asm!(
            "dsb ishst",
            "mrs {level}, CurrentEL",
            "tbz {level}, #3, 2f",
            "tlbi alle2",
            "2: tlbi vmalle1",
            "dsb nsh",
            "isb",
            level = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
}

/// Cleans and invalidates `range` in the data cache to the point of coherency (PoC), where all
/// observers see the same memory.
///
/// # Safety
///
/// `range` must be mapped as normal memory.
pub unsafe fn clean_to_memory(range: Range) {
    // DminLine: log2 of the smallest line, in words of 4 bytes.
    let line = 4u64 << (read!("ctr_el0") >> 16 & 0xf);
    let mut address = range.start & !(line - 1);
    while address < range.end {
        // SAFETY: the caller promises that the address is mapped; memory's content as this
        // program sees it does not change.
        unsafe {
            asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags));
        }
        address += line;
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Enters a payload as the arm64 Linux boot protocol says: MMU and data cache off, interrupts
/// masked, `x0` the argument, `x1` to `x3` zero, at the exception level at which this firmware was
/// entered.
///
/// # Safety
///
/// A payload must be at `entry`, cleaned to memory with all that it reads.
pub unsafe fn enter(entry: u64, argument: u64) -> ! {
    // From the write to SCTLR on, the stack's content may be in the cache only, so nothing is
    // loaded or stored. The instructions themselves are in memory: nobody has written to them.
    // The MMU goes off at an address that is the same with and without it.
    macro_rules! leave {
        ($sctlr:literal) => {
            // SAFETY: the caller promises a payload at `entry`, and nothing of this program is
            // used after the jump.
            unsafe {
                asm!(
                    "msr daifset, #0xf",
                    concat!("mrs x9, ", $sctlr),
                    "bic x9, x9, #(1 << 0)", // M: MMU
                    "bic x9, x9, #(1 << 2)", // C: data cache
                    "dsb sy",
                    concat!("msr ", $sctlr, ", x9"),
                    "isb",
                    "mrs x9, CurrentEL", // as in `tables_changed`
                    "tbz x9, #3, 2f",
                    "tlbi alle2",
                    "2: tlbi vmalle1",
                    "ic iallu",
                    "dsb nsh",
                    "isb",
                    "mov x1, xzr",
                    "mov x2, xzr",
                    "mov x3, xzr",
                    "br x8",
                    in("x8") entry,
                    in("x0") argument,
                    options(noreturn),
                )
            }
        };
    }
    if is_plain_el2() {
        leave!("sctlr_el2")
    } else {
        leave!("sctlr_el1")
    }
}

/// Asks a debugger or QEMU (`-semihosting-config enable=on,target=native`) to end with `status`.
/// Without either, the instruction is undefined, and the exception handler ends the machine in
/// another way.
pub fn semihosting_exit(status: u64) {
    /// SYS_EXIT_EXTENDED (Semihosting for AArch32 and AArch64, section 7.7).
    const OPERATION: u64 = 0x20;
    /// ADP_Stopped_ApplicationExit: `status` is the program's own.
    const REASON: u64 = 0x2_0026;
    let block = [REASON, status];
    // SAFETY: the operation reads the two words at x1 and answers in x0, if it returns at all.
    unsafe {
        asm!(
            "hlt #0xf000",
            inout("x0") OPERATION => _,
            in("x1") &raw const block,
            options(nostack),
        );
    }
}

/// Waits for an interrupt, and interrupts are masked.
pub fn wait() {
    // SAFETY: no effect but the wait.
    unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
}
