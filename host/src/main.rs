//! Command line of the host tool.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use bootshare_host::guest::Parts;
use bootshare_host::{Accel, Arch, Board, Console, Machine, Share, demo, panics, size};

/// Exit status when nothing could be started: bad usage, something missing.
const NOT_STARTED: u8 = 123;

/// Boots QEMU machines straight from a directory.
#[derive(Parser)]
#[command(name = "bootshare-host", version)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Boot a directory
    ///
    /// Exit status: 0 when the guest powered off or the firmware reported success; 1 to 63 a
    /// failure that the firmware reported; 120 the guest reset; 121 QEMU failed; 122 the share's
    /// server failed; 123 nothing could be started; 124 the time limit passed; 130 interrupted.
    #[command(verbatim_doc_comment)]
    Boot(Box<Boot>),
    /// Make the demo share: a Debian kernel, a busybox initramfs, a greeting
    Demo(Demo),
    /// Compare where firmware images could panic with a list
    Panics {
        /// The list
        #[arg(long, value_name = "FILE")]
        known: PathBuf,
        /// The ELF images, with relocations and debug information
        #[arg(required = true)]
        images: Vec<PathBuf>,
    },
    /// Print the size of firmware images
    Size {
        /// The ELF images
        #[arg(required = true)]
        images: Vec<PathBuf>,
    },
}

#[derive(Args)]
struct Boot {
    /// The directory to boot; more are further virtio-fs devices, tagged share1, share2 and so on.
    /// DIR may be TAG=DIR
    #[arg(value_name = "DIR")]
    dirs: Vec<OsString>,
    /// The board
    #[arg(long, default_value = "x86_64-microvm")]
    board: Board,
    /// The firmware's command line, e.g. bootshare.log=debug; words after -- go to the kernel
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// Number of processors
    #[arg(long, default_value_t = 1)]
    smp: u32,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// What runs the guest
    #[arg(long, default_value = "tcg")]
    accel: Accel,
    /// The virtiofsd to use [default: the one on PATH, or in the usual places]
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// The server's --thread-pool-size
    #[arg(long, value_name = "N")]
    thread_pool_size: Option<u32>,
    /// The firmware image [default: target/firmware/bootshare-ARCH.elf]
    #[arg(long, value_name = "ELF")]
    firmware: Option<PathBuf>,
    /// Start aarch64 at EL2
    #[arg(long)]
    el2: bool,
    /// Leave virtio-mmio in QEMU's default, legacy layout (which the firmware refuses)
    #[arg(long)]
    legacy_mmio: bool,
    /// One more argument for QEMU; repeatable
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    qemu_args: Vec<OsString>,
    /// DIR is the demo share: ask its init for a shell when standard input is a terminal
    #[arg(long)]
    demo: bool,
    /// Print the commands instead of running them. QEMU's own exit status differs from ours: a
    /// firmware's success is 33 on x86_64 and 32 on aarch64
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct Demo {
    /// Where to make it
    #[arg(value_name = "OUTDIR")]
    out: PathBuf,
    /// The board it is for
    #[arg(long, default_value = "x86_64-microvm")]
    board: Board,
    /// Where Debian's packages are kept once downloaded
    #[arg(long, default_value = "target/guest", value_name = "DIR")]
    parts: PathBuf,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { NOT_STARTED } else { 0 };
            // There is nobody to tell when standard error is closed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match cli.command.run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bootshare-host: error: {error:#}");
            ExitCode::from(NOT_STARTED)
        }
    }
}

impl Sub {
    fn run(self) -> Result<u8> {
        match self {
            Self::Boot(boot) => boot.run(),
            Self::Demo(demo) => {
                let parts = Parts::fetch(demo.board.arch(), &demo.parts)?;
                demo::make(&parts, &demo.out)?;
                Ok(0)
            }
            Self::Panics { known, images } => {
                let mut places = panics::Places::new();
                for image in images {
                    places.extend(panics::places(&image, Path::new("."))?);
                }
                let text = panics::compare(&places, &known)?;
                let mut out = std::io::stdout().lock();
                out.write_all(text.as_bytes()).context("standard output")?;
                Ok(0)
            }
            Self::Size { images } => {
                let mut out = std::io::stdout().lock();
                for image in images {
                    out.write_all(size::describe(&image)?.as_bytes())
                        .context("standard output")?;
                }
                Ok(0)
            }
        }
    }
}

impl Boot {
    fn run(self) -> Result<u8> {
        let dry_run = self.dry_run;
        let machine = self.machine();
        if dry_run {
            print!("{}", machine.dry_run(&std::env::temp_dir())?);
            return Ok(0);
        }
        let outcome = machine.run(Console::Terminal)?.outcome;
        let code = outcome.exit_code();
        if code != 0 {
            eprintln!("bootshare-host: {outcome}");
        }
        Ok(code)
    }

    fn machine(self) -> Machine {
        let firmware = self
            .firmware
            .unwrap_or_else(|| default_firmware(self.board.arch()));
        let mut machine = Machine::new(self.board, firmware);
        machine.append = self.append;
        if self.demo && std::io::stdin().is_terminal() {
            // Words after `--` are the kernel's.
            let divided = machine.append.split_whitespace().any(|word| word == "--");
            machine.append.push_str(if divided { " " } else { " -- " });
            machine.append.push_str(demo::SHELL_WORD);
        }
        machine.memory_mib = self.memory;
        machine.smp = self.smp;
        machine.accel = self.accel;
        machine.shares = self.dirs.into_iter().enumerate().map(share).collect();
        machine.server = self.server;
        machine.thread_pool_size = self.thread_pool_size;
        machine.time_limit = self.timeout.map(Duration::from_secs);
        machine.legacy_mmio = self.legacy_mmio;
        machine.el2 = self.el2;
        machine.qemu_args = self.qemu_args;
        machine
    }
}

fn default_firmware(arch: Arch) -> PathBuf {
    PathBuf::from("target/firmware").join(arch.firmware_name())
}

fn share((index, dir): (usize, OsString)) -> Share {
    // A directory with `=` in its name is a directory.
    if !Path::new(&dir).is_dir()
        && let Some((tag, dir)) = dir.to_str().and_then(|text| text.split_once('='))
    {
        return Share {
            tag: tag.to_owned(),
            dir: dir.into(),
        };
    }
    let tag = if index == 0 {
        demo::TAG.to_owned()
    } else {
        format!("share{index}")
    };
    Share {
        tag,
        dir: dir.into(),
    }
}
