//! From QEMU's jump to the first line of Rust: image header, first translation tables, exception
//! vectors.
//!
//! # The state on entry
//!
//! 1. `pc` is at the image's first instruction. The image lies at its link address, or in flash at
//!    address 0, where QEMU's `-bios` puts it: then it copies itself to its link address and
//!    continues there.
//! 2. The MMU and the data cache are off; interrupts are masked.
//! 3. The exception level is EL1 or EL2. EL3 is refused with a message.
//! 4. `x0` is the physical address of the device tree, or 0 (QEMU starts an ELF file so). After a
//!    reset into flash it is treated as 0.
//! 5. The first GiB of the address space is devices, and RAM starts at 1 GiB.
//! 6. Nothing else is known: neither the other registers, nor `.bss`, nor whether floating point
//!    traps.
//!
//! # The state in [`machine::main`]
//!
//! 1. The exception level is unchanged.
//! 2. The MMU, data cache and instruction cache are on, and were before the first write to
//!    memory: a hypervisor's cached view of guest memory and ours never differ. The copy from
//!    flash comes before that; cached lines of its destination are invalidated.
//! 3. Addresses are physical ones. The first GiB is device memory, the second is normal memory,
//!    executable only in the 2 MiB of the image. `mapping` refines this from the device tree.
//! 4. `VBAR` points to our vectors. Every exception is fatal and is reported on its own stack.
//! 5. Floating point and SIMD do not trap: the compiler uses them.
//! 6. `.bss` is zero, `sp` is the end of a 128 KiB stack, interrupts stay masked.
//! 7. `x0` is unchanged, and `x1` is the timer's count on entry.
//!
//! # Names of the EL2 registers
//!
//! With `HCR_EL2.E2H` set (some processors have no other way), an access to an `_EL1` register
//! from EL2 reaches its EL2 counterpart, which then has the EL1 layout (Arm ARM, D8.2 "VHE"). So
//! EL2 with E2H takes the EL1 path from start to end, here and in `cpu`; only plain EL2 differs.

use crate::{
    exceptions, machine,
    mapping::{BLOCK, DEVICE, NORMAL, NORMAL_EXECUTABLE, PAGE},
};
use core::arch::global_asm;

/// Descriptor that points to the next level's table (Arm ARM, D8.3).
const TABLE: u64 = 0b11;

/// Attribute 0: device memory, nGnRE. Attribute 1: normal memory, write-back, allocating.
const MAIR: u64 = 0xff << 8 | 0x04;

/// Fields common to both layouts of TCR: 39 address bits from TTBR0 with 4 KiB pages, table walks
/// inner shareable and write-back.
const TCR: u64 = (64 - 39) | 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
/// EPD1: TTBR1 is not used. TG1 must have a valid value nevertheless: 4 KiB.
const TCR_EL1: u64 = TCR | 1 << 23 | 0b10 << 30;
/// Bits 23 and 31 are RES1.
const TCR_EL2: u64 = TCR | 1 << 23 | 1 << 31;

/// M, C, SA and I: MMU, data cache, stack alignment check, instruction cache.
const SCTLR: u64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 12;
/// Bits 11, 20, 22, 23, 28 and 29 were RES1 before they got a meaning.
const SCTLR_EL1: u64 = SCTLR | 1 << 11 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 28 | 1 << 29;
/// Bits 4, 5, 11, 16, 18, 22, 23, 28 and 29 are RES1.
const SCTLR_EL2: u64 =
    SCTLR | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 28 | 1 << 29;

