//! Boot a machine straight from a directory on its host.
//!
//! Bootshare is a bare-metal virtio-fs client: poll-driven, synchronous, without a heap, over
//! virtio-mmio and virtio-pci.
//!
//! # The floors
//!
//! A floor names only those below it.
//!
//! | floor | module | what lives there |
//! |---|---|---|
//! | 6 | [`loader`] | the boot flow, over the small trait [`loader::Board`] |
//! | 5 | [`boot`] | pure parsers and planners: boot entries, images, memory map and placement, device tree |
//! | 4 | [`fs`] | the read-only file system: [`Share`], [`File`], [`ReadDir`], [`Metadata`] |
//! | 3 | [`session`] | one FUSE session over a virtqueue |
//! | 2 | [`fuse`] | the wire: encode and checked decode, no I/O |
//! | 1 | [`transport`], [`hal`] | virtio-mmio and virtio-pci for device 26, DMA pool, clock |

#![no_std]

#[cfg(test)]
extern crate std;

#[cfg(feature = "boot")]
pub mod boot;
mod error;
pub mod fs;
pub mod fuse;
pub mod hal;
#[cfg(feature = "loader")]
pub mod loader;
pub mod session;
pub mod transport;

pub use error::{DeviceError, Error};
pub use fs::{Dir, DirEntry, File, Metadata, ReadDir, Share};
pub use fuse::FileType;
pub use session::{Options, Tag};
