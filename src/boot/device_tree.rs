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

use crate::boot::{bytes::array, memory::Range};
use core::{ffi::CStr, fmt};

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

const BOOTARGS: &[u8] = b"bootargs";
const INITRD_START: &[u8] = b"linux,initrd-start";
const INITRD_END: &[u8] = b"linux,initrd-end";

/// What `/chosen` is to say. Properties of these names that are there already are replaced, or
/// go where there is nothing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// The payload's command line: `bootargs`.
    pub command_line: &'a CStr,
    /// Where the initrd lies, without any padding, if there is one: `linux,initrd-start` and
    /// `linux,initrd-end`.
    pub initrd: Option<Range>,
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
    let names = Names::after(tree.strings);
    copy_structure(&tree, chosen, &names, &mut out)?;
    let strings = out.len;
    out.bytes(tree.strings);
    Names::write(&mut out);

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

/// Where the names of our properties are in the new strings block.
struct Names {
    bootargs: u32,
    initrd_start: u32,
    initrd_end: u32,
}

impl Names {
    /// After the strings that are there, and a NUL should they lack it.
    fn after(strings: &[u8]) -> Self {
        let next = |start: usize, name: &[u8]| start.saturating_add(name.len()).saturating_add(1);
        let bootargs = strings.len().saturating_add(1);
        let initrd_start = next(bootargs, BOOTARGS);
        Self {
            bootargs: number(bootargs),
            initrd_start: number(initrd_start),
            initrd_end: number(next(initrd_start, INITRD_START)),
        }
    }

    /// Writes what comes after the strings that are there.
    fn write(out: &mut Output<'_>) {
        out.bytes(&[0]);
        for name in [BOOTARGS, INITRD_START, INITRD_END] {
            out.bytes(name);
            out.bytes(&[0]);
        }
    }
}

/// Copies the structure block (Devicetree Specification, 5.4), with our properties in `/chosen`.
fn copy_structure(
    tree: &Tree<'_>,
    chosen: &Chosen<'_>,
    names: &Names,
    out: &mut Output<'_>,
) -> Result<(), DeviceTreeError> {
    let mut input = Input {
        bytes: tree.structure,
        at: 0,
    };
    // Nodes that are open; the root is one.
    let mut depth = 0_usize;
    let mut root_seen = false;
    let mut chosen_seen = false;
    let mut in_chosen = false;
    // Each round takes four bytes of the block at least.
    loop {
        let token = input.number()?;
        match token {
            NOP => {}
            BEGIN_NODE => {
                if depth == 0 && root_seen {
                    return Err(input.damaged("a second root"));
                }
                root_seen = true;
                let name = input.name()?;
                depth = depth.saturating_add(1);
                out.number(BEGIN_NODE);
                out.bytes(name);
                out.bytes(&[0]);
                out.pad();
                if depth == 2 && !chosen_seen && is_chosen(name) {
                    chosen_seen = true;
                    in_chosen = true;
                    write_chosen(chosen, names, out);
                }
            }
            END_NODE => {
                if depth == 1 && !chosen_seen {
                    chosen_seen = true;
                    out.number(BEGIN_NODE);
                    out.bytes(b"chosen\0");
                    out.pad();
                    write_chosen(chosen, names, out);
                    out.number(END_NODE);
                }
                in_chosen &= depth != 2;
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| input.damaged("an end without a node"))?;
                out.number(END_NODE);
            }
            PROP => {
                if depth == 0 {
                    return Err(input.damaged("a property without a node"));
                }
                let size = input.number()?;
                let name_offset = input.number()?;
                let value = input.value(size)?;
                let name = tree
                    .string(name_offset)
                    .ok_or_else(|| input.damaged("a property without a name"))?;
                let ours = [BOOTARGS, INITRD_START, INITRD_END].contains(&name);
                if !(in_chosen && depth == 2 && ours) {
                    out.property(name_offset, value);
                }
            }
            END if depth == 0 && root_seen => {
                out.number(END);
                return Ok(());
            }
            _ => return Err(input.damaged("an unknown token")),
        }
    }
}

/// Whether a child of the root is the one that Linux looks for: it takes the first whose name is
/// `chosen` up to its unit address.
fn is_chosen(name: &[u8]) -> bool {
    name.strip_prefix(b"chosen")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'@')))
}

fn write_chosen(chosen: &Chosen<'_>, names: &Names, out: &mut Output<'_>) {
    out.property(names.bootargs, chosen.command_line.to_bytes_with_nul());
    if let Some(initrd) = chosen.initrd {
        out.property(names.initrd_start, &initrd.start.to_be_bytes());
        out.property(names.initrd_end, &initrd.end.to_be_bytes());
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
            if let Ok(size) = update(&blob, &CHOSEN, &mut out) {
                // A second time nothing can be wrong with it.
                updated_bytes(&out[..size], &CHOSEN).unwrap();
            }
        }
    }
}