global_asm!(
    r#"
    .section .head, "ax"
    .global _start
_start:
    // The arm64 Image header (Documentation/arch/arm64/booting.rst in Linux): a raw copy of this
    // image boots by the same protocol as a kernel.
    b       10f                     // code0
    .long   0                       // code1
    .quad   __text_offset           // text_offset
    .quad   __image_size            // image_size, with .bss and stacks
    .quad   0b0010                  // flags: little endian, 4 KiB pages, near the start of RAM
    .quad   0, 0, 0
    .ascii  "ARM\x64"               // magic
    .long   0

    .macro  immediate register, value
    movz    \register, #((\value) & 0xffff)
    movk    \register, #(((\value) >> 16) & 0xffff), lsl #16
    movk    \register, #(((\value) >> 32) & 0xffff), lsl #32
    .endm

    .macro  address register, symbol
    adrp    \register, \symbol
    add     \register, \register, :lo12:\symbol
    .endm

    // Turns MMU and caches on. x9: TCR without the physical address size; \ps is the bit position
    // of that size.
    .macro  enable el, ps, sctlr
    // As many physical address bits as the processor has, up to 48 (value 5): more need other
    // tables.
    mrs     x10, id_aa64mmfr0_el1
    and     x10, x10, #0xf
    mov     x11, #5
    cmp     x10, x11
    csel    x10, x10, x11, lo
    bfi     x9, x10, #\ps, #3
    msr     tcr_\el, x9
    immediate x9, {MAIR}
    msr     mair_\el, x9
    adrp    x9, bootshare_level1
    msr     ttbr0_\el, x9
    address x9, 90f
    msr     vbar_\el, x9
    immediate x9, \sctlr
    // Nothing old may remain in the TLB or the instruction cache. EL2 has TLB entries of its own,
    // with one instruction for them with and without E2H; EL1 may not use it.
    isb
    mrs     x10, CurrentEL
    tbz     x10, #3, 11f
    tlbi    alle2
11: tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_\el, x9
    isb
    .endm

10: mrs     x20, cntvct_el0
    msr     daifset, #0xf
    msr     spsel, #1

    // Does this run at the link address, or in flash?
    adr     x9, _start
    movz    x10, #:abs_g1:_start
    movk    x10, #:abs_g0_nc:_start
    cmp     x9, x10
    b.eq    14f
    adr     x1, 81f
    cbnz    x9, 70f

    // In flash: copy the file's part of the image to its link address, with the MMU off.
    mov     x2, x10
    movz    x3, #:abs_g1:__data_end
    movk    x3, #:abs_g0_nc:__data_end
12: ldp     x4, x5, [x9], #16
    ldp     x6, x7, [x9], #16
    stp     x4, x5, [x2], #16
    stp     x6, x7, [x2], #16
    cmp     x2, x3
    b.lo    12b
    // Old cache lines of the destination are invalidated; they are not part of the copy.
    mrs     x4, ctr_el0             // DminLine: log2 of the smallest line, in words
    ubfx    x4, x4, #16, #4
    mov     x5, #4
    lsl     x4, x5, x4
    dsb     sy
    mov     x2, x10
13: dc      ivac, x2
    add     x2, x2, x4
    cmp     x2, x3
    b.lo    13b
    dsb     sy
    ic      iallu
    dsb     nsh
    isb
    mov     x0, xzr
    add     x10, x10, #(14f - _start)
    br      x10

14: mrs     x9, CurrentEL
    ubfx    x9, x9, #2, #2
    adr     x1, 82f
    cmp     x9, #2
    b.hi    70f
    b.lo    20f

    // EL2. With E2H the EL1 names serve all registers.
    mrs     x9, hcr_el2
    tbnz    x9, #34, 20f
    mrs     x9, cptr_el2
    bic     x9, x9, #(1 << 10)      // TFP: floating point traps
    msr     cptr_el2, x9
    immediate x9, {TCR_EL2}
    enable  el2, 16, {SCTLR_EL2}
    b       30f

    // EL1, or EL2 with E2H.
20: mrs     x9, cpacr_el1
    orr     x9, x9, #(0b11 << 20)   // FPEN: floating point does not trap
    msr     cpacr_el1, x9
    immediate x9, {TCR_EL1}
    enable  el1, 32, {SCTLR_EL1}

30: address x9, __bss_start
    address x10, __bss_end
31: cmp     x9, x10
    b.hs    32f
    stp     xzr, xzr, [x9], #16
    b       31b
32: address x9, __stack_end
    mov     sp, x9
    mov     x29, xzr
    mov     x30, xzr
    mov     x1, x20
    b       {main}

    // A fatal error: prints the text at x1 on the UART that QEMU's documentation names, and ends
    // QEMU with status 0x21 (see `exit`). The MMU is off, and nothing is written to memory. Without
    // semihosting that is an undefined instruction: the machine halts in the exception's vector.
70: adr     x2, 91f
    mrs     x3, CurrentEL
    cmp     x3, #(2 << 2)
    b.hi    75f
    b.eq    74f
    msr     vbar_el1, x2
    b       76f
74: msr     vbar_el2, x2
    b       76f
75: msr     vbar_el3, x2
76: isb
    mov     x2, #0x09000000
71: ldrb    w3, [x1], #1
    cbz     w3, 72f
    str     w3, [x2]
    b       71b
72: mov     w0, #0x20               // SYS_EXIT_EXTENDED
    adr     x1, 83f
    hlt     #0xf000
    b       73f
81: .asciz  "bootshare: error: the image is not at its link address; start it with QEMU's -kernel or -bios\r\n"
82: .asciz  "bootshare: error: started at EL3; use -M virt without secure=on\r\n"
    .balign 8
83: .quad   0x20026, 0x21           // ADP_Stopped_ApplicationExit, status

    .text
    // Sixteen vectors of 128 bytes. The return address identifies the vector.
    .balign 0x800
90:
    .rept   16
    .balign 0x80
    bl      91f
    .endr
    // The vectors of `70` above start here, too.
    .balign 0x800
91: // Fatal, so nothing is saved. The interrupted stack may be the reason: leave it.
    address x9, __exception_stack_end
    mov     sp, x9
    address x0, 90b
    sub     x0, x30, x0
    lsr     x0, x0, #7
    mov     x29, xzr
    mov     x30, xzr
    b       {exception}
    // The vector of a synchronous exception from the same level, in a table at `91`.
    .balign 0x200
73: wfi
    b       73b

    // The first tables. Level 1 has an entry for each GiB, level 2 an entry for each 2 MiB of the
    // second GiB, and level 3 an entry for each page of the image's 2 MiB.
    .section .data.tables, "aw"
    .balign 4096
    .global bootshare_level1
bootshare_level1:
    .quad   {DEVICE_BLOCK}
    .quad   bootshare_level2 + {TABLE}
    .fill   510, 8, 0

    .global bootshare_level2
bootshare_level2:
    .quad   RAM_START + {NORMAL_BLOCK}
    .quad   bootshare_level3 + {TABLE}
    .set    offset, 2 << 21
    .rept   510
    .quad   RAM_START + offset + {NORMAL_BLOCK}
    .set    offset, offset + (1 << 21)
    .endr

    .global bootshare_level3
bootshare_level3:
    .set    offset, 0
    .rept   512
    .quad   __image_start + offset + {EXECUTABLE_PAGE}
    .set    offset, offset + (1 << 12)
    .endr
    "#,
    MAIR = const MAIR,
    TCR_EL1 = const TCR_EL1,
    TCR_EL2 = const TCR_EL2,
    SCTLR_EL1 = const SCTLR_EL1,
    SCTLR_EL2 = const SCTLR_EL2,
    DEVICE_BLOCK = const DEVICE | BLOCK,
    NORMAL_BLOCK = const NORMAL | BLOCK,
    EXECUTABLE_PAGE = const NORMAL_EXECUTABLE | PAGE,
    TABLE = const TABLE,
    main = sym machine::main,
    exception = sym exceptions::report,
);
