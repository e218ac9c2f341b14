//! A boot entry: its files loaded into memory, ready for the hand-off.

use super::{
    Board, Failed, HandOff,
    arena::{Arena, Block, is_x86},
    console::{Progress, Speed, Text},
    output::DigestText,
    shares::{BoardFile, Mount},
};
use crate::{
    Error,
    boot::{
        cmdline,
        device_tree::{self, Chosen, Machine, Seeds},
        entry::{CommandLine, Entry, MAX_INITRDS},
        image::{self, Kind},
        memory::{Range, Request, Side},
        uki::Uki,
    },
};
use core::{ffi::CStr, fmt, ops::Deref, time::Duration};
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

/// Where a kernel is: a file, or a part of one.
pub(super) struct Source<'s, B: Board> {
    pub path: Path,
    pub file: BoardFile<'s, B>,
    pub part: Range,
}

/// What goes to a kernel besides itself.
pub(super) struct Extras<'s, 'm, B: Board> {
    initrds: Vec<Initrd<'s, 'm, B>, { MAX_INITRDS + 2 }>,
    /// What the entry has it told.
    text: &'m [u8],
    /// What the firmware's own command line adds to that.
    more: &'m [u8],
    device_tree: DeviceTree<'m>,
}

/// One initrd.
struct Initrd<'s, 'm, B: Board> {
    name: &'m [u8],
    /// Open since it was asked for its size, unless it is part of the kernel's file.
    file: Option<BoardFile<'s, B>>,
    /// Which part of the file it is.
    part: Range,
}

/// A device tree as it was found.
#[derive(Clone, Copy)]
enum DeviceTree<'m> {
    /// The machine's, or none.
    Machine,
    /// The one in this file, in place of it.
    File { name: &'m [u8], blob: &'m [u8] },
}

/// Fills `bytes`. If the share gets lost on the way and can be resumed, the read goes on where
/// it was. Tells `progress` how many bytes have come.
pub(super) fn read_all<B: Board>(
    share: &Mount<B>,
    path: &[u8],
    file: &mut BoardFile<'_, B>,
    bytes: &mut [u8],
    offset: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let mut come = 0;
    loop {
        let before = come;
        let rest = &mut bytes[before..];
        let result = file.read_at_with(offset + before as u64, rest, &mut |more| {
            come = before + more as usize;
            progress(come as u64);
        });
        match result {
            Ok(size) if size < rest.len() => return Err(Error::UnexpectedEof),
            Ok(_) => return Ok(()),
            // The share was resumed while another file was read.
            Err(Error::Disconnected) if share.is_connected() => {}
            Err(error) => share.again(error)?,
        }
        file.resume(path)?;
    }
}

/// Reports what befell a file of an entry.
#[inline(never)] // Small code: it is called from many places.
pub(super) fn failed(entry: &dyn fmt::Display, path: &[u8], error: &dyn fmt::Display) -> Failed {
    log::error!("{entry}{}: {error}", Text(path));
    Failed
}

/// One attempt to load an entry.
pub(super) struct Loader<'a, 'm, B: Board> {
    pub board: &'a B,
    /// Where its files come from.
    pub share: &'a Mount<B>,
    /// What stands before the paths in its messages.
    pub name: &'a dyn fmt::Display,
    pub arena: Arena<'m>,
    /// What the hand-off names as loaded.
    pub loaded: Vec<Range, 24>,
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
    pub fn failed(&self, path: &[u8], error: impl fmt::Display) -> Failed {
        failed(self.name, path, &error)
    }

