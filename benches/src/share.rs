//! The shared directories: one for each architecture, made once.

use anyhow::{Context, Result};
use bootshare_host::{
    Arch,
    demo::{self, Archive},
    guest::Parts,
};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// The init of a guest that reads a file by Linux and prints the speed.
const READING_INIT: &str = include_str!("reading-init.sh");

/// The entry with the small initrd.
pub const SMALL: &str = "small";
/// The entry with both the small and the large initrd.
pub const LARGE: &str = "large";
/// The file name of the large initrd.
pub const FILLER: &str = "filler-256.cpio";

/// The shares of both architectures.
pub struct Shares {
    root: PathBuf,
}

impl Shares {
    /// Makes the missing parts of the shares in `root`.
    pub fn make(root: &Path) -> Result<Self> {
        for arch in Arch::ALL {
            let dir = root.join(arch.name());
            if dir.join("done").exists() {
                continue;
            }
            let parts = Parts::fetch(arch, None, Path::new(demo::PARTS))?;
            demo::make(&parts, &dir, true)?;
            let mut archive = Archive::default();
            archive.file("init", 0o755, READING_INIT.as_bytes())?;
            fs::write(dir.join("reading.cpio"), archive.finish()?)?;
            fs::create_dir_all(dir.join("loader/entries"))?;
            for (id, more) in [
                (SMALL, String::new()),
                (LARGE, format!("initrd /{FILLER}\n")),
                ("reading", "initrd /reading.cpio\n".into()),
            ] {
                let early = match arch {
                    Arch::X86_64 => "earlyprintk=ttyS0",
                    Arch::Aarch64 => "earlycon",
                };
                let text = format!(
                    "linux /{}\ninitrd /initrd.img\n{more}options {early} console={} panic=-1\n",
                    arch.kernel_name(),
                    arch.serial()
                );
                fs::write(dir.join(format!("loader/entries/{id}.conf")), text)?;
            }
            filler(&dir, 256 << 20)?;
            fs::write(dir.join("done"), "")?;
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// The share of `arch`.
    pub fn dir(&self, arch: Arch) -> PathBuf {
        self.root.join(arch.name())
    }

    /// The kernel's command line in the entry `id` of the share of `arch`.
    pub fn options(&self, arch: Arch, id: &str) -> Result<String> {
        let entry = self.dir(arch).join(format!("loader/entries/{id}.conf"));
        let text = fs::read_to_string(entry)?;
        let options = text.lines().find_map(|line| line.strip_prefix("options "));
        Ok(options.context("an entry without options")?.into())
    }

    /// The initrds of the entry `id` as one file, for loaders that take only one.
    pub fn joined_initrd(&self, arch: Arch, id: &str) -> Result<PathBuf> {
        let dir = self.dir(arch);
        let small = dir.join("initrd.img");
        if id == SMALL {
            return Ok(small);
        }
        let joined = dir.join("joined.img");
        if !joined.exists() {
            let mut bytes = fs::read(&small)?;
            // The kernel expects the next archive at a multiple of 4.
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(fs::read(dir.join(FILLER))?);
            fs::write(&joined, bytes)?;
        }
        Ok(joined)
    }

    /// A directory with this number of empty files.
    pub fn many(&self, entries: u32) -> Result<PathBuf> {
        let dir = self.root.join(format!("many-{entries}"));
        if dir.exists() {
            return Ok(dir);
        }
        let work = self.root.join("many-unfinished");
        fs::create_dir_all(&work)?;
        for number in 0..entries {
            let path = work.join(format!("file-{number:06}"));
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::rename(&work, &dir)?;
        Ok(dir)
    }

    /// Makes a file of this size in MiB in the share of `arch`, and reads it once so that it is in the page
    /// cache. Returns its name in the share.
    pub fn file(&self, arch: Arch, mib: u64) -> Result<String> {
        self.file_of(arch, mib << 20)
    }

    /// As [`Shares::file`], with the size in bytes.
    pub fn file_of(&self, arch: Arch, bytes: u64) -> Result<String> {
        let name = format!("random-{bytes}");
        let path = self.dir(arch).join(&name);
        let len = fs::metadata(&path).map_or(u64::MAX, |metadata| metadata.len());
        if len != bytes {
            random(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let mut file = File::open(&path)?;
        io::copy(&mut file, &mut io::sink())?;
        Ok(format!("/{name}"))
    }
}

/// Random bytes, which no file system stores in fewer bytes.
fn random(path: &Path, bytes: u64) -> io::Result<()> {
    let mut source = File::open("/dev/urandom")?.take(bytes);
    let mut out = File::create(path)?;
    io::copy(&mut source, &mut out)?;
    out.flush()
}

/// An initrd with one file of this size in bytes.
fn filler(dir: &Path, bytes: usize) -> Result<()> {
    let mut content = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut content)?;
    let mut archive = Archive::default();
    archive.file("filler", 0o644, &content)?;
    fs::write(dir.join(FILLER), archive.finish()?).context("cannot write an initrd")
}
