//! Kernel images of each kind, and faulty ones.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use bootshare_host::demo::Archive;
use bootshare_host::{Board, Machine, Outcome};

use crate::entries::{expect_boot, gzip, other_model, share, words, write};
use crate::kernels::{
    X86_CODE, arm64_elf, changed, padded, reserve, uki_of, vmlinux_of, x86_elf, zboot_of,
};
use crate::lab::{Run, Server, demo_share, empty_dir, machine, run, sha256};

/// The words that the x86-64 boards add to a command line without them.
const TIMING: &str = "tsc_early_khz=2000000 no_timer_check";
/// Makes the demo's init print the digest of its command line. The path is relative because the share is
/// mounted one level below the root.
const CMDLINE: &str = "demo.sha256=/../proc/cmdline";

/// Runs the machine and checks that it boots `kernel` with exactly this command line.
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

/// The bytes in memory of a compressed kernel equal those of the uncompressed file.
fn boots_packed(board: Board, name: &str, packed: &[u8], raw: &[u8], member: &[u8]) -> Run {
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
    run
}

/// The header is that of an old kernel without a page size, which needs its device tree nearby.
pub(crate) fn gzipped(board: Board) {
    let raw = changed(&image(board), 24, &[0b1000]);
    let packed = gzip(&["-c"], &raw);
    let run = boots_packed(board, "gzipped", &packed, &raw, &packed);
    let [start, _] = placed(&run, "/boot/linux: kernel at ");
    let [tree, end] = placed(&run, "device tree: device tree for Linux before 4.4 at ");
    assert!(tree > start && end <= start + (512 << 20), "{tree:#x}");
    assert_eq!(tree >> 21, (end - 1) >> 21, "{tree:#x} to {end:#x}");
}

/// The start and the end of the place that the firmware chose for something.
fn placed(run: &Run, what: &str) -> [u64; 2] {
    let line = run.line(&["bootshare: debug: ", what]);
    let (_, range) = line.split_once(what).unwrap();
    let (start, end) = range.split_once("..").unwrap();
    [start, end].map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap())
}

pub(crate) fn zboot(board: Board) {
    let raw = padded(image(board));
    let member = gzip(&["-6nc"], &raw);
    let packed = zboot_of(&member, "gzip");
    boots_packed(board, "zboot", &packed, &raw, &member);
}

/// Compresses bytes by the program `zstd` with these options.
fn zstd(level: i32, window_log: u32, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.window_log(window_log).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Compressed as the kernel's build does it: a window of 128 MiB, and the size after the data. Here that
/// size is 2 GiB, four times the machine's memory.
pub(crate) fn zstd_zboot(board: Board) {
    let raw = padded(image(board));
    let mut packed = zstd(3, 27, &raw);
    assert_eq!(packed[4..6], [4, 17 << 3], "it has another window");
    packed[5] = 21 << 3;
    let mut zboot = zboot_of(&packed, "zstd22");
    zboot.extend(u32::try_from(raw.len()).unwrap().to_le_bytes());
    boots_packed(board, "zstd-zboot", &zboot, &raw, &packed);
}

/// Frames of different levels, skippable frames, and padding.
pub(crate) fn zstd_frames(board: Board) {
    let raw = image(board);
    let (start, rest) = raw.split_at(1 << 20);
    let skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip";
    let (start, rest) = (zstd(22, 27, start), zstd(1, 17, rest));
    let packed = [skippable, &start[..], skippable, &rest, &[0; 1000]].concat();
    boots_packed(board, "zstd-frames", &packed, &raw, &packed);
}

pub(crate) fn vmlinux(board: Board) {
    let share = share("vmlinux", board, "boot");
    fs::write(share.join("boot/linux"), vmlinux_of(&image(board))).unwrap();
    let line = format!("{TIMING} {} {CMDLINE}", words(board, "pvh"));
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

/// The program's address is the firmware's own, 1 MiB: it is moved there as the last step.
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
    let share = share("at-1-mib", board, "boot");
    let program = x86_elf(BASE as u64, &content, 0);
    fs::write(share.join("boot/linux"), program).unwrap();
    entry(&share, "program", "linux /boot/linux\n");
    let run = run(&machine(board, Server::Rust, &share, ""));
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    run.line(&["bootshare: starting /boot/linux"]);
    run.line(&["program: moved"]);
    run.line(&["program: in place"]);
}

pub(crate) fn arm64_program(board: Board) {
    let share = share("program", board, "boot");
    fs::write(share.join("boot/linux"), arm64_elf(2, 0x4800_0000)).unwrap();
    entry(&share, "program", "linux /boot/linux\n");
    let run = run(&machine(board, Server::Rust, &share, ""));
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["program: there is a device tree"]);
}

