//! Loads the files of a boot entry into memory, ready for the hand-off.

use super::{
    Board, Failed, HandOff,
    arena::{Arena, Block},
    console::Text,
    path::Path,
    payload::{DeviceTree, KERNEL, MAX_PARTS, PACKED, Payload, Prepared, Wanted, in_list, want},
    shares::{BoardFile, Mount},
};
use crate::{
    Error,
    boot::{
        cmdline::{self, has_key_of},
        conventional,
        device_tree::{self, Chosen, Machine, Seeds},
        entry::{Base, CommandLine, Entry, Place},
        extlinux,
        image::{self, Kind},
        memory::{Range, Request, Side},
        uboot_image,
    },
};
use core::{
    ffi::CStr,
    fmt::{self, Write as _},
};
use heapless::{String, Vec};

/// Longest command line to read, in bytes; kernels accept less.
pub(super) const MAX_CMDLINE: u64 = 64 << 10;
/// Largest device tree file in bytes: arm64 kernels map 2 MiB (booting.rst, "Setup the device tree").
pub(super) const MAX_DEVICE_TREE: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// The names of these files in messages.
pub(super) const COMMAND_LINE: &str = "command line";
pub(super) const DEVICE_TREE: &str = "device tree";

/// The other places where a file was not found, for an error message.
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

