//! The files of a payload on their way into memory: all of them asked for at once.

use super::{
    Board, Failed,
    arena::is_x86,
    console::{Progress, Speed, Text},
    entry::{Files, KERNEL, Loader, Payload, in_list},
    output::DigestText,
};
use crate::{
    Error, Part,
    boot::{
        elf::MAX_SEGMENTS,
        entry::MAX_INITRDS,
        gzip,
        packed::{UnpackError, Unpacker},
    },
    hal::Clock,
};
use core::{fmt, ops::ControlFlow, time::Duration};
use heapless::Vec;

/// The segments of an ELF program, two of which may be cut by where the firmware is, the initrds,
/// and two of a unified kernel image.
const MAX_WANTED: usize = MAX_SEGMENTS + 2 + MAX_INITRDS + 2;

/// Fewer bytes than this are not worth to be unpacked while more are on their way.
const UNPACKED_AT_ONCE: usize = 64 << 10;
const _: () = assert!(UNPACKED_AT_ONCE >= gzip::HEADER_BYTES);

/// What is to be read of which file, and where it belongs in memory.
pub(super) struct Wanted<'m> {
    /// Which of the payload's files.
    pub file: usize,
    /// In the file, in bytes.
    pub offset: u64,
    pub bytes: &'m mut [u8],
}

/// All that is to be read.
pub(super) type WantedList<'m> = Vec<Wanted<'m>, MAX_WANTED>;

/// Has `bytes` filled from `offset` of a file of the payload's on, by [`Loader::fetch`].
pub(super) fn want<'m>(wanted: &mut WantedList<'m>, file: usize, offset: u64, bytes: &'m mut [u8]) {
    // There is room: see `MAX_WANTED`.
    _ = wanted.push(Wanted {
        file,
        offset,
        bytes,
    });
}

/// What is unpacked while it comes: all of the first thing that is wanted.
pub(super) struct Unpacking<'o, 's> {
    unpacker: &'o mut Unpacker<'s>,
    out: &'o mut [u8],
    /// Bytes of the packed data that the unpacker has used.
    used: usize,
    /// Bytes of it that the unpacker has seen.
    seen: usize,
    /// Set at its end, right or wrong.
    result: Option<Result<(), UnpackError>>,
}

impl<'o, 's> Unpacking<'o, 's> {
    /// Unpacks to the start of `out`.
    pub fn new(unpacker: &'o mut Unpacker<'s>, out: &'o mut [u8]) -> Self {
        Self {
            unpacker,
            out,
            used: 0,
            seen: 0,
            result: None,
        }
    }

    /// Bytes that were unpacked.
    pub fn unpacked(&self) -> u64 {
        self.unpacker.unpacked() as u64
    }

    /// Takes what has come of `size` bytes of packed data: `bytes` start at `position` of them.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    fn push(&mut self, position: usize, bytes: &[u8], size: usize) {
        let from = self.used.checked_sub(position);
        let (Some(new), None) = (from.and_then(|from| bytes.get(from..)), &self.result) else {
            return;
        };
        let end = self.used + new.len();
        if end < size && end < self.seen + UNPACKED_AT_ONCE {
            return;
        }
        self.seen = end;
        match self.unpacker.push(new, self.out, end == size) {
            Ok((used, is_done)) => {
                self.used += used;
                self.result = is_done.then_some(Ok(()));
            }
            Err(error) => self.result = Some(Err(error)),
        }
    }
}

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Reads all that is wanted, and says what was loaded. If the share gets lost on the way and
    /// can be resumed, the read goes on where it was.
    #[inline(never)] // As above.
    pub fn fetch(
        &self,
        payload: &mut Payload<'_, 'm, B>,
        mut unpacking: Option<&mut Unpacking<'_, '_>>,
    ) -> Result<(), Failed> {
        let files = &mut payload.files;
        let mut arrival = Arrival::<B>::new(self.board.clock(), &payload.wanted);
        loop {
            let wanted = &mut payload.wanted;
            let result = self.attempt(files, wanted, &mut arrival, unpacking.as_deref_mut());
            let Err((error, index)) = result else {
                break;
            };
            // The share may have been resumed since its files were opened.
            if error != Error::Disconnected || !self.share.is_connected() {
                let again = self.share.again(error);
                again.map_err(|e| self.failed(&files.path(wanted[index].file), e))?;
            }
            self.resume(files)?;
        }
        drop(arrival);
        if let Some(Err(error)) = unpacking.as_ref().and_then(|unpacking| unpacking.result) {
            return Err(self.failed(&payload.path, error));
        }
        self.check_unchanged(files)?;
        // What is unpacked is another thing in memory than in its file.
        for wanted in payload.wanted.iter().skip(usize::from(unpacking.is_some())) {
            trace_digest(&files.path(wanted.file), wanted.bytes, wanted.offset);
        }
        Ok(())
    }

    /// Reads what has not come yet. Else what went wrong, and with which of `wanted`.
    #[inline(never)] // As above.
    fn attempt(
        &self,
        files: &Files<'_, 'm, B>,
        wanted: &mut [Wanted<'m>],
        arrival: &mut Arrival<B>,
        mut unpacking: Option<&mut Unpacking<'_, '_>>,
    ) -> Result<(), (Error, usize)> {
        let mut parts: Vec<Part<'_>, MAX_WANTED> = Vec::new();
        for (wanted, row) in wanted.iter_mut().zip(&mut arrival.rows) {
            row.before = row.come;
            let rest = &mut wanted.bytes[row.come..];
            let offset = wanted.offset + row.come as u64;
            _ = parts.push(files.get(wanted.file).part(offset, rest));
        }
        let result = self.share.read_parts(&mut parts, &mut |parts| {
            arrival.update(parts);
            feed::<B>(&mut unpacking, &arrival.rows, |row| {
                (row.before, parts[0].bytes())
            });
            self.report(files, arrival, unpacking.as_deref());
            ControlFlow::Continue(())
        });
        let failed = parts.iter().position(|part| part.error().is_some());
        drop(parts);
        // After an attempt that failed, the unpacker may not have had all that came before.
        feed::<B>(&mut unpacking, &arrival.rows, |row| {
            (0, &wanted[0].bytes[..row.come])
        });
        self.report(files, arrival, unpacking.as_deref());
        // Else a file that ended too early, or one that was on its way.
        let missing = failed.or_else(|| arrival.rows.iter().position(|row| !row.is_there()));
        match (result, missing) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(index)) => Err((Error::UnexpectedEof, index)),
            (Err(error), index) => Err((error, index.unwrap_or(0))),
        }
    }

    /// Opens the files of a share again that was resumed.
    #[inline(never)] // As above.
    fn resume(&self, files: &mut Files<'_, 'm, B>) -> Result<(), Failed> {
        for index in 0..files.count() {
            let resumed = files.resume(index);
            resumed.map_err(|e| self.failed(&files.path(index), e))?;
        }
        Ok(())
    }

    /// Says which files have come since it was called last, in the order in which they were asked
    /// for.
    fn report(
        &self,
        files: &Files<'_, 'm, B>,
        arrival: &mut Arrival<B>,
        unpacking: Option<&Unpacking<'_, '_>>,
    ) {
        while let Some(size) = arrival.next_there() {
            let file = arrival.reported;
            arrival.reported += 1;
            let took = arrival.lap();
            match unpacking.filter(|_| file == KERNEL) {
                None => {
                    let is_prepared = file == KERNEL && files.prepared.is_some();
                    let how = if is_prepared { ", prepared" } else { "" };
                    self.report_loaded(&files.path(file), size, took, &how);
                }
                Some(unpacking) if matches!(unpacking.result, Some(Ok(()))) => {
                    let how = format_args!(", unpacked from {size} bytes");
                    self.report_loaded(&files.path(file), unpacking.unpacked(), took, &how);
                }
                // An error line follows.
                Some(_) => {}
            }
        }
    }

    #[inline(never)] // As above.
    fn report_loaded(&self, path: &[u8], bytes: u64, took: Duration, how: &dyn fmt::Display) {
        let path = self.share.shown(path);
        log::info!("loaded {path}, {}{how}", Speed { bytes, took });
    }

    /// What was written to while it was read may be neither the old nor the new file.
    #[inline(never)] // As above.
    fn check_unchanged(&self, files: &Files<'_, 'm, B>) -> Result<(), Failed> {
        for index in 0..files.count() {
            let changed = match files.get(index).has_changed() {
                Ok(false) => continue,
                Ok(true) => Error::Changed,
                Err(error) => error,
            };
            return Err(self.failed(&files.path(index), changed));
        }
        Ok(())
    }
}

