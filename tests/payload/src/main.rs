//! A payload for the boot tests. It checks its initial state against the boot protocol and against
//! docs/boot-protocols.md, then enables interrupts and waits for some time: none must come. It prints one line with
//! the result.

#![no_std]
#![no_main]

use core::{
    arch::{global_asm, x86_64::_rdtsc},
    fmt::{self, Write},
    mem::size_of,
    panic::PanicInfo,
    ptr,
};
use x86_64::{
    VirtAddr,
    instructions::{hlt, interrupts, port::Port, tables::lidt},
    registers::model_specific::{ApicBase, ApicBaseFlags, Msr},
    structures::DescriptorTablePointer,
};

/// 130 ms in counts of the time-stamp counter at 4 GHz. After a reset, the PIT ticks every 55 ms.
const WAIT: u64 = 1 << 29;

/// The processor's registers at the entry. The assembly code writes the fields.
#[repr(C)]
struct Registers {
    flags: u64,
    cr0: u64,
    cr4: u64,
    efer: u64,
    /// CS, DS, ES and SS.
    selectors: [u64; 4],
    /// EBX for PVH, RSI for Linux.
    argument: u64,
}

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .macro save_registers accumulator, argument
    mov [registers + 0x40], \argument
    pushf
    pop \accumulator
    mov [registers], \accumulator
    mov \accumulator, cr0
    mov [registers + 0x08], \accumulator
    mov \accumulator, cr4
    mov [registers + 0x10], \accumulator
    mov \accumulator, cs
    mov [registers + 0x20], \accumulator
    mov \accumulator, ds
    mov [registers + 0x28], \accumulator
    mov \accumulator, es
    mov [registers + 0x30], \accumulator
    mov \accumulator, ss
    mov [registers + 0x38], \accumulator
    mov ecx, 0xc0000080             // EFER
    rdmsr
    mov [registers + 0x18], eax
    .endm

    .section .text.pvh, "ax"
    .code32
    .global pvh_entry
pvh_entry:
    mov esp, offset stack_end
    save_registers eax, ebx
    mov edi, offset {pvh}
    mov eax, offset tables; mov cr3, eax
    mov eax, 0x20; mov cr4, eax     // PAE
    mov ecx, 0xc0000080             // EFER
    rdmsr; or eax, 0x100; wrmsr     // LME
    mov eax, 0x80000001; mov cr0, eax // PG, PE
    lgdt [gdt_pointer]
    push 0x10
    mov eax, offset main; push eax
    retf

    .section .text.linux, "ax"
    .code64
    mov rsp, offset stack_end
    save_registers rax, rsi
    // Linux writes to the BIOS data area and to the firmware's memory, so both must be writable.
    mov rax, [0]
    mov [0], rax
    mov rax, [0x100000]
    mov [0x100000], rax
    mov edi, offset {linux}
    mov rax, offset tables; mov cr3, rax
    lgdt [gdt_pointer]
main:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    call rdi

    // The handler of each vector: it reports the vector and does not return.
    .balign 16
    .global vector_stubs
vector_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    mov edi, vector
    and rsp, -16
    call {interrupted}
    .set vector, vector + 1
    .endr

    .section .data.tables, "aw"
    .balign 8
gdt: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer: .word 31; .quad gdt
    // An identity mapping of 4 GiB.
    .balign 4096
tables: .quad directories + 3
    .balign 4096
directories: .quad entries + 0x3, entries + 0x1003, entries + 0x2003, entries + 0x3003
    .balign 4096
entries:
    .set entry, 0x83                // present, writable, 2 MiB
    .rept 2048
    .quad entry
    .set entry, entry + 0x200000
    .endr
    .balign 16
    .skip 0x4000
stack_end:
    .global registers
registers: .skip 0x48
    .text
    "#,
    pvh = sym entered_by_pvh,
    linux = sym entered_as_linux,
    interrupted = sym interrupted,
);

unsafe extern "C" {
    static registers: Registers;
    static vector_stubs: [[u8; 16]; 256];
}

