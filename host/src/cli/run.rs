//! `bootshare-host run`: a command in a machine, and its exit status.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueHint};

use bootshare_host::command::{End, How, Job, Kernel, Stage};
use bootshare_host::explain::{Explain, Interrupted, text_of};
use bootshare_host::lock::lock;
use bootshare_host::modules::Modules;
use bootshare_host::output::{Planned, SOON};
use bootshare_host::serve::Owner;
use bootshare_host::{Board, Machine, Outcome, Share, startup};

use super::boot::{Host, Limit, duration, memory, not_taken};
use super::firmware::{self, Image};
use super::junit::{self, Case, Verdict};
use super::{NOT_STARTED, error_line, last_of, say, say_within, watch_startup};

pub(super) const EXAMPLES: [(&str, &str); 3] = [
    (
        "A command under the newest kernel of a tree",
        "bootshare-host run /srv/debian -- uname -r",
    ),
    (
        "A kernel that was just built, with this machine's own files",
        "bootshare-host run --kernel ~/linux / -- dmesg",
    ),
    (
        "A shell; Ctrl-] typed three times ends the machine",
        "bootshare-host run /srv/debian",
    ),
];

/// Each exit status of a run, and what it means.
pub(super) const EXIT_STATUSES: [(&str, &str); 12] = [
    (
        "0 to 255",
        "the command's own; 128 plus the number of the signal that ended it",
    ),
    (
        "126, 127",
        "126: the command cannot be executed; 127: it or its interpreter does not exist",
    ),
    ("117", "the firmware could not start the kernel"),
    ("118", "the kernel panicked"),
    (
        "119",
        "the root file system could not be mounted, or the command could not be started in it: no driver, no such user, no such directory",
    ),
    (
        "120",
        "the machine was reset or powered off before the command ended",
    ),
    ("121", "QEMU failed"),
    ("122", "a share's server failed"),
    (
        "123",
        "nothing could be started: a wrong option, no kernel, a missing module; or the output could not be written",
    ),
    ("124", "the time limit passed"),
    (
        "125",
        "with --bisect: the command was not started, for any reason but a signal",
    ),
    ("130", "SIGINT, SIGTERM, SIGHUP or SIGQUIT ended the run"),
];

/// Run a command in a machine whose root file system is a directory
///
/// Nothing is written to the directory: what the command writes is lost at its end.
#[derive(Args)]
#[command(args_override_self = true)]
pub(super) struct Run {
    /// The root file system; with more than one, earlier ones cover later ones
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    dirs: Vec<PathBuf>,
    /// The command and its arguments [default: a shell]
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<OsString>,
    /// The kernel: a file, a directory with kernels, or a kernel's build directory [default: the newest kernel in DIR]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    kernel: Option<PathBuf>,
    /// The kernel's modules [default: lib/modules/VERSION beside the kernel or in DIR]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    modules: Option<PathBuf>,
    /// Words for the kernel's command line; repeatable
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    cmdline: Vec<String>,
    /// A variable for the command's environment, which has none of the caller's; repeatable
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<OsString>,
    /// Who runs the command, a user's name in the tree or a number [default: root]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Where the command starts [default: /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Who owns the caller's own files in the guest: root, or as-is for the caller
    #[arg(long, value_enum, default_value_t = Owner::Root, hide_possible_values = true)]
    owner: Owner,
    /// Make the command's writes fail instead of keeping them in memory
    #[arg(long)]
    read_only: bool,
    /// An additional directory, read-only, and its mount point; repeatable
    #[arg(long = "share", value_name = "TAG=DIR:/PATH")]
    shares: Vec<OsString>,
    /// Start the tree's own init instead of a command, e.g. /sbin/init
    #[arg(long, value_name = "PATH", conflicts_with = "command")]
    init: Option<PathBuf>,
    /// Write the output of the firmware and the kernel to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "init")]
    console: Option<PathBuf>,
    /// Write the result to this file, as one JSON object
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    json: Option<PathBuf>,
    /// Write the result to this file as a test case in JUnit's XML, with the end of the command's output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    junit: Option<PathBuf>,
    /// Give up after this time: in seconds, or with a unit, e.g. 90s, 2m, 1h
    #[arg(short, long, value_name = "TIME", value_parser = duration, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Exit with 125 if the command was not started, so that git bisect skips the commit
    #[arg(long)]
    bisect: bool,
    /// The board, also without its architecture, e.g. q35 [default: chosen by the kernel's architecture and drivers]
    #[arg(short, long)]
    board: Option<Board>,
    /// Guest memory, in MiB or with a unit, e.g. 2G
    #[arg(short, long, default_value = "1024", value_name = "SIZE", value_parser = memory,
        allow_negative_numbers = true)]
    memory: u32,
    #[command(flatten)]
    host: Host,
    /// An additional argument for QEMU; repeatable: --qemu-arg=-device --qemu-arg=virtio-rng-pci
    #[arg(long = "qemu-arg", value_name = "WORD", allow_hyphen_values = true)]
    qemu_args: Vec<OsString>,
    /// The firmware image [default: the board's image embedded in this program or in target/firmware]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    firmware: Option<PathBuf>,
}

