//! The start info that PVH passes to the firmware: `hvm_start_info`, version 1 (Xen's
//! `public/arch-x86/hvm/start_info.h`).
//!
//! Pure: physical memory is read through a closure. Everything needed is copied, because the
//! lifetime of the original is not specified. The platform is trusted about the places of memory;
//! counts, sizes and pointers are bounded.
#![forbid(unsafe_code)]

use bootshare::boot::{
    memory::{MAX_REGIONS, MemoryKind, MemoryMap, MemoryRegion, Range},
    pvh::{Entry, Header, MAGIC, VERSION_WITH_MEMORY_MAP},
};
use core::{fmt, mem::size_of};
use heapless::Vec;
use zerocopy::{FromBytes, IntoBytes};

/// The greatest length of a command line in bytes, without its NUL.
pub const MAX_COMMAND_LINE: usize = 4096;

/// The parts of the start info that the firmware uses.
#[derive(Debug)]
pub struct StartInfo {
    /// The command line, without its NUL.
    pub command_line: Vec<u8, MAX_COMMAND_LINE>,
    /// The memory map.
    pub memory_map: MemoryMap,
    /// Physical address of the ACPI root pointer; 0 if there is none.
    pub rsdp: u64,
}

/// Why the start info cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is none at this address.
    Missing(u64),
    /// It has no memory map.
    NoMemoryMap,
    /// The memory map has this number of entries, which is too many.
    MemoryMapTooLong(u32),
    /// The command line is longer than [`MAX_COMMAND_LINE`] bytes.
    CommandLineTooLong,
    /// It points to something outside of readable memory.
    Unreadable(&'static str, u64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(address) => write!(
                f,
                "there is no PVH start info at {address:#x}; start the image with QEMU's -kernel"
            ),
            Self::NoMemoryMap => {
                f.write_str("the PVH start info has no memory map; use QEMU 4.0 or later")
            }
            Self::MemoryMapTooLong(entries) => write!(
                f,
                "the memory map has {entries} entries, {MAX_REGIONS} is the most; \
                 use fewer memory devices"
            ),
            Self::CommandLineTooLong => write!(
                f,
                "the command line is longer than {MAX_COMMAND_LINE} bytes; \
                 shorten QEMU's -append"
            ),
            Self::Unreadable(what, address) => write!(
                f,
                "the PVH start info puts the {what} at {address:#x}, which is not in memory; \
                 start the image with QEMU's -kernel"
            ),
        }
    }
}

