//! ELF programs for x86-64, which are entered by PVH.

use super::super::{common::PAGE, segments::Staged};
use crate::{
    Error,
    boot::{
        elf::{self, ElfError, Segment, Segments},
        memory::{MemoryKind, Range, Request, Side},
        pvh::{self, StartInfo},
    },
    loader::{Board, Failed, HandOff, Move, Protocol, load::Loader, payload::Payload},
};

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Loads an ELF program, to be entered by PVH. Its parameters are placed low in memory, away from it.
    #[inline(never)]
    pub(super) fn pvh(&mut self, payload: &mut Payload<'_, 'm, B>) -> Result<HandOff, Failed> {
        let (_, segments) = self.segments(payload)?;
        let address = u64::from(self.pvh_entry(payload, &segments)?);
        let staged = self.stage(payload, &segments)?;
        let moved = staged.as_ref().map(|staged| Move {
            from: staged.block.range,
            to: staged.window.start,
        });
        self.place_segments(payload, &segments, staged)?;
        let initrd = self.place_initrds(payload, 0, pvh::LIMIT)?;
        // Not after the last segment: a program may use that memory before it reads the memory map.
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

    /// Allocates memory for the part of a program that overlaps the firmware. The firmware is at the start of
    /// memory, and many unikernels are linked for the same addresses.
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
        // A firmware in ROM cannot be overwritten.
        let is_ram = |range: &&Range| {
            let usable = map.iter().filter(|r| r.kind == MemoryKind::Usable);
            usable.map(|r| r.range).any(|usable| usable.contains(range))
        };
        // Only one range can be moved; a segment that overlaps another range is refused later.
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
}
