//! Servers whose request handlers answer in this process.

mod address_space;
mod as_nobody;
mod embedded;
mod fuse_backend;
mod one_chain;
mod virtiofsd;

pub use as_nobody::AsNobody;
pub use embedded::Embedded;
pub use fuse_backend::FuseBackend;
pub use virtiofsd::Virtiofsd;
