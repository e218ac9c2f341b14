//! Kernel images and the data made from their headers.

use super::{device_tree::is_tree_for, memory::regions};
use crate::source::Source;
use bootshare::boot::{
    Architecture,
    arm64_image::Arm64Image,
    bls,
    bzimage::{self, BzImage},
    elf::{self, Elf},
    gzip::{GzipError, HEADER_BYTES, Unpacker},
    image::{Compression, Kind},
    memory::{ClaimError, Obstacle, Planner, Range, Request},
    pe::Pe,
    pvh::StartInfo,
    uki::{OsRelease, Profile, Scan, Uki, UkiError},
    zboot::Zboot,
    zero_page::{self, Parameters, ZERO_PAGE_BYTES, ZeroPageError},
};

/// A file's size, often the size of its first bytes, because headers contain sizes.
fn file_size(source: &mut Source<'_>) -> u64 {
    source.edge()
}

pub fn bzimage(mut source: Source<'_>) {
    let file_size = file_size(&mut source);
    let initrd = source.flag().then(|| Range {
        start: source.edge(),
        end: source.edge(),
    });
    let (command_line, load_address) = (source.edge(), source.edge());
    let map = regions(&mut source);
    let head = source.rest();
    let image = match BzImage::parse(head, file_size) {
        Ok(image) => image,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(matches!(Kind::of(head, file_size), Kind::BzImage));
    assert!(image.version >= 0x020c);
    assert!(image.header_end <= bzimage::HEAD_BYTES);
    assert!(image.kernel_alignment.is_power_of_two());
    assert_eq!(image.setup_bytes + image.payload_bytes, file_size);
    assert!(image.setup_bytes >= 1024 && image.setup_bytes.is_multiple_of(512));
    assert!(image.payload_bytes > 0);
    assert!(image.entry(load_address) >= load_address);

    let request = image.memory_request();
    assert!(request.size >= image.payload_bytes.max(image.init_size.into()));
    assert!(request.min >= image.pref_address);
    if let Some(place) = place(&map, &request) {
        assert!(place.end <= image.limit());
        assert!(image.relocatable || place.start == image.pref_address);
    }

    let parameters = Parameters {
        load_address,
        command_line,
        initrd,
        memory_map: &map,
        acpi_rsdp: load_address ^ command_line,
    };
    fill_zero_page(head, &image, &parameters);
}

fn fill_zero_page(head: &[u8], image: &BzImage, parameters: &Parameters<'_>) {
    let mut page = [0xa5; ZERO_PAGE_BYTES];
    let result = zero_page::fill(&mut page, head, image, parameters);
    let Parameters {
        load_address,
        command_line,
        initrd,
        memory_map,
        acpi_rsdp,
    } = *parameters;
    let above = |address: u64| address > u32::MAX.into() && !image.above_4_gib();
    let ends = initrd.map_or(0, |initrd| initrd.end.saturating_sub(1).max(initrd.start));
    let filled = memory_map.iter().filter(|region| region.range.size() > 0);
    let error = match result {
        Ok(()) => {
            assert!(!above(load_address) && !above(command_line) && !above(ends));
            let initrd = initrd.unwrap_or(Range { start: 0, end: 0 });
            assert_eq!(pair(&page, 0x218, 0xc0), initrd.start);
            assert_eq!(pair(&page, 0x21c, 0xc4), initrd.size());
            assert_eq!(pair(&page, 0x228, 0xc8), command_line);
            assert_eq!(u64_at(&page, 0x70), acpi_rsdp);
            // Otherwise the kernel takes fields for leftovers of an old boot loader and clears them.
            assert_eq!(page[0x1ef], 0, "sentinel");
            assert_eq!(page[0x210], 0xff, "type_of_loader");
            assert_eq!(usize::from(page[0x1e8]), filled.clone().count());
            for (index, region) in filled.enumerate() {
                let entry = 0x2d0 + 20 * index;
                assert_eq!(u64_at(&page, entry), region.range.start);
                assert_eq!(u64_at(&page, entry + 8), region.range.size());
                assert_eq!(u32_at(&page, entry + 16), region.kind as u32);
            }
            return;
        }
        Err(error) => error,
    };
    match error {
        ZeroPageError::HeadTooShort => assert!(head.len() < image.header_end),
        ZeroPageError::TooManyRegions { regions } => {
            assert_eq!(regions, filled.count());
            assert!(regions > 128);
        }
        ZeroPageError::Above4Gib { .. } => {
            let size = initrd.map_or(0, |initrd| initrd.size());
            let any = above(load_address) || above(command_line);
            assert!(any || above(ends) || above(size));
        }
    }
    assert!(!error.to_string().is_empty());
}

pub fn arm64_image(mut source: Source<'_>) {
    let file_size = file_size(&mut source);
    let map = regions(&mut source);
    let head = source.rest();
    let image = match Arm64Image::parse(head, file_size) {
        Ok(image) => image,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(file_size >= 64);
    assert_eq!(image.file_size, file_size);
    assert!(image.image_size > 0);
    let request = image.memory_request();
    assert_eq!(request.align, 2 << 20);
    let Some(place) = place(&map, &request) else {
        return;
    };
    let load_address = image.load_address(place.start);
    assert!(load_address + image.image_size.max(file_size) <= place.end);
    let kernel = Range::with_size(load_address, image.image_size);
    let window = Arm64Image::initrd_window(&kernel);
    assert!(window.start <= kernel.start && kernel.start - window.start < 1 << 30);
    assert!(window.start.is_multiple_of(1 << 30) && window.size() == 32 << 30);
}

pub fn kind(mut source: Source<'_>) {
    let file_size = file_size(&mut source);
    let head = source.rest();
    let kind = Kind::of(head, file_size);
    assert_eq!(
        matches!(kind, Kind::Empty),
        head.is_empty() || file_size == 0
    );
    assert!(!kind.to_string().is_empty());
    let mut machines = 0;
    for machine in [Architecture::X86_64, Architecture::Aarch64] {
        match kind.check(machine) {
            Ok(()) => {
                machines += 1;
                // For a compressed file, this is known only after it was unpacked.
                let packed = matches!(
                    kind,
                    Kind::Compressed(Compression::Gzip | Compression::Zstd)
                );
                assert!(packed || kind.architecture() == Some(machine));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    assert!(machines < 2, "it runs on one machine at most");
}

pub fn pe(mut source: Source<'_>) {
    let head = source.rest();
    let Some(pe) = Pe::parse(head) else {
        return;
    };
    assert!(head.starts_with(b"MZ"));
    let end = pe.file_end();
    let mut count = 0;
    for section in pe.sections() {
        count += 1;
        assert!(u64::from(section.file_offset) + u64::from(section.file_bytes) <= end);
    }
    assert!(count <= head.len() / 40);
    assert!(count > 0 || end == 0);
}

pub fn elf(mut source: Source<'_>) {
    let file_size = file_size(&mut source);
    let map = regions(&mut source);
    let head = source.rest();
    _ = elf::pvh_entry(head);
    let elf = match Elf::parse(head, file_size) {
        Ok(elf) => elf,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(matches!(Kind::of(head, file_size), Kind::Elf { .. }));
    assert!(elf.headers.end <= file_size && elf.headers.size() <= elf::MAX_BYTES as u64);
    let headers = elf.headers.start as usize..elf.headers.end as usize;
    let Some(headers) = head.get(headers) else {
        return;
    };
    let segments = match elf.segments(headers, file_size) {
        Ok(segments) => segments,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(!segments.load.is_empty());
    let mut planner = Planner::new(&map, u64::MAX, &[]);
    let mut taken: Vec<Range> = Vec::new();
    for segment in &segments.load {
        assert!(segment.file.end <= file_size);
        assert!(segment.memory.size() > 0 && segment.file.size() <= segment.memory.size());
        assert!(taken.iter().all(|other| !other.overlaps(&segment.memory)));
        let free = planner.free().to_vec();
        let fits = free.iter().any(|free| free.contains(&segment.memory));
        match planner.claim(segment.memory) {
            Ok(place) => assert!(fits && place == segment.memory),
            Err(part) => {
                assert!(!fits && segment.memory.contains(&part));
                assert!(free.iter().all(|free| !free.contains(&part)));
                let range = segment.memory;
                let error = ClaimError {
                    what: "segment",
                    range,
                    obstacle: Obstacle::of(range, part, &map, &[]),
                };
                assert!(!error.to_string().is_empty());
            }
        }
        taken.push(segment.memory);
    }
    if let Ok(entry) = elf.physical_entry(&segments) {
        let place = Range::with_size(entry, 1);
        assert!(taken.iter().any(|segment| segment.contains(&place)));
    }
}

pub fn uki(mut source: Source<'_>) {
    let file_size = file_size(&mut source);
    let head = source.rest();
    if let Some(zboot) = Zboot::parse(head) {
        assert!(head.starts_with(b"MZ") && zboot.payload.end < 1 << 33);
        assert!(!zboot.compression.contains(&0));
    }
    let release = OsRelease::parse(head);
    let mut text = [0; 2048];
    let profile = Profile::parse(1, head);
    let path: [&[u8]; 2] = [b"/EFI/Linux/", b"a.efi"];
    if let Some(size) = release.write_entry(b"x64", profile, &path, &mut text) {
        // A line of the section becomes at most one line of the entry.
        let entry = bls::Entry::parse(&text[..size]);
        assert_eq!(entry.uki, b"/EFI/Linux/a.efi");
        assert_eq!(entry.architecture, b"x64");
        assert!(entry.title.starts_with(release.title));
        assert_eq!(entry.profile, b"1");
    }
    // In a file, or in an image that starts at an offset in a file.
    let start = if file_size.is_multiple_of(2) {
        0x1_0000_0001
    } else {
        0
    };
    let image = Range::with_size(start, file_size);
    let scan = match sections(head, image) {
        Ok(scan) => scan,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let check = |uki: &Uki| {
        assert!(head.starts_with(b"MZ"));
        let parts = [
            uki.ucode,
            uki.initrd,
            uki.cmdline,
            uki.device_tree,
            uki.os_release,
            uki.kernel_release,
        ];
        for part in parts.into_iter().flatten() {
            assert!(part.size() > 0 && image.contains(&part));
        }
    };
    match scan.clone().finish_addon() {
        Ok(addon) => {
            check(&addon);
            assert_eq!(addon.linux.size(), 0);
            assert!(scan.finish().is_err());
        }
        Err(_) => match scan.finish() {
            Ok(uki) => {
                check(&uki);
                assert!(uki.linux.size() > 0 && image.contains(&uki.linux));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        },
    }
}

/// Scans the sections of an image whose section table may be longer than its head.
fn sections(head: &[u8], image: Range) -> Result<Scan, UkiError> {
    let is_ours = &mut |tree: Range| {
        let tree = Range::with_size(tree.start - image.start, tree.size());
        tree.start.is_multiple_of(2) || is_tree_for(head, tree, b"a")
    };
    let mut scan = Scan::new(head, image, 1, is_ours)?;
    while let Some(offset) = scan.next_offset() {
        let start = usize::try_from(offset - image.start)
            .unwrap()
            .min(head.len());
        scan.take(&head[start..], is_ours)?;
    }
    Ok(scan)
}

/// A gzip member in pieces gives the same result as in one piece.
pub fn gzip(mut source: Source<'_>) {
    let room = usize::from(source.u16());
    let piece = usize::from(source.u8());
    let packed = source.rest();
    let first = HEADER_BYTES.min(packed.len());
    let unpack = |piece: usize| {
        let mut out = vec![0xa5; room];
        let mut unpacker = Unpacker::new();
        let (mut start, mut end) = (0, (first + piece).min(packed.len()));
        let result = loop {
            let is_last = end == packed.len();
            match unpacker.push(&packed[start..end], &mut out, is_last) {
                Ok(false) => assert!(!is_last, "it neither ends nor fails"),
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
            (start, end) = (end, (end + piece.max(1)).min(packed.len()));
        };
        assert!(unpacker.unpacked() <= room);
        (result, unpacker.unpacked(), out)
    };
    let (whole, pieces) = (unpack(packed.len()), unpack(piece));
    assert_eq!(whole.0.is_ok(), pieces.0.is_ok());
    match whole.0 {
        Ok(()) => assert_eq!(whole, pieces),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let GzipError::Checksum { expected, found } = error {
                assert_ne!(expected, found);
            }
        }
    }
}

pub fn start_info(mut source: Source<'_>) {
    let initrd = source.flag().then(|| Range {
        start: source.edge(),
        end: source.edge(),
    });
    let (address, command_line, acpi_rsdp) = (source.edge(), source.edge(), source.edge());
    let room = usize::from(source.u16());
    let map = regions(&mut source);
    let info = StartInfo {
        command_line,
        initrd,
        memory_map: &map,
        acpi_rsdp,
    };
    let mut out = vec![0; info.bytes()];
    info.write(address, &mut out).expect("there is room");
    assert_eq!(u32_at(&out, 0), 0x336e_c578);
    assert_eq!(u64_at(&out, 24), command_line);
    let count = map.iter().filter(|region| region.range.size() > 0).count();
    assert_eq!(u32_at(&out, 48) as usize, count);
    out.truncate(room);
    _ = info.write(address, &mut out);
}

/// The place that the planner chooses in this memory map.
fn place(map: &[bootshare::boot::memory::MemoryRegion], request: &Request) -> Option<Range> {
    let mut planner = Planner::new(map, u64::MAX, &[]);
    let free = planner.free().to_vec();
    let place = planner.allocate(request).ok()?;
    assert!(place.start.is_multiple_of(request.align));
    assert!(place.start >= request.min && place.end <= request.max);
    assert!(place.size() >= request.size.max(1));
    assert!(free.iter().any(|free| free.contains(&place)));
    Some(place)
}

/// A 64-bit number in two halves of the zero page.
fn pair(page: &[u8], low: usize, high: usize) -> u64 {
    u64::from(u32_at(page, high)) << 32 | u64::from(u32_at(page, low))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
