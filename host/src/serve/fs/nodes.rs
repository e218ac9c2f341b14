//! The nodes that the guest holds references to: one for each file, whatever its names are.
//!
//! A node holds an open descriptor, so it keeps referring to the same file when that is renamed,
//! removed or replaced on the host. A descriptor that was closed to make room (see `descriptors`)
//! is reopened by the name of the last lookup; if that is another file by then, the node is stale.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError, Weak};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::descriptors::{self, Evict, Held};
use super::entries::SharedNames;
use super::host::{self, Generation, Key};
use crate::lock::lock;
use crate::version::Version;

/// The result of a lookup in one layer.
pub(super) struct Found {
    pub(super) layer: usize,
    pub(super) fd: OwnedFd,
    pub(super) stat: Statx,
}

impl Found {
    pub(super) fn key(&self) -> Key {
        Key::of(&self.stat)
    }

    pub(super) fn is_dir(&self) -> bool {
        host::kind(&self.stat) == FileType::Directory
    }
}

/// The result of a lookup in all layers: a file of one layer, or a directory that merges those of
/// several layers.
pub(super) struct Entry {
    /// At least one; the first one's attributes are the entry's.
    pub(super) parts: Vec<Found>,
    /// The root of a file system that is mounted in the share.
    pub(super) submount: bool,
    /// On a file system that shows the host itself: an empty directory, or a file that cannot be
    /// opened.
    pub(super) hidden: bool,
}

impl Entry {
    /// Turns it into a new node, which holds its descriptors.
    fn into_node(self, id: u64, place: (u64, CString), now: u64) -> Node {
        let kind = host::kind(&self.parts[0].stat);
        let parts = self.parts.into_iter().map(|part| {
            let key = part.key();
            Part::new(part.layer, key, Arc::new(Held::new(part.fd, false)))
        });
        Node {
            submount: self.submount,
            hidden: self.hidden,
            checked: AtomicU64::new(now),
            cached: AtomicBool::new(true),
            ..Node::new(id, kind, parts.collect(), place)
        }
    }
}

/// A node's file in one layer.
pub(super) struct Part {
    pub(super) layer: usize,
    pub(super) key: Key,
    slot: Mutex<Slot>,
}

impl Part {
    fn new(layer: usize, key: Key, held: Arc<Held>) -> Self {
        Self {
            layer,
            key,
            slot: Mutex::new(Slot {
                held: Some(held),
                generation: None,
            }),
        }
    }
}

struct Slot {
    held: Option<Arc<Held>>,
    /// Identifies the file while its descriptor is closed.
    generation: Option<Generation>,
}

/// A file or directory that the guest knows.
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) kind: FileType,
    pub(super) submount: bool,
    pub(super) hidden: bool,
    pub(super) parts: Box<[Part]>,
    /// The directory and the name of the last lookup.
    place: Mutex<(u64, CString)>,
    /// When it was last found in the share, in milliseconds of the share's clock.
    checked: AtomicU64,
    /// The version at the last OPEN, if it [was settled](Version::is_settled) then.
    pub(super) opened: Mutex<Option<Version>>,
    /// The latest list of its entries, if it is a merged directory.
    pub(super) names: Mutex<SharedNames>,
    used: AtomicBool,
    cached: AtomicBool,
}

