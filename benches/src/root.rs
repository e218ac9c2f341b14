//! The embedded server and virtiofsd, as servers of a guest's root file system: a tree of Debian 13 with git
//! and gcc, which host/distributions.sh makes.

use crate::{
    machines,
    results::{Bound, Case, Layout, Results},
};
use anyhow::{Context, Result, bail, ensure};
use bootshare_host::{
    Board, Machine, Share, demo,
    serve::{self, Cache},
};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

/// The tree's name in host/distributions.sh.
const TREE: &str = "trixie-initramfs-bench";

/// The first process of the measured guest.
const INIT: &str = include_str!("root-init.sh");

/// The number of files in the git repository, and the bytes of the large file.
const FILES: usize = 600;
const LARGE: usize = 256 << 20;

/// The time limit of one machine.
const LIMIT: Duration = Duration::from_secs(1800);

/// The names of the servers in tables. Each has its default settings, or caches as long as possible.
const OURS: &str = "embedded server";
const VIRTIOFSD: &str = "virtiofsd";
const OURS_ALWAYS: &str = "embedded server, --cache always";
const VIRTIOFSD_ALWAYS: &str = "virtiofsd, --cache always";

/// The servers that are compared.
const PAIRS: [(&str, &str); 2] = [(OURS, VIRTIOFSD), (OURS_ALWAYS, VIRTIOFSD_ALWAYS)];

/// The tags of their shares.
const SERVERS: [(&str, &str); 4] = [
    ("ours", OURS),
    ("virtiofsd", VIRTIOFSD),
    ("ours-always", OURS_ALWAYS),
    ("virtiofsd-always", VIRTIOFSD_ALWAYS),
];

/// The measured programs whose times depend most on small requests.
const SMALL: [&str; 5] = ["find", "find again", "ls -lR", "tar", "git status"];

/// The time from the program's start to the login prompt.
const LOGIN: &str = "boot to login:";

/// Measures the programs of `root-init.sh`, and a boot to the login prompt.
pub fn run(out: &Path, rounds: usize) -> Result<Results> {
    let tree = tree()?;
    let title = "Programs in a Linux guest that has the share as root directory, ms";
    let mut results = Results::new("root", title, Layout::Cases);
    for round in 0..rounds {
        eprintln!("root file system: round {} of {rounds}", round + 1);
        for (program, name, time) in machines::twice(|| measure(&tree, out))? {
            results.add(&Case::new(program, name), None, time);
        }
        for (name, server) in [(OURS, None), (VIRTIOFSD, Some(machines::VIRTIOFSD))] {
            let mut machine = machine(&tree, "");
            machine.server = server.map(PathBuf::from);
            machine.watch.expect = vec!["login: ".parse().context("a pattern")?];
            let time = machines::run(&machine)?.duration.as_secs_f64() * 1e3;
            results.add(&Case::new(LOGIN, name), None, time);
        }
    }
    let programs: Vec<String> = results.groups().into_iter().map(String::from).collect();
    for program in programs {
        for (ours, theirs) in PAIRS {
            let [ours, theirs] = [ours, theirs].map(|name| Case::new(&program, name));
            results.compare(&ours, &theirs);
            results.aim(ours, theirs, Bound::AtMost(1.0));
        }
    }
    for (ours, theirs) in PAIRS {
        let ratios = SMALL.map(|program| {
            let [ours, theirs] = [ours, theirs].map(|name| Case::new(program, name));
            results.ratio(&ours, &theirs)
        });
        let ratios: Option<Vec<f64>> = ratios.into_iter().collect();
        let ratios = ratios.context("root-init.sh lacks a program of the mean")?;
        let mean = ratios
            .iter()
            .product::<f64>()
            .powf(1.0 / SMALL.len() as f64);
        let programs = SMALL.join(", ");
        results.note += &format!("{ours} to {theirs}, geometric mean of {programs}: {mean:.2}\n");
    }
    Ok(results)
}

/// Makes the tree unless it exists, and returns its path.
fn tree() -> Result<PathBuf> {
    succeed(Command::new("host/distributions.sh").args(["make", TREE]))?;
    let tree = Path::new("target/distributions").join(TREE);
    let files = tree.join("root/bench");
    if !files.join("done").exists() {
        make_files(&files).context("cannot make the files that the programs use")?;
    }
    script(&files.join("init"), INIT)?;
    Ok(tree)
}

