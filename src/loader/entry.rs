//! A boot entry: its files loaded into memory, ready for the hand-off.

use super::{
    Board, Failed, HandOff,
    arena::{Arena, Block, is_x86},
    console::Text,
    fetch::{Wanted, WantedList, want},
    shares::{BoardFile, Mount},
};
use crate::{
    Error,
    boot::{
        cmdline::{self, has_key_of},
        conventional,
        device_tree::{self, Chosen, Machine, Seeds},
        entry::{Base, CommandLine, Entry, MAX_INITRDS, Place},
        extlinux,
        image::{self, Kind},
        memory::{Range, Request, Side},
        uboot_image,
    },
};
use core::{
    ffi::CStr,
    fmt::{self, Write as _},
    ops::Deref,
};
use heapless::{String, Vec};

/// Longest command line that is read, in bytes; kernels take less.
const MAX_CMDLINE: u64 = 64 << 10;
/// Largest device tree file, in bytes: arm64 kernels map 2 MiB (booting.rst, "Setup the device
/// tree").
pub(super) const MAX_DEVICE_TREE: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// What one is called in messages.
const COMMAND_LINE: &str = "command line";
pub(super) const DEVICE_TREE: &str = "device tree";

/// A path from the share's root on. It is cut off where no share takes it any more, so that what
/// is too long stays so.
#[derive(Clone)]
pub(super) struct Path(Vec<u8, 4096>);

impl Path {
    /// `name` in `directory`, unless it starts at the root itself.
    pub fn join(directory: &(impl AsRef<[u8]> + ?Sized), name: &[u8]) -> Self {
        Self::of_parts(directory.as_ref(), name)
    }

    /// A place where a file may be.
    pub fn of(place: &Place<'_>) -> Self {
        Self::join(place.directory, place.name)
    }

    /// Appends a number behind a mark.
    pub fn push_number(&mut self, mark: u8, number: u32) {
        let mut digits: String<11> = String::new();
        _ = write!(digits, "{}{number}", char::from(mark)); // There is room.
        let room = self.0.capacity() - self.0.len();
        _ = self
            .0
            .extend_from_slice(&digits.as_bytes()[..digits.len().min(room)]);
    }

    #[inline(never)] // It is long, and wanted in many places.
    fn of_parts(directory: &[u8], name: &[u8]) -> Self {
        let directory = directory.strip_suffix(b"/").unwrap_or(directory);
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

/// Where a file was looked for as well.
struct Others<'a>(&'a [Place<'a>]);

impl fmt::Display for Others<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, place) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { ", nor is there " } else { ", " })?;
            Path::of(place).fmt(f)?;
        }
        Ok(())
    }
}

/// The most initrds of a payload, and the most files: an entry's initrds, and one or two of an image.
const MAX_PARTS: usize = MAX_INITRDS + 2;

/// The open files of a payload: the kernel's, then those of the initrds, the first of which an image may name.
pub(super) struct Files<'s, 'm, B: Board> {
    /// Where each was found.
    pub list: Vec<(Place<'m>, BoardFile<'s, B>), MAX_PARTS>,
    /// What is read in place of the kernel's.
    pub prepared: Option<Prepared<'s, B>>,
}

/// A kernel that the host has unpacked.
pub(super) struct Prepared<'s, B: Board> {
    /// Below the file that it was packed in.
    name: String<64>,
    file: BoardFile<'s, B>,
}

impl<'s, 'm, B: Board> Files<'s, 'm, B> {
    /// The path of the file with this place in the list.
    pub fn path(&self, index: usize) -> Path {
        Path::of(&self.list[in_list(index)].0)
    }

