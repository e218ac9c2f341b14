//! Firmware for QEMU's aarch64 `virt` machine, with its devices on virtio-mmio or on PCI.
//!
//! One image, started with `-kernel` as an ELF file or as a raw arm64 Image, or with `-bios` as the
//! same raw image. What the machine has is read from the device tree. The crate is an empty program on anything but bare metal, so that
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
#[cfg(target_os = "none")]
mod fw_cfg;
#[cfg(any(target_os = "none", test))]
mod mapping;
#[cfg(any(target_os = "none", test))]
mod tree;

#[cfg(not(target_os = "none"))]
fn main() {}

/// The first function in Rust; `entry` says what holds here.
#[cfg(target_os = "none")]
extern "C" fn rust_main(x0: u64, entered: u64) -> ! {
    use bootshare::loader::ExitStatus;

    // SAFETY: called once, from the entry code, with `x0` as it was on entry.
    match unsafe { board::Virt::new(x0, entered) } {
        // SAFETY: the board's memory map, what is occupied and what is mapped come from the device
        // tree and the linker, and `mapping` made the map accordingly; this runs once.
        Ok(board) => unsafe { bootshare::loader::run(board) },
        Err(why) => {
            console::error(format_args!("{why}"));
            exit::exit(ExitStatus::Failure)
        }
    }
}
