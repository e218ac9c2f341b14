//! The command line: its commands, and how they report failure.

mod boot;
mod doctor;
mod firmware;
mod junit;
mod man;
mod run;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::error::ErrorKind;
use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint, value_parser,
};

use bootshare_host::explain::{Explain, Interrupted, text_of};
use bootshare_host::guest::Parts;
use bootshare_host::output::{SOON, answer_of};
use bootshare_host::process::quote;
use bootshare_host::qemu::readable;
use bootshare_host::run::{EXIT_STATUSES, Outcome};
use bootshare_host::serve::{
    self, Cache, DEFAULT_THREADS, Endpoint, Fault, MAX_REQUEST_QUEUES, MAX_THREADS, Options, Owner,
    RULES,
};
use bootshare_host::{
    Board,
    debian::Release,
    demo, interrupt, output, rom, size,
    startup::{self, Late},
    unpacked,
};

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
#[command(name = "bootshare-host", bin_name = "bootshare-host", version, styles = STYLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    Boot(Box<boot::Boot>),
    Run(Box<run::Run>),
    Serve(Serve),
    /// Print a trace as a readable table with totals
    Trace {
        /// The file that `boot --trace` or `serve --trace` wrote
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    Demo(Demo),
    Qemu(Qemu),
    /// Check this machine, and print what to do about problems
    ///
    /// Each line starts with ok, warn (something you may not need) or fail. The exit status is 1
    /// if something failed that every boot needs.
    Doctor,
    /// Write the firmware images that are embedded in this program
    Firmware {
        /// The directory to write them into
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
    /// Print the size of firmware images
    #[command(hide = true)]
    Size {
        /// The ELF images
        #[arg(required = true, value_hint = ValueHint::FilePath)]
        images: Vec<PathBuf>,
    },
    /// Convert a firmware image to a ROM for QEMU's -bios
    #[command(hide = true)]
    Rom {
        /// The ELF image
        #[arg(value_hint = ValueHint::FilePath)]
        image: PathBuf,
        /// The ROM to write
        #[arg(value_hint = ValueHint::FilePath)]
        rom: PathBuf,
    },
    /// Print a completion script for a shell
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

/// Serve directories to a QEMU that you start yourself, until a signal arrives
///
/// The share is read-only. It serves one QEMU at a time; when that ends, the next may connect. The exit status is 0
/// after a signal (with --once, also after the end of QEMU), and 123 if the server could not start or failed.
///
/// Omitted on purpose: writing, sandboxes (the server opens nothing outside of the directories and needs no
/// privilege), DAX, migration of the device's state.
#[derive(Args)]
#[command(after_help = RULES)]
struct Serve {
    /// The directory to serve; with more than one, earlier ones cover later ones
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    dirs: Vec<PathBuf>,
    /// The vhost-user socket to create
    #[arg(long, value_name = "PATH", required_unless_present = "fd", value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,
    /// The socket's permissions, octal [default: given by the umask]
    #[arg(long, value_name = "MODE", requires = "socket", value_parser = octal)]
    socket_mode: Option<u32>,
    /// The number of an inherited listening socket, e.g. 3 from systemd
    #[arg(long, value_name = "N", conflicts_with = "socket")]
    fd: Option<i32>,
    /// End when the first QEMU ends
    #[arg(long)]
    once: bool,
    /// The share's name in messages and traces
    #[arg(long, default_value = demo::TAG)]
    tag: String,
    /// Number of request queues that a QEMU may use, 1 to 8
    #[arg(long, default_value_t = 1, value_name = "N",
        value_parser = value_parser!(u32).range(1..=i64::from(MAX_REQUEST_QUEUES)))]
    request_queues: u32,
    /// Number of threads that answer requests, in addition to one thread for each queue
    #[arg(long, default_value_t = DEFAULT_THREADS as u32, value_name = "N",
        value_parser = value_parser!(u32).range(0..=MAX_THREADS as i64))]
    thread_pool_size: u32,
    /// How long the guest may cache names, attributes and content
    #[arg(long, value_enum, default_value_t)]
    cache: Cache,
    /// Show extended attributes: capabilities, access control lists
    #[arg(long)]
    xattr: bool,
    /// Who owns the caller's own files in the guest
    #[arg(long, value_enum, default_value_t)]
    owner: Owner,
    /// The limit of open files [default: as many as the hard limit allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(64..))]
    rlimit_nofile: Option<u64>,
    /// Inject faults
    #[arg(long, value_name = "RULES", value_parser = parsed::<Fault>)]
    fault: Option<Fault>,
    /// Record all requests and replies in this file, for the command trace
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    trace: Option<PathBuf>,
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o777);
    mode.ok_or_else(|| "is not an octal number up to 777, such as 660".to_owned())
}