    pub fn get(&self, index: usize) -> &BoardFile<'s, B> {
        match &self.prepared {
            Some(prepared) if index == KERNEL => &prepared.file,
            _ => &self.list[in_list(index)].1,
        }
    }

    /// Opens a file of a share again that was resumed.
    pub fn resume(&mut self, index: usize) -> Result<(), Error> {
        let path = self.path(index);
        let file = &mut self.list[index].1;
        file.resume(&path)?;
        match &mut self.prepared {
            Some(prepared) if index == KERNEL => {
                let again = file.below(prepared.name.as_bytes())?;
                if again.metadata() != prepared.file.metadata() {
                    return Err(Error::Changed);
                }
                prepared.file = again;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub fn count(&self) -> usize {
        self.list.len()
    }
}

/// A kernel and what goes with it, as found on the share, and what of it is to be read where.
pub(super) struct Payload<'s, 'm, B: Board> {
    pub files: Files<'s, 'm, B>,
    /// The kernel's path.
    pub path: Path,
    /// Which part of its file the kernel is.
    pub kernel: Range,
    /// Its first bytes.
    pub head: Vec<u8, { image::HEAD_BYTES }>,
    /// The command line in a unified kernel image.
    pub inner: &'m [u8],
    /// The words of its addons.
    pub addons: &'m [u8],
    /// The device tree in one, and its file.
    pub tree: Option<(Place<'m>, &'m [u8])>,
    /// Which part of which file each initrd is.
    pub initrds: Vec<(usize, Range), MAX_PARTS>,
    /// How many of them come before the entry's own.
    pub before: usize,
    /// What is to be read, once all has its place.
    pub wanted: WantedList<'m>,
    /// What the entry has it told.
    text: &'m [u8],
    /// What the firmware's own command line adds to that.
    more: &'m [u8],
    device_tree: DeviceTree<'m>,
}

/// The kernel's place in the list of files.
pub(super) const KERNEL: usize = 0;

/// The same file, when what was packed in it is read in place of it.
pub(super) const PACKED: usize = usize::MAX;

/// Where in the list a file is.
pub(super) const fn in_list(index: usize) -> usize {
    if index == PACKED { KERNEL } else { index }
}

/// A device tree as it was found.
#[derive(Clone, Copy)]
enum DeviceTree<'m> {
    /// The machine's, or none.
    Machine,
    /// The one in this file, in place of it.
    File { place: Place<'m>, blob: &'m [u8] },
}

/// One attempt to load an entry.
pub(super) struct Loader<'a, 'm, B: Board> {
    pub board: &'a B,
    /// Where its files come from.
    pub share: &'a Mount<B>,
    /// Groups of words for payloads whose command line has none like them:
    /// [`Options::defaults`](crate::boot::options::Options::defaults).
    pub defaults: &'a [&'a [u8]],
    /// What stands before the paths in its messages.
    pub name: &'a dyn fmt::Display,
    pub arena: Arena<'m>,
    /// What the hand-off names as loaded.
    pub loaded: Vec<Range, 24>,
}

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    pub fn new(
        board: &'a B,
        share: &'a Mount<B>,
        name: &'a dyn fmt::Display,
        defaults: &'a [&'a [u8]],
        arena: Arena<'m>,
    ) -> Self {
        Self {
            board,
            share,
            name,
            defaults,
            arena,
            loaded: Vec::new(),
        }
    }

    /// Reports `error` of the file at `path`.
    pub fn failed(&self, path: &[u8], error: impl fmt::Display) -> Failed {
        self.report_failed(path, &error)
    }

    #[inline(never)] // Small code: it is called from many places.
    fn report_failed(&self, path: &[u8], error: &dyn fmt::Display) -> Failed {
        log::error!("{}{}: {error}", self.name, Text(path));
        Failed
    }

    /// Loads `entry`, which is told `edited` in place of its own words, if that is there, and `more`
    /// words as well. `loaded` gets the kernel's path.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    pub fn load(
        mut self,
        entry: &Entry<'m>,
        edited: Option<&'m [u8]>,
        more: &'m [u8],
        loaded: &mut dyn FnMut(&Path),
    ) -> Result<HandOff, Failed> {
        self.with_payload(entry, |loader, payload| {
            let hand_off = loader.load_payload(entry, edited, more, payload)?;
            loaded(&payload.path);
            Ok(hand_off)
        })
    }

    #[inline(never)] // As above.
    fn load_payload(
        &mut self,
        entry: &Entry<'m>,
        edited: Option<&'m [u8]>,
        more: &'m [u8],
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<HandOff, Failed> {
        let kind = self.find_kernel(entry, payload)?;
        // Before anything large is loaded in vain.
        self.find_initrds(entry, payload)?;
        payload.text = match edited {
            Some(text) => text,
            None => self.command_line_text(entry, payload)?,
        };
        payload.more = more;
        payload.device_tree = self.find_device_tree(entry, payload)?;
        let kind = self.find_prepared(kind, payload)?;
        let hand_off = self.load_kernel(kind, payload)?;
        self.unwrap_initrds(payload)?;
        Ok(hand_off)
    }

    /// What `entry` has its kernel told.
    #[inline(never)] // As above.
    pub fn words(mut self, entry: &Entry<'m>) -> Result<&'m [u8], Failed> {
        self.with_payload(entry, |loader, payload| {
            loader.find_kernel(entry, payload)?;
            loader.command_line_text(entry, payload)
        })
    }

    /// Does something with a payload of which nothing was found yet, and closes its files.
    fn with_payload<R>(
        &mut self,
        entry: &Entry<'m>,
        act: impl FnOnce(&mut Self, &mut Payload<'a, 'm, B>) -> Result<R, Failed>,
    ) -> Result<R, Failed> {
        let payload = self.payload(entry)?;
        let result = act(self, payload);
        // What the arena keeps is never dropped.
        payload.files.prepared = None;
        payload.files.list.clear();
        result
    }

    /// Nothing yet, in memory of the arena: it is too large for the stack.
    #[inline(never)] // So that it is there for a moment only.
    fn payload(&mut self, entry: &Entry<'m>) -> Result<&'m mut Payload<'a, 'm, B>, Failed> {
        let payload = Payload {
            files: Files {
                list: Vec::new(),
                prepared: None,
            },
            path: Path::join("", b""),
            kernel: Range::with_size(0, 0),
            head: Vec::new(),
            inner: b"",
            addons: b"",
            tree: None,
            initrds: Vec::new(),
            before: 0,
            wanted: Vec::new(),
            text: b"",
            more: b"",
            device_tree: DeviceTree::Machine,
        };
        let kept = self.arena.keep("list of files", payload);
        kept.map_err(|e| self.failed(entry.kernel, e))
    }

    /// Where the kernel is: its file, or the part of it that a unified kernel image has it in; what
    /// it is.
    #[inline(never)] // As above.
    fn find_kernel(
        &mut self,
        entry: &Entry<'m>,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Kind, Failed> {
        let size = self.add_file(&entry.base, entry.kernel, payload)?;
        payload.path = payload.files.path(KERNEL);
        payload.kernel = Range::with_size(0, size);
        let kind = self.kind(payload)?;
        self.open_images(entry, kind, payload)
    }

    /// Takes the kernel as the host has unpacked it, if it has; what it is then.
    ///
    /// Not for a kernel that is told what the program around it would heed: where it shall not lie, and
    /// with how many levels of page tables.
    #[inline(never)] // As above.
    fn find_prepared(&self, kind: Kind, payload: &mut Payload<'a, 'm, B>) -> Result<Kind, Failed> {
        let is_told = |word: &[u8]| {
            let parts = [payload.text, payload.more].into_iter();
            let mut parts = parts.chain(self.defaults.iter().copied());
            is_x86::<B>() && parts.any(|part| has_key_of(part, word))
        };
        if !self.share.prepared || !kind.is_packed() || is_told(b"nokaslr") || is_told(b"no5lvl") {
            return Ok(kind);
        }
        let Range { start, .. } = payload.kernel;
        let mut name = String::new();
        // There is room for two numbers.
        _ = write!(
            name,
            ".bootshare-prepared-{start}-{}",
            payload.kernel.size()
        );
        let file = match payload.files.get(KERNEL).below(name.as_bytes()) {
            Ok(file) => file,
            Err(Error::Disconnected) => return Err(self.failed(&payload.path, Error::Disconnected)),
            // The server has said why, or is another one.
            Err(_) => return Ok(kind),
        };
        payload.kernel = Range::with_size(0, file.metadata().len());
        payload.files.prepared = Some(Prepared { name, file });
        // What else is in a unified kernel image.
        for (file, _) in &mut payload.initrds {
            if *file == KERNEL {
                *file = PACKED;
            }
        }
        self.kind(payload)
    }

    /// Opens a file of an entry, where the first of its places has it.
    #[inline(never)] // As above.
    pub fn open(
        &self,
        base: &Base<'m>,
        name: &'m [u8],
    ) -> Result<(Place<'m>, BoardFile<'a, B>), Failed> {
        let places = base.places(name);
        let mut why = Error::NotFound;
        for (index, place) in places.iter().enumerate() {
            let path = Path::of(place);
            match self.share.open(&path) {
                Ok(file) => {
                    let size = file.metadata().len();
                    log::debug!("opened {}, {size} bytes", self.share.shown(&path));
                    return Ok((*place, file));
                }
                Err(error @ (Error::NotFound | Error::NotADirectory)) => {
                    why = if index == 0 { error } else { why };
                }
                Err(error) => return Err(self.failed(&path, error)),
            }
        }
        let first = places.first().map(Path::of);
        let first: &[u8] = first.as_deref().unwrap_or(name);
        let others = Others(places.get(1..).unwrap_or_default());
        Err(self.failed(first, format_args!("{why}{others}")))
    }

    /// Opens another file of the payload; its size.
    fn add_file(
        &self,
        base: &Base<'m>,
        name: &'m [u8],
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<u64, Failed> {
        let (place, file) = self.open(base, name)?;
        let size = file.metadata().len();
        // There is room for the kernel and as many initrds as an entry has.
        _ = payload.files.list.push((place, file));
        Ok(size)
    }

    /// What the kernel is, by its first bytes, if this machine can start it.
    pub fn kind(&self, payload: &mut Payload<'_, 'm, B>) -> Result<Kind, Failed> {
        let size = payload.kernel.size();
        let wanted = size.min(image::HEAD_BYTES as u64) as usize;
        _ = payload.head.resize_default(wanted); // It has room.
        let file = payload.files.get(KERNEL);
        let read = file.read_at(payload.kernel.start, &mut payload.head);
        let read = read.map_err(|e| self.failed(&payload.path, e))?;
        payload.head.truncate(read);
        let kind = Kind::of(&payload.head, size).at(payload.kernel.start);
        let checked = kind.check(B::ARCHITECTURE);
        checked.map_err(|e| self.failed(&payload.path, e))?;
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

    /// Finds the entry's initrds. Those of a unified kernel image come after them, but for microcode.
    #[inline(never)] // As above.
    fn find_initrds(
        &self,
        entry: &Entry<'m>,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        for &name in &entry.initrds {
            let (place, file) = self.open(&entry.base, name)?;
            let all = Range::with_size(0, file.metadata().len());
            if all.size() == 0 {
                let what = "it is empty; put an initramfs there or remove it";
                return Err(self.failed(&Path::of(&place), what));
            }
            let index = payload.files.count();
            let is_full = payload.files.list.push((place, file)).is_err();
            let at = payload.before;
            payload.before += 1;
            self.add_initrd(payload, at, (index, all), is_full)?;
        }
        Ok(())
    }

    /// Puts this part of that file before the other initrds from there on.
    pub fn add_initrd(
        &self,
        payload: &mut Payload<'_, 'm, B>,
        at: usize,
        part: (usize, Range),
        is_full: bool,
    ) -> Result<(), Failed> {
        if is_full || payload.initrds.insert(at, part).is_err() {
            let what = format_args!(
                "there are more than {MAX_PARTS} initrds with those of its image; put some of them \
                 into one file"
            );
            return Err(self.failed(&payload.path, what));
        }
        Ok(())
    }

    /// Finds a place for the initrds, if there are any, as high as they may lie from `min` up to
    /// `max`, and wants them there.
    ///
    /// They lie one behind the other, each start aligned to 4 bytes with zeros before it, as the
    /// kernel wants a sequence of archives (buffer-format.rst).
    pub fn place_initrds(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
        min: u64,
        max: u64,
    ) -> Result<Option<Range>, Failed> {
        let total = payload.initrds.iter().fold(0_u64, |total, (_, part)| {
            let start = total.checked_next_multiple_of(4).unwrap_or(u64::MAX);
            start.saturating_add(part.size())
        });
        let Some(&(first, _)) = payload.initrds.first() else {
            return Ok(None);
        };
        let block = self.place(
            &payload.files.path(first),
            &Request {
                align: PAGE,
                min: min.max(1 << 20),
                max,
                side: Side::High,
                ..Request::new("initrd", total)
            },
        )?;
        let mut rest = block.bytes;
        for (file, part) in &payload.initrds {
            let (bytes, after) = rest.split_at_mut(part.size() as usize);
            want(&mut payload.wanted, *file, part.start, bytes);
            // There is no padding behind the last one.
            let padding = after.len().min((part.size().wrapping_neg() % 4) as usize);
            let (padding, after) = after.split_at_mut(padding);
            padding.fill(0);
            rest = after;
        }
        Ok(Some(block.range))
    }

    /// Takes U-Boot's header off the initrds that have one. Zeros take its place: the kernel skips them
    /// between archives.
    fn unwrap_initrds(&self, payload: &mut Payload<'_, 'm, B>) -> Result<(), Failed> {
        let Payload { wanted, files, .. } = payload;
        for Wanted { file, bytes, .. } in wanted {
            if in_list(*file) == KERNEL || !uboot_image::has_magic(bytes) {
                continue;
            }
            uboot_image::initrd(bytes).map_err(|e| self.failed(&files.path(*file), e))?;
            bytes[..uboot_image::HEADER_BYTES].fill(0);
        }
        Ok(())
    }

    /// What the entry has the kernel told: its own words, else those in a unified kernel image, and those
    /// of addons.
    fn command_line_text(
        &mut self,
        entry: &Entry<'m>,
        payload: &Payload<'_, 'm, B>,
    ) -> Result<&'m [u8], Failed> {
        const WHAT: &str = COMMAND_LINE;
        let path = &payload.path;
        let own: &[u8] = match entry.command_line {
            CommandLine::None => &[],
            CommandLine::Lines(lines) => self.join(path, lines)?,
            CommandLine::Label(parts) => {
                let line = self.join(path, parts.into_iter())?;
                let mut name = [0; 32];
                let (size, removed) = extlinux::remove_variables(line, &mut name);
                if let Some(removed) = removed {
                    log::warn!(
                        "{}its command line has ${{{}}}, a variable of U-Boot: it is empty here",
                        self.name,
                        Text(removed)
                    );
                }
                &line[..size]
            }
            CommandLine::File(name) => {
                let (_, text) = self.small_file(&entry.base, name, WHAT, MAX_CMDLINE)?;
                let size = conventional::command_line(text);
                &text[..size]
            }
        };
        let own = match own.trim_ascii() {
            b"" => payload.inner,
            own => own,
        };
        self.join_two(path, own, payload.addons)
    }

    /// The command line in a unified kernel image.
    pub fn inner_command_line(
        &mut self,
        path: &[u8],
        image: &BoardFile<'_, B>,
        part: Range,
    ) -> Result<&'m [u8], Failed> {
        let text = self.small_part(path, image, part, COMMAND_LINE, MAX_CMDLINE)?;
        // The section may end in NULs.
        Ok(text.split(|&byte| byte == 0).next().unwrap_or_default())
    }

    /// Both lines with a space between them, unless one is empty.
    pub fn join_two(
        &mut self,
        path: &[u8],
        first: &'m [u8],
        second: &'m [u8],
    ) -> Result<&'m [u8], Failed> {
        match (first.trim_ascii(), second.trim_ascii()) {
            (line, b"") | (b"", line) => Ok(line),
            (first, second) => Ok(self.join(path, [first, second].into_iter())?),
        }
    }

    /// The lines with a space behind each.
    fn join<'l>(
        &mut self,
        path: &[u8],
        lines: impl Iterator<Item = &'l [u8]> + Clone,
    ) -> Result<&'m mut [u8], Failed> {
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
        base: &Base<'m>,
        name: &'m [u8],
        what: &'static str,
        limit: u64,
    ) -> Result<(Place<'m>, &'m mut [u8]), Failed> {
        let (place, file) = self.open(base, name)?;
        let all = Range::with_size(0, file.metadata().len());
        let bytes = self.small_part(&Path::of(&place), &file, all, what, limit)?;
        Ok((place, bytes))
    }

    /// A part of a file, of at most `limit` bytes.
    pub fn small_part(
        &mut self,
        path: &[u8],
        file: &BoardFile<'_, B>,
        part: Range,
        what: &'static str,
        limit: u64,
    ) -> Result<&'m mut [u8], Failed> {
        let size = part.size();
        if size > limit {
            return Err(self.failed(path, format_args!("it is too large for a {what}")));
        }
        if size == 0 {
            return Ok(&mut []);
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

    /// The kernel's command line, and where it lies: somewhere `within`.
    pub fn command_line(
        &mut self,
        payload: &Payload<'_, 'm, B>,
        limit: usize,
        within: Range,
    ) -> Result<(&'m CStr, Range), Failed> {
        let kernel = &payload.path;
        // A kernel may claim to take any length.
        let limit = limit.min(MAX_CMDLINE as usize);
        let request = Request {
            align: PAGE,
            min: within.start,
            max: within.end,
            ..Request::new("command line", limit as u64 + 1)
        };
        let block = self.place(kernel, &request)?;
        let given = [payload.text, payload.more];
        let is_given = |word: &[u8]| given.iter().any(|line| has_key_of(line, word));
        let mut words = self.board.payload_words();
        words.retain(|word| !is_given(word.as_bytes()));
        for group in self.defaults {
            if cmdline::words(group).next().is_some_and(is_given) {
                continue;
            }
            for word in cmdline::words(group) {
                let word = str::from_utf8(word).unwrap_or_default();
                let added = String::try_from(word).is_ok_and(|word| words.push(word).is_ok());
                if !added {
                    log::warn!("{word} is not added to the command line: too many words are");
                }
            }
        }
        let line = cmdline::build(block.bytes, limit, &words, payload.text, payload.more)
            .map_err(|e| self.failed(kernel, e))?;
        for word in &words {
            log::info!("added {word} to the command line");
        }
        log::debug!("command line: {}", Text(line.to_bytes()));
        Ok((line, block.range))
    }

    /// The device tree for the kernel, as it was found. What it reserves is kept free from here on.
    fn find_device_tree(
        &mut self,
        entry: &Entry<'m>,
        payload: &Payload<'_, 'm, B>,
    ) -> Result<DeviceTree<'m>, Failed> {
        if is_x86::<B>() {
            return Ok(DeviceTree::Machine);
        }
        let (place, blob): (_, &'m [u8]) = match (entry.device_tree, payload.tree) {
            (Some(name), _) => {
                let (base, what) = (&entry.base, DEVICE_TREE);
                let (place, blob) = self.small_file(base, name, what, MAX_DEVICE_TREE)?;
                (place, blob)
            }
            (None, Some(found)) => found,
            // The board keeps free what the machine's own reserves.
            (None, None) => return Ok(DeviceTree::Machine),
        };
        let path = Path::of(&place);
        if let Some(own) = self.board.device_tree()
            && let Some(other) = device_tree::Other::of(blob, own)
        {
            log::warn!("{}{}: {other}", self.name, Text(&path));
            return Ok(DeviceTree::Machine);
        }
        let reserved = device_tree::reservations(blob).map_err(|e| self.failed(&path, e))?;
        for range in reserved {
            self.arena.occupy(range);
        }
        Ok(DeviceTree::File { place, blob })
    }

    /// A copy of the device tree, for the kernel, in that window if there is one; its address.
    pub fn device_tree(
        &mut self,
        payload: &Payload<'_, 'm, B>,
        command_line: &CStr,
        initrd: Option<Range>,
        window: Option<Range>,
    ) -> Result<u64, Failed> {
        let own = self.board.device_tree();
        let missing = || {
            log::error!(
                "device tree: the machine has none, and an arm64 kernel needs one; \
                 name a file with devicetree in a boot entry"
            );
            Failed
        };
        let (path, blob, machine) = match payload.device_tree {
            DeviceTree::Machine => (None, own.ok_or_else(missing)?, None),
            DeviceTree::File { place, blob } => {
                // The board has read its own tree before: it is a well-formed one.
                let seeds = own.and_then(|own| Seeds::of(own).ok()).unwrap_or_default();
                let memory = self.board.memory_map();
                (
                    Some(Path::of(&place)),
                    blob,
                    Some(Machine { memory, seeds }),
                )
            }
        };
        let chosen = &Chosen {
            command_line,
            initrd,
            machine,
        };
        let name: &[u8] = path.as_deref().unwrap_or(b"device tree");
        let size = device_tree::updated_bytes(blob, chosen).map_err(|e| self.failed(name, e))?;
        let request = match window {
            None => Request {
                align: device_tree::ALIGNMENT,
                ..Request::new("device tree", size as u64)
            },
            // So aligned it does not cross a larger power of two.
            Some(window) => Request {
                align: (size as u64).next_power_of_two(),
                min: window.start,
                max: window.end,
                ..Request::new("device tree for Linux before 4.4", size as u64)
            },
        };
        let block = self.place(name, &request)?;
        device_tree::update(blob, chosen, block.bytes).map_err(|e| self.failed(name, e))?;
        _ = self.loaded.push(block.range);
        Ok(block.range.start)
    }
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
