//! Kernels that the host tool has unpacked.

use std::fs;
use std::path::{Path, PathBuf};

use bootshare_host::{Board, Machine, Outcome, prepare};

use crate::entries::gzip;
use crate::kernels::zboot_of;
use crate::lab::{Run, Server, demo_share, empty_dir, machine, run};

/// A machine whose kernels are prepared, with a cache of its own.
fn preparing(board: Board, share: &Path, options: &str) -> (Machine, PathBuf) {
    let cache = empty_dir(&format!("prepared-cache-{board:?}"));
    let mut machine = machine(board, Server::Embedded, share, options);
    machine.prepare = Some(Some(prepare::Cache::at(&cache)));
    (machine, cache)
}

/// The demo, whose kernel mounts the share once it runs.
fn boots(machine: &Machine) -> Run {
    let run = run(machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["demo: ", "mounted the share bootshare"]);
    run
}

/// Linux runs at a random address, another one each time, and has all levels of page tables that its
/// processor has.
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
    // Once in 27,000 times both are the same.
    assert_ne!(addresses[0], addresses[1]);
    // Who wants it to have no random address unpacks it in the guest.
    machine.append = "bootshare.on-error=exit -- nokaslr".into();
    machine.watch.expect = vec!["bootshare: starting".parse().unwrap()];
    let plain = run(&machine);
    let loaded = plain.line(&["bootshare: loaded /vmlinuz"]);
    assert!(!loaded.contains("prepared"), "{loaded}");
    // What was made is there for the next run, once.
    assert_eq!(fs::read_dir(cache).unwrap().count(), 1);
}

/// A kernel in an EFI program, as Debian has it.
pub(crate) fn of_arm64(board: Board) {
    let share = empty_dir(&format!("prepared-{board:?}"));
    for file in ["initrd.img", "cmdline"] {
        fs::copy(demo_share(board.arch()).join(file), share.join(file)).unwrap();
    }
    let raw = fs::read(demo_share(board.arch()).join("Image")).unwrap();
    fs::write(share.join("Image"), zboot_of(&gzip(&["-1c"], &raw), "gzip")).unwrap();
    let (machine, cache) = preparing(board, &share, "");
    let run = boots(&machine);
    let size = format!("loaded /Image, {} bytes in", raw.len());
    run.line(&["bootshare: ", &size, ", prepared"]);
    assert_eq!(fs::read_dir(cache).unwrap().count(), 1);
}
