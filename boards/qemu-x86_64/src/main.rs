//! Firmware for QEMU's x86_64 boards: `microvm` (virtio-mmio), `q35` and `pc` (virtio-pci).
//!
//! Floor 7: facts of these machines, no policy. The image starts by PVH, so that QEMU's `-kernel`
//! enters it directly, or as a ROM, by `-bios`, on `microvm` and `q35`. It finds out by itself
//! which machine it is on.
//!
//! | module | what lives there | touches |
//! |---|---|---|
//! | `start` | ELF note, 32-bit entry, long mode, the stack | everything, once |
//! | `reset` | in a ROM: from the reset vector to `start` | everything, once |
//! | `rom` | in a ROM: makes the start info that PVH would give | the end of low memory, once |
//! | `chipset` | in a ROM: sets up `q35` | 00:00.0, 00:1f.0 and port 0x4d1 |
//! | `mtrr` | in a ROM: memory types | MTRRs |
//! | `fw_cfg` | QEMU's files for a ROM | ports 0x514 to 0x51b |
//! | `paging` | the identity map, guard pages | page tables, CR3, EFER |
//! | `exceptions` | GDT, TSS, IDT: an exception becomes an error line | these tables |
//! | `stack` | the stacks, each above a guard page | nothing |
//! | `counter` | the time-stamp counter | nothing |
//! | `console` | COM1 | ports 0x3f8 to 0x3ff |
//! | `exit` | how the machine ends; panics | port 0xf4, and what ACPI names |
//! | `cpuid` | what the CPU can do | nothing |
//! | `pic` | masks the 8259A interrupt controllers | ports 0x20, 0x21, 0xa0 and 0xa1 |
//! | `rest` | halts until the local APIC's timer fires | the local APIC |
//! | `kvm_clock` | the time-stamp counter's frequency from KVM | MSR 0x4b564d01 |
//! | `clock` | time, from the counter | PIT channel 2, port 0x61 |
//! | `pci` | configuration space | ports 0xcf8 to 0xcff |
//! | `slots` | the virtio-mmio devices of `microvm` | its slots |
//! | `machine` | start-up, and [`Board`](bootshare::loader::Board) | nothing |
//! | `pvh` | leaves 64-bit mode and enters a payload by PVH | everything, once |
//! | `start_info` | parser: PVH's start info | nothing, from here on |
//! | `acpi` | parser: how to power the machine off | nothing |
//! | `e820` | parser: a ROM's memory map | |
//! | `table_loader` | a ROM's ACPI tables | |
//! | `tables` | the page tables' content | |
//! | `tsc` | arithmetic of the clock | |
//! | `placement` | where device memory may be | |
//! | `words` | words for the kernel's command line | |
//!
//! On any other target the crate is an empty program, so that the modules without access to hardware
//! can be tested on the host.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(target_os = "none", test))]
mod acpi;
#[cfg(any(target_os = "none", test))]
mod e820;
#[cfg(any(target_os = "none", test))]
mod placement;
#[cfg(any(target_os = "none", test))]
mod start_info;
#[cfg(any(target_os = "none", test))]
mod table_loader;
#[cfg(any(target_os = "none", test))]
mod tables;
#[cfg(any(target_os = "none", test))]
mod tsc;
#[cfg(any(target_os = "none", test))]
mod words;

#[cfg(target_os = "none")]
mod chipset;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod counter;
#[cfg(target_os = "none")]
mod cpuid;
#[cfg(target_os = "none")]
mod exceptions;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod fw_cfg;
#[cfg(target_os = "none")]
mod kvm_clock;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod mtrr;
#[cfg(target_os = "none")]
mod paging;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod pic;
#[cfg(target_os = "none")]
mod pvh;
#[cfg(target_os = "none")]
mod reset;
#[cfg(target_os = "none")]
mod rest;
#[cfg(target_os = "none")]
mod rom;
#[cfg(target_os = "none")]
mod slots;
#[cfg(target_os = "none")]
mod stack;
#[cfg(target_os = "none")]
mod start;

#[cfg(not(target_os = "none"))]
fn main() {}
