//! Converts a bzImage to one that needs no unpacking.
//!
//! A bzImage contains an ELF file, `vmlinux`, followed by a table of the places that depend on the
//! kernel's virtual address. Its decompressor (the kernel's `arch/x86/boot/compressed`) copies the
//! segments to the load address, applies the table for a random virtual address, and switches to
//! five levels of page tables if the processor has them. This module does the first two; [`ENTRY`]
//! switches the page tables in the guest.
//!
//! The result follows the 64-bit boot protocol like any bzImage (`boot.rst`): its setup header is
//! the original's, and its code consists of [`PAD`] bytes with the entry, followed by the kernel as
//! it is laid out in memory.

use anyhow::{Context, Result, ensure};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD, SHT_NOBITS};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use super::Unpacked;

/// The setup header's fields, as offsets in the file.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE_KERNEL: usize = 0x234;
const MIN_ALIGNMENT: usize = 0x235;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The end of the space for the header.
const HEADER_END: usize = 0x290;

/// `LOADFLAGS`: the kernel's address was randomised, so Linux randomises its memory layout, too.
const KASLR_FLAG: u8 = 1 << 1;
/// `XLOADFLAGS`: the kernel supports five levels of page tables.
const XLF_5LEVEL_ENABLED: u16 = 1 << 6;
/// The oldest version of the protocol with all of these fields: 2.12.
const OLDEST: u16 = 0x020c;

/// Sectors before the code: the boot sector and one more.
const SETUP_BYTES: usize = 1024;

/// Bytes before the kernel: the alignment of its physical address (`PMD_SIZE`). Its virtual address
/// may have a larger alignment.
const PAD: usize = 2 << 20;

/// The virtual address of physical address 0, and the size of the kernel's range
/// (`__START_KERNEL_map`, `KERNEL_IMAGE_SIZE`).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;

/// The entry is this far from the load address (boot.rst, "64-bit Boot Protocol").
const ENTRY_OFFSET: usize = 0x200;

/// The code at the entry. It jumps to the kernel in the state in which it was entered. Before that
/// it switches to five levels of page tables, if the processor has them and the firmware did not.
/// `CR4.LA57` can only be changed while paging is off, that is in 32-bit mode. The page at 0x1000
/// becomes the new top level.
#[rustfmt::skip]
const ENTRY: [u8; 0x110] = [
    0x31, 0xc0,                                     // xor %eax, %eax
    0x0f, 0xa2,                                     // cpuid
    0x83, 0xf8, 0x07,                               // cmp $7, %eax
    0x0f, 0x82, 0xc1, 0x00, 0x00, 0x00,             // jb go
    0xb8, 0x07, 0x00, 0x00, 0x00,                   // mov $7, %eax
    0x31, 0xc9,                                     // xor %ecx, %ecx
    0x0f, 0xa2,                                     // cpuid
    0x0f, 0xba, 0xe1, 0x10,                         // bt $16, %ecx
    0x0f, 0x83, 0xae, 0x00, 0x00, 0x00,             // jnc go
    0x0f, 0x20, 0xe0,                               // mov %cr4, %rax
    0x0f, 0xba, 0xe0, 0x0c,                         // bt $12, %eax
    0x0f, 0x82, 0xa1, 0x00, 0x00, 0x00,             // jc go
    0x48, 0x8d, 0x2d, 0xcc, 0xfd, 0xff, 0xff,       // lea base(%rip), %rbp
    0x48, 0x89, 0xe8,                               // mov %rbp, %rax
    0x48, 0xc1, 0xe8, 0x20,                         // shr $32, %rax
    0x0f, 0x85, 0x8d, 0x00, 0x00, 0x00,             // jnz go
    0x48, 0x89, 0x35, 0x90, 0x00, 0x00, 0x00,       // mov %rsi, saved(%rip)
    0x0f, 0x20, 0xd8,                               // mov %cr3, %rax
    0x48, 0x83, 0xc8, 0x03,                         // or $3, %rax
    0x48, 0x89, 0x05, 0xaa, 0x0d, 0x00, 0x00,       // mov %rax, base + 0x1000(%rip)
    0x48, 0x8d, 0x05, 0x83, 0x00, 0x00, 0x00,       // lea gdt(%rip), %rax
    0x48, 0x89, 0x05, 0x9e, 0x00, 0x00, 0x00,       // mov %rax, gdtr + 2(%rip)
    0x0f, 0x01, 0x15, 0x95, 0x00, 0x00, 0x00,       // lgdt gdtr(%rip)
    0x48, 0x8d, 0x05, 0x0c, 0x00, 0x00, 0x00,       // lea compat(%rip), %rax
    0x89, 0x05, 0x92, 0x00, 0x00, 0x00,             // mov %eax, far(%rip)
    0xff, 0x2d, 0x8c, 0x00, 0x00, 0x00,             // ljmp *far(%rip)
    // compat, of 32 bits:
    0xb8, 0x18, 0x00, 0x00, 0x00,                   // mov $0x18, %eax
    0x8e, 0xd8,                                     // mov %eax, %ds
    0x0f, 0x20, 0xc0,                               // mov %cr0, %eax
    0x0f, 0xba, 0xf0, 0x1f,                         // btr $31, %eax
    0x0f, 0x22, 0xc0,                               // mov %eax, %cr0
    0x0f, 0x20, 0xe0,                               // mov %cr4, %eax
    0x0f, 0xba, 0xe8, 0x0c,                         // bts $12, %eax
    0x0f, 0x22, 0xe0,                               // mov %eax, %cr4
    0x8d, 0x85, 0x00, 0x10, 0x00, 0x00,             // lea 0x1000(%ebp), %eax
    0x0f, 0x22, 0xd8,                               // mov %eax, %cr3
    0x0f, 0x20, 0xc0,                               // mov %cr0, %eax
    0x0f, 0xba, 0xe8, 0x1f,                         // bts $31, %eax
    0x0f, 0x22, 0xc0,                               // mov %eax, %cr0
    0x8d, 0x85, 0xc7, 0x02, 0x00, 0x00,             // lea long - base(%ebp), %eax
    0x89, 0x85, 0x0a, 0x03, 0x00, 0x00,             // mov %eax, far - base(%ebp)
    0x66, 0xc7, 0x85, 0x0e, 0x03, 0x00, 0x00, 0x10, 0x00, // movw $0x10, far + 4 - base(%ebp)
    0xff, 0xad, 0x0a, 0x03, 0x00, 0x00,             // ljmp *far - base(%ebp)
    // long, of 64 bits:
    0x48, 0x8b, 0x35, 0x0a, 0x00, 0x00, 0x00,       // mov saved(%rip), %rsi
    // go:
    0xe9, 0x00, 0x00, 0x00, 0x00,                   // jmp kernel: see GO
    0x0f, 0x1f, 0x44, 0x00, 0x00,                   // nop
    0, 0, 0, 0, 0, 0, 0, 0,                         // saved
    0, 0, 0, 0, 0, 0, 0, 0,                         // gdt
    0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0,             // 0x08: code of 32 bits
    0xff, 0xff, 0, 0, 0, 0x9b, 0xaf, 0,             // 0x10: code of 64 bits
    0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0,             // 0x18: data
    0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0,                // gdtr
    0, 0, 0, 0, 0x08, 0,                            // far
];

