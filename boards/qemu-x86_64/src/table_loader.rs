//! Loads QEMU's ACPI tables, which QEMU provides in pieces: a script tells the firmware to load
//! files into memory, to add their addresses to each other, and to correct checksums (QEMU,
//! hw/acpi/bios-linker-loader.c).
//!
//! Pure: files are read through a trait, and memory is a slice. The script is checked: it can
//! access only the files that it loaded into that slice.
#![forbid(unsafe_code)]

use bootshare::boot::memory::Range;
use heapless::Vec;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

/// The file with the script.
const SCRIPT: &[u8] = b"etc/table-loader";
/// The file with the root pointer.
const RSDP: &[u8] = b"etc/acpi/rsdp";
/// The size of a command in bytes (`BiosLinkerLoaderEntry`).
const COMMAND_SIZE: usize = 128;
/// The greatest number of commands: QEMU's scripts have about thirty.
const MAX_SCRIPT: usize = 1024 * COMMAND_SIZE;
/// The greatest number of files: QEMU has at most seven.
const MAX_FILES: usize = 16;

/// The source of the files.
pub trait Files {
    /// The size of a file; `None` if it does not exist.
    fn size(&mut self, name: &[u8]) -> Option<usize>;

    /// Reads the start of a file; `false` if that failed.
    fn read(&mut self, name: &[u8], buffer: &mut [u8]) -> bool;

    /// Writes to a file; `false` if that failed.
    fn write(&mut self, name: &[u8], offset: u32, bytes: &[u8]) -> bool;
}

/// The loaded tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The physical address of the root pointer.
    pub rsdp: u64,
    /// The range of memory that the tables use: the end of the given memory.
    pub memory: Range,
}

