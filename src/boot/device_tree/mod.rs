//! Writes a copy of a device tree with `/chosen` filled in for the payload.
//!
//! Follows the Devicetree Specification 0.4, chapter 5, "Flattened Devicetree (DTB) Format", and
//! section 3.6, "/chosen node".
//!
//! This is our own code because `dtoolkit` 0.4 cannot do it without a heap: it cannot add a node to a blob,
//! so that a tree without `/chosen` could not be used; its `add_property` panics on a strings block that its
//! own validation accepts; and it copies the free space, almost 1 MiB in QEMU's trees. Here the blob is read
//! once, from start to end, and written without gaps. The order of nodes and properties, the memory
//! reservations and all properties that [`Chosen`] does not name stay unchanged.
//!
//! A tree from the share, used instead of the machine's own, may come from a machine with other memory, or
//! from an earlier start of this machine. So its memory nodes are replaced by new ones from the memory map,
//! and the random seeds in its `/chosen` (`rng-seed`, `kaslr-seed`) by those of the machine's own tree. The
//! memory that it reserves is [kept free](reservations).

mod blob;
mod matching;
#[cfg(test)]
mod tests;
mod update;

pub use matching::Matching;
pub use update::{update, updated_bytes};

use crate::boot::{
    bytes::array,
    memory::{MemoryRegion, Range},
};
use blob::{Cells, Event, MAGIC, Tree, VERSION, Walk, is_node};
use core::{ffi::CStr, fmt};
use heapless::Vec;

/// A device tree starts at a multiple of this many bytes (booting.rst, section 2).
pub const ALIGNMENT: u64 = 8;

/// Largest device tree in bytes that arm64 Linux accepts (booting.rst, section 2).
pub const MAX_BYTES: usize = 2 << 20;

/// Most memory ranges that a tree may reserve.
pub const MAX_RESERVATIONS: usize = 64;

const BOOTARGS: &[u8] = b"bootargs";
const INITRD_START: &[u8] = b"linux,initrd-start";
const INITRD_END: &[u8] = b"linux,initrd-end";
const RNG_SEED: &[u8] = b"rng-seed";
const KASLR_SEED: &[u8] = b"kaslr-seed";
const DEVICE_TYPE: &[u8] = b"device_type";
const REG: &[u8] = b"reg";

/// The content to write into `/chosen`. It replaces properties of the same names; without a new value they
/// are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// The payload's command line: `bootargs`.
    pub command_line: &'a CStr,
    /// The initrd in memory, without padding: `linux,initrd-start` and `linux,initrd-end`.
    pub initrd: Option<Range>,
    /// The facts of this machine, if the tree is not its own.
    pub machine: Option<Machine<'a>>,
}

/// The facts that replace those in a tree that is not the machine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine<'a> {
    /// The machine's memory; regions that are not usable are skipped.
    pub memory: &'a [MemoryRegion],
    /// The random seeds in the machine's own tree.
    pub seeds: Seeds<'a>,
}

/// Random bytes for the kernel, different at each start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeds<'a> {
    /// `rng-seed`
    pub rng: Option<&'a [u8]>,
    /// `kaslr-seed`
    pub kaslr: Option<&'a [u8]>,
}

impl<'a> Seeds<'a> {
    /// Reads the seeds from the `/chosen` of a tree.
    ///
    /// # Errors
    ///
    /// [`DeviceTreeError`] if `blob` is not a well-formed device tree.
    pub fn of(blob: &'a [u8]) -> Result<Self, DeviceTreeError> {
        let tree = Tree::parse(blob)?;
        let mut walk = Walk::new(&tree);
        let mut seeds = Self::default();
        let mut in_chosen = false;
        while let Some(event) = walk.next()? {
            match event {
                Event::Begin(name) if walk.depth == 2 => in_chosen = is_node(name, b"chosen"),
                Event::Property { name, value, .. } if in_chosen && walk.depth == 2 => match name {
                    RNG_SEED => seeds.rng = Some(value),
                    KASLR_SEED => seeds.kaslr = Some(value),
                    _ => {}
                },
                _ => {}
            }
        }
        Ok(seeds)
    }
}

/// Whether `head` starts as a device tree blob does.
pub(super) fn has_magic(head: &[u8]) -> bool {
    array(head, 0).map(u32::from_be_bytes) == Some(MAGIC)
}

/// A tree's root and the machine have no `compatible` string in common: the tree is for another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other<'a> {
    /// `compatible` of the tree's root: strings, each followed by a NUL.
    tree: &'a [u8],
    /// `compatible` of the root of the machine's own tree.
    machine: &'a [u8],
}

impl<'a> Other<'a> {
    /// Compares the root's `compatible` of a tree with that of the machine's own tree (Devicetree
    /// Specification, 2.3.1). `None` if they have a string in common, or if one of them is missing.
    #[must_use]
    pub fn of(tree: &'a [u8], machine: &'a [u8]) -> Option<Self> {
        let (tree, machine) = (compatible(tree)?, compatible(machine)?);
        let is_same = names(tree).any(|name| names(machine).any(|other| other == name));
        (!is_same).then_some(Self { tree, machine })
    }
}

