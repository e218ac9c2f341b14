//! Kernels of each kind: placed, loaded, and told what they need to know.

use super::{
    Board, Failed, HandOff, Move, Protocol,
    arena::{Block, is_x86},
    console::Progress,
    entry::{Extras, Loader, Source, failed, read_all, report_loaded, trace_digest},
};
use crate::{
    Error,
    boot::{
        arm64_image::Arm64Image,
        bzimage::BzImage,
        cmdline::ARM64_LIMIT,
        elf::{self, Elf, ElfError, Segment, Segments},
        entry::Entry,
        gzip::{GzipError, HEADER_BYTES, Unpacker},
        image::{HEAD_BYTES, Kind},
        memory::{ClaimError, MemoryKind, Obstacle, Range, Request, Side},
        pvh::{self, StartInfo},
        zboot::Zboot,
        zero_page::{self, Parameters, ZERO_PAGE_BYTES},
    },
};
use core::fmt;
use heapless::Vec;

const PAGE: u64 = 4096;
/// Bytes of packed data that are read at a time: enough for several requests in flight.
const CHUNK: u64 = 4 << 20;

/// The part of a payload that belongs where the firmware is. It is moved there at the hand-off.
struct Staged<'m> {
    block: Block<'m>,
    /// Where it belongs.
    window: Range,
}

