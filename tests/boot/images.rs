//! Kernel images of each kind, and what is wrong with others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bootshare_host::debian::{Apt, Packages};
use bootshare_host::{Arch, Board, Machine, Outcome};

use crate::entries::{expect_boot, gzip, share, words, write};
use crate::lab::{Run, Server, demo_share, machine, run, sha256, target};

/// Has the demo's init print the digest of the command line that it sees: the share is mounted one
/// level below the root.
const CMDLINE: &str = "demo.sha256=/../proc/cmdline";

/// The machine boots `kernel` with exactly this command line.
fn expect_boot_with(machine: &Machine, kernel: &str, line: &str) -> Run {
    let run = expect_boot(machine, kernel);
    let digest = sha256(format!("{line}\n").as_bytes());
    run.line(&[&format!("SHA256 {digest} /../proc/cmdline")]);
    run
}

fn entry(share: &Path, name: &str, text: &str) {
    write(share, &format!("loader/entries/{name}.conf"), text);
}

fn image(board: Board) -> Vec<u8> {
    fs::read(demo_share(board.arch()).join(board.arch().kernel_name())).unwrap()
}

/// The packed kernel's bytes in memory are those of the raw one.
fn boots_packed(board: Board, name: &str, packed: &[u8], raw: &[u8], member: &[u8]) {
    let share = share(name, board, "boot");
    fs::write(share.join("boot/linux"), packed).unwrap();
    let line = format!("{} {CMDLINE}", words(board, name));
    let text = format!("linux /boot/linux\ninitrd /boot/initrd\noptions {line}\n");
    entry(&share, name, &text);
    let machine = machine(board, Server::Rust, &share, "bootshare.log=trace");
    let run = expect_boot_with(&machine, "/boot/linux", &line);
    run.line(&[
        &format!("bootshare: loaded /boot/linux, {} bytes in ", raw.len()),
        &format!("unpacked from {} bytes", member.len()),
    ]);
    let digest = sha256(raw);
    run.line(&[&format!("trace: sha256 {digest} /boot/linux from 0")]);
}

pub(crate) fn gzipped(board: Board) {
    let raw = image(board);
    let packed = gzip(&["-c"], &raw);
    boots_packed(board, "gzipped", &packed, &raw, &packed);
}

pub(crate) fn zboot(board: Board) {
    let raw = padded(image(board));
    let member = gzip(&["-9nc"], &raw);
    boots_packed(board, "zboot", &zboot_of(&member, "gzip"), &raw, &member);
}

/// As `Makefile.zboot` of the kernel packs it: with as much as it takes in memory.
fn padded(mut image: Vec<u8>) -> Vec<u8> {
    let size = u64::from_le_bytes(image[16..24].try_into().unwrap());
    image.resize(size.try_into().unwrap(), 0);
    image
}

/// The header of `zboot-header.S`, with the payload in a section.
fn zboot_of(payload: &[u8], compression: &str) -> Vec<u8> {
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
    // The COFF header: machine, one section, 160 bytes of optional header.
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
fn vmlinux_of(bzimage: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let bytes = bzimage[at..at + 4].try_into().unwrap();
        usize::try_from(u32::from_le_bytes(bytes)).unwrap()
    };
    let setup = (usize::from(bzimage[0x1f1]) + 1) * 512;
    let payload = &bzimage[setup + number(0x248)..][..number(0x24c)];
    // All but gzip are followed by the size of what is packed.
    let (program, end) = match payload {
        [0x1f, 0x8b, ..] => ("gzip", 0),
        [0x02, 0x21, ..] => ("lz4", 4),
        [0x28, 0xb5, ..] => ("zstd", 4),
        [0xfd, b'7', ..] => ("xz", 4),
        _ => panic!("the kernel is packed in an unknown way"),
    };
    let path = target().join("tmp/vmlinux.packed");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &payload[..payload.len() - end]).unwrap();
    let output = Command::new(program)
        .arg("-dc")
        .stdin(fs::File::open(&path).unwrap())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: install it"));
    assert!(output.status.success(), "{program}: {:?}", output.status);
    assert!(output.stdout.starts_with(b"\x7fELF"));
    output.stdout
}