/// A unified kernel image as a type 2 entry, and one that a type 1 entry names with other options. An
/// addon adds options and an initrd to both.
pub(crate) fn unified(board: Board) {
    let share = share("unified", board, "boot");
    let write = |name: &str, text: &[u8]| {
        let path = share.join("boot").join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let inner = format!("{TIMING} {} {CMDLINE}", words(board, "uki"));
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
    let added = "demo.addon=1 demo.sha256=/../added";
    let mut archive = Archive::default();
    archive.file("added", 0o644, b"by an addon").unwrap();
    let sections = [
        (".cmdline", write("cmdline", added.as_bytes())),
        (".initrd", write("added", &archive.finish().unwrap())),
    ];
    let sections = sections.each_ref().map(|(name, path)| (*name, &**path));
    let extra = images.join("demo-1.efi.extra.d");
    fs::create_dir(&extra).unwrap();
    uki_of(board.arch(), &sections, &extra.join("added.addon.efi"));
    fs::remove_dir_all(share.join("boot")).unwrap();
    let named = format!("{inner} demo.more=1");
    let text = format!("title Named\nuki /EFI/Linux/demo-1+3.efi\noptions {named}\n");
    entry(&share, "named", &text);

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
            "  named: Named (/EFI/Linux/demo-1+3.efi) from /loader/entries/named.conf",
        ]
    );
    let kernel = "/EFI/Linux/demo-1+3.efi";
    let boots = |server, entry: &str, words: &str| {
        let machine = machine(board, server, &share, &format!("{entry} -- demo.last=1"));
        let run = expect_boot_with(&machine, kernel, &format!("{words} {added} demo.last=1"));
        run.line(&["addon /EFI/Linux/demo-1.efi.extra.d/added.addon.efi"]);
        run.line(&[&format!("SHA256 {} /../added", sha256(b"by an addon"))]);
    };
    boots(Server::Rust, "", &inner);
    boots(Server::C, "bootshare.entry=named", &named);
}

