//! Runs operations of the client, and checks the required properties of each result.

use super::device::{LARGE, large};
use crate::source::Source;
use bootshare::{
    DeviceError, Dir, Error, File, FileType, Metadata, Part, ReadDir, fuse::OFFSET_MAX,
};
use bootshare_test_device::{TestHal, TestShare, TestTransport, VirtualClock};
use embedded_io::{Seek, SeekFrom};
use std::ops::ControlFlow;

const PATHS: [&[u8]; 21] = [
    b"file",
    b"dir",
    b"link",
    b"large",
    b"absolute",
    b"loop",
    b"fifo",
    b"many",
    b"dir/one",
    b"dir/two",
    b"dir/up",
    b"dir/two/../one",
    b"many/../absolute",
    b"/",
    b".",
    b"..",
    b"",
    b"dir/",
    b"file/",
    b"link/x",
    b"missing",
];

/// A byte that the host does not send.
const UNTOUCHED: u8 = 0x5a;

type TestFile<'s> = File<'s, TestTransport, VirtualClock, TestHal>;

/// What is open between the steps of a program.
pub struct Runner<'s> {
    share: &'s TestShare,
    honest: &'s dyn Fn() -> bool,
    file: Option<(Vec<u8>, TestFile<'s>)>,
    dir: Option<Dir<'s, TestTransport, VirtualClock, TestHal>>,
    listing: Option<ReadDir<'s, TestTransport, VirtualClock, TestHal>>,
}

/// Errors that only a few functions return.
const SPECIAL: [Error; 6] = [
    Error::BufferTooSmall,
    Error::UnexpectedEof,
    Error::Changed,
    Error::InvalidOffset,
    Error::NotASymlink,
    Error::NotAFile,
];

/// Asserts that an error is documented; `only_here` are those of [`SPECIAL`] that the function may return.
pub fn check_error(error: &Error, only_here: &[Error]) {
    assert!(!error.to_string().is_empty());
    assert!(
        !SPECIAL.contains(error) || only_here.contains(error),
        "{error:?}"
    );
    _ = error.errno();
}

impl<'s> Runner<'s> {
    pub fn new(share: &'s TestShare, honest: &'s dyn Fn() -> bool) -> Self {
        Self {
            share,
            honest,
            file: None,
            dir: None,
            listing: None,
        }
    }

    /// One step of the program.
    pub fn step(&mut self, program: &mut Source<'_>) {
        let share = self.share;
        let connected = share.is_connected();
        match program.below(16) {
            0 => {
                let path = path(program);
                self.metadata(connected, share.metadata(path));
            }
            1 => {
                let path = path(program);
                self.metadata(connected, share.symlink_metadata(path));
            }
            2 => {
                let path = path(program);
                let file = share.open(path);
                let file = self.checked(connected, file, &[Error::NotAFile]);
                self.file = file.map(|file| (path.to_vec(), file));
            }
            3 => self.read(program),
            4 => self.read_exact(program),
            5 => self.stream(program),
            6 => self.resume_file(program),
            7 => {
                let path = path(program);
                let dir = share.open_dir(path);
                self.dir = self.checked(connected, dir, &[]);
            }
            8 => self.in_dir(program),
            9 => {
                let path = path(program);
                let listing = share.read_dir(path);
                self.listing = self.checked(connected, listing, &[]);
            }
            10 => {
                if let Some(mut listing) = self.listing.take()
                    && self.list(&mut listing, program.u8())
                {
                    self.listing = Some(listing);
                }
            }
            11 => {
                let mut buf = vec![UNTOUCHED; program.u8().into()];
                let path = path(program);
                let room = buf.len();
                let target = share.read_link(path, &mut buf).map(<[u8]>::to_vec);
                self.link(connected, target, room);
            }
            12 => {
                let statistics = share.statistics();
                self.checked(connected, statistics, &[]);
            }
            13 => {
                let result = share.resume();
                assert_eq!(share.is_connected(), result.is_ok());
                if let Err(error) = result {
                    check_error(&error, &[]);
                }
            }
            14 => self.file = None,
            _ => {
                self.dir = None;
                self.listing = None;
            }
        }
    }

    /// Checks properties of a result that hold for all functions.
    fn checked<T>(
        &self,
        connected: bool,
        result: Result<T, Error>,
        only_here: &[Error],
    ) -> Option<T> {
        let error = match result {
            Ok(value) => {
                assert!(connected, "an answer without a device");
                return Some(value);
            }
            Err(error) => error,
        };
        check_error(&error, only_here);
        let is_given_up = match error {
            Error::Device(error) => {
                assert_eq!(error, DeviceError::NeedsReset, "it was set up before");
                true
            }
            error => matches!(error, Error::TimedOut { .. }),
        };
        if is_given_up {
            assert!(!self.share.is_connected());
        }
        if (self.honest)() {
            assert!(
                !matches!(
                    error,
                    Error::Protocol(_) | Error::TimedOut { .. } | Error::Disconnected
                ),
                "{error:?} with an honest device"
            );
        }
        None
    }