/// The exit status with which git bisect skips a commit.
pub(super) const SKIP: u8 = 125;

/// What was run, and the result.
struct Ran {
    end: End,
    kernel: Kernel,
    has_modules: bool,
    board: Board,
    seconds: f64,
}

/// The files that are written at the end.
#[derive(Default)]
struct Outputs {
    console: Option<Planned>,
    json: Option<Planned>,
    junit: Option<Planned>,
}

impl Outputs {
    fn new(run: &Run) -> Result<Self> {
        let paths = [
            ("--console", &run.console),
            ("--json", &run.json),
            ("--junit", &run.junit),
        ];
        for (index, (option, path)) in paths.iter().enumerate() {
            let same = |other: &&(&str, &Option<PathBuf>)| other.1 == *path;
            if let Some(path) = path
                && let Some((other, _)) = paths[..index].iter().find(same)
                && !fs::metadata(path).is_ok_and(|found| !found.is_file())
            {
                bail!(
                    "{other} and {option} name one file, {}: name two",
                    path.display()
                );
            }
        }
        let plan = |path: &Option<PathBuf>, is_ours| {
            let path = path.as_deref();
            path.map(|path| Planned::new(path, is_ours)).transpose()
        };
        Ok(Self {
            console: plan(&run.console, |head| head.starts_with(VERSION_LINE))?,
            json: plan(&run.json, is_report)?,
            junit: plan(&run.junit, |head| {
                String::from_utf8_lossy(head).contains(junit::SUITE)
            })?,
        })
    }

    fn write_json(&mut self, object: &serde_json::Value, limit: &Limit) {
        write(self.json.take(), format!("{object}\n").as_bytes(), limit);
    }

    /// Reports that nothing was started.
    fn write_failure(mut self, status: u8, what: String, command: String, limit: &Limit) {
        let object = serde_json::json!({"status": status, "stage": null, "error": what});
        self.write_json(&object, limit);
        let case = Case {
            command,
            kernel: "unknown",
            seconds: 0.0,
            verdict: match status {
                SKIP => Verdict::Skipped(what),
                _ => Verdict::Broken(what, Vec::new()),
            },
            output: &Default::default(),
        };
        self.write_junit(&case, limit);
    }

    fn write_junit(&mut self, case: &Case<'_>, limit: &Limit) {
        if self.junit.is_some() {
            write(self.junit.take(), case.document().as_bytes(), limit);
        }
    }
}

/// The beginning of the firmware's first line, with which a console's output begins.
const VERSION_LINE: &[u8] = b"bootshare: version ";

/// The keys of a JSON report; the first three are in each.
const KEYS: [&str; 7] = [
    "status", "stage", "error", "seconds", "kernel", "version", "board",
];

/// Whether a file that begins so is an earlier report: an object with exactly its keys.
fn is_report(head: &[u8]) -> bool {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(head) else {
        return false;
    };
    let is_key = |key: &String| KEYS.contains(&key.as_str());
    object.keys().all(is_key) && KEYS[..3].iter().all(|key| object.contains_key(*key))
}

/// Writes an output if there is one. A failure is reported, but the command's status stands.
fn write(output: Option<Planned>, bytes: &[u8], limit: &Limit) {
    if let Some(output) = output
        && let Err(error) = output.write(bytes, limit.left())
    {
        say_within(&error_line(format_args!("{error:#}")), limit.left());
    }
}

