//! Tests with a host that lies, stalls or dies. Whatever the host does, the client must return an error in bounded
//! time, must not panic, must not leak DMA pages and must not lend a buffer for longer than a call.
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