pub(crate) fn vmlinux(board: Board) {
    let share = share("vmlinux", board, "boot");
    fs::write(share.join("boot/linux"), vmlinux_of(&image(board))).unwrap();
    // The firmware adds a word for the clock unless there is one.
    let line = format!("tsc_early_khz=2000000 {} {CMDLINE}", words(board, "pvh"));
    let text = format!("linux /boot/linux\ninitrd /boot/initrd\noptions {line}\n");
    entry(&share, "pvh", &text);
    let run = expect_boot_with(
        &machine(board, Server::Rust, &share, "-- loglevel=7"),
        "/boot/linux",
        &format!("{line} loglevel=7"),
    );
    run.line(&["Booting paravirtualized kernel"]);
    run.line(&["Linux version"]);
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

/// The note with PVH's entry.
fn pvh_note(entry: u32) -> Vec<u8> {
    let mut note: Vec<u8> = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;

/// Entered by PVH at 1 MiB, with one text at 0x180000 and another at 0x2fff00. It prints them only
/// if the start info is there, and CR0 and CR4 are as PVH wants them.
#[rustfmt::skip]
const X86_CODE: [u8; 73] = [
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

/// The firmware is at 1 MiB as well: what is for there is moved there at the very end.
pub(crate) fn program_at_1_mib(board: Board) {
    const BASE: usize = 0x10_0000;
    let mut content = vec![0x90; 0x20_0000];
    for (at, bytes) in [
        (BASE, &X86_CODE[..]),
        (0x18_0000, b"program: moved\r\n\0"),
        (0x2f_ff00, b"program: in place\r\n\0"),
    ] {
        content[at - BASE..][..bytes.len()].copy_from_slice(bytes);
    }
    let program = Program {
        machine: EM_X86_64,
        kind: 2,
        address: BASE as u64,
        virtual_address: BASE as u64,
        content: &content,
        memory: 0,
        notes: &pvh_note(BASE as u32),
    };
    let share = share("at-1-mib", board, "boot");
    fs::write(share.join("boot/linux"), program.build()).unwrap();
    entry(&share, "program", "linux /boot/linux\n");
    let run = run(&machine(board, Server::Rust, &share, ""));
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    run.line(&["bootshare: starting /boot/linux"]);
    run.line(&["program: moved"]);
    run.line(&["program: in place"]);
}

/// Prints the text behind it if x0 is the address of a device tree, and powers the machine off.
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

fn arm64_elf(kind: u16, address: u64) -> Vec<u8> {
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

pub(crate) fn arm64_program(board: Board) {
    let share = share("program", board, "boot");
    fs::write(share.join("boot/linux"), arm64_elf(2, 0x4800_0000)).unwrap();
    entry(&share, "program", "linux /boot/linux\n");
    let run = run(&machine(board, Server::Rust, &share, ""));
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["program: there is a device tree"]);
}

/// What `objcopy` makes of systemd's stub and these sections, as systemd-stub(7) shows it.
fn uki_of(arch: Arch, sections: &[(&str, &Path)], out: &Path) {
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

/// binutils for files of that architecture.
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

/// An image as an entry of its own, and one that an entry of type 1 names and adds words to.
pub(crate) fn unified(board: Board) {
    let share = share("unified", board, "boot");
    let write = |name: &str, text: &[u8]| {
        let path = share.join("boot").join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let inner = format!("tsc_early_khz=2000000 {} {CMDLINE}", words(board, "uki"));
    let release = b"PRETTY_NAME=\"Demo 1\"\nID=demo\nVERSION_ID=1\n";
    let sections = [
        (".osrel", write("osrel", release)),
        (".cmdline", write("cmdline", inner.as_bytes())),
        (".linux", share.join("boot/linux")),
        (".initrd", share.join("boot/initrd")),
    ];
    let sections = sections.each_ref().map(|(name, path)| (*name, &**path));
    let images = share.join("EFI/Linux");
    fs::create_dir_all(&images).unwrap();
    uki_of(board.arch(), &sections, &images.join("demo-1+3.efi"));
    fs::remove_dir_all(share.join("boot")).unwrap();
    entry(
        &share,
        "named",
        "title Named\nuki /EFI/Linux/demo-1+3.efi\noptions demo.more=1\n",
    );

    let list = run(&machine(
        board,
        Server::Rust,
        &share,
        "bootshare.cmd=entries",
    ));
    assert_eq!(
        list.output(),
        [
            "* demo-1: Demo 1 (/EFI/Linux/demo-1+3.efi)",
            "  named: Named (/EFI/Linux/demo-1+3.efi)",
        ]
    );
    let kernel = "/EFI/Linux/demo-1+3.efi";
    let first = machine(board, Server::Rust, &share, "-- demo.last=1");
    expect_boot_with(&first, kernel, &format!("{inner} demo.last=1"));
    let named = "bootshare.entry=named -- demo.last=1";
    let named = machine(board, Server::C, &share, named);
    let line = format!("{inner} demo.more=1 demo.last=1");
    expect_boot_with(&named, kernel, &line);
}

/// A kernel with something wrong, and parts of the line that names it.
struct Wrong {
    name: &'static str,
    kernel: Vec<u8>,
    /// More lines of its entry.
    more: String,
    parts: &'static [&'static str],
}

fn wrong(name: &'static str, kernel: Vec<u8>, parts: &'static [&'static str]) -> Wrong {
    Wrong {
        name,
        kernel,
        more: String::new(),
        parts,
    }
}

/// Each of the wrong ones gives one line, in their order, then the good one boots.
fn expect_lines(name: &str, board: Board, all: &[Wrong]) {
    let share = share(name, board, "boot");
    for (index, wrong) in all.iter().enumerate() {
        fs::write(share.join("boot").join(wrong.name), &wrong.kernel).unwrap();
        let text = format!(
            "sort-key a{index:02}\nlinux /boot/{}\ninitrd /boot/initrd\n{}\n",
            wrong.name, wrong.more
        );
        entry(&share, wrong.name, &text);
    }
    let text = format!(
        "sort-key z\nlinux /boot/linux\ninitrd /boot/initrd\noptions {}\n",
        words(board, "good")
    );
    entry(&share, "good", &text);
    let run = expect_boot(&machine(board, Server::Rust, &share, ""), "/boot/linux");
    let errors: Vec<_> = run
        .lines
        .iter()
        .filter(|line| line.starts_with("bootshare: error: "))
        .collect();
    for (wrong, line) in all.iter().zip(&errors) {
        let start = format!("bootshare: error: /loader/entries/{}.conf: ", wrong.name);
        assert!(line.starts_with(&start), "{line} is not of {}", wrong.name);
        for part in wrong.parts {
            assert!(line.contains(part), "{line} has no {part}");
        }
    }
    assert_eq!(errors.len(), all.len(), "{errors:#?}");
}

fn changed(bytes: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// A program that PVH could enter, but for where it belongs.
fn x86_elf(address: u64, memory: u64) -> Vec<u8> {
    let program = Program {
        machine: EM_X86_64,
        kind: 2,
        address,
        virtual_address: address,
        content: &X86_CODE,
        memory,
        notes: &pvh_note(address as u32),
    };
    program.build()
}

pub(crate) fn wrong_on_x86_64(board: Board) {
    let kernel = image(board);
    let vmlinux = vmlinux_of(&kernel);
    let unified = |name: &str, length: Option<usize>| {
        let path = target().join("tmp").join(name);
        let demo = demo_share(board.arch());
        let linux = demo.join(board.arch().kernel_name());
        let text = demo.join("cmdline");
        let section = if length.is_some() { ".linux" } else { ".more" };
        uki_of(
            board.arch(),
            &[(section, &linux), (".cmdline", &text)],
            &path,
        );
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(length.unwrap_or(bytes.len()));
        bytes
    };
    let mut long = wrong("long", kernel.clone(), &["the kernel takes 2047 at most"]);
    long.more = format!("options {}", "x".repeat(3000));
    let mut long_pvh = wrong("long-pvh", vmlinux.clone(), &["2047 at most"]);
    long_pvh.more = long.more.clone();
    let all = [
        wrong(
            "cut-off",
            kernel[..1 << 20].to_vec(),
            &["it is cut off: 1048576 of at least "],
        ),
        // xloadflags: no 64-bit entry. The 32-bit fields stay as they are.
        wrong(
            "32-bit",
            changed(&kernel, 0x236, &[0, 0]),
            &["no 64-bit entry", "x86-64"],
        ),
        wrong(
            "old",
            changed(&kernel, 0x206, &[4, 2]),
            &["boot protocol 2.04"],
        ),
        long,
        wrong(
            "arm64",
            image(Board::Aarch64Virt),
            &["it is an arm64 kernel", "x86-64"],
        ),
        wrong(
            "gzipped",
            gzip(&["-c"], &kernel),
            &["compressed with gzip", "gunzip"],
        ),
        wrong(
            "zstd",
            b"\x28\xb5\x2f\xfd and more".to_vec(),
            &["zstd", "unzstd"],
        ),
        wrong("text", b"#!/bin/sh\n".to_vec(), &["no kind of kernel"]),
        wrong(
            "vmlinux-cut-off",
            vmlinux[..1 << 20].to_vec(),
            &["it is cut off"],
        ),
        long_pvh,
        wrong(
            "no-pvh",
            changed(&x86_elf(1 << 28, 0), 0x1000 + 73 + 8, &[17]),
            &["PVH entry"],
        ),
        wrong(
            "no-ram",
            x86_elf(3 << 30, 0),
            &["0xc0000000", "not in usable memory"],
        ),
        wrong(
            "too-large",
            x86_elf(1 << 28, 1 << 30),
            &["not in usable memory", "more memory"],
        ),
        wrong(
            "no-page",
            x86_elf(0x10_0000, 1 << 30),
            &["not in usable memory"],
        ),
        wrong(
            "pie",
            changed(&x86_elf(1 << 28, 0), 16, &[3]),
            &["position-independent"],
        ),
        wrong(
            "uki-cut-off",
            unified("uki-cut-off", Some(1 << 20)),
            &["it is cut off"],
        ),
        wrong(
            "no-uki",
            unified("no-uki", None),
            &["an EFI program without a kernel"],
        ),
    ];
    expect_lines("wrong", board, &all);
}

pub(crate) fn wrong_on_arm64(board: Board) {
    let raw = image(board);
    let packed = gzip(&["-c"], &raw);
    let end = packed.len();
    let member = gzip(&["-c"], &padded(raw.clone()));
    let zboot = |compression| zboot_of(&member, compression);
    let damaged = changed(&packed, end / 2, &[0xff; 64]);
    let mut long = wrong("long", raw.clone(), &["the kernel takes 2047 at most"]);
    long.more = format!("options {}", "x".repeat(3000));
    let mut tree = wrong(
        "tree",
        raw.clone(),
        &["/loader/entries/tree.conf: it is not a device tree blob"],
    );
    tree.more = "devicetree /loader/entries/tree.conf".to_owned();
    let all = [
        wrong(
            "cut-off",
            raw[..1 << 20].to_vec(),
            &["it is cut off: 1048576 of at least "],
        ),
        wrong("no-size", changed(&raw, 16, &[0; 8]), &["image_size is 0"]),
        long,
        tree,
        wrong(
            "x86-64",
            image(Board::X86_64Pc),
            &["it is an x86-64 kernel", "arm64"],
        ),
        wrong(
            "checksum",
            changed(&packed, end - 8, &[1, 2, 3, 4]),
            &["CRC-32", "in place of 04030201"],
        ),
        wrong(
            "size",
            changed(&packed, end - 4, &[1, 0, 0, 0]),
            &["in place of 1;"],
        ),
        wrong(
            "gzip-cut-off",
            packed[..end / 2].to_vec(),
            &["its gzip data ends after "],
        ),
        wrong("gzip-damaged", damaged, &["; copy it again"]),
        wrong(
            "no-image",
            gzip(&["-c"], b"#!/bin/sh\n"),
            &["what it packs is no kind of kernel"],
        ),
        wrong(
            "zboot-zstd",
            zboot("zstd22"),
            &["zboot kernel compressed with zstd", "gzip"],
        ),
        wrong(
            "zboot-other",
            zboot("brotli"),
            &["compressed with an unknown method"],
        ),
        wrong(
            "zboot-cut-off",
            zboot("gzip")[..1 << 20].to_vec(),
            &["it is cut off"],
        ),
        wrong("pie", arm64_elf(3, 0x4800_0000), &["position-independent"]),
        wrong(
            "firmware",
            arm64_elf(2, 0x4020_0000),
            &["overlaps the firmware, which has 0x40200000.."],
        ),
        wrong(
            "platform",
            arm64_elf(2, 0x4000_0000),
            &["overlaps the firmware, which has 0x40000000.."],
        ),
        wrong(
            "no-ram",
            arm64_elf(2, 1 << 40),
            &["not in usable memory from 0x10000000000 on"],
        ),
    ];
    expect_lines("wrong", board, &all);
}

/// A tree that was dumped on a machine with less memory, with a reservation where the kernel would
/// go, and without seeds.
pub(crate) fn tree_from_elsewhere(board: Board) {
    let share = share("elsewhere", board, "boot");
    let tree: PathBuf = share.join("boot/machine.dtb");
    let mut machine = machine(
        board,
        Server::Rust,
        &share,
        "bootshare.log=debug -- loglevel=7",
    );
    let option = format!("dumpdtb={},dtb-randomness=off", tree.display());
    machine.qemu_args = vec!["-machine".into(), option.into()];
    machine.memory_mib = 256;
    run(&machine);
    machine.qemu_args.clear();
    machine.memory_mib = 512;
    fs::write(
        &tree,
        reserve(&fs::read(&tree).unwrap(), 0x4040_0000, 0x400_0000),
    )
    .unwrap();
    let text = format!(
        "linux /boot/linux\ninitrd /boot/initrd\ndevicetree /boot/machine.dtb\noptions {}\n",
        words(board, "elsewhere")
    );
    entry(&share, "elsewhere", &text);
    let run = expect_boot(&machine, "/boot/linux");
    run.line(&["bootshare: debug: /boot/linux: kernel at 0x44400000.."]);
    run.line(&["KASLR enabled"]);
    let memory = run.line(&["Memory: ", "K available"]);
    assert!(memory.contains("/524288K available"), "{memory}");
}

/// Adds an entry to the reservation block, which is before the others.
fn reserve(tree: &[u8], start: u64, size: u64) -> Vec<u8> {
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
