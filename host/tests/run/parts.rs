//! What the tests of runs share.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use bootshare_host::guest::Parts;
use bootshare_host::{Arch, demo, unpacked};

/// Long enough for a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn c_server() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = unpacked::c_virtiofsd(&target().join("qemu")).unwrap();
        path.into_os_string().into_string().unwrap()
    })
}

pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}

pub(crate) fn rust_server() -> PathBuf {
    let path = target().join("virtiofsd/bin/virtiofsd");
    assert!(
        path.is_file(),
        "{} is missing: run host/setup.sh test",
        path.display()
    );
    path
}

/// The demo share, made once a process.
pub(crate) fn demo_share(arch: Arch) -> PathBuf {
    static MADE: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    MADE[usize::from(arch == Arch::Aarch64)]
        .get_or_init(|| {
            let parts = Parts::fetch(arch, None, &target().join("guest")).unwrap();
            let dir = target().join("host-tests").join(arch.name());
            demo::make(&parts, &dir).unwrap();
            dir
        })
        .clone()
}

/// Copies a program. Not by ourselves: while another test starts a process, that process has our
/// descriptor for writing too, and a program that is open for writing cannot be run.
pub(crate) fn install(from: &Path, to: &Path) {
    let mut command = Command::new("install");
    let status = command.args(["-m", "755"]).arg(from).arg(to).status();
    assert!(status.unwrap().success(), "cannot copy {}", from.display());
}
