//! A minimal firmware that reads a file from its host: it prints `/greeting.txt` of the first share of QEMU's
//! `microvm`, and ends QEMU.

#![no_std]
#![no_main]

use bootshare::{Error, Options, Share, hal::Clock, transport::mmio};
use core::{
    arch::{global_asm, x86_64::_rdtsc},
    fmt::Write,
    panic::PanicInfo,
    ptr::NonNull,
    time::Duration,
};
use x86_64::instructions::{hlt, port::Port};

/// Virtio-mmio slots: 24, of 0x200 bytes each.
const FIRST_SLOT: usize = 0xfeb0_0000;
const SLOT_SIZE: usize = 0x200;
const SLOTS: usize = 24;

// From PVH's 32-bit entry to 64-bit Rust: clear .bss, map the first 4 GiB, turn paging on.
global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .long 4, 8, 18
    .asciz "Xen"
    .quad start

    .section .text.start, "ax"
    .code32
    .global start
start:
    cld
    xor eax, eax
    mov edi, offset bss_start
    mov ecx, offset bss_end
    sub ecx, edi
    rep stosb

    mov edi, offset tables
    lea eax, [edi + 0x1003]         // level 4: one table of level 3
    mov [edi], eax
    mov ecx, 4                      // level 3: four directories
2:  add eax, 0x1000
    mov [edi + 0x1000], eax
    add edi, 8
    loop 2b
    mov edi, offset tables + 0x2000
    mov eax, 0x83                   // present, writable, 2 MiB
    mov ecx, 4 * 512
3:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 3b

    mov eax, offset tables; mov cr3, eax
    mov eax, 0x20; mov cr4, eax     // PAE
    mov ecx, 0xc0000080             // EFER
    rdmsr; or eax, 0x100; wrmsr     // LME
    mov eax, 0x80000001; mov cr0, eax // PG, PE
    lgdt [gdt_pointer]
    mov esp, offset stack_end
    push 8
    mov eax, offset long_mode; push eax
    retf
    .code64
long_mode:
    xor eax, eax
    mov ss, eax                     // the others do not matter in 64-bit mode
    call {main}

    .section .rodata.gdt, "a"
    .balign 8
gdt: .quad 0, 0x00af9b000000ffff    // selector 8: 64-bit code
gdt_pointer: .word 15; .long gdt

    .section .bss.start, "aw", @nobits
    .balign 4096
tables: .skip 6 * 4096 + 256 * 1024
stack_end:
    .text
    "#,
    main = sym main,
);

/// The time-stamp counter. It is assumed to run at 4 GHz, so a deadline is late rather than early.
struct Tsc;

impl Clock for Tsc {
    fn now(&self) -> Duration {
        // SAFETY: every CPU with a 64-bit mode has the instruction.
        Duration::from_nanos(unsafe { _rdtsc() } / 4)
    }
}

/// COM1, as QEMU has set it up.
struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port belongs to COM1, and nothing else uses it.
            unsafe { Port::new(0x3f8).write(byte) };
            // Until the transmitter is empty: QEMU's waits for the reader of its output.
            // SAFETY: this is COM1's line status.
            while unsafe { Port::<u8>::new(0x3fd).read() } & 1 << 6 == 0 {}
        }
        Ok(())
    }
}

fn print_greeting() -> Result<(), Error> {
    for slot in 0..SLOTS {
        let base = NonNull::new((FIRST_SLOT + slot * SLOT_SIZE) as *mut u8).expect("not 0");
        // SAFETY: the slot is mapped, and each slot is probed once.
        let Some(Ok(transport)) = (unsafe { mmio::probe(base, SLOT_SIZE) }) else {
            continue;
        };
        let share = Share::mount(transport, Tsc, Options::default())?;
        let mut text = [0; 4096];
        let size = share.open("/greeting.txt")?.read_at(0, &mut text)?;
        let text = core::str::from_utf8(&text[..size]).unwrap_or("(not UTF-8)");
        _ = write!(Console, "{}: {text}", share.tag());
        return share.unmount();
    }
    panic!("there is no share")
}

extern "sysv64" fn main() -> ! {
    match print_greeting() {
        Ok(()) => exit(0x10),
        Err(error) => panic!("{error}"),
    }
}

/// Ends QEMU through its isa-debug-exit device, with the status `2 * code + 1`, or halts.
fn exit(code: u32) -> ! {
    // SAFETY: on a PC no other device has this port.
    unsafe { Port::new(0xf4).write(code) };
    loop {
        hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    _ = writeln!(Console, "{info}");
    exit(0x11)
}
