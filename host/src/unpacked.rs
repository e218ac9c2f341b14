//! QEMU of a Debian release, unpacked beside the machine's own and run from there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::board::{Arch, Board};
use crate::debian::{Packages, ROOM, Release};
use crate::explain::Explain;

/// The script that starts a program. Each program has a copy of it under its own name.
const START: &str = include_str!("unpacked.sh");

/// The directory of programs that run QEMU of `release`, downloaded now when it is not in `cache`
/// yet: `qemu-system-x86_64`, `qemu-system-aarch64` and, of Debian 12 only, `virtiofsd`.
///
/// # Errors
/// The machine has no apt, or the download failed.
pub fn fetch(release: Release, cache: &Path) -> Result<PathBuf> {
    let tree = cache.join(release.name());
    let packages = Packages {
        arch: Board::of_this_machine().arch(),
        what: "QEMU",
        choose: |apt| apt.closure(&["qemu-system-x86", "qemu-system-arm"]),
    };
    packages.fetch_of(Some(release), &tree)?;
    let systems = Arch::ALL.map(|arch| format!("qemu-system-{}", arch.name()));
    for name in systems.iter().map(String::as_str) {
        start(&tree, name)?;
    }
    if tree.join("usr/lib/qemu/virtiofsd").is_file() {
        start(&tree, "virtiofsd")?;
    }
    // An absolute path stays valid if a program changes its working directory.
    fs::canonicalize(&tree).with_context(|| format!("cannot find {}", tree.display()))
}

/// QEMU's C virtiofsd, which went with QEMU 8.0: the machine's own, or Debian 12's.
///
/// # Errors
/// As [`fetch`].
pub fn c_virtiofsd(cache: &Path) -> Result<PathBuf> {
    let own = Path::new("/usr/lib/qemu/virtiofsd");
    if own.is_file() {
        return Ok(own.to_owned());
    }
    Ok(fetch(Release::Bookworm, cache)?.join("virtiofsd"))
}

/// Adds the script that starts `name` to `tree`, unless it exists.
fn start(tree: &Path, name: &str) -> Result<()> {
    let path = tree.join(name);
    if let Ok(found) = fs::read(&path) {
        if found == START.as_bytes() {
            return Ok(());
        }
        // An earlier version of the script is replaced.
        let is_script = String::from_utf8_lossy(&found).contains("of the unpacked packages");
        ensure!(
            is_script,
            "{} exists and is not from this program: name another directory with --cache",
            path.display()
        );
    }
    // Written under another name and renamed: another process may be about to run it.
    let write = || -> Result<()> {
        let file = tempfile::NamedTempFile::new_in(tree)?;
        fs::write(file.path(), START)?;
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o755))?;
        file.persist(&path)?;
        Ok(())
    };
    write().explain(format_args!("cannot write {}", path.display()), ROOM)
}
