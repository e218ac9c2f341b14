//! What the firmware's boards for QEMU share, whatever their architecture: the fw_cfg device, and
//! virtio-mmio slots.
//!
//! A board names the addresses; this crate has no facts of a single machine.

#![cfg_attr(not(test), no_std)]

pub mod fw_cfg;
pub mod slots;