/// A file's name, padded with NULs.
type Name = [u8; 56];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Allocate {
    file: Name,
    align: U32,
    /// The zone, below 1 MiB or anywhere. It is ignored, because the firmware passes the address of
    /// the root pointer on.
    zone: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AddPointer {
    /// The offset of the field to which the address of the other file is added.
    file: Name,
    to: Name,
    offset: U32,
    size: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AddChecksum {
    file: Name,
    offset: U32,
    start: U32,
    length: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WritePointer {
    /// The file of the device to which the address is written.
    file: Name,
    to: Name,
    offset: U32,
    to_offset: U32,
    size: u8,
}

/// Loads the tables to the end of `memory`, whose physical address is `base`. `None` if the machine
/// has no ACPI.
///
/// # Errors
///
/// What is wrong with the script or its files.
pub fn load(
    files: &mut impl Files,
    base: u64,
    memory: &mut [u8],
) -> Result<Option<Tables>, &'static str> {
    let Some(size) = files.size(SCRIPT) else {
        return Ok(None);
    };
    if size > MAX_SCRIPT {
        return Err("the script is too long");
    }
    let (script, memory) = memory.split_at_mut_checked(size).ok_or(NO_ROOM)?;
    if !files.read(SCRIPT, script) {
        return Err("the script can't be read");
    }
    let base = base + size as u64;
    let end = base + memory.len() as u64;
    let mut loader = Loader {
        source: files,
        base,
        free: memory.len(),
        memory,
        files: Vec::new(),
    };
    for command in script.chunks_exact(COMMAND_SIZE) {
        loader.run(command)?;
    }
    let rsdp = loader.find(RSDP)?;
    Ok(Some(Tables {
        rsdp: loader.address(&rsdp),
        memory: Range {
            start: base + loader.free as u64,
            end,
        },
    }))
}

const NO_ROOM: &str = "they need more memory than there is";
const MALFORMED: &str = "a command of the script is malformed";

/// The ranges of the loaded files, as offsets in the memory.
type Place = core::ops::Range<usize>;

struct Loader<'a, F> {
    source: &'a mut F,
    base: u64,
    memory: &'a mut [u8],
    /// The end of the free part of the memory.
    free: usize,
    files: Vec<(Name, Place), MAX_FILES>,
}

impl<F: Files> Loader<'_, F> {
    fn run(&mut self, command: &[u8]) -> Result<(), &'static str> {
        let (kind, operands) = U32::read_from_prefix(command).map_err(|_| MALFORMED)?;
        match kind.get() {
            1 => self.allocate(&parse(operands)?),
            2 => self.add_pointer(&parse(operands)?),
            3 => self.add_checksum(&parse(operands)?),
            4 => self.write_pointer(&parse(operands)?),
            // Unknown commands and the rest of the file are skipped; QEMU has to support firmware
            // that does not know them.
            _ => Ok(()),
        }
    }

    fn allocate(&mut self, command: &Allocate) -> Result<(), &'static str> {
        let name = trimmed(&command.file);
        let align = u64::from(command.align.get().max(1));
        if !align.is_power_of_two() || self.find(name).is_ok() {
            return Err(MALFORMED);
        }
        let size = self.source.size(name).ok_or(NO_FILE)?;
        let end = self.address(&(self.free..self.free));
        let start = end
            .checked_sub(size as u64)
            .map(|start| start & !(align - 1))
            .and_then(|start| start.checked_sub(self.base))
            .ok_or(NO_ROOM)? as usize;
        let place = start..start + size;
        let buffer = self.memory.get_mut(place.clone()).ok_or(NO_ROOM)?;
        if !self.source.read(name, buffer) {
            return Err("one of their files can't be read");
        }
        self.free = start;
        self.files
            .push((command.file, place))
            .map_err(|_| "they have too many files")
    }

    fn add_pointer(&mut self, command: &AddPointer) -> Result<(), &'static str> {
        let to = self.find(trimmed(&command.to))?;
        let address = self.address(&to);
        let offset = command.offset.get() as usize;
        let field = self
            .content(trimmed(&command.file))?
            .get_mut(offset..)
            .and_then(|rest| rest.get_mut(..usize::from(command.size)))
            .ok_or(MALFORMED)?;
        let mut value = U64::new(0);
        let bytes = value.as_mut_bytes();
        bytes
            .get_mut(..field.len())
            .ok_or(MALFORMED)?
            .copy_from_slice(field);
        let sum = U64::new(value.get().wrapping_add(address));
        field.copy_from_slice(pointer(&sum, command.size)?);
        Ok(())
    }

    fn add_checksum(&mut self, command: &AddChecksum) -> Result<(), &'static str> {
        let content = self.content(trimmed(&command.file))?;
        let sum = content
            .get(command.start.get() as usize..)
            .and_then(|rest| rest.get(..command.length.get() as usize))
            .ok_or(MALFORMED)?
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let place = content.get_mut(command.offset.get() as usize);
        let byte = place.ok_or(MALFORMED)?;
        *byte = byte.wrapping_sub(sum);
        Ok(())
    }

    fn write_pointer(&mut self, command: &WritePointer) -> Result<(), &'static str> {
        let to = self.find(trimmed(&command.to))?;
        if command.to_offset.get() as usize >= to.len() {
            return Err(MALFORMED);
        }
        let address = U64::new(self.address(&to) + u64::from(command.to_offset.get()));
        let bytes = pointer(&address, command.size)?;
        let name = trimmed(&command.file);
        if self.source.write(name, command.offset.get(), bytes) {
            Ok(())
        } else {
            Err("a device does not take their address")
        }
    }

    /// The range to which the script has loaded a file.
    fn find(&self, name: &[u8]) -> Result<Place, &'static str> {
        let found = self.files.iter().find(|(file, _)| trimmed(file) == name);
        Ok(found.ok_or(NO_FILE)?.1.clone())
    }

    fn content(&mut self, name: &[u8]) -> Result<&mut [u8], &'static str> {
        let place = self.find(name)?;
        self.memory.get_mut(place).ok_or(MALFORMED)
    }

    fn address(&self, place: &Place) -> u64 {
        self.base + place.start as u64
    }
}

const NO_FILE: &str = "one of their files is missing";

