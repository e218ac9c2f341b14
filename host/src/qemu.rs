//! QEMU's command line for a board. No other module knows QEMU's arguments.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Error, Result, bail, ensure};
use clap::ValueEnum;

use crate::board::{Arch, Board, Transport};
use crate::explain::Explain;
use crate::prepare::{Cache as Kernels, Prepare};
use crate::process::Invocation;
use crate::serve::{Cache, Fault, Options, Owner, Trace};
use crate::watch::Watch;

/// Exit codes from here up are the firmware's: it reports `STATUS_BASE + status`. QEMU's own are 0
/// (the guest powered off) and 1 (an error).
const STATUS_BASE: [i32; 2] = [0x10, 0x20];

/// The fw_cfg file with the options of a firmware that starts as a ROM: QEMU takes `-append` with
/// `-kernel` only.
const COMMAND_LINE_FILE: &str = "opt/org.bootshare/cmdline";

/// The firmware option that makes the firmware ask for prepared kernels.
const PREPARED: &str = "bootshare.prepared=yes";

/// The greatest status a firmware may report.
pub const MAX_STATUS: u8 = 0x3f;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// QEMU's translator (TCG); works everywhere.
    #[default]
    Tcg,
    /// Linux's KVM; needs /dev/kvm and a host of the board's architecture.
    Kvm,
}

/// Directories that form one virtio-fs device of the machine.
#[derive(Clone, Debug)]
pub struct Share {
    /// The mount tag, 1 to 36 bytes.
    pub tag: String,
    /// The directories, at least one; earlier ones cover later ones, see [`serve`](crate::serve).
    pub dirs: Vec<PathBuf>,
}

impl Share {
    /// A share of one directory.
    pub fn new(tag: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            tag: tag.into(),
            dirs: vec![dir.into()],
        }
    }

    fn check(&self) -> Result<()> {
        let tag = &self.tag;
        ensure!(
            (1..=36).contains(&tag.len()),
            "the tag {tag:?} is {} bytes long: use 1 to 36",
            tag.len()
        );
        ensure!(
            !self.dirs.is_empty(),
            "the share {tag} has no directory: name one"
        );
        for dir in &self.dirs {
            readable(dir)?;
        }
        Ok(())
    }
}

/// Checks that `dir` can be shared.
///
/// # Errors
/// It is no directory, or cannot be read.
pub fn readable(dir: &Path) -> Result<()> {
    let list = fs::read_dir(dir);
    list.explain(
        format_args!("cannot share {}", dir.display()),
        "name a directory that can be read",
    )?;
    Ok(())
}

/// QEMU's program for `arch`: `qemu`, or in this directory, or where programs usually are; under its
/// usual name, or under the name of distributions that ship it for the host's architecture only.
pub fn program(qemu: Option<&Path>, arch: Arch) -> OsString {
    let mut names = vec![format!("qemu-system-{}", arch.name())];
    if arch == Board::of_this_machine().arch() {
        names.push("qemu-kvm".to_owned());
    }
    let dirs: Vec<_> = match qemu {
        // A name without a directory would be searched in PATH.
        Some(path) if !path.is_dir() => {
            return std::path::absolute(path).unwrap_or(path.to_owned()).into();
        }
        Some(dir) => vec![dir.to_owned()],
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let others = LIBRARIES.iter().map(PathBuf::from);
            std::env::split_paths(&path).chain(others).collect()
        }
    };
    let paths = names
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    let found = paths.into_iter().find(|path| path.is_file());
    match (qemu, found) {
        (_, Some(path)) => path.into(),
        (Some(dir), None) => dir.join(&names[0]).into(),
        (None, None) => names.swap_remove(0).into(),
    }
}

/// Tag and directories.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.tag)?;
        for (index, dir) in self.dirs.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{}", dir.display())?;
        }
        f.write_str(")")
    }
}

/// What a run with a captured console does with this process's own terminal. With
/// [`Console::Terminal`](crate::Console::Terminal) the console decides it.
#[derive(Clone, Debug, Default)]
pub enum OwnTerminal {
    /// Nothing: also SIGTSTP has its default action.
    #[default]
    Unused,
    /// SIGTSTP stops the machine together with this process, as a shell expects of a job.
    Stops,
    /// It is also in raw mode while this process is in the foreground and this is true. SIGCONT makes
    /// the run look at it again.
    Raw(Arc<AtomicBool>),
}