/// The offset of the jump to the kernel in [`ENTRY`], and its length.
const GO: usize = 0xce;
const JUMP_BYTES: usize = 5;

/// The compressed payload of a bzImage; `None` if `file` is not one.
///
/// # Errors
/// Its header is invalid, or its protocol is too old.
pub(super) fn payload(file: &[u8]) -> Result<Option<&[u8]>> {
    if file.get(0x1fe..0x200) != Some(b"\x55\xaa") || file.get(0x202..0x206) != Some(b"HdrS") {
        return Ok(None);
    }
    let head = file.get(..HEADER_END).context("it is cut off")?;
    let version = u16::from_le_bytes(array(head, VERSION)?);
    ensure!(version >= OLDEST, "its boot protocol is older than 2.12");
    let sectors = match head[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = u32::from_le_bytes(array(head, PAYLOAD_OFFSET)?) as usize;
    let size = u32::from_le_bytes(array(head, PAYLOAD_OFFSET + 4)?) as usize;
    let start = (sectors + 1) * 512 + offset;
    let payload = file.get(start..).and_then(|rest| rest.get(..size));
    payload.context("it is cut off").map(Some)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = bytes.get(at..at.saturating_add(N));
    Ok(bytes.context("it is cut off")?.try_into()?)
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// Makes the image from `file`, a bzImage, and its decompressed payload.
///
/// # Errors
/// It does not have the layout that the kernel's build produces.
pub(super) fn make(file: &[u8], unpacked: &[u8]) -> Result<Unpacked> {
    let load_address = u64::from_le_bytes(array(file, PREF_ADDRESS)?);
    let init_size = u32::from_le_bytes(array(file, INIT_SIZE)?);
    let alignment = u32::from_le_bytes(array(file, KERNEL_ALIGNMENT)?);
    let vmlinux = Vmlinux::parse(unpacked)?;
    ensure!(
        vmlinux.start == load_address && alignment as usize >= PAD && alignment.is_power_of_two(),
        "its segments do not match its header"
    );
    // Below this address there is no space for the bytes before the kernel.
    ensure!(
        load_address >= 2 * PAD as u64 || file[RELOCATABLE_KERNEL] != 0,
        "it cannot be relocated"
    );
    let size = vmlinux.size.max(init_size.into());
    ensure!(
        size < KERNEL_IMAGE_SIZE / 2,
        "it is too large: {size} bytes"
    );
    let kernel = SETUP_BYTES + PAD;
    let mut image = vec![0; (kernel + vmlinux.loaded).next_multiple_of(16)];
    for (offset, bytes) in &vmlinux.segments {
        image[kernel + offset..][..bytes.len()].copy_from_slice(bytes);
    }
    // Boot loaders do not use the first 0x1f1 bytes.
    image[SETUP_SECTS..HEADER_END].copy_from_slice(&file[SETUP_SECTS..HEADER_END]);
    let code = (image.len() - SETUP_BYTES) as u32;
    image[SETUP_SECTS] = (SETUP_BYTES / 512 - 1) as u8;
    image[MIN_ALIGNMENT] = PAD.ilog2() as u8;
    put(&mut image, SYSSIZE, (code / 16).to_le_bytes());
    put(&mut image, KERNEL_ALIGNMENT, (PAD as u32).to_le_bytes());
    put(&mut image, PAYLOAD_OFFSET, [0; 8]);
    let before = load_address.saturating_sub(PAD as u64);
    put(&mut image, PREF_ADDRESS, before.to_le_bytes());
    let needed = (PAD as u32 + size as u32).max(code);
    put(&mut image, INIT_SIZE, needed.to_le_bytes());

    let entry = SETUP_BYTES + ENTRY_OFFSET;
    image[entry..][..ENTRY.len()].copy_from_slice(&ENTRY);
    let jump = PAD + vmlinux.entry - (ENTRY_OFFSET + GO + JUMP_BYTES);
    put(&mut image, entry + GO + 1, (jump as u32).to_le_bytes());
    let xloadflags = u16::from_le_bytes(array(file, XLOADFLAGS)?);
    if xloadflags & XLF_5LEVEL_ENABLED == 0 {
        // Straight to `go`.
        put(&mut image, entry, [0xe9]);
        put(
            &mut image,
            entry + 1,
            ((GO - JUMP_BYTES) as u32).to_le_bytes(),
        );
    }

    let lists = Lists::parse(vmlinux.behind, load_address, vmlinux.loaded)?;
    let mut slots = 1;
    if lists.is_some() {
        let room = KERNEL_IMAGE_SIZE.checked_sub(load_address + size);
        slots += room.unwrap_or(0) / u64::from(alignment);
        image[LOADFLAGS] |= KASLR_FLAG;
    }
    Ok(Unpacked {
        image,
        slots: slots as u32,
        alignment,
        lists: lists.unwrap_or_default().0,
    })
}

/// The ELF file in a bzImage, `vmlinux`.
struct Vmlinux<'a> {
    /// The physical address for which it is linked.
    start: u64,
    /// Its size in memory, and the size of the part that is loaded.
    size: u64,
    loaded: usize,
    /// The entry, as an offset.
    entry: usize,
    /// The loaded segments: offsets in the file and in memory.
    segments: Vec<(usize, &'a [u8])>,
    /// The bytes after the ELF file.
    behind: &'a [u8],
}

impl<'a> Vmlinux<'a> {
    fn parse(file: &'a [u8]) -> Result<Self> {
        const WHAT: &str = "the compressed data is not a 64-bit ELF file";
        let endian = LittleEndian;
        let elf = FileHeader64::<LittleEndian>::parse(file).context(WHAT)?;
        let headers = elf.program_headers(endian, file).context(WHAT)?;
        let sections = elf.section_headers(endian, file).context(WHAT)?;
        let load = || {
            headers
                .iter()
                .filter(|header| header.p_type(endian) == PT_LOAD)
        };
        let start = load().map(|header| header.p_paddr(endian)).min();
        let start = start.context("the compressed data has no segment to load")?;
        let (mut size, mut loaded, mut segments) = (0, 0, Vec::new());
        for header in load() {
            let offset = header.p_paddr(endian) - start;
            let bytes = header.data(endian, file).ok().context(WHAT)?;
            let end = offset.checked_add(header.p_memsz(endian).max(bytes.len() as u64));
            let end = end.filter(|end| *end < KERNEL_IMAGE_SIZE);
            size = size.max(end.context("a segment is too large")?);
            loaded = loaded.max(offset as usize + bytes.len());
            segments.push((offset as usize, bytes));
        }
        // Content that belongs to no section or segment may precede the headers.
        let sections_bytes =
            u64::from(elf.e_shentsize.get(endian)) * u64::from(elf.e_shnum.get(endian));
        let table = elf.e_shoff.get(endian).saturating_add(sections_bytes);
        let of_segments = headers.iter().map(|header| {
            header
                .p_offset(endian)
                .saturating_add(header.p_filesz(endian))
        });
        let of_sections = sections
            .iter()
            .filter(|it| it.sh_type(endian) != SHT_NOBITS);
        let of_sections =
            of_sections.map(|it| it.sh_offset(endian).saturating_add(it.sh_size(endian)));
        let end = of_segments.chain(of_sections).fold(table, u64::max);
        let behind = file.get(end as usize..).context(WHAT)?;
        let entry = elf.e_entry.get(endian).checked_sub(start);
        let entry = entry.filter(|entry| *entry < loaded as u64);
        Ok(Self {
            start,
            size,
            loaded,
            entry: entry.context("its entry point is in no segment")? as usize,
            segments,
            behind,
        })
    }
}

/// Offsets from the kernel's start: of 64-bit addresses, of 32-bit values from which the displacement
/// is subtracted, and of 32-bit addresses.
#[derive(Default)]
struct Lists([Vec<u32>; 3]);

impl Lists {
    /// Reads the table after `vmlinux` (arch/x86/tools/relocs.c): three lists of 32-bit addresses,
    /// each preceded by a zero; the second one exists before Linux 6.15 only. A kernel without a
    /// table has a fixed address.
    fn parse(table: &[u8], load_address: u64, loaded: usize) -> Result<Option<Self>> {
        const WHAT: &str = "its table of relocations is damaged";
        if table.is_empty() {
            return Ok(None);
        }
        let (words, rest) = table.as_chunks::<4>();
        ensure!(rest.is_empty() && words[0] == [0; 4], WHAT);
        let found = words.split(|word| *word == [0; 4]).skip(1);
        let mut found: Vec<_> = found.collect();
        match found.len() {
            2 => found.insert(1, &[]),
            3 => {}
            _ => anyhow::bail!(WHAT),
        }
        let mut lists = Self::default();
        for (index, words) in found.into_iter().enumerate() {
            let bytes = if index == 0 { 8 } else { 4 };
            for word in words {
                let address = i64::from(i32::from_le_bytes(*word)) as u64;
                let offset = address.checked_sub(KERNEL_MAP + load_address);
                let offset = offset.filter(|offset| offset + bytes <= loaded as u64);
                lists.0[index].push(offset.context(WHAT)? as u32);
            }
        }
        lists.0.iter_mut().for_each(|list| list.sort_unstable());
        Ok(Some(lists))
    }
}

/// Adds `delta` to the addresses in `bytes`, a part of the image at the offset `start`. An address
/// that is cut off at either end is left unchanged.
pub(super) fn relocate(bytes: &mut [u8], start: usize, lists: &[Vec<u32>; 3], delta: u64) {
    let end = start + bytes.len();
    let [long, down, up] = lists.each_ref().map(|list| places(list, start, end));
    for at in long {
        if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<8>) {
            *place = u64::from_le_bytes(*place).wrapping_add(delta).to_le_bytes();
        }
    }
    let small = delta as u32;
    let down = down.map(|at| (at, small.wrapping_neg()));
    for (at, delta) in down.chain(up.map(|at| (at, small))) {
        if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) {
            *place = u32::from_le_bytes(*place).wrapping_add(delta).to_le_bytes();
        }
    }
}

