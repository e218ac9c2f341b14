//! The share that the firmware boots: the kernel, and an initial RAM file system with our init, its
//! instructions, and the modules that it needs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Result, ensure};

use super::kernel::Kernel;
use super::{Job, ROOT_TAG};
use crate::board::{Board, Transport};
use crate::demo::Archive;
use crate::explain::Explain;
use crate::modules::Modules;

/// The remedy if the directory cannot be written.
const ROOM: &str = "point TMPDIR at a directory with room";

/// Writes the files that the firmware boots into `dir`.
pub(super) fn make(
    dir: &Path,
    job: &Job,
    kernel: &Kernel,
    modules: Option<&Modules>,
    board: Board,
) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, bytes).explain(format_args!("cannot write {}", path.display()), ROOM)
    };
    let needs = needs(job, board, kernel, modules)?;
    let mut inner = dir.to_owned();
    for part in ["", "loader", "entries"] {
        inner.push(part);
        // Never the temporary directory itself: a time limit may have removed it.
        fs::create_dir(&inner).explain(format_args!("cannot make {}", inner.display()), ROOM)?;
    }
    write("initrd.img", &archive(job, &needs)?)?;
    let entry = format!(
        "title {}\nlinux /kernel\ninitrd /initrd.img\noptions {}\n",
        kernel.version.as_deref().unwrap_or("kernel"),
        job.words(board)
    );
    write("loader/entries/run.conf", entry.as_bytes())?;
    kernel.copy(&dir.join("kernel")).explain(
        format_args!("cannot copy the kernel {}", kernel.path.display()),
        ROOM,
    )
}

/// The modules that every run needs, if the kernel has them.
fn needs(
    job: &Job,
    board: Board,
    kernel: &Kernel,
    modules: Option<&Modules>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let Some(modules) = modules else {
        // Everything is built in; otherwise the init reports what is missing.
        return Ok(Vec::new());
    };
    let bus = match board.transport() {
        Transport::Mmio => "virtio_mmio",
        Transport::Pci => "virtio_pci",
    };
    let mut names = vec![bus, "virtio_console", "virtiofs"];
    if !job.read_only {
        names.push("overlay");
    }
    modules.load(&names).explain(
        format_args!(
            "the kernel {} (version {}) cannot run commands",
            kernel.path.display(),
            kernel.version.as_deref().unwrap_or("unknown")
        ),
        "name another kernel with --kernel, or the directory of its modules with --modules",
    )
}

fn archive(job: &Job, modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["dev", "modules", "proc", "sys"] {
        archive.directory(dir)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, &job.init)?;
    let mut config = Config::default();
    for (name, bytes) in modules {
        archive.file(&format!("modules/{name}"), 0o644, bytes)?;
        config.field("module", name)?;
    }
    config.field("tag", ROOT_TAG)?;
    if job.read_only {
        config.field("read-only", "yes")?;
    }
    for (share, place) in &job.shares {
        config.field("share", format!("{}:{place}", share.tag))?;
    }
    if let Some(init) = &job.own_init {
        config.field("init", init)?;
    }
    for word in &job.command {
        config.field("argument", word)?;
    }
    for variable in &job.environment {
        config.field("variable", variable)?;
    }
    if let Some(user) = &job.user {
        config.field("user", user)?;
    }
    if let Some(directory) = &job.directory {
        config.field("directory", directory)?;
    }
    if job.terminal {
        config.field("terminal", "yes")?;
    }
    archive.file("config", 0o644, &config.0)?;
    archive.finish()
}

/// The init's instructions, in the format that it reads.
#[derive(Default)]
struct Config(Vec<u8>);

impl Config {
    fn field(&mut self, key: &str, value: impl AsRef<OsStr>) -> Result<()> {
        let value = value.as_ref().as_bytes();
        ensure!(!value.contains(&0), "a {key} holds a NUL byte");
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(0);
        Ok(())
    }
}
