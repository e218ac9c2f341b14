//! Boot a machine straight from a directory on its host.
//!
//! Bootshare is a bare-metal virtio-fs client: poll-driven, synchronous, without a heap, over
//! virtio-mmio and virtio-pci. It reads files from a directory that the host shares, into the
//! caller's buffers and without a copy in the guest.
//!
//! ```no_run
//! use bootshare::{Error, Options, Share, hal::Clock, transport::Transport};
//!
//! /// Reads a kernel to where it is to run; returns its size in bytes.
//! fn load(transport: impl Transport, clock: impl Clock, to: &mut [u8]) -> Result<usize, Error> {
//!     let share = Share::mount(transport, clock, Options::default())?;
//!     for entry in share.read_dir("/")? {
//!         log::info!("{:?}", entry?);
//!     }
//!     let size = share.open("/boot/vmlinuz")?.read_at(0, to)?;
//!     share.unmount()?;
//!     Ok(size)
//! }
//! ```
//!
//! These calls wait for the host, at most as long as [`Options::deadline`] without progress. A
//! kernel or hypervisor that must not wait polls a [`session::Session`] instead, and uses its own
//! time and interrupts:
//!
//! ```no_run
//! use bootshare::{Error, hal::Hal, session::{Session, Ticket}, transport::Transport};
//! use bootshare::fuse::{Lookup, NodeId};
//!
//! const LOOKUP: Lookup<'_> = Lookup { parent: NodeId::ROOT, name: b"vmlinuz" };
//!
//! /// Asks for a file. `None` if no request slot is free until another reply has arrived.
//! fn ask<T: Transport, H: Hal>(session: &mut Session<T, H>) -> Result<Option<Ticket>, Error> {
//!     let asked = session.submit(session.epoch(), &LOOKUP)?;
//!     session.kick();
//!     Ok(asked)
//! }
//!
//! /// Looks for the reply. Called from time to time, or after an interrupt.
//! fn look<T: Transport, H: Hal>(
//!     session: &mut Session<T, H>,
//!     asked: Ticket,
//!     now: core::time::Duration,
//! ) -> Result<Option<NodeId>, Error> {
//!     session.poll();
//!     // Ends the session if the host was silent for too long.
//!     session.tick(now);
//!     match session.take(&LOOKUP, asked)? {
//!         None => Ok(None),
//!         Some(None) => Err(Error::NotFound),
//!         Some(Some(entry)) => Ok(Some(entry.node)),
//!     }
//! }
//! ```
//!
//! The repository's `examples` have both as whole programs, and one by the traits of
//! `embedded-io-async`.
//!
//! # The floors
//!
//! A floor uses only the floors below it. `ARCHITECTURE.md` has the table and follows one read
//! through the floors.
//!
//! ```text
//! 7  your firmware, or boards/         entry, console, where memory and devices are
//! 6  loader   (feature `loader`)       the boot flow, over the trait Board
//! 5  boot     (feature `boot`)         parsers and planners, pure
//! 4  fs       Share, File, Dir         the read-only file system
//! 3  session                           one FUSE session: submit, poll; or wait for it
//! 2  fuse                              the wire: encode and checked decode, no I/O
//! 1  transport (`mmio`, `pci`), hal    registers; DMA memory and clock
//! ```
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `mmio` | yes | `transport::mmio` |
//! | `pci` | yes | `transport::pci` |
//! | `embedded-io` | yes | `embedded_io::Read` and `Seek` for [`File`], `Error` for [`Error`] |
//! | `boot` | no | parsers and planners for boot entries, kernel images, memory, device trees |
//! | `minimal` | no | the boot flow, for entries of the Boot Loader Specification and conventional names; implies `boot`, `mmio`, `pci` |
//! | `elf`, `extlinux`, `packed`, `shell`, `uki` | no | what the boot flow can do besides: ELF programs, `extlinux.conf`, compressed arm64 kernels, menu and shell, unified kernel images; each implies `minimal` |
//! | `digest` | no | SHA-256 of files; implied by `shell` and `uki` |
//! | `loader` | no | all of it: what the firmware images are made of |
//!
//! The crate needs Rust 1.88, the examples 1.95.
//!
//! # Where to read on
//!
//! [`guide::porting`] says what a platform must provide, [`guide::dma`] why it is sound that the host
//! writes into the guest's memory, [`guide::threat_model`] what a hostile host can do, and
//! [`guide::performance`] how fast the client is.

#![no_std]
#![deny(missing_debug_implementations)]
// No reply and no file may end a program: constructs that could panic are denied below the boot flow.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

#[cfg(test)]
extern crate std;

#[cfg(feature = "boot")]
pub mod boot;
mod error;
pub mod fs;
pub mod fuse;
pub mod hal;
#[cfg(feature = "minimal")]
pub mod loader;
pub mod session;
pub mod transport;

pub use error::{DeviceError, Error};
pub use fs::{Dir, DirEntry, File, Metadata, Part, RawDir, RawFile, ReadDir, Share};
pub use fuse::FileType;
pub use session::{Options, Tag};

/// How things work, and why.
#[cfg(any(doc, doctest))]
pub mod guide {
    #[doc = include_str!("../docs/boot-protocols.md")]
    pub mod boot_protocols {}
    #[doc = include_str!("../docs/dma.md")]
    pub mod dma {}
    #[doc = include_str!("../docs/performance.md")]
    pub mod performance {}
    #[doc = include_str!("../docs/porting.md")]
    pub mod porting {}
    #[doc = include_str!("../docs/threat-model.md")]
    pub mod threat_model {}
    #[doc = include_str!("../docs/transports.md")]
    pub mod transports {}
}

/// The README's example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub mod readme {}
