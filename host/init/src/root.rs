//! The root file system: the share, a writable layer in memory over it, and the usual mounts of a
//! system.

use std::env::set_current_dir;
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::config::Config;

/// The mount points of the share, of the overlay's upper layer, and of the overlay.
const LOWER: &str = "/lower";
const LAYER: &str = "/layer";
const ROOT: &str = "/root";

/// How often mounting a share is tried, every 10 ms, because its device may appear a little later.
const ATTEMPTS: u32 = 300;

/// Mounts the kernel's pseudo file systems.
pub fn mount_kernels() -> Result<()> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        put(kind, kind, place, MountFlags::NOSUID, "")?;
    }
    Ok(())
}

/// Mounts the root file system and makes it the root.
pub fn make(config: &Config) -> Result<()> {
    for dir in [LOWER, LAYER, ROOT] {
        fs::create_dir_all(dir)?;
    }
    if config.read_only {
        share(&config.tag, Path::new(ROOT))?;
    } else {
        share(&config.tag, Path::new(LOWER))?;
        layer()?;
    }
    set_current_dir(ROOT)?;
    // The mounts of the first root are hidden below the new one.
    mount_move(".", "/").context("cannot move the root")?;
    rustix::process::chroot(".").context("cannot change the root")?;
    set_current_dir("/")?;
    // The mounts below follow absolute symbolic links of the tree, so they come after chroot(2).
    mount_kernels()?;
    fittings()?;
    for (tag, place) in &config.shares {
        make_dir(place)?;
        share(tag, place)?;
    }
    // The host name matters only for prompts.
    let _ = rustix::system::sethostname(b"bootshare");
    Ok(())
}

/// Mounts a share as soon as its device exists.
fn share(tag: &str, place: &Path) -> Result<()> {
    let mut attempts = 0;
    loop {
        let mounted = mount(tag, place, "virtiofs", MountFlags::RDONLY, None);
        attempts += 1;
        match mounted {
            // No device has this tag.
            Err(Errno::INVAL) if attempts < ATTEMPTS => sleep(Duration::from_millis(10)),
            Err(Errno::NODEV) => {
                return Err(Errno::NODEV).with_context(|| {
                    format!("cannot mount the share {tag}: this kernel has no virtiofs")
                });
            }
            mounted => return mounted.with_context(|| format!("cannot mount the share {tag}")),
        }
    }
}

/// Mounts an overlay of the share and a file system in memory
/// (Documentation/filesystems/overlayfs.rst).
fn layer() -> Result<()> {
    put("tmpfs", "layer", LAYER, MountFlags::empty(), "mode=0755")?;
    let [upper, work] = ["upper", "work"].map(|name| format!("{LAYER}/{name}"));
    for dir in [&upper, &work] {
        fs::create_dir(dir)?;
    }
    let plain = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    // These options allow renaming directories of the share, and skip waiting for a disk. Older
    // kernels do not support them.
    let all = format!("{plain},redirect_dir=on,volatile");
    put("overlay", "root", ROOT, MountFlags::empty(), &all)
        .or_else(|_| put("overlay", "root", ROOT, MountFlags::empty(), &plain))
}

/// Mounts the other usual file systems, and creates the usual symbolic links in /dev.
fn fittings() -> Result<()> {
    for (to, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        match symlink(to, link) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {link}"));
            }
            _ => {}
        }
    }
    let hidden = MountFlags::NOSUID | MountFlags::NODEV;
    let terminals = "mode=0620,gid=5,ptmxmode=0666";
    put(
        "devpts",
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID,
        terminals,
    )?;
    put("tmpfs", "tmpfs", "/dev/shm", hidden, "mode=1777")?;
    put("tmpfs", "tmpfs", "/run", hidden, "mode=0755")?;
    put("tmpfs", "tmpfs", "/tmp", hidden, "mode=1777")?;
    // Commands can run in a kernel without control groups.
    let _ = put("cgroup2", "cgroup2", "/sys/fs/cgroup", hidden, "");
    Ok(())
}

/// Mounts a file system on a directory, which is made if it does not exist.
fn put(kind: &str, source: &str, place: &str, flags: MountFlags, options: &str) -> Result<()> {
    make_dir(Path::new(place))?;
    let options = CString::new(options)?;
    let data = (!options.is_empty()).then_some(options.as_c_str());
    mount(source, place, kind, flags, data)
        .with_context(|| format!("cannot mount {kind} on {place}"))
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir_all(path) {
        Err(_) if path.is_dir() => Ok(()),
        made => made.with_context(|| format!("cannot make the directory {}", path.display())),
    }
}
