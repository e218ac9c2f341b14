//! A whole tree of Debian 13, made by mmdebstrap and the packages' own scripts.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use bootshare_host::serve::Owner;
use bootshare_host::{Board, Outcome};

use crate::lab::{Server, machine, run};
use crate::shared::{QUICK, target};

/// The time limit: the whole of Debian starts, on a busy host.
const LIMIT: Duration = Duration::from_secs(1200);

/// The tree's name in host/distributions.sh, which makes it unless it exists.
const NAME: &str = "trixie-initramfs-links";

fn tree() -> PathBuf {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let mut script = Command::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/host/distributions.sh"
        ));
        let made = script.args(["make", NAME]).output().unwrap();
        assert!(
            made.status.success(),
            "host/distributions.sh could not make the tree {NAME}; `host/setup.sh test` installs \
             what it needs. It said:\n{}",
            String::from_utf8_lossy(&made.stderr)
        );
        target().join("distributions").join(NAME)
    };
    TREE.get_or_init(make).clone()
}

#[test]
fn debian_13_boots_unmodified_to_its_login_prompt() {
    // mmdebstrap runs the packages' programs: the tree is of this machine's architecture.
    let board = match cfg!(target_arch = "aarch64") {
        true => Board::Aarch64Virt,
        false => Board::X86_64Q35,
    };
    let serial = board.arch().serial();
    // Its kernel and initrd have conventional names only, so that the words for the kernel come
    // from the firmware's options, as `bootshare-host boot` gives them.
    // On a busy host, udev takes longer to find the serial port than systemd's 90 s, and without it
    // there is no login prompt.
    let options = format!(
        "bootshare.cmdline-default=console={serial} \
         bootshare.cmdline-default=\"root=bootshare rootfstype=virtiofs\" \
         bootshare.cmdline-default={QUICK} \
         bootshare.cmdline-default=systemd.default_device_timeout_sec={}",
        LIMIT.as_secs()
    );
    let mut machine = machine(board, Server::Embedded, &tree(), &options);
    // A tree that an ordinary user made belongs to that user.
    machine.owner = Owner::Root;
    machine.time_limit = Some(LIMIT);
    machine.watch.expect = vec!["login: ".parse().unwrap()];
    machine.watch.fail = ["Kernel panic", r"\(initramfs\)"]
        .map(|pattern| pattern.parse().unwrap())
        .to_vec();
    let run = run(&machine);
    assert_eq!(run.outcome, Outcome::Expected);
    run.line(&["bootshare: entry vmlinuz, by its conventional name"]);
    run.line(&["Debian GNU/Linux 13", serial]);
}
