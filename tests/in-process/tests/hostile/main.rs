//! A host that lies, stalls or dies. Whatever it does, the client gives an error in bounded time,
//! panics nowhere, leaks no DMA page and lends no buffer beyond a call.
//!
//! Time is virtual: a deadline of ten seconds passes at once.

mod logger;
mod names;
mod parts;
mod platforms;
mod polled;
mod queues;
mod random;
mod reads;
mod replies;
mod resumed;
mod rig;
mod rings;
mod setup;
mod silence;
mod unwinding;
mod users;