/// Makes what the programs of `root-init.sh` use.
fn make_files(dir: &Path) -> Result<()> {
    let clone = dir.join("clone");
    for number in 0..FILES {
        let path = clone.join(format!("d{}/f{number}", number / 20));
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(path, format!("line {number}\n").repeat(200))?;
    }
    let git = || {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=bench", "-c", "user.email=bench", "-C"]);
        git.arg(&clone);
        git
    };
    succeed(git().args(["init", "-q"]))?;
    succeed(git().args(["add", "."]))?;
    succeed(git().args(["commit", "-q", "-m", "files"]))?;
    let source = "#include <stdio.h>\nint main(void) { return puts(\"text\") < 0; }\n";
    fs::write(dir.join("source.c"), source)?;
    fs::write(dir.join("large"), vec![b'x'; LARGE])?;
    Ok(fs::write(dir.join("done"), "")?)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status();
    let status = status.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// A server of one share, which ends when it is dropped.
enum Server {
    Embedded { _server: serve::Server },
    Virtiofsd(Child),
}

impl Server {
    /// Serves `tree` on `socket` by the server `name`.
    fn start(name: &str, tree: &Path, socket: &Path) -> Result<Self> {
        let is_always = name.ends_with("always");
        let _ = fs::remove_file(socket);
        if name.starts_with(OURS) {
            let mut options = serve::Options::new(name, vec![tree.to_owned()]);
            if is_always {
                options.cache = Cache::Always;
            }
            let listener = UnixListener::bind(socket).context("cannot listen for QEMU")?;
            let _server = serve::Server::start(&options, listener)?;
            return Ok(Self::Embedded { _server });
        }
        let mut command = Command::new(machines::VIRTIOFSD);
        command.arg("--socket-path").arg(socket);
        command.arg("--shared-dir").arg(tree);
        command.args(["--sandbox=none", "--log-level=error"]);
        command.arg(if is_always {
            "--cache=always"
        } else {
            "--cache=auto"
        });
        let child = command.spawn().context("cannot start virtiofsd")?;
        let server = Self::Virtiofsd(child);
        for _ in 0..1000 {
            if socket.exists() {
                return Ok(server);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("virtiofsd does not listen on {}", socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Virtiofsd(child) = self {
            // It has ended by itself if the machine has used it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs the programs of `root-init.sh` in one machine that has a share of each server, so that what disturbs
/// the host disturbs all of them. Returns the names of programs and servers, and the times in ms.
fn measure(tree: &Path, out: &Path) -> Result<Vec<(String, &'static str, f64)>> {
    let tags = SERVERS.map(|(tag, _)| tag).join(",");
    let words = format!("init=/root/bench/init shares={tags}");
    let mut machine = machine(tree, &words);
    machine.memory_mib = 4096;
    let mut servers = Vec::new();
    for (tag, name) in SERVERS {
        let socket = std::path::absolute(out.join(format!("{tag}.sock")))?;
        servers.push(Server::start(name, tree, &socket)?);
        let socket = socket.display();
        machine.qemu_args.extend([
            "-chardev".into(),
            format!("socket,id={tag},path={socket}").into(),
            "-device".into(),
            format!("vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024").into(),
        ]);
    }
    let text = machines::run_once(&machine)?.text();
    ensure!(!text.contains(" failed: "), "a program failed: {text}");
    let mut times = times(&text)?;
    let position = |tag: &str| SERVERS.iter().position(|(known, _)| *known == tag);
    // The guest takes the shares in random order, tables have them in ours.
    for program in times.chunk_by_mut(|a, b| a.0 == b.0) {
        program.sort_by_key(|(_, tag, _)| position(tag));
    }
    let named = |(program, tag, time): (&str, &str, f64)| {
        let index = position(tag).with_context(|| format!("an unknown share {tag}"))?;
        Ok((program.to_owned(), SERVERS[index].1, time))
    };
    times.into_iter().map(named).collect()
}

/// A machine whose root file system is `tree`; `words` are for its kernel.
fn machine(tree: &Path, words: &str) -> Machine {
    let board = match cfg!(target_arch = "aarch64") {
        true => Board::Aarch64VirtPci,
        false => Board::X86_64Q35,
    };
    let firmware = Path::new("target/firmware").join(board.firmware_name());
    let mut machine = Machine::new(board, firmware);
    let (tag, serial) = (demo::TAG, board.arch().serial());
    machine.append = format!(
        "bootshare.tag={tag} bootshare.cmdline-default=console={serial} \
         bootshare.cmdline-default=\"root={tag} rootfstype=virtiofs\" -- {words}"
    );
    machine.memory_mib = 2048;
    machine.shares = vec![Share::new(tag, tree)];
    machine.time_limit = Some(LIMIT);
    machine
}

/// The programs, their shares, and their times in ms, from the lines `root: NAME@SHARE: N us`.
fn times(text: &str) -> Result<Vec<(&str, &str, f64)>> {
    let parse = |line| {
        let (name, time) = str::split_once(line, ": ")?;
        let (program, tag) = name.split_once('@')?;
        let time: f64 = time.trim().strip_suffix(" us")?.parse().ok()?;
        Some((program, tag, time / 1e3))
    };
    let lines = text.lines().filter_map(|line| line.split_once("root: "));
    let times =
        lines.map(|(_, line)| parse(line).with_context(|| format!("cannot parse `{line}`")));
    let times: Vec<_> = times.collect::<Result<_>>()?;
    ensure!(!times.is_empty(), "the guest printed no times:\n{text}");
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_between_other_lines() {
        let text = "Linux version 6\nroot: find@a: 1500 us\r\n[    1.0] root: dd again@b: 250 us\n";
        let found = times(text).unwrap();
        assert_eq!(found, [("find", "a", 1.5), ("dd again", "b", 0.25)]);
        for text in ["root: find@a: soon\n", "root: find: 1 us\n", "no times\n"] {
            assert!(times(text).is_err(), "{text}");
        }
    }
}
