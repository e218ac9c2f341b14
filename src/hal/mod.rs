//! What the client needs of a platform: DMA memory, an address for each buffer, and a clock.
//!
//! Floor 1, beside [`transport`](crate::transport). It may access raw memory (the DMA pool), and it
//! depends on no other part of the crate.
//!
//! The memory interface is `virtio-drivers`' own [`Hal`]. Firmware whose virtual addresses equal
//! its physical ones uses [`IdentityHal`]; any other platform implements [`Hal`] itself and can
//! take its pages from a [`DmaPool`] of its own. [`Hal::share`] may return 0 if it cannot lend the
//! whole buffer now; the client then tries with smaller pieces.

mod clock;
mod pool;

pub use clock::Clock;
pub(crate) use pool::SHARED_POOL_PAGES;
pub use pool::{DmaPool, IdentityHal, NotFromPool};
pub use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