impl<'m, B: Board> Loader<'_, 'm, B> {
    /// Loads a kernel whose first bytes are `head`, and what goes with it.
    pub fn load_kernel(
        self,
        source: &mut Source<'_, B>,
        kind: Kind,
        head: &[u8],
        entry: &Entry<'_>,
        extras: &Extras<'_>,
    ) -> Result<HandOff, Failed> {
        // Known when the firmware is built: it has the code of its own architecture alone.
        match (is_x86::<B>(), kind) {
            (true, Kind::BzImage) => self.bzimage(source, head, entry, extras),
            (true, Kind::Elf { .. }) => self.pvh(source, head, entry, extras),
            (false, Kind::Elf { .. }) => self.arm64_elf(source, head, entry, extras),
            (false, Kind::Arm64Image) => self.arm64_image(source, head, entry, extras),
            (false, Kind::Compressed(_)) => self.arm64_packed(source, entry, extras),
            (false, Kind::EfiZboot { .. }) => {
                source.part = self.zboot_payload(source, head)?;
                self.arm64_packed(source, entry, extras)
            }
            // Such as one unified kernel image in another.
            (_, kind) => Err(self.failed(&source.path, format_args!("what it holds is {kind}"))),
        }
    }

    /// Where the packed kernel is in the file.
    fn zboot_payload(&self, source: &Source<'_, B>, head: &[u8]) -> Result<Range, Failed> {
        let outer = source.part;
        let payload = Zboot::parse(head).map(|zboot| Range {
            start: outer.start.saturating_add(zboot.payload.start),
            end: outer.start.saturating_add(zboot.payload.end),
        });
        let inside = payload.filter(|part| outer.contains(part) && part.size() > 0);
        inside.ok_or_else(|| {
            let what = "it is cut off: the file ends before the kernel in it; copy it again";
            self.failed(&source.path, what)
        })
    }

    fn hand_off(self, entry: u64, argument: u64, protocol: Protocol) -> HandOff {
        HandOff {
            entry,
            argument,
            protocol,
            loaded: self.loaded,
        }
    }

    #[inline(never)] // So that the large frames of the boot flow do not add up.
    fn bzimage(
        mut self,
        source: &mut Source<'_, B>,
        head: &[u8],
        entry: &Entry<'_>,
        extras: &Extras<'_>,
    ) -> Result<HandOff, Failed> {
        let path = &source.path;
        let image = BzImage::parse(head, source.part.size()).map_err(|e| self.failed(path, e))?;
        let kernel = self.place(path, &image.memory_request())?;
        let load_address = kernel.range.start;
        let payload = kernel.bytes.get_mut(..image.payload_bytes as usize);
        let offset = source.part.start + image.setup_bytes;
        self.read(path, &mut source.file, payload, offset)?;
        self.add_loaded(load_address, image.payload_bytes);
        let initrd = self.initrds(entry, extras, 0, image.initrd_limit())?;
        let limit = image.cmdline_size as usize;
        let line = self.command_line(path, limit, image.limit(), extras)?;
        let argument = self.zero_page(
            path,
            head,
            &image,
            &Parameters {
                load_address,
                command_line: line.1.start,
                initrd,
                memory_map: self.board.memory_map(),
                acpi_rsdp: self.board.acpi_rsdp(),
            },
        )?;
        Ok(self.hand_off(image.entry(load_address), argument, Protocol::Linux))
    }

    fn zero_page(
        &mut self,
        kernel: &[u8],
        head: &[u8],
        image: &BzImage,
        parameters: &Parameters<'_>,
    ) -> Result<u64, Failed> {
        let request = Request {
            align: PAGE,
            max: image.limit(),
            ..Request::new("zero page", ZERO_PAGE_BYTES as u64)
        };
        let block = self.place(kernel, &request)?;
        let page = block
            .bytes
            .first_chunk_mut()
            .ok_or_else(|| self.failed(kernel, Error::BufferTooSmall))?;
        zero_page::fill(page, head, image, parameters).map_err(|e| self.failed(kernel, e))?;
        Ok(block.range.start)
    }

    #[inline(never)] // As above.
    fn arm64_image(
        mut self,
        source: &mut Source<'_, B>,
        head: &[u8],
        entry: &Entry<'_>,
        extras: &Extras<'_>,
    ) -> Result<HandOff, Failed> {
        let (path, size) = (&source.path, source.part.size());
        let image = Arm64Image::parse(head, size).map_err(|e| self.failed(path, e))?;
        let kernel = self.place(path, &image.memory_request())?;
        let load_address = image.load_address(kernel.range.start);
        // What is before the image in its memory is not read.
        let before = (load_address - kernel.range.start) as usize;
        let bytes = kernel.bytes[before..].get_mut(..size as usize);
        self.read(path, &mut source.file, bytes, source.part.start)?;
        self.add_loaded(load_address, size);
        self.arm64(source, kernel.range, load_address, entry, extras)
    }

    /// An Image in gzip. Its header, which tells how much memory it needs, is in there too, so its
    /// start is unpacked first.
    #[inline(never)] // As above.
    fn arm64_packed(
        mut self,
        source: &mut Source<'_, B>,
        entry: &Entry<'_>,
        extras: &Extras<'_>,
    ) -> Result<HandOff, Failed> {
        let path = &source.path;
        let mut head = [0; HEAD_BYTES];
        let head_size = self.unpack_head(source, &mut head)?;
        let head = &head[..head_size];
        let size = head_size as u64;
        match Kind::of(head, size) {
            Kind::Arm64Image => {}
            kind => {
                let what = format_args!("what it packs is {kind}; put an arm64 Image there");
                return Err(self.failed(path, what));
            }
        }
        let image = Arm64Image::parse_packed(head).map_err(|e| self.failed(path, e))?;
        let kernel = self.place(path, &image.memory_request())?;
        let load_address = image.load_address(kernel.range.start);
        let before = (load_address - kernel.range.start) as usize;
        let size = self.unpack(source, &mut kernel.bytes[before..])?;
        let checked = Arm64Image::check_size(head, size);
        checked.map_err(|e| self.failed(&source.path, e))?;
        self.add_loaded(load_address, size);
        self.arm64(source, kernel.range, load_address, entry, extras)
    }

    /// The first bytes of what is packed; how many.
    #[inline(never)] // As above.
    fn unpack_head(&self, source: &Source<'_, B>, head: &mut [u8]) -> Result<usize, Failed> {
        let failed = |error: &dyn fmt::Display| self.failed(&source.path, error);
        let mut packed = [0; HEADER_BYTES];
        let size = source.part.size().min(HEADER_BYTES as u64) as usize;
        let packed = &mut packed[..size];
        let read = source.file.read_exact_at(source.part.start, packed);
        read.map_err(|e| failed(&e))?;
        let is_last = size as u64 == source.part.size();
        let mut unpacker = Unpacker::new();
        match unpacker.push(packed, head, is_last) {
            // There is more, as there should be.
            Ok(_) | Err(GzipError::TooLarge { .. }) => Ok(unpacker.unpacked()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Unpacks all of it to the start of `out`; how many bytes.
    #[inline(never)] // As above.
    fn unpack(&mut self, source: &mut Source<'_, B>, out: &mut [u8]) -> Result<u64, Failed> {
        let (path, part) = (&source.path, source.part);
        let Self {
            arena,
            board,
            name,
            share,
            ..
        } = self;
        let failed = |error: &dyn fmt::Display| failed(name, path, error);
        // Only for as long as it takes: what is loaded next may lie there.
        let mut arena = arena.rest();
        let request = Request {
            side: Side::High,
            ..Request::new("packed kernel", part.size().min(CHUNK))
        };
        let chunk = arena.take(&request).map_err(|e| failed(&e))?;
        let mut unpacker = Unpacker::new();
        let mut progress = Progress::<B>::new(board.clock(), part.size());
        let mut at = part.start;
        let result = loop {
            let size = (part.end - at).min(CHUNK) as usize;
            let bytes = &mut chunk.bytes[..size];
            let come = at - part.start;
            let mut tell = |more| progress.update(come + more);
            if let Err(error) = read_all(share, path, &mut source.file, bytes, at, &mut tell) {
                break Err(failed(&error));
            }
            at += size as u64;
            match unpacker.push(bytes, out, at == part.end) {
                Ok(true) => break Ok(unpacker.unpacked()),
                Ok(false) => {}
                Err(error) => break Err(failed(&error)),
            }
        };
        let took = progress.finish();
        let size = result?;
        let packed = part.size();
        let how = format_args!(", unpacked from {packed} bytes");
        report_loaded(&share.shown(path), size as u64, took, &how);
        trace_digest(path, &out[..size], 0);
        Ok(size as u64)
    }

    /// What goes with an arm64 kernel that is loaded.
    fn arm64(
        mut self,
        source: &Source<'_, B>,
        kernel: Range,
        address: u64,
        entry: &Entry<'_>,
        extras: &Extras<'_>,
    ) -> Result<HandOff, Failed> {
        let window = Arm64Image::initrd_window(&kernel);
        let initrd = self.initrds(entry, extras, window.start, window.end)?;
        let (line, _) = self.command_line(&source.path, ARM64_LIMIT, u64::MAX, extras)?;
        let argument = self.device_tree(entry, extras, line, initrd)?;
        Ok(self.hand_off(address, argument, Protocol::Linux))
    }

    /// An ELF program on arm64: entered as Linux is, with the device tree in x0.
    #[inline(never)] // As above.
    fn arm64_elf(
        mut self,
        source: &mut Source<'_, B>,
        head: &[u8],
        entry: &Entry<'_>,
        extras: &Extras<'_>,
    ) -> Result<HandOff, Failed> {
        let (elf, segments) = self.segments(source, head)?;
        let address = elf.physical_entry(&segments);
        let address = address.map_err(|e| self.failed(&source.path, e))?;
        self.load_segments(source, &segments, &mut None)?;
        let kernel = Range::with_size(address, 1);
        self.arm64(source, kernel, address, entry, extras)
    }

    /// An ELF program on x86-64, entered by PVH. What it is told lies in the first MiB, out of its
    /// way.
    #[inline(never)] // As above.
    fn pvh(
        mut self,
        source: &mut Source<'_, B>,
        head: &[u8],
        entry: &Entry<'_>,
        extras: &Extras<'_>,
    ) -> Result<HandOff, Failed> {
        let (_, segments) = self.segments(source, head)?;
        let address = u64::from(self.pvh_entry(source, &segments)?);
        let mut staged = self.stage(source, &segments)?;
        self.load_segments(source, &segments, &mut staged)?;
        let path = &source.path;
        let initrd = self.initrds(entry, extras, 0, pvh::LIMIT)?;
        let (_, line) = self.command_line(path, pvh::CMDLINE_LIMIT, pvh::LIMIT, extras)?;
        let info = StartInfo {
            command_line: line.start,
            initrd,
            memory_map: self.board.memory_map(),
            acpi_rsdp: self.board.acpi_rsdp(),
        };
        let low = |what, size| Request {
            align: PAGE,
            min: PAGE,
            max: pvh::LIMIT,
            ..Request::new(what, size)
        };
        let block = self.place(path, &low("start info", info.bytes() as u64))?;
        let written = info.write(block.range.start, block.bytes);
        written.ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let trampoline = self.place(path, &low("hand-off code", PAGE))?.range.start;
        let moved = staged.map(|staged| Move {
            from: staged.block.range,
            to: staged.window.start,
        });
        let protocol = Protocol::Pvh { trampoline, moved };
        Ok(self.hand_off(address, block.range.start, protocol))
    }

    /// The header of an ELF program, and its segments.
    fn segments(&self, source: &Source<'_, B>, head: &[u8]) -> Result<(Elf, Segments), Failed> {
        let (path, size) = (&source.path, source.part.size());
        let elf = Elf::parse(head, size).map_err(|e| self.failed(path, e))?;
        let mut headers = [0; elf::MAX_BYTES];
        let headers = self.read_part(source, elf.headers, &mut headers)?;
        let segments = elf.segments(headers, size);
        Ok((elf, segments.map_err(|e| self.failed(path, e))?))
    }

    /// The bytes at `range` of a kernel, as far as there is room for them.
    fn read_part<'b>(
        &self,
        source: &Source<'_, B>,
        range: Range,
        bytes: &'b mut [u8],
    ) -> Result<&'b [u8], Failed> {
        let size = range.size().min(bytes.len() as u64) as usize;
        let bytes = &mut bytes[..size];
        let offset = source.part.start + range.start;
        let read = source.file.read_exact_at(offset, bytes);
        read.map_err(|e| self.failed(&source.path, e))?;
        Ok(bytes)
    }

    fn pvh_entry(&self, source: &Source<'_, B>, segments: &Segments) -> Result<u32, Failed> {
        let mut notes = [0; elf::MAX_BYTES];
        for range in &segments.notes {
            let notes = self.read_part(source, *range, &mut notes)?;
            let Some(entry) = elf::pvh_entry(notes) else {
                continue;
            };
            let place = Range::with_size(entry.into(), 1);
            let inside = |segment: &Segment| segment.memory.contains(&place);
            if segments.load.iter().any(inside) {
                return Ok(entry);
            }
            let entry = entry.into();
            return Err(self.failed(&source.path, ElfError::Entry { entry }));
        }
        Err(self.failed(&source.path, ElfError::NoPvh))
    }

    /// Room for what belongs where the firmware is, if something does: the firmware is at the start
    /// of memory, where many unikernels are linked for.
    fn stage(
        &mut self,
        source: &Source<'_, B>,
        segments: &Segments,
    ) -> Result<Option<Staged<'m>>, Failed> {
        let overlap = |range: &Range| {
            let parts = segments.load.iter().map(|s| s.memory.intersection(range));
            parts.filter(|part| part.size() > 0).reduce(|a, b| Range {
                start: a.start.min(b.start),
                end: a.end.max(b.end),
            })
        };
        let (occupied, map) = (self.board.occupied(), self.board.memory_map());
        // Not where the firmware is in a ROM.
        let is_ram = |range: &&Range| {
            let usable = map.iter().filter(|r| r.kind == MemoryKind::Usable);
            usable.map(|r| r.range).any(|usable| usable.contains(range))
        };
        // Of several ranges one can be moved to. The others are refused in their turn.
        let Some(window) = occupied.iter().filter(is_ram).find_map(overlap) else {
            return Ok(None);
        };
        let request = Request {
            align: PAGE,
            max: pvh::LIMIT,
            side: Side::High,
            ..Request::new("segment", window.size())
        };
        let block = self.place(&source.path, &request)?;
        Ok(Some(Staged { block, window }))
    }

    /// Loads the segments to their addresses, and what belongs into the window of `staged` there.
    fn load_segments(
        &mut self,
        source: &mut Source<'_, B>,
        segments: &Segments,
        staged: &mut Option<Staged<'m>>,
    ) -> Result<(), Failed> {
        // Before any of them is loaded in vain.
        let window = staged.as_ref().map(|staged| staged.window);
        let mut blocks: Vec<_, { 2 * elf::MAX_SEGMENTS }> = Vec::new();
        for segment in &segments.load {
            for range in outside(segment.memory, window) {
                let block = self.claim(&source.path, range)?;
                self.add_loaded(range.start, range.size());
                _ = blocks.push((segment, block)); // Two of each at most.
            }
        }
        let total = segments.load.iter().map(|s| s.file.size()).sum();
        let mut progress = Progress::<B>::new(self.board.clock(), total);
        let mut come = 0;
        let mut result = Ok(());
        let direct = blocks
            .iter_mut()
            .map(|(segment, block)| (*segment, block.range, &mut *block.bytes));
        for (segment, range, bytes) in direct {
            result = result
                .and_then(|()| self.fill(source, segment, range, bytes, &mut come, &mut progress));
        }
        if let Some(staged) = staged {
            for segment in &segments.load {
                let range = segment.memory.intersection(&staged.window);
                if range.size() > 0 {
                    let start = (range.start - staged.window.start) as usize;
                    let bytes = &mut staged.block.bytes[start..][..range.size() as usize];
                    result = result.and_then(|()| {
                        self.fill(source, segment, range, bytes, &mut come, &mut progress)
                    });
                }
            }
        }
        let took = progress.finish();
        result?;
        report_loaded(&self.share.shown(&source.path), total, took, &"");
        Ok(())
    }

    fn claim(&mut self, path: &[u8], range: Range) -> Result<Block<'m>, Failed> {
        self.arena.claim(range).map_err(|taken| {
            let map = self.board.memory_map();
            let error = ClaimError {
                what: "segment",
                range,
                obstacle: Obstacle::of(range, taken, map, &self.board.occupied()),
            };
            self.failed(path, error)
        })
    }

    /// Fills `bytes`, which are for the addresses `range` of `segment`.
    fn fill(
        &self,
        source: &mut Source<'_, B>,
        segment: &Segment,
        range: Range,
        bytes: &mut [u8],
        come: &mut u64,
        progress: &mut Progress<B>,
    ) -> Result<(), Failed> {
        let path = &source.path;
        let start = range.start - segment.memory.start;
        // Where the file ends, zeros begin.
        let size = segment.file.size().saturating_sub(start);
        let (content, zeros) = bytes.split_at_mut(size.min(range.size()) as usize);
        zeros.fill(0);
        let offset = source.part.start + segment.file.start + start;
        let before = *come;
        let mut tell = |more| progress.update(before + more);
        let file = &mut source.file;
        let read = read_all(self.share, path, file, content, offset, &mut tell);
        read.map_err(|e| self.failed(path, e))?;
        *come += content.len() as u64;
        trace_digest(path, content, offset);
        Ok(())
    }
}

/// The parts of `range` before and after `window`.
fn outside(range: Range, window: Option<Range>) -> impl Iterator<Item = Range> {
    let window = window.unwrap_or(Range {
        start: range.end,
        end: range.end,
    });
    let before = Range {
        start: range.start,
        end: range.end.min(window.start),
    };
    let after = Range {
        start: range.start.max(window.end),
        end: range.end,
    };
    [before, after].into_iter().filter(|range| range.size() > 0)
}