/// The bytes of a pointer of this size, if the value fits.
fn pointer(address: &U64, size: u8) -> Result<&[u8], &'static str> {
    let (low, high) = address
        .as_bytes()
        .split_at_checked(size.into())
        .ok_or(MALFORMED)?;
    if !matches!(size, 1 | 2 | 4 | 8) || high.iter().any(|byte| *byte != 0) {
        return Err(MALFORMED);
    }
    Ok(low)
}

fn parse<T: FromBytes + Immutable + KnownLayout>(operands: &[u8]) -> Result<T, &'static str> {
    let (command, _) = T::read_from_prefix(operands).map_err(|_| MALFORMED)?;
    Ok(command)
}

/// The bytes up to the first NUL.
fn trimmed(name: &Name) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashMap, vec::Vec};

    const BASE: u64 = 0x3fe0_0000;

    #[derive(Default)]
    struct Host(HashMap<Vec<u8>, Vec<u8>>);

    impl Files for Host {
        fn size(&mut self, name: &[u8]) -> Option<usize> {
            Some(self.0.get(name)?.len())
        }

        fn read(&mut self, name: &[u8], buffer: &mut [u8]) -> bool {
            buffer.copy_from_slice(&self.0[name][..buffer.len()]);
            true
        }

        fn write(&mut self, name: &[u8], offset: u32, bytes: &[u8]) -> bool {
            let file = self.0.get_mut(name).map_or(&mut [][..], |file| file);
            let rest = file.get_mut(offset as usize..).unwrap_or_default();
            let place = rest.get_mut(..bytes.len());
            place.map(|place| place.copy_from_slice(bytes)).is_some()
        }
    }

    fn name(text: &str) -> Name {
        let mut name = [0; 56];
        name[..text.len()].copy_from_slice(text.as_bytes());
        name
    }

    fn command(kind: u32, operands: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(operands);
        bytes.resize(COMMAND_SIZE, 0);
        bytes
    }

    fn allocate(file: &str, align: u32) -> Vec<u8> {
        let file = name(file);
        let operands = Allocate {
            file,
            align: align.into(),
            zone: 1,
        };
        command(1, operands.as_bytes())
    }

    fn add_pointer(file: &str, to: &str, offset: u32, size: u8) -> Vec<u8> {
        let operands = AddPointer {
            file: name(file),
            to: name(to),
            offset: offset.into(),
            size,
        };
        command(2, operands.as_bytes())
    }

    fn add_checksum(file: &str, offset: u32, start: u32, length: u32) -> Vec<u8> {
        let operands = AddChecksum {
            file: name(file),
            offset: offset.into(),
            start: start.into(),
            length: length.into(),
        };
        command(3, operands.as_bytes())
    }

    fn write_pointer(file: &str, to: &str, to_offset: u32, size: u8) -> Vec<u8> {
        let operands = WritePointer {
            file: name(file),
            to: name(to),
            offset: 0.into(),
            to_offset: to_offset.into(),
            size,
        };
        command(4, operands.as_bytes())
    }

    /// A root pointer of 20 bytes, tables of 100 bytes and a file for an address, with this script.
    fn host(script: &[Vec<u8>]) -> Host {
        let mut host = Host::default();
        for (name, content) in [
            ("etc/acpi/rsdp", std::vec![1; 20]),
            ("etc/acpi/tables", std::vec![7; 100]),
            ("etc/address", std::vec![0; 8]),
            ("etc/table-loader", script.concat()),
        ] {
            host.0.insert(name.as_bytes().to_vec(), content);
        }
        host
    }

    const RSDP_NAME: &str = "etc/acpi/rsdp";
    const TABLES: &str = "etc/acpi/tables";

    fn run(script: &[Vec<u8>]) -> Result<Option<Tables>, &'static str> {
        load(&mut host(script), BASE, &mut std::vec![0; 64 << 10])
    }

    #[test]
    fn files_are_placed_linked_and_given_checksums() {
        let mut host = host(&[
            allocate(RSDP_NAME, 16),
            allocate(TABLES, 64),
            add_pointer(RSDP_NAME, TABLES, 16, 4),
            add_checksum(RSDP_NAME, 8, 0, 20),
            write_pointer("etc/address", TABLES, 40, 8),
            command(0, &[]),
        ]);
        let mut memory = std::vec![0; 64 << 10];
        let tables = load(&mut host, BASE, &mut memory).unwrap().unwrap();
        let end = BASE + (64 << 10);
        let rsdp = end - 32;
        let first = (rsdp - 100) & !63;
        assert_eq!(
            tables,
            Tables {
                rsdp,
                memory: Range { start: first, end }
            }
        );
        let at = |address: u64| (address - BASE) as usize;
        let content = &memory[at(rsdp)..][..20];
        let pointer = u32::from_le_bytes(content[16..].try_into().unwrap());
        assert_eq!(u64::from(pointer), 0x0101_0101 + first);
        assert_eq!(content.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
        assert_eq!(memory[at(first)..][..100], [7; 100]);
        assert_eq!(host.0[&b"etc/address"[..]], (first + 40).to_le_bytes());
    }

    #[test]
    fn without_a_script_there_is_no_acpi() {
        assert_eq!(load(&mut Host::default(), BASE, &mut [0; 16]), Ok(None));
    }

    #[test]
    fn a_script_writes_only_to_its_files() {
        let both = || [allocate(RSDP_NAME, 1), allocate(TABLES, 1)].to_vec();
        assert!(run(&both()).is_ok());
        for last in [
            allocate(TABLES, 1),
            allocate("etc/address", 3),
            allocate("etc/nosuch", 1),
            add_pointer(TABLES, "etc/address", 0, 4),
            add_pointer("etc/address", TABLES, 0, 4),
            add_pointer(TABLES, RSDP_NAME, 97, 4),
            add_pointer(TABLES, RSDP_NAME, u32::MAX, 8),
            add_pointer(TABLES, RSDP_NAME, 0, 3),
            add_pointer(TABLES, RSDP_NAME, 0, 0),
            add_pointer(TABLES, RSDP_NAME, 0, 16),
            add_pointer(TABLES, RSDP_NAME, 0, 2),
            add_checksum(TABLES, 100, 0, 100),
            add_checksum(TABLES, 0, 1, 100),
            add_checksum(TABLES, 0, u32::MAX, u32::MAX),
            write_pointer("etc/nosuch", TABLES, 0, 8),
            write_pointer("etc/address", TABLES, 100, 8),
            write_pointer("etc/address", TABLES, 0, 9),
        ] {
            let mut script = both();
            script.push(last.clone());
            assert!(run(&script).is_err(), "{last:x?}");
        }
    }

    #[test]
    fn tables_larger_than_the_memory_are_refused() {
        for align in [1, 1 << 31] {
            let mut host = host(&[allocate(RSDP_NAME, 1), allocate(TABLES, align)]);
            for size in 0..400 {
                let loaded = load(&mut host, 1 << 20, &mut std::vec![0; size]);
                let needed = 2 * COMMAND_SIZE + 120;
                assert_eq!(loaded.is_ok(), align == 1 && size >= needed, "{size}");
            }
        }
        assert!(run(&[]).is_err(), "no root pointer");
    }

    #[test]
    fn a_random_script_ends() {
        let mut state = 1u64;
        for _ in 0..2000 {
            let mut script = [allocate(RSDP_NAME, 1), allocate(TABLES, 1)].to_vec();
            for _ in 0..4 {
                let mut noise = [
                    allocate("etc/address", 8),
                    add_pointer(TABLES, RSDP_NAME, 4, 4),
                    add_checksum(TABLES, 4, 0, 50),
                    write_pointer("etc/address", TABLES, 1, 8),
                ];
                for command in &mut noise {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let byte = (state >> 33) as usize % COMMAND_SIZE;
                    command[byte] ^= (state >> 56) as u8;
                }
                script.extend(noise);
            }
            let _no_panic = run(&script);
        }
    }
}
