//! Firmware for QEMU's aarch64 boards.

fn main() {}
