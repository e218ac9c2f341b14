//! Directory entries, and the lists of them that open directories keep.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use fuse_backend_rs::api::filesystem::DirEntry;

use super::descriptors::Held;
use crate::version::Version;

/// The number of names in all lists of merged directories.
pub(super) static LISTED: AtomicUsize = AtomicUsize::new(0);

/// An entry of a directory.
#[derive(Clone)]
pub(super) struct Item {
    pub(super) name: CString,
    pub(super) ino: u64,
    pub(super) kind: u32,
    /// The cookie of the next entry.
    pub(super) next: u64,
}

impl Item {
    pub(super) fn entry(&self) -> DirEntry<'_> {
        DirEntry {
            ino: self.ino,
            offset: self.next,
            type_: self.kind,
            name: self.name.to_bytes(),
        }
    }
}

/// A directory that is being read.
pub(super) enum Listing {
    Stream(Stream),
    Merged(Option<Arc<Names>>),
    /// A directory that is shown as empty.
    Hidden,
}

/// A directory of one layer, as the host lists it.
pub(super) struct Stream {
    pub(super) dir: Held,
    /// The cookie of the first entry in `ahead`; if that is empty, of the next entry to read.
    pub(super) position: u64,
    /// Entries that were read but not yet returned to the guest.
    pub(super) ahead: VecDeque<Item>,
    pub(super) is_new: bool,
}

impl Stream {
    pub(super) fn new(dir: Held) -> Self {
        Self {
            dir,
            position: 0,
            ahead: VecDeque::new(),
            is_new: true,
        }
    }
}

/// All entries of a merged directory.
pub(super) struct Names {
    /// The version of each layer's directory when its entries were read.
    pub(super) versions: Vec<Version>,
    pub(super) items: Vec<Item>,
}

impl Drop for Names {
    fn drop(&mut self) {
        LISTED.fetch_sub(self.items.len(), Ordering::Relaxed);
    }
}

/// The list that all handles of a directory share.
pub(super) type SharedNames = Weak<Names>;
