//! A boot entry: its files loaded into memory, ready for the hand-off.

use super::{
    Board, Failed, HandOff,
    arena::{Arena, Block, Memory, is_x86},
    console::{Progress, Text, failure},
    output::DigestText,
    shares::BoardShare,
};
use crate::{
    Error, File, FileType,
    boot::{
        arm64_image::Arm64Image,
        bzimage::BzImage,
        cmdline::{self, ARM64_LIMIT},
        conventional::Conventional,
        device_tree::{self, Chosen},
        image::{self, Kind},
        memory::{Range, Request, Side},
        options::Options,
        zero_page::{self, Parameters, ZERO_PAGE_BYTES},
    },
};
use core::{ffi::CStr, fmt};
use heapless::Vec;

/// Where kernels lie by convention.
const DIRECTORIES: [&str; 2] = ["/", "/boot"];
/// Longest command-line file that is read, in bytes; kernels take less.
const MAX_CMDLINE_FILE: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// A path below one of [`DIRECTORIES`].
pub(super) type Path = Vec<u8, 272>;

/// Shown with its odd bytes escaped.
pub(super) struct PathText(Path);

impl fmt::Display for PathText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Text(&self.0).fmt(f)
    }
}

fn join(directory: &str, name: &[u8]) -> Path {
    let slash: &[u8] = if directory.ends_with('/') { b"" } else { b"/" };
    // Directory names are short and file names have 255 bytes at most.
    let mut path = Path::new();
    for part in [directory.as_bytes(), slash, name] {
        _ = path.extend_from_slice(part);
    }
    path
}

/// The files of an entry.
struct Entry {
    kernel: Path,
    initrd: Option<Path>,
    cmdline: Option<Path>,
}

/// Loads the first entry of `share` that can be loaded; says why others can't. Gives the kernel's
/// path too, to be shown.
pub(super) fn load<B: Board>(
    board: &B,
    options: &Options<'_>,
    share: &BoardShare<B>,
    memory: &mut Memory,
) -> Result<(HandOff, PathText), Failed> {
    let mut found = false;
    let mut lost = false;
    let mut directories = DIRECTORIES.iter();
    let mut next = directories.next();
    while let Some(directory) = next {
        match load_from(board, options, share, memory, directory) {
            Ok(None) => {}
            Ok(Some(loaded)) => return Ok(loaded),
            Err(Failed) => found = true,
        }
        if share.is_connected() {
            next = directories.next();
        } else if !core::mem::replace(&mut lost, true) {
            // Once, the same entry is tried again.
            resume::<B>(share).map_err(|error| failed(directory.as_bytes(), error))?;
        } else {
            return Err(Failed);
        }
    }
    if !found {
        log::error!(
            "share {}: there is no kernel; put one at /vmlinuz, /Image or /boot/vmlinuz-VERSION",
            share.tag()
        );
    }
    Err(Failed)
}

fn resume<B: Board>(share: &BoardShare<B>) -> Result<(), Error> {
    share.resume()?;
    log::info!("share {}: resumed", share.tag());
    Ok(())
}

/// Loads the entry of `directory`, if there is one.
fn load_from<B: Board>(
    board: &B,
    options: &Options<'_>,
    share: &BoardShare<B>,
    memory: &mut Memory,
    directory: &str,
) -> Result<Option<(HandOff, PathText)>, Failed> {
    let entry = match look_in::<B>(share, directory) {
        Ok(Some(entry)) => entry,
        Ok(None) | Err(Error::NotFound | Error::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(directory.as_bytes(), error)),
    };
    let loader = Loader {
        board,
        share,
        arena: memory.arena(),
        loaded: Vec::new(),
    };
    let hand_off = loader.load(&entry, options.payload)?;
    Ok(Some((hand_off, PathText(entry.kernel))))
}

/// What is to be booted in `directory`, by the conventional names.
#[inline(never)] // So that the large frames of the boot flow do not add up.
fn look_in<B: Board>(share: &BoardShare<B>, directory: &str) -> Result<Option<Entry>, Error> {
    let mut names = Conventional::default();
    for _look in 0..2 {
        for entry in share.read_dir(directory)? {
            let entry = entry?;
            if matches!(
                entry.file_type(),
                None | Some(FileType::File | FileType::Symlink)
            ) {
                names.consider(entry.file_name());
            }
        }
        if !names.look_again() {
            break;
        }
    }
    Ok(names.kernel().map(|kernel| Entry {
        kernel: join(directory, kernel),
        initrd: names.initrd().map(|name| join(directory, &name)),
        cmdline: names.cmdline().map(|name| join(directory, name)),
    }))
}

