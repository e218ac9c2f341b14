//! Launches QEMU boards that boot from a host directory with Bootshare.
//!
//! This crate alone knows how a board is started: QEMU's arguments, the share's server, time
//! limits, and what a process's exit status means. `make run`, the boot tests and the benchmarks
//! describe a [`Machine`] and [run](Machine::run) it.

pub mod board;
pub mod command;
pub mod console;
pub mod debian;
pub mod demo;
mod dry_run;
mod elf;
pub mod explain;
mod fd;
pub mod guest;
pub mod interrupt;
pub mod kvm;
pub mod lock;
pub mod modules;
pub mod output;
pub mod prepare;
pub mod process;
pub mod qemu;
mod qmp;
pub mod rom;
pub mod run;
mod screen;
pub mod serve;
pub mod size;
mod spool;
pub mod startup;
pub mod syscall;
pub mod unpacked;
mod version;
mod virtiofsd;
pub mod watch;

pub use board::{Arch, Board};
pub use console::Console;
pub use qemu::{Accel, Machine, Share};
pub use run::{Act, Moment, Outcome, Report, Servers, Step};
