//! Kernels of each kind: placed, loaded, and told what they need to know.

use super::{
    Board, Failed, HandOff, Move, Protocol,
    arena::{Block, is_x86},
    entry::{KERNEL, Loader, Payload},
    fetch::{Unpacking, trace_digest, want},
};
use crate::{
    Error,
    boot::{
        arm64_image::Arm64Image,
        bzimage::BzImage,
        cmdline::ARM64_LIMIT,
        elf::{self, Elf, ElfError, Segment, Segments},
        image::{Compression, HEAD_BYTES, Kind},
        memory::{ClaimError, MIB, MemoryKind, Obstacle, Range, Request, Side},
        packed::{self, Unpacker},
        pvh::{self, StartInfo},
        zero_page::{self, Parameters, ZERO_PAGE_BYTES},
    },
};
use core::fmt;

const PAGE: u64 = 4096;

/// The part of a payload that belongs where the firmware is. It is moved there at the hand-off.
struct Staged<'m> {
    block: Block<'m>,
    /// Where it belongs.
    window: Range,
}

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Loads a kernel of this kind, and what goes with it.
    pub fn load_kernel(
        &mut self,
        kind: Kind,
        payload: &mut Payload<'_, 'm, B>,
    ) -> Result<HandOff, Failed> {
        // Known when the firmware is built: it has the code of its own architecture alone.
        match (is_x86::<B>(), kind) {
            (true, Kind::BzImage) => self.bzimage(payload),
            (true, Kind::Elf { .. }) => self.pvh(payload),
            (false, Kind::Elf { .. }) => self.arm64_elf(payload),
            (false, Kind::Arm64Image) => self.arm64_image(payload),
            (false, Kind::Compressed(compression)) => self.arm64_packed(payload, compression),
            (
                false,
                Kind::EfiZboot {
                    compression,
                    payload: inner,
                    ..
                },
            ) => {
                payload.kernel = self.zboot_payload(payload, inner)?;
                self.arm64_packed(payload, compression)
            }
            (_, kind) => Err(self.failed(&payload.path, format_args!("what it holds is {kind}"))),
        }
    }

    /// The packed kernel, if all of it is in the file.
    fn zboot_payload(&self, payload: &Payload<'_, 'm, B>, inner: Range) -> Result<Range, Failed> {
        if payload.kernel.contains(&inner) && inner.size() > 0 {
            return Ok(inner);
        }
        let what = "it is cut off: the file ends before the kernel in it; copy it again";
        Err(self.failed(&payload.path, what))
    }

    fn hand_off(&self, entry: u64, argument: u64, protocol: Protocol) -> HandOff {
        HandOff {
            entry,
            argument,
            protocol,
            loaded: self.loaded.clone(),
        }
    }

    #[inline(never)] // So that the large frames of the boot flow do not add up.
    fn bzimage(&mut self, payload: &mut Payload<'_, 'm, B>) -> Result<HandOff, Failed> {
        let image = BzImage::parse(&payload.head, payload.kernel.size());
        let image = image.map_err(|e| self.failed(&payload.path, e))?;
        let kernel = self.place(&payload.path, &image.memory_request())?;
        let load_address = kernel.range.start;
        let offset = payload.kernel.start + image.setup_bytes;
        self.want_kernel(payload, offset, kernel.bytes, image.payload_bytes)?;
        self.add_loaded(load_address, image.payload_bytes);
        let initrd = self.place_initrds(payload, 0, image.initrd_limit())?;
        let limit = image.cmdline_size as usize;
        let within = above_low_memory(image.limit());
        let (_, line) = self.command_line(payload, limit, within)?;
        let argument = self.zero_page(
            payload,
            &image,
            &Parameters {
                load_address,
                command_line: line.start,
                initrd,
                memory_map: self.board.memory_map(),
                acpi_rsdp: self.board.acpi_rsdp(),
            },
        )?;
        self.fetch(payload, None)?;
        Ok(self.hand_off(image.entry(load_address), argument, Protocol::Linux))
    }

    /// Has the first `size` of `bytes` filled from `offset` of the kernel's file on.
    fn want_kernel(
        &self,
        payload: &mut Payload<'_, 'm, B>,
        offset: u64,
        bytes: &'m mut [u8],
        size: u64,
    ) -> Result<(), Failed> {
        match bytes.get_mut(..size as usize) {
            Some(bytes) => {
                want(&mut payload.wanted, KERNEL, offset, bytes);
                Ok(())
            }
            None => Err(self.failed(&payload.path, Error::BufferTooSmall)),
        }
    }

    fn zero_page(
        &mut self,
        payload: &Payload<'_, 'm, B>,
        image: &BzImage,
        parameters: &Parameters<'_>,
    ) -> Result<u64, Failed> {
        let path = &payload.path;
        let request = Request {
            align: PAGE,
            max: image.limit(),
            ..Request::new("zero page", ZERO_PAGE_BYTES as u64)
        };
        let block = self.place(path, &request)?;
        let page = block
            .bytes
            .first_chunk_mut()
            .ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let filled = zero_page::fill(page, &payload.head, image, parameters);
        filled.map_err(|e| self.failed(path, e))?;
        Ok(block.range.start)
    }

    #[inline(never)] // As above.
    fn arm64_image(&mut self, payload: &mut Payload<'_, 'm, B>) -> Result<HandOff, Failed> {
        let Range { start, .. } = payload.kernel;
        let size = payload.kernel.size();
        let image = Arm64Image::parse(&payload.head, size);
        let image = image.map_err(|e| self.failed(&payload.path, e))?;
        let (kernel, bytes) = self.place_image(&payload.path, &image)?;
        self.want_kernel(payload, start, bytes, size)?;
        let argument = self.arm64_argument(payload, kernel, image.device_tree_window(&kernel))?;
        self.fetch(payload, None)?;
        let entry = image.load_address(kernel.start);
        Ok(self.hand_off(entry, argument, Protocol::Linux))
    }

    /// Memory for a kernel: all of it, and that from its start on.
    fn place_image(
        &mut self,
        path: &[u8],
        image: &Arm64Image,
    ) -> Result<(Range, &'m mut [u8]), Failed> {
        let checked = image.check_page_size(|bytes| self.board.has_pages(bytes));
        checked.map_err(|e| self.failed(path, e))?;
        let kernel = self.place(path, &image.memory_request())?;
        let start = image.load_address(kernel.range.start);
        // With the caches off it uses what is behind the file's end as well: its stack is there.
        self.add_loaded(start, kernel.range.end - start);
        let before = (start - kernel.range.start) as usize;
        Ok((kernel.range, &mut kernel.bytes[before..]))
    }

    /// A packed Image, unpacked while it comes. Its header, which tells how much memory it needs, is
    /// in there too, so its start is unpacked first.
    #[inline(never)] // As above.
    fn arm64_packed(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
        compression: Compression,
    ) -> Result<HandOff, Failed> {
        let path = &payload.path;
        let (start, size) = (payload.kernel.start, payload.kernel.size());
        let unpacker = self.unpacker(path, compression)?;
        let request = Request {
            side: Side::High,
            ..Request::new("packed kernel", size)
        };
        let packed = self.place(path, &request)?.bytes;
        let mut head = [0; HEAD_BYTES];
        let head_size = self.unpack_head(payload, unpacker, packed, &mut head)?;
        let head = &head[..head_size];
        match Kind::of(head, head_size as u64) {
            Kind::Arm64Image => {}
            kind => {
                let what = format_args!("what it packs is {kind}; put an arm64 Image there");
                return Err(self.failed(path, what));
            }
        }
        let image = Arm64Image::parse_packed(head).map_err(|e| self.failed(path, e))?;
        let (kernel, out) = self.place_image(path, &image)?;
        self.want_kernel(payload, start, packed, size)?;
        let argument = self.arm64_argument(payload, kernel, image.device_tree_window(&kernel))?;
        let mut unpacking = Unpacking::new(unpacker, out);
        self.fetch(payload, Some(&mut unpacking))?;
        let size = unpacking.unpacked();
        trace_digest(&payload.path, &out[..size as usize], 0);
        let checked = Arm64Image::check_size(head, size);
        checked.map_err(|e| self.failed(&payload.path, e))?;
        let entry = image.load_address(kernel.start);
        Ok(self.hand_off(entry, argument, Protocol::Linux))
    }

    /// What unpacks the kernel, in memory of the arena, as what it works in.
    #[inline(never)] // As above.
    fn unpacker(
        &mut self,
        path: &[u8],
        compression: Compression,
    ) -> Result<&'m mut Unpacker<'m>, Failed> {
        const WHAT: &str = "memory to unpack in";
        let request = Request {
            side: Side::High,
            ..Request::new(WHAT, packed::SCRATCH_BYTES as u64)
        };
        let scratch = self.place(path, &request)?.bytes.first_chunk_mut();
        let unpacker = scratch.and_then(|scratch| Unpacker::new(compression, scratch));
        // Neither is missing: see `Kind::check`.
        let unpacker = unpacker.ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let kept = self.arena.keep(WHAT, unpacker);
        kept.map_err(|e| self.failed(path, e))
    }

    /// The first bytes of what is packed; how many. `packed` has room for all of it.
    #[inline(never)] // As above.
    fn unpack_head(
        &self,
        payload: &Payload<'_, 'm, B>,
        unpacker: &mut Unpacker<'_>,
        packed: &mut [u8],
        head: &mut [u8],
    ) -> Result<usize, Failed> {
        let failed = |error: &dyn fmt::Display| self.failed(&payload.path, error);
        let size = payload.kernel.size();
        let some = size.min(unpacker.head_bytes() as u64);
        let packed = packed.get_mut(..some as usize).unwrap_or_default();
        let file = payload.files.get(KERNEL);
        let read = file.read_exact_at(payload.kernel.start, packed);
        read.map_err(|e| failed(&e))?;
        match unpacker.push(packed, head, some == size) {
            Err(error) if !error.is_too_large() => return Err(failed(&error)),
            // There is more, as there should be.
            _ => {}
        }
        let unpacked = unpacker.unpacked();
        unpacker.restart();
        Ok(unpacked)
    }

    /// Places what goes with an arm64 kernel, its device tree in that window if there is one; what it
    /// gets in x0.
    fn arm64_argument(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
        kernel: Range,
        device_tree: Option<Range>,
    ) -> Result<u64, Failed> {
        let window = Arm64Image::initrd_window(&kernel);
        let initrd = self.place_initrds(payload, window.start, window.end)?;
        let within = above_low_memory(u64::MAX);
        let (line, _) = self.command_line(payload, ARM64_LIMIT, within)?;
        self.device_tree(payload, line, initrd, device_tree)
    }

    /// An ELF program on arm64: entered as Linux is, with the device tree in x0.
    #[inline(never)] // As above.
    fn arm64_elf(&mut self, payload: &mut Payload<'_, 'm, B>) -> Result<HandOff, Failed> {
        let (elf, segments) = self.segments(payload)?;
        let address = elf.physical_entry(&segments);
        let address = address.map_err(|e| self.failed(&payload.path, e))?;
        self.place_segments(payload, &segments, None)?;
        let argument = self.arm64_argument(payload, Range::with_size(address, 1), None)?;
        self.fetch(payload, None)?;
        Ok(self.hand_off(address, argument, Protocol::Linux))
    }

    /// An ELF program on x86-64, entered by PVH. What it is told lies in the first MiB, out of its
    /// way.
    #[inline(never)] // As above.
    fn pvh(&mut self, payload: &mut Payload<'_, 'm, B>) -> Result<HandOff, Failed> {
        let (_, segments) = self.segments(payload)?;
        let address = u64::from(self.pvh_entry(payload, &segments)?);
        let staged = self.stage(payload, &segments)?;
        let moved = staged.as_ref().map(|staged| Move {
            from: staged.block.range,
            to: staged.window.start,
        });
        self.place_segments(payload, &segments, staged)?;
        let initrd = self.place_initrds(payload, 0, pvh::LIMIT)?;
        // Not behind the last segment: a program may use memory there before it looks at the map.
        let low = Range {
            start: PAGE,
            end: pvh::LIMIT,
        };
        let (_, line) = self.command_line(payload, pvh::CMDLINE_LIMIT, low)?;
        let path = &payload.path;
        let info = StartInfo {
            command_line: line.start,
            initrd,
            memory_map: self.board.memory_map(),
            acpi_rsdp: self.board.acpi_rsdp(),
        };
        let request = |what, size| Request {
            align: PAGE,
            min: low.start,
            max: low.end,
            ..Request::new(what, size)
        };
        let block = self.place(path, &request("start info", info.bytes() as u64))?;
        let written = info.write(block.range.start, block.bytes);
        written.ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let trampoline = self
            .place(path, &request("hand-off code", PAGE))?
            .range
            .start;
        self.fetch(payload, None)?;
        let protocol = Protocol::Pvh { trampoline, moved };
        Ok(self.hand_off(address, block.range.start, protocol))
    }

    /// The header of an ELF program, and its segments.
    fn segments(&self, payload: &Payload<'_, 'm, B>) -> Result<(Elf, Segments), Failed> {
        let (path, size) = (&payload.path, payload.kernel.size());
        let elf = Elf::parse(&payload.head, size).map_err(|e| self.failed(path, e))?;
        let mut headers = [0; elf::MAX_BYTES];
        let headers = self.read_part(payload, elf.headers, &mut headers)?;
        let segments = elf.segments(headers, size);
        Ok((elf, segments.map_err(|e| self.failed(path, e))?))
    }

    /// The bytes at `range` of a kernel, as far as there is room for them.
    fn read_part<'b>(
        &self,
        payload: &Payload<'_, 'm, B>,
        range: Range,
        bytes: &'b mut [u8],
    ) -> Result<&'b [u8], Failed> {
        let size = range.size().min(bytes.len() as u64) as usize;
        let bytes = &mut bytes[..size];
        let offset = payload.kernel.start + range.start;
        let read = payload.files.get(KERNEL).read_exact_at(offset, bytes);
        read.map_err(|e| self.failed(&payload.path, e))?;
        Ok(bytes)
    }

    fn pvh_entry(&self, payload: &Payload<'_, 'm, B>, segments: &Segments) -> Result<u32, Failed> {
        let mut notes = [0; elf::MAX_BYTES];
        for range in &segments.notes {
            let notes = self.read_part(payload, *range, &mut notes)?;
            let Some(entry) = elf::pvh_entry(notes) else {
                continue;
            };
            let place = Range::with_size(entry.into(), 1);
            let inside = |segment: &Segment| segment.memory.contains(&place);
            if segments.load.iter().any(inside) {
                return Ok(entry);
            }
            let entry = entry.into();
            return Err(self.failed(&payload.path, ElfError::Entry { entry }));
        }
        Err(self.failed(&payload.path, ElfError::NoPvh))
    }

    /// Room for what belongs where the firmware is, if something does: the firmware is at the start
    /// of memory, where many unikernels are linked for.
    fn stage(
        &mut self,
        payload: &Payload<'_, 'm, B>,
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
        let block = self.place(&payload.path, &request)?;
        Ok(Some(Staged { block, window }))
    }

    /// Wants the segments at their addresses, and what belongs into the window of `staged` there.
    fn place_segments(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
        segments: &Segments,
        staged: Option<Staged<'m>>,
    ) -> Result<(), Failed> {
        let window = staged.as_ref().map(|staged| staged.window);
        for segment in &segments.load {
            for range in outside(segment.memory, window) {
                let block = self.claim(&payload.path, range)?;
                self.add_loaded(range.start, range.size());
                want_segment(payload, segment, range, block.bytes);
            }
        }
        let Some(Staged { block, window }) = staged else {
            return Ok(());
        };
        // In the order of their addresses: each takes the next bytes.
        let inside = || {
            let parts = segments
                .load
                .iter()
                .map(|s| (s.memory.intersection(&window), s));
            parts.filter(|(range, _)| range.size() > 0)
        };
        let (mut rest, mut end) = (block.bytes, window.start);
        while let Some((range, segment)) = inside()
            .filter(|(range, _)| range.start >= end)
            .min_by_key(|(range, _)| range.start)
        {
            let (_, after) = rest.split_at_mut((range.start - end) as usize);
            let (bytes, after) = after.split_at_mut(range.size() as usize);
            want_segment(payload, segment, range, bytes);
            (rest, end) = (after, range.end);
        }
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
}

/// Wants in `bytes` what is for the addresses `range` of `segment`.
fn want_segment<'m, B: Board>(
    payload: &mut Payload<'_, 'm, B>,
    segment: &Segment,
    range: Range,
    bytes: &'m mut [u8],
) {
    let start = range.start - segment.memory.start;
    // Where the file ends, zeros begin.
    let size = segment.file.size().saturating_sub(start);
    let (content, zeros) = bytes.split_at_mut(size.min(range.size()) as usize);
    zeros.fill(0);
    if !content.is_empty() {
        let offset = payload.kernel.start + segment.file.start + start;
        want(&mut payload.wanted, KERNEL, offset, content);
    }
}

/// From the first MiB to `end`.
fn above_low_memory(end: u64) -> Range {
    Range { start: MIB, end }
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
