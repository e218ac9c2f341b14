//! `virt` machines as people make them, and the state in which a payload finds each.

use std::fs;

use bootshare_host::{Board, Machine, Outcome};

use crate::kernels::{Found, arm64_state};
use crate::lab::{Run, Server, empty_dir, machine, run};

use Found::{General, System, Word};

/// What is compared, and in which bits.
type Row = (&'static str, Found, u64);

/// The processor and its timer (booting.rst, section 4).
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
/// M, C and EE: MMU, data cache, big endian.
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

/// A payload that QEMU starts by itself and one that came by our reads, for which the processor
/// rested, find the processor, its timer and the interrupt controller in the same state.
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
            machine.fault = Some("delay=5ms@READ".parse().unwrap());
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

/// The numbers that the payload printed.
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
