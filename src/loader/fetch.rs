//! Reads the files of a payload into memory, all of them at once.

use super::{
    Board, Failed,
    console::{Progress, Speed},
    load::Loader,
    payload::{Files, KERNEL, MAX_WANTED, Payload, Wanted, in_list},
};
use crate::{
    Error, Part,
    boot::{
        gzip,
        packed::{UnpackError, Unpacker},
    },
    hal::Clock,
};
use core::{fmt, ops::ControlFlow, time::Duration};
use heapless::Vec;

/// The decompressor is called for at least this many bytes, except at the end.
const UNPACKED_AT_ONCE: usize = 64 << 10;
const _: () = assert!(UNPACKED_AT_ONCE >= gzip::HEADER_BYTES);

/// The decompression of a packed kernel while it is read. The kernel is the first of the wanted parts.
pub(super) struct Unpacking<'o, 's> {
    unpacker: &'o mut Unpacker<'s>,
    out: &'o mut [u8],
    /// Number of packed bytes that the unpacker has used.
    used: usize,
    /// Number of packed bytes that the unpacker was given.
    seen: usize,
    /// The outcome, once the decompression has ended.
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

    /// Number of unpacked bytes.
    pub fn unpacked(&self) -> u64 {
        self.unpacker.unpacked() as u64
    }

    /// Decompresses bytes that have arrived: `bytes` are those from `position` on, of `size` packed bytes.
    #[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
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
    /// Reads all wanted parts and reports the loaded files. If the share is lost and can be resumed, the read
    /// continues where it stopped.
    #[inline(never)]
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
            // If the share is connected, it was resumed after its files were opened.
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
        // An unpacked kernel differs from its file.
        for wanted in payload.wanted.iter().skip(usize::from(unpacking.is_some())) {
            trace_digest(&files.path(wanted.file), wanted.bytes, wanted.offset);
        }
        Ok(())
    }

    /// Reads the bytes that have not arrived yet. The error includes the index of the part in `wanted`.
    #[inline(never)]
    fn attempt(
        &self,
        files: &Files<'_, 'm, B>,
        wanted: &mut [Wanted<'m>],
        arrival: &mut Arrival<B>,
        mut unpacking: Option<&mut Unpacking<'_, '_>>,
    ) -> Result<(), (Error, usize)> {
        let mut parts: Vec<Part<'_>, MAX_WANTED> = Vec::new();
        for (wanted, row) in wanted.iter_mut().zip(&mut arrival.rows) {
            row.before = row.filled;
            let rest = &mut wanted.bytes[row.filled..];
            let offset = wanted.offset + row.filled as u64;
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
        // The unpacker may not have been given all bytes that arrived before an earlier attempt failed.
        feed::<B>(&mut unpacking, &arrival.rows, |row| {
            (0, &wanted[0].bytes[..row.filled])
        });
        self.report(files, arrival, unpacking.as_deref());
        // If no part has an error, name a file that has ended too early or is not complete.
        let missing = failed.or_else(|| arrival.rows.iter().position(|row| !row.is_complete()));
        match (result, missing) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(index)) => Err((Error::UnexpectedEof, index)),
            (Err(error), index) => Err((error, index.unwrap_or(0))),
        }
    }

    /// Opens all files again after their share was resumed.
    #[inline(never)]
    fn resume(&self, files: &mut Files<'_, 'm, B>) -> Result<(), Failed> {
        for index in 0..files.count() {
            let resumed = files.resume(index);
            resumed.map_err(|e| self.failed(&files.path(index), e))?;
        }
        Ok(())
    }

    /// Reports the files that were completed since the last call, in the order of the requests.
    fn report(
        &self,
        files: &Files<'_, 'm, B>,
        arrival: &mut Arrival<B>,
        unpacking: Option<&Unpacking<'_, '_>>,
    ) {
        while let Some(size) = arrival.next_complete() {
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
                // The error is reported later.
                Some(_) => {}
            }
        }
    }

    #[inline(never)]
    fn report_loaded(&self, path: &[u8], bytes: u64, took: Duration, how: &dyn fmt::Display) {
        let path = self.share.shown(path);
        log::info!("loaded {path}, {}{how}", Speed { bytes, took });
    }

    /// Checks that no file was modified while it was read: the data could be a mixture of two versions.
    #[inline(never)]
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

/// Passes bytes of the first part to the decompression. `arrived` returns their position in the packed data,
/// and the bytes.
fn feed<'b, B: Board>(
    unpacking: &mut Option<&mut Unpacking<'_, '_>>,
    rows: &[Row],
    arrived: impl Fn(&Row) -> (usize, &'b [u8]),
) {
    // Constant: without this, firmware that decompresses nothing would contain the decompressors.
    if B::ARCHITECTURE.kernels_unpack_themselves() || cfg!(not(feature = "packed")) {
        return;
    }
    if let (Some(unpacking), [row, ..]) = (unpacking, rows) {
        let (position, bytes) = arrived(row);
        unpacking.push(position, bytes, row.size);
    }
}

/// The progress of a read.
struct Arrival<B: Board> {
    clock: B::Clock,
    progress: Progress<B>,
    /// One for each wanted part.
    rows: Vec<Row, MAX_WANTED>,
    /// Number of files that were reported as loaded.
    reported: usize,
    /// When the last one was reported.
    last: Duration,
}

/// The progress of a part.
struct Row {
    file: usize,
    /// Its size in bytes.
    size: usize,
    /// Number of bytes at its start that have arrived.
    filled: usize,
    /// The value of `filled` when the current attempt began.
    before: usize,
}

impl Row {
    fn is_complete(&self) -> bool {
        self.filled == self.size
    }
}

impl<B: Board> Arrival<B> {
    fn new(clock: B::Clock, wanted: &[Wanted<'_>]) -> Self {
        let rows = wanted.iter().map(|wanted| Row {
            file: in_list(wanted.file),
            size: wanted.bytes.len(),
            filled: 0,
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
            row.filled = row.before + part.filled();
        }
        let filled = self.rows.iter().map(|row| row.filled as u64).sum();
        self.progress.update(filled);
    }

    /// The number of bytes wanted of the next file to report, if all of them have arrived.
    fn next_complete(&self) -> Option<u64> {
        let rows = || self.rows.iter().filter(|row| row.file == self.reported);
        rows().next()?;
        rows().try_fold(0, |size, row| {
            row.is_complete().then_some(size + row.size as u64)
        })
    }

    /// The time since the last file was reported.
    fn lap(&mut self) -> Duration {
        let now = self.clock.now();
        now.saturating_sub(core::mem::replace(&mut self.last, now))
    }
}

/// Reports a digest at log level trace. Otherwise the firmware does not touch the loaded data.
#[cfg(feature = "digest")]
pub(super) fn trace_digest(path: &[u8], bytes: &[u8], offset: u64) {
    use super::{console::Text, digest::DigestText};
    if log::log_enabled!(log::Level::Trace) {
        let digest = DigestText::of(bytes);
        log::trace!("sha256 {digest} {} from {offset}", Text(path));
    }
}

#[cfg(not(feature = "digest"))]
pub(super) fn trace_digest(_: &[u8], _: &[u8], _: u64) {}