    /// Loads `entry`, which is told `edited` in place of its own words, if that is there, and `more`
    /// words as well.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    pub fn load(
        mut self,
        entry: &Entry<'m>,
        edited: Option<&[u8]>,
        more: &[u8],
    ) -> Result<HandOff, Failed> {
        let mut head = [0; image::HEAD_BYTES];
        let (mut source, head_size, kind, uki) = self.find_kernel(entry, &mut head)?;
        // Before anything large is loaded in vain.
        let mut extras = Extras {
            initrds: self.find_initrds(entry, uki.as_ref())?,
            text: match edited {
                Some(text) => text,
                None => self.command_line_text(entry, &source, uki.as_ref())?,
            },
            more,
            device_tree: self.find_device_tree(entry, &source, uki.as_ref())?,
        };
        self.load_kernel(&mut source, kind, &head[..head_size], entry, &mut extras)
    }

    /// What `entry` has its kernel told.
    #[inline(never)] // As above.
    pub fn words(mut self, entry: &Entry<'m>) -> Result<&'m [u8], Failed> {
        let mut head = [0; image::HEAD_BYTES];
        let (source, _, _, uki) = self.find_kernel(entry, &mut head)?;
        self.command_line_text(entry, &source, uki.as_ref())
    }

    /// Where the kernel is: its file, or the part of it that a unified kernel image has it in. What
    /// it is, how many bytes of it are in `head`, and what else is in the image.
    fn find_kernel(
        &self,
        entry: &Entry<'m>,
        head: &mut [u8; image::HEAD_BYTES],
    ) -> Result<(Source<'a, B>, usize, Kind, Option<Uki>), Failed> {
        let path = Path::join(entry.directory, entry.kernel);
        let file = self.open(&path)?;
        let size = file.metadata().len();
        let mut source = Source {
            path,
            file,
            part: Range::with_size(0, size),
        };
        let mut head_size = self.read_head(&source, head)?;
        let mut kind = self.kind(&source, &head[..head_size])?;
        let mut uki = None;
        if let Kind::Efi { .. } = kind {
            let parsed = Uki::parse(&head[..head_size], size);
            let parsed = parsed.map_err(|e| self.failed(&source.path, e))?;
            source.part = parsed.linux;
            uki = Some(parsed);
            head_size = self.read_head(&source, head)?;
            kind = self.kind(&source, &head[..head_size])?;
        }
        Ok((source, head_size, kind, uki))
    }

    #[inline(never)] // As above.
    fn open(&self, path: &[u8]) -> Result<BoardFile<'a, B>, Failed> {
        let file = self.share.open(path).map_err(|e| self.failed(path, e))?;
        let size = file.metadata().len();
        log::debug!("opened {}, {size} bytes", self.share.shown(path));
        Ok(file)
    }

    fn read_head(&self, source: &Source<'_, B>, head: &mut [u8]) -> Result<usize, Failed> {
        let size = source.part.size().min(head.len() as u64) as usize;
        let read = source.file.read_at(source.part.start, &mut head[..size]);
        read.map_err(|e| self.failed(&source.path, e))
    }

    /// What a kernel is, if this machine can start it.
    fn kind(&self, source: &Source<'_, B>, head: &[u8]) -> Result<Kind, Failed> {
        let kind = Kind::of(head, source.part.size());
        let checked = kind.check(B::ARCHITECTURE);
        checked.map_err(|e| self.failed(&source.path, e))?;
        Ok(kind)
    }

    #[inline(never)] // As above.
    pub fn place(&mut self, path: &[u8], request: &Request) -> Result<Block<'m>, Failed> {
        let placed = self.arena.take(request);
        let block = placed.map_err(|e| self.failed(path, e))?;
        let (what, range) = (request.what, block.range);
        log::debug!("{}: {what} at {range:?}", Text(path));
        Ok(block)
    }

    pub fn add_loaded(&mut self, start: u64, size: u64) {
        // At most an image, or the segments of one, the initrds as one, and what tells of them.
        _ = self.loaded.push(Range::with_size(start, size));
    }

    /// Fills `bytes` from `offset` of `file` on, and says so. There are none where there is too
    /// little room.
    pub fn read(
        &self,
        path: &[u8],
        file: &mut BoardFile<'_, B>,
        bytes: Option<&mut [u8]>,
        offset: u64,
    ) -> Result<(), Failed> {
        let bytes = bytes.ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let size = bytes.len() as u64;
        let mut progress = Progress::<B>::new(self.board.clock(), size);
        let mut tell = |come| progress.update(come);
        let result = read_all(self.share, path, file, bytes, offset, &mut tell);
        let took = progress.finish();
        result.map_err(|e| self.failed(path, e))?;
        // What was written to while it was read may be neither the old nor the new file.
        if file.has_changed().map_err(|e| self.failed(path, e))? {
            return Err(self.failed(path, Error::Changed));
        }
        report_loaded(&self.share.shown(path), size, took, &"");
        trace_digest(path, bytes, offset);
        Ok(())
    }

    /// The initrds with their sizes: those of a unified kernel image, then the entry's.
    fn find_initrds(
        &self,
        entry: &Entry<'m>,
        uki: Option<&Uki>,
    ) -> Result<Vec<Initrd<'a, 'm, B>, { MAX_INITRDS + 2 }>, Failed> {
        let parts = uki.map_or([None; 2], |uki| [uki.ucode, uki.initrd]);
        let sections = parts.into_iter().flatten().map(|part| Initrd {
            name: entry.kernel,
            file: None,
            part,
        });
        let mut initrds: Vec<_, { MAX_INITRDS + 2 }> = sections.collect();
        for name in &entry.initrds {
            let path = Path::join(entry.directory, name);
            let file = self.open(&path)?;
            let size = file.metadata().len();
            if size == 0 {
                return Err(self.failed(&path, "it is empty; put an initramfs there or remove it"));
            }
            // An entry has `MAX_INITRDS` at most.
            _ = initrds.push(Initrd {
                name,
                file: Some(file),
                part: Range::with_size(0, size),
            });
        }
        Ok(initrds)
    }

    /// Loads the initrds, if there are any, as high as they may lie from `min` up to `max`.
    ///
    /// They lie one behind the other, each start aligned to 4 bytes with zeros before it, as the
    /// kernel wants a sequence of archives (buffer-format.rst).
    pub fn initrds(
        &mut self,
        entry: &Entry<'_>,
        extras: &mut Extras<'_, '_, B>,
        min: u64,
        max: u64,
    ) -> Result<Option<Range>, Failed> {
        let initrds = &mut extras.initrds;
        let total = initrds.iter().fold(0_u64, |total, initrd| {
            let start = total.checked_next_multiple_of(4).unwrap_or(u64::MAX);
            start.saturating_add(initrd.part.size())
        });
        let Some(first) = initrds.first() else {
            return Ok(None);
        };
        let block = self.place(
            &Path::join(entry.directory, first.name),
            &Request {
                align: PAGE,
                min: min.max(1 << 20),
                max,
                side: Side::High,
                ..Request::new("initrd", total)
            },
        )?;
        let mut rest = block.bytes;
        for initrd in initrds {
            let path = Path::join(entry.directory, initrd.name);
            let size = initrd.part.size();
            let (bytes, after) = rest.split_at_mut(size as usize);
            let start = initrd.part.start;
            match &mut initrd.file {
                Some(file) => self.read(&path, file, Some(bytes), start)?,
                None => self.read(&path, &mut self.open(&path)?, Some(bytes), start)?,
            }
            // There is no padding behind the last one.
            let padding = after.len().min((size.wrapping_neg() % 4) as usize);
            let (padding, after) = after.split_at_mut(padding);
            padding.fill(0);
            rest = after;
        }
        self.add_loaded(block.range.start, total);
        Ok(Some(block.range))
    }

    /// What the entry has the kernel told: what is in a unified kernel image, then its own.
    fn command_line_text(
        &mut self,
        entry: &Entry<'m>,
        source: &Source<'_, B>,
        uki: Option<&Uki>,
    ) -> Result<&'m [u8], Failed> {
        const WHAT: &str = "command line";
        let inner = match uki.and_then(|uki| uki.cmdline) {
            Some(part) => self.small_part(&source.path, &source.file, part, WHAT, MAX_CMDLINE)?,
            None => b"",
        };
        // The section may end in NULs.
        let inner = inner.split(|&byte| byte == 0).next().unwrap_or_default();
        let own = match entry.command_line {
            CommandLine::None => b"",
            CommandLine::Text(text) => text,
            CommandLine::Lines(lines) => self.join(&source.path, lines)?,
            CommandLine::File(name) => {
                let path = Path::join(entry.directory, name);
                self.small_file(&path, WHAT, MAX_CMDLINE)?
            }
        };
        if inner.is_empty() {
            return Ok(own);
        }
        self.join(&source.path, [inner, own].into_iter())
    }

    /// The lines with a space behind each.
    fn join<'l>(
        &mut self,
        path: &[u8],
        lines: impl Iterator<Item = &'l [u8]> + Clone,
    ) -> Result<&'m [u8], Failed> {
        let size = lines.clone().map(|line| line.len() as u64 + 1).sum();
        let request = Request {
            side: Side::High, // Out of the kernel's way.
            ..Request::new("command line", size)
        };
        let text = self.place(path, &request)?.bytes;
        text.fill(b' ');
        let mut end = 0;
        for line in lines {
            text[end..][..line.len()].copy_from_slice(line);
            end += line.len() + 1;
        }
        Ok(text)
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
        let all = Range::with_size(0, file.metadata().len());
        self.small_part(path, &file, all, what, limit)
    }

    /// A part of a file, of at most `limit` bytes.
    fn small_part(
        &mut self,
        path: &[u8],
        file: &BoardFile<'_, B>,
        part: Range,
        what: &'static str,
        limit: u64,
    ) -> Result<&'m [u8], Failed> {
        let size = part.size();
        if size > limit {
            return Err(self.failed(path, format_args!("it is too large for a {what}")));
        }
        if size == 0 {
            return Ok(b"");
        }
        let request = Request {
            align: device_tree::ALIGNMENT,
            side: Side::High, // Out of the kernel's way.
            ..Request::new(what, size)
        };
        let block = self.place(path, &request)?;
        let bytes = &mut block.bytes[..size as usize];
        let read = file.read_exact_at(part.start, bytes);
        read.map_err(|e| self.failed(path, e))?;
        Ok(bytes)
    }

    /// The kernel's command line, and where it lies.
    pub fn command_line(
        &mut self,
        kernel: &[u8],
        limit: usize,
        max: u64,
        extras: &Extras<'_, '_, B>,
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
        let line = cmdline::build(block.bytes, limit, &words, extras.text, extras.more)
            .map_err(|e| self.failed(kernel, e))?;
        for word in &words {
            if contains_word(line.to_bytes(), word.as_bytes()) {
                log::info!("added {word} to the command line");
            }
        }
        log::debug!("command line: {}", Text(line.to_bytes()));
        Ok((line, block.range))
    }

    /// The device tree for the kernel, as it was found. What it reserves is kept free from here on.
    fn find_device_tree(
        &mut self,
        entry: &Entry<'m>,
        source: &Source<'_, B>,
        uki: Option<&Uki>,
    ) -> Result<DeviceTree<'m>, Failed> {
        const WHAT: &str = "device tree";
        if is_x86::<B>() {
            return Ok(DeviceTree::Machine);
        }
        let inner = uki.and_then(|uki| uki.device_tree);
        let (name, blob) = match (entry.device_tree, inner) {
            (Some(name), _) => {
                let path = Path::join(entry.directory, name);
                (name, self.small_file(&path, WHAT, MAX_DEVICE_TREE)?)
            }
            (None, Some(part)) => {
                let (path, file) = (&source.path, &source.file);
                let blob = self.small_part(path, file, part, WHAT, MAX_DEVICE_TREE)?;
                (entry.kernel, blob)
            }
            // The board keeps free what the machine's own reserves.
            (None, None) => return Ok(DeviceTree::Machine),
        };
        let reserved = device_tree::reservations(blob)
            .map_err(|e| self.failed(&Path::join(entry.directory, name), e))?;
        for range in reserved {
            self.arena.occupy(range);
        }
        Ok(DeviceTree::File { name, blob })
    }

    /// A copy of the device tree, for the kernel; its address.
    pub fn device_tree(
        &mut self,
        entry: &Entry<'_>,
        extras: &Extras<'_, '_, B>,
        command_line: &CStr,
        initrd: Option<Range>,
    ) -> Result<u64, Failed> {
        let own = self.board.device_tree();
        let missing = || {
            log::error!(
                "device tree: the machine has none, and an arm64 kernel needs one; \
                 name a file with devicetree in a boot entry"
            );
            Failed
        };
        let (path, blob, machine) = match extras.device_tree {
            DeviceTree::Machine => (None, own.ok_or_else(missing)?, None),
            DeviceTree::File { name, blob } => {
                // The board has read its own tree before: it is a well-formed one.
                let seeds = own.and_then(|own| Seeds::of(own).ok()).unwrap_or_default();
                let memory = self.board.memory_map();
                let path = Path::join(entry.directory, name);
                (Some(path), blob, Some(Machine { memory, seeds }))
            }
        };
        let chosen = &Chosen {
            command_line,
            initrd,
            machine,
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

/// Says what was loaded, and `how`.
pub(super) fn report_loaded(
    path: &dyn fmt::Display,
    size: u64,
    took: Duration,
    how: &dyn fmt::Display,
) {
    log::info!("loaded {path}, {}{how}", Speed { bytes: size, took });
}

/// Only on request: the guest touches none of what it loads.
pub(super) fn trace_digest(path: &[u8], bytes: &[u8], offset: u64) {
    if log::log_enabled!(log::Level::Trace) {
        let digest = DigestText::of(bytes);
        log::trace!("sha256 {digest} {} from {offset}", Text(path));
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
