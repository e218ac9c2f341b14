//! Counts the instructions of the client for a request, with valgrind's callgrind.
//!
//! Without arguments, the program runs itself under callgrind for each job, once with the number of repetitions and
//! once with twice as many: the difference is the cost of the job alone, and is reproducible. The device answers
//! from memory. Neither the device nor the copy of the data, which the host makes, is counted.

use bootshare::Options;
use bootshare_test_device::{Device, TestShare, Tree};
use std::{
    env, fmt,
    hint::black_box,
    process::{Command, ExitCode},
};

const MIB: usize = 1 << 20;

/// A repeated operation.
struct Job {
    name: &'static str,
    /// The number of repetitions in the first run.
    times: u64,
    run: fn(&TestShare, times: u64),
}

const JOBS: [Job; 3] = [
    Job {
        name: "READ of 4 KiB",
        times: 1000,
        run: |share, times| {
            let file = share.open("large").unwrap();
            let mut buf = vec![0; 4096];
            for _ in 0..times {
                counted(|| file.read_exact_at(0, &mut buf)).unwrap();
            }
        },
    },
    Job {
        name: "MiB, read 16 at a time",
        times: 16,
        run: |share, times| {
            let file = share.open("large").unwrap();
            let mut buf = vec![0; 16 * MIB];
            for _ in 0..times / 16 {
                counted(|| file.read_exact_at(0, &mut buf)).unwrap();
            }
        },
    },
    Job {
        name: "LOOKUP and FORGET",
        times: 1000,
        run: |share, times| {
            let root = share.open_dir("/").unwrap();
            for _ in 0..times {
                _ = black_box(counted(|| root.symlink_metadata("initrd.img"))).unwrap();
            }
        },
    },
];

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    match (args.next(), args.next()) {
        (Some(job), Some(times)) => {
            work(&JOBS[job.parse::<usize>().unwrap()], times.parse().unwrap());
            ExitCode::SUCCESS
        }
        _ => match report() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("callgrind: error: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn work(job: &Job, times: u64) {
    let tree = Tree::new()
        .large_file("large", 16 * MIB as u64)
        .file("initrd.img", "content");
    let device = Device::new(tree);
    device.quirk(|quirks| quirks.records = false);
    let share = device.mount(Options::default()).unwrap();
    (job.run)(&share, times);
    share.unmount().unwrap();
}

fn report() -> Result<(), String> {
    println!("instructions of the client for one");
    for (index, job) in JOBS.iter().enumerate() {
        let once = instructions(index, job.times)?;
        let twice = instructions(index, 2 * job.times)?;
        let name = job.name;
        println!("{name:24} {:6}", (twice - once) / job.times);
    }
    Ok(())
}

fn instructions(job: usize, times: u64) -> Result<u64, String> {
    let failed = |error: &dyn fmt::Display| format!("cannot run valgrind, install it: {error}");
    let this = env::current_exe().map_err(|error| failed(&error))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*counted*")
        .args(ASIDE.map(|name| format!("--toggle-collect={name}")))
        .arg(this)
        .args([job.to_string(), times.to_string()])
        .output()
        .map_err(|error| failed(&error))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let count = collected.and_then(|(_, count)| count.trim().parse().ok());
    count
        .filter(|&count| count > 0 && output.status.success())
        .ok_or_else(|| format!("callgrind counted nothing:\n{text}"))
}

/// callgrind counts only inside this function.
#[inline(never)]
fn counted<R>(act: impl FnOnce() -> R) -> R {
    black_box(act())
}

/// callgrind does not count inside the device, nor in the test platform's record of shared buffers.
const ASIDE: [&str; 2] = ["*TestTransport*notify*", "*test_device*hal*shared*"];
