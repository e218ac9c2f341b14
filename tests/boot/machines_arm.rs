//! `virt` machines with other QEMU options than the host tool's, and the state of the machine in which a
//! payload starts.

use std::fs;

use bootshare_host::{Board, Machine, Outcome};

use crate::kernels::{Found, arm64_state};
use crate::lab::{Run, Server, demo_share, empty_dir, machine, run};

use Found::{General, System, Word};

/// Makes one test of each machine: its board, QEMU's options, the number of processors, the memory in MiB,
/// and a text that Linux prints only on such a machine.
macro_rules! machines {
    ($($name:ident: $board:ident, [$($option:literal),*], $smp:literal, $memory:literal, $said:literal;)*) => {$(
        #[test]
        fn $name() {
            boots(Board::$board, &[$($option),*], $smp, $memory, $said);
        }
    )*};
}

machines! {
    gicv3_and_8_processors_on_pci: Aarch64VirtPci, ["-machine", "gic-version=3"],
        8, 512, "smp: Brought up 1 node, 8 CPUs";
    gicv3_without_its_on_pci: Aarch64VirtPci, ["-machine", "gic-version=3,its=off"],
        1, 512, "GICv3: CPU0: found redistributor 0 region 0:0x00000000080a0000";
    gicv3_from_rom_with_8_gib: Aarch64VirtRom, ["-machine", "gic-version=3"],
        1, 8192, "K/8388608K available";
    no_high_memory_on_pci: Aarch64VirtPci, ["-machine", "highmem=off"],
        1, 512, "3f000000.pcie: ECAM at [mem 0x3f000000-0x3fffffff]";
    memory_tags_and_all_features: Aarch64Virt,
        ["-machine", "gic-version=3,mte=on", "-cpu", "max,pauth-impdef=on"],
        1, 512, "CPU features: detected: Memory Tagging Extension";
    no_acpi_and_64_mib: Aarch64Virt, ["-machine", "acpi=off"],
        1, 64, "K/65536K available";
    one_numa_node: Aarch64Virt, ["-numa", "node,memdev=ram"],
        1, 512, "NODE_DATA";
    two_numa_nodes: Aarch64VirtPci,
        [
            "-object", "memory-backend-memfd,id=a,size=256M,share=on",
            "-object", "memory-backend-memfd,id=b,size=256M,share=on",
            "-numa", "node,memdev=a,cpus=0", "-numa", "node,memdev=b,cpus=1"
        ],
        2, 512, "smp: Brought up 2 nodes, 2 CPUs";
}

fn boots(board: Board, options: &[&str], smp: u32, memory_mib: u32, said: &str) {
    let share = demo_share(board.arch());
    let append = "bootshare.log=trace -- loglevel=7";
    let mut machine = machine(board, Server::Embedded, share, append);
    machine.qemu_args = options.iter().map(Into::into).collect();
    (machine.smp, machine.memory_mib) = (smp, memory_mib);
    let run = run(&machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["bootshare: trace: rested ", " times"]);
    run.line(&[said]);
    run.line(&["demo: Linux ", "mounted the share"]);
}

