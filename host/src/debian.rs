//! Debian packages, downloaded once and unpacked into a directory.
//!
//! They come through the machine's own apt sources, but with a private apt state: neither the
//! machine's package lists nor its dpkg architectures change, and root is not needed. Packages of
//! another release come from the archives in the machine's own sources, and must be signed by keys
//! that the machine trusts.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use indicatif::ProgressBar;
use rustix::event::PollFlags;

use crate::board::Arch;
use crate::explain::{Explain, Interrupted};
use crate::fd::{either, read_some, ready};
use crate::interrupt::interrupted;
use crate::output;
use crate::process::Process;

/// How often a download is tried.
const ATTEMPTS: u32 = 3;

/// The remedy if the downloads cannot be written.
pub(crate) const ROOM: &str = "name another directory with --parts or --cache, or make room";

/// Debian's keys. Their package has used two file names.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// Directories that Debian 12 and later keep in /usr only, with symbolic links in the root
/// directory.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Release {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
    /// Debian's development branch.
    Sid,
}

impl Release {
    /// All of them, the oldest first.
    pub const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Sid];

    /// Its name in apt's sources.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    /// The release that this machine runs, if it is one of these.
    pub fn of_this_machine() -> Option<Self> {
        let text = fs::read_to_string("/etc/os-release").ok()?;
        let mut lines = text.lines();
        let name = lines.find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
        Self::ALL.into_iter().find(|release| release.name() == name)
    }

    /// A source of it at each of `archives`.
    fn source(self, archives: &[String]) -> Result<String> {
        let keyring = KEYRINGS.into_iter().find(|path| Path::new(path).is_file());
        let keyring = keyring.with_context(|| {
            format!(
                "cannot check Debian's signatures, there is no {}: install debian-archive-keyring",
                KEYRINGS[1]
            )
        })?;
        // A mirror's copy of sid can be older than the week for which its list is good.
        let dated = if self == Self::Sid { "no" } else { "yes" };
        Ok(format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {keyring}\n\
             Check-Valid-Until: {dated}\n",
            archives.join(" "),
            self.name()
        ))
    }
}

/// Packages that are unpacked together.
#[derive(Clone, Copy, Debug)]
pub struct Packages {
    /// Their architecture.
    pub arch: Arch,
    /// The description that is shown while they are downloaded.
    pub what: &'static str,
    /// Chooses their names from apt's current lists.
    pub choose: fn(&Apt<'_>) -> Result<Vec<String>>,
}

impl Packages {
    /// Makes sure that `root` holds the packages' files, and downloads them if it does not exist.
    ///
    /// # Errors
    /// The machine has no apt, or the download failed.
    pub fn fetch(&self, root: &Path) -> Result<()> {
        self.fetch_of(None, root)
    }

