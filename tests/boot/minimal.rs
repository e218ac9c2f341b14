//! The minimal firmware boots Linux by an entry and by conventional names, and refuses by name what it does not
//! support.

use std::path::Path;

use bootshare_host::{Board, Machine, Outcome};

use crate::entries::{expect_boot, share, words, write};
use crate::kernels::uki_of;
use crate::lab::{Server, machine, run};
use crate::shared::target;

fn minimal(board: Board, share: &Path, options: &str) -> Machine {
    let mut machine = machine(board, Server::Embedded, share, options);
    let name = format!("firmware/bootshare-minimal-{}.elf", board.arch().name());
    machine.firmware = target().join(name);
    machine
}

/// Boots by an entry, and by conventional names once the entry is gone.
pub(crate) fn boots(board: Board) {
    let share = share("minimal", board, "");
    let words = words(board, "minimal");
    let entry = format!("linux /linux\ninitrd /initrd\noptions {words}\n");
    write(&share, "loader/entries/a.conf", &entry);
    let run = expect_boot(&minimal(board, &share, "bootshare.log=debug"), "/linux");
    run.line(&["bootshare: debug: command line: ", &words]);

    std::fs::remove_dir_all(share.join("loader")).unwrap();
    std::fs::rename(share.join("linux"), share.join("vmlinuz")).unwrap();
    std::fs::rename(share.join("initrd"), share.join("initrd.img")).unwrap();
    write(&share, "cmdline", &words);
    expect_boot(&minimal(board, &share, ""), "/vmlinuz");
}

/// What it was built without is an error, and no other kernel is started in its place.
pub(crate) fn refuses_the_rest(board: Board) {
    let share = share("minimal-refuses", board, "");
    std::fs::rename(share.join("linux"), share.join("vmlinuz")).unwrap();
    let refused = |options: &str, parts: &[&str]| {
        let run = run(&minimal(board, &share, options));
        assert_eq!(run.outcome, Outcome::FirmwareExit(1));
        run.line(parts);
        assert!(run.lines.iter().all(|line| !line.contains("starting ")));
    };
    refused("bootshare.cmd=\"ls /\"", &["this firmware has no shell"]);
    write(
        &share,
        "extlinux/extlinux.conf",
        "label a\nlinux /vmlinuz\n",
    );
    let what = "this firmware was built without support for it";
    refused("", &["/extlinux/extlinux.conf: ", what]);
    std::fs::remove_dir_all(share.join("extlinux")).unwrap();
    std::fs::create_dir_all(share.join("EFI/Linux")).unwrap();
    let sections: &[(&str, &Path)] = &[(".linux", &share.join("vmlinuz"))];
    uki_of(board.arch(), sections, &share.join("EFI/Linux/a.efi"));
    refused("", &["/EFI/Linux/a.efi: ", what]);
}
