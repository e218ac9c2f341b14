//! Boots Debian's kernel from the share to user space.

use std::fs;
use std::path::Path;

use bootshare_host::board::Transport;
use bootshare_host::debian::Release;
use bootshare_host::demo::{self, Archive};
use bootshare_host::{Board, Machine, Outcome};

use crate::lab::{
    Run, Server, demo_share, demo_share_of, empty_dir, machine, random, run, sha256, sha256_of,
};

/// At log level trace the firmware prints the digests of what it loaded. The demo's init then prints the
/// digest of a file that Linux reads from the same device.
pub(crate) const OPTIONS: &str = "bootshare.log=trace -- demo.sha256=/random.bin";

/// A machine with the kernel of one Debian release in its share, on the QEMU of another.
pub(crate) fn boots_on(board: Board, server: Server, qemu: &Path, linux: Release) -> Run {
    let share = demo_share_of(board.arch(), Some(linux));
    let mut machine = machine(board, server, share, OPTIONS);
    machine.qemu = Some(qemu.to_owned());
    expect_boot(&machine, share)
}

/// One cell of the matrix: the firmware, Linux and the host read the same bytes.
pub(crate) fn boots(board: Board, server: Server) {
    let share = demo_share(board.arch());
    let random = sha256_of(&share.join("random.bin"));

    let command = "bootshare.cmd=\"sha256 /random.bin\"";
    let firmware = run(&machine(board, server, share, command));
    assert_eq!(firmware.outcome, Outcome::FirmwareExit(0));
    assert_eq!(firmware.output(), [format!("{random}  /random.bin")]);

    expect_boot(&machine(board, server, share, OPTIONS), share);
}

pub(crate) fn boots_from_el2(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::Rust, share, OPTIONS);
    machine.el2 = true;
    // Only a kernel that is entered at EL2 prints this. `loglevel` overrides the demo's own.
    machine.append.push_str(" loglevel=7");
    let run = expect_boot(&machine, share);
    run.line(&["CPU: All CPU(s) started at EL2"]);
}

/// The ROM image is also an arm64 Image, which QEMU's `-kernel` takes.
pub(crate) fn boots_from_raw_image(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::Rust, share, OPTIONS);
    machine.firmware.set_extension("bin");
    expect_boot(&machine, share);
}

/// Memory on both sides of 4 GiB, two processors, and a server that answers out of order.
pub(crate) fn boots_with_6_gib(board: Board, server: Server) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, server, share, OPTIONS);
    machine.append.push_str(" loglevel=7");
    machine.memory_mib = 6 << 10;
    machine.smp = 2;
    machine.thread_pool_size = Some(4);
    let run = expect_boot(&machine, share);
    run.line(&["smp: Brought up 1 node, 2 CPUs"]);
    // `Memory: 6082388K/6290932K available`: the second number is the memory that the firmware reported.
    let memory = run.line(&["Memory: ", "K available"]);
    let total = memory.split('/').nth(1).unwrap().split('K').next().unwrap();
    let total: u32 = total.parse().unwrap();
    assert!(
        total > (6 << 20) - (2 << 10),
        "Linux was told of {total} KiB"
    );
}

/// Without ACPI, microvm's devices are named on the kernel's command line. Debian's kernel does not
/// support that, so it reaches user space but finds no share.
pub(crate) fn boots_without_acpi(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::C, share, OPTIONS);
    machine.qemu_args = vec!["-machine".into(), "acpi=off".into()];
    let run = run(&machine);
    expect_loads(&run, &machine, share);
    run.line(&["bootshare: ", "virtio_mmio.device=512@0xfeb00e00:12"]);
    run.line(&["demo: error: cannot mount the share"]);
}

