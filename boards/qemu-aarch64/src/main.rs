//! Firmware for QEMU's aarch64 `virt` machine, with its devices on virtio-mmio or on PCI.
//!
//! Floor 7: facts of this machine, no policy. One image, started with `-kernel` as an ELF file or as
//! a raw arm64 Image, or with `-bios` as the same raw image. Memory and devices are read from the
//! device tree.
//!
//! | module | what lives there | touches |
//! |---|---|---|
//! | `start` | image header, first translation tables, vectors, the stack | everything, once |
//! | `cpu` | system registers, caches, the jump to a payload | the MMU, TLB and caches |
//! | `exceptions` | an exception, or a panic, becomes an error line | nothing |
//! | `console` | PL011 | its registers |
//! | `exit` | how the machine ends | semihosting, PSCI |
//! | `pvpanic` | reports a failure to QEMU under KVM | PCI, once |
//! | `counter` | the timer's virtual count | nothing |
//! | `clock` | the boot flow's clock, from that count | nothing |
//! | `rest` | sleep while the host reads | interrupt controller and timer |
//! | `fw_cfg` | the options of a machine without `-append` | its registers |
//! | `machine` | start-up, and [`Board`](bootshare::loader::Board) | what the device tree names |
//! | `mapping` | what is mapped where | the tables that it is given |
//! | `tree` | what the device tree says | nothing |
//!
//! On any other target the crate is an empty program, so that `mapping` and `tree` can be tested on the host.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(target_os = "none", test))]
mod mapping;
#[cfg(any(target_os = "none", test))]
mod tree;

#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod counter;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod exceptions;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod fw_cfg;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod pvpanic;
#[cfg(target_os = "none")]
mod rest;
#[cfg(target_os = "none")]
mod start;

#[cfg(not(target_os = "none"))]
fn main() {}
