//! ELF files as payloads: their segments and their entry points.
//!
//! Follows the System V ABI's "Object Files" and "Program Loading". Segments are loaded to their physical
//! addresses (`p_paddr`). Only files that are linked for fixed addresses (`ET_EXEC`) are started: the others
//! would need relocation.
//!
//! On x86-64 they are entered by PVH, at the address in the note of Xen's direct boot ABI
//! (`docs/misc/pvh.pandoc`), which 32-bit files may have as well; on arm64 at `e_entry`, in the same state as
//! Linux.

use crate::boot::{
    Architecture,
    bytes::{array, u16_le, u32_le, u64_le},
    memory::Range,
};
use core::fmt;
use heapless::Vec;

/// Most segments to load.
pub const MAX_SEGMENTS: usize = 16;
/// Largest size in bytes of a file's program headers, and of the part of a note segment that is searched.
pub const MAX_BYTES: usize = 4096;

const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Name and type of the note with the PVH entry point.
const XEN: [u8; 4] = *b"Xen\0";
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elf {
    /// Virtual address of the entry point.
    pub entry: u64,
    /// The range of the program headers in the file.
    pub headers: Range,
    /// `e_type`
    kind: u16,
    is_64_bit: bool,
    /// Size of a program header in bytes.
    header_bytes: u16,
}

/// One segment to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its range in the file.
    pub file: Range,
    /// Its physical addresses. Memory beyond the content of the file is zeroed.
    pub memory: Range,
    /// Its first virtual address.
    pub virtual_address: u64,
}

/// The program headers.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    /// The segments to load, in the order of the file.
    pub load: Vec<Segment, MAX_SEGMENTS>,
    /// The ranges of note segments in the file.
    pub notes: Vec<Range, MAX_SEGMENTS>,
}

/// Why a file cannot be started. In its messages, "it" is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// It is not a little-endian ELF file.
    NotElf,
    /// It is position-independent.
    Dynamic,
    /// It is not a program.
    NotProgram {
        /// `e_type`
        kind: u16,
    },
    /// The file is shorter than its headers say.
    Truncated {
        /// The smallest valid size in bytes.
        needed: u64,
        /// The actual size in bytes.
        file_size: u64,
    },
    /// Its program headers are larger than [`MAX_BYTES`], or it has more segments than [`MAX_SEGMENTS`].
    TooManySegments,
    /// Two segments overlap in memory.
    Overlap {
        /// The addresses of the second one.
        segment: Range,
    },
    /// It has no segment to load.
    NoSegment,
    /// It has no note with a PVH entry point.
    NoPvh,
    /// Its entry point is outside of its segments.
    Entry {
        /// The address.
        entry: u64,
    },
    /// This field has an invalid value.
    Field(&'static str),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotElf => f.write_str("it is not a little-endian ELF file; build it as one"),
            Self::Dynamic => f.write_str(
                "it is a position-independent ELF file (ET_DYN); link it for a fixed address",
            ),
            Self::NotProgram { kind } => write!(
                f,
                "it is an ELF file but no program (its type is {kind}); link it"
            ),
            Self::Truncated { needed, file_size } => write!(
                f,
                "it is cut off: {file_size} of at least {needed} bytes are there; copy it again"
            ),
            Self::TooManySegments => write!(
                f,
                "it has more than {MAX_SEGMENTS} segments; link it into fewer"
            ),
            Self::Overlap { segment } => write!(
                f,
                "its segment at {segment:?} overlaps another one; link it again"
            ),
            Self::NoSegment => f.write_str("it has no segment to load; link it as a program"),
            Self::NoPvh => f.write_str(
                "it is an ELF file without a PVH entry (note Xen, type 18); build it with one, as \
                 Linux is with CONFIG_PVH, or use a bzImage",
            ),
            Self::Entry { entry } => write!(
                f,
                "its entry {entry:#x} is in none of its segments; link it again"
            ),
            Self::Field(name) => write!(
                f,
                "its headers are damaged ({name} makes no sense); copy it again"
            ),
        }
    }
}