/// COM1, as the firmware left it.
struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port is COM1's, and nothing else uses it.
            unsafe { Port::new(0x3f8).write(byte) };
            // Until the transmitter is empty; QEMU's end would lose the byte.
            // SAFETY: the port is COM1's line status register.
            while unsafe { Port::<u8>::new(0x3fd).read() } & 1 << 6 == 0 {}
        }
        Ok(())
    }
}

/// Prints `what` and ends QEMU through its isa-debug-exit device, with the status of a firmware's success or
/// failure.
fn end(what: fmt::Arguments<'_>, is_success: bool) -> ! {
    _ = writeln!(Console, "payload: {what}\r");
    // SAFETY: on a PC no other device has this port.
    unsafe { Port::new(0xf4).write(if is_success { 0x10_u32 } else { 0x11 }) };
    loop {
        interrupts::disable();
        hlt();
    }
}

/// Ends the test with an error unless `found` is `expected`.
fn expect(what: &str, found: u64, expected: u64) {
    if found != expected {
        end(
            format_args!("error: {what} is {found:#x} and should be {expected:#x}"),
            false,
        );
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    end(format_args!("error: {info}"), false)
}

extern "sysv64" fn interrupted(vector: u32) -> ! {
    end(
        format_args!("error: an interrupt came, with the vector {vector}"),
        false,
    )
}

fn found() -> &'static Registers {
    // SAFETY: the entry code has written it, and nothing writes to it any more.
    unsafe { &registers }
}

fn memory<T>(address: u64) -> T {
    // SAFETY: the first 4 GiB are mapped; the address is that of memory, or of a register that can be read without
    // side effects.
    unsafe { ptr::with_exposed_provenance::<T>(address as usize).read_volatile() }
}

/// Xen's `docs/misc/pvh.pandoc`, "x86/HVM direct boot ABI".
extern "sysv64" fn entered_by_pvh() -> ! {
    const ET: u64 = 1 << 4;
    let found = found();
    expect(
        "the magic number of the start info",
        memory::<u32>(found.argument).into(),
        0x336e_c578,
    );
    // The bit ET cannot be cleared.
    expect("CR0", found.cr0 & !ET, 1);
    expect("CR4", found.cr4, 0);
    expect("EFER", found.efer, 0);
    // cmdline_paddr: it must not be right after the program, which may use that memory before it reads the command
    // line.
    let command_line = memory::<u64>(found.argument + 24);
    expect("the first MiB of the command line", command_line >> 20, 0);
    // rsdp_paddr.
    run("PVH", memory(found.argument + 32))
}

/// The kernel's `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol".
extern "sysv64" fn entered_as_linux() -> ! {
    let found = found();
    // HdrS.
    expect(
        "the setup header's magic number",
        memory::<u32>(found.argument + 0x202).into(),
        0x5372_6448,
    );
    for (name, found, expected) in [
        ("CS", found.selectors[0], 0x10),
        ("DS", found.selectors[1], 0x18),
        ("ES", found.selectors[2], 0x18),
        ("SS", found.selectors[3], 0x18),
    ] {
        expect(name, found, expected);
    }
    // acpi_rsdp_addr.
    run("the Linux boot protocol", memory(found.argument + 0x70))
}

fn run(protocol: &str, rsdp: u64) -> ! {
    expect("the interrupt flag", found().flags & 1 << 9, 0);
    find_rsdp(rsdp);
    check_8259();
    check_apic();
    enable_interrupts();
    let start = timestamp();
    while timestamp().saturating_sub(start) < WAIT {}
    interrupts::disable();
    end(
        format_args!(
            "entered by {protocol}, memory types {:#x}, no interrupt came",
            memory_types()
        ),
        true,
    )
}

/// The default memory type, and whether MTRRs are enabled (Intel SDM volume 3, IA32_MTRR_DEF_TYPE).
fn memory_types() -> u64 {
    // SAFETY: every processor that QEMU has for these boards has the register.
    unsafe { Msr::new(0x2ff).read() }
}

fn timestamp() -> u64 {
    // SAFETY: every CPU with a 64-bit mode has the instruction.
    unsafe { _rdtsc() }
}

