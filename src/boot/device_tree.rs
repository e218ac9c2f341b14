//! A copy of the platform's device tree with `/chosen` filled in for the payload.
//!
//! Follows the Devicetree Specification 0.4, chapter 5, "Flattened Devicetree (DTB) Format", and
//! section 3.6, "/chosen node".
//!
//! An editor of its own, because `dtoolkit` 0.4 can't do this without a heap: it adds no nodes to
//! a blob, so a tree without `/chosen` could not be used; its `add_property` panics on a strings
//! block that its own validation lets pass; and it keeps the free space, of which QEMU leaves
//! almost 1 MiB. Here the blob is read once, from start to end, and written without gaps: the
//! order of nodes and properties, the memory reservations and everything that is not named in
//! [`Chosen`] stay as they are.
//!
//! A tree from the share, in place of the machine's own, may come from a machine with other memory,
//! or from an earlier start of this one. All of it is taken but for three things, which are those
//! of the machine that runs: the memory nodes, written anew from its memory map, and in `/chosen`
//! the random seeds, `rng-seed` and `kaslr-seed`. What it reserves is [kept free](reservations).

use crate::boot::{
    bytes::array,
    memory::{MemoryKind, MemoryRegion, Range},
};
use core::{ffi::CStr, fmt};
use heapless::Vec;

/// A device tree starts at a multiple of this many bytes (booting.rst, section 2).
pub const ALIGNMENT: u64 = 8;

/// The largest device tree in bytes that arm64 Linux takes (booting.rst, section 2).
pub const MAX_BYTES: usize = 2 << 20;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
/// Version 17 can be read by who knows 16 alone.
const LAST_COMPATIBLE_VERSION: u32 = 16;
const HEADER_BYTES: usize = 40;

/// Property names are far shorter (2.2.4.1 says 31), with their NUL: the end of one is not looked
/// for all through the strings block, as often as there are properties.
const NAME_BYTES: usize = 256;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// The most ranges that a tree may reserve.
pub const MAX_RESERVATIONS: usize = 64;

const BOOTARGS: &[u8] = b"bootargs";
const INITRD_START: &[u8] = b"linux,initrd-start";
const INITRD_END: &[u8] = b"linux,initrd-end";
const RNG_SEED: &[u8] = b"rng-seed";
const KASLR_SEED: &[u8] = b"kaslr-seed";
const DEVICE_TYPE: &[u8] = b"device_type";
const REG: &[u8] = b"reg";
/// The names of the properties that are written here.
const NAMES: [&[u8]; 7] = [
    BOOTARGS,
    INITRD_START,
    INITRD_END,
    RNG_SEED,
    KASLR_SEED,
    DEVICE_TYPE,
    REG,
];

/// What `/chosen` is to say. Properties of these names that are there already are replaced, or
/// go where there is nothing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// The payload's command line: `bootargs`.
    pub command_line: &'a CStr,
    /// Where the initrd lies, without any padding, if there is one: `linux,initrd-start` and
    /// `linux,initrd-end`.
    pub initrd: Option<Range>,
    /// The machine that runs, for a tree from elsewhere.
    pub machine: Option<Machine<'a>>,
}

/// What a tree from elsewhere can't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine<'a> {
    /// Its memory; regions that are not usable are left out.
    pub memory: &'a [MemoryRegion],
    /// The seeds that its platform gave.
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
    /// Those in the `/chosen` of a tree.
    ///
    /// # Errors
    ///
    /// [`DeviceTreeError`] for what is not a well-formed device tree.
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

/// The memory that a tree says is not for use: the entries of its reservation block, and the
/// children of `/reserved-memory` that have an address (Devicetree Specification, 5.3 and 3.5).
///
/// # Errors
///
/// [`DeviceTreeError`] for what is not a well-formed device tree, or if there are more than
/// [`MAX_RESERVATIONS`].
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

/// How many 32-bit numbers an address and a size have (Devicetree Specification, 2.3.5).
#[derive(Clone, Copy)]
struct Cells {
    address: u32,
    size: u32,
}

impl Cells {
    const DEFAULT: Self = Self {
        address: 2,
        size: 1,
    };

    /// Takes a property of the parent node into account.
    fn consider(&mut self, name: &[u8], value: &[u8]) {
        let Some(number) = array(value, 0).map(u32::from_be_bytes) else {
            return;
        };
        match name {
            b"#address-cells" => self.address = number,
            b"#size-cells" => self.size = number,
            _ => {}
        }
    }

    /// Bytes of an address and a size, unless they have more bits than a number here, or none.
    fn bytes(self) -> Option<usize> {
        let counts = 1..=2;
        if !counts.contains(&self.address) || !counts.contains(&self.size) {
            return None;
        }
        let cells = self.address.checked_add(self.size)?;
        usize::try_from(cells.checked_mul(4)?).ok()
    }

