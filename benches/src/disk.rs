//! A disk image for comparison: the same kernel and initrd in an ext2 partition, loaded by GRUB under
//! QEMU's own BIOS.

use crate::{machines, share::Shares};
use anyhow::{Context, Result, ensure};
use bootshare_host::{Arch, Board, Machine, debian::Packages, demo::PARTS};
use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Its name in tables.
pub const NAME: &str = "disk image, GRUB";

/// The board that boots from the disk.
pub const BOARD: Board = Board::X86_64Q35;

/// QEMU's BIOS in Debian.
const BIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// mke2fs in Debian, which is not in every user's PATH.
const MKE2FS: &str = "/usr/sbin/mke2fs";

/// The start of the partition in MiB: after GRUB.
const START_MIB: u64 = 1;

/// The space in MiB that the file system needs in addition to the files.
const SLACK_MIB: u64 = 32;

/// The number of sectors in a MiB.
const SECTORS: u64 = (1 << 20) / 512;

/// The GRUB modules that are needed to boot from the partition.
const MODULES: [&str; 5] = ["biosdisk", "part_msdos", "ext2", "linux", "serial"];

/// A machine that boots the kernel and initrds of the entry `id` from a disk.
pub fn machine(shares: &Shares, id: &str) -> Result<Machine> {
    let image = image(shares, id)?;
    let mut machine = Machine::new(BOARD, BIOS);
    machine.is_rom = true;
    machine.time_limit = Some(machines::LIMIT);
    let mut drive = OsString::from("if=none,id=disk,format=raw,readonly=on,file=");
    drive.push(image);
    machine.qemu_args = vec![
        "-drive".into(),
        drive,
        "-device".into(),
        "virtio-blk-pci,drive=disk".into(),
    ];
    Ok(machine)
}

/// The image; made if it does not exist yet.
fn image(shares: &Shares, id: &str) -> Result<PathBuf> {
    let share = shares.dir(Arch::X86_64);
    let image = share.with_file_name(format!("disk-{id}.img"));
    if image.exists() {
        return Ok(image);
    }
    let dir = share.with_file_name("disk-unfinished");
    fs::create_dir_all(&dir)?;
    let initrd = shares.joined_initrd(Arch::X86_64, id)?;
    let mut bytes = fs::copy(share.join("vmlinuz"), dir.join("vmlinuz"))?;
    bytes += fs::copy(initrd, dir.join("initrd.img"))?;

    let mib = bytes.div_ceil(1 << 20) + SLACK_MIB;
    let work = image.with_extension("unfinished");
    File::create(&work)?.set_len((START_MIB + mib) << 20)?;
    let offset = format!("offset={}", START_MIB << 20);
    let mut mke2fs = Command::new(MKE2FS);
    mke2fs.args(["-q", "-t", "ext2", "-m", "0", "-T", "largefile", "-E"]);
    mke2fs.arg(&offset).arg("-d").arg(&dir).arg(&work);
    run(mke2fs.arg(format!("{}k", mib << 10)), "e2fsprogs")?;

    let [boot, core] = grub(&shares.options(Arch::X86_64, id)?, &dir)?;
    let file = File::options().write(true).open(&work)?;
    file.write_all_at(&boot_sector(&boot, mib)?, 0)?;
    file.write_all_at(&core, 512)?;
    fs::rename(&work, &image)?;
    fs::remove_dir_all(&dir)?;
    Ok(image)
}

/// GRUB's first sector, with a partition table of one partition.
fn boot_sector(boot: &[u8], mib: u64) -> Result<[u8; 512]> {
    let mut sector: [u8; 512] = boot.try_into().context("GRUB's boot.img is one sector")?;
    sector[446..510].fill(0);
    // Active, first sector in CHS (0, 2, 0), type Linux, last sector beyond the range of CHS.
    sector[446..454].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 0xff, 0xff, 0xff]);
    for (at, value) in [(454, START_MIB), (458, mib)] {
        let sectors = u32::try_from(value * SECTORS).context("a disk below 2 TiB")?;
        sector[at..at + 4].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// GRUB's first sector, and its core image, which boots the kernel with these options.
fn grub(options: &str, dir: &Path) -> Result<[Vec<u8>; 2]> {
    let parts = Path::new(PARTS);
    let modules = Packages {
        arch: Arch::X86_64,
        what: "GRUB",
        choose: |_| Ok(vec!["grub-pc-bin".to_owned()]),
    };
    let tools = Packages {
        arch: Board::of_this_machine().arch(),
        what: "tools of GRUB's",
        choose: |_| {
            Ok(["grub-common", "libdevmapper1.02.1"]
                .map(str::to_owned)
                .into())
        },
    };
    let root = parts.join("grub-modules");
    modules.fetch(&root)?;
    let tools_root = parts.join("grub-tools");
    tools.fetch(&tools_root)?;

    let config = dir.join("grub.cfg");
    let text = format!(
        "serial --unit=0\nterminal_output serial\nset root=(hd0,msdos1)\n\
         linux /vmlinuz {options}\ninitrd /initrd.img\nboot\n"
    );
    fs::write(&config, text)?;
    let modules = root.join("usr/lib/grub/i386-pc");
    let core = dir.join("core.img");
    let mut mkimage = Command::new(tools_root.join("usr/bin/grub-mkimage"));
    // In Debian 12 the libraries are in /lib.
    let libraries = ["lib", "usr/lib"].map(|lib| {
        let arch = tools.arch.name();
        tools_root.join(format!("{lib}/{arch}-linux-gnu"))
    });
    mkimage.env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?);
    mkimage.args(["-O", "i386-pc", "-p", "/", "-d"]);
    mkimage.arg(&modules).arg("-c").arg(&config);
    run(
        mkimage.arg("-o").arg(&core).args(MODULES),
        "a Debian system",
    )?;
    Ok([fs::read(modules.join("boot.img"))?, fs::read(core)?])
}

/// Runs a program of the Debian package `package`.
fn run(command: &mut Command, package: &str) -> Result<()> {
    let output = command.output().with_context(|| {
        let program = command.get_program().display();
        format!("cannot run {program}: this needs {package}")
    })?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_table_has_one_entry_behind_grub() {
        let sector = boot_sector(&[0xaa; 512], 3).unwrap();
        assert_eq!(sector[445], 0xaa);
        assert_eq!(sector[446], 0x80);
        assert_eq!(sector[454..462], [0, 8, 0, 0, 0, 24, 0, 0]);
        assert_eq!(sector[462..510], [0; 48]);
        assert!(boot_sector(&[0; 511], 3).is_err());
    }
}