/// A value to compare: its name, where it is, and the mask of the bits that count.
type Row = (&'static str, Found, u64);

/// Registers of the processor and its timer (booting.rst, section 4).
const PROCESSOR: &[Row] = &[
    ("x1", General(1), ALL),
    ("x2", General(2), ALL),
    ("x3", General(3), ALL),
    ("CurrentEL", System([3, 0, 4, 2, 2]), ALL),
    ("DAIF", System([3, 3, 4, 2, 1]), ALL),
    ("SPSel", System([3, 0, 4, 2, 0]), ALL),
    ("CNTFRQ_EL0", System([3, 3, 14, 0, 0]), ALL),
    ("CNTKCTL_EL1", System([3, 0, 14, 1, 0]), ALL),
    ("CNTV_CTL_EL0", System([3, 3, 14, 3, 1]), ALL),
    ("CNTV_CVAL_EL0", System([3, 3, 14, 3, 2]), ALL),
    ("CNTP_CTL_EL0", System([3, 3, 14, 2, 1]), ALL),
    ("CNTP_CVAL_EL0", System([3, 3, 14, 2, 2]), ALL),
];
const ALL: u64 = u64::MAX;
/// The bits M (MMU), C (data cache) and EE (big endian).
const SCTLR: u64 = 1 << 0 | 1 << 2 | 1 << 25;

const EL1: &[Row] = &[("SCTLR_EL1", System([3, 0, 1, 0, 0]), SCTLR)];
const EL2: &[Row] = &[
    ("SCTLR_EL2", System([3, 4, 1, 0, 0]), SCTLR),
    ("HCR_EL2", System([3, 4, 1, 1, 0]), ALL),
    ("CNTHCTL_EL2", System([3, 4, 14, 1, 0]), ALL),
    ("CNTHP_CTL_EL2", System([3, 4, 14, 2, 1]), ALL),
    ("CNTVOFF_EL2", System([3, 4, 14, 0, 3]), ALL),
];

const GIC_2: &[Row] = &[
    ("GICD_CTLR", Word(0x0800_0000), ALL),
    ("GICD_IGROUPR0", Word(0x0800_0080), ALL),
    ("GICD_ISENABLER0", Word(0x0800_0100), ALL),
    ("GICD_ISENABLER1", Word(0x0800_0104), ALL),
    ("GICD_ISPENDR0", Word(0x0800_0200), ALL),
    ("GICD_ISACTIVER0", Word(0x0800_0300), ALL),
    ("GICC_CTLR", Word(0x0801_0000), ALL),
    ("GICC_PMR", Word(0x0801_0004), ALL),
    ("GICC_HPPIR", Word(0x0801_0018), ALL),
];

const GIC_3: &[Row] = &[
    ("GICD_CTLR", Word(0x0800_0000), ALL),
    ("GICD_ISENABLER1", Word(0x0800_0104), ALL),
    ("GICR_CTLR", Word(0x080a_0000), ALL),
    ("GICR_WAKER", Word(0x080a_0014), ALL),
    ("GICR_IGROUPR0", Word(0x080b_0080), ALL),
    ("GICR_ISENABLER0", Word(0x080b_0100), ALL),
    ("GICR_ISPENDR0", Word(0x080b_0200), ALL),
    ("GICR_ISACTIVER0", Word(0x080b_0300), ALL),
    ("ICC_PMR_EL1", System([3, 0, 4, 6, 0]), ALL),
    ("ICC_HPPIR1_EL1", System([3, 0, 12, 12, 2]), ALL),
    ("ICC_CTLR_EL1", System([3, 0, 12, 12, 4]), ALL),
    ("ICC_SRE_EL1", System([3, 0, 12, 12, 5]), ALL),
    ("ICC_IGRPEN0_EL1", System([3, 0, 12, 12, 6]), ALL),
    ("ICC_IGRPEN1_EL1", System([3, 0, 12, 12, 7]), ALL),
];

/// A payload finds the processor, its timer and the interrupt controller in the same state, whether QEMU
/// has started it directly or the firmware has loaded it. While it loads, the firmware lets the processor
/// rest, which uses the timer and the interrupt controller.
pub(crate) fn leaves_the_state_as_it_was(board: Board) {
    for (version, gic) in [(2, GIC_2), (3, GIC_3)] {
        for (el2, level) in [(false, EL1), (true, EL2)] {
            let name = format!("state-{version}-{el2}");
            let share = empty_dir(&name);
            let rows: Vec<_> = [PROCESSOR, level, gic].concat();
            let found: Vec<_> = rows.iter().map(|(_, found, _)| *found).collect();
            let image = share.join("Image");
            fs::write(&image, arm64_state(&found, el2, 8 << 20)).unwrap();

            let mut machine = machine(board, Server::Embedded, &share, "bootshare.log=trace");
            machine.el2 = el2;
            let option = format!("gic-version={version}");
            machine.qemu_args = vec!["-machine".into(), option.into()];
            let direct = Machine {
                firmware: image,
                is_rom: false,
                shares: Vec::new(),
                ..machine.clone()
            };
            let direct = state(&run(&direct), rows.len());
            machine.fault = Some("delay=50ms@READ".parse().unwrap());
            let loaded = run(&machine);
            let rests = loaded.line(&["bootshare: trace: rested ", " times"]);
            assert!(!rests.contains("rested 0 times"), "{rests}");
            let loaded = state(&loaded, rows.len());
            for ((name, _, bits), (direct, loaded)) in rows.iter().zip(direct.iter().zip(&loaded)) {
                let (direct, loaded) = (direct & bits, loaded & bits);
                assert_eq!(direct, loaded, "{name} with GICv{version}, EL2: {el2}");
            }
        }
    }
}

/// The numbers that the payload has printed.
fn state(run: &Run, count: usize) -> Vec<u64> {
    assert_eq!(run.outcome, Outcome::PowerOff);
    let number = |line: &String| {
        u64::from_str_radix(line, 16)
            .ok()
            .filter(|_| line.len() == 16)
    };
    let numbers: Vec<_> = run.lines.iter().filter_map(number).collect();
    assert_eq!(numbers.len(), count, "{:?}", run.lines);
    numbers
}
