//! The state of a file, by which an unchanged kernel is recognised without reading it.

use std::fs::File;

use rustix::fs::{AtFlags, StatxFlags, makedev, statx};
use rustix::io::Errno;

use super::{Part, VERSION};
use crate::version::Version;

/// Identifies the content of a part of a file.
#[derive(PartialEq, Eq)]
pub(super) struct State {
    part: Part,
    device: u64,
    inode: u64,
    pub(super) version: Version,
}

impl State {
    pub(super) fn of(file: &File, part: Part) -> Result<Self, Errno> {
        let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        Ok(Self {
            part,
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            version: Version::of(&stat),
        })
    }

    /// The name of its file in the cache.
    pub(super) fn name(&self) -> String {
        let Self {
            part: Part { start, size },
            device,
            inode,
            version,
        } = self;
        format!("{device}-{inode}-{version}-{start}-{size}-{VERSION}")
    }
}