impl core::error::Error for ElfError {}

impl Elf {
    /// Parses the header in `head`, the first bytes of a file of `file_size` bytes.
    ///
    /// # Errors
    ///
    /// [`ElfError`] if the file is not a program for fixed addresses. The architecture is not checked.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, ElfError> {
        use ElfError::{Field, NotElf, TooManySegments, Truncated};
        let (true, Some([class, LITTLE_ENDIAN])) = (has_magic(head), array(head, 4)) else {
            return Err(NotElf);
        };
        let cut_off = Truncated {
            needed: 64,
            file_size,
        };
        let half = |offset| u16_le(head, offset).ok_or(cut_off);
        // `e_entry` and `e_phoff` have the size of an address, so that later fields are at other offsets.
        let (entry, offset, rest) = match class {
            CLASS_64 => (u64_le(head, 24), u64_le(head, 32), 54),
            CLASS_32 => (
                u32_le(head, 24).map(u64::from),
                u32_le(head, 28).map(u64::from),
                42,
            ),
            _ => return Err(Field("e_ident")),
        };
        let (entry, offset) = (entry.ok_or(cut_off)?, offset.ok_or(cut_off)?);
        let (header_bytes, count) = (half(rest)?, half(rest.saturating_add(2))?);
        let is_64_bit = class == CLASS_64;
        let elf = Self {
            is_64_bit,
            entry,
            headers: Range::with_size(offset, u64::from(header_bytes).saturating_mul(count.into())),
            kind: half(16)?,
            header_bytes,
        };
        match elf.kind {
            ET_EXEC => {}
            ET_DYN => return Err(ElfError::Dynamic),
            kind => return Err(ElfError::NotProgram { kind }),
        }
        if header_bytes < if is_64_bit { 56 } else { 32 } {
            return Err(Field("e_phentsize"));
        }
        if elf.headers.size() > MAX_BYTES as u64 {
            return Err(TooManySegments);
        }
        let needed = elf.headers.end;
        if needed > file_size {
            return Err(Truncated { needed, file_size });
        }
        Ok(elf)
    }

    /// Parses `headers`, the program headers of a file of `file_size` bytes.
    ///
    /// # Errors
    ///
    /// [`ElfError`] for segments that cannot be loaded.
    pub fn segments(&self, headers: &[u8], file_size: u64) -> Result<Segments, ElfError> {
        let mut segments = Segments::default();
        for header in headers.chunks_exact(usize::from(self.header_bytes).max(1)) {
            let kind = u32_le(header, 0).unwrap_or_default();
            if kind != PT_LOAD && kind != PT_NOTE {
                continue;
            }
            let segment = self
                .segment(header)
                .ok_or(ElfError::Field("a program header"))?;
            if kind == PT_LOAD && segment.memory.size() == 0 {
                continue;
            }
            let needed = segment.file.end;
            if needed > file_size {
                return Err(ElfError::Truncated { needed, file_size });
            }
            let full = if kind == PT_LOAD {
                let overlaps = |other: &Segment| other.memory.overlaps(&segment.memory);
                if segments.load.iter().any(overlaps) {
                    return Err(ElfError::Overlap {
                        segment: segment.memory,
                    });
                }
                segments.load.push(segment).is_err()
            } else {
                segments.notes.push(segment.file).is_err()
            };
            if full {
                return Err(ElfError::TooManySegments);
            }
        }
        if segments.load.is_empty() {
            return Err(ElfError::NoSegment);
        }
        Ok(segments)
    }

    fn segment(&self, header: &[u8]) -> Option<Segment> {
        let word = |offset| u32_le(header, offset).map(u64::from);
        let [offset, virtual_address, address, file_bytes, memory_bytes] = if self.is_64_bit {
            [8, 16, 24, 32, 40].map(|offset| u64_le(header, offset))
        } else {
            [4, 8, 12, 16, 20].map(word)
        };
        let (file_bytes, memory_bytes) = (file_bytes?, memory_bytes?);
        let range = |start: u64, size| {
            let end = start.checked_add(size)?;
            Some(Range { start, end })
        };
        let segment = Segment {
            file: range(offset?, file_bytes)?,
            memory: range(address?, memory_bytes)?,
            virtual_address: virtual_address?,
        };
        let is_note = word(0)? == u64::from(PT_NOTE);
        (is_note || file_bytes <= memory_bytes).then_some(segment)
    }

    /// Converts `e_entry` to a physical address, by the segment that contains it.
    ///
    /// # Errors
    ///
    /// [`ElfError::Entry`] if no segment contains it.
    pub fn physical_entry(&self, segments: &Segments) -> Result<u64, ElfError> {
        let entry = self.entry;
        let found = segments.load.iter().find_map(|segment| {
            let offset = entry.checked_sub(segment.virtual_address)?;
            let inside = offset < segment.memory.size();
            inside.then(|| segment.memory.start.checked_add(offset))?
        });
        found.ok_or(ElfError::Entry { entry })
    }
}