/// Reads the start info at `address`. `read` copies from physical memory, or returns `false` and
/// copies nothing if not all of it can be read.
///
/// # Errors
///
/// Why it cannot be used, for the console.
pub fn read(address: u64, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Result<StartInfo, Error> {
    let header: Header = get(address, read)
        .filter(|header: &Header| header.magic.get() == MAGIC)
        .ok_or(Error::Missing(address))?;
    if header.version.get() < VERSION_WITH_MEMORY_MAP
        || header.memory_map.get() == 0
        || header.memory_map_entries.get() == 0
    {
        return Err(Error::NoMemoryMap);
    }
    Ok(StartInfo {
        command_line: command_line(header.command_line.get(), read)?,
        memory_map: memory_map(
            header.memory_map.get(),
            header.memory_map_entries.get(),
            read,
        )?,
        rsdp: header.rsdp.get(),
    })
}

fn get<T: FromBytes + IntoBytes>(address: u64, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Option<T> {
    let mut value = T::new_zeroed();
    read(address, value.as_mut_bytes()).then_some(value)
}

fn command_line(
    start: u64,
    read: &dyn Fn(u64, &mut [u8]) -> bool,
) -> Result<Vec<u8, MAX_COMMAND_LINE>, Error> {
    let mut line = Vec::new();
    if start == 0 {
        return Ok(line);
    }
    // It is read byte by byte, because the memory after the NUL need not be readable.
    for address in start.. {
        match get(address, read).ok_or(Error::Unreadable("command line", start))? {
            0_u8 => break,
            byte => line.push(byte).map_err(|_| Error::CommandLineTooLong)?,
        }
    }
    Ok(line)
}

fn memory_map(
    start: u64,
    entries: u32,
    read: &dyn Fn(u64, &mut [u8]) -> bool,
) -> Result<MemoryMap, Error> {
    /// QEMU's table may end with an entry of type 0 that its count includes.
    const MAX_ENTRIES: u32 = MAX_REGIONS as u32 + 1;

    if entries > MAX_ENTRIES {
        return Err(Error::MemoryMapTooLong(entries));
    }
    let mut map = MemoryMap::new();
    for index in 0..u64::from(entries) {
        let entry: Entry = index
            .checked_mul(size_of::<Entry>() as u64)
            .and_then(|offset| get(start.checked_add(offset)?, read))
            .ok_or(Error::Unreadable("memory map", start))?;
        if let Some(region) = region(entry.address.get(), entry.size.get(), entry.kind.get()) {
            map.push(region)
                .map_err(|_| Error::MemoryMapTooLong(entries))?;
        }
    }
    Ok(map)
}

/// A region of a BIOS memory map, whose types PVH uses; `None` if it is empty.
pub fn region(address: u64, size: u64, kind: u32) -> Option<MemoryRegion> {
    let region = MemoryRegion {
        range: Range::with_size(address, size),
        kind: match kind {
            0 => return None,
            1 => MemoryKind::Usable,
            3 => MemoryKind::AcpiReclaimable,
            4 => MemoryKind::AcpiNvs,
            5 => MemoryKind::Unusable,
            7 => MemoryKind::Persistent,
            // Also "disabled" (6) and future types.
            _ => MemoryKind::Reserved,
        },
    };
    Some(region).filter(|region| region.range.size() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, little_endian::U64};

    const AT: u64 = 0x9000;

    /// Physical memory that starts at `AT`.
    struct Memory(std::vec::Vec<u8>);

    impl Memory {
        fn new(header: &Header) -> Self {
            Self(header.as_bytes().to_vec())
        }

        fn add(&mut self, bytes: &[u8]) -> U64 {
            let address = AT + self.0.len() as u64;
            self.0.extend_from_slice(bytes);
            address.into()
        }

        fn set(mut self, header: &Header) -> Self {
            self.0[..size_of::<Header>()].copy_from_slice(header.as_bytes());
            self
        }

        fn start_info(&self) -> Result<StartInfo, Error> {
            read(AT, &|address, buffer| {
                let found = address.checked_sub(AT).and_then(|start| {
                    let start = usize::try_from(start).ok()?;
                    self.0.get(start..start.checked_add(buffer.len())?)
                });
                found.is_some_and(|bytes| {
                    buffer.copy_from_slice(bytes);
                    true
                })
            })
        }
    }

    fn entry(address: u64, size: u64, kind: u32) -> Entry {
        Entry {
            address: address.into(),
            size: size.into(),
            kind: kind.into(),
            reserved: 0.into(),
        }
    }

    fn header() -> Header {
        Header {
            magic: MAGIC.into(),
            version: 1.into(),
            ..Header::new_zeroed()
        }
    }

    fn with(command_line: &[u8], entries: &[Entry]) -> Memory {
        let mut header = header();
        let mut memory = Memory::new(&header);
        header.rsdp = 0xf_5a20.into();
        header.memory_map_entries = (entries.len() as u32).into();
        header.memory_map = memory.add(entries.as_bytes());
        header.command_line = memory.add(command_line);
        memory.set(&header)
    }

    #[test]
    fn all_fields_in_use_are_copied() {
        let info = with(
            b"bootshare.timeout=3 -- quiet\0",
            &[
                entry(0, 0x9_fc00, 1),
                entry(0x9_fc00, 0x400, 2),
                entry(0x10_0000, 0x3fe0_0000, 1),
                entry(0x3ff0_0000, 0, 1),
                entry(0x4000_0000, 0x1000, 3),
                entry(0x4000_1000, 0x1000, 99),
                entry(0, 0, 0),
            ],
        )
        .start_info()
        .unwrap();
        assert_eq!(info.command_line, b"bootshare.timeout=3 -- quiet");
        assert_eq!(info.rsdp, 0xf_5a20);
        let kinds: std::vec::Vec<_> = info.memory_map.iter().map(|r| (r.range, r.kind)).collect();
        assert_eq!(
            kinds,
            [
                (Range::with_size(0, 0x9_fc00), MemoryKind::Usable),
                (Range::with_size(0x9_fc00, 0x400), MemoryKind::Reserved),
                (Range::with_size(0x10_0000, 0x3fe0_0000), MemoryKind::Usable),
                (
                    Range::with_size(0x4000_0000, 0x1000),
                    MemoryKind::AcpiReclaimable
                ),
                (Range::with_size(0x4000_1000, 0x1000), MemoryKind::Reserved),
            ]
        );
    }

    #[test]
    fn a_region_beyond_the_address_space_is_cut_off() {
        let info = with(b"\0", &[entry(u64::MAX - 1, 0x1000, 2)])
            .start_info()
            .unwrap();
        assert_eq!(info.memory_map[0].range.end, u64::MAX);
    }

    #[test]
    fn data_that_is_not_a_start_info_counts_as_missing() {
        assert_eq!(
            Memory(vec![0; 64]).start_info().unwrap_err(),
            Error::Missing(AT)
        );
        assert_eq!(
            Memory(vec![0x78]).start_info().unwrap_err(),
            Error::Missing(AT)
        );
    }

    #[test]
    fn a_memory_map_is_needed() {
        assert_eq!(
            with(b"\0", &[]).start_info().unwrap_err(),
            Error::NoMemoryMap
        );
        let mut old = header();
        old.version = 0.into();
        assert_eq!(
            Memory::new(&old).start_info().unwrap_err(),
            Error::NoMemoryMap
        );
    }

    #[test]
    fn a_memory_map_holds_as_many_regions_as_a_zero_page() {
        let entries = |count: u64, last: u32| -> std::vec::Vec<Entry> {
            (0..count)
                .map(|n| entry(n << 20, 0x1000, if n + 1 == count { last } else { 1 }))
                .collect()
        };
        let regions =
            |entries: &[Entry]| Some(with(b"\0", entries).start_info().ok()?.memory_map.len());
        assert_eq!(regions(&entries(128, 1)), Some(128));
        assert_eq!(regions(&entries(129, 0)), Some(128), "the last one ends it");
        assert_eq!(regions(&entries(129, 1)), None);
        assert_eq!(
            with(b"\0", &entries(130, 0)).start_info().unwrap_err(),
            Error::MemoryMapTooLong(130)
        );
    }

    #[test]
    fn a_command_line_is_4096_bytes_at_most() {
        let map = [entry(0, 0x1000, 1)];
        let line = |size: usize| [vec![b'x'; size], vec![0]].concat();
        let longest = with(&line(4096), &map).start_info().unwrap();
        assert_eq!(longest.command_line.len(), 4096);
        assert_eq!(
            with(&line(4097), &map).start_info().unwrap_err(),
            Error::CommandLineTooLong
        );
    }

    #[test]
    fn pointers_out_of_memory_are_refused() {
        let memory = with(b"no end", &[entry(0, 0x1000, 1)]);
        assert!(matches!(
            memory.start_info().unwrap_err(),
            Error::Unreadable("command line", _)
        ));
        for address in [AT + 0x10_0000, u64::MAX - 3] {
            let mut header = header();
            header.memory_map = address.into();
            header.memory_map_entries = 2.into();
            assert_eq!(
                Memory::new(&header).start_info().unwrap_err(),
                Error::Unreadable("memory map", address)
            );
        }
    }

    #[test]
    fn a_missing_command_line_is_empty() {
        let mut header = header();
        let mut memory = Memory::new(&header);
        header.memory_map = memory.add(entry(0, 0x1000, 1).as_bytes());
        header.memory_map_entries = 1.into();
        let info = memory.set(&header).start_info().unwrap();
        assert!(info.command_line.is_empty());
    }
}