/// An image with two device trees: one of another board, and one for QEMU's `virt`, whose model Linux
/// prints.
pub(crate) fn tree_in_image(board: Board) {
    let share = share("tree-in-image", board, "boot");
    let tree = other_model(board, &share);
    let mut other = fs::read(&tree).unwrap();
    // The `compatible` of its root names another board only.
    let ours = b"linux,dummy-virt\0";
    let at = other.windows(ours.len()).position(|name| name == ours);
    other[at.unwrap()..][..ours.len()].copy_from_slice(b"acme,other-board\0");
    let path = |name: &str, bytes: &[u8]| {
        let path = share.join("boot").join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let line = format!("{} loglevel=7", words(board, "tree-in-image"));
    let sections = [
        (".linux", share.join("boot/linux")),
        (".initrd", share.join("boot/initrd")),
        (".cmdline", path("cmdline", line.as_bytes())),
        // objcopy cannot make two sections of the same name.
        (".dtbaut1", path("other", &other)),
        (".dtbaut2", tree),
    ];
    let sections = sections.each_ref().map(|(name, path)| (*name, &**path));
    let image = share.join("EFI/Linux/demo.efi");
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    uki_of(board.arch(), &sections, &image);
    let mut bytes = fs::read(&image).unwrap();
    for at in 0..4096 {
        if bytes[at..].starts_with(b".dtbaut") {
            bytes[at + 7] = b'o';
        }
    }
    fs::write(&image, bytes).unwrap();
    let machine = machine(board, Server::Rust, &share, "");
    let run = expect_boot(&machine, "/EFI/Linux/demo.efi");
    run.line(&["its 1 device trees for other machines (.dtbauto) are not used"]);
    run.line(&["Machine model: linux,other-virt"]);
}

/// A faulty kernel, and parts of the expected error line.
struct Wrong {
    name: &'static str,
    kernel: Vec<u8>,
    /// Further lines of its entry.
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

/// Each faulty kernel gives one error line, in this order; then the good one boots.
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

/// A command line longer than any kernel accepts.
fn long_line() -> String {
    format!("options {}", "x".repeat(3000))
}

pub(crate) fn wrong_on_x86_64(board: Board) {
    let kernel = image(board);
    let mut all = wrong_bzimages(&kernel);
    all.extend(wrong_programs(&vmlinux_of(&kernel)));
    all.extend(wrong_unified(board));
    expect_lines("wrong-images", board, &all);
}

fn wrong_bzimages(kernel: &[u8]) -> Vec<Wrong> {
    let cut_off = kernel[..1 << 20].to_vec();
    // xloadflags without XLF_KERNEL_64. The fields for a 32-bit entry are unchanged.
    let only_32_bit = changed(kernel, 0x236, &[0, 0]);
    let old = changed(kernel, 0x206, &[4, 2]);
    let mut long = wrong("long", kernel.to_vec(), &["the kernel takes 2047 at most"]);
    long.more = long_line();
    let arm64 = image(Board::Aarch64Virt);
    let gzipped = gzip(&["-c"], kernel);
    let zstd = zstd(1, 17, kernel);
    vec![
        wrong("cut-off", cut_off, &["it is cut off: 1048576 of at least "]),
        wrong("32-bit", only_32_bit, &["no 64-bit entry", "x86-64"]),
        wrong("old", old, &["boot protocol 2.04"]),
        long,
        wrong("arm64", arm64, &["it is an arm64 kernel", "x86-64"]),
        wrong("gzipped", gzipped, &["compressed with gzip", "gunzip"]),
        wrong("zstd", zstd, &["compressed with zstd", "unzstd"]),
        wrong("text", b"#!/bin/sh\n".to_vec(), &["no kind of kernel"]),
    ]
}

fn wrong_programs(vmlinux: &[u8]) -> Vec<Wrong> {
    let cut_off = vmlinux[..1 << 20].to_vec();
    let mut long = wrong("long-pvh", vmlinux.to_vec(), &["2047 at most"]);
    long.more = long_line();
    let good = x86_elf(1 << 28, &X86_CODE, 0);
    // The note's type, which follows its two sizes.
    let no_pvh = changed(&good, 0x1000 + X86_CODE.len() + 8, &[17]);
    let pie = changed(&good, 16, &[3]);
    let at = |address, memory| x86_elf(address, &X86_CODE, memory);
    let too_large = &["not in usable memory", "more memory"];
    vec![
        wrong("vmlinux-cut-off", cut_off, &["it is cut off"]),
        long,
        wrong("no-pvh", no_pvh, &["PVH entry"]),
        wrong(
            "no-ram",
            at(3 << 30, 0),
            &["0xc0000000", "not in usable memory"],
        ),
        wrong("too-large", at(1 << 28, 1 << 30), too_large),
        wrong("no-page", at(0x10_0000, 1 << 30), &["not in usable memory"]),
        wrong("pie", pie, &["position-independent"]),
    ]
}

fn wrong_unified(board: Board) -> Vec<Wrong> {
    let demo = demo_share(board.arch());
    let linux = demo.join(board.arch().kernel_name());
    let text = demo.join("cmdline");
    let with = |section: &str, name: &str| {
        let path = empty_dir(&format!("wrong-unified-{board:?}")).join(name);
        let sections = [(section, &*linux), (".cmdline", &*text)];
        uki_of(board.arch(), &sections, &path);
        fs::read(&path).unwrap()
    };
    let cut_off = with(".linux", "uki-cut-off")[..1 << 20].to_vec();
    let no_uki = with(".more", "no-uki");
    vec![
        wrong("uki-cut-off", cut_off, &["it is cut off"]),
        wrong("no-uki", no_uki, &["an EFI program without a kernel"]),
    ]
}

pub(crate) fn wrong_on_arm64(board: Board) {
    let raw = image(board);
    let mut all = wrong_images(&raw);
    all.extend(wrong_gzip(&gzip(&["-c"], &raw)));
    all.extend(wrong_zstd(&raw));
    all.extend(wrong_zboots(&gzip(&["-c"], &padded(raw))));
    all.extend(wrong_arm64_programs());
    expect_lines("wrong-images", board, &all);
}

fn wrong_images(raw: &[u8]) -> Vec<Wrong> {
    let cut_off = raw[..1 << 20].to_vec();
    let no_size = changed(raw, 16, &[0; 8]);
    let mut long = wrong("long", raw.to_vec(), &["the kernel takes 2047 at most"]);
    long.more = long_line();
    let no_tree = &["/loader/entries/tree.conf: it is not a device tree blob"];
    let mut tree = wrong("tree", raw.to_vec(), no_tree);
    tree.more = "devicetree /loader/entries/tree.conf".to_owned();
    let x86_64 = image(Board::X86_64Pc);
    // The board's Cortex-A72 supports pages of 4 and 64 KiB.
    let pages = changed(raw, 24, &[0b1100]);
    let lacks = &[
        "built for pages of 16 KiB",
        "use a kernel with pages of 4 KiB",
    ];
    vec![
        wrong("pages", pages, lacks),
        wrong("cut-off", cut_off, &["it is cut off: 1048576 of at least "]),
        wrong("no-size", no_size, &["image_size is 0"]),
        long,
        tree,
        wrong("x86-64", x86_64, &["it is an x86-64 kernel", "arm64"]),
    ]
}

fn wrong_gzip(packed: &[u8]) -> Vec<Wrong> {
    let end = packed.len();
    let checksum = changed(packed, end - 8, &[1, 2, 3, 4]);
    let size = changed(packed, end - 4, &[1, 0, 0, 0]);
    let cut_off = packed[..end / 2].to_vec();
    let damaged = changed(packed, end / 2, &[0xff; 64]);
    let script = gzip(&["-c"], b"#!/bin/sh\n");
    vec![
        wrong("checksum", checksum, &["CRC-32", "in place of 04030201"]),
        wrong("size", size, &["in place of 1;"]),
        wrong("gzip-cut-off", cut_off, &["its gzip data ends after "]),
        wrong("gzip-damaged", damaged, &["; copy it again"]),
        wrong(
            "no-image",
            script,
            &["the compressed file contains no kind of kernel"],
        ),
    ]
}

fn wrong_zstd(raw: &[u8]) -> Vec<Wrong> {
    let packed = zstd(1, 17, raw);
    let (middle, end) = (packed.len() / 2, packed.len());
    let flipped = changed(&packed, middle, &[packed[middle] ^ 1]);
    let checksum = changed(&packed, end - 4, &[1, 2, 3, 4]);
    let cut_off = packed[..middle].to_vec();
    let sized = |size: u64| zstd(1, 17, &changed(raw, 16, &size.to_le_bytes()));
    let (too_large, no_room) = (sized(1 << 20), sized(8 << 30));
    let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 1, 0, 7].to_vec();
    vec![
        wrong("zstd-flipped", flipped, &["; copy it again"]),
        wrong(
            "zstd-checksum",
            checksum,
            &["XXH64", "in place of 04030201"],
        ),
        wrong("zstd-cut-off", cut_off, &["its zstd data ends after "]),
        wrong(
            "zstd-large",
            too_large,
            &["unpacks to more than the 1048576"],
        ),
        wrong(
            "zstd-no-room",
            no_room,
            &["kernel of 8", "does not fit", "more memory"],
        ),
        wrong("zstd-dictionary", dictionary, &["the dictionary 7; pack"]),
    ]
}

fn wrong_zboots(member: &[u8]) -> Vec<Wrong> {
    let zstd = zboot_of(member, "zstd22");
    let other = zboot_of(member, "brotli");
    let cut_off = zboot_of(member, "gzip")[..1 << 20].to_vec();
    let xz = zboot_of(member, "xzkern");
    vec![
        wrong("zboot-zstd", zstd, &["it is not zstd"]),
        wrong("zboot-xz", xz, &["compressed with xz", "| unxz"]),
        wrong("zboot-other", other, &["compressed with an unknown method"]),
        wrong("zboot-cut-off", cut_off, &["it is cut off"]),
    ]
}

fn wrong_arm64_programs() -> Vec<Wrong> {
    let firmware = &["overlaps the firmware, which has 0x40200000.."];
    let platform = &["overlaps the firmware, which has 0x40000000.."];
    let no_ram = &["not in usable memory from 0x10000000000 on"];
    vec![
        wrong("pie", arm64_elf(3, 0x4800_0000), &["position-independent"]),
        wrong("firmware", arm64_elf(2, 0x4020_0000), firmware),
        wrong("platform", arm64_elf(2, 0x4000_0000), platform),
        wrong("no-ram", arm64_elf(2, 1 << 40), no_ram),
    ]
}

/// A device tree that was dumped on a machine with less memory. It reserves the kernel's preferred address
/// and has no seeds.
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