    /// Like [`fetch`](Self::fetch), from the named release rather than from the machine's own
    /// sources.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), or no source of the machine's is Debian's.
    pub fn fetch_of(&self, release: Option<Release>, root: &Path) -> Result<()> {
        if root.is_dir() {
            return Ok(());
        }
        check_tools()?;
        let cache = root.parent().unwrap_or(Path::new("."));
        output::directory(cache)?;
        output::note(format_args!(
            "fetching Debian{}'s {} {} into {}",
            release.map_or(String::new(), |release| format!(" {}", release.name())),
            self.arch.debian(),
            self.what,
            root.display()
        ));
        // Shown on terminals only.
        let progress = ProgressBar::new_spinner();
        progress.enable_steady_tick(Duration::from_millis(100));
        // From here on a signal deletes the partial download before the process ends.
        interrupted().context("cannot watch for signals")?;
        // Renamed as the last step, so that a directory of this name is always complete.
        let work = tempfile::Builder::new()
            .prefix(self.arch.debian())
            .tempdir_in(cache)
            .explain(format_args!("cannot write to {}", cache.display()), ROOM)?;
        let apt = Apt::new(self.arch, work.path(), &progress);
        let mut apt = apt.explain(format_args!("cannot write to {}", cache.display()), ROOM)?;
        if let Some(release) = release {
            apt.take_from(release)?;
        }
        let tree = apt.fetch(self.choose)?;
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

/// Whether Debian packages can be downloaded on this machine.
///
/// # Errors
/// One of Debian's tools is missing; the error names it and an alternative.
pub fn check_tools() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in ["apt-get", "dpkg-deb", "tar"] {
        ensure!(
            std::env::split_paths(&path).any(|dir| dir.join(program).is_file()),
            "there is no {program}, which Debian's packages are downloaded with: without the demo, boot \
             a directory that has a kernel, e.g. `bootshare-host boot /boot` (`make run SHARE=/boot`); \
             without another QEMU, use that of this machine"
        );
    }
    Ok(())
}

/// A private apt under one directory.
#[derive(Debug)]
pub struct Apt<'a> {
    /// The architecture of the packages.
    pub arch: Arch,
    dir: &'a Path,
    config: PathBuf,
    progress: &'a ProgressBar,
}

impl<'a> Apt<'a> {
    fn new(arch: Arch, dir: &'a Path, progress: &'a ProgressBar) -> Result<Self> {
        let real = fs::canonicalize(dir)?;
        let is_usable = |text: &&str| !text.contains(['"', '\n']);
        let dir_text = real.to_str().filter(is_usable).with_context(|| {
            let name = real.display();
            format!("apt cannot use a directory with such a name: {name}: its configuration is UTF-8 in quotation marks")
        })?;
        let debian = arch.debian();
        for sub in ["state/lists/partial", "cache/archives/partial", "sources"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        for name in MERGED {
            fs::create_dir_all(dir.join("tree/usr").join(name))?;
            symlink(Path::new("usr").join(name), dir.join("tree").join(name))?;
        }
        fs::write(dir.join("status"), "")?;
        // The machine's hooks are for its own package lists and need root, so they are disabled.
        // Run by root, apt would download as the user `_apt`, who cannot write to this directory,
        // and print a warning.
        let config = format!(
            r#"#clear APT::Update;
#clear APT::Architectures;
APT::Architecture "{debian}";
APT::Architectures {{ "{debian}"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
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

    /// Uses the packages of `release` from here on, from the archives in the machine's own sources.
    fn take_from(&mut self, release: Release) -> Result<()> {
        // apt itself knows every format of source lists.
        let uris = self.run("apt-get", &["update", "--print-uris"])?;
        let archives = archives(&String::from_utf8_lossy(&uris.stdout));
        if archives.is_empty() {
            let said = match uris.status.success() {
                true => String::new(),
                false => format!(": {}", complaints(&uris)),
            };
            bail!(
                "apt has no source of Debian {}{said}: add one of Debian's archive to its sources",
                release.name()
            );
        }
        let sources = fs::canonicalize(self.dir.join("sources"))?;
        fs::write(sources.join("release.sources"), release.source(&archives)?)?;
        // The machine's preferences apply to its own release only.
        let config = format!(
            r#"Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{}";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
#clear APT::Default-Release;
"#,
            sources.display()
        );
        let mut file = fs::OpenOptions::new().append(true).open(&self.config)?;
        file.write_all(config.as_bytes())?;
        Ok(())
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(fs::canonicalize(&self.config)?)
            // Send the status lines to standard output, where the other output is read.
            .args(["-o", "APT::Status-Fd=1"])
            .args(args)
            .current_dir(self.dir.join("tree"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Standard error is a file: a pipe could fill up while standard output is read.
            .stderr(fs::File::create(self.dir.join("stderr"))?);
        let mut process = Process::spawn(&mut command, None)?;
        let stdout = process.child.stdout.take();
        let stdout = self.read(stdout.context("apt has no output")?)?;
        Ok(Output {
            status: process.wait()?,
            stdout,
            stderr: fs::read(self.dir.join("stderr"))?,
        })
    }

    /// Reads all of a program's output, and shows its progress. A signal ends the program, so no
    /// partial download is left.
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
                let wait = Some(Duration::from_secs(u64::from(attempt) * 2));
                let interrupt = interrupted().context("cannot watch for signals")?;
                if ready(&[(interrupt, PollFlags::IN)], wait)?[0] {
                    return Err(Interrupted.into());
                }
            }
        }
        bail!(
            "cannot download Debian's {} packages, tried {ATTEMPTS} times: {trouble}: check \
             the network and apt's sources (does `apt-get update` work?), then try again",
            self.arch.debian()
        )
    }

    fn download(&self, choose: fn(&Apt<'_>) -> Result<Vec<String>>) -> Result<()> {
        // This also fails because of a source without packages of this architecture. An error is
        // reported later, if a package is not found.
        self.progress.set_message("reading the package lists");
        let update = self.run("apt-get", &["-q", "update"])?;
        let names = choose(self).map_err(|error| match error.is::<Interrupted>() {
            true => error,
            false => error.context(complaints(&update)),
        })?;
        let mut args = vec!["-q", "download"];
        args.extend(names.iter().map(String::as_str));
        let download = self.run("apt-get", &args)?;
        ensure!(download.status.success(), "{}", complaints(&download));
        Ok(())
    }

    /// The first dependency of `package` whose name starts with `prefix`: a package without a
    /// version in its name depends on the current version.
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
            .with_context(|| format!("apt does not know {package}"))
    }

    /// These packages and all of their dependencies.
    ///
    /// # Errors
    /// apt does not know all of them.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<String>> {
        let mut args = vec!["install", "--simulate", "--no-install-recommends"];
        args.extend(packages);
        let plan = self.run("apt-get", &args)?;
        ensure!(plan.status.success(), "{}", complaints(&plan));
        let text = String::from_utf8_lossy(&plan.stdout);
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    }

    fn unpack(&self) -> Result<PathBuf> {
        self.progress.set_message("unpacking");
        let interrupt = interrupted().context("cannot watch for signals")?;
        let tree = self.dir.join("tree");
        for entry in fs::read_dir(&tree)? {
            let deb = entry?.path();
            if deb.extension().is_none_or(|extension| extension != "deb") {
                continue;
            }
            let errors = self.dir.join("stderr");
            let stderr = fs::File::create(&errors)?;
            let mut command = Command::new("dpkg-deb");
            command.arg("--fsys-tarfile").arg(&deb);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut packed = Process::spawn(command.stderr(stderr.try_clone()?), None)?;
            // `dpkg-deb --extract` would replace a symbolic link by a directory.
            let mut command = Command::new("tar");
            command.args(["--extract", "--keep-directory-symlink", "--directory"]);
            command.arg(&tree).stdout(Stdio::null()).stderr(stderr);
            let archive = packed.child.stdout.take();
            command.stdin(archive.context("dpkg-deb has no output")?);
            let mut unpacked = Process::spawn(&mut command, None)?;
            // `command` holds the pipe's read end open: dpkg-deb would get no SIGPIPE if tar failed.
            drop(command);
            if either(interrupt, unpacked.ended())?.0 {
                return Err(Interrupted.into());
            }
            let statuses = [unpacked.wait()?, packed.wait()?];
            if let Some(status) = statuses.into_iter().find(|status| !status.success()) {
                let (stdout, stderr) = (Vec::new(), fs::read(&errors)?);
                let said = complaints(&Output {
                    status,
                    stdout,
                    stderr,
                });
                bail!(
                    "cannot unpack {}: {said}: try again, or make room where it is unpacked",
                    deb.display()
                );
            }
            fs::remove_file(&deb)?;
        }
        Ok(tree)
    }
}

/// The archives that provide whole releases, from the output of `apt-get update --print-uris`:
/// `'ARCHIVE/dists/SUITE/InRelease' FILE SIZE`. A suite of security or other updates has a hyphen
/// or a slash in its name. Another vendor's archive has nothing that Debian's keys signed.
fn archives(uris: &str) -> Vec<String> {
    let mut archives: Vec<_> = uris
        .lines()
        .filter_map(|line| {
            let uri = line.strip_prefix('\'')?.split('\'').next()?;
            let (archive, suite) = uri.strip_suffix("/InRelease")?.split_once("/dists/")?;
            (!suite.contains(['-', '/'])).then(|| archive.to_owned())
        })
        .collect();
    archives.sort();
    archives.dedup();
    archives
}

/// The progress of a download from a line of apt's `Status-Fd`: "dlstatus:FILE:PERCENT:TEXT".
fn percent(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line.strip_prefix(b"dlstatus:")?).ok()?;
    text.split(':').nth(1)?.split('.').next()?.parse().ok()
}

/// The error messages of a failed command, on one line.
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
    fn only_archives_of_debian_itself_are_used() {
        let uris = "'http://one.example/debian/dists/trixie/InRelease' one_InRelease 0 \n\
                    'http://one.example/debian/dists/trixie-updates/InRelease' two_InRelease 0 \n\
                    'http://two.example/debian-security/dists/trixie-security/InRelease' three 0 \n\
                    'http://one.example/debian/dists/trixie/main/binary-amd64/Packages.xz' four 0 \n";
        assert_eq!(archives(uris), ["http://one.example/debian"]);
    }

    #[test]
    fn only_the_list_of_sid_may_be_past_its_date() {
        for release in Release::ALL {
            let source = release.source(&["http://one.example/debian".to_owned()]);
            let may = source.unwrap().contains("Check-Valid-Until: no");
            assert_eq!(may, release == Release::Sid);
        }
    }

    #[test]
    fn what_apt_complains_of_is_one_line() {
        for (script, line) in [
            (
                "echo 'E: one ' >&2; echo >&2; echo 'E: two' >&2; exit 100",
                "E: one; E: two",
            ),
            ("exit 100", "exit status: 100"),
        ] {
            let output = Command::new("sh").args(["-c", script]).output().unwrap();
            assert_eq!(complaints(&output), line);
        }
    }

    #[test]
    fn progress_lines_are_distinguished_from_apts_other_output() {
        let line = b"dlstatus:1:42.1500:Retrieving file 1 of 2\n";
        assert_eq!(percent(line), Some(42));
        assert_eq!(
            percent(b"Get:1 http://mirror.example/debian bookworm/main\n"),
            None
        );
    }
}
