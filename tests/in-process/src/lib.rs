//! Real servers behind the device of `bootshare-test-device`: virtiofsd's own request handler
//! ([`Virtiofsd`]), fuse-backend-rs's ([`FuseBackend`]) and the host tool's embedded server
//! ([`Embedded`]), each on descriptor chains in this process's memory.
//!
//! The tests of this crate are what the client makes of them, and of devices that lie. The latter need
//! no server: without the feature `servers` they build in no time, for Miri.

#[cfg(feature = "servers")]
mod backend;

#[cfg(feature = "servers")]
pub use backend::{AsNobody, Embedded, FuseBackend, Virtiofsd};
