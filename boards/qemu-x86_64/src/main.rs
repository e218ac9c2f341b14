//! Firmware for QEMU's x86_64 boards.

fn main() {}
