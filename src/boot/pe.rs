//! The PE/COFF headers of EFI programs, among them Linux images.
//!
//! Follows Microsoft's "PE Format": MS-DOS stub, COFF file header, section table.

use crate::boot::{
    bytes::{array, u16_le, u32_le},
    memory::Range,
};

/// Size in bytes of the PE signature and the COFF file header.
const COFF_BYTES: usize = 24;
/// Size in bytes of a section header.
pub const SECTION_BYTES: usize = 40;

/// `IMAGE_FILE_MACHINE_AMD64`.
pub const MACHINE_X86_64: u16 = 0x8664;
/// `IMAGE_FILE_MACHINE_ARM64`.
pub const MACHINE_ARM64: u16 = 0xaa64;

/// The headers of a PE image.
#[derive(Clone, Copy, Debug)]
pub struct Pe<'a> {
    /// `IMAGE_FILE_MACHINE_*`.
    pub machine: u16,
    /// The section table, or the part of it that the given bytes hold.
    table: &'a [u8],
    /// Offset of the section table in the file.
    pub table_offset: u64,
    /// Number of sections.
    pub sections: u16,
}

/// One section of a PE image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name, padded with NULs.
    pub name: [u8; 8],
    /// Its size in memory, in bytes.
    pub virtual_size: u32,
    /// Offset of its data in the file.
    pub file_offset: u32,
    /// Size of its data in the file, in bytes.
    pub file_bytes: u32,
}

impl Section {
    /// Its name without the padding.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let end = self.name.iter().position(|&byte| byte == 0);
        let name = end.and_then(|end| self.name.get(..end));
        name.unwrap_or(&self.name)
    }

    /// The range of its content in the file, without the padding to the file alignment.
    #[must_use]
    pub fn content(&self) -> Range {
        let size = match self.virtual_size {
            // Some linkers do not set it.
            0 => self.file_bytes,
            size => size.min(self.file_bytes),
        };
        Range::with_size(self.file_offset.into(), size.into())
    }
}

impl<'a> Pe<'a> {
    /// Parses the headers in the first bytes of a file; [`None`] if the file has none.
    #[must_use]
    pub fn parse(head: &'a [u8]) -> Option<Self> {
        if !head.starts_with(b"MZ") {
            return None;
        }
        let offset = usize::try_from(u32_le(head, 0x3c)?).ok()?;
        let coff = head.get(offset..)?;
        if !coff.starts_with(b"PE\0\0") {
            return None;
        }
        let optional_bytes = usize::from(u16_le(coff, 20)?);
        let headers_bytes = COFF_BYTES.checked_add(optional_bytes)?;
        let table = coff.get(headers_bytes..);
        Some(Self {
            machine: u16_le(coff, 4)?,
            table: table.unwrap_or_default(),
            table_offset: offset.checked_add(headers_bytes)? as u64,
            sections: u16_le(coff, 6)?,
        })
    }

    /// The sections whose headers are within the given bytes.
    pub fn sections(&self) -> impl Iterator<Item = Section> + use<'a> {
        sections(self.table).take(self.sections.into())
    }

    /// The smallest size in bytes of a file that holds the data of all sections.
    #[must_use]
    pub fn file_end(&self) -> u64 {
        self.sections()
            .map(|s| u64::from(s.file_offset).saturating_add(s.file_bytes.into()))
            .max()
            .unwrap_or(0)
    }
}

/// The sections whose complete headers are in this part of a section table.
pub fn sections(table: &[u8]) -> impl Iterator<Item = Section> {
    let headers = table.chunks_exact(SECTION_BYTES);
    headers.filter_map(|header| {
        Some(Section {
            name: array(header, 0)?,
            virtual_size: u32_le(header, 8)?,
            file_bytes: u32_le(header, 16)?,
            file_offset: u32_le(header, 20)?,
        })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};

    /// Writes PE headers with the given sections (offset and bytes in the file) at `offset`.
    pub(in crate::boot) fn put_pe(
        head: &mut [u8],
        offset: usize,
        machine: u16,
        sections: &[(u32, u32)],
    ) {
        head[..2].copy_from_slice(b"MZ");
        head[0x3c..0x40].copy_from_slice(&(offset as u32).to_le_bytes());
        let coff = &mut head[offset..];
        coff[..4].copy_from_slice(b"PE\0\0");
        coff[4..6].copy_from_slice(&machine.to_le_bytes());
        coff[6..8].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        coff[20..22].copy_from_slice(&160_u16.to_le_bytes());
        for (i, (file_offset, file_bytes)) in sections.iter().enumerate() {
            let header = &mut coff[24 + 160 + 40 * i..][..40];
            header[..5].copy_from_slice(b".text");
            header[16..20].copy_from_slice(&file_bytes.to_le_bytes());
            header[20..24].copy_from_slice(&file_offset.to_le_bytes());
        }
    }

    /// Names a section that [`put_pe`] has written.
    pub(in crate::boot) fn put_section_name(
        head: &mut [u8],
        offset: usize,
        index: usize,
        name: &[u8],
    ) {
        let field = &mut head[offset + 24 + 160 + 40 * index..][..8];
        field.fill(0);
        field[..name.len()].copy_from_slice(name);
    }

    #[test]
    fn the_content_of_a_section_ends_before_its_padding() {
        let section = Section {
            name: *b".cmdline",
            virtual_size: 5,
            file_offset: 0x400,
            file_bytes: 0x200,
        };
        assert_eq!(section.name(), b".cmdline");
        assert_eq!(section.content(), Range::with_size(0x400, 5));
        for virtual_size in [0, 0x1000] {
            let section = Section {
                virtual_size,
                ..section
            };
            assert_eq!(section.content(), Range::with_size(0x400, 0x200));
        }
    }

    #[test]
    fn machine_and_sections_are_read() {
        let mut head = [0; 512];
        put_pe(
            &mut head,
            0x40,
            MACHINE_ARM64,
            &[(0x1000, 0x500), (0x200, 0x100)],
        );
        let pe = Pe::parse(&head).unwrap();
        assert_eq!(pe.machine, MACHINE_ARM64);
        assert_eq!(pe.sections().count(), 2);
        assert_eq!(pe.sections().next().unwrap().name, *b".text\0\0\0");
        assert_eq!(pe.file_end(), 0x1500);
    }

    #[test]
    fn only_headers_beyond_the_given_bytes_count_as_missing() {
        let mut head = [0; 512];
        put_pe(
            &mut head,
            0x40,
            MACHINE_X86_64,
            &[(0x1000, 0x500), (0x2000, 0x100)],
        );
        assert_eq!(
            Pe::parse(&head[..0x40 + 24 + 160 + 40]).unwrap().file_end(),
            0x1500
        );
        assert_eq!(Pe::parse(&head[..0x40 + 24]).unwrap().file_end(), 0);
        assert!(Pe::parse(&head[..0x40 + 20]).is_none());
        assert!(Pe::parse(b"").is_none());
    }

    #[test]
    fn damaged_headers_do_not_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut head = [0; 512];
            put_pe(&mut head, 0x40, MACHINE_ARM64, &[(0x1000, 0x500)]);
            random.damage(&mut head);
            if let Some(pe) = Pe::parse(&head) {
                assert!(pe.file_end() < 1 << 33);
            }
        }
    }
}