impl Serve {
    fn run(self) -> Result<()> {
        let mut options = Options::new(self.tag, self.dirs);
        options.request_queues = self.request_queues;
        options.threads = self.thread_pool_size as usize;
        options.cache = self.cache;
        options.xattr = self.xattr;
        options.owner = self.owner;
        options.open_files = self.rlimit_nofile;
        options.fault = self.fault;
        let endpoint = match (self.fd, self.socket) {
            (Some(fd), _) => Endpoint::Fd(fd),
            (None, path) => Endpoint::Path {
                path: path.context("name a socket with --socket")?,
                mode: self.socket_mode,
            },
        };
        serve::run(&options, self.trace.as_deref(), &endpoint, self.once)
    }
}

/// Make the demo share: a Debian kernel, a busybox initramfs, a greeting
#[derive(Args)]
struct Demo {
    /// The directory to create it in
    #[arg(value_name = "OUTDIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,
    /// The board to make it for [default: one of this machine's architecture]
    #[arg(long, hide_possible_values = true)]
    board: Option<Board>,
    /// The Debian release of the kernel [default: this machine's]
    #[arg(long, value_name = "RELEASE")]
    release: Option<Release>,
    /// Directory for downloaded Debian packages [default: bootshare/guest in the user's cache]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    parts: Option<PathBuf>,
    /// Replace existing files that the demo did not create, or that were changed
    #[arg(long)]
    force: bool,
}

/// Download the QEMU of a Debian release, and print the directory of its programs, for boot --qemu
///
/// The programs are unpacked with their own libraries and ROMs, and run from that directory; the installed QEMU is not
/// changed.
#[derive(Args)]
struct Qemu {
    /// The release
    #[arg(value_name = "RELEASE")]
    release: Release,
    /// Directory for the downloaded programs [default: bootshare/qemu in the user's cache]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    cache: Option<PathBuf>,
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let matches = match command().try_get_matches_from(arguments()) {
        Ok(matches) => matches,
        Err(error) => return explain(&error),
    };
    let run = || {
        prepare_process()?;
        Cli::from_arg_matches(&matches)?.command.run(&matches)
    };
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            startup::ends();
            say(&error_line(text_of(&error)));
            let is_signal = error.is::<Interrupted>();
            let end = is_signal.then_some(Outcome::Interrupted);
            ExitCode::from(end.map_or(NOT_STARTED, |end| end.exit_code()))
        }
    }
}

/// Sets what holds for the whole process: more open files, and an error in place of SIGXFSZ.
fn prepare_process() -> Result<()> {
    // Where it matters it is tried again.
    let _ = serve::raise_open_files(None);
    interrupt::ignore_file_size_signal().context("cannot ignore SIGXFSZ")
}

/// Ends the process if no machine runs within the time limit, with `status` and after a report of the
/// error, or soon after a signal.
fn watch_startup(
    limit: Option<Duration>,
    status: u8,
    report: impl Fn(&str) + Clone + Send + 'static,
) -> Result<()> {
    startup::watch(limit, move |late| {
        let (text, status) = match late {
            Late::Interrupted => (Interrupted.to_string(), Outcome::Interrupted.exit_code()),
            Late::TimedOut => (
                "the machine was not started within the time limit: a directory or file of the command line may \
                 be on a file system that does not answer: look at those, or allow more with --timeout"
                    .to_owned(),
                status,
            ),
        };
        say_within(&error_line(&text), Some(SOON));
        if late == Late::TimedOut {
            let report = report.clone();
            // Its files may be on the file system that does not answer.
            answer_of(Some(SOON), move || report(&text));
        }
        status
    })
}

