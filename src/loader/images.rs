//! Unified kernel images: their sections and addons become parts of the payload, as in systemd-stub(7).

use super::{
    Board, Failed,
    console::Text,
    load::{COMMAND_LINE, DEVICE_TREE, Loader, MAX_CMDLINE, MAX_DEVICE_TREE},
    names::{List, Names},
    path::Path,
    payload::{KERNEL, Payload},
    sections::image_sections,
    shares::BoardFile,
    thin::root_of,
};
use crate::{
    Error,
    boot::{
        bls::{self, FileName},
        device_tree,
        entry::{Entry, Place},
        image::{self, Kind},
        memory::{Range, Request, Side},
        uki::{Scan, Uki, UkiError},
    },
};
use core::fmt;

/// Deepest nesting of images. Ubuntu has a kernel with a stub of its own in a signed image.
const MAX_LEVELS: u32 = 2;
/// The directory with files for all images, relative to the root of their file system.
const LOADER: &[u8] = b"/loader";
/// The directory of addons in it.
const ADDONS: &str = "addons";
/// The warning for files that systemd-stub would pass to the system in an initrd.
const NOT_USED: &str = "credentials and extensions are not used, only addons (.addon.efi)";
/// Memory in bytes for the names in a directory of addons: enough for about 1,000.
const NAMES_BYTES: u64 = 64 << 10;
/// Longest `.uname`, in bytes.
const MAX_RELEASE: u64 = 256;

