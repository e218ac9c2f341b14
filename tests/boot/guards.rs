//! Guard pages that are not mapped while the firmware runs. QEMU's monitor translates addresses as the
//! processor would.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use bootshare_host::{Arch, Board};
use object::{Object, ObjectSymbol};

use crate::lab::{Server, empty_dir, machine, run};
use crate::shared::target;

const LIMIT: Duration = Duration::from_secs(30);

/// The pages below both stacks are not mapped, nor is page 0 where it is RAM: a stack overflow or a null
/// pointer ends in an error line. The next pages are mapped, which shows that the monitor's answers are
/// understood.
pub(crate) fn are_not_mapped(board: Board) {
    let file = format!("firmware/bootshare-{}.elf", board.arch().name());
    let file = fs::read(target().join(file)).unwrap();
    let file = object::File::parse(&*file).unwrap();
    // On x86-64 a stack is a static whose first page is its guard page.
    let (part, mut guards) = match board.arch() {
        Arch::X86_64 => ("STACK17h", vec![0]),
        Arch::Aarch64 => ("__stack_guard", vec![]),
    };
    let symbols = file.symbols();
    let found = symbols.filter(|symbol| symbol.name().is_ok_and(|name| name.contains(part)));
    guards.extend(found.map(|symbol| symbol.address()));
    let count = match board.arch() {
        Arch::X86_64 => 3,
        Arch::Aarch64 => 1,
    };
    assert_eq!(guards.len(), count, "{part}");

    let share = empty_dir(&format!("guards-{board:?}"));
    let socket = tempfile::tempdir().unwrap();
    let socket = socket.path().join("monitor");
    let mut machine = machine(board, Server::Embedded, &share, "bootshare.on-error=shell");
    machine.time_limit = Some(2 * LIMIT);
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    machine.qemu_args = vec!["-monitor".into(), monitor.into()];
    thread::scope(|scope| {
        let monitor = scope.spawn(|| {
            let mut monitor = Monitor::connect(&socket);
            // Until the firmware has loaded its page tables everything is mapped.
            let start = Instant::now();
            let is_guarded = |monitor: &mut Monitor| {
                let found: Vec<_> = guards.iter().map(|at| monitor.translation(*at)).collect();
                found.iter().all(Option::is_none)
            };
            while !is_guarded(&mut monitor) && start.elapsed() < LIMIT {
                thread::sleep(Duration::from_millis(100));
            }
            let guarded = is_guarded(&mut monitor);
            let next = guards.iter().map(|at| at + 0x1000);
            let mapped = next.map(|at| monitor.translation(at) == Some(at));
            let mapped: Vec<_> = mapped.collect();
            writeln!(monitor.0, "system_reset").unwrap();
            // The monitor drops a command if the connection is closed before it is read.
            monitor.0.read_to_end(&mut Vec::new()).unwrap();
            (guarded, mapped)
        });
        run(&machine);
        let (guarded, mapped) = monitor.join().unwrap();
        assert!(guarded, "{guards:x?}");
        assert_eq!(mapped, [true].repeat(count), "the pages behind them");
    });
}

struct Monitor(UnixStream);

impl Monitor {
    fn connect(socket: &Path) -> Self {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        let mut monitor = Self(stream);
        monitor.until_prompt();
        monitor
    }

    fn until_prompt(&mut self) -> String {
        let mut answer = String::new();
        let mut byte = [0];
        while !answer.ends_with("(qemu) ") {
            self.0.read_exact(&mut byte).unwrap();
            answer.push(byte[0].into());
        }
        answer
    }

    /// The physical address of a virtual address, if it is mapped.
    fn translation(&mut self, address: u64) -> Option<u64> {
        writeln!(self.0, "gva2gpa {address:#x}").unwrap();
        let answer = self.until_prompt();
        if answer.contains("Unmapped") {
            return None;
        }
        let (_, number) = answer
            .split_once("gpa: ")
            .unwrap_or_else(|| panic!("{answer:?}"));
        let number = number.lines().next().unwrap_or_default();
        // The monitor prints zero without the prefix `0x`.
        Some(u64::from_str_radix(number.trim_start_matches("0x"), 16).unwrap_or_default())
    }
}
