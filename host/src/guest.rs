//! The guest's parts from Debian: a cloud kernel with its modules, and a static busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::board::Arch;
use crate::debian::{Packages, Release};

/// The directory of the parts of one architecture.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Their architecture.
    pub arch: Arch,
    root: PathBuf,
}

impl Parts {
    /// The parts in `cache`, which are downloaded if missing; of `release`, or of the machine's own
    /// release.
    ///
    /// # Errors
    /// The machine has no apt, or the download failed.
    pub fn fetch(arch: Arch, release: Option<Release>, cache: &Path) -> Result<Self> {
        let release = release.filter(|_| release != Release::of_this_machine());
        let root = cache.join(match release {
            None => arch.debian().to_owned(),
            Some(release) => format!("{}-{}", arch.debian(), release.name()),
        });
        let packages = Packages {
            arch,
            what: "cloud kernel and busybox",
            choose: |apt| {
                // Debian's cloud kernel, or else Ubuntu's, whose modules are in a package of their
                // own.
                let meta = format!("linux-image-cloud-{}", apt.arch.debian());
                let kernel = apt.dependency(&meta, "linux-image-").or_else(|error| {
                    apt.dependency("linux-image-virtual", "linux-image-")
                        .map_err(|_| error)
                })?;
                // From Debian 14 on, `package` is a metapackage that depends on these.
                let parts = ["linux-base-", "linux-binary-", "linux-modules-"]
                    .map(|part| apt.dependency(&kernel, part).ok());
                let busybox = "busybox-static".to_owned();
                Ok(parts
                    .into_iter()
                    .flatten()
                    .chain([kernel, busybox])
                    .collect())
            },
        };
        packages.fetch_of(release, &root)?;
        Ok(Self { arch, root })
    }

    /// The kernel image of the package.
    ///
    /// # Errors
    /// The package holds none.
    pub fn kernel(&self) -> Result<PathBuf> {
        let with_modules = self.modules()?.join("vmlinuz");
        if with_modules.is_file() {
            return Ok(with_modules);
        }
        // Until Debian 13.
        only_entry(&self.root.join("boot"), "vmlinuz-")
    }

    /// The directory of the kernel's modules.
    ///
    /// # Errors
    /// The package holds none.
    pub fn modules(&self) -> Result<PathBuf> {
        only_entry(&self.root.join("lib/modules"), "")
    }

    /// The static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
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
        .with_context(|| {
            format!(
                "no {prefix}* in {}: name another directory with --parts, or remove this one if \
                 it is an incomplete download",
                dir.display()
            )
        })
}
