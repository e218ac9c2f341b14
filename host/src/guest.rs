//! The guest's parts from Debian: a cloud kernel with its modules, and a static busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::board::Arch;
use crate::debian::Packages;

/// Where the parts of one architecture lie.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Their architecture.
    pub arch: Arch,
    root: PathBuf,
}

impl Parts {
    /// The parts under `cache`, downloaded now when they are not there yet.
    ///
    /// # Errors
    /// The machine has no apt, or the download failed.
    pub fn fetch(arch: Arch, cache: &Path) -> Result<Self> {
        let root = cache.join(arch.debian());
        let packages = Packages {
            arch,
            what: "cloud kernel and busybox",
            choose: |apt| {
                // Debian's packages for guests, or else Ubuntu's, where the modules are apart.
                let meta = format!("linux-image-cloud-{}", apt.arch.debian());
                let kernel = apt.dependency(&meta, "linux-image-").or_else(|error| {
                    apt.dependency("linux-image-virtual", "linux-image-")
                        .map_err(|_| error)
                })?;
                let modules = apt.dependency(&kernel, "linux-modules-").ok();
                let busybox = "busybox-static".to_owned();
                Ok(modules.into_iter().chain([kernel, busybox]).collect())
            },
        };
        packages.fetch(&root)?;
        Ok(Self { arch, root })
    }

    /// The kernel, as Debian packs it.
    ///
    /// # Errors
    /// The package holds none.
    pub fn kernel(&self) -> Result<PathBuf> {
        only_entry(&self.root.join("boot"), "vmlinuz-")
    }

    /// The directory of the kernel's modules.
    ///
    /// # Errors
    /// The package holds none.
    pub fn modules(&self) -> Result<PathBuf> {
        // Debian 13 has them under /usr.
        ["lib/modules", "usr/lib/modules"]
            .iter()
            .map(|dir| self.root.join(dir))
            .find(|dir| dir.is_dir())
            .with_context(|| format!("no kernel modules in {}: remove it", self.root.display()))
            .and_then(|dir| only_entry(&dir, ""))
    }

    /// The static busybox.
    ///
    /// # Errors
    /// The package holds none.
    pub fn busybox(&self) -> Result<PathBuf> {
        ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|path| self.root.join(path))
            .find(|path| path.is_file())
            .with_context(|| format!("no busybox in {}: remove it", self.root.display()))
    }
}

fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("no {prefix}* in {}: remove it and try again", dir.display()))
}