/// Runs a machine that boots the demo in `share`, and checks its messages from the start to user space.
pub(crate) fn expect_boot(machine: &Machine, share: &Path) -> Run {
    let run = run(machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    expect_loads(&run, machine, share);

    run.line(&["demo: Linux ", &format!("mounted the share {}", demo::TAG)]);
    run.line(&[demo::GREETING.trim()]);
    let random = sha256_of(&share.join("random.bin"));
    run.line(&[&format!("SHA256 {random} /random.bin")]);
    run
}

/// Checks the firmware's messages up to the hand-off, and the digests of the loaded files.
fn expect_loads(run: &Run, machine: &Machine, share: &Path) {
    let board = machine.board;
    let transport = match board.transport() {
        Transport::Mmio if machine.devices.is_empty() => "mmio",
        // A test may have chosen PCI devices on any board.
        _ => "pci",
    };
    let mounted = format!(
        "bootshare: mounted {} (virtio-{transport}, FUSE 7.",
        demo::TAG
    );
    run.line(&[&mounted]);
    let kernel = format!("/{}", board.arch().kernel_name());
    for path in [kernel.as_str(), "/initrd.img"] {
        expect_loaded(run, share, path);
    }
    run.line(&[&format!("bootshare: starting {kernel}")]);
    expect_time_line(run);
}

/// Checks that the time line has all stages of the boot in order.
fn expect_time_line(run: &Run) {
    let prefix = "bootshare: debug: time line in us: ";
    let line = run.line(&[prefix]);
    let (stages, clock) = line[prefix.len()..].split_once("; ").unwrap();
    let stages = stages.split(", ").map(|stage| {
        let (name, micros) = stage.split_once(' ').unwrap();
        (name, micros.parse::<u64>().unwrap())
    });
    let (names, micros): (Vec<_>, Vec<_>) = stages.unzip();
    let all = [
        "entry", "devices", "mounted", "chosen", "loaded", "hand-off",
    ];
    assert_eq!(names, all);
    assert_eq!(micros[0], 0);
    // The server is another process, so a reply takes a measurable time.
    assert!(micros.is_sorted() && micros[1] < micros[5], "{line}");
    let before = clock.strip_prefix("the machine's clock was at ");
    let before = before.and_then(|rest| rest.strip_suffix(" on entry"));
    let _micros: u64 = before.unwrap().parse().unwrap();
}

/// Checks the line with the size and speed of `path`, and the digest of its bytes in memory.
fn expect_loaded(run: &Run, share: &Path, path: &str) {
    let prefix = format!("bootshare: loaded {path}, ");
    let words: Vec<_> = run.line(&[&prefix])[prefix.len()..].split(' ').collect();
    let [bytes, "bytes", "in", millis, "ms", rate, "MiB/s)"] = words[..] else {
        panic!("not `N bytes in M ms (R MiB/s)`: {words:?}");
    };
    let bytes: usize = bytes.parse().unwrap();
    let _millis: u64 = millis.parse().unwrap();
    let _rate: f64 = rate.trim_start_matches('(').parse().unwrap();

    let file = fs::read(share.join(path.trim_start_matches('/'))).unwrap();
    let traced = run.line(&["bootshare: trace: sha256 ", &format!(" {path} from ")]);
    let offset: usize = traced.rsplit(' ').next().unwrap().parse().unwrap();
    // The real-mode part of a bzImage, less than 64 sectors, is not loaded.
    assert!(offset <= 64 * 512, "{path} was loaded from {offset}");
    assert_eq!(bytes, file.len() - offset, "{path}");
    let digest = sha256(&file[offset..]);
    assert!(traced.contains(&digest), "{path}: expected {digest}");
}

/// An initrd of 300 MiB is loaded and unpacked on a machine of 1 GiB, and refused on one of 256 MiB.
pub(crate) fn loads_300_mib(board: Board) {
    let share = empty_dir(&format!("large-{}", board.arch().name()));
    let demo = demo_share(board.arch());
    for name in [board.arch().kernel_name(), "cmdline", "greeting.txt"] {
        fs::copy(demo.join(name), share.join(name)).unwrap();
    }
    let padding = random(300 << 20);
    // The guest hashes one MiB of each ten: all of them would take it as long as the rest of the test.
    let samples: Vec<_> = padding
        .chunks(10 << 20)
        .map(|part| &part[..1 << 20])
        .collect();
    let digest = sha256(&samples.concat());
    let script = "for at in $(seq 0 10 299); do dd if=/padding bs=1M skip=$at count=1 2>/dev/null; done | sha256sum\n";
    fs::write(share.join("script"), script).unwrap();
    let mut archive = Archive::default();
    archive.file("padding", 0o644, &padding).unwrap();
    drop(padding);
    // Linux unpacks any number of concatenated archives, compressed or not.
    let mut initrd = archive.finish().unwrap();
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(fs::read(demo.join("initrd.img")).unwrap());
    fs::write(share.join("initrd.img"), initrd).unwrap();

    let mut machine = machine(board, Server::Rust, &share, "-- demo.run=/script");
    machine.memory_mib = 1024;
    let large = run(&machine);
    assert_eq!(large.outcome, Outcome::PowerOff);
    large.line(&["bootshare: loaded /initrd.img, "]);
    large.line(&[&format!("{digest}  -")]);

    machine.memory_mib = 256;
    let small = run(&machine);
    fs::remove_dir_all(&share).unwrap();
    assert!(matches!(small.outcome, Outcome::FirmwareExit(1)));
    small.line(&["bootshare: error: ", "/initrd.img", "memory"]);
}
