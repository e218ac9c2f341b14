//! Converts a firmware image to a file for QEMU's `-bios`: the contents of its memory.
//!
//! On x86-64 the code of the section `.reset` comes last, where the processor starts, right below 4
//! GiB; the file is a multiple of 64 KiB, as QEMU wants it there. An aarch64 image needs no
//! conversion for flash: it handles that itself.

use std::fmt::Display;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSegment};

use crate::elf::with_image;

/// The code at the reset vector, on x86-64.
const RESET: &str = ".reset";
/// The size of a PC's ROM is a multiple of this.
const UNIT: usize = 64 << 10;
/// The limit of a ROM's size, far above that of any firmware image: a file with larger gaps is not
/// one.
const LARGEST: usize = 16 << 20;

/// The ROM made of the ELF file at `path`.
///
/// # Errors
/// It cannot be read, or is no ELF file with something to load.
pub fn make(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    with_image(path, |image| {
        ensure!(
            image.section_by_name(".interp").is_none(),
            "{name} is no firmware image but a program for an operating system: name an image \
             that `make firmware` has built"
        );
        memory(image, name)
    })
}

/// The contents of an image in memory. `name` is used in messages.
fn memory(image: &object::File<'_>, name: impl Display) -> Result<Vec<u8>> {
    let mut parts = Vec::new();
    for segment in image.segments() {
        let data = segment
            .data()
            .with_context(|| format!("{name} is cut off"))?;
        parts.push((segment.address(), data));
    }
    parts.sort_unstable();
    let start = parts.first().map_or(0, |(address, _)| *address);
    let mut rom = Vec::new();
    for (address, data) in parts.into_iter().filter(|(_, data)| !data.is_empty()) {
        let offset = usize::try_from(address - start).unwrap_or(usize::MAX);
        ensure!(
            (rom.len()..LARGEST).contains(&offset),
            "{name} is no firmware image: its segments are not contiguous"
        );
        rom.resize(offset, 0);
        rom.extend_from_slice(data);
    }
    ensure!(!rom.is_empty(), "{name} has nothing to load");

    if let Some(reset) = image.section_by_name(RESET) {
        rom.extend_from_slice(reset.data()?);
        let padding = rom.len().next_multiple_of(UNIT) - rom.len();
        rom.splice(..0, vec![0; padding]);
    }
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_reset_vector_becomes_its_memory_image() {
        let path = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let program = object::File::parse(&*bytes).unwrap();
        assert!(make(&path).is_err(), "it is for an operating system");
        let rom = memory(&program, path.display()).unwrap();
        let text = program.section_by_name(".text").unwrap();
        let at = usize::try_from(text.address()).unwrap();
        let code = text.data().unwrap();
        assert_eq!(&rom[at..at + code.len()], code);
    }
}
