//! From the reset vector of a ROM to the entry for PVH: from 16 to 32 bits, and from ROM to RAM.
//!
//! # The state on entry
//!
//! After a reset (Intel SDM volume 3, 10.1.1 and 10.1.4), on the boot processor only:
//!
//! 1. Real mode, with the base of CS at 0xffff0000 and IP 0xfff0: the last 16 bytes below 4 GiB.
//!    Interrupts are off; CR4 and EFER are 0; CR0 has caching disabled.
//! 2. The last bytes of the ROM are the section `.reset`; before them lies the file's part of the
//!    image (see the linker script and `bootshare-host rom`).
//! 3. RAM works, and address line 20 is open: this is QEMU.
//!
//! # The state at `rom_entry`
//!
//! The state that [`start`](crate::start) requires, with EBX 0: there is no start info, so
//! [`rom`](crate::rom) finds what it would contain. The section is in the ELF file but not loaded
//! into memory.

use core::arch::global_asm;

global_asm!(
    ".section .reset, \"\", @progbits",
    ".code16",
    ".Lreset_16:",
    "cli",
    "cld",
    "rdtsc",
    "movl %eax, %ebp",
    "movl %edx, %esp",
    // CS is the only segment that reaches the ROM. 0xff00: the offset of `.reset` in it.
    "lgdtl %cs:0xff00 + (.Lreset_gdt_pointer - .Lreset_16)",
    "movl $1, %eax", // PE, and caching no longer disabled
    "movl %eax, %cr0",
    "ljmpl $8, $0xffffff00 + (.Lreset_32 - .Lreset_16)",
    ".code32",
    ".Lreset_32:",
    "movl $16, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %ss",
    "movl $__rom_image, %esi",
    "movl $__image_start, %edi",
    "movl $__data_end, %ecx",
    "subl %edi, %ecx",
    "shrl $2, %ecx",
    "rep movsl",
    "xorl %ebx, %ebx",
    "movl $rom_entry, %eax",
    "jmpl *%eax",
    // Flat code and data. Their accessed bits are set, because the CPU cannot set them in ROM.
    ".balign 8",
    ".Lreset_gdt:",
    ".quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff",
    ".Lreset_gdt_pointer:",
    ".word . - .Lreset_gdt - 1",
    ".long 0xffffff00 + (.Lreset_gdt - .Lreset_16)",
    ".org 0xf0, 0x90",
    ".code16",
    "jmp .Lreset_16",
    ".org 0x100, 0x90",
    ".text",
    ".code64",
    options(att_syntax)
);
