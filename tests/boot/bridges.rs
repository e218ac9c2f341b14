//! virtio-fs devices below PCI bridges of all kinds. Either SeaBIOS or our firmware has numbered the
//! buses.

use std::fs;

use bootshare_host::{Board, Machine, Outcome, Share, demo};

use crate::lab::{Server, demo_share, empty_dir, machine, run};
use crate::linux;

/// PCI Express root ports as libvirt adds them, a switch, conventional PCI bridges below them, and other
/// devices.
const EXPRESS: &[&str] = &[
    "pcie-root-port,id=port1,chassis=1,addr=4.0,multifunction=on",
    "pcie-root-port,id=port2,chassis=2,addr=4.1",
    "pcie-root-port,id=port3,chassis=3,addr=4.2",
    "pcie-root-port,id=empty,chassis=4,addr=4.3",
    "x3130-upstream,id=up,bus=port2",
    "xio3130-downstream,id=down,chassis=5,bus=up",
    "xio3130-downstream,id=down2,chassis=6,bus=up",
    "pcie-pci-bridge,id=pci,bus=port3",
    "pci-bridge,id=pci2,chassis_nr=7,bus=pci,addr=3",
    "virtio-rng-pci,bus=down",
    "virtio-rng-pci,bus=pci2,addr=5",
    "virtio-rng-pci,addr=6.0,multifunction=on",
];

/// The virtio-fs devices: QEMU's option for the bus, and the resulting PCI address. The first is on the
/// innermost switch port.
const EXPRESS_DEVICES: &[(&str, &str)] = &[
    ("bus=down2", "05:00.0"),
    ("bus=port1", "01:00.0"),
    ("bus=pci,addr=7", "07:07.0"),
    ("bus=pci2,addr=4", "08:04.0"),
    ("addr=6.3", "00:06.3"),
];

/// The bridges for `pc`, which has conventional PCI only.
const CONVENTIONAL: &[&str] = &[
    "pci-bridge,id=outer,chassis_nr=1,addr=4",
    "pci-bridge,id=inner,chassis_nr=2,bus=outer,addr=3",
    "virtio-rng-pci,bus=inner,addr=5",
];
const CONVENTIONAL_DEVICES: &[(&str, &str)] = &[
    ("bus=inner,addr=4", "02:04.0"),
    ("bus=outer,addr=9", "01:09.0"),
];

/// Adds the board's bridges, and the list of places for virtio-fs devices. Shares take the first places.
fn wire(machine: &mut Machine) -> &'static [(&'static str, &'static str)] {
    let (bridges, devices) = match machine.board {
        Board::X86_64Pc => (CONVENTIONAL, CONVENTIONAL_DEVICES),
        _ => (EXPRESS, EXPRESS_DEVICES),
    };
    let args = bridges.iter().flat_map(|bridge| ["-device", bridge]);
    machine.qemu_args = args.map(Into::into).collect();
    let device = |(place, _): &(&str, &str)| format!("vhost-user-fs-pci,{place}");
    machine.devices = devices.iter().map(device).collect();
    devices
}

/// The firmware finds all devices at the expected addresses and reads files from them.
pub(crate) fn found(board: Board) {
    let share = empty_dir(&format!("bridges-{board:?}"));
    fs::write(share.join("file"), "content\n").unwrap();
    let mut machine = machine(board, Server::Embedded, &share, "");
    let devices = wire(&mut machine);
    let tags: Vec<_> = (0..devices.len())
        .map(|index| format!("t{index}"))
        .collect();
    machine.shares = tags.iter().map(|tag| Share::new(tag, &share)).collect();
    let mut commands = String::from("devices");
    // The firmware mounts at most four shares at once.
    for tag in tags.iter().take(4) {
        machine.append.push_str(&format!("bootshare.tag={tag} "));
        commands.push_str(&format!("; cat {tag}:/file"));
    }
    machine
        .append
        .push_str(&format!("bootshare.cmd=\"{commands}\""));
    let run = run(&machine);
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    for ((_, address), tag) in devices.iter().zip(&tags) {
        run.line(&[&format!("virtio-pci at {address}: tag {tag},")]);
    }
    let contents = run.output().into_iter().filter(|line| *line == "content");
    assert_eq!(contents.count(), tags.len().min(4));
}

/// Linux keeps the bus numbers and windows that it finds: the device has the same address, and every
/// BAR fits.
pub(crate) fn boots_linux(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::Embedded, share, linux::OPTIONS);
    machine.append.push_str(" loglevel=7");
    let devices = wire(&mut machine);
    machine.devices.truncate(1);
    let run = linux::expect_boot(&machine, share);
    run.line(&[&format!("pci 0000:{}: [1af4:105a]", devices[0].1)]);
    assert_eq!(run.find(&["[mem ", "can't assign"]), None);
    assert_eq!(run.find(&["bridge configuration invalid"]), None);
    run.line(&["mounted the share", demo::TAG]);
}

/// A second root bus, which a kernel can learn of only from ACPI.
pub(crate) fn second_root(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::Embedded, share, linux::OPTIONS);
    machine.append.push_str(" loglevel=7");
    let bridges = [
        "pxb-pcie,id=root,bus_nr=64",
        "pcie-root-port,id=port1,bus=root",
    ];
    let args = bridges.iter().flat_map(|bridge| ["-device", bridge]);
    machine.qemu_args = args.map(Into::into).collect();
    machine.devices = vec!["vhost-user-fs-pci,bus=port1".into()];
    let run = linux::expect_boot(&machine, share);
    run.line(&["pci 0000:41:00.0: [1af4:105a]"]);
}
