//! The state of a file, by which an unchanged kernel is recognised without reading it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Part, VERSION};

/// The coarsest clock of a file system: FAT's.
const GRANULARITY: Duration = Duration::from_secs(2);

/// Identifies the content of a part of a file. A write sets the time of change (`ctime`), which no
/// program can set back.
#[derive(PartialEq, Eq)]
pub(super) struct State {
    part: Part,
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    pub(super) fn of(file: &File, part: Part) -> io::Result<Self> {
        let stat = file.metadata()?;
        Ok(Self {
            part,
            device: stat.dev(),
            inode: stat.ino(),
            size: stat.size(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        })
    }

    /// Whether the last change is so old that a write after `now` gets another time of change. If the
    /// content is read after `now`, the state belongs to that content and to no later one.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let (Ok(seconds), Ok(nanoseconds)) = (seconds.try_into(), nanoseconds.try_into()) else {
            return false;
        };
        let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
        let age = changed.and_then(|changed| now.duration_since(changed).ok());
        age.is_some_and(|age| age > GRANULARITY)
    }

    /// The name of its file in the cache.
    pub(super) fn name(&self) -> String {
        let Self {
            device,
            inode,
            size,
            modified,
            changed,
            part,
        } = self;
        let (modified, changed) = [modified, changed]
            .map(|(s, ns)| format!("{s}.{ns:09}"))
            .into();
        let Part {
            start,
            size: length,
        } = part;
        format!("{device}-{inode}-{size}-{modified}-{changed}-{start}-{length}-{VERSION}")
    }
}