/// A machine to run: everything that shapes the QEMU command.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The board.
    pub board: Board,
    /// QEMU's program, or the directory of its programs; `None` searches the usual directories.
    pub qemu: Option<PathBuf>,
    /// The firmware image, for `-kernel` or `-bios`.
    pub firmware: PathBuf,
    /// Whether the firmware is passed with `-bios` rather than `-kernel`: on ROM boards, and on any
    /// board for other firmware such as EFI.
    pub is_rom: bool,
    /// The firmware's command line.
    pub append: String,
    /// Guest memory, in MiB.
    pub memory_mib: u32,
    /// Number of processors.
    pub smp: u32,
    /// What runs the guest.
    pub accel: Accel,
    /// Called with the reason when KVM fails at the start; the machine then runs with QEMU's
    /// translator. If it is `None`, the run fails.
    pub fallback: Option<fn(&str)>,
    /// The shares, in device order; none is allowed.
    pub shares: Vec<Share>,
    /// An external virtiofsd; `None` serves the shares from threads of this process.
    pub server: Option<PathBuf>,
    /// How many request queues each share has; an external server has one.
    pub request_queues: u32,
    /// How many requests the server answers at a time; `None` leaves it to the server.
    pub thread_pool_size: Option<u32>,
    /// How long the guest may cache the embedded server's answers.
    pub cache: Cache,
    /// Whether the embedded server shows extended attributes.
    pub xattr: bool,
    /// Which owner of the files the embedded server shows.
    pub owner: Owner,
    /// Whether file systems mounted in the shares are announced: see [`Options::submounts`].
    pub submounts: bool,
    /// If set, the embedded server unpacks kernels for this project's firmware. The inner option is
    /// the cache to keep them in.
    pub prepare: Option<Option<Kernels>>,
    /// Faults that the embedded server injects.
    pub fault: Option<Fault>,
    /// Where the embedded server records all requests and replies.
    pub trace: Option<PathBuf>,
    /// How long the machine may run.
    pub time_limit: Option<Duration>,
    /// What a run does with this process's own terminal if the console is captured.
    pub own_terminal: OwnTerminal,
    /// What the console must show, or must not show.
    pub watch: Watch,
    /// Leave virtio-mmio devices in the legacy layout, QEMU's default.
    pub legacy_mmio: bool,
    /// Attach no device by which the firmware ends QEMU with a status of its own.
    pub without_status: bool,
    /// Start aarch64 at EL2.
    pub el2: bool,
    /// The TCP port of this host on which QEMU waits for a debugger before the machine starts.
    pub gdb: Option<u16>,
    /// Whether the machine has a network card, on QEMU's user-mode network.
    pub has_network: bool,
    /// Disks, raw or qcow2.
    pub disks: Vec<PathBuf>,
    /// Drivers and properties of the first shares' devices, instead of the board's own: for example
    /// `vhost-user-fs-pci,bus=port1` for a device below a bridge in `qemu_args`.
    pub devices: Vec<String>,
    /// More QEMU arguments, passed unchanged before those of the shares' devices.
    pub qemu_args: Vec<OsString>,
}

/// The sockets and the console of a QEMU command.
pub(crate) struct Wiring {
    /// One socket for each share.
    pub(crate) sockets: Vec<PathBuf>,
    /// The QMP socket; not needed by a person who runs the command by hand.
    pub(crate) qmp: Option<PathBuf>,
    /// Whether a person uses the console: then QEMU's Ctrl-A keys work.
    pub(crate) interactive: bool,
}

impl Machine {
    /// A machine with 512 MiB and one processor, no share, no time limit.
    pub fn new(board: Board, firmware: impl Into<PathBuf>) -> Self {
        Self {
            board,
            qemu: None,
            firmware: firmware.into(),
            is_rom: board.is_rom(),
            append: String::new(),
            memory_mib: 512,
            smp: 1,
            accel: Accel::default(),
            fallback: None,
            shares: Vec::new(),
            server: None,
            request_queues: 1,
            thread_pool_size: None,
            cache: Cache::default(),
            xattr: false,
            owner: Owner::default(),
            submounts: true,
            prepare: None,
            fault: None,
            trace: None,
            time_limit: None,
            own_terminal: OwnTerminal::default(),
            watch: Watch::default(),
            legacy_mmio: false,
            without_status: false,
            el2: false,
            gdb: None,
            has_network: false,
            disks: Vec::new(),
            devices: Vec::new(),
            qemu_args: Vec::new(),
        }
    }