/// The offsets of a list that are from `start` to `end`, relative to `start`.
fn places(list: &[u32], start: usize, end: usize) -> impl Iterator<Item = usize> {
    let in_image = |place: &u32| SETUP_BYTES + PAD + *place as usize;
    let index = |at| list.partition_point(|place| in_image(place) < at);
    let found = list.get(index(start)..index(end)).unwrap_or_default();
    found
        .iter()
        .filter_map(move |place| in_image(place).checked_sub(start))
}

/// The load address of an image that starts with `head`, raised by `pages` times [`PAD`], and its
/// offset in the header.
pub(super) fn raised(head: &[u8], pages: u64) -> Option<(usize, [u8; 8])> {
    let address = u64::from_le_bytes(array(head, PREF_ADDRESS).ok()?);
    let address = address.checked_add(pages.checked_mul(PAD as u64)?)?;
    Some((PREF_ADDRESS, address.to_le_bytes()))
}

/// The number of possible load addresses, multiples of [`PAD`], in `memory` bytes: they are in its
/// first eighth, so that a large initrd fits above the kernel.
pub(super) fn pages(image: &[u8], memory: u64) -> u64 {
    const MOST: u64 = 2 << 30;
    let address = array(image, PREF_ADDRESS).map_or(u64::MAX, u64::from_le_bytes);
    let room = (memory.min(MOST) / 8).saturating_sub(address);
    let is_fixed = image.get(RELOCATABLE_KERNEL) == Some(&0);
    if is_fixed { 1 } else { 1 + room / PAD as u64 }
}
