//! How many instructions the client takes for a request, counted by valgrind's callgrind.
//!
//! Without arguments it runs itself under callgrind, with one job twice as often as before, so
//! that the difference is the job's alone: the same number each time. The device answers from
//! memory and is not counted, and neither is the copy, which is the host's to make.

use bootshare::Options;
use bootshare_tests::{Device, Node, Quirks, Scripted, TestHal, TestTransport, Tree, VirtualClock};
use std::{
    env, fmt,
    hint::black_box,
    process::{Command, ExitCode},
};
use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

type Share = bootshare::Share<NotCounted, VirtualClock, TestHal>;

const MIB: usize = 1 << 20;

/// What is done again and again.
struct Job {
    name: &'static str,
    /// How often, at first.
    times: u64,
    run: fn(&Share, times: u64),
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
        .with("large", Node::Pattern(16 * MIB as u64))
        .with("initrd.img", Node::File(b"content".to_vec()));
    let quirks = Quirks {
        records: false,
        ..Quirks::default()
    };
    let device = Device::with_quirks(Scripted::honest(tree), quirks);
    let transport = NotCounted(device.transport());
    let clock = VirtualClock::new(&device);
    let share = Share::mount_with(transport, clock, Options::default()).unwrap();
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
        .args(["--toggle-collect=*counted*", "--toggle-collect=*aside*"])
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

/// callgrind counts within this function.
#[inline(never)]
fn counted<R>(act: impl FnOnce() -> R) -> R {
    black_box(act())
}

/// And within this one it does not.
#[inline(never)]
fn aside<R>(act: impl FnOnce() -> R) -> R {
    black_box(act())
}

/// The way to the device, whose own work is not the client's.
struct NotCounted(TestTransport);

impl Transport for NotCounted {
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.0.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        aside(|| self.0.notify(queue));
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.0.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.0
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        self.0.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        self.0.write_config_space(offset, value)
    }
}