/// One attempt to load an entry.
pub(super) struct Loader<'a, 'm, B: Board> {
    pub board: &'a B,
    /// The share with the files.
    pub share: &'a Mount<B>,
    /// [`Options::defaults`](crate::boot::options::Options::defaults).
    pub defaults: &'a [&'a [u8]],
    /// The prefix of paths in messages.
    pub name: &'a dyn fmt::Display,
    pub arena: Arena<'m>,
    /// [`HandOff::loaded`].
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

    /// Reports an error of the file at `path`.
    pub fn failed(&self, path: &[u8], error: impl fmt::Display) -> Failed {
        self.report_failed(path, &error)
    }

    #[inline(never)] // Called from many places.
    fn report_failed(&self, path: &[u8], error: &dyn fmt::Display) -> Failed {
        log::error!("{}{}: {error}", self.name, Text(path));
        Failed
    }

    /// Loads `entry` with `edited`, if given, as its command line, and appends `more`. Calls `loaded` with the
    /// kernel's path.
    #[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
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

    #[inline(never)]
    fn load_payload(
        &mut self,
        entry: &Entry<'m>,
        edited: Option<&'m [u8]>,
        more: &'m [u8],
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<HandOff, Failed> {
        let kind = self.find_kernel(entry, payload)?;
        // Fail early, before anything large is loaded.
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

    /// The command line of `entry`.
    #[cfg(feature = "shell")]
    #[inline(never)]
    pub fn words(mut self, entry: &Entry<'m>) -> Result<&'m [u8], Failed> {
        self.with_payload(entry, |loader, payload| {
            loader.find_kernel(entry, payload)?;
            loader.command_line_text(entry, payload)
        })
    }

    /// Calls `act` with a new payload, and closes its files afterwards.
    fn with_payload<R>(
        &mut self,
        entry: &Entry<'m>,
        act: impl FnOnce(&mut Self, &mut Payload<'a, 'm, B>) -> Result<R, Failed>,
    ) -> Result<R, Failed> {
        let payload = self.payload(entry)?;
        let result = act(self, payload);
        // The payload itself is in the arena, which never drops it.
        payload.files.prepared = None;
        payload.files.list.clear();
        result
    }

    /// A new payload in memory of the arena, since it is too large for the stack.
    #[inline(never)] // It is on the stack only during this call.
    fn payload(&mut self, entry: &Entry<'m>) -> Result<&'m mut Payload<'a, 'm, B>, Failed> {
        let kept = self.arena.keep("list of files", Payload::new());
        kept.map_err(|e| self.failed(entry.kernel, e))
    }

    /// Finds the kernel, in a file of its own or in a unified kernel image; returns its kind.
    #[inline(never)]
    fn find_kernel(
        &mut self,
        entry: &Entry<'m>,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Kind, Failed> {
        let (place, file) = self.open(&entry.base, entry.kernel)?;
        payload.path = Path::of(&place);
        payload.kernel = Range::with_size(0, file.metadata().len());
        self.add_file(place, file, payload)?;
        let kind = self.kind(payload)?;
        self.open_images(entry, kind, payload)
    }

    /// Without the feature `uki`, EFI programs are refused.
    #[cfg(not(feature = "uki"))]
    fn open_images(
        &self,
        _: &Entry<'m>,
        kind: Kind,
        payload: &Payload<'a, 'm, B>,
    ) -> Result<Kind, Failed> {
        match kind {
            Kind::Efi { .. } => Err(self.unsupported(kind, &payload.path)),
            kind => Ok(kind),
        }
    }

    /// The error for a kind of kernel that this build of the firmware does not support.
    pub fn unsupported(&self, kind: Kind, path: &[u8]) -> Failed {
        let what = format_args!("it is {kind}, and this firmware was built without support for it");
        self.failed(path, what)
    }

    /// Replaces the kernel by the one that the host has decompressed, if there is one; returns its kind.
    ///
    /// The words `nokaslr` and `no5lvl` are meant for the decompressor in the kernel. If one of them is on the
    /// command line, the decompressor is kept.
    #[inline(never)]
    fn find_prepared(&self, kind: Kind, payload: &mut Payload<'a, 'm, B>) -> Result<Kind, Failed> {
        let has_word = |word: &[u8]| {
            let parts = [payload.text, payload.more].into_iter();
            let mut parts = parts.chain(self.defaults.iter().copied());
            B::ARCHITECTURE.kernels_unpack_themselves() && parts.any(|part| has_key_of(part, word))
        };
        if !self.share.prepared || !kind.is_packed() || has_word(b"nokaslr") || has_word(b"no5lvl")
        {
            return Ok(kind);
        }
        let Range { start, .. } = payload.kernel;
        let mut name = String::new();
        // It fits: a number has at most 20 digits.
        _ = write!(
            name,
            ".bootshare-prepared-{start}-{}",
            payload.kernel.size()
        );
        let file = match payload.files.get(KERNEL).below(name.as_bytes()) {
            Ok(file) => file,
            Err(Error::Disconnected) => return Err(self.failed(&payload.path, Error::Disconnected)),
            // The server has reported the reason, or does not have this feature.
            Err(_) => return Ok(kind),
        };
        payload.kernel = Range::with_size(0, file.metadata().len());
        payload.files.prepared = Some(Prepared { name, file });
        // The initrds of a unified kernel image are still read from the original file.
        for (file, _) in &mut payload.initrds {
            if *file == KERNEL {
                *file = PACKED;
            }
        }
        self.kind(payload)
    }

    /// Opens a file of an entry at the first of its places where it exists.
    #[inline(never)]
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

    /// Adds an open file to the payload; returns its index.
    pub fn add_file(
        &self,
        place: Place<'m>,
        file: BoardFile<'a, B>,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<usize, Failed> {
        let index = payload.files.count();
        match payload.files.list.push((place, file)) {
            Ok(()) => Ok(index),
            Err(_) => Err(self.too_many_parts(&payload.path)),
        }
    }

    fn too_many_parts(&self, path: &[u8]) -> Failed {
        let what = format_args!(
            "there are more than {MAX_PARTS} initrds with those of its image; put some of them into \
             one file"
        );
        self.failed(path, what)
    }

    /// Detects the kind of the kernel by its first bytes, and checks that this machine can start it. A compressed
    /// arm64 kernel passes if the host may decompress it; it is checked again before it is loaded.
    pub fn kind(&self, payload: &mut Payload<'_, 'm, B>) -> Result<Kind, Failed> {
        let size = payload.kernel.size();
        let wanted = size.min(image::HEAD_BYTES as u64) as usize;
        _ = payload.head.resize_default(wanted); // At most its capacity.
        let file = payload.files.get(KERNEL);
        let read = file.read_at(payload.kernel.start, &mut payload.head);
        let read = read.map_err(|e| self.failed(&payload.path, e))?;
        payload.head.truncate(read);
        let kind = Kind::of(&payload.head, size).at(payload.kernel.start);
        if !self.share.prepared || !kind.is_packed_for(B::ARCHITECTURE) {
            self.check(kind, payload)?;
        }
        Ok(kind)
    }

    /// Checks that this machine can start a kernel of this kind.
    pub fn check(&self, kind: Kind, payload: &Payload<'_, 'm, B>) -> Result<(), Failed> {
        let checked = kind.check(B::ARCHITECTURE);
        checked.map_err(|e| self.failed(&payload.path, e))
    }

    #[inline(never)]
    pub fn place(&mut self, path: &[u8], request: &Request) -> Result<Block<'m>, Failed> {
        let placed = self.arena.take(request);
        let block = placed.map_err(|e| self.failed(path, e))?;
        let (what, range) = (request.what, block.range);
        log::debug!("{}: {what} at {range:?}", Text(path));
        Ok(block)
    }

    pub fn add_loaded(&mut self, start: u64, size: u64) {
        // It fits: an image or the segments of a program, and the device tree.
        _ = self.loaded.push(Range::with_size(start, size));
    }

    /// Opens the entry's initrds. They come before those of a unified kernel image, but after its microcode.
    #[inline(never)]
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
            let index = self.add_file(place, file, payload)?;
            let at = payload.before;
            payload.before += 1;
            self.add_initrd(payload, at, (index, all))?;
        }
        Ok(())
    }

    /// Inserts an initrd, a part of a file, at the position `at`.
    pub fn add_initrd(
        &self,
        payload: &mut Payload<'_, 'm, B>,
        at: usize,
        part: (usize, Range),
    ) -> Result<(), Failed> {
        let inserted = payload.initrds.insert(at, part);
        inserted.map_err(|_| self.too_many_parts(&payload.path))
    }

    /// Allocates memory for the initrds, if any, as high as possible between `min` and `max`, and registers
    /// them to be read.
    ///
    /// They are placed one after the other. The start of each is aligned to 4 bytes, with zeros as padding, as
    /// the kernel requires for a sequence of archives (buffer-format.rst).
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
            // There is no padding after the last one.
            let padding = after.len().min((part.size().wrapping_neg() % 4) as usize);
            let (padding, after) = after.split_at_mut(padding);
            padding.fill(0);
            rest = after;
        }
        Ok(Some(block.range))
    }

    /// Checks U-Boot's header of initrds that have one, and overwrites it with zeros, which the kernel skips.
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

    /// The command line: that of the entry, or if it has none that of the unified kernel image, followed by
    /// those of addons.
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

    /// Joins two lines by a space, unless one of them is empty.
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

    /// Joins lines, each followed by a space.
    fn join<'l>(
        &mut self,
        path: &[u8],
        lines: impl Iterator<Item = &'l [u8]> + Clone,
    ) -> Result<&'m mut [u8], Failed> {
        let size = lines.clone().map(|line| line.len() as u64 + 1).sum();
        let request = Request {
            side: Side::High, // Away from the kernel.
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

    /// Reads a file of at most `limit` bytes.
    #[inline(never)]
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

    /// Reads a part of a file, of at most `limit` bytes.
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
            side: Side::High, // Away from the kernel.
            ..Request::new(what, size)
        };
        let block = self.place(path, &request)?;
        let bytes = &mut block.bytes[..size as usize];
        let read = file.read_exact_at(part.start, bytes);
        read.map_err(|e| self.failed(path, e))?;
        Ok(bytes)
    }

    /// Builds the kernel's command line in memory `within` a range; returns it and its addresses.
    pub fn command_line(
        &mut self,
        payload: &Payload<'_, 'm, B>,
        limit: usize,
        within: Range,
    ) -> Result<(&'m CStr, Range), Failed> {
        let kernel = &payload.path;
        // The header of a kernel may state any limit.
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

    /// Finds the device tree for the kernel. The memory that it reserves is kept free from here on.
    fn find_device_tree(
        &mut self,
        entry: &Entry<'m>,
        payload: &Payload<'_, 'm, B>,
    ) -> Result<DeviceTree<'m>, Failed> {
        if !B::ARCHITECTURE.has_device_trees() {
            return Ok(DeviceTree::Machine);
        }
        let (place, blob): (_, &'m [u8]) = match (entry.device_tree, payload.tree) {
            (Some(name), _) => {
                let (base, what) = (&entry.base, DEVICE_TREE);
                let (place, blob) = self.small_file(base, name, what, MAX_DEVICE_TREE)?;
                (place, blob)
            }
            (None, Some(found)) => found,
            // The board keeps the memory free that the machine's own tree reserves.
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

    /// Writes a copy of the device tree for the kernel, within `window` if given; returns its address.
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
                // The machine's own tree is well-formed: the board has parsed it.
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
            // With this alignment it does not cross a multiple of any larger power of two.
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