/// Unpacks what has come, `come` of the first row: bytes, and where in the packed data they start.
fn feed<'b, B: Board>(
    unpacking: &mut Option<&mut Unpacking<'_, '_>>,
    rows: &[Row],
    come: impl Fn(&Row) -> (usize, &'b [u8]),
) {
    // Known when the firmware is built: that for x86-64 has nothing to unpack with.
    if is_x86::<B>() {
        return;
    }
    if let (Some(unpacking), [row, ..]) = (unpacking, rows) {
        let (position, bytes) = come(row);
        unpacking.push(position, bytes, row.size);
    }
}

/// What has come, and what was said of it.
struct Arrival<B: Board> {
    clock: B::Clock,
    progress: Progress<B>,
    /// One for each that is wanted.
    rows: Vec<Row, MAX_WANTED>,
    /// How many files were said to be there.
    reported: usize,
    /// When the last one was.
    last: Duration,
}

struct Row {
    file: usize,
    size: usize,
    come: usize,
    /// What had come before the share was resumed.
    before: usize,
}

impl Row {
    fn is_there(&self) -> bool {
        self.come == self.size
    }
}

impl<B: Board> Arrival<B> {
    fn new(clock: B::Clock, wanted: &[Wanted<'_>]) -> Self {
        let rows = wanted.iter().map(|wanted| Row {
            file: in_list(wanted.file),
            size: wanted.bytes.len(),
            come: 0,
            before: 0,
        });
        let total = wanted.iter().map(|wanted| wanted.bytes.len() as u64).sum();
        Self {
            progress: Progress::new(clock, total),
            rows: rows.collect(),
            reported: 0,
            last: clock.now(),
            clock,
        }
    }

    fn update(&mut self, parts: &[Part<'_>]) {
        for (row, part) in self.rows.iter_mut().zip(parts) {
            row.come = row.before + part.come();
        }
        let come = self.rows.iter().map(|row| row.come as u64).sum();
        self.progress.update(come);
    }

    /// The bytes that are wanted of the next file that was not reported, if all of them are there.
    fn next_there(&self) -> Option<u64> {
        let rows = || self.rows.iter().filter(|row| row.file == self.reported);
        rows().next()?;
        rows().try_fold(0, |size, row| {
            row.is_there().then_some(size + row.size as u64)
        })
    }

    /// How long the next one took: since the one before it.
    fn lap(&mut self) -> Duration {
        let now = self.clock.now();
        now.saturating_sub(core::mem::replace(&mut self.last, now))
    }
}

/// Only on request: the guest touches none of what it loads.
pub(super) fn trace_digest(path: &[u8], bytes: &[u8], offset: u64) {
    if log::log_enabled!(log::Level::Trace) {
        let digest = DigestText::of(bytes);
        log::trace!("sha256 {digest} {} from {offset}", Text(path));
    }
}
