//! The root file system: the share, a layer over it that takes what is written, and what a system
//! expects to be mounted in it.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::config::Config;

/// Where the share, the layer over it and both together are mounted.
const LOWER: &str = "/lower";
const LAYER: &str = "/layer";
const ROOT: &str = "/root";

/// How often a share is looked for, in pauses of 10 ms: its device may be found a moment later.
const ATTEMPTS: u32 = 300;

/// Mounts what the kernel shows of itself.
pub fn mount_kernels(root: &str) -> Result<()> {
    let root = Path::new(root);
    for (kind, dir) in [("devtmpfs", "dev"), ("proc", "proc"), ("sysfs", "sys")] {
        make_dir(&root.join(dir))?;
        put(kind, kind, &root.join(dir), MountFlags::NOSUID, "")?;
    }
    Ok(())
}

/// Makes the root file system, and makes it the root.
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
    mount_kernels(ROOT)?;
    let root = Path::new(ROOT);
    fittings(root)?;
    for (tag, place) in &config.shares {
        let place = root.join(place.strip_prefix("/").unwrap_or(place));
        make_dir(&place)?;
        share(tag, &place)?;
    }
    std::env::set_current_dir(root)?;
    // The kernel's own mounts of the first root are out of sight below the new one.
    mount_move(".", "/").context("cannot move the root")?;
    rustix::process::chroot(".").context("cannot change the root")?;
    std::env::set_current_dir("/")?;
    // The name matters to nothing but prompts.
    let _ = rustix::system::sethostname(b"bootshare");
    Ok(())
}

/// Mounts a share, as soon as its device is there.
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

/// Lays a file system in memory over the share (Documentation/filesystems/overlayfs.rst).
fn layer() -> Result<()> {
    put(
        "tmpfs",
        "layer",
        Path::new(LAYER),
        MountFlags::empty(),
        "mode=0755",
    )?;
    let [upper, work] = ["upper", "work"].map(|name| Path::new(LAYER).join(name));
    for dir in [&upper, &work] {
        fs::create_dir(dir)?;
    }
    let plain = format!(
        "lowerdir={LOWER},upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    // Directories of the share can be renamed, and nothing waits for a disk. Older kernels know
    // neither.
    let all = [format!("{plain},redirect_dir=on,volatile"), plain];
    let mut result = Ok(());
    for options in all {
        result = put(
            "overlay",
            "root",
            Path::new(ROOT),
            MountFlags::empty(),
            &options,
        );
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Mounts what a system expects besides, and puts the usual links into /dev.
fn fittings(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    for (to, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        match symlink(to, dev.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make /dev/{name}"));
            }
            _ => {}
        }
    }
    let hidden = MountFlags::NOSUID | MountFlags::NODEV;
    for (kind, dir, flags, options) in [
        (
            "devpts",
            "dev/pts",
            MountFlags::NOSUID,
            "mode=0620,gid=5,ptmxmode=0666",
        ),
        ("tmpfs", "dev/shm", hidden, "mode=1777"),
        ("tmpfs", "run", hidden, "mode=0755"),
        ("tmpfs", "tmp", hidden, "mode=1777"),
    ] {
        let place = root.join(dir);
        make_dir(&place)?;
        put(kind, kind, &place, flags, options)?;
    }
    // A kernel without control groups runs commands all the same.
    let _ = put(
        "cgroup2",
        "cgroup2",
        &root.join("sys/fs/cgroup"),
        hidden,
        "",
    );
    Ok(())
}

fn put(kind: &str, source: &str, place: &Path, flags: MountFlags, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    let data = (!options.is_empty()).then_some(options.as_c_str());
    mount(source, place, kind, flags, data)
        .with_context(|| format!("cannot mount {kind} on {}", seen(place)))
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir_all(path) {
        Err(_) if path.is_dir() => Ok(()),
        made => made.with_context(|| format!("cannot make the directory {}", seen(path))),
    }
}

/// A path as the command will see it.
fn seen(path: &Path) -> String {
    let inside = path.as_os_str().as_bytes();
    let inside = inside.strip_prefix(ROOT.as_bytes()).unwrap_or(inside);
    String::from_utf8_lossy(inside).into_owned()
}
