//! Pure parsers and planners: bytes in, decisions out.
//!
//! Floor 5. Nothing here does I/O or accesses a device. Every function accepts arbitrary bytes and returns a
//! value or an error in bounded time.
#![forbid(unsafe_code)]

mod architecture;
pub mod arm64_image;
pub mod bls;
mod bytes;
pub mod bzimage;
pub mod cmdline;
pub mod commands;
pub mod conventional;
pub mod device_tree;
pub mod elf;
pub mod entry;
pub mod extlinux;
pub mod glob;
pub mod grub;
pub mod gzip;
pub mod image;
pub mod memory;
pub mod options;
pub mod packed;
pub mod pe;
pub mod pvh;
pub(crate) mod text;
pub mod uboot_image;
pub mod uki;
pub mod version;
pub mod zboot;
pub mod zero_page;

pub use architecture::Architecture;

#[cfg(test)]
pub(crate) mod testing;