/// Searches the root pointer of the ACPI tables as Linux does before 5.0 (ACPI 6.5, section 5.2.5.1).
fn find_rsdp(told: u64) {
    const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
    let ebda = u64::from(memory::<u16>(0x40e)) << 4;
    let places = (ebda..ebda + 0x400).chain(0xe_0000..0x10_0000).step_by(16);
    let found = places
        .into_iter()
        .find(|&at| memory::<u64>(at) == SIGNATURE);
    let same = |found: u64| (0..20).all(|at| memory::<u8>(found + at) == memory::<u8>(told + at));
    match (told, found) {
        (0, None) => {}
        (0, Some(at)) => end(
            format_args!("error: there is an RSDP at {at:#x}, and nobody tells"),
            false,
        ),
        (_, Some(at)) if same(at) => {}
        _ => end(
            format_args!("error: a search finds no RSDP like the one at {told:#x}"),
            false,
        ),
    }
}

/// Asserts that all lines of both interrupt controllers are masked, and that no interrupt is in service.
fn check_8259() {
    for (name, command) in [("first", 0x20), ("second", 0xa0)] {
        let mut command_port = Port::<u8>::new(command);
        // SAFETY: the port is the controller's; this OCW3 selects the in-service register.
        unsafe { command_port.write(0b1011) };
        // SAFETY: reading it has no side effect.
        let in_service = unsafe { command_port.read() };
        // SAFETY: as above.
        let mask = unsafe { Port::<u8>::new(command + 1).read() };
        // If there is no controller, all bits read as ones.
        if (mask, in_service) != (0xff, 0) && in_service != 0xff {
            end(
                format_args!(
                    "error: the {name} 8259 has the mask {mask:#04x}, in service {in_service:#04x}"
                ),
                false,
            );
        }
    }
}

/// Asserts that the local APIC's timer is stopped, and that nothing is requested or in service.
fn check_apic() {
    let (frame, flags) = ApicBase::read();
    if !flags.contains(ApicBaseFlags::LAPIC_ENABLE) {
        end(format_args!("error: the local APIC is disabled"), false);
    }
    let register = |offset: u32| {
        if flags.contains(ApicBaseFlags::X2APIC_ENABLE) {
            // SAFETY: the register exists in this mode, and reading it has no side effect.
            unsafe { Msr::new(0x800 + offset / 16).read() }
        } else {
            memory::<u32>(frame.start_address().as_u64() + u64::from(offset)).into()
        }
    };
    expect(
        "the mask of the APIC's timer",
        register(0x320) & 1 << 16,
        1 << 16,
    );
    expect("the count of the APIC's timer", register(0x390), 0);
    expect("the task priority", register(0x80), 0);
    for offset in (0..0x80).step_by(16) {
        expect(
            "a word of interrupts in service",
            register(0x100 + offset),
            0,
        );
        expect(
            "a word of interrupts requested",
            register(0x200 + offset),
            0,
        );
    }
}

/// Enables interrupts; each of the 256 vectors ends the test.
fn enable_interrupts() {
    static mut GATES: [[u64; 2]; 256] = [[0; 2]; 256];
    /// A present interrupt gate into the code segment.
    const GATE: u64 = 0x10 << 16 | 0x8e << 40;

    let gates = (&raw mut GATES).cast::<[u64; 2]>();
    for vector in 0..256 {
        let stub = (&raw const vector_stubs).addr() as u64 + 16 * vector as u64;
        let gate = [
            GATE | stub & 0xffff | (stub >> 16 & 0xffff) << 48,
            stub >> 32,
        ];
        // SAFETY: it is one of the 256 gates, which are not in use yet.
        unsafe { gates.wrapping_add(vector).write(gate) };
    }
    let pointer = DescriptorTablePointer {
        limit: (256 * size_of::<[u64; 2]>() - 1) as u16,
        base: VirtAddr::from_ptr(gates),
    };
    // SAFETY: the table is static and complete.
    unsafe { lidt(&pointer) };
    interrupts::enable();
}
