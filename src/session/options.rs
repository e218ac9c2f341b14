//! How a session talks to its host.

use super::{MAX_CHUNK, MAX_DEPTH, MAX_REQUEST_QUEUES};
use core::time::Duration;

/// How a session talks to its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Longest wait for any progress of the host. Default: 10 s.
    pub deadline: Duration,
    /// Bytes that one READ asks for at most, 1 to 2^30. Default: 1 MiB.
    pub chunk_size: u32,
    /// READs in flight, 1 to 21. Default: 16.
    pub depth: usize,
    /// Request queues in use, 1 to 4, if the device offers so many. Default: 4.
    pub request_queues: usize,
    /// Entries of one directory, `.` and `..` among them, with more of which a listing is said to
    /// never end. Default: 2^24.
    pub max_entries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            chunk_size: 1 << 20,
            depth: 16,
            request_queues: MAX_REQUEST_QUEUES,
            max_entries: 1 << 24,
        }
    }
}

impl Options {
    /// With another deadline.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// With another chunk size in bytes; 0 is taken as 1, and 2^30 is the most.
    #[must_use]
    pub const fn with_chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// With another number of READs in flight.
    #[must_use]
    pub const fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// With another number of request queues at most: see
    /// [`pages_per_share`](super::pages_per_share) for what they take.
    #[must_use]
    pub const fn with_request_queues(mut self, queues: usize) -> Self {
        self.request_queues = queues;
        self
    }

    /// With another number of entries of one directory at most.
    #[must_use]
    pub const fn with_max_entries(mut self, entries: u32) -> Self {
        self.max_entries = entries;
        self
    }

    /// With each in its bounds.
    pub(super) fn clamped(self) -> Self {
        Self {
            chunk_size: self.chunk_size.clamp(1, MAX_CHUNK),
            depth: self.depth.clamp(1, MAX_DEPTH),
            request_queues: self.request_queues.clamp(1, MAX_REQUEST_QUEUES),
            ..self
        }
    }
}
