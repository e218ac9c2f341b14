//! What the boot tests share with the host tool's tests (`host/tests/run`): the servers, the demo's parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootshare_host::debian::Release;
use bootshare_host::guest::Parts;
use bootshare_host::{Arch, demo, unpacked};

/// The time limit of one run: enough for a busy host without KVM.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// A word for Linux, which then leaves out its self-tests of ciphers: a sixth of the time to user space.
pub(crate) const QUICK: &str = "cryptomgr.notests";

/// The directory `target` of the workspace.
pub(crate) fn target() -> PathBuf {
    let mut dirs = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = dirs.find(|dir| dir.join("Cargo.lock").is_file());
    root.expect("the workspace has a Cargo.lock").join("target")
}

/// QEMU 7.2's virtiofsd in C: this machine's own, or else Debian 12's.
pub(crate) fn c_server() -> PathBuf {
    let path = unpacked::c_virtiofsd(&target().join("qemu"));
    path.unwrap_or_else(|error| panic!("{error:#}"))
}

/// virtiofsd in Rust, built by `host/setup.sh test`.
pub(crate) fn rust_server() -> PathBuf {
    let path = target().join("virtiofsd/bin/virtiofsd");
    let shown = path.display();
    assert!(
        path.is_file(),
        "{shown} is missing: run `host/setup.sh test`"
    );
    path
}

/// The kernel of `release`, or else of this machine's Debian release, and the other parts of the demo.
pub(crate) fn parts(arch: Arch, release: Option<Release>) -> Parts {
    let parts = Parts::fetch(arch, release, &target().join("guest"));
    parts.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Makes the demo in `dir`, with [`QUICK`] on its command line.
pub(crate) fn make_demo(parts: &Parts, dir: &Path) {
    demo::make(parts, dir, true).unwrap_or_else(|error| panic!("{error:#}"));
    let path = dir.join("cmdline");
    let words = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{} {QUICK}\n", words.trim_end())).unwrap();
}
