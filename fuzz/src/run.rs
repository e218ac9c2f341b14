//! Runs targets without a fuzzer.

use crate::Random;
use std::{
    env, fs, io, panic,
    path::{Path, PathBuf},
};

const USAGE: &str = "usage: FILE..., or --random CASES SEED with files or directories to change";

/// The program of a plain build: runs `target` on each of the files and directories that the command line names. After
/// `--random CASES SEED` it runs inputs that are made from these by random changes, always the same for a seed.
///
/// # Errors
///
/// A file cannot be read, or `CASES` or `SEED` is not a number.
pub fn main(target: fn(&[u8])) -> io::Result<()> {
    let mut args: Vec<_> = env::args().skip(1).collect();
    let mut numbers = Vec::new();
    if args.first().is_some_and(|first| first == "--random") {
        let number = |arg: String| arg.parse().map_err(|_| io::Error::other(USAGE));
        let end = args.len().min(3);
        numbers = args
            .drain(..end)
            .skip(1)
            .map(number)
            .collect::<Result<_, _>>()?;
        if numbers.len() < 2 {
            return Err(io::Error::other(USAGE));
        }
    }
    let mut files = Vec::new();
    for arg in args {
        files.extend(inputs(arg.as_ref())?);
    }
    let [cases, seed] = numbers[..] else {
        for (path, input) in files {
            println!("{}", path.display());
            target(&input);
        }
        return Ok(());
    };
    let corpus: Vec<_> = files.into_iter().map(|(_, input)| input).collect();
    println!(
        "{cases} random cases of seed {seed}, from {} files",
        corpus.len()
    );
    let mut random = Random::new(seed);
    for case in 0..cases {
        named(
            target,
            &format_args!("random case {case} of seed {seed}"),
            &random.case(&corpus),
        );
    }
    println!("{cases} executions");
    Ok(())
}

/// The file at `path`, or all files in the directory `path` in the order of their names.
///
/// # Errors
///
/// One of them cannot be read.
pub fn inputs(path: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path)?;
        paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        paths.sort();
    }
    let read = |path: PathBuf| match fs::read(&path) {
        Ok(input) => Ok((path, input)),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
    };
    paths.into_iter().map(read).collect()
}

/// Runs `target`. If it panics, names the input.
pub fn named(target: fn(&[u8]), name: &dyn std::fmt::Display, input: &[u8]) {
    if let Err(cause) = panic::catch_unwind(|| target(input)) {
        eprintln!("{name}: {}", input.escape_ascii());
        panic::resume_unwind(cause);
    }
}
