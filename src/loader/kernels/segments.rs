//! The segments of ELF programs.

use crate::{
    boot::{
        elf::{self, Elf, Segment, Segments},
        memory::{ClaimError, Obstacle, Range},
    },
    loader::{
        Board, Failed,
        arena::Block,
        load::Loader,
        payload::{KERNEL, Payload, want},
    },
};

/// The part of a payload whose addresses are occupied by the firmware. It is moved there at the hand-off.
pub(super) struct Staged<'m> {
    pub block: Block<'m>,
    /// Its final addresses.
    pub window: Range,
}

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Reads the header and the program headers of an ELF program.
    pub(super) fn segments(&self, payload: &Payload<'_, 'm, B>) -> Result<(Elf, Segments), Failed> {
        let (path, size) = (&payload.path, payload.kernel.size());
        let elf = Elf::parse(&payload.head, size).map_err(|e| self.failed(path, e))?;
        let mut headers = [0; elf::MAX_BYTES];
        let headers = self.read_part(payload, elf.headers, &mut headers)?;
        let segments = elf.segments(headers, size);
        Ok((elf, segments.map_err(|e| self.failed(path, e))?))
    }

    /// Reads the bytes at `range` of a kernel, as many as fit into `bytes`.
    pub(super) fn read_part<'b>(
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

    /// Allocates memory for the segments at their addresses, or in `staged` for the part that is moved later, and
    /// registers them to be read.
    pub(super) fn place_segments(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
        segments: &Segments,
        staged: Option<Staged<'m>>,
    ) -> Result<(), Failed> {
        let window = staged.as_ref().map(|staged| staged.window);
        for segment in &segments.load {
            let whole = [segment.memory, Range { start: 0, end: 0 }];
            let parts = window.map_or(whole, |window| segment.memory.outside(&window));
            for range in parts.into_iter().filter(|range| range.size() > 0) {
                let block = self.claim(&payload.path, range)?;
                self.add_loaded(range.start, range.size());
                want_segment(payload, segment, range, block.bytes);
            }
        }
        let Some(Staged { block, window }) = staged else {
            return Ok(());
        };
        // In the order of addresses, because each takes the next bytes of the block.
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

/// Registers `bytes` to be filled with the content of `segment` at the addresses `range`.
fn want_segment<'m, B: Board>(
    payload: &mut Payload<'_, 'm, B>,
    segment: &Segment,
    range: Range,
    bytes: &'m mut [u8],
) {
    let start = range.start - segment.memory.start;
    // Memory after the content of the file is zeroed.
    let size = segment.file.size().saturating_sub(start);
    let (content, zeros) = bytes.split_at_mut(size.min(range.size()) as usize);
    zeros.fill(0);
    if !content.is_empty() {
        let offset = payload.kernel.start + segment.file.start + start;
        want(&mut payload.wanted, KERNEL, offset, content);
    }
}