    /// The address and the size in these bytes.
    fn read(self, bytes: &[u8]) -> (u64, u64) {
        let mut cells = bytes
            .chunks_exact(4)
            .map(|cell| array(cell, 0).map_or(0, u32::from_be_bytes));
        let mut number = |count: u32| {
            (0..count).fold(0_u64, |number, _| {
                number << 32 | u64::from(cells.next().unwrap_or(0))
            })
        };
        (number(self.address), number(self.size))
    }

    /// Whether a range can be told in as many.
    fn can_tell(self, range: Range) -> bool {
        let fits = |number: u64, cells: u32| cells == 2 || number <= u32::MAX.into();
        fits(range.start, self.address) && fits(range.size(), self.size)
    }
}

/// Why there is no copy. The sentences go on from "the device tree" or its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceTreeError {
    /// It does not start as a device tree blob does.
    NotADeviceTree,
    /// Its format is of another version.
    Version(u32),
    /// It is no well-formed tree.
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the start of its structure block or of itself.
        offset: usize,
    },
    /// It reserves more than [`MAX_RESERVATIONS`] ranges.
    TooManyReservations,
    /// Its root has too few cells for this memory.
    Memory(Range),
    /// The copy would be larger than [`MAX_BYTES`].
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// The copy does not fit into the room for it.
    NoRoom {
        /// Its size in bytes.
        bytes: usize,
        /// The room in bytes.
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
                "its root's #address-cells and #size-cells can't tell of the memory at {range:?}; \
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

/// Size in bytes of the copy that [`update`] writes.
///
/// # Errors
///
/// [`DeviceTreeError`] for what is not a well-formed device tree.
pub fn updated_bytes(blob: &[u8], chosen: &Chosen<'_>) -> Result<usize, DeviceTreeError> {
    write(blob, chosen, &mut [])
}

/// Writes a copy of `blob` with `chosen` in it to the start of `out`, and gives its size in bytes.
///
/// `blob` may go on after the tree's end.
///
/// # Errors
///
/// [`DeviceTreeError`] for what is not a well-formed device tree, or if `out` is too small; what
/// is in `out` is of no use then.
pub fn update(blob: &[u8], chosen: &Chosen<'_>, out: &mut [u8]) -> Result<usize, DeviceTreeError> {
    let room = out.len();
    let bytes = write(blob, chosen, out)?;
    if bytes > room {
        return Err(DeviceTreeError::NoRoom { bytes, room });
    }
    Ok(bytes)
}

/// Writes what fits into `out`, and gives the size of all.
fn write(blob: &[u8], chosen: &Chosen<'_>, out: &mut [u8]) -> Result<usize, DeviceTreeError> {
    let tree = Tree::parse(blob)?;
    let mut out = Output {
        buffer: out,
        len: 0,
    };
    // The header's place; its numbers are known at the end.
    out.bytes(&[0; HEADER_BYTES]);
    out.bytes(tree.reservations);
    let structure = out.len;
    copy_structure(&tree, chosen, &mut out)?;
    let strings = out.len;
    out.bytes(tree.strings);
    // A NUL should the last string lack it.
    out.bytes(&[0]);
    for name in NAMES {
        out.bytes(name);
        out.bytes(&[0]);
    }

    let bytes = out.len;
    if bytes > MAX_BYTES {
        return Err(DeviceTreeError::TooLarge { bytes });
    }
    for (i, number) in [
        MAGIC,
        number(bytes),
        number(structure),
        number(strings),
        number(HEADER_BYTES),
        VERSION,
        LAST_COMPATIBLE_VERSION,
        tree.boot_cpu,
        number(bytes.saturating_sub(strings)),
        number(strings.saturating_sub(structure)),
    ]
    .into_iter()
    .enumerate()
    {
        out.put(i.saturating_mul(4), &number.to_be_bytes());
    }
    Ok(bytes)
}

/// As 32 bits. A number that is cut off belongs to a copy that is refused as too large.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The blocks of a blob.
struct Tree<'a> {
    /// With the entry of zeros that ends it.
    reservations: &'a [u8],
    structure: &'a [u8],
    strings: &'a [u8],
    boot_cpu: u32,
}

