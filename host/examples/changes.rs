//! Changes a tree on the host while a guest reads it, for tests/changing.sh. `changes make DIR TOOL` makes
//! DIR/tree. `changes run DIR RATE` makes RATE changes in a second until standard input ends, and prints the
//! number of changes.
//!
//! Each change is atomic: a program on the host that reads the tree never finds a name missing, except in
//! `build/tmp`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// The numbers and names of files in the tree.
const PACKAGES: usize = 20;
const PARTS: [&str; 3] = ["bin", "data", "lib"];
const OBJECTS: usize = 100;
const CUT: usize = 4;
const CUT_SIZE: u64 = 256 << 10;

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["make", dir, tool] => make(Path::new(dir), Path::new(tool)),
        ["run", dir, rate] => {
            let changes = run(Path::new(dir), rate.parse().context("RATE is no number")?)?;
            println!("{changes}");
            Ok(())
        }
        _ => bail!("usage: changes make DIR TOOL | run DIR RATE"),
    }
}

/// The content of a version of a file. If its lines differ, two versions were mixed.
fn content(version: usize) -> String {
    format!("version {version:08}\n").repeat(500)
}

fn package(number: usize) -> String {
    let part = PARTS[number % PARTS.len()];
    format!("pkg/p{:02}/{part}", number / PARTS.len() % PACKAGES)
}

fn make(dir: &Path, tool: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("stage"))?;
    let tree = dir.join("tree");
    let write = |name: &str| -> Result<()> {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().context("a name in the tree")?)?;
        fs::write(&path, content(0)).with_context(|| path.display().to_string())
    };
    for number in 0..200 {
        write(&format!("src/d{}/f{number}", number / 20))?;
    }
    for number in 0..PACKAGES * PARTS.len() {
        write(&package(number))?;
    }
    for number in 0..OBJECTS {
        write(&format!("build/obj/o{number}"))?;
    }
    for name in ["a", "b", "real", "swap"] {
        write(&format!("dirs/{name}/file"))?;
        write(&format!("dirs/{name}/sub/file"))?;
    }
    symlink("real", tree.join("dirs/other"))?;
    symlink("real", tree.join("dirs/current"))?;
    fs::create_dir_all(tree.join("build/tmp"))?;
    fs::create_dir_all(tree.join("cut"))?;
    for number in 0..CUT {
        File::create(tree.join(format!("cut/c{number}")))?.set_len(CUT_SIZE)?;
    }
    fs::copy(tool, tree.join("pkg/busybox"))?;
    Ok(())
}

/// Changes the tree until standard input ends. Returns the number of changes.
fn run(dir: &Path, rate: u32) -> Result<usize> {
    static OVER: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        // The end of standard input, or an error.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        OVER.store(true, Ordering::Relaxed);
    });
    let start = Instant::now();
    let mut count = 0;
    let tree = Tree {
        stage: dir.join("stage"),
        tree: dir.join("tree"),
    };
    while !OVER.load(Ordering::Relaxed) {
        tree.change(count)?;
        count += 1;
        let due = Duration::from_secs(1) / rate * u32::try_from(count)?;
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(count)
}

struct Tree {
    tree: PathBuf,
    stage: PathBuf,
}

impl Tree {
    fn change(&self, count: usize) -> Result<()> {
        let round = count / 10;
        let what = match count % 10 {
            // Like an upgrade: each file is written to another name and renamed over the old one.
            0..4 => self.replace(&package(round * 4 + count % 10), count),
            4..7 => self.replace(&format!("build/obj/o{}", count % OBJECTS), count),
            7 => {
                let path = self.tree.join(format!("build/tmp/t{}", round % 16));
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        fs::write(&path, content(count))
                    }
                    result => result,
                }
            }
            8 => match round % 4 {
                0 => self.exchange("dirs/a", "dirs/b"),
                // A directory is replaced by a link, and later restored.
                1 => self.exchange("dirs/swap", "dirs/other"),
                2 => {
                    let new = self.stage.join("current");
                    let target = ["real", "b"][round / 4 % 2];
                    symlink(target, &new)
                        .and_then(|()| fs::rename(&new, self.tree.join("dirs/current")))
                }
                _ => self.replace_tool(),
            },
            _ => {
                let path = self.tree.join(format!("cut/c{}", round % CUT));
                let size = [0, CUT_SIZE, 5000, CUT_SIZE][round / CUT % 4];
                File::options()
                    .write(true)
                    .open(path)
                    .and_then(|file| file.set_len(size))
            }
        };
        what.with_context(|| format!("change {count}"))
    }

    fn replace(&self, name: &str, version: usize) -> io::Result<()> {
        let new = self.stage.join("file");
        fs::write(&new, content(version))?;
        fs::rename(new, self.tree.join(name))
    }

    fn replace_tool(&self) -> io::Result<()> {
        let (new, old) = (self.stage.join("tool"), self.tree.join("pkg/busybox"));
        fs::copy(&old, &new)?;
        fs::rename(new, old)
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        let [one, other] = [one, other].map(|name| self.tree.join(name));
        match renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE) {
            // Some FUSE file systems do not support this.
            Ok(()) | Err(Errno::INVAL | Errno::NOSYS | Errno::XDEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