    /// Checks what this host cannot run; a script of a dry run may be for another host.
    pub(crate) fn check_host(&self) -> Result<()> {
        let own = Board::of_this_machine().arch();
        ensure!(
            self.accel != Accel::Kvm || self.board.arch() == own,
            "KVM runs the guests of its own architecture, {}, and {} is of another: use --accel tcg",
            own.name(),
            self.board.name()
        );
        Ok(())
    }

    /// Checks what QEMU or the server would report less clearly.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.firmware.is_file(),
            "there is no firmware at {}: build it with `make firmware`",
            self.firmware.display()
        );
        for (index, share) in self.shares.iter().enumerate() {
            share.check()?;
            ensure!(
                self.shares[..index]
                    .iter()
                    .all(|other| other.tag != share.tag),
                "two shares have the tag {:?}: give each its own",
                share.tag
            );
        }
        if let Some(server) = &self.server {
            for (option, given) in [
                ("--fault", self.fault.is_some()),
                ("--cache", self.cache != Cache::default()),
                ("--xattr", self.xattr),
                ("--owner", self.owner != Owner::default()),
                ("--trace", self.trace.is_some()),
            ] {
                ensure!(
                    !given,
                    "{option} is the embedded server's: leave out --server {}",
                    server.display()
                );
            }
            // With more queues in the device both kinds of virtiofsd exit, and QEMU continues
            // without a server.
            ensure!(
                self.request_queues == 1,
                "{} serves one request queue: leave out --request-queues, or --server",
                server.display()
            );
        }
        if let Some(path) = &self.qemu {
            let program = PathBuf::from(self.program());
            ensure!(
                program.is_file(),
                "--qemu {}: there is no {}: name QEMU's program, or the directory of its programs",
                path.display(),
                program.display()
            );
        }
        let split = |arg: &&OsString| {
            let bytes = arg.as_encoded_bytes();
            bytes.starts_with(b"-") && bytes.contains(&b' ')
        };
        if let Some(arg) = self.qemu_args.iter().find(split) {
            let arg = arg.display();
            bail!("--qemu-arg='{arg}' is several words: write a --qemu-arg for each");
        }
        for disk in &self.disks {
            // Opening a FIFO would wait for its other end.
            let is_disk =
                |found: fs::Metadata| found.is_file() || found.file_type().is_block_device();
            let found = fs::metadata(disk).map_err(Error::from).and_then(|found| {
                ensure!(is_disk(found), "it is neither a file nor a block device");
                Ok(fs::File::open(disk)?)
            });
            found.explain(
                format_args!("cannot open the disk {}", disk.display()),
                "name an existing file, or make one with `truncate -s 1G FILE`",
            )?;
        }
        ensure!(
            !self.el2 || self.board.arch() == Arch::Aarch64,
            "only the aarch64 boards have an EL2: leave out --el2, or name one with --board"
        );
        Ok(())
    }

    /// QEMU's program: under its usual name, or under the name of distributions that ship it for
    /// the host's architecture only.
    pub(crate) fn program(&self) -> OsString {
        program(self.qemu.as_deref(), self.board.arch())
    }

    /// QEMU's command for a person to read, without sockets.
    pub fn command(&self) -> String {
        let wiring = Wiring {
            sockets: Vec::new(),
            qmp: None,
            interactive: false,
        };
        self.invocation(&wiring).shell()
    }

    pub(crate) fn invocation(&self, wiring: &Wiring) -> Invocation {
        let mut qemu = Invocation::new(self.program());
        qemu.arg("-nodefaults")
            .arg("-no-user-config")
            .arg("-no-reboot");
        qemu.option("-display", "none");

        self.processor(&mut qemu);
        qemu.option("-smp", self.smp.to_string());
        let size = format!("{}M", self.memory_mib);
        // The server writes into guest memory, so it must be shareable.
        qemu.option(
            "-object",
            format!("memory-backend-memfd,id=ram,size={size},share=on"),
        );
        qemu.option("-m", size);

        let rom = self.is_rom;
        qemu.option(if rom { "-bios" } else { "-kernel" }, &self.firmware);
        let append = self.words();
        if rom && !append.is_empty() {
            let file = format!("name={COMMAND_LINE_FILE},string=");
            qemu.option("-fw_cfg", join(&file, append.as_ref()));
        } else if !append.is_empty() {
            qemu.option("-append", append.as_ref());
        }
        if !self.without_status {
            self.status(&mut qemu);
        }

        console(&mut qemu, wiring);
        self.extras(&mut qemu);
        qemu.args.extend(self.qemu_args.iter().cloned());
        self.devices(&mut qemu, &wiring.sockets);
        qemu
    }

    /// The firmware's command line.
    fn words(&self) -> Cow<'_, str> {
        match (&self.prepare, &self.server) {
            (Some(_), None) => format!("{PREPARED} {}", self.append).into(),
            _ => self.append.as_str().into(),
        }
    }

    fn processor(&self, qemu: &mut Invocation) {
        let mut machine = self.board.machine().to_owned();
        // With `-numa`, each node names its memory itself: `memdev=ram`, or another shared object.
        if !self.qemu_args.iter().any(|arg| arg == "-numa") {
            machine.push_str(",memory-backend=ram");
        }
        if self.el2 {
            machine.push_str(",virtualization=on");
        }
        qemu.option("-machine", machine);
        match (self.accel, self.board.arch()) {
            (Accel::Kvm, _) => drop(qemu.option("-accel", "kvm").option("-cpu", "host")),
            // The default processor is a 32-bit one, and `max` is slow to emulate (pointer
            // authentication).
            (Accel::Tcg, Arch::Aarch64) => {
                qemu.option("-accel", "tcg").option("-cpu", "cortex-a72");
            }
            (Accel::Tcg, Arch::X86_64) => drop(qemu.option("-accel", "tcg")),
        }
    }

    /// Whether the user asked for a machine that starts paused, for example to attach a debugger.
    pub(crate) fn stays_paused(&self) -> bool {
        self.gdb.is_some() || self.qemu_args.iter().any(|arg| arg == "-S")
    }

    /// The devices besides the shares: debugger, network, disks.
    fn extras(&self, qemu: &mut Invocation) {
        let suffix = match self.board.transport() {
            Transport::Mmio => "device",
            Transport::Pci => "pci",
        };
        if let Some(port) = self.gdb {
            qemu.option("-gdb", format!("tcp:127.0.0.1:{port}"))
                .arg("-S");
        }
        if self.has_network {
            qemu.option("-netdev", "user,id=net");
            qemu.option("-device", format!("virtio-net-{suffix},netdev=net"));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let format = match is_qcow2(disk) {
                true => "qcow2",
                false => "raw",
            };
            let drive = format!("if=none,id=disk{index},format={format},file=");
            // QEMU takes the beginning of a relative path, up to a colon, for a protocol.
            let path = std::path::absolute(disk).unwrap_or_else(|_| disk.clone());
            qemu.option("-drive", join(&drive, &path));
            qemu.option("-device", format!("virtio-blk-{suffix},drive=disk{index}"));
        }
    }

    /// How the firmware ends QEMU with a status of its own, or with 1.
    fn status(&self, qemu: &mut Invocation) {
        match (self.board.arch(), self.accel) {
            (Arch::X86_64, _) => qemu.option("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
            (Arch::Aarch64, Accel::Tcg) => {
                qemu.option("-semihosting-config", "enable=on,target=native")
            }
            (Arch::Aarch64, Accel::Kvm) => qemu
                .option("-action", "panic=exit-failure")
                .option("-device", "pvpanic-pci,events=1"),
        };
    }

    /// A device for each share.
    fn devices(&self, qemu: &mut Invocation, sockets: &[PathBuf]) {
        if self.board.transport() == Transport::Mmio && !self.legacy_mmio {
            qemu.option("-global", "virtio-mmio.force-legacy=false");
        }
        let device = match self.board.transport() {
            Transport::Mmio => "vhost-user-fs-device",
            Transport::Pci => "vhost-user-fs-pci",
        };
        for (index, (share, socket)) in self.shares.iter().zip(sockets).enumerate() {
            qemu.option(
                "-chardev",
                join(&format!("socket,id=fs{index},path="), socket),
            );
            let queues = self.request_queues;
            let device = self.devices.get(index).map_or(device, String::as_str);
            let device = format!("{device},chardev=fs{index},num-request-queues={queues},tag=");
            qemu.option("-device", join(&device, OsStr::new(&share.tag)));
        }
    }

    /// The embedded server's options for a share.
    pub(crate) fn serve_options(&self, share: &Share, trace: Option<Arc<Trace>>) -> Options {
        let mut options = Options::new(&share.tag, share.dirs.clone());
        options.request_queues = self.request_queues;
        if let Some(threads) = self.thread_pool_size {
            options.threads = threads as usize;
        }
        options.cache = self.cache;
        options.xattr = self.xattr;
        options.owner = self.owner;
        options.submounts = self.submounts;
        options.prepare = self.prepare.clone().map(|cache| Prepare {
            memory_mib: self.memory_mib,
            cache,
        });
        options.fault = self.fault.clone();
        options.trace = trace;
        options
    }
}

