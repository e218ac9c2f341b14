//! Real servers for the device of `bootshare-test-device`: virtiofsd's own request handler
//! ([`Virtiofsd`]), fuse-backend-rs's ([`FuseBackend`]) and the host tool's embedded server
//! ([`Embedded`]), each on descriptor chains in this process's memory.
//!
//! The tests of this crate run the client with these servers and with hostile devices. The latter need no
//! server: without the feature `servers` they build fast, as Miri needs it.

#[cfg(feature = "servers")]
mod backend;

#[cfg(feature = "servers")]
pub use backend::{AsNobody, Embedded, FuseBackend, Virtiofsd};