/// The program's arguments. If a directory stands in the place of a command, `boot` is inserted.
fn arguments() -> Vec<OsString> {
    let mut args: Vec<_> = env::args_os().collect();
    if let Some(first) = args.get(1)
        && command().find_subcommand(first).is_none()
        && is_dir(first)
    {
        args.insert(1, "boot".into());
    }
    args
}

/// Whether there is a directory of this name, or its file system does not answer.
fn is_dir(name: &OsStr) -> bool {
    let name = PathBuf::from(name);
    answer_of(Some(SOON), move || name.is_dir()).unwrap_or(true)
}

/// The command line, with the tables of its help texts.
fn command() -> clap::Command {
    let tables = |statuses: &[(&str, &str)], examples: &[(&str, &str)]| {
        let mut text = "Exit status:\n".to_owned();
        for (status, meaning) in statuses {
            text.push_str(&format!("  {status:<8} {meaning}\n"));
        }
        text.push_str("\nExamples:");
        for (what, line) in examples {
            text.push_str(&format!("\n  {what}\n    {line}"));
        }
        text
    };
    let boot = tables(&EXIT_STATUSES, &boot::EXAMPLES);
    let run = tables(&run::EXIT_STATUSES, &run::EXAMPLES);
    Cli::command()
        .mut_subcommand("boot", |command| command.after_help(boot))
        .mut_subcommand("run", |command| command.after_help(run))
}

/// Prints the requested help, or an error about the arguments on one line.
fn explain(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    let Some(text) = text.strip_prefix("error: ") else {
        let shown = error.render().ansi().to_string();
        let printed = match error.kind() {
            ErrorKind::DisplayVersion => print(firmware::version().as_bytes()),
            _ if error.use_stderr() => {
                say(&shown);
                Ok(())
            }
            _ => print(&coloured(&shown, anstream::stdout().current_choice())),
        };
        if !error.use_stderr() {
            let Err(error) = printed else {
                return ExitCode::SUCCESS;
            };
            say(&error_line(format_args!("{error:#}")));
            return ExitCode::from(NOT_STARTED);
        }
        say(&error_line(
            "no directory and no command: name one of those above",
        ));
        return ExitCode::from(NOT_STARTED);
    };
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(name) = arguments().get(1).map(Path::new)
        && name.components().count() > 1
        && let Err(error) = readable(name)
    {
        say(&error_line(error));
        return ExitCode::from(NOT_STARTED);
    }
    // The message is followed by tips, the usage, and a hint at the help, each after an empty line.
    let parts: Vec<_> = text
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let what = parts.first().map_or("", String::as_str);
    let tips = parts.iter().filter_map(|part| part.strip_prefix("tip: "));
    // clap's advice for a value that begins with a hyphen would make it a directory.
    let tips: Vec<_> = tips.filter(|tip| !tip.contains("-- -")).collect();
    let names = arguments().into_iter().skip(1);
    let commands = command();
    let mut commands = names.filter_map(|name| commands.find_subcommand(name));
    let help = commands.next().map_or("", clap::Command::get_name);
    let remedy = match tips[..] {
        [] => format!("see `bootshare-host {help} --help`").replace("  ", " "),
        _ => tips.join("; "),
    };
    say(&error_line(format_args!("{what}: {remedy}")));
    let arguments = arguments();
    let mut words = arguments.iter().skip(1).take_while(|word| *word != "--");
    let is_run = words.next().is_some_and(|word| word == "run");
    ExitCode::from(match is_run && words.any(|word| word == "--bisect") {
        true => run::SKIP,
        false => NOT_STARTED,
    })
}

/// The user's cache directory for downloads.
fn cache(name: &str) -> Result<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|dir| dir.join("bootshare").join(name))
        .context("no place for downloads: neither XDG_CACHE_HOME nor HOME is an absolute path: set one, or name \
                  a directory with --parts or --cache")
}

