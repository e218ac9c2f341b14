//! CPU exceptions: each ends the firmware with an error line. Interrupts stay off throughout, but for
//! the timer's while the CPU [rests](crate::rest).
//!
//! All handlers run on a stack of their own, so that an overflow of the firmware's stack is
//! reported, too.

use crate::{
    exit,
    stack::{EXCEPTION_STACK, STACK},
    tables::PAGE,
};
use core::{arch::global_asm, mem::size_of};
use spin::Once;
use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::tables::{lidt, load_tss},
    registers::control::Cr2,
    structures::{
        DescriptorTablePointer,
        gdt::{Descriptor, DescriptorFlags, GlobalDescriptorTable, SegmentSelector},
        idt::{self, HandlerFunc},
        tss::TaskStateSegment,
    },
};

/// Segment selector of 64-bit code (`__BOOT_CS` of the Linux boot protocol).
pub const CODE_SELECTOR: u16 = 0x10;
/// Segment selector of data (`__BOOT_DS`).
pub const DATA_SELECTOR: u16 = 0x18;

/// The descriptors of these selectors.
pub static GDT: [u64; 4] = [
    0,
    0,
    DescriptorFlags::KERNEL_CODE64.bits(),
    DescriptorFlags::KERNEL_DATA.bits(),
];

/// The number of vectors that the CPU itself uses (Intel SDM volume 3, 6.3.1).
const VECTORS: usize = 32;
/// Vectors with an error code on the stack (Intel SDM volume 3, table 6-1; AMD's 29 and 30).
const WITH_ERROR_CODE: u32 = 1 << 8
    | 1 << 10
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 17
    | 1 << 21
    | 1 << 29
    | 1 << 30;
const PAGE_FAULT: u64 = 14;
/// The vectors of the local APIC's timer and of spurious interrupts.
pub const TIMER_VECTOR: u8 = VECTORS as u8;

/// The local APIC's register for the end of an interrupt, in memory and in x2APIC mode.
const END_OF_INTERRUPT: [u32; 2] = [0xfee0_00b0, 0x80b];
/// The model-specific register with the mode, and the bit of the x2APIC mode.
const APIC_BASE: u32 = 0x1b;
const X2APIC_ENABLE: u32 = 1 << 10;

/// The distance in bytes from one entry stub to the next.
const STUB_SIZE: usize = 16;

static TASK: Once<TaskStateSegment> = Once::new();
static DESCRIPTORS: Once<GlobalDescriptorTable<6>> = Once::new();
static HANDLERS: Once<[idt::Entry<HandlerFunc>; VECTORS + 1]> = Once::new();

global_asm!(
    // One stub for each vector. Afterwards the stack has the vector, the error code (0 if the CPU
    // pushed none) and RIP.
    ".section .text.exception_stubs, \"ax\"",
    ".balign {size}",
    ".global exception_stubs",
    "exception_stubs:",
    ".set vector, 0",
    ".rept {vectors}",
    ".balign {size}",
    ".if (({with_error_code} >> vector) & 1) == 0",
    "push 0",
    ".endif",
    "push vector",
    "jmp exception_common",
    ".set vector, vector + 1",
    ".endr",
    // No handler returns from here, so no register is saved.
    "exception_common:",
    "cld",
    "mov rdi, [rsp]",
    "mov rsi, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "and rsp, -16",
    "call {handler}",
    "ud2",
    // Signals the end of the interrupt; its only purpose is to end the halt.
    ".balign {size}",
    ".global timer_stub",
    "timer_stub:",
    "push rax",
    "push rcx",
    "push rdx",
    "mov ecx, {apic_base}",
    "rdmsr",
    "test eax, {x2apic_enable}",
    "mov eax, {end_of_interrupt}",
    "jz 2f",
    "mov ecx, {end_of_x2apic_interrupt}",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "jmp 3f",
    "2:",
    "mov dword ptr [rax], 0",
    "3:",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
    ".text",
    size = const STUB_SIZE,
    vectors = const VECTORS,
    with_error_code = const WITH_ERROR_CODE,
    handler = sym handle,
    apic_base = const APIC_BASE,
    x2apic_enable = const X2APIC_ENABLE,
    end_of_interrupt = const END_OF_INTERRUPT[0],
    end_of_x2apic_interrupt = const END_OF_INTERRUPT[1],
);

unsafe extern "C" {
    /// The first stub. Only its address is used.
    #[link_name = "exception_stubs"]
    static STUBS: [u8; VECTORS * STUB_SIZE];
    /// As above.
    #[link_name = "timer_stub"]
    static TIMER_STUB: u8;
}

extern "sysv64" fn handle(vector: u64, error_code: u64, instruction: u64) -> ! {
    let address = Cr2::read_raw();
    let guard = STACK.guard();
    let name = match vector {
        PAGE_FAULT if (guard..guard + PAGE).contains(&address) => "stack overflow",
        0 => "division by zero",
        2 => "non-maskable interrupt",
        6 => "invalid instruction",
        8 => "double fault",
        13 => "general protection fault",
        PAGE_FAULT => "page fault",
        18 => "machine check",
        _ => "unexpected",
    };
    exit::fail(format_args!(
        "the firmware has a bug: CPU exception {vector} ({name}), error code {error_code:#x}, \
         at {instruction:#x}, last faulting address {address:#x}"
    ))
}

/// Turns every exception into an error line.
pub fn init() {
    let task = TASK.call_once(|| {
        let mut task = TaskStateSegment::new();
        task.interrupt_stack_table[0] = VirtAddr::new_truncate(EXCEPTION_STACK.top());
        task
    });
    let mut selector = SegmentSelector::NULL;
    let descriptors = DESCRIPTORS.call_once(|| {
        let mut table = GlobalDescriptorTable::from_raw_entries(&GDT);
        selector = table.append(Descriptor::tss_segment(task));
        table
    });
    // The selectors in use mean the same in both tables.
    descriptors.load();
    // SAFETY: the selector is that of the task state segment, just added to the table just loaded.
    unsafe { load_tss(selector) };

    let handlers = HANDLERS.call_once(|| {
        let first = (&raw const STUBS).addr() as u64;
        core::array::from_fn(|vector| {
            let stub = match vector {
                VECTORS => (&raw const TIMER_STUB).addr() as u64,
                _ => first + (vector * STUB_SIZE) as u64,
            };
            let stub = VirtAddr::new_truncate(stub);
            let mut entry = idt::Entry::missing();
            // SAFETY: a stub is there that handles this vector's stack layout.
            let options = unsafe { entry.set_handler_addr(stub) };
            // SAFETY: the first entry of the interrupt stack table is a stack that nothing else
            // uses; an exception inside a handler may overwrite it, because no handler returns
            // except the timer's, in which no exception can occur.
            unsafe { options.set_stack_index(0) };
            entry
        })
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(handlers) - 1) as u16,
        base: VirtAddr::from_ptr(handlers),
    };
    // SAFETY: the table is static and constant from here on, and its entries are valid.
    unsafe { lidt(&pointer) };
}

const _: () = assert!(size_of::<idt::Entry<HandlerFunc>>() == 16);
const _: () = assert!(CODE_SELECTOR == SegmentSelector::new(2, PrivilegeLevel::Ring0).0);
