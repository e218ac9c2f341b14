#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(feature = "raw"),
    expect(dead_code, reason = "only code with the feature uses them")
)]
#![deny(missing_debug_implementations)]

mod backend;
mod chain;
mod clock;
mod device;
mod hal;
mod log;
mod memory;
mod quirks;
mod reply;
mod request;
mod ring;
mod share;
mod time;
mod transport;
mod tree;

pub use clock::{Stopped, VirtualClock};
pub use device::Device;
pub use hal::{BouncingHal, IommuHal, ScatteredHal, TestHal};
pub use reply::Reply;
pub use request::{Opcode, Request};
pub use share::TestShare;
pub use transport::TestTransport;
pub use tree::Tree;

/// Internals of the device, for the tests of this project: they may change in any version.
#[cfg(feature = "raw")]
pub mod raw {
    pub use crate::{
        backend::Backend,
        chain::{Buffer, Chain},
        clock::RealClock,
        log::{Balance, Log},
        quirks::{Area, Order, Quirks, Reset, Scribble},
        tree::dirent,
    };
}