impl<'a> Tree<'a> {
    fn parse(blob: &'a [u8]) -> Result<Self, DeviceTreeError> {
        let field = |index: usize| {
            let bytes = array(blob, index.saturating_mul(4));
            bytes
                .map(u32::from_be_bytes)
                .ok_or(DeviceTreeError::NotADeviceTree)
        };
        if field(0)? != MAGIC {
            return Err(DeviceTreeError::NotADeviceTree);
        }
        let (version, last_compatible) = (field(5)?, field(6)?);
        if version < VERSION || last_compatible > VERSION {
            return Err(DeviceTreeError::Version(version));
        }
        let block = |what, start: u32, size: Option<u32>| {
            let offset = usize::try_from(start).unwrap_or(usize::MAX);
            let damaged = DeviceTreeError::Damaged { what, offset };
            let total = usize::try_from(field(1)?).unwrap_or(usize::MAX);
            let tail = blob.get(..total).and_then(|blob| blob.get(offset..));
            let tail = tail.ok_or(damaged)?;
            match size.map(usize::try_from) {
                Some(size) => tail.get(..size.unwrap_or(usize::MAX)).ok_or(damaged),
                None => Ok(tail),
            }
        };
        let (strings_size, structure_size) = (field(8)?, field(9)?);
        let after_header = block("the memory reservations", field(4)?, None)?;
        let count = after_header
            .chunks_exact(16)
            .position(|entry| entry == [0; 16])
            .ok_or(DeviceTreeError::Damaged {
                what: "the memory reservations",
                offset: after_header.len(),
            })?;
        let reserved_bytes = count.saturating_add(1).saturating_mul(16);
        Ok(Self {
            reservations: after_header.get(..reserved_bytes).unwrap_or_default(),
            structure: block("the structure block", field(2)?, Some(structure_size))?,
            strings: block("the strings block", field(3)?, Some(strings_size))?,
            boot_cpu: field(7)?,
        })
    }

    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let tail = self.strings.get(usize::try_from(offset).ok()?..)?;
        let tail = tail.get(..NAME_BYTES).unwrap_or(tail);
        tail.split_at_checked(tail.iter().position(|&byte| byte == 0)?)
            .map(|(string, _)| string)
    }
}

/// Where the name of a property of ours is in the new strings block: after those that are there.
fn name_offset(strings: &[u8], wanted: &[u8]) -> u32 {
    let before = NAMES.iter().take_while(|name| **name != wanted);
    let offset = before.fold(strings.len().saturating_add(1), |offset, name| {
        offset.saturating_add(name.len()).saturating_add(1)
    });
    number(offset)
}

/// Copies the structure block (Devicetree Specification, 5.4), with our properties in `/chosen`.
fn copy_structure(
    tree: &Tree<'_>,
    chosen: &Chosen<'_>,
    out: &mut Output<'_>,
) -> Result<(), DeviceTreeError> {
    let writer = Writer {
        strings: tree.strings,
        chosen,
    };
    let mut walk = Walk::new(tree);
    let mut cells = Cells::DEFAULT;
    let mut chosen_seen = false;
    let mut in_chosen = false;
    // A node of memory is left out, with all that is in it.
    let mut in_memory = false;
    while let Some(event) = walk.next()? {
        match event {
            Event::Begin(name) => {
                in_memory |=
                    walk.depth == 2 && chosen.machine.is_some() && is_node(name, b"memory");
                if in_memory {
                    continue;
                }
                out.begin(&[name]);
                if walk.depth == 2 && !chosen_seen && is_node(name, b"chosen") {
                    chosen_seen = true;
                    in_chosen = true;
                    writer.chosen(out);
                }
            }
            // The depth is that of the parent.
            Event::End => {
                if walk.depth == 0 {
                    if !chosen_seen {
                        out.begin(&[b"chosen"]);
                        writer.chosen(out);
                        out.number(END_NODE);
                    }
                    writer.memory(cells, out)?;
                }
                in_chosen &= walk.depth != 1;
                if !in_memory {
                    out.number(END_NODE);
                }
                in_memory &= walk.depth != 1;
            }
            Event::Property {
                name,
                name_offset,
                value,
            } => {
                if walk.depth == 1 {
                    cells.consider(name, value);
                }
                let ours = in_chosen && walk.depth == 2 && writer.replaces(name);
                if !ours && !in_memory {
                    out.property(name_offset, value);
                }
            }
        }
    }
    out.number(END);
    Ok(())
}

/// Whether a child of the root is the one of this name, with a unit address or without. Of several
/// with the name `chosen` Linux takes the first.
fn is_node(name: &[u8], wanted: &[u8]) -> bool {
    name.strip_prefix(wanted)
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'@')))
}

/// Writes what is ours.
struct Writer<'a> {
    /// The strings that are there.
    strings: &'a [u8],
    chosen: &'a Chosen<'a>,
}

