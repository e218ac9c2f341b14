//! The program of the host tool: see [`cli`] and the library.

mod cli;

use std::process::ExitCode;
use std::thread;

use bootshare_host::interrupt;

/// As for the main thread by default; `ulimit -s` does not apply to it.
const STACK: usize = 8 << 20;

fn main() -> ExitCode {
    // The new thread inherits it. If it fails, signals stay as the caller has left them.
    let _ = interrupt::unblock();
    // The kernel prefers the main thread for signals, so this one never waits for a file system, which no
    // signal interrupts.
    match thread::Builder::new().stack_size(STACK).spawn(cli::main) {
        // Its panic has been printed.
        Ok(worker) => worker.join().unwrap_or(ExitCode::from(101)),
        Err(_) => cli::main(),
    }
}
