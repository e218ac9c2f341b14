//! Makes and takes apart kernel images and programs, as the kernel's and systemd's own tools do.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bootshare_host::Arch;
use bootshare_host::debian::{Apt, Packages};

use crate::shared::target;

/// Compresses as the kernel's `Makefile.zboot` does: the uncompressed size follows the data.
pub(crate) fn padded(mut image: Vec<u8>) -> Vec<u8> {
    let size = u64::from_le_bytes(image[16..24].try_into().unwrap());
    image.resize(size.try_into().unwrap(), 0);
    image
}

/// An EFI zboot image: the header of `zboot-header.S`, and the payload in a section.
pub(crate) fn zboot_of(payload: &[u8], compression: &str) -> Vec<u8> {
    const START: usize = 0x1000;
    let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    let mut file = vec![0; START];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ\0\0zimg");
    put(8, &number(START));
    put(12, &number(payload.len()));
    put(24, compression.as_bytes());
    put(56, &0x8182_23cd_u32.to_le_bytes());
    put(0x3c, &number(0x40));
    // The COFF header: the machine, one section, an optional header of 160 bytes.
    put(0x40, b"PE\0\0\x64\xaa\x01\0");
    put(0x40 + 20, &[160, 0]);
    put(0x40 + 24, &[0x0b, 0x02]);
    let section = 0x40 + 24 + 160;
    put(section, b".text");
    put(section + 8, &number(payload.len()));
    put(section + 16, &number(payload.len()));
    put(section + 20, &number(START));
    file.extend(payload);
    file
}

/// The uncompressed kernel in a bzImage, as the kernel's `scripts/extract-vmlinux` finds it.
pub(crate) fn vmlinux_of(bzimage: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let bytes = bzimage[at..at + 4].try_into().unwrap();
        usize::try_from(u32::from_le_bytes(bytes)).unwrap()
    };
    let setup = (usize::from(bzimage[0x1f1]) + 1) * 512;
    let payload = &bzimage[setup + number(0x248)..][..number(0x24c)];
    // Except with gzip, the uncompressed size follows the compressed data.
    let (program, end) = match payload {
        [0x1f, 0x8b, ..] => ("gzip", 0),
        [0x02, 0x21, ..] => ("lz4", 4),
        [0x28, 0xb5, ..] => ("zstd", 4),
        [0xfd, b'7', ..] => ("xz", 4),
        _ => panic!("the kernel's compression is unknown"),
    };
    let program = filtered(program, &["-dc"], &payload[..payload.len() - end]);
    assert!(program.starts_with(b"\x7fELF"));
    program
}

/// The output of a program whose input is `bytes`.
pub(crate) fn filtered(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}: install it"));
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}: {:?}", output.status);
    output.stdout
}

/// An ELF program of one segment: `content` at the physical address `address`, entered at its start.
struct Program<'a> {
    machine: u16,
    kind: u16,
    address: u64,
    virtual_address: u64,
    content: &'a [u8],
    memory: u64,
    notes: &'a [u8],
}

impl Program<'_> {
    fn build(&self) -> Vec<u8> {
        const START: usize = 0x1000;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(START, 0);
        let notes = START + self.content.len();
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &self.kind.to_le_bytes());
        put(18, &self.machine.to_le_bytes());
        put(24, &self.virtual_address.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        let size = |bytes: &[u8]| bytes.len() as u64;
        let load = [
            START as u64,
            self.virtual_address,
            self.address,
            size(self.content),
            self.memory.max(size(self.content)),
        ];
        let note = [notes as u64, 0, 0, size(self.notes), size(self.notes)];
        for (at, kind, fields) in [(64, 1_u32, load), (64 + 56, 4, note)] {
            put(at, &kind.to_le_bytes());
            for (index, field) in fields.iter().enumerate() {
                put(at + 8 + 8 * index, &field.to_le_bytes());
            }
        }
        file.extend(self.content);
        file.extend(self.notes);
        file
    }
}

