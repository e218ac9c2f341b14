//! The options of a session.

use super::{MAX_CHUNK, MAX_DEPTH, MAX_REQUEST_QUEUES};
use core::time::Duration;

/// The options of a session: deadline, sizes and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Longest wait without any progress of the host. Default: 10 s.
    pub deadline: Duration,
    /// The greatest size of one READ in bytes, 1 to 2^30. Default: 1 MiB.
    pub chunk_size: u32,
    /// The number of READs in flight, 1 to 21. Default: 16.
    pub depth: usize,
    /// The number of request queues in use, 1 to 4, if the device offers so many. Default: 4.
    pub request_queues: usize,
    /// The greatest number of entries of a directory, including `.` and `..`. A listing with more
    /// entries fails as endless. Default: 2^24.
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
    /// Sets the deadline.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the chunk size in bytes; 0 counts as 1, and the maximum is 2^30.
    #[must_use]
    pub const fn with_chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// Sets the number of READs in flight.
    #[must_use]
    pub const fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// Sets the greatest number of request queues; [`pages_per_share`](super::pages_per_share) has
    /// their memory.
    #[must_use]
    pub const fn with_request_queues(mut self, queues: usize) -> Self {
        self.request_queues = queues;
        self
    }

    /// Sets the greatest number of entries of a directory.
    #[must_use]
    pub const fn with_max_entries(mut self, entries: u32) -> Self {
        self.max_entries = entries;
        self
    }

    /// The options with each value clamped to its bounds.
    pub(super) fn clamped(self) -> Self {
        Self {
            chunk_size: self.chunk_size.clamp(1, MAX_CHUNK),
            depth: self.depth.clamp(1, MAX_DEPTH),
            request_queues: self.request_queues.clamp(1, MAX_REQUEST_QUEUES),
            ..self
        }
    }
}
