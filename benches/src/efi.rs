//! EFI for comparison: edk2 from Debian's packages reads the same share with its own virtio-fs driver.
//!
//! Its boot manager starts `\EFI\BOOT\BOOTX64.EFI`, here systemd-boot, which reads the same boot entries
//! as our firmware. The kernel's EFI stub loads the initrd.

use crate::{machines, share::Shares};
use anyhow::{Context, Result};
use bootshare_host::{
    Arch, Board, Machine,
    debian::Packages,
    demo::{PARTS, TAG},
};
use std::{fs, path::Path};

/// Its name in tables.
pub const NAME: &str = "edk2, systemd-boot";

/// The boards for which Debian has EFI firmware. With virtio-mmio its driver fails to read large files
/// ("Device Error"), also from virtiofsd (seen with edk2 2022.11), so `virt` has the device on PCI.
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

    // A layer above the share has a loader.conf that selects the entry.
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
