//! The embedded server and virtiofsd, as servers of a guest's root file system: a tree of Debian 13 with git
//! and gcc, which host/distributions.sh makes.

use crate::{
    machines,
    results::{Bound, Case, Layout, Results},
};
use anyhow::{Context, Result, bail, ensure};
use bootshare_host::{Board, Machine, Share, demo, serve::Cache};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
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
const LIMIT: Duration = Duration::from_secs(600);

/// The names of the servers in tables. Each has its default settings, or caches as long as possible.
const OURS: &str = "embedded server";
const VIRTIOFSD: &str = "virtiofsd";
const OURS_ALWAYS: &str = "embedded server, --cache always";
const VIRTIOFSD_ALWAYS: &str = "virtiofsd, --cache always";

/// The measured programs whose times depend most on small requests.
const SMALL: [&str; 5] = ["find", "find again", "ls -lR", "tar", "git status"];

/// The time from the program's start to the login prompt.
const LOGIN: &str = "boot to login:";

/// Measures the programs of `root-init.sh`, and a boot to the login prompt.
pub fn run(out: &Path, rounds: usize) -> Result<Results> {
    let tree = tree()?;
    let always = always(out)?;
    let title = "Programs in a Linux guest whose root file system is the share, ms";
    let mut results = Results::new("root", title, Layout::Cases);
    let virtiofsd = Path::new(machines::VIRTIOFSD);
    let servers = [
        (OURS, None, Cache::default()),
        (VIRTIOFSD, Some(virtiofsd), Cache::default()),
        (OURS_ALWAYS, None, Cache::Always),
        (VIRTIOFSD_ALWAYS, Some(&always), Cache::default()),
    ];
    for round in 0..rounds {
        eprintln!("root file system: round {} of {rounds}", round + 1);
        for (name, server, cache) in servers {
            let mut machine = machine(&tree, "init=/root/bench/init");
            machine.server = server.map(Path::to_owned);
            machine.cache = cache;
            let text = machines::run(&machine)?.text();
            ensure!(!text.contains(" failed: "), "a program failed: {text}");
            for (program, time) in times(&text)? {
                results.add(&Case::new(program, name), None, time);
            }
        }
        for (name, server, cache) in &servers[..2] {
            let mut machine = machine(&tree, "");
            machine.server = server.map(Path::to_owned);
            machine.cache = *cache;
            machine.watch.expect = vec!["login: ".parse().context("a pattern")?];
            let time = machines::run(&machine)?.duration.as_secs_f64() * 1e3;
            results.add(&Case::new(LOGIN, *name), None, time);
        }
    }
    let programs: Vec<String> = results.groups().into_iter().map(String::from).collect();
    for program in programs {
        for (ours, theirs) in [(OURS, VIRTIOFSD), (OURS_ALWAYS, VIRTIOFSD_ALWAYS)] {
            let [ours, theirs] = [ours, theirs].map(|name| Case::new(&program, name));
            results.compare(&ours, &theirs);
            results.aim(ours, theirs, Bound::AtMost(1.0));
        }
    }
    for (ours, theirs) in [(OURS, VIRTIOFSD), (OURS_ALWAYS, VIRTIOFSD_ALWAYS)] {
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

/// A program that runs virtiofsd with `--cache=always` instead of the given option.
fn always(out: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(out.join("virtiofsd-always"))?;
    let virtiofsd = std::path::absolute(machines::VIRTIOFSD)?;
    let text = format!(
        "#!/bin/bash\nexec {} \"${{@/#--cache=*/--cache=always}}\"\n",
        virtiofsd.display()
    );
    script(&path, &text)?;
    Ok(path)
}

fn machine(tree: &Path, words: &str) -> Machine {
    let board = match cfg!(target_arch = "aarch64") {
        true => Board::Aarch64Virt,
        false => Board::X86_64Q35,
    };
    let firmware = Path::new("target/firmware").join(board.firmware_name());
    let mut machine = Machine::new(board, firmware);
    machine.append = format!(
        "bootshare.cmdline-default=console={} \
         bootshare.cmdline-default=\"root={} rootfstype=virtiofs\" -- {words}",
        board.arch().serial(),
        demo::TAG
    );
    machine.memory_mib = 2048;
    machine.shares = vec![Share::new(demo::TAG, tree)];
    machine.time_limit = Some(LIMIT);
    machine
}

/// The programs and their times in ms, from the lines `root: NAME: N us`.
fn times<'t>(text: &'t str) -> Result<Vec<(&'t str, f64)>> {
    let lines = text.lines().filter_map(|line| line.split_once("root: "));
    let parse = |line: &'t str| -> Result<(&'t str, f64)> {
        let (name, time) = line.split_once(": ").context("a name")?;
        let time = time.trim().strip_suffix(" us").context("a time in us")?;
        Ok((name, time.parse::<f64>()? / 1e3))
    };
    let times =
        lines.map(|(_, line)| parse(line).with_context(|| format!("cannot parse `{line}`")));
    let times: Vec<_> = times.collect::<Result<_>>()?;
    if times.is_empty() {
        bail!("the guest printed no times:\n{text}");
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_between_other_lines() {
        let text = "Linux version 6\nroot: find: 1500 us\r\n[    1.0] root: dd again: 250 us\n";
        let found = times(text).unwrap();
        assert_eq!(found, [("find", 1.5), ("dd again", 0.25)]);
        assert!(times("root: find: soon\n").is_err());
        assert!(times("no times\n").is_err());
    }
}
