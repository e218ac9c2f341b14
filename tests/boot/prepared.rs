//! Kernels that the host tool has decompressed.

use std::fs;
use std::path::{Path, PathBuf};

use bootshare_host::{Board, Machine, Outcome, prepare};

use crate::entries::gzip;
use crate::kernels::{filtered, zboot_of};
use crate::lab::{Run, Server, demo_share, empty_dir, machine, run};

/// A machine whose kernels are prepared in a cache of its own.
fn preparing(board: Board, share: &Path, options: &str) -> (Machine, PathBuf) {
    let cache = empty_dir(&format!("prepared-cache-{board:?}"));
    let mut machine = machine(board, Server::Embedded, share, options);
    machine.prepare = Some(Some(prepare::Cache::at(&cache)));
    (machine, cache)
}

/// Boots the demo and checks that its kernel mounts the share.
fn boots(machine: &Machine) -> Run {
    let run = run(machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["demo: ", "mounted the share bootshare"]);
    run
}

/// Linux runs at a random address, which differs between boots, and uses as many levels of page tables as
/// its processor supports.
pub(crate) fn at_a_random_address(board: Board) {
    let share = empty_dir(&format!("prepared-{board:?}"));
    for file in ["vmlinuz", "initrd.img", "cmdline"] {
        fs::copy(demo_share(board.arch()).join(file), share.join(file)).unwrap();
    }
    let script = "grep ' _text$' /proc/kallsyms\ngrep 'Kernel code' /proc/iomem\n\
                  grep -o -w -m1 la57 /proc/cpuinfo\n";
    fs::write(share.join("script"), script).unwrap();
    let (mut machine, cache) = preparing(board, &share, "-- demo.run=/script");
    machine.qemu_args = ["-cpu", "qemu64,+la57"].map(Into::into).into();
    let addresses = [0, 1].map(|_| {
        let run = boots(&machine);
        run.line(&["bootshare: loaded /vmlinuz", ", prepared"]);
        assert!(run.lines.iter().any(|line| line == "la57"));
        [&["T _text"], &["Kernel code"]].map(|parts| run.line(parts).to_owned())
    });
    // By chance both are equal once in 27,000 runs.
    assert_ne!(addresses[0], addresses[1]);
    // With `nokaslr` the kernel is decompressed in the guest.
    machine.append = "bootshare.on-error=exit -- nokaslr".into();
    machine.watch.expect = vec!["bootshare: starting".parse().unwrap()];
    let plain = run(&machine);
    let loaded = plain.line(&["bootshare: loaded /vmlinuz"]);
    assert!(!loaded.contains("prepared"), "{loaded}");
    // The cache holds one prepared kernel, for the next run.
    assert_eq!(kernels_in(&cache), 1);
}

/// The server loses a READ of the kernel, and the firmware resumes the share: the rest must be of the same
/// preparation, since each one is for another address.
pub(crate) fn after_a_lost_reply(board: Board) {
    let share = demo_share(board.arch());
    let (mut machine, _) = preparing(board, share, "bootshare.deadline=10");
    machine.fault = Some("drop=READ:9".parse().unwrap());
    let run = boots(&machine);
    run.line(&["bootshare: share bootshare: resumed"]);
    run.line(&["bootshare: loaded /vmlinuz", ", prepared"]);
}

/// A kernel in an EFI zboot image, as Debian packages it, and in formats that the firmware does not decompress.
pub(crate) fn of_arm64(board: Board) {
    let share = empty_dir(&format!("prepared-{board:?}"));
    for file in ["initrd.img", "cmdline"] {
        fs::copy(demo_share(board.arch()).join(file), share.join(file)).unwrap();
    }
    let raw = fs::read(demo_share(board.arch()).join("Image")).unwrap();
    let size = format!("loaded /Image, {} bytes in", raw.len());
    let put = |file: &[u8]| fs::write(share.join("Image"), file).unwrap();
    put(&zboot_of(&gzip(&["-1c"], &raw), "gzip"));
    let (mut machine, cache) = preparing(board, &share, "");
    boots(&machine).line(&["bootshare: ", &size, ", prepared"]);
    machine.watch.expect = vec!["bootshare: starting".parse().unwrap()];
    for file in [
        filtered("xz", &["-0c"], &raw),
        zboot_of(&filtered("lz4", &["-lc"], &raw), "lz4"),
    ] {
        put(&file);
        run(&machine).line(&["bootshare: ", &size, ", prepared"]);
    }
    assert_eq!(kernels_in(&cache), 3);
    // Damaged data: the host names the reason, and the firmware refuses the kernel.
    put(&filtered("xz", &["-0c"], &raw)[..1 << 20]);
    machine.append = "bootshare.on-error=exit".into();
    let refused = run(&machine);
    refused.line(&["bootshare: error: /Image: it is compressed with xz", "unxz"]);
    assert_eq!(kernels_in(&cache), 3);
}

/// The number of prepared kernels in a cache. The cache also has small files, which record the prepared
/// kernel of each unchanged file.
fn kernels_in(cache: &Path) -> usize {
    let sizes = fs::read_dir(cache)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len());
    sizes.filter(|&size| size > 1 << 20).count()
}