    fn metadata(&self, connected: bool, result: Result<Metadata, Error>) {
        if let Some(metadata) = self.checked(connected, result, &[]) {
            assert!(metadata.len() <= OFFSET_MAX);
            assert!(metadata.permissions() <= 0o7777);
            assert!(metadata.modified().1 < 1_000_000_000);
        }
    }

    /// Reads into the middle of a buffer; the rest of it must not change.
    fn read(&mut self, program: &mut Source<'_>) {
        const MARGIN: usize = 64;
        let offset = offset(program);
        let size = usize::from(program.u16()) % 6000;
        let connected = self.share.is_connected();
        let Some((path, file)) = &self.file else {
            return;
        };
        let mut room = vec![UNTOUCHED; size + 2 * MARGIN];
        let mut filled = 0;
        let mut progress = |now| {
            assert!(now >= filled, "progress never decreases");
            filled = now;
            ControlFlow::Continue(())
        };
        let buf = &mut room[MARGIN..MARGIN + size];
        let in_parts = size % 2 != 0;
        let cut = if in_parts { size / 3 } else { 0 };
        let result = if in_parts {
            read_in_parts(
                self.share,
                file,
                offset,
                buf.split_at_mut(cut),
                &mut progress,
            )
        } else {
            file.read_at_with(offset, buf, &mut progress)
        };
        let (before, rest) = room.split_at(MARGIN);
        let (data, after) = rest.split_at(size);
        // Slices are compared as a whole: the fuzzer records each comparison in a loop.
        let untouched = |bytes: &[u8]| {
            let mut pieces = bytes.chunks(MARGIN);
            pieces.all(|piece| *piece == [UNTOUCHED; MARGIN][..piece.len()])
        };
        assert!(untouched(before) && untouched(after));
        assert!(filled <= size as u64);
        if let Err(Error::InvalidOffset) = result {
            // Only the second of two parts may begin beyond the limit.
            let beyond = if offset > OFFSET_MAX { 0 } else { cut };
            assert!(offset.saturating_add(beyond as u64) > OFFSET_MAX);
            assert!(untouched(&data[beyond..]));
        }
        // A read of no bytes needs no device.
        let answered = connected || size == 0 || offset == OFFSET_MAX;
        if let Some(read) = self.checked(answered, result, &[Error::InvalidOffset]) {
            assert!(read <= size);
            assert_eq!(filled, read as u64);
            if (self.honest)() && path == b"large" {
                let start = offset.min(large().len() as u64) as usize;
                let left = &large()[start..];
                assert_eq!(data[..read], left[..size.min(left.len())]);
            }
        }
    }

    fn read_exact(&mut self, program: &mut Source<'_>) {
        let offset = offset(program);
        let mut buf = vec![0; program.u8().into()];
        let is_nothing = buf.is_empty() || offset == OFFSET_MAX;
        let connected = self.share.is_connected() || is_nothing;
        if let Some((_, file)) = &self.file {
            let result = file.read_exact_at(offset, &mut buf);
            let only_here = [Error::InvalidOffset, Error::UnexpectedEof];
            self.checked(connected, result, &only_here);
        }
    }

    /// Uses the file as a stream, which continues at its position.
    fn stream(&mut self, program: &mut Source<'_>) {
        let to = match program.below(4) {
            0 => SeekFrom::Start(program.edge()),
            1 => SeekFrom::End(program.edge().cast_signed()),
            2 => SeekFrom::Current(program.edge().cast_signed()),
            _ => SeekFrom::Current(0),
        };
        let mut buf = vec![0; program.u8().into()];
        let connected = self.share.is_connected() || buf.is_empty();
        let Some((path, mut file)) = self.file.take() else {
            return;
        };
        let before = file.stream_position();
        match file.seek(to) {
            Ok(position) => {
                assert!(position <= OFFSET_MAX);
                let connected = connected || position == OFFSET_MAX;
                let result = file.read(&mut buf);
                if let Some(read) = self.checked(connected, result, &[Error::InvalidOffset]) {
                    assert!(read <= buf.len());
                    assert_eq!(file.stream_position(), Ok(position + read as u64));
                } else {
                    assert_eq!(file.stream_position(), Ok(position));
                }
            }
            Err(error) => {
                assert_eq!(error, Error::InvalidOffset);
                assert_eq!(file.stream_position(), before);
            }
        }
        self.file = Some((path, file));
    }

