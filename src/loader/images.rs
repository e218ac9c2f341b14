//! Unified kernel images: what is in them becomes the parts of a payload, as systemd-stub has it
//! (systemd-stub(7)).

use super::{
    Board, Failed,
    arena::is_x86,
    console::Text,
    entry::{DEVICE_TREE, KERNEL, Loader, MAX_DEVICE_TREE, Path, Payload},
    names::{List, Names},
    shares::{BoardFile, image_sections},
    thin::root_of,
};
use crate::{
    Error,
    boot::{
        bls::{self, FileName},
        device_tree,
        entry::{Base, Entry},
        image::{self, Kind},
        memory::{Range, Request, Side},
        uki::{Scan, Uki, UkiError},
    },
};
use core::fmt;

/// How many images may be in one another: one in another, as Ubuntu signs them.
const MAX_LEVELS: u32 = 2;
/// Where the addons for all images are, from the root of their file system.
const COMMON_ADDONS: &[u8] = b"/loader/addons";
/// Memory for the names in a directory of addons, in bytes: some 1,000.
const NAMES_BYTES: u64 = 64 << 10;
/// Longest `.uname`, in bytes.
const MAX_RELEASE: u64 = 256;

/// Why an addon is left out. The sentence goes on from its path.
enum Left {
    /// It is no addon.
    Broken(UkiError),
    /// It is for another architecture, in these words.
    Foreign(&'static [u8]),
    /// Its `.uname` is not that of the image.
    OtherKernel,
    /// It has nothing that is used.
    Empty,
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
        }
    }
}

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// While what was found is an EFI program, it is an image, and what is in it is found. The kind
    /// of what is in the innermost one.
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
                    "more than {MAX_LEVELS} EFI programs are in one another; take the inner one out \
                     with objcopy -O binary -j .linux FILE INNER"
                );
                return Err(self.failed(&payload.path, what));
            }
            let uki = self.image(profile, level, payload)?;
            let uki = self.with_named_files(uki, payload)?;
            self.take_parts(&uki, payload)?;
            // Lanzaboote's stub knows no addons, and the inner image is no file.
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

    /// The parts of the image that the kernel is to be in. What the kernel is then is not known yet.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
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
        _ = head.resize_default(image::HEAD_BYTES); // It has room.
        let parsed = image_sections::<B>(file, payload.kernel, profile, machine, head, size);
        let parsed = parsed.map_err(|e| self.failed(path, e))?;
        let uki = parsed.and_then(Scan::finish).map_err(|e| match level {
            0 => self.failed(path, e),
            _ => self.failed(path, format_args!("what its section .linux holds: {e}")),
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

    /// The name of the machine whose device trees are looked for.
    fn machine(&self) -> Option<&'static [u8]> {
        match is_x86::<B>() {
            true => None,
            false => self.board.device_tree().and_then(device_tree::machine),
        }
    }

    /// Notes the parts of an image but for the kernel. What an outer one has it hands to the inner one:
    /// a command line in place of that one's own, and initrds before its own, but for microcode.
    fn take_parts(&mut self, uki: &Uki, payload: &mut Payload<'a, 'm, B>) -> Result<(), Failed> {
        let (path, (place, file)) = (&payload.path, &payload.files.list[KERNEL]);
        if payload.inner.is_empty()
            && payload.addons.is_empty()
            && let Some(part) = uki.cmdline
        {
            payload.inner = self.inner_command_line(path, file, part)?;
        }
        if let Some(part) = uki.device_tree
            && !is_x86::<B>()
        {
            let blob = self.small_part(path, file, part, DEVICE_TREE, MAX_DEVICE_TREE)?;
            payload.tree = Some((*place, blob));
        }
        if let Some(part) = uki.ucode {
            self.add_initrd(payload, 0, (KERNEL, part), false)?;
            payload.before += 1;
        }
        if let Some(part) = uki.initrd {
            self.add_initrd(payload, payload.initrds.len(), (KERNEL, part), false)?;
        }
        Ok(())
    }

    /// Adds the addons for all images, those beside this one, and those that the entry names.
    fn add_addons(
        &mut self,
        entry: &Entry<'m>,
        image: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        let path = &payload.path;
        let common = self.keep_path(path, [root_of(path), COMMON_ADDONS, b""])?;
        self.add_addons_in(common, image, payload)?;
        if !entry.alone {
            let path = &payload.path;
            let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            // Boot counters come and go; the directory's name has none.
            let (id, ending): (_, &[u8]) = match FileName::parse(name) {
                Some(name) => (name.id, b".efi.extra.d"),
                None => (name, b".extra.d"),
            };
            let parent = &path[..path.len() - name.len()];
            let own = self.keep_path(path, [parent, id, ending])?;
            self.add_addons_in(own, image, payload)?;
        }
        for addon in entry.addons.into_iter().flatten() {
            self.add_addon(&entry.base, addon, image, payload)?;
        }
        Ok(())
    }

    /// Adds the addons in a directory, which need not be there, by their names.
    #[inline(never)] // As above.
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
                self.add_addon(&Base::Exact("/"), path, image, payload)?;
            } else if name.ends_with(b".cred") || name.ends_with(b".raw") {
                let what = "credentials and extensions are not used, only addons (.addon.efi)";
                log::warn!("{}{}: {what}", self.name, Text(path));
            }
        }
        Ok(())
    }

    /// The names in a directory, if it is there.
    #[inline(never)] // As above.
    fn names_in(&mut self, directory: &[u8]) -> Result<Option<(Names<'m>, List)>, Failed> {
        // Large: it is not moved.
        let mut read = self.share.read_dir(directory);
        let entries = match &mut read {
            Ok(entries) => entries,
            Err(Error::NotFound | Error::NotADirectory) => return Ok(None),
            Err(error) => return Err(self.failed(directory, error)),
        };
        let request = Request {
            side: Side::High, // Out of the kernel's way.
            ..Request::new("list of names", NAMES_BYTES)
        };
        let mut names = Names::new(self.place(directory, &request)?.bytes);
        match names.read::<B>(entries) {
            Ok(list) => Ok(Some((names, list))),
            Err(error) => Err(self.failed(directory, error)),
        }
    }

    /// Adds what is in an addon, unless it is not for this image and machine.
    #[inline(never)] // As above.
    fn add_addon(
        &mut self,
        base: &Base<'m>,
        name: &'m [u8],
        image: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<(), Failed> {
        let (place, file) = self.open(base, name)?;
        let path = &Path::of(&place);
        let addon = match self.addon_parts(path, &file, image, payload)? {
            Ok(addon) => addon,
            Err(left) => {
                log::warn!("{}{path}: the addon is left out: {left}", self.name);
                return Ok(());
            }
        };
        log::info!("{}addon {path}", self.name);
        if let Some(part) = addon.cmdline {
            let words = self.inner_command_line(path, &file, part)?;
            payload.addons = self.join_two(path, payload.addons, words)?;
        }
        if let Some(part) = addon.device_tree
            && !is_x86::<B>()
        {
            let blob = self.small_part(path, &file, part, DEVICE_TREE, MAX_DEVICE_TREE)?;
            payload.tree = Some((place, blob));
        }
        if addon.ucode.or(addon.initrd).is_none() {
            return Ok(());
        }
        let index = payload.files.count();
        let is_full = payload.files.list.push((place, file)).is_err();
        if let Some(part) = addon.ucode {
            self.add_initrd(payload, 0, (index, part), is_full)?;
            payload.before += 1;
        }
        if let Some(part) = addon.initrd {
            self.add_initrd(payload, payload.initrds.len(), (index, part), is_full)?;
        }
        Ok(())
    }

    /// The parts of an addon.
    #[inline(never)] // As above.
    fn addon_parts(
        &mut self,
        path: &[u8],
        file: &BoardFile<'_, B>,
        image: &Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Result<Uki, Left>, Failed> {
        let head = &mut payload.head;
        _ = head.resize_default(image::HEAD_BYTES); // It has room.
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

    /// A path made of these parts.
    fn keep_path(&mut self, of: &[u8], parts: [&[u8]; 3]) -> Result<&'m [u8], Failed> {
        let size = parts.iter().map(|part| part.len()).sum::<usize>();
        let request = Request {
            side: Side::High, // As above.
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
