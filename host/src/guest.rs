//! The guest's parts from Debian: a cloud kernel with its modules, and a static busybox.
//!
//! They come through the machine's own apt sources, but with a private apt state: neither the
//! machine's package lists nor its dpkg architectures change, and root is not needed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use crate::board::Arch;

/// How often a download is tried.
const ATTEMPTS: u32 = 3;

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
        if !root.is_dir() {
            fs::create_dir_all(cache)
                .with_context(|| format!("cannot make the directory {}", cache.display()))?;
            eprintln!(
                "bootshare-host: fetching Debian's {} cloud kernel and busybox into {}",
                arch.debian(),
                root.display()
            );
            // Drawn on terminals only.
            let progress = ProgressBar::new_spinner();
            progress.enable_steady_tick(Duration::from_millis(100));
            // Renamed as the last step: a directory of this name is complete.
            let work = tempfile::Builder::new()
                .prefix(arch.debian())
                .tempdir_in(cache)
                .with_context(|| format!("cannot write to {}", cache.display()))?;
            let tree = Apt::new(arch, work.path(), &progress)?.fetch()?;
            progress.finish_and_clear();
            fs::rename(&tree, &root)
                .with_context(|| format!("cannot move the parts to {}", root.display()))?;
        }
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

/// A private apt under one directory.
struct Apt<'a> {
    arch: Arch,
    dir: &'a Path,
    config: PathBuf,
    progress: &'a ProgressBar,
}

impl<'a> Apt<'a> {
    fn new(arch: Arch, dir: &'a Path, progress: &'a ProgressBar) -> Result<Self> {
        let dir_text = fs::canonicalize(dir)?.display().to_string();
        ensure!(
            !dir_text.contains(['"', '\n']),
            "apt cannot use a directory with a quotation mark in its name: {dir_text}"
        );
        let debian = arch.debian();
        for sub in ["state/lists/partial", "cache/archives/partial", "tree"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        // The machine's hooks act on its own lists, as root. As root apt would download as the
        // user `_apt`, who may not write here, and warn.
        let config = format!(
            r#"#clear APT::Update;
#clear APT::Architectures;
APT::Architecture "{debian}";
APT::Architectures {{ "{debian}"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{dir_text}/state";
Dir::State::status "{dir_text}/status";
Dir::Cache "{dir_text}/cache";
"#
        );
        let path = dir.join("apt.conf");
        fs::write(&path, config)?;
        Ok(Self {
            arch,
            dir,
            config: path,
            progress,
        })
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut child = Command::new(program)
            .arg("-c")
            .arg(fs::canonicalize(&self.config)?)
            // To standard output, among the rest.
            .args(["-o", "APT::Status-Fd=1"])
            .args(args)
            .current_dir(self.dir.join("tree"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A file, not a pipe that could fill while the other is read.
            .stderr(fs::File::create(self.dir.join("stderr"))?)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot run {program}: the demo's kernel and busybox are Debian packages; on \
                     another system boot a directory of your own"
                )
            })?;
        let mut stdout = Vec::new();
        let mut lines = BufReader::new(child.stdout.take().context("apt has no output")?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            if let Some(percent) = percent(&line) {
                self.progress
                    .set_message(format!("downloading, {percent} %"));
            } else {
                stdout.extend_from_slice(&line);
            }
            line.clear();
        }
        Ok(Output {
            status: child.wait()?,
            stdout,
            stderr: fs::read(self.dir.join("stderr"))?,
        })
    }

    /// Downloads and unpacks; returns the directory that holds the files.
    fn fetch(&self) -> Result<PathBuf> {
        let mut trouble = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.download() {
                Ok(()) => return self.unpack(),
                Err(error) => trouble = format!("{error:#}"),
            }
            if attempt < ATTEMPTS {
                std::thread::sleep(Duration::from_secs(u64::from(attempt) * 2));
            }
        }
        bail!(
            "cannot download Debian's {} packages, tried {ATTEMPTS} times: {trouble}\n\
             Check the network and apt's sources (does `apt-get update` work?), then try again",
            self.arch.debian()
        )
    }

    fn download(&self) -> Result<()> {
        // A source that has nothing for this architecture makes this fail; what counts is whether
        // the packages are found.
        self.progress.set_message("reading the package lists");
        let update = self.run("apt-get", &["-q", "update"])?;
        let meta = format!("linux-image-cloud-{}", self.arch.debian());
        let show = self.run("apt-cache", &["show", "--no-all-versions", &meta])?;
        let text = String::from_utf8_lossy(&show.stdout);
        let kernel = text
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .and_then(|depends| {
                depends
                    .split([' ', ','])
                    .find(|w| w.starts_with("linux-image-"))
            })
            .with_context(|| format!("apt knows no {meta}: {}", complaints(&update)))?;
        let download = self.run("apt-get", &["-q", "download", kernel, "busybox-static"])?;
        ensure!(download.status.success(), "{}", complaints(&download));
        Ok(())
    }

    fn unpack(&self) -> Result<PathBuf> {
        self.progress.set_message("unpacking");
        let tree = self.dir.join("tree");
        for entry in fs::read_dir(&tree)? {
            let deb = entry?.path();
            if deb.extension().is_none_or(|extension| extension != "deb") {
                continue;
            }
            let output = Command::new("dpkg-deb")
                .arg("-x")
                .arg(&deb)
                .arg(&tree)
                .output()
                .context("dpkg-deb")?;
            ensure!(
                output.status.success(),
                "cannot unpack: {}",
                complaints(&output)
            );
            fs::remove_file(&deb)?;
        }
        Ok(tree)
    }
}

/// How far a download is, in a line of apt's `Status-Fd`: "dlstatus:FILE:PERCENT:TEXT".
fn percent(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line.strip_prefix(b"dlstatus:")?).ok()?;
    text.split(':').nth(1)?.split('.').next()?.parse().ok()
}

/// What a failed command had to say, on one line.
fn complaints(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        output.status.to_string()
    } else {
        lines.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_what_apt_says_otherwise() {
        let line = b"dlstatus:1:42.1500:Retrieving file 1 of 2\n";
        assert_eq!(percent(line), Some(42));
        assert_eq!(
            percent(b"Get:1 http://deb.debian.org/debian bookworm/main\n"),
            None
        );
    }
}
