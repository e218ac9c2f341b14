//! The command line: its commands, and how they report failure.

mod boot;
mod doctor;
mod firmware;
mod run;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint, value_parser};

use bootshare_host::guest::Parts;
use bootshare_host::serve::{
    self, DEFAULT_THREADS, Fault, MAX_REQUEST_QUEUES, Options, RULES, Trace,
};
use bootshare_host::{Board, debian::Release, demo, output, rom, size, unpacked};

/// Exit status when nothing could be started: bad usage, something missing.
const NOT_STARTED: u8 = 123;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Boot QEMU machines straight from a directory
#[derive(Parser)]
#[command(name = "bootshare-host", version, styles = STYLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    Boot(Box<boot::Boot>),
    Run(Box<run::Run>),
    Serve(Serve),
    /// Print a trace as a readable table, and what it comes to
    Trace {
        /// What `boot --trace` or `serve --trace` wrote
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    Demo(Demo),
    Qemu(Qemu),
    /// Check this machine, and say what to do about what is missing
    ///
    /// Each line starts with ok, warn (something you may not need) or fail. The exit status is 1
    /// when something failed that every boot needs.
    Doctor,
    /// Write the firmware images that this program carries
    Firmware {
        /// The directory to write them into
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
    /// Print the size of firmware images
    Size {
        /// The ELF images
        #[arg(required = true, value_hint = ValueHint::FilePath)]
        images: Vec<PathBuf>,
    },
    /// Make of a firmware image a ROM for QEMU's -bios
    Rom {
        /// The ELF image
        #[arg(value_hint = ValueHint::FilePath)]
        image: PathBuf,
        /// The ROM to write
        #[arg(value_hint = ValueHint::FilePath)]
        rom: PathBuf,
    },
    /// Print what makes a shell complete this program's options
    ///
    /// For bash, until you log out: source <(bootshare-host completions bash)
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages: bootshare-host.1, and one for each command
    Man {
        /// The directory to write them into, e.g. ~/.local/share/man/man1
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// Serve directories to a QEMU that was started by somebody else, until a signal comes
#[derive(Args)]
#[command(after_help = RULES)]
struct Serve {
    /// The directory to serve; with more than one, earlier ones cover later ones
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    dirs: Vec<PathBuf>,
    /// The vhost-user socket to make
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: PathBuf,
    /// The share's name in messages and traces
    #[arg(long, default_value = demo::TAG)]
    tag: String,
    /// How many request queues a QEMU may use
    #[arg(long, default_value_t = 1, value_name = "N",
        value_parser = value_parser!(u32).range(1..=i64::from(MAX_REQUEST_QUEUES)))]
    request_queues: u32,
    /// How many requests are answered at a time
    #[arg(long, default_value_t = DEFAULT_THREADS, value_name = "N")]
    thread_pool_size: usize,
    /// Do wrong on purpose
    #[arg(long, value_name = "RULES", value_parser = parsed::<Fault>)]
    fault: Option<Fault>,
    /// Record all requests and replies, for the command trace
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    trace: Option<PathBuf>,
}

impl Serve {
    fn run(self) -> Result<()> {
        let mut options = Options::new(self.tag, self.dirs);
        options.request_queues = self.request_queues;
        options.threads = self.thread_pool_size;
        options.fault = self.fault;
        options.trace = self
            .trace
            .as_deref()
            .map(Trace::create)
            .transpose()?
            .map(Arc::new);
        serve::run(&options, &self.socket)
    }
}

/// Make the demo share: a Debian kernel, a busybox initramfs, a greeting
#[derive(Args)]
struct Demo {
    /// Where to make it
    #[arg(value_name = "OUTDIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,
    /// The board it is for [default: one of this machine's architecture]
    #[arg(long, hide_possible_values = true)]
    board: Option<Board>,
    /// The Debian release of the kernel [default: this machine's]
    #[arg(long, value_name = "RELEASE")]
    release: Option<Release>,
    /// Where Debian's packages are kept once downloaded
    #[arg(long, default_value = demo::PARTS, value_name = "DIR", value_hint = ValueHint::DirPath)]
    parts: PathBuf,
    /// Replace files of the demo's names that are not the demo's
    #[arg(long)]
    force: bool,
}

/// Fetch the QEMU of a Debian release, and print the directory of its programs, for boot --qemu
///
/// They are unpacked with their own libraries and ROMs and run from there; the machine's own stay as
/// they are.
#[derive(Args)]
struct Qemu {
    /// The release
    #[arg(value_name = "RELEASE")]
    release: Release,
    /// Where they are kept once downloaded
    #[arg(long, default_value = unpacked::CACHE, value_name = "DIR", value_hint = ValueHint::DirPath)]
    cache: PathBuf,
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
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
            say(&error_line(format_args!("{error:#}")));
            ExitCode::from(NOT_STARTED)
        }
    }
}