/// Searches `notes`, the content of a note segment, for the PVH entry point: a physical address.
///
/// A note consists of the size of its name, the size of its content, its type, the name and the content; the
/// last two are padded to four bytes.
#[must_use]
pub fn pvh_entry(notes: &[u8]) -> Option<u32> {
    let mut rest = notes;
    // Each round consumes at least twelve bytes.
    loop {
        let size = |offset| usize::try_from(u32_le(rest, offset)?).ok();
        let (name_bytes, bytes, kind) = (size(0)?, size(4)?, u32_le(rest, 8)?);
        let content = name_bytes.checked_next_multiple_of(4)?.checked_add(12)?;
        let is_entry = kind == XEN_ELFNOTE_PHYS32_ENTRY
            && name_bytes == XEN.len()
            && array(rest, 12) == Some(XEN);
        if is_entry {
            // In 64-bit files the address may have 64 bits.
            return match bytes {
                4 => u32_le(rest, content),
                8 => u64_le(rest, content).and_then(|entry| entry.try_into().ok()),
                _ => None,
            };
        }
        let next = content.checked_add(bytes.checked_next_multiple_of(4)?)?;
        rest = rest.get(next..)?;
    }
}

/// The architecture of a file that starts with `head`, if known.
pub(super) fn architecture(head: &[u8]) -> Option<Architecture> {
    match (array(head, 4)?, u16_le(head, 18)?) {
        ([CLASS_32, LITTLE_ENDIAN], EM_386) | ([CLASS_64, LITTLE_ENDIAN], EM_X86_64) => {
            Some(Architecture::X86_64)
        }
        ([CLASS_64, LITTLE_ENDIAN], EM_AARCH64) => Some(Architecture::Aarch64),
        _ => None,
    }
}

