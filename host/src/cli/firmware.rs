//! The firmware images: embedded in the program by `make host`, or files that `make firmware` has
//! built.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bootshare_host::explain::Explain;
use bootshare_host::process::Invocation;
use bootshare_host::{Arch, Board, Machine, output};
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest, Sha256};

/// The directory of the images that `make firmware` has built.
const BUILT: &str = "target/firmware";

// `build.rs` sets their paths at build time.
#[cfg(any(carries = "firmware", carries = "init"))]
macro_rules! images {
    ($($name:literal),*) => {
        &[$(($name, include_bytes!(concat!(env!("BOOTSHARE_IMAGES"), "/", $name)))),*]
    };
}

/// File names and images.
#[cfg(carries = "firmware")]
const CARRIED: &[(&str, &[u8])] = images!(
    "bootshare-x86_64.elf",
    "bootshare-x86_64.rom",
    "bootshare-aarch64.elf",
    "bootshare-aarch64.bin"
);
#[cfg(not(carries = "firmware"))]
const CARRIED: &[(&str, &[u8])] = &[];

/// The first programs (init) of machines that run commands, by architecture.
#[cfg(carries = "init")]
const INITS: &[(&str, &[u8])] = images!("init-x86_64", "init-aarch64");
#[cfg(not(carries = "init"))]
const INITS: &[(&str, &[u8])] = &[];

/// The text of `--version`: the version, the commit, and the SHA-256 of each embedded file.
pub(super) fn version() -> String {
    let commit = match env!("BOOTSHARE_COMMIT") {
        "" => "unknown",
        commit => commit,
    };
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!("bootshare-host {version}\ncommit: {commit}\n");
    for (name, bytes) in CARRIED.iter().chain(INITS) {
        let digest = Sha256::digest(bytes);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!("{digest}  {name}\n"));
    }
    text
}

/// The first program (init) of a machine that runs a command.
pub(super) fn init(arch: Arch) -> Result<Vec<u8>> {
    let name = format!("init-{}", arch.name());
    if let Some((_, bytes)) = INITS.iter().find(|(known, _)| *known == name) {
        return Ok(bytes.to_vec());
    }
    let path = Path::new(BUILT).join(name);
    fs::read(&path).with_context(|| {
        format!(
            "this program carries no {}: build it with `make host` on a machine with rustup",
            path.display()
        )
    })
}

/// A firmware image as a file for QEMU.
pub(super) struct Image {
    /// Its path, valid as long as this value lives.
    pub(super) path: PathBuf,
    /// The file of an embedded image: a memfd, which needs no disk and leaves nothing behind.
    _memory: Option<fs::File>,
    carried: Option<&'static str>,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.carried {
            Some(name) => write!(f, "this program carries {name}"),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

impl Image {
    /// The image at the given path, or the default one of `board`.
    pub(super) fn find(named: Option<PathBuf>, board: Board) -> Result<Self> {
        let name = board.firmware_name();
        let carried = CARRIED.iter().find(|(file, _)| *file == name);
        let path = match (named, carried) {
            (Some(path), _) => {
                check(&path)
                    .and_then(|is_program| fits(is_program, board))
                    .explain(
                        format_args!("--firmware {}", path.display()),
                        format_args!("name an image like {name}"),
                    )?;
                path
            }
            (None, Some((file, bytes))) => return Self::in_memory(file, bytes),
            (None, None) => Path::new(BUILT).join(name),
        };
        ensure!(
            path.is_file(),
            "this program carries no firmware, and there is no {}: build it with `make firmware`, or \
             name an image with --firmware",
            path.display()
        );
        Ok(Self {
            path,
            _memory: None,
            carried: None,
        })
    }

    fn in_memory(name: &'static str, bytes: &[u8]) -> Result<Self> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC).context("cannot make a memfd")?;
        let mut file = fs::File::from(fd);
        file.write_all(bytes).context("cannot fill a memfd")?;
        // Not `std::process::id`: /proc may be of an outer PID namespace (`unshare --pid` alone).
        let own =
            fs::read_link("/proc/self").explain("cannot read /proc/self", "mount proc at /proc")?;
        let path = format!("/proc/{}/fd/{}", own.display(), file.as_raw_fd());
        Ok(Self {
            path: path.into(),
            _memory: Some(file),
            carried: Some(name),
        })
    }

    /// A script of the machine's commands that works without this process.
    pub(super) fn dry_run(&self, machine: &Machine) -> Result<String> {
        let Some(name) = self.carried else {
            return machine.dry_run("");
        };
        let mut write = Invocation::new(program()?);
        let write = write.arg("firmware").shell();
        let script = machine.dry_run(&format!("{write} \"$dir\" || exit\n"))?;
        let ours = self.path.display().to_string();
        Ok(script.replace(&ours, &format!("\"$dir\"/{name}")))
    }
}

/// Whether the file is an ELF program rather than a ROM. Refuses directories and FIFOs, on which
/// QEMU would block, and Linux kernels.
fn check(path: &Path) -> Result<bool> {
    ensure!(fs::metadata(path)?.is_file(), "it is not a file");
    let mut head = Vec::new();
    fs::File::open(path)?.take(1024).read_to_end(&mut head)?;
    // An ELF program; and Linux, which boots without us: bzImage (boot.rst), Image (booting.rst).
    let programs: [(usize, &[u8]); 3] = [(0, b"\x7fELF"), (0x202, b"HdrS"), (56, b"ARM\x64")];
    let is_program = programs
        .iter()
        .any(|(at, magic)| head.get(*at..).is_some_and(|head| head.starts_with(magic)));
    Ok(is_program)
}

fn fits(is_program: bool, board: Board) -> Result<()> {
    ensure!(
        is_program != board.is_rom(),
        "it is no image for {}",
        board.name()
    );
    Ok(())
}

/// The absolute path of this program, for commands that a person may run in another directory.
fn program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own path")
}

/// Writes all images into `dir`.
pub(super) fn write(dir: &Path) -> Result<()> {
    ensure!(
        !CARRIED.is_empty(),
        "this program carries no firmware: build it with `make host`, or use the images that \
         `make firmware` writes to {BUILT}"
    );
    output::directory(dir)?;
    let images = CARRIED.iter().map(|(name, bytes)| (dir.join(name), bytes));
    output::update(&images.collect::<Vec<_>>(), "an image of this firmware")
}

#[cfg(all(test, carries = "firmware"))]
mod tests {
    use super::*;

    #[test]
    fn every_board_finds_its_image() {
        for board in Board::ALL {
            let image = Image::find(None, board).unwrap();
            let size = fs::metadata(&image.path).unwrap().len();
            assert_ne!(size, 0, "{board:?}");
        }
    }
}
