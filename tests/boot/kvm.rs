//! Tests of KVM that need no KVM of the host. QEMU emulates (TCG) a processor with virtualization
//! extensions; this outer machine boots a tree of Debian packages, and QEMU in it runs the firmware by KVM.
//!
//! Only the processor is emulated. Effects of a real processor, such as caches that are not coherent,
//! cannot show.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bootshare_host::debian::{Packages, Release};
use bootshare_host::modules::Modules;
use bootshare_host::{Accel, Arch, Board, Machine, Outcome, Share, demo};

use crate::lab::{Server, empty_dir, machine, run};
use crate::qemus::qemu;
use crate::shared::{make_demo, parts, target};

/// The time limit of all boots in one outer machine, on a busy host.
const LIMIT: Duration = Duration::from_secs(1200);

/// The script that the demo's init runs. The tree of Debian packages has no shell, so busybox is used.
const SCRIPT: &str = r#"
for module in /share/modules/*.ko; do
    [ ! -e "$module" ] || insmod "$module"
done
mount -t proc proc /share/proc
mount -t devtmpfs dev /share/dev
mount -t tmpfs tmp /share/tmp
mkdir /share/tmp/bin
cp /bin/busybox /share/tmp/bin
chroot /share /tmp/bin/busybox --install -s /tmp/bin
for board in $(cat /share/boards/order); do
    start=$(cut -d. -f1 /proc/uptime)
    echo "kvm: $board starts"
    PATH=/tmp/bin:/usr/bin chroot /share sh "/boards/$board" </dev/null
    status=$?
    echo "kvm: $board ended with status $status after $(($(cut -d. -f1 /proc/uptime) - start)) s"
done
"#;

/// Each transport, and both ways to start the firmware.
#[test]
fn kvm_boots_two_x86_64_boards() {
    let boards = [Board::X86_64MicrovmRom, Board::X86_64Q35];
    boots("two", Board::X86_64Q35, Release::Trixie, &boards);
}

#[test]
fn kvm_boots_two_aarch64_boards() {
    let boards = [Board::Aarch64VirtRom, Board::Aarch64VirtPci];
    boots("two", Board::Aarch64VirtPci, Release::Trixie, &boards);
}

#[test]
#[ignore = "some minutes: make test-kvm"]
fn kvm_boots_all_x86_64_boards() {
    boots_all(Board::X86_64Q35, Release::Trixie);
}

#[test]
#[ignore = "some minutes: make test-kvm"]
fn kvm_boots_all_aarch64_boards() {
    boots_all(Board::Aarch64VirtPci, Release::Trixie);
}

#[test]
#[ignore = "some minutes: make test-kvm"]
fn kvm_of_sid_boots_all_x86_64_boards() {
    boots_all(Board::X86_64Q35, Release::Sid);
}

#[test]
#[ignore = "some minutes: make test-kvm"]
fn kvm_of_sid_boots_all_aarch64_boards() {
    boots_all(Board::Aarch64VirtPci, Release::Sid);
}

fn boots_all(outer: Board, release: Release) {
    let boards = Board::ALL.into_iter().filter(|board| {
        // The i440FX of `pc` adds nothing for KVM to what q35 shows.
        board.arch() == outer.arch() && *board != Board::X86_64Pc
    });
    boots("all", outer, release, &boards.collect::<Vec<_>>());
}

/// Boots `outer` with QEMU and Linux of `release`. In it, `boards` boot by KVM.
fn boots(name: &str, outer: Board, release: Release, boards: &[Board]) {
    let arch = outer.arch();
    let dir = empty_dir(&format!("kvm-{name}-{}-{}", arch.name(), release.name()));
    let kernel = dir.join("kernel");
    let parts = parts(arch, Some(release));
    make_demo(&parts, &kernel);
    for name in ["boards", "modules", "dev", "proc", "tmp"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    fs::write(dir.join("kvm.sh"), SCRIPT).unwrap();
    if arch == Arch::X86_64 {
        // arm64 kernels have KVM built in.
        let modules = Modules::read(&parts.modules().unwrap()).unwrap();
        for (number, (name, bytes)) in modules
            .load(&["kvm_amd"])
            .unwrap_or_else(|error| panic!("{error:#}"))
            .into_iter()
            .enumerate()
        {
            fs::write(dir.join(format!("modules/{number}-{name}.ko")), bytes).unwrap();
        }
    }
    let mut order = String::new();
    for board in boards {
        let name = board.name();
        fs::write(dir.join("boards").join(&name), commands(*board, &dir)).unwrap();
        order.push_str(&name);
        order.push('\n');
    }
    fs::write(dir.join("boards/order"), order).unwrap();

    let tree = target().join(format!("guest/kvm-{}-{}", arch.debian(), release.name()));
    let packages = Packages {
        arch,
        what: "QEMU and virtiofsd",
        choose: |apt| {
            let qemu = match apt.arch {
                Arch::X86_64 => "qemu-system-x86",
                Arch::Aarch64 => "qemu-system-arm",
            };
            apt.closure(&[qemu, "virtiofsd"])
        },
    };
    packages
        .fetch_of(Some(release), &tree)
        .unwrap_or_else(|error| panic!("{error:#}"));

    let mut machine = machine(outer, Server::Embedded, &dir, "-- demo.run=/kvm.sh");
    machine.shares[0].dirs.extend([kernel, tree]);
    // QEMU 7.2 does not update the XSAVE area's size after an inner guest's XSETBV. Linux then disables
    // XSAVE, and Linux 7.2 panics because of that.
    machine.qemu = Some(qemu(Release::Sid));
    machine.memory_mib = 2048;
    machine.time_limit = Some(LIMIT);
    match arch {
        // QEMU emulates AMD's extensions only.
        Arch::X86_64 => machine.qemu_args = ["-cpu", "max"].map(Into::into).into(),
        Arch::Aarch64 => {
            machine.el2 = true;
            machine.qemu_args = ["-machine", "gic-version=3"].map(Into::into).into();
        }
    }
    let run = run(&machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    for board in boards {
        let name = format!("kvm: {} ", board.name());
        let start = run.lines.iter().position(|line| line.starts_with(&name));
        let lines = &run.lines[start.expect("it was not started") + 1..];
        let end = lines.iter().position(|line| line.starts_with(&name));
        let (inner, end) = lines.split_at(end.expect("it did not end"));
        let ended = format!("{name}ended with status 0 after ");
        assert!(end[0].starts_with(&ended), "{}", end[0]);
        let said = |part: &str| {
            let found = inner.iter().any(|line| line.contains(part));
            assert!(found, "{} did not say {part:?}", board.name());
        };
        let complaint = inner.iter().find(|line| line.starts_with("qemu-system-"));
        assert_eq!(complaint, None, "{}", board.name());
        let complaint = inner
            .iter()
            .find(|line| line.starts_with("bootshare: warning"));
        assert_eq!(complaint, None, "{}", board.name());
        said("bootshare: starting /");
        said(&format!("mounted the share {}", demo::TAG));
        said(demo::GREETING.trim());
    }
}

/// The commands that boot the kernel in `dir` by KVM, for a machine whose root directory is `dir`.
fn commands(board: Board, dir: &Path) -> String {
    let name = board.firmware_name();
    let firmware = dir.join(name);
    fs::copy(target().join("firmware").join(name), &firmware).unwrap();
    let mut machine = Machine::new(board, firmware);
    machine
        .shares
        .push(Share::new(demo::TAG, dir.join("kernel")));
    machine.accel = Accel::Kvm;
    // The options are made here; the command runs in the outer machine.
    machine.server = Server::Rust.path();
    let text = machine.dry_run("");
    let text = text.unwrap_or_else(|error| panic!("{error:#}"));
    let server = machine.server.unwrap().display().to_string();
    text.replace(&server, "/usr/libexec/virtiofsd")
        .replace(&dir.display().to_string(), "")
}
