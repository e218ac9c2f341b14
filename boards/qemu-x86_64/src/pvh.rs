//! The transition from 64-bit mode to a payload that is entered by PVH.
//!
//! The payload may belong to the addresses of the firmware's own code, tables and stack. So the
//! last instructions run in a page of their own, which is outside of the payload: they leave 64-bit
//! mode, move those parts to their addresses, and jump.
//!
//! The state that the payload finds is that of Xen's `docs/misc/pvh.pandoc` ("x86/HVM direct boot
//! ABI"): EBX is the start info, CR0 has only PE set, CR4 is 0, CS, DS, ES and SS are flat 32-bit
//! segments, TR is a 32-bit TSS at 0 with the limit 0x67, and interrupts are off.

use bootshare::{
    boot::memory::Range,
    loader::{HandOff, Move},
};
use core::{
    arch::{asm, global_asm},
    mem::offset_of,
    ptr, slice,
};
use x86_64::structures::gdt::DescriptorFlags;

/// Selectors of [`GDT`].
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TSS: u16 = 0x18;

/// An available 32-bit TSS at address 0 with the limit 0x67 (Intel SDM volume 3, 9.2.2).
const TSS32: u64 = 0x0000_8900_0000_0067;

const GDT: [u64; 4] = [
    0,
    DescriptorFlags::KERNEL_CODE32.bits(),
    DescriptorFlags::KERNEL_DATA.bits(),
    TSS32,
];

/// The page: the code, then the descriptors, which the CPU writes to, and the pointer to them.
#[repr(C)]
struct Page {
    code: [u8; 256],
    gdt: [u64; GDT.len()],
    pointer: Pointer,
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

unsafe extern "C" {
    // Only the addresses of these symbols are used.
    static pvh_trampoline: u8;
    static pvh_trampoline_end: u8;
}

global_asm!(
    ".section .text.pvh_trampoline, \"ax\"",
    ".code32",
    ".global pvh_trampoline",
    // EBX: start info. EBP: entry. ESI, EDI and ECX: source, destination and number of bytes to
    // move.
    "pvh_trampoline:",
    "mov esp, ecx", // There is no stack any more.
    "mov eax, cr0",
    "and eax, 0x7fffffff", // PG
    "mov cr0, eax",
    "mov ecx, 0xc0000080", // EFER
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "mov cr4, eax",
    "inc eax", // PE
    "mov cr0, eax",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov eax, {tss}",
    "ltr ax",
    "mov ecx, esp",
    "rep movsb",
    "jmp ebp",
    ".global pvh_trampoline_end",
    "pvh_trampoline_end:",
    ".code64",
    ".text",
    data = const DATA,
    tss = const TSS,
);

/// Enters a payload by PVH, through the page `trampoline`.
///
/// # Safety
///
/// `hand_off` must describe a payload for PVH, complete in memory except for the part that `moved`
/// describes. `trampoline` must be an unused page of memory. All of it is below 4 GiB and mapped at
/// its physical address, writable and executable.
pub unsafe fn start(hand_off: &HandOff, trampoline: u64, moved: Option<Move>) -> ! {
    let page = ptr::with_exposed_provenance_mut::<Page>(trampoline as usize);
    let address = |offset: usize| trampoline + offset as u64;
    let mut content = Page {
        code: [0; 256],
        gdt: GDT,
        pointer: Pointer {
            limit: size_of_val(&GDT) as u16 - 1,
            base: address(offset_of!(Page, gdt)),
        },
    };
    let code = &raw const pvh_trampoline;
    let size = (&raw const pvh_trampoline_end).addr() - code.addr();
    // SAFETY: the code's bytes are between the two symbols, and nothing writes to them.
    let code = unsafe { slice::from_raw_parts(code, size) };
    content.code[..size].copy_from_slice(code);
    // SAFETY: the caller passes the ownership of the page.
    unsafe { page.write(content) };
    let moved = moved.unwrap_or(Move {
        from: Range { start: 0, end: 0 },
        to: 0,
    });
    // SAFETY: the caller promises a payload at `entry`. The code in the page uses nothing of the
    // firmware except, for the jump to the page, the stack; the page itself moves what replaces the
    // firmware.
    unsafe {
        asm!(
            "cli",
            "cld",
            "mov ebx, eax",
            "mov ebp, edx",
            "lgdt [r8]",
            "push {code}",
            "push r9",
            "retfq",
            code = const CODE,
            in("rax") hand_off.argument,
            in("rdx") hand_off.entry,
            in("rsi") moved.from.start,
            in("rdi") moved.to,
            in("rcx") moved.from.size(),
            in("r8") address(offset_of!(Page, pointer)),
            in("r9") trampoline,
            options(noreturn)
        )
    }
}
