//! EFI beside us: edk2 from Debian's packages reads the same share with its own virtio-fs driver.
//!
//! Its boot manager starts `\EFI\BOOT\BOOTX64.EFI` by itself. That is systemd-boot, which reads the
//! very entries that we read; the kernel's EFI stub takes the initrd from there.

use crate::{machines, share::Shares};
use anyhow::{Context, Result};
use bootshare_host::{
    Arch, Board, Machine,
    debian::Packages,
    demo::{PARTS, TAG},
};
use std::{fs, path::Path};

/// What it is called in tables.
pub const NAME: &str = "edk2, systemd-boot";

/// The boards that Debian has it for. By virtio-mmio its driver fails in reads of large files with
/// "Device Error", with virtiofsd as well (seen with edk2 2022.11), so that on `virt` it is by PCI.
pub const BOARDS: [Board; 2] = [Board::X86_64Q35, Board::Aarch64VirtPci];

/// A machine that boots the entry `id` of its architecture's share.
pub fn machine(shares: &Shares, board: Board, id: &str) -> Result<Machine> {
    let arch = board.arch();
    let packages = Packages {
        arch,
        what: "EFI firmware",
        choose: |apt| {
            let firmware = match apt.arch {
                Arch::X86_64 => "ovmf",
                Arch::Aarch64 => "qemu-efi-aarch64",
            };
            Ok(vec![firmware.to_owned(), "systemd-boot-efi".to_owned()])
        },
    };
    let root = Path::new(PARTS).join(format!("efi-{}", arch.debian()));
    packages.fetch(&root)?;
    let (firmware, loader, started) = match arch {
        Arch::X86_64 => ("ovmf/OVMF.fd", "systemd-bootx64.efi", "BOOTX64.EFI"),
        Arch::Aarch64 => (
            "qemu-efi-aarch64/QEMU_EFI.fd",
            "systemd-bootaa64.efi",
            "BOOTAA64.EFI",
        ),
    };

    // A directory of its own covers the share: it says which entry.
    let dir = shares.dir(arch);
    let cover = dir.with_file_name(format!("efi-{}-{id}", arch.name()));
    let boot = cover.join("EFI/BOOT");
    fs::create_dir_all(&boot)?;
    fs::create_dir_all(cover.join("loader"))?;
    let loader = root.join("usr/lib/systemd/boot/efi").join(loader);
    fs::copy(&loader, boot.join(started))
        .with_context(|| format!("no {}: remove {}", loader.display(), root.display()))?;
    let config = format!("timeout 0\ndefault {id}.conf\n");
    fs::write(cover.join("loader/loader.conf"), config)?;

    let mut machine = Machine::new(board, root.join("usr/share").join(firmware));
    machine.is_rom = true;
    machines::share(&mut machine, shares);
    machine.shares = vec![bootshare_host::Share {
        tag: TAG.into(),
        dirs: vec![cover, dir],
    }];
    Ok(machine)
}
