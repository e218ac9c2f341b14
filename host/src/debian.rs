//! Debian packages, downloaded once and unpacked into a directory.
//!
//! They come through the machine's own apt sources, but with a private apt state: neither the
//! machine's package lists nor its dpkg architectures change, and root is not needed.

use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use crate::board::Arch;
use crate::fd::{either, read_some};
use crate::interrupt::interrupted;
use crate::process::Process;

/// How often a download is tried.
const ATTEMPTS: u32 = 3;

/// Packages that are unpacked together.
#[derive(Clone, Copy, Debug)]
pub struct Packages {
    /// Their architecture.
    pub arch: Arch,
    /// What they are to whoever waits for the download.
    pub what: &'static str,
    /// Their names, as apt's lists have them now.
    pub choose: fn(&Apt<'_>) -> Result<Vec<String>>,
}

impl Packages {
    /// The packages' files in `root`, downloaded now when that is not there yet.
    ///
    /// # Errors
    /// The machine has no apt, or the download failed.
    pub fn fetch(&self, root: &Path) -> Result<()> {
        if root.is_dir() {
            return Ok(());
        }
        check_tools()?;
        let cache = root.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(cache)
            .with_context(|| format!("cannot make the directory {}", cache.display()))?;
        eprintln!(
            "bootshare-host: fetching Debian's {} {} into {}",
            self.arch.debian(),
            self.what,
            root.display()
        );
        // Drawn on terminals only.
        let progress = ProgressBar::new_spinner();
        progress.enable_steady_tick(Duration::from_millis(100));
        // Renamed as the last step: a directory of this name is complete.
        let work = tempfile::Builder::new()
            .prefix(self.arch.debian())
            .tempdir_in(cache)
            .with_context(|| format!("cannot write to {}", cache.display()))?;
        let tree = Apt::new(self.arch, work.path(), &progress)?.fetch(self.choose)?;
        progress.finish_and_clear();
        match fs::rename(&tree, root) {
            // Another process was faster.
            Err(_) if root.is_dir() => Ok(()),
            moved => {
                moved.with_context(|| format!("cannot move the packages to {}", root.display()))
            }
        }
    }
}

/// Whether Debian packages can be had here.
///
/// # Errors
/// The machine has none of Debian's tools: which one, and what to do instead.
pub fn check_tools() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in ["apt-get", "dpkg-deb"] {
        ensure!(
            std::env::split_paths(&path).any(|dir| dir.join(program).is_file()),
            "there is no {program}, which brings the demo's kernel from Debian: boot a directory \
             that has a kernel, e.g. `bootshare-host boot /boot` (`make run SHARE=/boot`)"
        );
    }
    Ok(())
}

/// A private apt under one directory.
#[derive(Debug)]
pub struct Apt<'a> {
    /// Whose packages it takes.
    pub arch: Arch,
    dir: &'a Path,
    config: PathBuf,
    progress: &'a ProgressBar,
}

/// A signal came.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

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
        let mut command = Command::new(program);
        command
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
            .stderr(fs::File::create(self.dir.join("stderr"))?);
        let mut process = Process::spawn(&mut command, None)?;
        let stdout = process.child.stdout.take();
        let stdout = self.read(stdout.context("apt has no output")?)?;
        Ok(Output {
            status: process.child.wait()?,
            stdout,
            stderr: fs::read(self.dir.join("stderr"))?,
        })
    }

    /// Reads all of a program's output, and shows its progress. A signal ends it, so that nothing
    /// is left of a download.
    fn read(&self, mut stdout: ChildStdout) -> Result<Vec<u8>> {
        let interrupt = interrupted().context("cannot watch for signals")?;
        let mut text = Vec::new();
        loop {
            let (interrupted, _) =
                either(interrupt, stdout.as_fd()).context("cannot wait for apt")?;
            if interrupted {
                return Err(Interrupted.into());
            }
            let Some(bytes) = read_some(&mut stdout)? else {
                return Ok(text);
            };
            text.extend(bytes);
            let mut lines = text.rsplit(|&byte| byte == b'\n').skip(1);
            if let Some(percent) = lines.find_map(percent) {
                self.progress
                    .set_message(format!("downloading, {percent} %"));
            }
        }
    }

    /// Downloads and unpacks; returns the directory that holds the files.
    fn fetch(&self, choose: fn(&Apt<'_>) -> Result<Vec<String>>) -> Result<PathBuf> {
        let mut trouble = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.download(choose) {
                Ok(()) => return self.unpack(),
                Err(error) if error.is::<Interrupted>() => return Err(error),
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

    fn download(&self, choose: fn(&Apt<'_>) -> Result<Vec<String>>) -> Result<()> {
        // A source that has nothing for this architecture makes this fail; what counts is whether
        // the packages are found.
        self.progress.set_message("reading the package lists");
        let update = self.run("apt-get", &["-q", "update"])?;
        let names = choose(self).with_context(|| complaints(&update))?;
        let mut args = vec!["-q", "download"];
        args.extend(names.iter().map(String::as_str));
        let download = self.run("apt-get", &args)?;
        ensure!(download.status.success(), "{}", complaints(&download));
        Ok(())
    }

    /// The first package whose name starts with `prefix` among those that `package` depends on:
    /// the one that a package without a version in its name stands for.
    ///
    /// # Errors
    /// apt knows no such package.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let show = self.run("apt-cache", &["show", "--no-all-versions", package])?;
        let text = String::from_utf8_lossy(&show.stdout);
        text.lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .and_then(|depends| {
                depends
                    .split([' ', ','])
                    .find(|word| word.starts_with(prefix))
            })
            .map(str::to_owned)
            .with_context(|| format!("apt knows no {package}"))
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
            percent(b"Get:1 http://mirror.example/debian bookworm/main\n"),
            None
        );
    }
}