impl Node {
    fn new(id: u64, kind: FileType, parts: Box<[Part]>, place: (u64, CString)) -> Self {
        Self {
            id,
            kind,
            submount: false,
            hidden: false,
            parts,
            place: Mutex::new(place),
            checked: AtomicU64::new(0),
            opened: Mutex::default(),
            names: Mutex::default(),
            used: AtomicBool::new(true),
            cached: AtomicBool::new(false),
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(super) fn is_root(&self) -> bool {
        self.id == ROOT_ID
    }

    /// The directory and the name of the last lookup.
    pub(super) fn place(&self) -> (u64, CString) {
        lock(&self.place).clone()
    }

    pub(super) fn parent(&self) -> u64 {
        lock(&self.place).0
    }

    /// Whether it was last found in the share at least `period` milliseconds ago.
    pub(super) fn is_due(&self, now: u64, period: u64) -> bool {
        !self.is_root() && now.saturating_sub(self.checked.load(Ordering::Relaxed)) >= period
    }

    pub(super) fn checked(&self, now: u64) {
        self.checked.store(now, Ordering::Relaxed);
    }

    /// The descriptor of a part, if it is open.
    pub(super) fn held(&self, part: usize) -> Option<Arc<Held>> {
        self.used.store(true, Ordering::Relaxed);
        lock(&self.parts[part].slot).held.clone()
    }

    /// Stores a descriptor of the same file.
    pub(super) fn hold(self: &Arc<Self>, part: usize, held: Arc<Held>) {
        lock(&self.parts[part].slot).held = Some(held);
        if !self.is_root() && !self.cached.swap(true, Ordering::Relaxed) {
            let weak: Weak<Self> = Arc::downgrade(self);
            descriptors::cache(weak);
        }
    }

    /// Whether `found` is this part's file, whose descriptor may be closed.
    fn is(&self, part: usize, found: &Found) -> Result<bool, Errno> {
        let slot = lock(&self.parts[part].slot);
        Ok(match (&slot.held, &slot.generation) {
            // While the descriptor is open, the inode number cannot be reused.
            (Some(_), _) | (None, None) => true,
            (None, Some(known)) => Generation::of(found.fd.as_fd())? == *known,
        } && self.parts[part].key == found.key())
    }

    /// Stores a reopened descriptor of a part; an error if it is another file's.
    pub(super) fn hold_again(
        self: &Arc<Self>,
        part: usize,
        fd: OwnedFd,
    ) -> Result<Arc<Held>, Errno> {
        let stat = host::stat(fd.as_fd())?;
        let found = Found {
            layer: self.parts[part].layer,
            fd,
            stat,
        };
        if !self.is(part, &found)? {
            return Err(Errno::STALE);
        }
        let held = Arc::new(Held::new(found.fd, false));
        self.hold(part, Arc::clone(&held));
        Ok(held)
    }

    /// Whether an entry has the same parts.
    pub(super) fn has_parts_of(&self, entry: &Entry) -> bool {
        let ours = self.parts.iter().map(|part| (part.layer, part.key));
        ours.eq(entry.parts.iter().map(|part| (part.layer, part.key())))
    }
}

impl Evict for Node {
    fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn release(&self) -> bool {
        let mut slots = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let slot = match part.slot.try_lock() {
                Ok(slot) => slot,
                Err(TryLockError::Poisoned(slot)) => slot.into_inner(),
                Err(TryLockError::WouldBlock) => return false,
            };
            // An open handle or a request in flight uses it.
            if slot
                .held
                .as_ref()
                .is_some_and(|held| Arc::strong_count(held) > 1)
            {
                return false;
            }
            slots.push(slot);
        }
        for slot in &mut slots {
            if let Some(held) = &slot.held {
                let Ok(generation) = Generation::of(held.as_fd()) else {
                    return false;
                };
                slot.generation = Some(generation);
                slot.held = None;
            }
        }
        self.cached.store(false, Ordering::Relaxed);
        true
    }
}

/// A node and the number of lookups that the guest has to forget (nlookup).
struct Known {
    node: Arc<Node>,
    lookups: u64,
}

/// The files of a node: the key of the first part, and those of the others.
type Keys = (Key, Box<[Key]>);

#[derive(Default)]
struct Table {
    by_id: HashMap<u64, Known>,
    by_keys: HashMap<Keys, u64>,
    last_id: u64,
}

/// All nodes that the guest holds references to.
#[derive(Default)]
pub(super) struct Nodes(Mutex<Table>);

impl Nodes {
    /// Forgets all nodes except the root, which consists of `roots`.
    pub(super) fn clear(&self, roots: &[(Key, Arc<Held>)]) {
        let parts = roots.iter().enumerate();
        let parts = parts.map(|(layer, (key, held))| Part::new(layer, *key, Arc::clone(held)));
        let place = (ROOT_ID, CString::default());
        let root = Node::new(ROOT_ID, FileType::Directory, parts.collect(), place);
        let root = Known {
            node: Arc::new(root),
            lookups: 1,
        };
        let mut table = lock(&self.0);
        // Node IDs are not reused: a guest that was reset may still send an old one.
        let last_id = table.last_id.max(ROOT_ID);
        let old = std::mem::replace(
            &mut *table,
            Table {
                by_id: HashMap::from([(ROOT_ID, root)]),
                by_keys: HashMap::new(),
                last_id,
            },
        );
        drop(table);
        drop(old);
        descriptors::forget_dropped();
    }

    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let table = lock(&self.0);
        let known = table.by_id.get(&id).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&known.node))
    }

    /// Counts one lookup of an entry of the directory `parent`; creates its node if there is none.
    pub(super) fn enter(
        &self,
        parent: u64,
        name: &CStr,
        entry: Entry,
        now: u64,
    ) -> Result<Arc<Node>, Errno> {
        let mut keys = entry.parts.iter().map(Found::key);
        let first = keys.next().ok_or(Errno::NOENT)?;
        let keys = (first, keys.collect());
        loop {
            let known = {
                let table = lock(&self.0);
                let id = table.by_keys.get(&keys);
                let known = id.and_then(|id| table.by_id.get(id));
                known.map(|known| Arc::clone(&known.node))
            };
            if let Some(node) = &known
                && Self::is_same(node, &entry)?
                && self.count(node)
            {
                *lock(&node.place) = (parent, name.to_owned());
                node.checked(now);
                for (index, part) in entry.parts.into_iter().enumerate() {
                    // The new descriptor has the file's current path.
                    if node.held(index).is_none_or(|held| !held.readable) {
                        node.hold(index, Arc::new(Held::new(part.fd, false)));
                    }
                }
                return Ok(Arc::clone(node));
            }
            let mut table = lock(&self.0);
            if table.by_keys.get(&keys).copied() == known.map(|node| node.id) {
                table.last_id += 1;
                let node = entry.into_node(table.last_id, (parent, name.to_owned()), now);
                let node = Arc::new(node);
                let known = Known {
                    node: Arc::clone(&node),
                    lookups: 1,
                };
                table.by_id.insert(node.id, known);
                table.by_keys.insert(keys, node.id);
                drop(table);
                let weak: Weak<Node> = Arc::downgrade(&node);
                descriptors::cache(weak);
                return Ok(node);
            }
        }
    }

    fn is_same(node: &Node, entry: &Entry) -> Result<bool, Errno> {
        if (node.submount, node.hidden) != (entry.submount, entry.hidden) {
            return Ok(false);
        }
        for (index, part) in entry.parts.iter().enumerate() {
            if !node.is(index, part)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts one more lookup; `false` if the guest has forgotten the node meanwhile.
    fn count(&self, node: &Node) -> bool {
        let mut table = lock(&self.0);
        let known = table.by_id.get_mut(&node.id);
        known.is_some_and(|known| {
            known.lookups = known.lookups.saturating_add(1);
            true
        })
    }

    pub(super) fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let mut table = lock(&self.0);
        let Some(known) = table.by_id.get_mut(&id) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return;
        }
        let gone = table.by_id.remove(&id);
        if let Some(Known { node, .. }) = &gone {
            let mut keys = node.parts.iter().map(|part| part.key);
            if let Some(first) = keys.next() {
                let keys = (first, keys.collect());
                // A newer node may have the same key.
                if table.by_keys.get(&keys) == Some(&id) {
                    table.by_keys.remove(&keys);
                }
            }
        }
        drop(table);
        drop(gone);
    }
}