    fn resume_file(&mut self, program: &mut Source<'_>) {
        let refresh = program.flag();
        let connected = self.share.is_connected();
        let Some((path, mut file)) = self.file.take() else {
            return;
        };
        if refresh {
            self.metadata(connected, file.refresh());
        } else {
            let old = file.metadata();
            let result = file.resume(&path);
            let only_here = [Error::Changed, Error::NotAFile];
            if self.checked(connected, result, &only_here).is_some() {
                let same = |file: Metadata| (file.file_type(), file.len(), file.modified());
                assert_eq!(same(file.metadata()), same(old));
            }
        }
        self.file = Some((path, file));
    }

    /// Uses the open directory.
    fn in_dir(&mut self, program: &mut Source<'_>) {
        const NAMES: [&[u8]; 8] = [b"one", b"two", b"up", b"file", b"..", b"", b"a/b", b"link"];
        let what = program.below(5);
        let name = match program.below(NAMES.len() + 1) {
            index if index < NAMES.len() => NAMES[index],
            _ => program.short_bytes(),
        };
        let connected = self.share.is_connected();
        let Some(dir) = self.dir.take() else {
            return;
        };
        match what {
            0 => self.metadata(connected, dir.symlink_metadata(name)),
            1 => {
                if let Some(file) = self.checked(connected, dir.open_file(name), &[Error::NotAFile])
                {
                    self.file = Some((name.to_vec(), file));
                }
            }
            2 => {
                let mut buf = [0; 4095];
                let target = dir.read_link(name, &mut buf).map(<[u8]>::to_vec);
                self.link(connected, target, 4095);
            }
            3 => {
                if let Some(mut listing) = self.checked(connected, dir.read_dir(), &[]) {
                    self.list(&mut listing, program.u8());
                }
            }
            _ => {
                if let Some(below) = self.checked(connected, dir.open_dir(name), &[]) {
                    self.metadata(true, dir.metadata());
                    self.dir = Some(below);
                    return;
                }
            }
        }
        self.dir = Some(dir);
    }

    /// Lists some entries. Returns whether the listing continues.
    fn list(
        &self,
        listing: &mut ReadDir<'_, TestTransport, VirtualClock, TestHal>,
        count: u8,
    ) -> bool {
        for _ in 0..count {
            match listing.next() {
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    assert!((1..=255).contains(&name.len()));
                    assert!(!name.contains(&0) && !name.contains(&b'/'));
                    assert!(name != b"." && name != b"..");
                    let _: Option<FileType> = entry.file_type();
                }
                Some(Err(error)) => {
                    self.checked::<()>(true, Err(error), &[]);
                    assert!(listing.next().is_none(), "it ends after an error");
                    return false;
                }
                None => {
                    assert!(listing.next().is_none(), "nothing follows the end");
                    return false;
                }
            }
        }
        true
    }

    fn link(&self, connected: bool, result: Result<Vec<u8>, Error>, room: usize) {
        let only_here = [Error::NotASymlink, Error::BufferTooSmall];
        if let Some(target) = self.checked(connected, result, &only_here) {
            assert!((1..=4095.min(room)).contains(&target.len()));
            assert!(!target.contains(&0));
        }
    }
}

fn path<'a>(program: &mut Source<'a>) -> &'a [u8] {
    match program.below(PATHS.len() + 2) {
        index if index < PATHS.len() => PATHS[index],
        _ => program.short_bytes(),
    }
}

fn offset(program: &mut Source<'_>) -> u64 {
    match program.below(4) {
        0 => program.edge(),
        1 => LARGE - u64::from(program.u8()),
        _ => program.u16().into(),
    }
}

/// As [`TestFile::read_at_with`], but reads two parts at the same time.
fn read_in_parts(
    share: &TestShare,
    file: &TestFile<'_>,
    offset: u64,
    (front, back): (&mut [u8], &mut [u8]),
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<usize, Error> {
    let cut = front.len();
    let behind = offset.saturating_add(cut as u64);
    let filled = |parts: &[Part<'_>]| match parts[0].filled() {
        all if all == cut => cut + parts[1].filled(),
        some => some,
    };
    let mut parts = [file.part(offset, front), file.part(behind, back)];
    let result = share.read_parts(&mut parts, &mut |parts| progress(filled(parts) as u64));
    let failed = parts.iter().any(|part| part.error().is_some());
    assert!(
        result.is_err() || !failed,
        "the error of a part is the result of the call"
    );
    result.map(|()| filled(&parts))
}