/// An error message on one line, whatever names it contains.
fn error_line(what: impl std::fmt::Display) -> String {
    let what = output::one_line(what);
    format!("bootshare-host: {ERROR}error:{ERROR:#} {what}\n")
}

/// What a failed machine's console showed last, and what its shares answered last.
fn last_of(lines: &[String], requests: &[String]) -> String {
    let mut text = String::new();
    if !lines.is_empty() {
        text.push_str("bootshare-host: the console's last lines:\n");
    }
    for line in lines {
        text.push_str(&format!("    {line}\n"));
    }
    for line in requests {
        text.push_str(&format!("bootshare-host: {line}\n"));
    }
    text
}

/// Prints a message that is not an error.
fn note(what: &str) {
    say(&format!("bootshare-host: {what}\n"));
}

/// Prints `text` to standard error, in colour on a terminal only.
fn say(text: &str) {
    say_within(text, None);
}

/// Like [`say`], but gives up after `limit`.
fn say_within(text: &str, limit: Option<Duration>) {
    output::say(&coloured(text, anstream::stderr().current_choice()), limit);
}

/// `text` with its colours, or without them.
fn coloured(text: &str, colours: anstream::ColorChoice) -> Vec<u8> {
    let mut shown = anstream::AutoStream::new(Vec::new(), colours);
    // Writing to memory does not fail.
    let _ = shown.write_all(text.as_bytes());
    shown.into_inner()
}

/// Prints what `write` writes to standard output.
fn print_by(write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(output::Stdout);
    let written = write(&mut out).and_then(|()| Ok(out.flush()?));
    match written {
        // The reader has closed the pipe, as in `| head`.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        Err(error) if error.is::<io::Error>() => Err(error).explain(
            "cannot write to standard output",
            "use a file or a pipe that takes all of it",
        ),
        written => written,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints `text`.
fn print(text: &[u8]) -> Result<()> {
    print_by(|out| Ok(out.write_all(text)?))
}

/// Parses an option's value; the error is on one line.
fn parsed<T: FromStr<Err = anyhow::Error>>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|error: anyhow::Error| format!("{error:#}"))
}