/// One attempt to load an entry.
struct Loader<'a, 'm, B: Board> {
    board: &'a B,
    share: &'a BoardShare<B>,
    arena: Arena<'m>,
    /// What the hand-off names as loaded.
    loaded: Vec<Range, 8>,
}

/// Reports `error` of the file at `path`.
fn failed(path: &[u8], error: impl fmt::Display) -> Failed {
    failure(path, error);
    Failed
}

impl<'m, B: Board> Loader<'_, 'm, B> {
    #[inline(never)] // As above.
    fn load(mut self, entry: &Entry, extra: &[u8]) -> Result<HandOff, Failed> {
        let path = &entry.kernel;
        let mut file = self.share.open(path).map_err(|e| failed(path, e))?;
        let size = file.metadata().len();
        let mut head = [0; image::HEAD_BYTES];
        let head_size = file.read_at(0, &mut head).map_err(|e| failed(path, e))?;
        let head = &head[..head_size];
        Kind::of(head, size)
            .check(B::ARCHITECTURE)
            .map_err(|e| failed(path, e))?;
        let text = self.command_line_text(entry)?;
        if is_x86::<B>() {
            let image = BzImage::parse(head, size).map_err(|e| failed(path, e))?;
            let kernel = self.place(path, &image.memory_request())?;
            let load_address = kernel.range.start;
            self.read(
                path,
                &mut file,
                kernel,
                image.setup_bytes,
                image.payload_bytes,
            )?;
            drop(file);
            let initrd = self.initrd(entry, 0, image.initrd_limit())?;
            let limit = image.cmdline_size as usize;
            let line = self.command_line(path, limit, image.limit(), text, extra)?;
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
            Ok(self.hand_off(image.entry(load_address), argument))
        } else {
            let image = Arm64Image::parse(head, size).map_err(|e| failed(path, e))?;
            let mut kernel = self.place(path, &image.memory_request())?;
            let window = Arm64Image::initrd_window(&kernel.range);
            let load_address = image.load_address(kernel.range.start);
            // What is before the image in its memory is not read.
            let before = (load_address - kernel.range.start) as usize;
            kernel.bytes = &mut kernel.bytes[before..];
            kernel.range.start = load_address;
            self.read(path, &mut file, kernel, 0, size)?;
            drop(file);
            let initrd = self.initrd(entry, window.start, window.end)?;
            let (line, _) = self.command_line(path, ARM64_LIMIT, u64::MAX, text, extra)?;
            let argument = self.device_tree(&Chosen {
                command_line: line,
                initrd,
            })?;
            Ok(self.hand_off(load_address, argument))
        }
    }

    fn hand_off(self, entry: u64, argument: u64) -> HandOff {
        HandOff {
            entry,
            argument,
            loaded: self.loaded,
        }
    }

    fn place(&mut self, path: &[u8], request: &Request) -> Result<Block<'m>, Failed> {
        self.arena.take(request).map_err(|e| failed(path, e))
    }

    /// Reads `size` bytes of `file` from `offset` on to the start of `block`, and says so.
    fn read(
        &mut self,
        path: &[u8],
        file: &mut File<'_, crate::transport::FsTransport, B::Clock, B::Hal>,
        block: Block<'_>,
        offset: u64,
        size: u64,
    ) -> Result<(), Failed> {
        let bytes = block
            .bytes
            .get_mut(..size as usize)
            .ok_or_else(|| failed(path, Error::BufferTooSmall))?;
        let mut progress = Progress::<B>::new(self.board.clock(), size);
        let result = self.read_on(path, file, bytes, offset, &mut progress);
        let took = progress.finish();
        if result.map_err(|error| failed(path, error))? < bytes.len() {
            return Err(failed(path, Error::UnexpectedEof));
        }
        let micros = took.as_micros().max(1) as u64;
        // Bytes a microsecond are nearly MiB a second: 2^20 / 10^6.
        let rate = size.saturating_mul(1_000_000) / (micros << 20);
        log::info!(
            "loaded {}, {size} bytes in {} ms ({rate} MiB/s)",
            Text(path),
            micros / 1000
        );
        // Only on request: the guest touches none of what it loads.
        if log::log_enabled!(log::Level::Trace) {
            log::trace!(
                "sha256 {} {} from {offset}",
                DigestText::of(bytes),
                Text(path)
            );
        }
        // At most a kernel, an initrd and a device tree or zero page.
        _ = self.loaded.push(Range::with_size(block.range.start, size));
        Ok(())
    }

    /// Reads until `bytes` is full or the file ends. If the share gets lost on the way, it is
    /// resumed, once, and the read goes on where it was.
    fn read_on(
        &self,
        path: &[u8],
        file: &mut File<'_, crate::transport::FsTransport, B::Clock, B::Hal>,
        bytes: &mut [u8],
        offset: u64,
        progress: &mut Progress<B>,
    ) -> Result<usize, Error> {
        let mut come = 0;
        let mut resumed = false;
        loop {
            let before = come;
            let rest = &mut bytes[before..];
            let result = file.read_at_with(offset + before as u64, rest, &mut |more| {
                come = before + more as usize;
                progress.update(come as u64);
            });
            match result {
                Ok(size) => return Ok(before + size),
                Err(error) if resumed || self.share.is_connected() => return Err(error),
                Err(_) => {}
            }
            resumed = true;
            resume::<B>(self.share)?;
            file.resume(path)?;
        }
    }

    /// Loads the initrd, if there is one, as high as it may lie from `min` up to `max`.
    fn initrd(&mut self, entry: &Entry, min: u64, max: u64) -> Result<Option<Range>, Failed> {
        let Some(path) = &entry.initrd else {
            return Ok(None);
        };
        let mut file = self.share.open(path).map_err(|e| failed(path, e))?;
        let size = file.metadata().len();
        if size == 0 {
            return Err(failed(
                path,
                "it is empty; put an initramfs there or remove it",
            ));
        }
        let block = self.place(
            path,
            &Request {
                align: PAGE,
                min: min.max(1 << 20),
                max,
                side: Side::High,
                ..Request::new("initrd", size)
            },
        )?;
        let range = block.range;
        self.read(path, &mut file, block, 0, size)?;
        Ok(Some(range))
    }

    /// What the entry's command-line file says.
    fn command_line_text(&mut self, entry: &Entry) -> Result<&'m [u8], Failed> {
        let Some(path) = &entry.cmdline else {
            return Ok(b"");
        };
        let file = self.share.open(path).map_err(|e| failed(path, e))?;
        let size = file.metadata().len();
        if size > MAX_CMDLINE_FILE {
            return Err(failed(path, "it is too large for a command line"));
        }
        if size == 0 {
            return Ok(b"");
        }
        let block = self.place(path, &Request::new("command line file", size))?;
        file.read_exact_at(0, block.bytes)
            .map_err(|e| failed(path, e))?;
        Ok(block.bytes)
    }

    /// The kernel's command line, and where it lies.
    fn command_line(
        &mut self,
        kernel: &[u8],
        limit: usize,
        max: u64,
        text: &[u8],
        extra: &[u8],
    ) -> Result<(&'m CStr, Range), Failed> {
        // A kernel may claim to take any length.
        let limit = limit.min(MAX_CMDLINE_FILE as usize);
        let request = Request {
            align: PAGE,
            max,
            ..Request::new("command line", limit as u64 + 1)
        };
        let block = self.place(kernel, &request)?;
        let words = self.board.payload_words();
        let line = cmdline::build(block.bytes, limit, &words, text, extra)
            .map_err(|e| failed(kernel, e))?;
        for word in &words {
            if contains_word(line.to_bytes(), word.as_bytes()) {
                log::info!("added {word} to the command line");
            }
        }
        log::debug!("command line: {}", Text(line.to_bytes()));
        Ok((line, block.range))
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
            .ok_or_else(|| failed(kernel, Error::BufferTooSmall))?;
        zero_page::fill(page, head, image, parameters).map_err(|e| failed(kernel, e))?;
        Ok(block.range.start)
    }

    fn device_tree(&mut self, chosen: &Chosen<'_>) -> Result<u64, Failed> {
        let report = |error: &dyn fmt::Display| {
            log::error!("device tree: {error}");
            Failed
        };
        let Some(blob) = self.board.device_tree() else {
            return Err(report(
                &"the machine has none, and an arm64 kernel needs one",
            ));
        };
        let size = device_tree::updated_bytes(blob, chosen).map_err(|e| report(&e))?;
        let request = Request {
            align: device_tree::ALIGNMENT,
            ..Request::new("device tree", size as u64)
        };
        let block = self.arena.take(&request).map_err(|e| report(&e))?;
        device_tree::update(blob, chosen, block.bytes).map_err(|e| report(&e))?;
        _ = self.loaded.push(block.range);
        Ok(block.range.start)
    }
}

fn contains_word(line: &[u8], word: &[u8]) -> bool {
    cmdline::words(line).any(|other| other == word)
}