/// A line that says what went wrong.
fn error_line(what: impl std::fmt::Display) -> String {
    format!("bootshare-host: {ERROR}error:{ERROR:#} {what}\n")
}

/// Prints `text` to standard error, in colour on a terminal only.
fn say(text: &str) {
    // There is nobody to tell when standard error is closed.
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// Prints what `write` writes to standard output.
fn print_by(write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = write(&mut out).and_then(|()| out.flush().context("cannot write the output"));
    match written {
        // The reader has seen enough, as in `| head`.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        written => written,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints all of `text`.
fn print(text: &[u8]) -> Result<()> {
    print_by(|out| out.write_all(text).context("cannot write the output"))
}

/// Parses an option's value, and tells on one line why it is none.
fn parsed<T: FromStr<Err = anyhow::Error>>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|error: anyhow::Error| format!("{error:#}"))
}

impl Sub {
    fn run(self) -> Result<u8> {
        match self {
            Self::Boot(boot) => return boot.run(),
            Self::Run(run) => return run.run(),
            Self::Serve(serve) => serve.run()?,
            Self::Trace { file } => print_by(|mut out| serve::print(&file, &mut out))?,
            Self::Doctor => return doctor::run(),
            Self::Demo(demo) => {
                let board = demo.board.unwrap_or_else(Board::of_this_machine);
                if !demo.force {
                    demo::check(board.arch(), &demo.out)?;
                }
                let parts = Parts::fetch(board.arch(), demo.release, &demo.parts)?;
                demo::make(&parts, &demo.out)?;
            }
            Self::Qemu(qemu) => {
                let dir = unpacked::fetch(qemu.release, &qemu.cache)?;
                print(format!("{}\n", dir.display()).as_bytes())?;
            }
            Self::Firmware { dir } => firmware::write(&dir)?,
            Self::Size { images } => {
                for image in images {
                    print(size::describe(&image)?.as_bytes())?;
                }
            }
            Self::Rom { image, rom } => {
                let bytes = rom::make(&image)?;
                let is_image = fs::canonicalize(&rom)
                    .is_ok_and(|rom| fs::canonicalize(&image).is_ok_and(|image| image == rom));
                ensure!(
                    !is_image,
                    "{} would replace the image it is made from: name another file",
                    rom.display()
                );
                // What is the same keeps its time: `make host` builds from it.
                if fs::read(&rom).ok().as_ref() != Some(&bytes) {
                    output::replace(&rom, &bytes)?;
                }
            }
            Self::Completions { shell } => {
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "bootshare-host", &mut text);
                print(&text)?;
            }
            Self::Man { dir } => {
                let write = || -> Result<()> {
                    let pages = tempfile::tempdir()?;
                    clap_mangen::generate_to(Cli::command(), &pages)?;
                    fs::create_dir_all(&dir)?;
                    for page in fs::read_dir(&pages)? {
                        let page = page?;
                        output::replace(&dir.join(page.file_name()), &fs::read(page.path())?)?;
                    }
                    Ok(())
                };
                write().with_context(|| format!("cannot write to {}", dir.display()))?;
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// An option as the table in docs/host-tool.md has it: `--name VALUE` and the help's first paragraph.
    fn row(arg: &clap::Arg) -> String {
        let mut words: Vec<_> = arg
            .get_long()
            .map(|long| format!("--{long}"))
            .into_iter()
            .collect();
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        if arg.get_action().takes_values() {
            let values = arg.get_value_names().unwrap_or_default();
            words.extend(values.iter().map(ToString::to_string));
            for default in arg
                .get_default_values()
                .iter()
                .filter(|value| !value.is_empty())
            {
                help.push_str(&format!(" [default: {}]", default.display()));
            }
        }
        format!("| `{}` | {help} |", words.join(" "))
    }

    #[test]
    fn the_documentation_lists_the_options_of_boot_as_the_help_does() {
        let page = include_str!("../../../docs/host-tool.md");
        let mut command = Cli::command();
        command.build();
        let boot = command.find_subcommand("boot").unwrap();
        let rows: Vec<_> = boot
            .get_arguments()
            .filter(|arg| !arg.is_hide_set() && arg.get_id() != "help")
            .map(row)
            .collect();
        let table: Vec<_> = page
            .lines()
            .skip_while(|line| *line != "| `bootshare-host boot` | meaning |")
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(
            table,
            rows,
            "docs/host-tool.md should have:\n{}",
            rows.join("\n")
        );
    }

    #[test]
    fn the_documentation_lists_the_options_of_run_as_the_help_does() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        let options = run.get_arguments().filter(|arg| arg.get_id() != "help");
        let rows = options.map(row).collect::<Vec<_>>().join("\n");
        let page = include_str!("../../../docs/run.md");
        assert!(
            page.contains(&format!("| meaning |\n|---|---|\n{rows}\n\n")),
            "docs/run.md should have:\n{rows}"
        );
    }
}
