//! Versions of files: whether a file has changed is seen without reading it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Statx;

/// The resolution of the coarsest clock of a file system: FAT's.
const RESOLUTION: Duration = Duration::from_secs(2);

/// A version of a file or directory: it changes whenever the content does. A write sets the time of
/// change (`ctime`), which no program can set back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    /// Seconds and nanoseconds.
    changed: (i64, u32),
    modified: (i64, u32),
    size: u64,
}

impl Version {
    pub(crate) fn of(stat: &Statx) -> Self {
        Self {
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            size: stat.stx_size,
        }
    }

    /// Whether the last change is so old that a change after `now` gets another time, so that content
    /// read after `now` belongs to this version and to no later one.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let Ok(seconds) = seconds.try_into() else {
            return false;
        };
        let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
        let age = changed.and_then(|changed| now.duration_since(changed).ok());
        age.is_some_and(|age| age > RESOLUTION)
    }
}

/// Displays all of it, as a part of a file's name.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            changed,
            modified,
            size,
        } = self;
        write!(f, "{size}")?;
        [modified, changed]
            .iter()
            .try_for_each(|(seconds, nanoseconds)| write!(f, "-{seconds}.{nanoseconds:09}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(changed: (i64, u32)) -> Version {
        Version {
            changed,
            modified: (3, 4),
            size: 5,
        }
    }

    #[test]
    fn a_version_is_settled_once_the_coarsest_clock_has_moved_on() {
        let now = UNIX_EPOCH + Duration::new(10, 7);
        assert!(version((8, 6)).is_settled(now));
        assert!(!version((8, 7)).is_settled(now));
        assert!(!version((9, 0)).is_settled(now));
        // In the future, before 1970, and beyond all that a time can be.
        assert!(!version((11, 0)).is_settled(now));
        assert!(!version((-1, 0)).is_settled(now));
        assert!(!version((i64::MAX, 0)).is_settled(now));
    }

    #[test]
    fn a_version_names_size_and_both_times() {
        let text = version((1, 2)).to_string();
        assert_eq!(text, "5-3.000000004-1.000000002");
    }

    #[test]
    fn a_write_makes_another_version() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = || {
            let mask = rustix::fs::StatxFlags::BASIC_STATS;
            let flags = rustix::fs::AtFlags::EMPTY_PATH;
            let stat = rustix::fs::statx(file.as_file(), c"", flags, mask).unwrap();
            (
                Version::of(&stat),
                stat.stx_mtime.tv_sec,
                stat.stx_ctime.tv_nsec,
            )
        };
        let (before, modified, changed) = of();
        assert!(before == of().0);
        assert_eq!(
            (before.modified.0, before.changed.1, before.size),
            (modified, changed, 0)
        );
        std::fs::write(file.path(), "text").unwrap();
        assert!(before != of().0);
    }
}