/// Directories outside `PATH` in which distributions install QEMU.
const LIBRARIES: [&str; 2] = ["/usr/libexec", "/usr/lib/qemu"];

/// Whether a disk starts with the magic of qcow2 (QEMU's docs/interop/qcow2.txt). The format is
/// determined before the guest runs, so a guest cannot change it by writing to a raw disk.
fn is_qcow2(disk: &Path) -> bool {
    let mut magic = [0; 4];
    let read = fs::File::open(disk).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"QFI\xfb"
}

/// The serial console, the monitor and QMP.
fn console(qemu: &mut Invocation, wiring: &Wiring) {
    let mux = if wiring.interactive { ",mux=on" } else { "" };
    qemu.option("-chardev", format!("stdio,id=console,signal=off{mux}"));
    qemu.option("-serial", "chardev:console");
    if wiring.interactive {
        qemu.option("-monitor", "chardev:console");
    }
    if let Some(path) = &wiring.qmp {
        qemu.option("-chardev", join("socket,id=qmp,path=", path));
        qemu.option("-qmp", "chardev:qmp");
        // Start paused, until QMP is connected: a machine that ends earlier could not report how.
        qemu.arg("-S");
    }
}

/// The firmware's status from QEMU's exit code; `None` if the firmware did not report one.
///
/// On x86-64 the firmware writes `0x10 + status` to isa-debug-exit and QEMU exits with
/// `(value << 1) | 1`; on aarch64 it exits by semihosting with `0x20 + status`. KVM has no
/// semihosting: there a success powers the machine off, and a failure is a panic for QEMU.
pub(crate) fn firmware_status(arch: Arch, code: i32) -> Option<u8> {
    let [x86, arm] = STATUS_BASE;
    let status = match arch {
        Arch::X86_64 if code & 1 == 1 => (code >> 1) - x86,
        Arch::X86_64 => return None,
        Arch::Aarch64 => code - arm,
    };
    u8::try_from(status)
        .ok()
        .filter(|&status| status <= MAX_STATUS)
}

