//! Reads a blob: its blocks, and the tokens of its structure block.

use super::DeviceTreeError;
use crate::boot::{bytes::array, memory::Range};

pub const MAGIC: u32 = 0xd00d_feed;
pub const VERSION: u32 = 17;
pub const HEADER_BYTES: usize = 40;

/// Longest property name in bytes, with its NUL. Real names are far shorter (31 bytes, section 2.2.4.1). The
/// limit bounds the time: the end of each name is not searched for in all of the strings block.
pub const NAME_BYTES: usize = 256;

pub const BEGIN_NODE: u32 = 1;
pub const END_NODE: u32 = 2;
pub const PROP: u32 = 3;
pub const NOP: u32 = 4;
pub const END: u32 = 9;

/// The blocks of a blob.
pub struct Tree<'a> {
    /// Includes the final entry of zeros.
    pub reservations: &'a [u8],
    structure: &'a [u8],
    pub strings: &'a [u8],
    pub boot_cpu: u32,
}

impl<'a> Tree<'a> {
    pub fn parse(blob: &'a [u8]) -> Result<Self, DeviceTreeError> {
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

/// An element of a structure block.
pub enum Event<'a> {
    /// The beginning of a node with this name.
    Begin(&'a [u8]),
    /// The end of a node.
    End,
    /// A property of the current node.
    Property {
        name: &'a [u8],
        name_offset: u32,
        value: &'a [u8],
    },
}

/// Iterates over the events of a structure block.
pub struct Walk<'t, 'a> {
    tree: &'t Tree<'a>,
    pub input: Input<'a>,
    /// Number of open nodes after the last event, including the root.
    pub depth: usize,
    root_seen: bool,
}

impl<'t, 'a> Walk<'t, 'a> {
    pub fn new(tree: &'t Tree<'a>) -> Self {
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
    pub fn next(&mut self) -> Result<Option<Event<'a>>, DeviceTreeError> {
        let input = &mut self.input;
        // Each round consumes at least four bytes of the block.
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

/// The unread part of a structure block.
pub struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    pub fn damaged(&self, what: &'static str) -> DeviceTreeError {
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

    /// Skips `size` bytes and the padding to the next token.
    fn skip(&mut self, size: usize) {
        self.at = self.at.saturating_add(size).saturating_add(3) & !3;
    }
}

/// The number of 32-bit cells of an address and of a size (Devicetree Specification, 2.3.5).
#[derive(Clone, Copy)]
pub struct Cells {
    pub address: u32,
    pub size: u32,
}

impl Cells {
    pub const DEFAULT: Self = Self {
        address: 2,
        size: 1,
    };

    /// Applies a property of the parent node.
    pub fn consider(&mut self, name: &[u8], value: &[u8]) {
        let Some(number) = array(value, 0).map(u32::from_be_bytes) else {
            return;
        };
        match name {
            b"#address-cells" => self.address = number,
            b"#size-cells" => self.size = number,
            _ => {}
        }
    }

    /// Size in bytes of an address and a size together; `None` unless each has 1 or 2 cells.
    pub fn bytes(self) -> Option<usize> {
        let counts = 1..=2;
        if !counts.contains(&self.address) || !counts.contains(&self.size) {
            return None;
        }
        let cells = self.address.checked_add(self.size)?;
        usize::try_from(cells.checked_mul(4)?).ok()
    }

    /// Reads an address and a size.
    pub fn read(self, bytes: &[u8]) -> (u64, u64) {
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

    /// Whether the address and size of `range` fit into these cells.
    pub fn can_tell(self, range: Range) -> bool {
        let fits = |number: u64, cells: u32| cells == 2 || number <= u32::MAX.into();
        fits(range.start, self.address) && fits(range.size(), self.size)
    }
}

/// Whether `name` is the node name `wanted`, with or without a unit address. If there are several nodes
/// `chosen`, Linux uses the first.
pub fn is_node(name: &[u8], wanted: &[u8]) -> bool {
    name.strip_prefix(wanted)
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'@')))
}
