//! A boot entry: its files loaded into memory, ready for the hand-off.

use super::{
    Board, Failed, HandOff,
    arena::{Arena, Block, is_x86},
    console::{Progress, Text},
    output::DigestText,
    shares::{BoardFile, Mount},
};
use crate::{
    Error,
    boot::{
        arm64_image::Arm64Image,
        bzimage::BzImage,
        cmdline::{self, ARM64_LIMIT},
        device_tree::{self, Chosen},
        entry::{CommandLine, Entry, MAX_INITRDS},
        image::{self, Kind},
        memory::{Range, Request, Side},
        zero_page::{self, Parameters, ZERO_PAGE_BYTES},
    },
};
use core::{ffi::CStr, fmt, ops::Deref};
use heapless::Vec;

/// Longest command line that is read, in bytes; kernels take less.
const MAX_CMDLINE: u64 = 64 << 10;
/// Largest device tree file, in bytes: arm64 kernels map 2 MiB (booting.rst, "Setup the device
/// tree").
const MAX_DEVICE_TREE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// A path from the share's root on. It is cut off where no share takes it any more, so that what
/// is too long stays so.
pub(super) struct Path(Vec<u8, 4096>);

impl Path {
    /// `name` in `directory`, unless it starts at the root itself.
    #[inline(never)] // It is long, and wanted in many places.
    pub fn join(directory: &str, name: &[u8]) -> Self {
        let directory = directory.trim_end_matches('/').as_bytes();
        let before: [&[u8]; 2] = match name {
            [b'/', ..] => [b"", b""],
            _ => [directory, b"/"],
        };
        let mut path = Vec::new();
        for part in before.into_iter().chain([name]) {
            let room = path.capacity() - path.len();
            _ = path.extend_from_slice(&part[..part.len().min(room)]);
        }
        Self(path)
    }
}

impl Deref for Path {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Path {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Shown with its odd bytes escaped.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Text(&self.0).fmt(f)
    }
}

/// Reports what befell a file of an entry.
#[inline(never)] // Small code: it is called from many places.
fn failed(entry: &dyn fmt::Display, path: &[u8], error: &dyn fmt::Display) -> Failed {
    log::error!("{entry}{}: {error}", Text(path));
    Failed
}

/// One attempt to load an entry.
pub(super) struct Loader<'a, 'm, B: Board> {
    board: &'a B,
    /// Where its files come from.
    share: &'a Mount<B>,
    /// What stands before the paths in its messages.
    name: &'a dyn fmt::Display,
    arena: Arena<'m>,
    /// What the hand-off names as loaded.
    loaded: Vec<Range, 8>,
}

impl<'a, 'm, B: Board> Loader<'a, 'm, B> {
    pub fn new(
        board: &'a B,
        share: &'a Mount<B>,
        name: &'a dyn fmt::Display,
        arena: Arena<'m>,
    ) -> Self {
        Self {
            board,
            share,
            name,
            arena,
            loaded: Vec::new(),
        }
    }

    /// Reports `error` of the file at `path`.
    fn failed(&self, path: &[u8], error: impl fmt::Display) -> Failed {
        failed(self.name, path, &error)
    }

    #[inline(never)] // So that the large frames of the boot flow do not add up.
    pub fn load(mut self, entry: &Entry<'m>, extra: &[u8]) -> Result<HandOff, Failed> {
        let path = &Path::join(entry.directory, entry.kernel);
        let mut file = self.open(path)?;
        let size = file.metadata().len();
        let mut head = [0; image::HEAD_BYTES];
        let head_size = file
            .read_at(0, &mut head)
            .map_err(|e| self.failed(path, e))?;
        let head = &head[..head_size];
        Kind::of(head, size)
            .check(B::ARCHITECTURE)
            .map_err(|e| self.failed(path, e))?;
        // Before anything large is loaded in vain.
        let sizes = self.initrd_sizes(entry)?;
        let text = self.command_line_text(entry)?;
        if is_x86::<B>() {
            let image = BzImage::parse(head, size).map_err(|e| self.failed(path, e))?;
            let kernel = self.place(path, &image.memory_request())?;
            let load_address = kernel.range.start;
            let payload = kernel.bytes.get_mut(..image.payload_bytes as usize);
            self.read(path, &mut file, payload, image.setup_bytes)?;
            self.add_loaded(load_address, image.payload_bytes);
            drop(file);
            let initrd = self.initrds(entry, &sizes, 0, image.initrd_limit())?;
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
            let image = Arm64Image::parse(head, size).map_err(|e| self.failed(path, e))?;
            let kernel = self.place(path, &image.memory_request())?;
            let window = Arm64Image::initrd_window(&kernel.range);
            let load_address = image.load_address(kernel.range.start);
            // What is before the image in its memory is not read.
            let before = (load_address - kernel.range.start) as usize;
            let bytes = kernel.bytes[before..].get_mut(..size as usize);
            self.read(path, &mut file, bytes, 0)?;
            self.add_loaded(load_address, size);
            drop(file);
            let initrd = self.initrds(entry, &sizes, window.start, window.end)?;
            let (line, _) = self.command_line(path, ARM64_LIMIT, u64::MAX, text, extra)?;
            let chosen = Chosen {
                command_line: line,
                initrd,
            };
            let argument = self.device_tree(entry, &chosen)?;
            Ok(self.hand_off(load_address, argument))
        }
    }

