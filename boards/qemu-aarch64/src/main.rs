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
    use bootshare::loader::ExitStatus;

    // SAFETY: called once, from the entry code, with `x0` as it was on entry.
    match unsafe { board::Virt::new(x0) } {
        Ok(board) => run(board),
        Err(why) => {
            console::error(format_args!("{why}"));
            exit::exit(ExitStatus::Failure)
        }
    }
}

/// Says what the board found: until the library has a boot flow to call here.
#[cfg(target_os = "none")]
fn run(mut board: board::Virt) -> ! {
    use bootshare::{
        hal::Clock,
        loader::{Board, ExitStatus},
    };

    macro_rules! say {
        ($($message:tt)*) => {
            // Writing to the console never fails.
            _ = core::fmt::Write::write_fmt(
                &mut console::Console,
                format_args!("bootshare: {}\n", format_args!($($message)*)),
            )
        };
    }
    say!("started at EL{}", cpu::exception_level());
    for region in board.memory_map() {
        say!("memory {:?}: {:?}", region.range, region.kind);
    }
    say!("occupied: {:?}", board.occupied());
    say!("command line: {}", board.command_line().escape_ascii());
    say!(
        "clock: {} Hz, now {:?}",
        cpu::counter_frequency_hz(),
        board.clock().now()
    );
    for device in board.find_devices() {
        match device.transport {
            Ok(_) => say!("{}: usable", device.address),
            Err(why) => say!("{}: {why}", device.address),
        }
    }
    board::Virt::exit(ExitStatus::Success)
}
