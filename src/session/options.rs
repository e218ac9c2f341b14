//! Options of a session.

use super::{MAX_CHUNK, MAX_DEPTH, MAX_REQUEST_QUEUES};
use core::time::Duration;

/// Options of a session: limits, sizes, and the number of requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Longest wait without any progress by the host. Default: 10 s.
    pub deadline: Duration,
    /// Most bytes of one READ, 1 to 2^30. Default: 1 MiB.
    pub chunk_size: u32,
    /// Most READs in flight for one transfer, 1 to 21. Default: 16.
    pub depth: usize,
    /// Most request queues to use, 1 to 4; the device may offer fewer. Default: 4.
    pub request_queues: usize,
    /// Most entries of one directory, including `.` and `..`. A longer listing fails, because a
    /// hostile server could make it endless. Default: 2^24.
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
    /// Sets [`Options::deadline`].
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets [`Options::chunk_size`] in bytes; 0 counts as 1, and more than 2^30 as 2^30.
    #[must_use]
    pub const fn with_chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// Sets [`Options::depth`].
    #[must_use]
    pub const fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// Sets [`Options::request_queues`]; [`pages_per_share`](super::pages_per_share) tells how many
    /// DMA pages they need.
    #[must_use]
    pub const fn with_request_queues(mut self, queues: usize) -> Self {
        self.request_queues = queues;
        self
    }

    /// Sets [`Options::max_entries`].
    #[must_use]
    pub const fn with_max_entries(mut self, entries: u32) -> Self {
        self.max_entries = entries;
        self
    }

    /// The options with each value within its bounds.
    pub(super) fn clamped(self) -> Self {
        Self {
            chunk_size: self.chunk_size.clamp(1, MAX_CHUNK),
            depth: self.depth.clamp(1, MAX_DEPTH),
            request_queues: self.request_queues.clamp(1, MAX_REQUEST_QUEUES),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_clamped_to_its_documented_bounds() {
        let clamped = |bytes, count| {
            let options = Options::default().with_chunk_size(bytes);
            let options = options.with_depth(count).with_request_queues(count);
            let clamped = options.clamped();
            (clamped.chunk_size, clamped.depth, clamped.request_queues)
        };
        assert_eq!(clamped(0, 0), (1, 1, 1));
        assert_eq!(clamped(u32::MAX, usize::MAX), (1 << 30, 21, 4));
    }
}