impl Writer<'_> {
    fn property(&self, name: &[u8], value: &[u8], out: &mut Output<'_>) {
        out.property(name_offset(self.strings, name), value);
    }

    /// Whether a property of `/chosen` goes, for ours or for none.
    fn replaces(&self, name: &[u8]) -> bool {
        let seeds = self.chosen.machine.is_some() && [RNG_SEED, KASLR_SEED].contains(&name);
        seeds || [BOOTARGS, INITRD_START, INITRD_END].contains(&name)
    }

    fn chosen(&self, out: &mut Output<'_>) {
        let chosen = self.chosen;
        let line = chosen.command_line.to_bytes_with_nul();
        self.property(BOOTARGS, line, out);
        if let Some(initrd) = chosen.initrd {
            self.property(INITRD_START, &initrd.start.to_be_bytes(), out);
            self.property(INITRD_END, &initrd.end.to_be_bytes(), out);
        }
        let seeds = chosen.machine.map_or(Seeds::default(), |m| m.seeds);
        for (name, seed) in [(RNG_SEED, seeds.rng), (KASLR_SEED, seeds.kaslr)] {
            if let Some(seed) = seed {
                self.property(name, seed, out);
            }
        }
    }

    /// One node for each range of the machine's memory, in a tree from elsewhere.
    fn memory(&self, cells: Cells, out: &mut Output<'_>) -> Result<(), DeviceTreeError> {
        let memory = self.chosen.machine.map_or(&[][..], |m| m.memory);
        for region in memory {
            let range = region.range;
            if region.kind != MemoryKind::Usable || range.size() == 0 {
                continue;
            }
            if cells.bytes().is_none() || !cells.can_tell(range) {
                return Err(DeviceTreeError::Memory(range));
            }
            let mut name = heapless::String::<16>::new();
            // An address has 16 digits at most.
            _ = fmt::write(&mut name, format_args!("{:x}", range.start));
            out.begin(&[b"memory@", name.as_bytes()]);
            self.property(DEVICE_TYPE, b"memory\0", out);
            let mut reg = Vec::<u8, 16>::new();
            for (number, cells) in [(range.start, cells.address), (range.size(), cells.size)] {
                let bytes = number.to_be_bytes();
                let used = if cells == 1 { bytes.get(4..) } else { None };
                _ = reg.extend_from_slice(used.unwrap_or(&bytes)); // 16 bytes at most.
            }
            self.property(REG, &reg, out);
            out.number(END_NODE);
        }
        Ok(())
    }
}

/// What a structure block is made of.
enum Event<'a> {
    /// A node of this name begins.
    Begin(&'a [u8]),
    /// The node ends.
    End,
    /// A property of the node.
    Property {
        name: &'a [u8],
        name_offset: u32,
        value: &'a [u8],
    },
}

/// Goes through a structure block.
struct Walk<'t, 'a> {
    tree: &'t Tree<'a>,
    input: Input<'a>,
    /// Nodes that are open after the last event; the root is one.
    depth: usize,
    root_seen: bool,
}

impl<'t, 'a> Walk<'t, 'a> {
    fn new(tree: &'t Tree<'a>) -> Self {
        Self {
            tree,
            input: Input {
                bytes: tree.structure,
                at: 0,
            },
            depth: 0,
            root_seen: false,
        }
    }

    /// The next event; [`None`] at the end of a well-formed block.
    fn next(&mut self) -> Result<Option<Event<'a>>, DeviceTreeError> {
        let input = &mut self.input;
        // Each round takes four bytes of the block at least.
        loop {
            match input.number()? {
                NOP => {}
                BEGIN_NODE => {
                    if self.depth == 0 && self.root_seen {
                        return Err(input.damaged("a second root"));
                    }
                    self.root_seen = true;
                    self.depth = self.depth.saturating_add(1);
                    return input.name().map(|name| Some(Event::Begin(name)));
                }
                END_NODE => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or_else(|| input.damaged("an end without a node"))?;
                    return Ok(Some(Event::End));
                }
                PROP => {
                    if self.depth == 0 {
                        return Err(input.damaged("a property without a node"));
                    }
                    let size = input.number()?;
                    let name_offset = input.number()?;
                    let value = input.value(size)?;
                    let name = self
                        .tree
                        .string(name_offset)
                        .ok_or_else(|| input.damaged("a property without a name"))?;
                    return Ok(Some(Event::Property {
                        name,
                        name_offset,
                        value,
                    }));
                }
                END if self.depth == 0 && self.root_seen => return Ok(None),
                _ => return Err(input.damaged("an unknown token")),
            }
        }
    }
}