/// The ELF note with the PVH entry point, XEN_ELFNOTE_PHYS32_ENTRY.
fn pvh_note(entry: u32) -> Vec<u8> {
    let mut note: Vec<u8> = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

/// A bzImage of an ELF program with one segment that is entered at its lowest address. It is not
/// relocatable, and its 64-bit entry is 0x200 bytes after its start (the kernel's
/// `Documentation/arch/x86/boot.rst`).
pub(crate) fn bzimage_of(elf: &[u8]) -> Vec<u8> {
    let field = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    // The first program header: p_offset, p_paddr and p_filesz.
    let header = usize::try_from(field(32)).unwrap();
    let [start, address, size] = [8, 24, 32].map(|at| field(header + at));
    let start = usize::try_from(start).unwrap();
    let mut content = elf[start..start + usize::try_from(size).unwrap()].to_vec();
    content.resize(content.len().next_multiple_of(16), 0);
    let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    let mut file = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &number(content.len() / 16)); // syssize
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]); // boot_flag, jump
    put(0x202, b"HdrS\x0f\x02"); // version 2.15
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x22c, &number(0x7fff_ffff)); // initrd_addr_max
    put(0x230, &number(0x20_0000)); // kernel_alignment
    put(0x236, &[1, 0]); // xloadflags: XLF_KERNEL_64
    put(0x238, &number(2047)); // cmdline_size
    put(0x258, &address.to_le_bytes()); // pref_address
    put(0x260, &number(content.len())); // init_size
    file.extend(content);
    file
}

const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;

/// Code that is entered by PVH at 1 MiB. It prints a text at 0x180000 and another at 0x2fff00, but only if
/// EBX is the start info's address, and CR0 and CR4 have the values that PVH demands.
#[rustfmt::skip]
pub(crate) const X86_CODE: [u8; 73] = [
    0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, //    cmp    dword ptr [ebx], 0x336ec578
    0x75, 0x27,                         //    jne    9f
    0x0f, 0x20, 0xc0,                   //    mov    eax, cr0
    0x83, 0xe0, 0xef,                   //    and    eax, 0xffffffef
    0x0f, 0x20, 0xe1,                   //    mov    ecx, cr4
    0x48,                               //    dec    eax
    0x09, 0xc8,                         //    or     eax, ecx
    0x75, 0x19,                         //    jne    9f
    0xbc, 0x00, 0x00, 0x09, 0x00,       //    mov    esp, 0x90000
    0xbe, 0x00, 0x00, 0x18, 0x00,       //    mov    esi, 0x180000
    0xe8, 0x17, 0x00, 0x00, 0x00,       //    call   1f
    0xbe, 0x00, 0xff, 0x2f, 0x00,       //    mov    esi, 0x2fff00
    0xe8, 0x0d, 0x00, 0x00, 0x00,       //    call   1f
    0x66, 0xba, 0xf4, 0x00,             // 9: mov    dx, 0xf4
    0xb8, 0x10, 0x00, 0x00, 0x00,       //    mov    eax, 0x10
    0xef,                               //    out    dx, eax
    0xf4,                               // 8: hlt
    0xeb, 0xfd,                         //    jmp    8b
    0x66, 0xba, 0xf8, 0x03,             // 1: mov    dx, 0x3f8
    0xac,                               // 2: lodsb
    0x84, 0xc0,                         //    test   al, al
    0x74, 0x03,                         //    jz     3f
    0xee,                               //    out    dx, al
    0xeb, 0xf8,                         //    jmp    2b
    0xc3,                               // 3: ret
];

/// A program with `content` at `address`, where PVH enters it.
pub(crate) fn x86_elf(address: u64, content: &[u8], memory: u64) -> Vec<u8> {
    let program = Program {
        machine: EM_X86_64,
        kind: 2,
        address,
        virtual_address: address,
        content,
        memory,
        notes: &pvh_note(address as u32),
    };
    program.build()
}

