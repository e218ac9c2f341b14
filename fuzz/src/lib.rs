//! Tests of bootshare with hostile bytes: the bodies of the fuzz targets.
//!
//! Each target accepts any input, uses it as a boot would, and panics if a required property does not hold. `cargo
//! fuzz` searches for such inputs. `cargo test` runs the committed inputs and a fixed number of random ones,
//! without a fuzzer.

mod boot;
mod client;
mod random;
pub mod run;
#[cfg(not(miri))]
mod serve;
mod source;
mod wire;
mod zstd;

pub use boot::boot;
pub use client::client;
pub use random::Random;
#[cfg(not(miri))]
pub use serve::serve;
pub use wire::wire;
pub use zstd::zstd;

/// Miri does not support sockets.
#[cfg(miri)]
pub fn serve(_: &[u8]) {}