/// Reads a structure block.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn damaged(&self, what: &'static str) -> DeviceTreeError {
        DeviceTreeError::Damaged {
            what,
            offset: self.at,
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn number(&mut self) -> Result<u32, DeviceTreeError> {
        let bytes = array(self.bytes, self.at);
        let number = bytes.map(u32::from_be_bytes);
        let number = number.ok_or_else(|| self.damaged("the end too soon"))?;
        self.at = self.at.saturating_add(4);
        Ok(number)
    }

    /// A node's name, without the NUL at its end.
    fn name(&mut self) -> Result<&'a [u8], DeviceTreeError> {
        let rest = self.rest();
        let end = rest.iter().position(|&byte| byte == 0);
        let name = end.and_then(|end| rest.get(..end));
        let name = name.ok_or_else(|| self.damaged("a name without an end"))?;
        self.skip(name.len().saturating_add(1));
        Ok(name)
    }

    fn value(&mut self, size: u32) -> Result<&'a [u8], DeviceTreeError> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let value = self.rest().get(..size);
        let value = value.ok_or_else(|| self.damaged("a value without an end"))?;
        self.skip(size);
        Ok(value)
    }

    /// Goes on after `size` bytes and the padding to the next token.
    fn skip(&mut self, size: usize) {
        self.at = self.at.saturating_add(size).saturating_add(3) & !3;
    }
}