/// Why an addon is not used.
enum Left {
    /// It is not a valid addon.
    Broken(UkiError),
    /// It is for this other architecture.
    Foreign(&'static [u8]),
    /// Its `.uname` differs from that of the image.
    OtherKernel,
    /// It has no section that is used.
    Empty,
    /// It is a directory or the like.
    NoFile(Error),
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(UkiError::NoKernel) => f.write_str("it is no EFI program"),
            Self::Broken(error) => error.fmt(f),
            Self::Foreign(b"") => f.write_str("it is for another architecture"),
            Self::Foreign(architecture) => write!(f, "it is for {}", Text(architecture)),
            Self::OtherKernel => f.write_str("its .uname is not that of the image"),
            Self::Empty => f.write_str("it has neither .cmdline nor an initrd nor a device tree"),
            Self::NoFile(error) => error.fmt(f),
        }
    }
}

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Opens the image and any image nested in it, and adds their parts to the payload. Returns the kind of the
    /// innermost kernel.
    pub fn open_images(
        &mut self,
        entry: &Entry<'m>,
        mut kind: Kind,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Kind, Failed> {
        let mut profile = entry.profile;
        let mut takes_addons = false;
        for level in 0.. {
            let Kind::Efi { .. } = kind else {
                break;
            };
            if level == MAX_LEVELS {
                let what = format_args!(
                    "more than {MAX_LEVELS} EFI programs are nested; extract the inner one \
                     with objcopy -O binary -j .linux FILE INNER"
                );
                return Err(self.failed(&payload.path, what));
            }
            let uki = self.image(profile, level, payload)?;
            let uki = self.with_named_files(uki, payload)?;
            self.take_command_line(&uki, payload)?;
            self.take_parts(&uki, KERNEL, payload)?;
            // Lanzaboote's stub does not support addons, and a nested image has no path.
            if level == 0 && uki.linux_digest.is_none() {
                self.add_addons(entry, &uki, payload)?;
                takes_addons = true;
            }
            profile = 0;
            kind = self.kind(payload)?;
        }
        let extra = entry.addons.into_iter().flatten().next();
        if !takes_addons && let Some(extra) = extra {
            let what = format_args!(
                "it takes no addons, and its entry has `extra {}`; remove that line",
                Text(extra)
            );
            return Err(self.failed(&payload.path, what));
        }
        Ok(kind)
    }

    /// Parses the image and makes the kernel in it the payload's kernel, whose kind is not known yet.
    #[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
    fn image(
        &self,
        profile: u32,
        level: u32,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Uki, Failed> {
        let machine = self.machine();
        let (name, path) = (self.name, &payload.path);
        let (file, head) = (payload.files.get(KERNEL), &mut payload.head);
        let size = head.len();
        _ = head.resize_default(image::HEAD_BYTES); // Its capacity.
        let parsed = image_sections::<B>(file, payload.kernel, profile, machine, head, size);
        let parsed = parsed.map_err(|e| self.failed(path, e))?;
        let uki = parsed.and_then(Scan::finish).map_err(|e| match level {
            0 => self.failed(path, e),
            _ => self.failed(path, format_args!("the image in its section .linux: {e}")),
        })?;
        let others = uki.other_trees;
        if others > 0 {
            log::info!(
                "{name}{path}: its {others} device trees for other machines (.dtbauto) are not used"
            );
        }
        payload.kernel = uki.linux;
        Ok(uki)
    }

    /// The name of the machine, by which a `.dtbauto` is chosen.
    fn machine(&self) -> Option<&'static [u8]> {
        let own = self
            .board
            .device_tree()
            .filter(|_| B::ARCHITECTURE.has_device_trees());
        own.and_then(device_tree::machine)
    }

    /// The command line in a unified kernel image.
    pub fn inner_command_line(
        &mut self,
        path: &[u8],
        image: &BoardFile<'_, B>,
        part: Range,
    ) -> Result<&'m [u8], Failed> {
        let text = self.small_part(path, image, part, COMMAND_LINE, MAX_CMDLINE)?;
        // The section may be padded with NULs.
        Ok(text.split(|&byte| byte == 0).next().unwrap_or_default())
    }

    /// Reads the command line of an image. In nested images, that of the outer one is kept.
    fn take_command_line(
        &mut self,
        uki: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        if payload.inner.is_empty()
            && payload.addons.is_empty()
            && let Some(part) = uki.cmdline
        {
            let file = &payload.files.list[KERNEL].1;
            payload.inner = self.inner_command_line(&payload.path, file, part)?;
        }
        Ok(())
    }

    /// Adds device tree and initrds of an image or addon, in the open file with this index, to the payload. The
    /// initrds come last, but microcode comes first.
    fn take_parts(
        &mut self,
        uki: &Uki,
        file: usize,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        if let Some(part) = uki.device_tree
            && B::ARCHITECTURE.has_device_trees()
        {
            let (path, (place, file)) = (payload.files.path(file), &payload.files.list[file]);
            let blob = self.small_part(&path, file, part, DEVICE_TREE, MAX_DEVICE_TREE)?;
            payload.tree = Some((*place, blob));
        }
        if let Some(part) = uki.ucode {
            self.add_initrd(payload, 0, (file, part))?;
            payload.before += 1;
        }
        if let Some(part) = uki.initrd {
            self.add_initrd(payload, payload.initrds.len(), (file, part))?;
        }
        Ok(())
    }

    /// Adds the addons for all images, those in the directory beside this image, and those named by the entry.
    fn add_addons(
        &mut self,
        entry: &Entry<'m>,
        image: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        let path = &payload.path;
        let loader = self.keep_path(path, [root_of(path), LOADER, b""])?;
        if self.warn_of_loader_files(loader)? {
            let common = self.keep_path(path, [loader, b"/", ADDONS.as_bytes()])?;
            self.add_addons_in(common, image, payload)?;
        }
        if !entry.alone {
            let path = &payload.path;
            let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            // The name of the directory does not include boot counters.
            let (id, ending): (_, &[u8]) = match FileName::parse(name) {
                Some(name) => (name.id, b".efi.extra.d"),
                None => (name, b".extra.d"),
            };
            let parent = &path[..path.len() - name.len()];
            let own = self.keep_path(path, [parent, id, ending])?;
            self.add_addons_in(own, image, payload)?;
        }
        for addon in entry.addons.into_iter().flatten() {
            let (place, file) = self.open(&entry.base, addon)?;
            self.add_addon(place, file, image, payload)?;
        }
        Ok(())
    }

    /// Warns of files for systemd in the directory `loader` that are not used: credentials and extensions for
    /// all images. Returns whether the directory has `addons`.
    #[inline(never)]
    fn warn_of_loader_files(&self, loader: &[u8]) -> Result<bool, Failed> {
        let dir = match self.share.open_dir(loader) {
            Ok(dir) => dir,
            Err(Error::NotFound | Error::NotADirectory) => return Ok(false),
            Err(error) => return Err(self.failed(loader, error)),
        };
        for name in ["credentials", "extensions"] {
            if dir.symlink_metadata(name).is_ok() {
                let path = Path::join(loader, name.as_bytes());
                log::warn!("{}{path}: {NOT_USED}", self.name);
            }
        }
        match dir.symlink_metadata(ADDONS) {
            Ok(_) => Ok(true),
            Err(Error::NotFound) => Ok(false),
            Err(error) => Err(self.failed(&Path::join(loader, ADDONS.as_bytes()), error)),
        }
    }

    /// Adds the addons in a directory, which may not exist, in the order of their names.
    #[inline(never)]
    fn add_addons_in(
        &mut self,
        directory: &'m [u8],
        image: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        let Some((names, mut list)) = self.names_in(directory)? else {
            return Ok(());
        };
        while let Some(name) = names.next(&mut list) {
            if name.starts_with(b".") {
                continue;
            }
            let path = self.keep_path(directory, [directory, b"/", name])?;
            if bls::is_addon(name) {
                match self.share.open(path) {
                    Ok(file) => {
                        let place = Place {
                            directory: "/",
                            name: path,
                        };
                        self.add_addon(place, file, image, payload)?;
                    }
                    Err(error @ (Error::IsADirectory | Error::NotAFile | Error::NotFound)) => {
                        self.warn_left_out(path, &Left::NoFile(error));
                    }
                    Err(error) => return Err(self.failed(path, error)),
                }
            } else if bls::is_credential_or_extension(name) {
                log::warn!("{}{}: {NOT_USED}", self.name, Text(path));
            }
        }
        Ok(())
    }

    /// The sorted names in a directory, if it exists.
    #[inline(never)]
    fn names_in(&mut self, directory: &[u8]) -> Result<Option<(Names<'m>, List)>, Failed> {
        // Borrowed below, because it is too large to be moved.
        let mut read = self.share.read_dir(directory);
        let entries = match &mut read {
            Ok(entries) => entries,
            Err(Error::NotFound | Error::NotADirectory) => return Ok(None),
            Err(error) => return Err(self.failed(directory, error)),
        };
        let request = Request {
            side: Side::High, // Away from the kernel.
            ..Request::new("list of names", NAMES_BYTES)
        };
        let mut names = Names::new(self.place(directory, &request)?.bytes);
        match names.read::<B>(entries) {
            Ok(list) => Ok(Some((names, list))),
            Err(error) => Err(self.failed(directory, error)),
        }
    }

    #[inline(never)]
    fn warn_left_out(&self, path: &[u8], why: &Left) {
        log::warn!("{}{}: the addon is left out: {why}", self.name, Text(path));
    }

    /// Adds the parts of an addon, if it is for this image and machine.
    #[inline(never)]
    fn add_addon(
        &mut self,
        place: Place<'m>,
        file: BoardFile<'a, B>,
        image: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        let path = &Path::of(&place);
        let addon = match self.addon_parts(path, &file, image, payload)? {
            Ok(addon) => addon,
            Err(why) => {
                self.warn_left_out(path, &why);
                return Ok(());
            }
        };
        log::info!("{}addon {path}", self.name);
        if let Some(part) = addon.cmdline {
            let words = self.inner_command_line(path, &file, part)?;
            payload.addons = self.join_two(path, payload.addons, words)?;
        }
        let index = self.add_file(place, file, payload)?;
        self.take_parts(&addon, index, payload)?;
        if addon.ucode.or(addon.initrd).is_none() {
            // Nothing more is read from it.
            payload.files.list.pop();
        }
        Ok(())
    }

    /// Parses an addon and checks that it is for this image and machine.
    #[inline(never)]
    fn addon_parts(
        &mut self,
        path: &[u8],
        file: &BoardFile<'_, B>,
        image: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Result<Uki, Left>, Failed> {
        let head = &mut payload.head;
        _ = head.resize_default(image::HEAD_BYTES); // Its capacity.
        let all = Range::with_size(0, file.metadata().len());
        let read = file.read_at(0, head);
        let sections = read
            .and_then(|size| image_sections::<B>(file, all, 0, self.machine(), head, size))
            .map_err(|e| self.failed(path, e))?;
        let addon = match sections.and_then(Scan::finish_addon) {
            Ok(addon) => addon,
            Err(error) => return Ok(Err(Left::Broken(error))),
        };
        if addon.architecture != image.architecture {
            return Ok(Err(Left::Foreign(addon.architecture)));
        }
        if let Some((ours, its)) = image.kernel_release.zip(addon.kernel_release) {
            const WHAT: &str = "kernel's release";
            let (image_path, image) = (&payload.path, payload.files.get(KERNEL));
            let ours = self.small_part(image_path, image, ours, WHAT, MAX_RELEASE)?;
            let its = self.small_part(path, file, its, WHAT, MAX_RELEASE)?;
            if ours != its {
                return Ok(Err(Left::OtherKernel));
            }
        }
        let parts = [addon.cmdline, addon.initrd, addon.ucode, addon.device_tree];
        Ok(match parts.iter().any(Option::is_some) {
            true => Ok(addon),
            false => Err(Left::Empty),
        })
    }

    /// A path in memory of the arena, concatenated from these parts.
    fn keep_path(&mut self, of: &[u8], parts: [&[u8]; 3]) -> Result<&'m [u8], Failed> {
        let size = parts.iter().map(|part| part.len()).sum::<usize>();
        let request = Request {
            side: Side::High,
            ..Request::new("path", size as u64)
        };
        let bytes = self.place(of, &request)?.bytes;
        let mut end = 0;
        for part in parts {
            bytes[end..][..part.len()].copy_from_slice(part);
            end += part.len();
        }
        Ok(&bytes[..size])
    }
}