    #[inline(never)] // As above.
    fn open(&self, path: &[u8]) -> Result<BoardFile<'a, B>, Failed> {
        let file = self.share.open(path).map_err(|e| self.failed(path, e))?;
        let size = file.metadata().len();
        log::debug!("opened {}, {size} bytes", self.share.shown(path));
        Ok(file)
    }

    fn hand_off(self, entry: u64, argument: u64) -> HandOff {
        HandOff {
            entry,
            argument,
            loaded: self.loaded,
        }
    }

    #[inline(never)] // As above.
    fn place(&mut self, path: &[u8], request: &Request) -> Result<Block<'m>, Failed> {
        let placed = self.arena.take(request);
        placed.map_err(|e| self.failed(path, e))
    }

    fn add_loaded(&mut self, start: u64, size: u64) {
        // At most a kernel, the initrds as one, and a device tree or zero page.
        _ = self.loaded.push(Range::with_size(start, size));
    }

    /// Fills `bytes` from `offset` of `file` on, and says so. There are none where there is too
    /// little room.
    fn read(
        &self,
        path: &[u8],
        file: &mut BoardFile<'_, B>,
        bytes: Option<&mut [u8]>,
        offset: u64,
    ) -> Result<(), Failed> {
        let bytes = bytes.ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let size = bytes.len() as u64;
        let mut progress = Progress::<B>::new(self.board.clock(), size);
        let result = self.read_on(path, file, bytes, offset, &mut progress);
        let took = progress.finish();
        if result.map_err(|e| self.failed(path, e))? < bytes.len() {
            return Err(self.failed(path, Error::UnexpectedEof));
        }
        // What was written to while it was read may be neither the old nor the new file.
        if file.has_changed().map_err(|e| self.failed(path, e))? {
            return Err(self.failed(path, Error::Changed));
        }
        let micros = took.as_micros().max(1) as u64;
        // Bytes a microsecond are nearly MiB a second: 2^20 / 10^6.
        let rate = size.saturating_mul(1_000_000) / (micros << 20);
        log::info!(
            "loaded {}, {size} bytes in {} ms ({rate} MiB/s)",
            self.share.shown(path),
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
        Ok(())
    }

    /// Reads until `bytes` is full or the file ends. If the share gets lost on the way and can be
    /// resumed, the read goes on where it was.
    fn read_on(
        &self,
        path: &[u8],
        file: &mut BoardFile<'_, B>,
        bytes: &mut [u8],
        offset: u64,
        progress: &mut Progress<B>,
    ) -> Result<usize, Error> {
        let mut come = 0;
        loop {
            let before = come;
            let rest = &mut bytes[before..];
            let result = file.read_at_with(offset + before as u64, rest, &mut |more| {
                come = before + more as usize;
                progress.update(come as u64);
            });
            match result {
                Ok(size) => return Ok(before + size),
                Err(error) => self.share.again(error)?,
            }
            file.resume(path)?;
        }
    }

    /// The sizes of the initrds in bytes.
    fn initrd_sizes(&self, entry: &Entry<'_>) -> Result<Vec<u64, MAX_INITRDS>, Failed> {
        let mut sizes: Vec<u64, MAX_INITRDS> = Vec::new();
        for name in &entry.initrds {
            let path = Path::join(entry.directory, name);
            let metadata = self.share.metadata(&path);
            let size = metadata.map_err(|e| self.failed(&path, e))?.len();
            if size == 0 {
                return Err(self.failed(&path, "it is empty; put an initramfs there or remove it"));
            }
            _ = sizes.push(size); // As many as there are initrds.
        }
        Ok(sizes)
    }

    /// Loads the initrds, if there are any, as high as they may lie from `min` up to `max`.
    ///
    /// They lie one behind the other, each start aligned to 4 bytes with zeros before it, as the
    /// kernel wants a sequence of archives (buffer-format.rst).
    fn initrds(
        &mut self,
        entry: &Entry<'_>,
        sizes: &[u64],
        min: u64,
        max: u64,
    ) -> Result<Option<Range>, Failed> {
        let total = sizes.iter().fold(0_u64, |total, size| {
            let start = total.checked_next_multiple_of(4).unwrap_or(u64::MAX);
            start.saturating_add(*size)
        });
        let Some(first) = entry.initrds.first() else {
            return Ok(None);
        };
        let block = self.place(
            &Path::join(entry.directory, first),
            &Request {
                align: PAGE,
                min: min.max(1 << 20),
                max,
                side: Side::High,
                ..Request::new("initrd", total)
            },
        )?;
        let mut rest = block.bytes;
        for (name, size) in entry.initrds.iter().zip(sizes.iter().copied()) {
            let path = Path::join(entry.directory, name);
            let mut file = self.open(&path)?;
            if file.metadata().len() != size {
                return Err(self.failed(&path, Error::Changed));
            }
            let (bytes, after) = rest.split_at_mut(size as usize);
            self.read(&path, &mut file, Some(bytes), 0)?;
            // There is no padding behind the last one.
            let padding = after.len().min((size.wrapping_neg() % 4) as usize);
            let (padding, after) = after.split_at_mut(padding);
            padding.fill(0);
            rest = after;
        }
        self.add_loaded(block.range.start, total);
        Ok(Some(block.range))
    }

    /// What the entry has the kernel told.
    fn command_line_text(&mut self, entry: &Entry<'m>) -> Result<&'m [u8], Failed> {
        match entry.command_line {
            CommandLine::None => Ok(b""),
            CommandLine::Text(text) => Ok(text),
            CommandLine::Lines(lines) => {
                let size = lines.map(|line| line.len() as u64 + 1).sum();
                let request = Request::new("command line", size);
                let text = self.place(entry.kernel, &request)?.bytes;
                text.fill(b' ');
                let mut end = 0;
                for line in lines {
                    text[end..][..line.len()].copy_from_slice(line);
                    end += line.len() + 1;
                }
                Ok(text)
            }
            CommandLine::File(name) => {
                let path = Path::join(entry.directory, name);
                Ok(self.small_file(&path, "command line", MAX_CMDLINE)?)
            }
        }
    }

    /// All of a file of at most `limit` bytes.
    #[inline(never)] // As above.
    fn small_file(
        &mut self,
        path: &[u8],
        what: &'static str,
        limit: u64,
    ) -> Result<&'m [u8], Failed> {
        let file = self.open(path)?;
        let size = file.metadata().len();
        if size > limit {
            return Err(self.failed(path, format_args!("it is too large for a {what}")));
        }
        if size == 0 {
            return Ok(b"");
        }
        let request = Request {
            align: device_tree::ALIGNMENT,
            ..Request::new(what, size)
        };
        let block = self.place(path, &request)?;
        let bytes = &mut block.bytes[..size as usize];
        let read = file.read_exact_at(0, bytes);
        read.map_err(|e| self.failed(path, e))?;
        Ok(bytes)
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
        let limit = limit.min(MAX_CMDLINE as usize);
        let request = Request {
            align: PAGE,
            max,
            ..Request::new("command line", limit as u64 + 1)
        };
        let block = self.place(kernel, &request)?;
        let words = self.board.payload_words();
        let line = cmdline::build(block.bytes, limit, &words, text, extra)
            .map_err(|e| self.failed(kernel, e))?;
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
            .ok_or_else(|| self.failed(kernel, Error::BufferTooSmall))?;
        zero_page::fill(page, head, image, parameters).map_err(|e| self.failed(kernel, e))?;
        Ok(block.range.start)
    }

    /// A copy of the entry's device tree, or else the machine's, for the kernel; its address.
    fn device_tree(&mut self, entry: &Entry<'m>, chosen: &Chosen<'_>) -> Result<u64, Failed> {
        let path = entry
            .device_tree
            .map(|name| Path::join(entry.directory, name));
        let blob = match &path {
            Some(path) => self.small_file(path, "device tree", MAX_DEVICE_TREE)?,
            None => self.board.device_tree().ok_or_else(|| {
                log::error!(
                    "device tree: the machine has none, and an arm64 kernel needs one; \
                     name a file with devicetree in a boot entry"
                );
                Failed
            })?,
        };
        let name: &[u8] = path.as_deref().unwrap_or(b"device tree");
        let size = device_tree::updated_bytes(blob, chosen).map_err(|e| self.failed(name, e))?;
        let request = Request {
            align: device_tree::ALIGNMENT,
            ..Request::new("device tree", size as u64)
        };
        let block = self.place(name, &request)?;
        device_tree::update(blob, chosen, block.bytes).map_err(|e| self.failed(name, e))?;
        _ = self.loaded.push(block.range);
        Ok(block.range.start)
    }
}

fn contains_word(line: &[u8], word: &[u8]) -> bool {
    cmdline::words(line).any(|other| other == word)
}

#[cfg(test)]
mod tests {
    use super::Path;

    #[test]
    fn paths_start_at_their_directory_or_at_the_root() {
        let cases: [(&str, &[u8], &[u8]); 6] = [
            ("/", b"k", b"/k"),
            ("/", b"/k", b"/k"),
            ("/boot", b"k", b"/boot/k"),
            ("/boot", b"/k", b"/k"),
            ("/boot/extlinux", b"../k", b"/boot/extlinux/../k"),
            ("/boot", b"", b"/boot/"),
        ];
        for (directory, name, path) in cases {
            assert_eq!(*Path::join(directory, name), *path);
        }
        // No share takes 4096 bytes.
        assert_eq!(Path::join("/boot", &[b'x'; 5000]).len(), 4096);
        assert_eq!(Path::join("/boot", &[b'/'; 5000]).len(), 4096);
    }
}
