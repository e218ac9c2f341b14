//! x86 machines with other QEMU options than the host tool's: each row is a machine and the expected
//! result.

use bootshare_host::{Board, Outcome, demo};

use crate::lab::{Server, demo_share, machine, run};
use crate::linux;

/// The expected result of a machine.
enum Shows {
    /// The firmware finds its share and reads a file from it.
    Files,
    /// Linux mounts the share, and prints this about the machine.
    Linux(&'static str),
    /// The firmware refuses the machine, with this error.
    Error(&'static str),
}
use Shows::{Error, Files, Linux};

/// The memory of most machines in MiB.
const COMMON: u32 = 512;

fn check(board: Board, memory_mib: u32, args: &str, device: Option<&str>, shows: &Shows) {
    let share = demo_share(board.arch());
    let files = "bootshare.cmd=\"devices; cat /greeting.txt\"";
    let options = match shows {
        Files => files.to_owned(),
        Linux(_) => format!("{} loglevel=7", linux::OPTIONS),
        Error(_) => String::new(),
    };
    let mut machine = machine(board, Server::Embedded, share, &options);
    machine.memory_mib = memory_mib;
    machine.qemu_args = args.split_whitespace().map(Into::into).collect();
    machine.devices = device.map(Into::into).into_iter().collect();
    match shows {
        Files => {
            let run = run(&machine);
            assert_eq!(run.outcome, Outcome::FirmwareExit(0));
            run.line(&["bootshare: mounted bootshare (virtio-"]);
            run.line(&[demo::GREETING.trim()]);
        }
        Linux(line) => {
            linux::expect_boot(&machine, share).line(&[line]);
        }
        Error(line) => {
            let run = run(&machine);
            assert!(matches!(run.outcome, Outcome::FirmwareExit(1)));
            run.line(&["bootshare: error: ", line]);
        }
    }
}

macro_rules! machines {
    ($($name:ident: $board:ident $memory:expr, $args:literal $(, $device:literal)? => $shows:expr;)*) => {$(
        #[test]
        fn $name() {
            let device: &[&str] = &[$($device)?];
            check(Board::$board, $memory, $args, device.first().copied(), &$shows);
        }
    )*};
}

machines! {
    q35_with_four_of_eight_processors: X86_64Q35 COMMON, "-smp 4,maxcpus=8" => Linux("smp: Brought up 1 node, 4 CPUs");
    q35_without_legacy: X86_64Q35 COMMON, "-machine smm=off,sata=off,i8042=off" => Files;
    q35_without_legacy_from_rom: X86_64Q35Rom COMMON, "-machine smm=off,sata=off,i8042=off" => Linux("ACPI: PM");
    q35_without_acpi: X86_64Q35 COMMON, "-machine acpi=off" => Files;
    q35_without_acpi_from_rom: X86_64Q35Rom COMMON, "-machine acpi=off" => Files;
    q35_with_an_iommu: X86_64Q35 COMMON, "-machine kernel-irqchip=split -device intel-iommu" => Files;
    q35_with_one_numa_node: X86_64Q35Rom COMMON, "-numa node,memdev=ram" => Files;
    q35_with_two_numa_nodes: X86_64Q35Rom 1024, "-smp 2 -object memory-backend-memfd,id=a,size=512M,share=on -object memory-backend-memfd,id=b,size=512M,share=on -numa node,memdev=a,cpus=0 -numa node,memdev=b,cpus=1" => Linux("smp: Brought up 2 nodes, 2 CPUs");
    q35_with_bars_above_4_gib: X86_64Q35 8192, "-device pci-testdev,membar=4G -device pcie-root-port,id=port1", "vhost-user-fs-pci,bus=port1" => Linux("[1af4:105a]");
    q35_with_notifications_by_port: X86_64Q35 COMMON, "", "vhost-user-fs-pci,modern-pio-notify=on" => Files;
    q35_with_a_page_for_each_queue: X86_64Q35Rom COMMON, "", "vhost-user-fs-pci,page-per-vq=on" => Files;
    q35_with_8_gib_from_rom: X86_64Q35Rom 8192, "" => Files;
    q35_with_64_mib: X86_64Q35 64, "" => Files;
    q35_with_64_mib_from_rom: X86_64Q35Rom 64, "" => Files;
    q35_with_64_mib_and_a_large_kernel: X86_64Q35 64, "" => Error(" MiB does not fit above 16 MiB");
    q35_with_cpu_max: X86_64Q35Rom COMMON, "-cpu max" => Linux("CPU0: ");
    q35_with_cpu_qemu64: X86_64Q35 COMMON, "-cpu qemu64" => Files;
    q35_with_cpu_nehalem: X86_64Q35Rom COMMON, "-cpu Nehalem" => Files;
    q35_with_a_cpu_of_32_bits: X86_64Q35 COMMON, "-cpu qemu32" => Error("no 64-bit mode");
    q35_with_a_cpu_of_32_bits_from_rom: X86_64Q35Rom COMMON, "-cpu qemu32" => Error("no 64-bit mode");
    pc_without_acpi: X86_64Pc COMMON, "-machine acpi=off" => Files;
    pc_with_64_mib: X86_64Pc 64, "" => Files;
    microvm_without_timers: X86_64Microvm COMMON, "-machine pit=off,rtc=off,pic=off,isa-serial=on" => Linux("Command line: tsc_early_khz=");
    microvm_without_timers_from_rom: X86_64MicrovmRom COMMON, "-machine pit=off,rtc=off,pic=off,acpi=off" => Files;
    microvm_without_option_roms: X86_64Microvm COMMON, "-machine acpi=off,x-option-roms=off" => Files;
    microvm_with_two_io_apics: X86_64Microvm COMMON, "-machine ioapic2=on" => Files;
    microvm_with_one_io_apic_from_rom: X86_64MicrovmRom COMMON, "-machine x-option-roms=off,ioapic2=off -cpu Nehalem" => Linux("IOAPIC[0]");
    microvm_with_pci_express: X86_64Microvm COMMON, "-machine pcie=on", "vhost-user-fs-pci" => Files;
    microvm_with_pci_express_from_rom: X86_64MicrovmRom COMMON, "-machine pcie=on -device pcie-root-port,id=port1", "vhost-user-fs-pci,bus=port1" => Linux("pci 0000:01:00.0: [1af4:105a]");
    microvm_with_pci_express_and_a_share_by_mmio: X86_64Microvm COMMON, "-machine pcie=on" => Files;
    microvm_with_64_mib: X86_64Microvm 64, "-cpu qemu64" => Files;
    microvm_with_8_gib_from_rom: X86_64MicrovmRom 8192, "-cpu max" => Files;
}

/// All 24 virtio-mmio slots are in use. The share, which is added last, is in the first slot.
#[test]
fn microvm_with_24_devices() {
    let others = ["-device virtio-rng-device"; 23].join(" ");
    check(Board::X86_64Microvm, COMMON, &others, None, &Files);
}
