//! From PVH's 32-bit entry to Rust, with almost no state to rely on.
//!
//! # The state on entry
//!
//! By the x86/HVM direct boot ABI (Xen's `docs/misc/pvh.pandoc`), on the boot processor only, or
//! the same from [`reset`](crate::reset) in a ROM:
//!
//! 1. EBX is the physical address of the start info; 0 if there is none.
//! 2. CR0 has PE set and all other writable bits clear; CR4 is 0: protected mode, no paging.
//! 3. CS is a flat 32-bit code segment, DS, ES and SS are flat data segments. The table they were
//!    loaded from may no longer exist.
//! 4. EFLAGS has VM, IF and TF clear. DF may be set.
//! 5. There is no stack, no IDT and no usable TSS.
//! 6. The file's part of the image is in memory, at the addresses it was linked for. The
//!    contents of `.bss` are undefined.
//!
//! A ROM enters at `rom_entry`, with the time-stamp counter's count on reset in ESP:EBP.
//!
//! # The required state at [`machine::main`]
//!
//! 1. The CPU is in 64-bit mode, with interrupts off and DF clear.
//! 2. CS is 0x10 and DS, ES, SS, FS and GS are 0x18, from [`GDT`]: the selectors that the Linux
//!    boot protocol asks for.
//! 3. `.bss` is zero, except for what 4 and 5 use.
//! 4. The first GiB is mapped to itself through [`paging::TABLES`], writable and executable, and
//!    CR0.WP is set. [`paging`] maps the rest and takes permissions away.
//! 5. RSP is at the top of [`STACK`], aligned as the System V ABI requires at a function's entry.
//! 6. EDI is the value that EBX had, and RSI the time-stamp counter's count on entry.

use crate::{
    exceptions::{CODE_SELECTOR, DATA_SELECTOR, GDT},
    exit, machine, paging,
    stack::{STACK, STACK_SIZE, Stack},
    tables,
};
use core::{
    arch::global_asm,
    mem::{size_of, size_of_val},
};
use x86_64::structures::paging::PageTable;

global_asm!(
    // ELF note "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY): the PVH entry point.
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad pvh_entry",

    ".section .text.pvh_entry, \"ax\"",
    ".code32",
    ".global pvh_entry, rom_entry",
    "pvh_entry:",
    "rdtsc",
    "mov ebp, eax",
    "mov esp, edx", // there is no stack yet
    "rom_entry:",
    "cli",
    "cld",
    "mov esi, ebx", // cpuid takes EBX

    // Clear .bss.
    "xor eax, eax",
    "mov edi, offset __bss_start",
    "mov ecx, offset __bss_end",
    "sub ecx, edi",
    "shr ecx, 2",
    "rep stosd",

    // Long mode: CPUID 0x80000001, EDX bit 29.
    "mov eax, 0x80000000",
    "cpuid",
    "cmp eax, 0x80000001",
    "jb pvh_no_long_mode",
    "mov eax, 0x80000001",
    "cpuid",
    "bt edx, 29",
    "jnc pvh_no_long_mode",

    // Map the first GiB: one entry at level 4, one at level 3, and 512 pages of 2 MiB.
    "mov edi, offset {tables}",
    "lea eax, [edi + {level3} + {table_flags}]",
    "mov [edi + {level4}], eax",
    "lea eax, [edi + {directory} + {table_flags}]",
    "mov [edi + {level3}], eax",
    "add edi, {directory}",
    "mov eax, {page_flags}",
    "mov ecx, 512",
    "2:",
    "mov [edi], eax",
    "add eax, 0x200000",
    "add edi, 8",
    "loop 2b",

    // Intel SDM volume 3, 10.8.5: CR4.PAE, CR3, EFER.LME, then CR0.PG (with WP).
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    "mov eax, offset {tables} + {level4}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80010000",
    "mov cr0, eax",

    // Into the 64-bit code segment.
    "lgdt [pvh_gdt_pointer]",
    "mov eax, esp",
    "mov esp, offset {stack} + {stack_end}",
    "push eax",
    "push ebp",
    "push {code}",
    "mov eax, offset pvh_long_mode",
    "push eax",
    "retf",

    ".code64",
    "pvh_long_mode:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov edi, esi",
    "pop rsi",
    "xor ebp, ebp",
    "call {main}",
    "ud2",

    // The CPU has no long mode: print that on COM1, end QEMU by isa-debug-exit, else halt. Before each
    // byte, and before the end, the transmitter must be empty (bit 6 of the line status); ECX limits
    // how often that is read.
    ".code32",
    "pvh_no_long_mode:",
    "mov esi, offset pvh_no_long_mode_text",
    "mov ecx, 0x8000000",
    "2:",
    "mov dx, 0x3fd",
    "5:",
    "jecxz 6f",
    "dec ecx",
    "in al, dx",
    "test al, 0x40",
    "jz 5b",
    "6:",
    "lodsb",
    "test al, al",
    "jz 3f",
    "mov dx, 0x3f8",
    "out dx, al",
    "jmp 2b",
    "3:",
    "mov dx, {exit_port}",
    "mov eax, {exit_failure}",
    "out dx, eax",
    "4:",
    "hlt",
    "jmp 4b",

    ".section .rodata.pvh_entry, \"a\"",
    "pvh_gdt_pointer:",
    ".word {gdt_limit}",
    ".long {gdt}",
    "pvh_no_long_mode_text:",
    ".asciz \"bootshare: error: this CPU has no 64-bit mode; choose another one with QEMU's -cpu\\r\\n\"",
    ".text",
    ".code64",

    tables = sym paging::TABLES,
    level4 = const tables::ROOT * size_of::<PageTable>(),
    level3 = const tables::LEVEL3 * size_of::<PageTable>(),
    directory = const tables::DIRECTORIES * size_of::<PageTable>(),
    table_flags = const tables::TABLE.bits(),
    page_flags = const tables::LARGE_PAGE.bits(),
    stack = sym STACK,
    stack_end = const size_of::<Stack<STACK_SIZE>>(),
    gdt = sym GDT,
    gdt_limit = const size_of_val(&GDT) - 1,
    code = const CODE_SELECTOR,
    data = const DATA_SELECTOR,
    main = sym machine::main,
    exit_port = const exit::PORT,
    exit_failure = const exit::FAILURE,
);
