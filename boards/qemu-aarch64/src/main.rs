//! Firmware for QEMU's aarch64 `virt` machine, with its devices on virtio-mmio or on PCI.
//!
//! One image, started with `-kernel` as an ELF file or as a raw arm64 Image. What the machine has
//! is read from the device tree. The crate is an empty program on anything but bare metal, so that
//! `cargo test` and `cargo clippy` work on it like on any other.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod board;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(any(target_os = "none", test))]
mod ecam;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod exception;
#[cfg(target_os = "none")]
mod exit;
#[cfg(any(target_os = "none", test))]
mod mapping;
#[cfg(any(target_os = "none", test))]
mod tree;

#[cfg(not(target_os = "none"))]
fn main() {}

/// The first function in Rust; `entry` says what holds here.
#[cfg(target_os = "none")]
extern "C" fn rust_main(x0: u64) -> ! {
    use bootshare::{
        hal::Clock,
        loader::{Board, ExitStatus},
    };
    use core::fmt::Write;

    // SAFETY: called once, from the entry code, with `x0` as it was on entry.
    let mut board = match unsafe { board::Virt::new(x0) } {
        Ok(board) => board,
        Err(why) => {
            console::error(format_args!("{why}"));
            exit::exit(ExitStatus::Failure)
        }
    };
    let mut out = console::Console;
    _ = writeln!(out, "bootshare: EL{}", cpu::exception_level());
    for region in board.memory_map() {
        _ = writeln!(out, "memory {region:?}");
    }
    _ = writeln!(out, "occupied {:?}", board.occupied());
    _ = writeln!(
        out,
        "command line {:?}",
        core::str::from_utf8(board.command_line())
    );
    _ = writeln!(
        out,
        "{} Hz, {:?}",
        cpu::counter_frequency_hz(),
        board.clock().now()
    );
    for device in board.find_devices() {
        match device.transport {
            Ok(_) => _ = writeln!(out, "{}: ok", device.address),
            Err(why) => _ = writeln!(out, "{}: {why}", device.address),
        }
    }
    board::Virt::exit(ExitStatus::Success)
}
