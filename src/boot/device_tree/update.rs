//! Writes the copy of a device tree.

use super::{
    BOOTARGS, Chosen, DEVICE_TYPE, DeviceTreeError, INITRD_END, INITRD_START, KASLR_SEED,
    MAX_BYTES, REG, RNG_SEED, Seeds,
    blob::{
        BEGIN_NODE, Cells, END, END_NODE, Event, HEADER_BYTES, MAGIC, PROP, Tree, VERSION, Walk,
        is_node,
    },
};
use crate::boot::memory::MemoryKind;
use core::fmt;
use heapless::Vec;

/// A reader of version 16 can also read version 17.
const LAST_COMPATIBLE_VERSION: u32 = 16;

/// The names of the properties that are written.
const NAMES: [&[u8]; 7] = [
    BOOTARGS,
    INITRD_START,
    INITRD_END,
    RNG_SEED,
    KASLR_SEED,
    DEVICE_TYPE,
    REG,
];

/// Size in bytes of the copy that [`update`] writes.
///
/// # Errors
///
/// [`DeviceTreeError`] if `blob` is not a well-formed device tree.
pub fn updated_bytes(blob: &[u8], chosen: &Chosen<'_>) -> Result<usize, DeviceTreeError> {
    write(blob, chosen, &mut [])
}

/// Writes a copy of `blob` with the content of `chosen` to the start of `out`; returns its size in bytes.
///
/// Bytes after the end of the tree are ignored.
///
/// # Errors
///
/// [`DeviceTreeError`] if `blob` is not a well-formed device tree, or if `out` is too small; `out` is not
/// valid then.
pub fn update(blob: &[u8], chosen: &Chosen<'_>, out: &mut [u8]) -> Result<usize, DeviceTreeError> {
    let room = out.len();
    let bytes = write(blob, chosen, out)?;
    if bytes > room {
        return Err(DeviceTreeError::NoRoom { bytes, room });
    }
    Ok(bytes)
}

/// Writes as much of the copy as fits into `out`; returns the size of the whole copy.
fn write(blob: &[u8], chosen: &Chosen<'_>, out: &mut [u8]) -> Result<usize, DeviceTreeError> {
    let tree = Tree::parse(blob)?;
    let mut out = Output {
        buffer: out,
        len: 0,
    };
    // Space for the header, which is written at the end.
    out.bytes(&[0; HEADER_BYTES]);
    out.bytes(tree.reservations);
    let structure = out.len;
    copy_structure(&tree, chosen, &mut out)?;
    let strings = out.len;
    out.bytes(tree.strings);
    // A NUL, in case the last string has none.
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

/// Converts to 32 bits. If a number does not fit, the copy is refused as too large.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Offset of the name of one of [`NAMES`] in the new strings block, which are appended to the old one.
fn name_offset(strings: &[u8], wanted: &[u8]) -> u32 {
    let before = NAMES.iter().take_while(|name| **name != wanted);
    let offset = before.fold(strings.len().saturating_add(1), |offset, name| {
        offset.saturating_add(name.len()).saturating_add(1)
    });
    number(offset)
}

/// Copies the structure block (Devicetree Specification, 5.4) with the new properties in `/chosen`.
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
    // A memory node is skipped, including its properties and children.
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
            // After this event, `walk.depth` is the depth of the parent.
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

/// Writes the new nodes and properties.
struct Writer<'a> {
    /// The strings block of the original tree.
    strings: &'a [u8],
    chosen: &'a Chosen<'a>,
}

impl Writer<'_> {
    fn property(&self, name: &[u8], value: &[u8], out: &mut Output<'_>) {
        out.property(name_offset(self.strings, name), value);
    }

    /// Whether this property of `/chosen` is replaced or removed.
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

    /// Writes a node for each range of the machine's memory, if the tree is not the machine's own.
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
            // It fits: an address has at most 16 digits.
            _ = fmt::write(&mut name, format_args!("{:x}", range.start));
            out.begin(&[b"memory@", name.as_bytes()]);
            self.property(DEVICE_TYPE, b"memory\0", out);
            let mut reg = Vec::<u8, 16>::new();
            for (number, cells) in [(range.start, cells.address), (range.size(), cells.size)] {
                let bytes = number.to_be_bytes();
                let used = if cells == 1 { bytes.get(4..) } else { None };
                _ = reg.extend_from_slice(used.unwrap_or(&bytes)); // At most 16 bytes in all.
            }
            self.property(REG, &reg, out);
            out.number(END_NODE);
        }
        Ok(())
    }
}

/// A blob being written. Bytes beyond the end of the buffer are counted but not stored.
struct Output<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl Output<'_> {
    /// Writes `bytes` at `offset` if they fit into the buffer.
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

    /// Pads with zeros to the next token. Every block starts at a multiple of four bytes.
    fn pad(&mut self) {
        while !self.len.is_multiple_of(4) {
            self.bytes(&[0]);
        }
    }

    /// Begins a node whose name consists of these parts.
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