/// Code that prints the text after it if x0 is the address of a device tree, and powers the machine off.
const ARM64_CODE: [u32; 15] = [
    0xb940_0001, //    ldr  w1, [x0]
    0x5281_ba02, //    mov  w2, #0x0dd0
    0x72bd_bfc2, //    movk w2, #0xedfe, lsl #16
    0x6b02_003f, //    cmp  w1, w2
    0x5400_0141, //    b.ne 3f
    0x1000_0141, //    adr  x1, 4f
    0xd2a1_2002, //    mov  x2, #0x09000000
    0x3840_1423, // 1: ldrb w3, [x1], #1
    0x3400_0063, //    cbz  w3, 2f
    0xb900_0043, //    str  w3, [x2]
    0x17ff_fffd, //    b    1b
    0x5280_0100, // 2: mov  w0, #0x8
    0x72b0_8000, //    movk w0, #0x8400, lsl #16
    0xd400_0002, //    hvc  #0
    0x1400_0000, // 3: b    3b
];

/// [`ARM64_CODE`] at `address`, with 1 MiB of memory; `kind` is ELF's `e_type`.
pub(crate) fn arm64_elf(kind: u16, address: u64) -> Vec<u8> {
    let mut content: Vec<u8> = ARM64_CODE.map(u32::to_le_bytes).concat();
    content.extend(b"program: there is a device tree\r\n\0");
    let program = Program {
        machine: EM_AARCH64,
        kind,
        address,
        virtual_address: 0xffff_0000_0000_0000 | address,
        content: &content,
        memory: 0x10_0000,
        notes: &[],
    };
    program.build()
}

/// A value that a payload prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A general register, `x0` to `x3`.
    General(u8),
    /// A system register, by `op0`, `op1`, `CRn`, `CRm` and `op2`.
    System([u32; 5]),
    /// The word at an address.
    Word(u32),
}

/// Code that prints x0 as 16 hexadecimal digits on the UART at x24.
const ARM64_PRINT: [u32; 15] = [
    0xd280_0782, //    mov  x2, #60
    0x9ac2_2403, // 1: lsr  x3, x0, x2
    0x9240_0c63, //    and  x3, x3, #0xf
    0xf100_287f, //    cmp  x3, #10
    0x9100_c064, //    add  x4, x3, #'0'
    0x9101_5c65, //    add  x5, x3, #'a' - 10
    0x9a85_3084, //    csel x4, x4, x5, lo
    0xb900_0304, //    str  w4, [x24]
    0xf100_1042, //    subs x2, x2, #4
    0x54ff_ff05, //    b.pl 1b
    0x5280_01a4, //    mov  w4, #'\r'
    0xb900_0304, //    str  w4, [x24]
    0x5280_0144, //    mov  w4, #'\n'
    0xb900_0304, //    str  w4, [x24]
    0xd65f_03c0, //    ret
];