/// Whether `head` has the magic number of an ELF file.
pub(super) fn has_magic(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::{string::ToString, vec, vec::Vec as StdVec};

    pub(in crate::boot) const FILE_SIZE: u64 = 0x1_0000;
    const BASE: u64 = 0xffff_ffff_8000_0000;

    /// The head of a program of 64 bits, with a segment of code, one of data, and notes.
    pub(in crate::boot) fn head(machine: u16) -> StdVec<u8> {
        let mut head = vec![0; 4096];
        head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        put(&mut head, 16, &ET_EXEC.to_le_bytes());
        put(&mut head, 18, &machine.to_le_bytes());
        put(&mut head, 24, &(BASE + 0x10_0010).to_le_bytes());
        put(&mut head, 32, &64_u64.to_le_bytes());
        put(&mut head, 54, &56_u16.to_le_bytes());
        put(&mut head, 56, &4_u16.to_le_bytes());
        for (index, [kind, offset, address, file, memory]) in [
            [1, 0x1000, 0x10_0000, 0x2000, 0x2000],
            [1, 0x3000, 0x20_0000, 0x1000, 0x5000],
            [4, 0x1100, 0x10_0100, 0x40, 0x40],
            [0x6474_e551, 0, 0, 0, 0],
        ]
        .into_iter()
        .enumerate()
        {
            let header = 64 + 56 * index;
            put(&mut head, header, &(kind as u32).to_le_bytes());
            let fields = [offset, BASE + address, address, file, memory];
            for (field, value) in fields.into_iter().enumerate() {
                put(&mut head, header + 8 + 8 * field, &value.to_le_bytes());
            }
        }
        head
    }

    fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
        head[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn parse(head: &[u8]) -> Result<(Elf, Segments), ElfError> {
        let elf = Elf::parse(head, FILE_SIZE)?;
        let headers = elf.headers.start as usize..elf.headers.end as usize;
        let segments = elf.segments(&head[headers], FILE_SIZE)?;
        Ok((elf, segments))
    }

    fn changed(at: usize, bytes: &[u8]) -> Result<(Elf, Segments), ElfError> {
        let mut head = head(EM_X86_64);
        put(&mut head, at, bytes);
        parse(&head)
    }

    #[test]
    fn a_program_of_64_bits_is_read() {
        let (elf, segments) = parse(&head(EM_AARCH64)).unwrap();
        assert_eq!(architecture(&head(EM_AARCH64)), Some(Architecture::Aarch64));
        assert_eq!(elf.headers, Range::with_size(64, 4 * 56));
        assert_eq!(
            segments.load,
            [
                Segment {
                    file: Range::with_size(0x1000, 0x2000),
                    memory: Range::with_size(0x10_0000, 0x2000),
                    virtual_address: BASE + 0x10_0000,
                },
                Segment {
                    file: Range::with_size(0x3000, 0x1000),
                    memory: Range::with_size(0x20_0000, 0x5000),
                    virtual_address: BASE + 0x20_0000,
                },
            ]
        );
        assert_eq!(segments.notes, [Range::with_size(0x1100, 0x40)]);
        assert_eq!(elf.physical_entry(&segments), Ok(0x10_0010));
    }

    #[test]
    fn a_program_of_32_bits_is_read() {
        let mut head = vec![0; 256];
        head[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
        put(&mut head, 16, &ET_EXEC.to_le_bytes());
        put(&mut head, 18, &EM_386.to_le_bytes());
        put(&mut head, 24, &0x10_0000_u32.to_le_bytes());
        put(&mut head, 28, &52_u32.to_le_bytes());
        put(&mut head, 42, &32_u16.to_le_bytes());
        put(&mut head, 44, &1_u16.to_le_bytes());
        let fields = [1, 0x80, 0x10_0000, 0x11_0000, 0x40, 0x80_u32];
        for (index, field) in fields.into_iter().enumerate() {
            put(&mut head, 52 + 4 * index, &field.to_le_bytes());
        }
        let (elf, segments) = parse(&head).unwrap();
        assert_eq!(architecture(&head), Some(Architecture::X86_64));
        assert!(!elf.is_64_bit);
        assert_eq!(segments.load[0].file, Range::with_size(0x80, 0x40));
        assert_eq!(segments.load[0].memory, Range::with_size(0x11_0000, 0x80));
        assert_eq!(elf.physical_entry(&segments), Ok(0x11_0000));
    }

    #[test]
    fn images_that_cannot_be_started_are_refused_with_the_reason() {
        let error = |at, bytes: &[u8]| changed(at, bytes).unwrap_err().to_string();
        for (at, bytes, part) in [
            (0, &b"\x7fELG"[..], "not a little-endian ELF file"),
            (5, &[2], "not a little-endian ELF file"),
            (4, &[3], "e_ident makes no sense"),
            (16, &[1], "its type is 1"),
            (16, &[3], "position-independent"),
            (54, &[55], "e_phentsize"),
            (56, &[255], "more than 16 segments"),
            (56, &[0], "no segment to load"),
            (32, &[0xff, 0xff], "it is cut off: 65536 of at least 65759"),
            // The first segment: offset, address, bytes in the file.
            (74, &[0xff], "it is cut off"),
            (64 + 8, &[0xff; 8], "a program header makes no sense"),
            (64 + 24, &[0xff; 8], "a program header makes no sense"),
            (64 + 33, &[0x21], "a program header makes no sense"),
        ] {
            let error = error(at, bytes);
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(
            Elf::parse(b"\x7fELF\x02\x01", 6).unwrap_err().to_string(),
            "it is cut off: 6 of at least 64 bytes are there; copy it again"
        );
        let (elf, segments) = changed(24, &[0; 8]).unwrap();
        assert_eq!(
            elf.physical_entry(&segments),
            Err(ElfError::Entry { entry: 0 })
        );
        let mut many = vec![0; 4096];
        many.copy_from_slice(&head(EM_X86_64));
        for index in 0..17 {
            many.copy_within(64..64 + 56, 64 + 56 * index);
            let address = 0x10_0000 + 0x1_0000 * index as u64;
            put(&mut many, 64 + 56 * index + 24, &address.to_le_bytes());
        }
        put(&mut many, 56, &17_u16.to_le_bytes());
        assert_eq!(parse(&many).unwrap_err(), ElfError::TooManySegments);
        // The second segment's address.
        let overlap = error(64 + 56 + 24, &0x10_1fff_u64.to_le_bytes());
        assert_eq!(
            overlap,
            "its segment at 0x101fff..0x106fff overlaps another one; link it again"
        );
    }

    fn note(name: &[u8], kind: u32, content: &[u8]) -> StdVec<u8> {
        let mut note = vec![];
        for number in [name.len() as u32, content.len() as u32, kind] {
            note.extend(number.to_le_bytes());
        }
        for bytes in [name, content] {
            note.extend(bytes);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_entry_of_pvh_is_found_among_notes() {
        let entry = 0x100_0000_u64.to_le_bytes();
        let other = note(b"GNU\0", 3, &[0xa5; 17]);
        for size in [4, 8] {
            let notes = [&other[..], &note(b"Xen\0", 18, &entry[..size]), &other].concat();
            assert_eq!(pvh_entry(&notes), Some(0x100_0000));
            assert_eq!(pvh_entry(&notes[..other.len() + 18]), None);
        }
        for notes in [
            note(b"Xen\0", 17, &entry),
            note(b"GNU\0", 18, &entry),
            note(b"Xen\0", 18, &entry[..7]),
            note(b"Xen\0", 18, &[0xff; 8]),
            vec![0xff; 64],
            vec![0; 64],
            vec![],
        ] {
            assert_eq!(pvh_entry(&notes), None);
        }
    }

    #[test]
    fn damaged_headers_do_not_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut head = head(EM_X86_64);
            random.damage(&mut head[..64 + 4 * 56]);
            let Ok(elf) = Elf::parse(&head, FILE_SIZE) else {
                continue;
            };
            let headers = elf.headers.start as usize..elf.headers.end as usize;
            let Some(headers) = head.get(headers) else {
                continue;
            };
            if let Ok(segments) = elf.segments(headers, FILE_SIZE) {
                _ = elf.physical_entry(&segments);
                for segment in segments.load {
                    assert!(segment.file.size() <= segment.memory.size());
                    assert!(segment.file.end <= FILE_SIZE);
                }
            }
            let mut notes = note(b"Xen\0", 18, &[0; 8]);
            random.damage(&mut notes);
            _ = pvh_entry(&notes);
        }
    }
}
