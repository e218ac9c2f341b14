//! Helpers of all boot tests: directories, servers, machines, and the console output of a run.

use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bootshare_host::debian::Release;
use bootshare_host::{
    Act, Arch, Board, Console, Machine, Moment, Outcome, Report, Servers, Share, demo,
};
use sha2::{Digest, Sha256};

pub(crate) use crate::shared::target;
use crate::shared::{LIMIT, c_server, make_demo, parts, rust_server};

/// The size of `random.bin` in the demo shares: some READs of 1 MiB and a part of one.
const RANDOM_BYTES: usize = (5 << 20) + 12_345;

/// The servers that the tests run with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    /// QEMU 7.2's virtiofsd in C: this machine's own, or else Debian 12's.
    C,
    /// virtiofsd in Rust, built by `host/setup.sh test`.
    Rust,
    /// The server in the host tool itself.
    Embedded,
}

impl Server {
    pub(crate) fn path(self) -> Option<PathBuf> {
        match self {
            Self::C => Some(c_server()),
            Self::Rust => Some(rust_server()),
            Self::Embedded => None,
        }
    }
}

/// A machine with the firmware for `board`, one share (`dir`), and these firmware options.
pub(crate) fn machine(board: Board, server: Server, dir: &Path, options: &str) -> Machine {
    let firmware = target().join("firmware").join(board.firmware_name());
    let mut machine = Machine::new(board, firmware);
    machine.shares.push(Share::new(demo::TAG, dir));
    machine.server = server.path();
    machine.append = options.into();
    machine.time_limit = Some(LIMIT);
    machine
}

/// The result of a finished run. The console output is also printed, so that a failed test shows it.
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    pub(crate) lines: Vec<String>,
}

pub(crate) fn run(machine: &Machine) -> Run {
    finished(machine, machine.run(Console::Capture))
}

/// An action of a test on a running machine's servers or share, and the moment for it.
pub(crate) type Step<'a> = (Moment<'a>, &'a mut dyn FnMut(&mut Servers<'_>));

/// The moment at which a progress bar appears: a part of the file has been read. At log level debug
/// every load shows a progress bar.
pub(crate) const BAR: Moment<'_> = Moment::Console(r"\n\[");

/// Runs a machine and does each of `steps` at its moment; the guest waits meanwhile.
pub(crate) fn run_with(machine: &Machine, steps: &mut [Step<'_>]) -> Run {
    let steps = steps.iter_mut();
    run_steps(machine, steps.map(|(at, act)| (*at, Act::Strike(act))))
}

/// Runs a machine and types on its console. Each pair of `script` is a pattern and the keys to type once
/// the console has shown it.
pub(crate) fn run_typing(machine: &Machine, script: &[(&str, &str)]) -> Run {
    let script = script.iter();
    run_steps(
        machine,
        script.map(|(at, keys)| (Moment::Console(at), Act::Type(keys))),
    )
}

fn run_steps<'a>(machine: &Machine, steps: impl Iterator<Item = bootshare_host::Step<'a>>) -> Run {
    let mut steps: Vec<_> = steps.collect();
    let report = machine.run_steps(&mut steps);
    let left = report.as_ref().map_or(0, |report| report.steps_left);
    let run = finished(machine, report);
    let next = steps.get(steps.len() - left).map(|(at, _)| at);
    assert_eq!(next, None, "the run ended before this step");
    run
}

fn finished(machine: &Machine, report: Result<Report, impl Display>) -> Run {
    let report = report.unwrap_or_else(|error| panic!("{error:#}"));
    let text = report.text();
    println!(
        "--- {:?}, -append '{}' ---\n{text}--- {} after {:?} ---",
        machine.board, machine.append, report.outcome, report.duration
    );
    Run {
        outcome: report.outcome,
        lines: text.lines().map(|line| shown(line).to_owned()).collect(),
    }
}

/// The final text of a console line: a progress bar that was overwritten and erased is left out.
fn shown(line: &str) -> &str {
    let line = line.trim_end_matches('\r');
    let last = line.rsplit('\r').next().unwrap_or(line);
    last.trim_start_matches("\x1b[K")
}

#[test]
fn a_progress_bar_is_not_part_of_the_line_after_it() {
    let line = "[##..] 72 %\r[####] 100 %\r\x1b[Kbootshare: loaded /Image\r";
    assert_eq!(shown(line), "bootshare: loaded /Image");
    assert_eq!(shown("plain"), "plain");
    assert_eq!(shown("\r"), "");
}

impl Run {
    /// The first line that contains all of `parts`; panics if there is none.
    pub(crate) fn line(&self, parts: &[&str]) -> &str {
        self.find(parts)
            .unwrap_or_else(|| panic!("no line has {parts:?}"))
    }

    pub(crate) fn find(&self, parts: &[&str]) -> Option<&str> {
        self.lines
            .iter()
            .find(|line| parts.iter().all(|part| line.contains(part)))
            .map(String::as_str)
    }

    /// The output of the firmware's commands: all lines but those that start with `bootshare: `.
    pub(crate) fn output(&self) -> Vec<&str> {
        let start = self
            .lines
            .iter()
            .position(|line| line.starts_with("bootshare: "))
            .expect("the firmware said nothing");
        self.lines
            .iter()
            .skip(start)
            .map(String::as_str)
            .filter(|line| !line.starts_with("bootshare: "))
            .collect()
    }
}

/// An empty directory for one test. Files from an earlier run of the test are removed.
pub(crate) fn empty_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("boot")
        .join(name);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => {}
    }
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// The demo share with a kernel of this machine's Debian release and the file `random.bin`. Tests share
/// it: none may write to it.
pub(crate) fn demo_share(arch: Arch) -> &'static Path {
    demo_share_of(arch, None)
}

/// As [`demo_share`], with a kernel of `release`. Each share is made once per process.
pub(crate) fn demo_share_of(arch: Arch, release: Option<Release>) -> &'static Path {
    static SHARES: [[OnceLock<PathBuf>; 4]; 2] = [const { [const { OnceLock::new() }; 4] }; 2];
    let number = release.map_or(0, |release| 1 + release as usize);
    SHARES[usize::from(arch == Arch::Aarch64)][number].get_or_init(|| {
        let dir = empty_dir(&format!("demo-{}-{number}", arch.name()));
        make_demo(&parts(arch, release), &dir);
        fs::write(dir.join("random.bin"), random(RANDOM_BYTES)).unwrap();
        dir
    })
}

/// Random bytes, so that a repeated, skipped or swapped block changes the digest.
pub(crate) fn random(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .unwrap();
    bytes
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}

pub(crate) fn sha256_of(path: &Path) -> String {
    sha256(&fs::read(path).unwrap())
}
