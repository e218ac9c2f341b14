//! A virtio-fs device in ordinary memory, for tests and benchmarks of bootshare.
//!
//! [`TestTransport`] implements `virtio-drivers`' `Transport`; behind it, [`Device`] serves the
//! real descriptor tables and rings that the driver built, as hardware would: what an address
//! means is the same for both, since "physical" addresses are this process's own. Who answers a
//! request is a [`Backend`]: virtiofsd's own request handler ([`Virtiofsd`]), fuse-backend-rs's
//! ([`FuseBackend`]), the host tool's embedded server ([`Embedded`]), or a script that may lie in
//! any way it likes ([`Scripted`]).
//!
//! Every request is recorded and held against the rules that keep real servers alive ([`Log`]).

mod backend;
mod chain;
mod clock;
mod device;
mod hal;
mod log;
mod memory;
mod ring;
mod temp;
mod tree;
mod wire;

pub use backend::{Answer, AsNobody, Backend, Reply, Scripted, When, open_files_below};
#[cfg(feature = "servers")]
pub use backend::{Embedded, FuseBackend, Virtiofsd};
pub use chain::{Buffer, Chain};
pub use clock::{RealClock, Stopped, VirtualClock};
pub use device::{Device, Order, Quirks, Reset, TestTransport};
pub use hal::TestHal;
pub use log::{Balance, Log};
pub use temp::TempDir;
pub use tree::{Node, Tree};
pub use wire::{Opcode, Request, dirent};

use bootshare::{Error, Options, Share};

/// A share mounted in virtual time.
pub type TestShare = Share<TestTransport, VirtualClock, TestHal>;

/// Mounts `device` in virtual time, in which the device too moves on.
///
/// # Errors
///
/// Those of [`Share::mount`].
pub fn mount(device: &Device, options: Options) -> Result<TestShare, Error> {
    let clock = VirtualClock::new(device);
    Share::mount_with(device.transport(), clock, options)
}