impl Sub {
    fn run(self, matches: &ArgMatches) -> Result<u8> {
        match self {
            Self::Boot(mut boot) => {
                if let Some((_, matches)) = matches.subcommand() {
                    boot.pair(matches)?;
                }
                return boot.run();
            }
            Self::Run(run) => return run.run(),
            Self::Serve(serve) => serve.run()?,
            Self::Trace { file } => print_by(|mut out| serve::print(&file, &mut out))?,
            Self::Doctor => return doctor::run(),
            Self::Demo(demo) => {
                let board = demo.board.unwrap_or_else(Board::of_this_machine);
                if !demo.force {
                    demo::check(board.arch(), &demo.out)?;
                }
                let parts = demo.parts.map_or_else(|| cache("guest"), Ok)?;
                let parts = Parts::fetch(board.arch(), demo.release, &parts)?;
                demo::make(&parts, &demo.out, demo.force)?;
                // A name with a hyphen in front would be an option.
                let is_plain = !demo.out.as_os_str().as_encoded_bytes().starts_with(b"-");
                let place = if is_plain {
                    demo.out.clone()
                } else {
                    Path::new(".").join(&demo.out)
                };
                let text = format!(
                    "{} is made: boot it with `bootshare-host boot {} -b {}`",
                    demo.out.display(),
                    quote(place.as_os_str()),
                    board.name()
                );
                note(&output::one_line(text));
            }
            Self::Qemu(qemu) => {
                let cache = qemu.cache.map_or_else(|| cache("qemu"), Ok)?;
                let dir = unpacked::fetch(qemu.release, &cache)?;
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
                // Do not touch an unchanged file: its modification time would trigger a rebuild by
                // `make host`.
                if fs::read(&rom).ok().as_ref() != Some(&bytes) {
                    output::replace(&rom, &bytes)?;
                }
            }
            Self::Completions { shell } => {
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut command(), "bootshare-host", &mut text);
                print(&text)?;
            }
            Self::Man { dir } => man::write(&dir)?,
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
        let short = arg.get_short().map(|short| format!("-{short},"));
        let long = arg.get_long().map(|long| format!("--{long}"));
        let mut words: Vec<_> = short.into_iter().chain(long).collect();
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        if arg.get_action().takes_values() {
            let values = arg.get_value_names().unwrap_or_default();
            match (arg.is_require_equals_set(), words.last_mut()) {
                (true, Some(word)) => word.push_str(&format!("[={}]", values[0])),
                _ => words.extend(values.iter().map(ToString::to_string)),
            }
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
        let mut command = Cli::command();
        command.build();
        let boot = command.find_subcommand("boot").unwrap();
        let rows: Vec<_> = boot
            .get_arguments()
            .filter(|arg| !arg.is_hide_set() && arg.get_id() != "help")
            .map(row)
            .collect();
        assert_table(HOST_TOOL, "| `bootshare-host boot` | meaning |", &rows);
    }

    /// All options and arguments of all visible commands, one per line. Hidden options, which are for
    /// this project's own use, are marked.
    fn options(command: &clap::Command, list: &mut Vec<String>) {
        for arg in command.get_arguments() {
            let row = row(arg);
            let name = row.split('`').nth(1).unwrap_or_default();
            let hidden = if arg.is_hide_set() { " (hidden)" } else { "" };
            list.push(format!(
                "{} {name}{hidden}",
                command.get_bin_name().unwrap()
            ));
        }
        let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
        shown.for_each(|command| options(command, list));
    }

    #[test]
    fn the_list_of_options_is_complete() {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let mut list = Vec::new();
        options(&command, &mut list);
        let listed = include_str!("../../../docs/options.txt");
        let listed = listed
            .lines()
            .filter(|line| line.starts_with("bootshare-host "));
        let found = list.join("\n");
        assert!(
            listed.eq(list.iter().map(String::as_str)),
            "docs/options.txt should have, and CHANGELOG.md should tell what changes:\n{found}"
        );
    }

    #[test]
    fn the_documentation_and_the_help_list_the_exit_statuses() {
        let tables: [(_, &[_], _, _); 2] = [
            (
                "boot",
                &EXIT_STATUSES,
                "| exit status | meaning |",
                HOST_TOOL,
            ),
            ("run", &run::EXIT_STATUSES, "| status | when |", RUN),
        ];
        for (name, statuses, head, page) in tables {
            let row = |(status, meaning)| format!("| {status} | {meaning} |");
            let rows: Vec<_> = statuses.iter().copied().map(row).collect();
            assert_table(page, head, &rows);
            let mut command = command();
            let command = command.find_subcommand_mut(name).unwrap();
            let help = command.render_long_help().to_string();
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            for (status, meaning) in statuses {
                let line = words(&format!("{status} {meaning}"));
                assert!(words(&help).contains(&line), "{help}");
            }
        }
    }

    const HOST_TOOL: &str = include_str!("../../../docs/host-tool.md");
    const RUN: &str = include_str!("../../../docs/run.md");

    /// Asserts that `page` of the documentation has `rows` below `head`.
    fn assert_table(page: &str, head: &str, rows: &[String]) {
        let lines = page.lines().skip_while(|line| *line != head).skip(2);
        let table: Vec<_> = lines.take_while(|line| line.starts_with('|')).collect();
        let rows_text = rows.join("\n");
        assert_eq!(table, rows, "the documentation should have:\n{rows_text}");
    }

    #[test]
    fn the_documentation_lists_the_options_of_run_as_the_help_does() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        let options = run.get_arguments().filter(|arg| arg.get_id() != "help");
        let rows = options.map(row).collect::<Vec<_>>().join("\n");
        assert!(
            RUN.contains(&format!("| meaning |\n|---|---|\n{rows}\n\n")),
            "docs/run.md should have:\n{rows}"
        );
    }
}