/// An arm64 Image of `size` bytes that prints each of these values on a line, and powers the machine off
/// by PSCI: by SMC if `el2`, or else by HVC.
pub(crate) fn arm64_state(found: &[Found], el2: bool, size: usize) -> Vec<u8> {
    let call = |code: &mut Vec<u32>| {
        // ARM64_PRINT starts at word 4.
        let distance = 4_u32.wrapping_sub(code.len() as u32);
        code.push(0x9400_0000 | distance & 0x03ff_ffff); // bl
    };
    let mut code = vec![
        0x1400_0000 + 4 + ARM64_PRINT.len() as u32, // b, over the function
        0,
        0,
        0,
    ];
    code.extend(ARM64_PRINT);
    // mov x20, x0 and so on; movz x24, #0x0900, lsl #16
    code.extend([0xaa00_03f4, 0xaa01_03f5, 0xaa02_03f6, 0xaa03_03f7]);
    code.push(0xd2a1_2018);
    for found in found {
        match *found {
            Found::General(index) => code.push(0xaa00_03e0 | (20 + u32::from(index)) << 16),
            Found::System([op0, op1, n, m, op2]) => {
                let register = (op0 - 2) << 19 | op1 << 16 | n << 12 | m << 8 | op2 << 5;
                code.push(0xd530_0000 | register); // mrs x0
            }
            // movz w1; movk w1, lsl #16; ldr w0, [x1]
            Found::Word(address) => code.extend([
                0x5280_0001 | (address & 0xffff) << 5,
                0x72a0_0001 | (address >> 16) << 5,
                0xb940_0020,
            ]),
        }
        call(&mut code);
    }
    // SYSTEM_OFF by smc or hvc
    code.extend([0x5280_0100, 0x72b0_8000]);
    code.push(if el2 { 0xd400_0003 } else { 0xd400_0002 });
    code.push(0x1400_0000);

    // The header (booting.rst). Its first instruction branches over it.
    let mut image = vec![0; 64];
    image[..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes());
    image[16..24].copy_from_slice(&(size as u64).to_le_bytes());
    image[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend(code.into_iter().flat_map(u32::to_le_bytes));
    image.resize(size, 0);
    image
}

/// Makes a unified kernel image by `objcopy` of systemd's stub and these sections (systemd-stub(7)).
pub(crate) fn uki_of(arch: Arch, sections: &[(&str, &Path)], out: &Path) {
    let guest = target().join("guest");
    let stub = Packages {
        arch,
        what: "EFI stub",
        choose: |_| Ok(vec!["systemd-boot-efi".to_owned()]),
    };
    let root = guest.join(format!("stub-{}", arch.debian()));
    stub.fetch(&root)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let name = match arch {
        Arch::X86_64 => "linuxx64.efi.stub",
        Arch::Aarch64 => "linuxaa64.efi.stub",
    };
    let mut command = objcopy(arch, &guest);
    for (index, (name, path)) in sections.iter().enumerate() {
        let address = (index + 1) << 28;
        command.arg(format!("--add-section={name}={}", path.display()));
        command.arg(format!("--change-section-vma={name}={address:#x}"));
    }
    let output = command
        .arg(root.join("usr/lib/systemd/boot/efi").join(name))
        .arg(out)
        .output()
        .unwrap_or_else(|error| panic!("objcopy: {error}: install binutils"));
    assert!(output.status.success(), "objcopy: {output:?}");
}

/// The command `objcopy` for files of `arch`.
fn objcopy(arch: Arch, guest: &Path) -> Command {
    if arch.name() == std::env::consts::ARCH {
        return Command::new("objcopy");
    }
    let (host, choose): (_, fn(&Apt<'_>) -> _) = match arch {
        Arch::X86_64 => (Arch::Aarch64, |_| {
            Ok(vec!["binutils-x86-64-linux-gnu".to_owned()])
        }),
        Arch::Aarch64 => (Arch::X86_64, |_| {
            Ok(vec!["binutils-aarch64-linux-gnu".to_owned()])
        }),
    };
    let packages = Packages {
        arch: host,
        what: "binutils for the other architecture",
        choose,
    };
    let root = guest.join(format!("binutils-{}", arch.debian()));
    packages
        .fetch(&root)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let libraries = format!("usr/lib/{}-linux-gnu", host.name());
    let program = format!("usr/bin/{}-linux-gnu-objcopy", arch.name());
    let mut command = Command::new(root.join(program));
    command.env("LD_LIBRARY_PATH", root.join(libraries));
    command
}

/// A copy of `bytes` with `with` at offset `at`.
pub(crate) fn changed(bytes: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// Adds an entry to the memory reservation block, which precedes the other blocks of `tree`.
pub(crate) fn reserve(tree: &[u8], start: u64, size: u64) -> Vec<u8> {
    let field = |index: usize| {
        let bytes = tree[4 * index..][..4].try_into().unwrap();
        u32::from_be_bytes(bytes)
    };
    let block = field(4) as usize;
    let mut out = tree.to_vec();
    out.splice(block..block, [start, size].map(u64::to_be_bytes).concat());
    // totalsize, off_dt_struct and off_dt_strings.
    for index in [1, 2, 3] {
        assert!(field(index) as usize > block);
        out[4 * index..][..4].copy_from_slice(&(field(index) + 16).to_be_bytes());
    }
    out
}
