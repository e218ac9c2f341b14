//! Checks at the start that this machine has the memory and the disk space that a run needs.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path};

/// Free memory in MiB: for a guest that reads 1 GiB into its memory, and for the file in the page cache.
const MEMORY_MIB: u64 = 4 << 10;

/// Free disk space in MiB: for the large files of both architectures, and for disk images.
const DISK_MIB: u64 = 6 << 10;

/// Fails if there is too little of one. The files are made in `dir`.
pub fn check(dir: &Path) -> Result<()> {
    let memory = free_memory_mib()?;
    ensure!(
        memory >= MEMORY_MIB,
        "{memory} MiB of memory are free and {MEMORY_MIB} are needed: end something first"
    );
    let space = rustix::fs::statvfs(dir)
        .with_context(|| format!("cannot tell what is free in {}", dir.display()))?;
    let space = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    ensure!(
        space >= DISK_MIB || dir.join("share").is_dir(),
        "{space} MiB are free in {} and {DISK_MIB} are needed: make room, or name another \
         directory with --out",
        dir.display()
    );
    Ok(())
}

fn free_memory_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.context("no MemAvailable in /proc/meminfo")?.parse()?;
    Ok(kib >> 10)
}