/// Writes a blob, and goes on counting where its buffer ends.
struct Output<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl Output<'_> {
    /// Writes `bytes` at `offset`, as far as there is room.
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset.saturating_add(bytes.len());
        if let Some(place) = self.buffer.get_mut(offset..end) {
            place.copy_from_slice(bytes);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.put(self.len, bytes);
        self.len = self.len.saturating_add(bytes.len());
    }

    fn number(&mut self, number: u32) {
        self.bytes(&number.to_be_bytes());
    }

    /// Zeros up to the next token. Every block starts at a multiple of four bytes.
    fn pad(&mut self) {
        while !self.len.is_multiple_of(4) {
            self.bytes(&[0]);
        }
    }

    /// The start of a node, its name in parts.
    fn begin(&mut self, name: &[&[u8]]) {
        self.number(BEGIN_NODE);
        for part in name {
            self.bytes(part);
        }
        self.bytes(&[0]);
        self.pad();
    }

    fn property(&mut self, name_offset: u32, value: &[u8]) {
        self.number(PROP);
        self.number(number(value.len()));
        self.number(name_offset);
        self.bytes(value);
        self.pad();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, STRIDE, seeds};
    use dtoolkit::{Node, Property, fdt::Fdt};
    use std::{string::ToString, vec, vec::Vec};

    const CHOSEN: Chosen<'static> = Chosen {
        command_line: c"root=/dev/vda quiet",
        initrd: Some(Range {
            start: 0x1_4800_0000,
            end: 0x1_4900_0123,
        }),
        machine: None,
    };

    /// A blob put together token by token.
    struct Builder {
        structure: Vec<u8>,
        strings: Vec<u8>,
        reservations: Vec<u8>,
    }

    impl Builder {
        fn new() -> Self {
            Self {
                structure: vec![],
                strings: vec![],
                reservations: vec![],
            }
        }

        fn token(mut self, token: u32) -> Self {
            self.structure.extend(token.to_be_bytes());
            self
        }

        fn text(mut self, text: &[u8]) -> Self {
            self.structure.extend(text);
            while !self.structure.len().is_multiple_of(4) {
                self.structure.push(0);
            }
            self
        }

        fn begin(self, name: &str) -> Self {
            let name = std::format!("{name}\0");
            self.token(BEGIN_NODE).text(name.as_bytes())
        }

        fn prop(mut self, name: &str, value: &[u8]) -> Self {
            let offset = self.strings.len() as u32;
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            self.token(PROP)
                .token(value.len() as u32)
                .token(offset)
                .text(value)
        }

        fn end(self) -> Self {
            self.token(END_NODE)
        }

        fn reserve(mut self, start: u64, size: u64) -> Self {
            self.reservations.extend(start.to_be_bytes());
            self.reservations.extend(size.to_be_bytes());
            self
        }

        /// The blob, with `gap` free bytes at its end.
        fn build(self, gap: usize) -> Vec<u8> {
            let mut this = self.token(END);
            this.reservations.extend([0; 16]);
            let structure = HEADER_BYTES + this.reservations.len();
            let strings = structure + this.structure.len();
            let total = strings + this.strings.len() + gap;
            let mut blob = vec![];
            for number in [
                MAGIC as usize,
                total,
                structure,
                strings,
                HEADER_BYTES,
                17,
                16,
                3,
                this.strings.len(),
                this.structure.len(),
            ] {
                blob.extend((number as u32).to_be_bytes());
            }
            blob.extend(this.reservations);
            blob.extend(this.structure);
            blob.extend(this.strings);
            blob.resize(total, 0);
            blob
        }
    }

    /// A tree much like that of QEMU's virt machine.
    fn sample() -> Builder {
        Builder::new()
            .reserve(0x4000_0000, 0x1000)
            .begin("")
            .prop("#address-cells", &[0, 0, 0, 2])
            .token(NOP)
            .begin("chosen")
            .prop("linux,initrd-end", &[1, 2, 3, 4])
            .prop("kaslr-seed", &[7; 8])
            .prop("bootargs", b"old\0")
            .token(NOP)
            .prop("rng-seed", &[9; 32])
            .prop("linux,initrd-start", &[1, 2, 3, 4])
            .prop("stdout-path", b"/pl011@9000000\0")
            .begin("bootargs")
            .prop("bootargs", b"not this\0")
            .end()
            .end()
            .begin("memory@40000000")
            .prop("device_type", b"memory\0")
            .end()
            .end()
    }

    fn updated(blob: &[u8], chosen: &Chosen<'_>) -> Vec<u8> {
        let size = updated_bytes(blob, chosen).unwrap();
        let mut out = vec![0xa5; size + 8];
        assert_eq!(update(blob, chosen, &mut out), Ok(size));
        assert_eq!(out[size..], [0xa5; 8]);
        out.truncate(size);
        out
    }

    fn value(blob: &[u8], path: &str, name: &str) -> Option<Vec<u8>> {
        let node = Fdt::new(blob).unwrap().find_node(path)?;
        let property = node.property(name)?;
        Some(property.value().to_vec())
    }

    #[test]
    fn chosen_is_filled_in() {
        let out = updated(&sample().build(0), &CHOSEN);
        let chosen = |name| value(&out, "/chosen", name);
        assert_eq!(chosen("bootargs").unwrap(), b"root=/dev/vda quiet\0");
        assert_eq!(
            chosen("linux,initrd-start").unwrap(),
            0x1_4800_0000_u64.to_be_bytes()
        );
        assert_eq!(
            chosen("linux,initrd-end").unwrap(),
            0x1_4900_0123_u64.to_be_bytes()
        );
    }

    #[test]
    fn all_else_stays_as_it_is() {
        let out = updated(&sample().build(0), &CHOSEN);
        let fdt = Fdt::new(&out).unwrap();
        assert_eq!(value(&out, "/chosen", "kaslr-seed").unwrap(), [7; 8]);
        assert_eq!(value(&out, "/chosen", "rng-seed").unwrap(), [9; 32]);
        assert_eq!(
            value(&out, "/chosen", "stdout-path").unwrap(),
            b"/pl011@9000000\0"
        );
        assert_eq!(
            value(&out, "/chosen/bootargs", "bootargs").unwrap(),
            b"not this\0"
        );
        assert_eq!(
            value(&out, "/memory@40000000", "device_type").unwrap(),
            b"memory\0"
        );
        assert_eq!(value(&out, "/", "#address-cells").unwrap(), [0, 0, 0, 2]);
        assert_eq!(fdt.find_node("/chosen").unwrap().properties().count(), 6);
        assert_eq!(fdt.root().children().count(), 2);
        assert_eq!(fdt.boot_cpuid_phys(), 3);
        let reserved: Vec<_> = fdt
            .memory_reservations()
            .map(|r| (r.address(), r.size()))
            .collect();
        assert_eq!(reserved, [(0x4000_0000, 0x1000)]);
    }

    #[test]
    fn without_an_initrd_an_old_one_is_forgotten() {
        let chosen = Chosen {
            initrd: None,
            ..CHOSEN
        };
        let out = updated(&sample().build(0), &chosen);
        assert_eq!(value(&out, "/chosen", "linux,initrd-start"), None);
        assert_eq!(value(&out, "/chosen", "linux,initrd-end"), None);
    }

    #[test]
    fn a_tree_without_chosen_gets_one() {
        let blob = Builder::new()
            .begin("")
            .begin("soc")
            .begin("chosen")
            .end()
            .end()
            .end()
            .build(0);
        let out = updated(&blob, &CHOSEN);
        assert_eq!(
            value(&out, "/chosen", "bootargs").unwrap(),
            b"root=/dev/vda quiet\0"
        );
        assert_eq!(value(&out, "/soc/chosen", "bootargs"), None);
    }

    #[test]
    fn the_node_that_linux_would_take_is_the_one() {
        let blob = Builder::new()
            .begin("")
            .begin("chosen-not")
            .end()
            .begin("chosen@0")
            .end()
            .end()
            .build(0);
        let out = updated(&blob, &CHOSEN);
        assert!(value(&out, "/chosen@0", "bootargs").is_some());
        assert_eq!(value(&out, "/chosen-not", "bootargs"), None);
        assert_eq!(Fdt::new(&out).unwrap().root().children().count(), 2);
    }

    fn region(start: u64, size: u64, kind: MemoryKind) -> MemoryRegion {
        MemoryRegion {
            range: Range::with_size(start, size),
            kind,
        }
    }

    #[test]
    fn a_tree_from_elsewhere_gets_the_memory_and_the_seeds_of_the_machine() {
        let own = sample().build(0);
        let other = Builder::new()
            .begin("")
            .prop("#address-cells", &[0, 0, 0, 2])
            .prop("#size-cells", &[0, 0, 0, 2])
            .begin("memory")
            .prop("reg", &[0; 16])
            .begin("inside")
            .prop("x", b"")
            .end()
            .end()
            .begin("chosen")
            .prop("rng-seed", b"stale")
            .prop("stdout-path", b"/uart\0")
            .end()
            .begin("memory@1234")
            .end()
            .begin("memory-controller")
            .prop("rng-seed", b"no seed")
            .end()
            .end()
            .build(0);
        let memory = [
            region(0x4000_0000, 0x1000_0000, MemoryKind::Usable),
            region(0x5000_0000, 0x1000, MemoryKind::Reserved),
            region(0x1_0000_0000, 0x2_0000_0000, MemoryKind::Usable),
        ];
        let seeds = Seeds::of(&own).unwrap();
        assert_eq!(seeds.rng, Some(&[9; 32][..]));
        assert_eq!(seeds.kaslr, Some(&[7; 8][..]));
        let machine = Some(Machine {
            memory: &memory,
            seeds,
        });
        let out = updated(&other, &Chosen { machine, ..CHOSEN });
        let names: Vec<_> = Fdt::new(&out)
            .unwrap()
            .root()
            .children()
            .map(|node| node.name().to_string())
            .collect();
        assert_eq!(
            names,
            [
                "chosen",
                "memory-controller",
                "memory@40000000",
                "memory@100000000"
            ]
        );
        let reg = |node| value(&out, node, "reg").unwrap();
        let expected = [0x1_0000_0000_u64, 0x2_0000_0000].map(u64::to_be_bytes);
        assert_eq!(reg("/memory@100000000"), expected.concat());
        assert_eq!(
            value(&out, "/memory@40000000", "device_type").unwrap(),
            b"memory\0"
        );
        let chosen = |name| value(&out, "/chosen", name);
        assert_eq!(chosen("rng-seed").unwrap(), [9; 32]);
        assert_eq!(chosen("kaslr-seed").unwrap(), [7; 8]);
        assert_eq!(chosen("stdout-path").unwrap(), b"/uart\0");
        assert_eq!(
            value(&out, "/memory-controller", "rng-seed").unwrap(),
            b"no seed"
        );

        // Without seeds of its own, a machine gets none that are known.
        let machine = Some(Machine {
            memory: &[],
            seeds: Seeds::default(),
        });
        let out = updated(&other, &Chosen { machine, ..CHOSEN });
        assert_eq!(value(&out, "/chosen", "rng-seed"), None);
    }

    #[test]
    fn memory_is_told_in_the_cells_of_the_tree() {
        let with_cells = |address, size| {
            Builder::new()
                .begin("")
                .prop("#address-cells", &[0, 0, 0, address])
                .prop("#size-cells", &[0, 0, 0, size])
                .end()
                .build(0)
        };
        let memory = [region(0x4000_0000, 0x1000, MemoryKind::Usable)];
        let told = |address, size, memory: &[MemoryRegion]| {
            let machine = Some(Machine {
                memory,
                seeds: Seeds::default(),
            });
            let chosen = Chosen { machine, ..CHOSEN };
            let blob = with_cells(address, size);
            updated_bytes(&blob, &chosen)?;
            Ok(value(&updated(&blob, &chosen), "/memory@40000000", "reg").unwrap())
        };
        assert_eq!(
            told(1, 1, &memory),
            Ok(std::vec![0x40, 0, 0, 0, 0, 0, 0x10, 0])
        );
        assert_eq!(told(2, 1, &memory).unwrap().len(), 12);
        for (address, size) in [(0, 1), (3, 1), (2, 0)] {
            assert_eq!(
                told(address, size, &memory),
                Err(DeviceTreeError::Memory(memory[0].range))
            );
        }
        let high = [region(1 << 32, 0x1000, MemoryKind::Usable)];
        told(1, 1, &high).unwrap_err();
    }

    #[test]
    fn reservations_are_found_in_both_places() {
        let blob = sample().reserve(0x5000_0000, 0).build(0);
        assert_eq!(
            *reservations(&blob).unwrap(),
            [Range::with_size(0x4000_0000, 0x1000)]
        );
        let blob = |size_cells| {
            Builder::new()
                .reserve(0x4100_0000, 0x2000)
                .begin("")
                .begin("reserved-memory")
                .prop("#address-cells", &[0, 0, 0, 2])
                .prop("#size-cells", &[0, 0, 0, size_cells])
                .prop("ranges", b"")
                .begin("two@48000000")
                .prop(
                    "reg",
                    &[
                        0, 0, 0, 0, 0x48, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10,
                        0,
                    ],
                )
                .begin("reg")
                .prop("reg", &[1; 12])
                .end()
                .end()
                .begin("anywhere")
                .prop("size", &[0, 1, 0, 0])
                .end()
                .end()
                .begin("other")
                .begin("node")
                .prop("reg", &[1; 12])
                .end()
                .end()
                .end()
                .build(0)
        };
        assert_eq!(
            *reservations(&blob(1)).unwrap(),
            [
                Range::with_size(0x4100_0000, 0x2000),
                Range::with_size(0x4800_0000, 0x1_0000),
                Range::with_size(0x1_0000_0000, 0x1000),
            ]
        );
        assert!(reservations(&blob(3)).is_err());
        let many = (0..65).fold(sample(), |tree, index| tree.reserve(index << 12, 0x1000));
        assert_eq!(
            reservations(&many.build(0)),
            Err(DeviceTreeError::TooManyReservations)
        );
    }

    #[test]
    fn free_space_is_not_copied() {
        let tight = updated(&sample().build(0), &CHOSEN);
        // QEMU's is as large; Miri would take minutes.
        let gap = if cfg!(miri) { 1 << 12 } else { 1 << 20 };
        assert_eq!(updated(&sample().build(gap), &CHOSEN), tight);
    }

    #[test]
    fn bytes_after_the_tree_do_not_matter() {
        let mut blob = sample().build(0);
        let tight = updated(&blob, &CHOSEN);
        blob.extend([0xff; 100]);
        assert_eq!(updated(&blob, &CHOSEN), tight);
    }

    #[test]
    fn a_second_update_replaces_the_first() {
        let first = updated(&sample().build(0), &CHOSEN);
        let other = Chosen {
            command_line: c"",
            initrd: Some(Range { start: 1, end: 2 }),
            machine: None,
        };
        let second = updated(&first, &other);
        assert_eq!(value(&second, "/chosen", "bootargs").unwrap(), b"\0");
        let chosen = Fdt::new(&second).unwrap().find_node("/chosen").unwrap();
        assert_eq!(chosen.properties().count(), 6);
    }

    #[test]
    fn too_little_room_is_an_error() {
        let blob = sample().build(0);
        let bytes = updated_bytes(&blob, &CHOSEN).unwrap();
        for room in (0..bytes).step_by(STRIDE) {
            assert_eq!(
                update(&blob, &CHOSEN, &mut vec![0; room]),
                Err(DeviceTreeError::NoRoom { bytes, room })
            );
        }
    }

    #[test]
    fn a_tree_that_linux_would_not_map_is_refused() {
        let big = vec![0; 2 << 20];
        let blob = Builder::new().begin("").prop("x", &big).end().build(0);
        let error = updated_bytes(&blob, &CHOSEN).unwrap_err();
        assert!(matches!(error, DeviceTreeError::TooLarge { .. }));
        assert!(error.to_string().contains("Linux takes 2097152 at most"));
    }

    #[test]
    fn what_is_no_well_formed_tree_is_refused() {
        let refusal = |blob: &[u8]| updated_bytes(blob, &CHOSEN).unwrap_err().to_string();
        assert_eq!(
            refusal(b""),
            "it is not a device tree blob; use what dtc makes of its source"
        );
        let mut old = sample().build(0);
        old[23] = 16;
        assert!(refusal(&old).starts_with("its format is of version 16 and 17 is needed"));
        for (builder, what) in [
            (Builder::new(), "an unknown token"),
            (Builder::new().end(), "an end without a node"),
            (Builder::new().prop("x", b""), "a property without a node"),
            (Builder::new().begin(""), "an unknown token"),
            (
                Builder::new().begin("").end().begin("").end(),
                "a second root",
            ),
            (Builder::new().begin("").token(5), "an unknown token"),
            (
                Builder::new().begin("").token(PROP).token(0).token(1),
                "a property without a name",
            ),
            (
                Builder::new().begin("").token(PROP).token(9).token(0),
                "a value without an end",
            ),
        ] {
            let text = refusal(&builder.build(0));
            assert!(text.contains(what), "{text}");
        }
        // Cut off at any byte.
        let whole = sample().build(0);
        for length in 0..whole.len() {
            updated_bytes(&whole[..length], &CHOSEN).unwrap_err();
        }
    }

    #[test]
    fn a_damaged_tree_gives_an_error_or_a_tree() {
        let whole = sample().build(64);
        let mut out = vec![0; 4096];
        for seed in seeds(30_000) {
            let random = &mut Random::new(seed);
            let mut blob = whole.clone();
            random.damage(&mut blob);
            _ = reservations(&blob);
            _ = Seeds::of(&blob);
            if let Ok(size) = update(&blob, &CHOSEN, &mut out) {
                // A second time nothing can be wrong with it.
                updated_bytes(&out[..size], &CHOSEN).unwrap();
            }
        }
    }
}