/// `prefix` and `value` as one QEMU option; commas in `value` are doubled.
fn join(prefix: &str, value: impl AsRef<OsStr>) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut out = prefix.as_bytes().to_vec();
    for &byte in value.as_ref().as_bytes() {
        out.push(byte);
        if byte == b',' {
            out.push(byte);
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(board: Board) -> Machine {
        let mut machine = Machine::new(board, "fw.elf");
        machine.shares.push(Share::new("a,b", "/"));
        machine
    }

    fn text(machine: &Machine) -> String {
        let wiring = Wiring {
            sockets: vec!["/run/x,y".into()],
            qmp: None,
            interactive: false,
        };
        machine.invocation(&wiring).shell()
    }

    #[test]
    fn kvm_runs_its_own_architecture_only() {
        let own = Board::of_this_machine().arch();
        for board in Board::ALL {
            let mut machine = Machine::new(board, "firmware");
            machine.accel = Accel::Kvm;
            assert_eq!(machine.check_host().is_ok(), board.arch() == own);
            machine.accel = Accel::Tcg;
            machine.check_host().unwrap();
        }
    }

    #[test]
    fn commas_in_names_are_doubled() {
        let text = text(&machine(Board::X86_64Q35));
        assert!(text.contains("socket,id=fs0,path=/run/x,,y"), "{text}");
        assert!(
            text.contains("vhost-user-fs-pci,chardev=fs0,num-request-queues=1,tag=a,,b"),
            "{text}"
        );
    }

    #[test]
    fn mmio_boards_ask_for_the_modern_layout_unless_told_not_to() {
        let mut machine = machine(Board::Aarch64Virt);
        assert!(text(&machine).contains("virtio-mmio.force-legacy=false"));
        machine.legacy_mmio = true;
        assert!(!text(&machine).contains("force-legacy"));
    }

    #[test]
    fn the_firmware_can_tell_a_failure_under_each_accelerator() {
        for (board, accel, part) in [
            (Board::X86_64Q35, Accel::Tcg, "isa-debug-exit"),
            (Board::X86_64Q35, Accel::Kvm, "isa-debug-exit"),
            (Board::Aarch64Virt, Accel::Tcg, "-semihosting-config"),
            (Board::Aarch64Virt, Accel::Kvm, "-action panic=exit-failure"),
        ] {
            let mut machine = machine(board);
            machine.accel = accel;
            let text = text(&machine);
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn devices_of_the_caller_come_after_its_arguments() {
        let mut machine = machine(Board::X86_64Q35);
        machine.devices = vec!["vhost-user-fs-pci,bus=port".into()];
        machine.qemu_args = vec!["-device".into(), "pcie-root-port,id=port".into()];
        let text = text(&machine);
        let (bridge, device) = (text.find("pcie-root-port"), text.find("pci,bus=port,"));
        assert!(bridge.is_some() && bridge < device, "{text}");
    }

    #[test]
    fn a_rom_gets_its_options_by_fw_cfg() {
        let mut machine = machine(Board::Aarch64VirtRom);
        assert!(!text(&machine).contains("fw_cfg"));
        machine.append = "a,b".into();
        let text = text(&machine);
        assert!(text.contains("-bios fw.elf"), "{text}");
        assert!(
            text.contains("-fw_cfg name=opt/org.bootshare/cmdline,string=a,,b"),
            "{text}"
        );
        assert!(!text.contains("-kernel") && !text.contains("-append"));
    }

    #[test]
    fn options_of_the_embedded_server_are_refused_with_another_server() {
        let mut machine = machine(Board::X86_64Pc);
        machine.firmware = std::env::current_exe().unwrap();
        machine.fault = Some("drop=READ".parse().unwrap());
        machine.check().unwrap();
        machine.server = Some("/usr/libexec/virtiofsd".into());
        let error = machine.check().unwrap_err().to_string();
        assert!(
            error.contains("--fault") && error.contains("virtiofsd"),
            "{error}"
        );
        (machine.fault, machine.request_queues) = (None, 2);
        let error = machine.check().unwrap_err().to_string();
        assert!(
            error.contains("--request-queues") && error.contains("virtiofsd"),
            "{error}"
        );
    }

    #[test]
    fn every_board_shares_its_memory_and_never_reboots() {
        for board in Board::ALL {
            let text = text(&machine(board));
            assert!(text.contains("memory-backend=ram"), "{text}");
            assert!(text.contains("share=on"), "{text}");
            assert!(text.contains("-no-reboot"), "{text}");
        }
    }

    #[test]
    fn numa_nodes_name_their_own_memory() {
        let mut machine = machine(Board::Aarch64Virt);
        machine.qemu_args = ["-numa", "node,memdev=ram"].map(Into::into).into();
        let text = text(&machine);
        assert!(!text.contains("memory-backend="), "{text}");
        assert!(text.contains("id=ram,size=512M,share=on"), "{text}");
    }

    #[test]
    fn the_firmware_status_is_told_from_qemus_own() {
        for status in 0..=MAX_STATUS {
            let x86 = ((0x10 + i32::from(status)) << 1) | 1;
            assert_eq!(firmware_status(Arch::X86_64, x86), Some(status));
            assert_eq!(
                firmware_status(Arch::Aarch64, 0x20 + i32::from(status)),
                Some(status)
            );
        }
        for arch in Arch::ALL {
            assert_eq!(firmware_status(arch, 0), None);
            assert_eq!(firmware_status(arch, 1), None);
        }
        assert_eq!(firmware_status(Arch::X86_64, 0x1f), None);
        assert_eq!(firmware_status(Arch::X86_64, 0x22), None);
        assert_eq!(firmware_status(Arch::Aarch64, 0x60), None);
    }

    #[test]
    fn a_missing_directory_and_a_repeated_tag_are_refused() {
        let mut machine = machine(Board::X86_64Pc);
        machine.firmware = std::env::current_exe().unwrap();
        machine.shares.push(Share::new("a,b", "/"));
        assert!(
            machine
                .check()
                .unwrap_err()
                .to_string()
                .contains("two shares have the tag")
        );
        machine.shares.push(Share::new("c", "/nonexistent"));
        machine.shares.remove(0);
        assert!(
            machine
                .check()
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
    }
}