impl fmt::Display for Other<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = |value| names(value).next().unwrap_or_default().escape_ascii();
        write!(
            f,
            "it is for {} and this machine is {}, whose own device tree is used",
            first(self.tree),
            first(self.machine)
        )
    }
}

/// The name of the machine that a tree describes: the first string of its root's `compatible`.
#[must_use]
pub fn machine(tree: &[u8]) -> Option<&[u8]> {
    names(compatible(tree)?).next()
}

/// `compatible` of a tree's root, if present.
fn compatible(blob: &[u8]) -> Option<&[u8]> {
    let tree = Tree::parse(blob).ok()?;
    let mut walk = Walk::new(&tree);
    while let Some(event) = walk.next().ok()? {
        match event {
            Event::Property { name, value, .. } if walk.depth == 1 && name == b"compatible" => {
                return (!value.is_empty()).then_some(value);
            }
            // The properties of a node come before its children.
            Event::Begin(_) if walk.depth > 1 => break,
            _ => {}
        }
    }
    None
}

/// The strings in a property's value.
fn names(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
}

/// The memory that a tree reserves: the entries of its memory reservation block, and the children of
/// `/reserved-memory` that have a `reg` (Devicetree Specification, 5.3 and 3.5).
///
/// # Errors
///
/// [`DeviceTreeError`] if `blob` is not a well-formed device tree, or reserves more than
/// [`MAX_RESERVATIONS`] ranges.
pub fn reservations(blob: &[u8]) -> Result<Vec<Range, MAX_RESERVATIONS>, DeviceTreeError> {
    let tree = Tree::parse(blob)?;
    let mut found = Vec::new();
    let mut push = |start, size| match size {
        0 => Ok(()),
        _ => found
            .push(Range::with_size(start, size))
            .map_err(|_| DeviceTreeError::TooManyReservations),
    };
    for entry in tree.reservations.chunks_exact(16) {
        let number = |offset| array(entry, offset).map_or(0, u64::from_be_bytes);
        push(number(0), number(8))?;
    }
    let mut walk = Walk::new(&tree);
    let mut cells = Cells::DEFAULT;
    let mut inside = false;
    while let Some(event) = walk.next()? {
        match event {
            Event::Begin(name) if walk.depth == 2 => {
                inside = is_node(name, b"reserved-memory");
                cells = Cells::DEFAULT;
            }
            Event::Property { name, value, .. } if inside && walk.depth == 2 => {
                cells.consider(name, value);
            }
            Event::Property {
                name: REG, value, ..
            } if inside && walk.depth == 3 => {
                let bytes = cells.bytes().ok_or(walk.input.damaged("odd cells"))?;
                for range in value.chunks_exact(bytes) {
                    let (start, size) = cells.read(range);
                    push(start, size)?;
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Why a tree cannot be copied. In its messages, "it" is the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceTreeError {
    /// It does not have the magic number of a device tree blob.
    NotADeviceTree,
    /// Its format has an unsupported version.
    Version(u32),
    /// It is not well-formed.
    Damaged {
        /// The kind of damage.
        what: &'static str,
        /// The position in bytes, from the start of the structure block or of the blob.
        offset: usize,
    },
    /// It reserves more than [`MAX_RESERVATIONS`] ranges.
    TooManyReservations,
    /// The cells of its root are too few to describe this memory.
    Memory(Range),
    /// The copy would be larger than [`MAX_BYTES`].
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// The copy does not fit into the output buffer.
    NoRoom {
        /// Its size in bytes.
        bytes: usize,
        /// The size of the buffer in bytes.
        room: usize,
    },
}

impl fmt::Display for DeviceTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotADeviceTree => {
                f.write_str("it is not a device tree blob; use what dtc makes of its source")
            }
            Self::Version(version) => write!(
                f,
                "its format is of version {version} and {VERSION} is needed; \
                 make it again with a newer dtc"
            ),
            Self::Damaged { what, offset } => {
                write!(f, "it is damaged ({what} at byte {offset}); make it again")
            }
            Self::TooManyReservations => write!(
                f,
                "it reserves more than {MAX_RESERVATIONS} ranges of memory; use a simpler one"
            ),
            Self::Memory(range) => write!(
                f,
                "its root's #address-cells and #size-cells cannot describe the memory at {range:?}; \
                 make both 2"
            ),
            Self::TooLarge { bytes } => write!(
                f,
                "it has {bytes} bytes with the command line and Linux takes {MAX_BYTES} at most; \
                 use a smaller one"
            ),
            Self::NoRoom { bytes, room } => {
                write!(f, "it needs {bytes} bytes and there is room for {room}")
            }
        }
    }
}

impl core::error::Error for DeviceTreeError {}