impl Run {
    pub(super) fn run(self: Box<Self>) -> Result<u8> {
        let (bisect, limit, command) = (self.bisect, self.timeout, self.words());
        let late = if bisect {
            SKIP
        } else {
            Outcome::TimedOut.exit_code()
        };
        let outputs = Arc::new(Mutex::new(None::<Outputs>));
        let (theirs, words) = (Arc::clone(&outputs), command.clone());
        let watched = watch_startup(limit, late, move |what| {
            if let Some(outputs) = lock(&theirs).take() {
                let soon = Limit(Some(Instant::now() + SOON));
                outputs.write_failure(late, what.to_owned(), words.clone(), &soon);
            }
        });
        match watched.and_then(|()| Outputs::new(&self)) {
            Ok(planned) => *lock(&outputs) = Some(planned),
            Err(error) if bisect => {
                startup::ends();
                say(&error_line(text_of(&error)));
                return Ok(SKIP);
            }
            Err(error) => return Err(error),
        }
        let ran = self.execute();
        // If the time limit has passed, this waits until the process has ended.
        let ends_at = startup::ends().or_else(|| Instant::now().checked_add(limit?));
        let left = Limit(ends_at);
        let mut outputs = lock(&outputs).take().unwrap_or_default();
        let Ran {
            end,
            kernel,
            has_modules,
            board,
            seconds,
        } = match ran {
            Ok(ran) => ran,
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                let what = text_of(&error);
                let code = if bisect { SKIP } else { NOT_STARTED };
                outputs.write_failure(code, what.clone(), command, &left);
                say_within(&error_line(what), left.left());
                return Ok(code);
            }
        };
        let left = Limit(end.ends_at);
        match &end.console {
            Some(console) => write(outputs.console.take(), console, &left),
            None if outputs.console.is_some() => say_within(
                &error_line(
                    "the console's output is not written: the machine had not ended a minute after the \
                     command: look for a share on a file system that hangs",
                ),
                left.left(),
            ),
            None => {}
        }
        let is_interrupted = matches!(end.how, How::Machine(Outcome::Interrupted));
        let is_skipped = bisect && !end.is_started() && !is_interrupted;
        let code = match is_skipped {
            true => SKIP,
            false => end.exit_code(),
        };
        let is_ours = !matches!(end.how, How::Ended(_)) && end.exit_code() != 0;
        let object = serde_json::json!({
            "status": code,
            "stage": end.stage.name(),
            "error": is_ours.then(|| end.to_string()),
            "seconds": seconds,
            "kernel": kernel.path.display().to_string(),
            "version": kernel.version,
            "board": board.name(),
        });
        outputs.write_json(&object, &left);
        let case = Case {
            command,
            kernel: kernel.version.as_deref().unwrap_or("unknown"),
            seconds,
            verdict: match (&end.how, code) {
                (_, 0) => Verdict::Passed,
                (_, SKIP) if is_skipped => Verdict::Skipped(end.to_string()),
                (How::Ended(_), _) => Verdict::Failed(end.to_string()),
                _ => Verdict::Broken(end.to_string(), end.last_lines.clone()),
            },
            output: &end.output,
        };
        outputs.write_junit(&case, &left);
        let denied = end.denied.iter();
        let mut text: String = denied
            .map(|line| format!("bootshare-host: warning: {line}\n"))
            .collect();
        if end.unshown > 0 {
            text.push_str(&not_taken("a standard stream", end.unshown, "the output"));
        }
        if is_ours {
            text.push_str(&error_line(&end));
            let is_driverless = end.stage <= Stage::Init && matches!(end.how, How::Failed(_));
            if is_driverless && !has_modules {
                text.push_str(&format!(
                    "bootshare-host: no modules of this kernel (version {}) were found: name their \
                     directory with --modules\n",
                    kernel.version.as_deref().unwrap_or("unknown")
                ));
            }
            // The console's last lines do not help if the command was not found or could not write,
            // and were seen already if it used our terminal.
            if !matches!(end.how, How::Unstarted(..) | How::Unwritten(..)) {
                let is_new = end.console.is_some_and(|console| !console.is_empty());
                let lines: &[String] = if is_new { &end.last_lines } else { &[] };
                text.push_str(&last_of(lines, &end.last_requests));
            }
        }
        say_within(&text, left.left());
        Ok(code)
    }

    /// Runs the command and returns the result.
    fn execute(mut self) -> Result<Ran> {
        let kernel = Kernel::find(self.kernel.as_deref(), self.modules.as_deref(), &self.dirs)?;
        let modules = kernel.modules.as_deref().map(Modules::read).transpose()?;
        let board = self.board.unwrap_or_else(|| kernel.board(modules.as_ref()));
        let is_ours = self.firmware.is_none();
        let image = Image::find(self.firmware.take(), board)?;
        let mut machine = Machine::new(board, &image.path);
        machine.prepare = self.host.prepare(is_ours);
        machine.qemu = self.host.qemu.take();
        machine.memory_mib = self.memory;
        machine.smp = self.host.smp;
        self.host.accel.set(&mut machine);
        machine.qemu_args = std::mem::take(&mut self.qemu_args);
        machine.time_limit = self.timeout;
        let job = self.job(board, &kernel)?;
        let started = Instant::now();
        Ok(Ran {
            end: job.run(&machine, &kernel, modules.as_ref())?,
            has_modules: modules.is_some(),
            kernel,
            board,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// The command as a shell would read it.
    fn words(&self) -> String {
        let init = self.init.as_ref().map(|init| init.as_os_str());
        let words = init
            .into_iter()
            .chain(self.command.iter().map(OsString::as_os_str));
        let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
        match &words[..] {
            [] => "a shell".to_owned(),
            words => words.join(" "),
        }
    }

    fn job(self, board: Board, kernel: &Kernel) -> Result<Job> {
        for variable in &self.environment {
            let name = variable.to_string_lossy();
            ensure!(name.contains('='), "--env {name}: write NAME=VALUE");
        }
        let cmdline = self.cmdline.join(" ");
        ensure!(
            !cmdline.contains('\n'),
            "--cmdline: the words have a line break: write them on one line"
        );
        let shares = self.shares.iter().map(|word| {
            let said = format!("--share {}", word.display());
            share(word).explain(said, "write TAG=DIR:/PATH")
        });
        // On a read-only root file system the mount points must exist.
        let modules = kernel.share(&self.dirs).filter(|_| !self.read_only);
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let terminal = self.command.is_empty() && self.init.is_none() && is_terminal;
        let kind = std::env::var_os("TERM").filter(|_| terminal);
        let kind = kind.map(|kind| [OsStr::new("TERM="), &kind].into_iter().collect());
        Ok(Job {
            shares: shares.chain(modules.map(Ok)).collect::<Result<_>>()?,
            terminal,
            environment: kind.into_iter().chain(self.environment).collect(),
            trees: self.dirs,
            command: self.command,
            own_init: self.init,
            user: self.user,
            directory: self.cwd,
            owner: self.owner,
            read_only: self.read_only,
            cmdline,
            init: firmware::init(board.arch())?,
        })
    }
}

/// A share and its mount point.
fn share(word: &OsStr) -> Result<(Share, String)> {
    let word = word.as_bytes();
    let equals = word.iter().position(|&byte| byte == b'=');
    let (tag, rest) = word.split_at(equals.context("it has no =")?);
    let colon = rest.iter().rposition(|&byte| byte == b':');
    let (dir, place) = rest.split_at(colon.context("it has no mount point")?);
    let [tag, place] = [tag, &place[1..]].map(|text| std::str::from_utf8(text).ok());
    let tag = tag.context("the tag is not UTF-8")?;
    let place = place.context("the mount point is not UTF-8")?;
    ensure!(!tag.contains(':'), "the tag must not contain a colon");
    ensure!(dir.len() > 1, "it has no directory");
    ensure!(
        place.starts_with('/'),
        "its mount point is not an absolute path"
    );
    Ok((
        Share::new(tag, OsStr::from_bytes(&dir[1..])),
        place.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    /// The options of `bootshare-host run ARGS`.
    fn run(args: &[&str]) -> Run {
        let words = ["run"].iter().chain(args);
        let command = Run::augment_args(clap::Command::new("run"));
        let matches = command.try_get_matches_from(words).unwrap();
        Run::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn a_share_has_a_directory_and_a_mount_point() {
        let (shared, place) = share(OsStr::new("t=/a:b=c:/mnt")).unwrap();
        assert_eq!(
            (shared.to_string(), place),
            ("t (/a:b=c)".to_owned(), "/mnt".to_owned())
        );
        let odd = share(OsStr::from_bytes(b"t=/\xff:/mnt")).unwrap().0;
        assert_eq!(odd.dirs[0].as_os_str().as_bytes(), b"/\xff");
        for (word, said) in [
            ("t", "it has no ="),
            ("t=/a", "it has no mount point"),
            ("a:b=/a:/mnt", "the tag must not contain a colon"),
            ("t=:/mnt", "it has no directory"),
            ("t=/a:mnt", "is not an absolute path"),
        ] {
            let error = share(OsStr::new(word)).unwrap_err().to_string();
            assert!(error.contains(said), "{word}: {error}");
        }
    }

    #[test]
    fn a_command_is_named_as_a_shell_would_read_it() {
        assert_eq!(run(&["/"]).words(), "a shell");
        assert_eq!(run(&["/", "--", "ls", "-l"]).words(), "ls -l");
        assert_eq!(run(&["/", "--init", "/sbin/init"]).words(), "/sbin/init");
    }
}
