//! Pure parsers and planners: bytes in, decisions out.
//!
//! Floor 5. Nothing here does I/O or touches a device; every function takes arbitrary bytes and
//! answers with a value or an error in bounded time.
#![forbid(unsafe_code)]

pub mod memory;
