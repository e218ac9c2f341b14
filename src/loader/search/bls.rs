//! Searches for entries of the Boot Loader Specification, of type 1 and 2.

use super::{Search, before_slash, may_be_file, warn_left_out};
use crate::{
    Error,
    boot::{
        bls::{self, FileName, Fit, LoaderConf},
        conventional::MAX_NAME_BYTES,
        grub::Environment,
    },
    loader::{
        Board, Failed,
        choices::{Content, MAX_ENTRIES},
        console::{Text, failure},
        path::Path,
        shares::BoardDir,
    },
};
use core::cmp::Ordering;
use heapless::Vec;

/// Longest entry file in bytes, and longest environment block of GRUB.
const MAX_FILE: usize = 16 << 10;
/// Longest entry in bytes after its variables were replaced.
const MAX_EXPANDED: usize = 4 * MAX_FILE;
/// Longest path of an entry file in bytes, such as `/boot/efi/loader/entries/NAME`.
const MAX_PATH: usize = 32 + MAX_NAME_BYTES;
/// The file that names the kind of the entries ("Standard-conformance Marker File").
const MARKER: &str = "entries.srel";
const CONF: &str = "loader.conf";
/// The places of GRUB's environment block, relative to the root of its file system.
const ENVIRONMENTS: [&str; 2] = ["grub2/grubenv", "grub/grubenv"];

/// A place where entries may be.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The path of the root of their file system.
    root: &'static str,
    /// The directory with `loader.conf` and the entries of type 1.
    loader: &'static str,
}

/// Most places of a source.
const MAX_PLACES: usize = 5;

impl Place {
    pub const fn new(root: &'static str, loader: &'static str) -> Self {
        Self { root, loader }
    }

    fn path(&self, name: &str) -> Path {
        Path::join(self.root, name.as_bytes())
    }
}

/// An entry that may be added to the list. If it is not, its memory is reused for the next one.
struct Candidate<'m> {
    /// The path of the file, then its text.
    memory: &'m mut [u8],
    root: &'static str,
    /// The length of the path.
    path: usize,
    /// The length of the text.
    text: usize,
}

impl<'m> Candidate<'m> {
    fn parts(&self) -> (&[u8], &[u8]) {
        let (path, text) = self.memory.split_at(self.path);
        (path, &text[..self.text])
    }

    fn parse(&self) -> Option<(FileName<'_>, bls::Entry<'_>)> {
        let (path, text) = self.parts();
        Some((FileName::parse(last(path))?, bls::Entry::parse(text)))
    }

    /// The order in which entries are tried.
    fn compare(&self, other: &Self) -> Ordering {
        match (self.parse(), other.parse()) {
            (Some(a), Some(b)) => bls::compare((&a.0, &a.1), (&b.0, &b.1)),
            // Cannot happen: only names that can be parsed become candidates.
            _ => Ordering::Equal,
        }
    }

    /// How well the entry matches a pattern; [`Fit::None`] without a pattern.
    fn fit(&self, pattern: Option<&[u8]>) -> Fit {
        let (path, _) = self.parts();
        let name = FileName::parse(last(path)).zip(pattern);
        name.map_or(Fit::None, |(name, pattern)| {
            Fit::of(pattern, name.id, name.name)
        })
    }

    fn into_parts(self) -> (&'m [u8], &'m [u8]) {
        let (path, rest) = self.memory.split_at(self.path);
        (path, &rest[..self.text])
    }
}

/// The last component of a path.
fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// The best entries found so far, best first.
struct Sorted<'g, 'm> {
    list: Vec<Candidate<'m>, MAX_ENTRIES>,
    /// The largest allowed length of `list`.
    room: usize,
    /// The number of entries that did not fit.
    left_out: usize,
    /// The pattern of wanted entries, which come before all others.
    wanted: Option<&'g [u8]>,
    /// The pattern `default` of `loader.conf`.
    default: Option<&'m [u8]>,
    /// The best entry that matches `default`.
    first: Option<Candidate<'m>>,
    /// Memory for the next candidate.
    free: Option<&'m mut [u8]>,
    /// A directory that may hold addons for an image was found.
    has_addons: bool,
    /// A name with a lower-case extension was found, so this file system does not show names in upper case.
    is_lower: bool,
}

impl<'m> Sorted<'_, 'm> {
    fn insert(&mut self, mut candidate: Candidate<'m>) {
        let fit = candidate.fit(self.default);
        if fit != Fit::None {
            match &mut self.first {
                None => {
                    self.first = Some(candidate);
                    return;
                }
                Some(first) => {
                    let order = fit.cmp(&first.fit(self.default));
                    if order.then_with(|| candidate.compare(first)).is_lt() {
                        core::mem::swap(first, &mut candidate);
                    }
                }
            }
        }
        let wanted = self.wanted;
        let place = self.list.partition_point(|other| {
            let order = other.fit(wanted).cmp(&candidate.fit(wanted));
            order.then_with(|| other.compare(&candidate)).is_lt()
        });
        if self.list.len() == self.room {
            self.left_out += 1;
            if place == self.room {
                self.free = Some(candidate.memory);
                return;
            }
            self.free = self.list.pop().map(|last| last.memory);
        }
        _ = self.list.insert(place, candidate);
    }
}

impl<'m, B: Board> Search<'_, 'm, B> {
    pub(super) fn bls(&mut self, places: &[Place]) -> Result<(), Failed> {
        // Each `loader` directory is opened once, for the three files and directories in it.
        let mut loaders: Vec<(Place, BoardDir<'m, B>), MAX_PLACES> = Vec::new();
        let mut default = None;
        for place in places {
            let path = place.path(place.loader);
            let Some(loader) = self.open_place(place, place.loader)? else {
                continue;
            };
            let conf = self.loader_conf(&path, &loader)?;
            self.choices.timeout = self.choices.timeout.or(conf.timeout);
            default = default.or(conf.default.map(|name| (name, place)));
            _ = loaders.push((*place, loader)); // It fits: see `MAX_PLACES`.
        }
        let mut sorted = Sorted {
            list: Vec::new(),
            room: self.room(),
            left_out: 0,
            wanted: self.look.wanted,
            default: default.map(|(name, _)| name),
            first: None,
            free: None,
            has_addons: false,
            is_lower: false,
        };
        for (place, loader) in &loaders {
            self.entries(place, loader, &mut sorted)?;
        }
        for place in places {
            // Places that differ only in the case of `loader` have the same images.
            if place.loader == "loader" {
                self.images(place, &mut sorted)?;
            }
        }
        drop(loaders);
        self.list_sorted(sorted, default)
    }

    /// Opens a directory of a place, if it exists.
    fn open_place(&mut self, place: &Place, name: &str) -> Result<Option<BoardDir<'m, B>>, Failed> {
        let path = place.path(name);
        // The first source is opened without a list of names.
        if self.choices.source > 0 && !self.may_be_at(&path)? {
            return Ok(None);
        }
        self.open_dir(&path)
    }

    /// Reads the `loader.conf` in a directory, if it exists.
    fn loader_conf(
        &mut self,
        directory: &Path,
        loader: &BoardDir<'m, B>,
    ) -> Result<LoaderConf<'m>, Failed> {
        let text = self.file_in(directory, loader, CONF)?;
        Ok(LoaderConf::parse(text.unwrap_or_default()))
    }

    /// Reads a text file in an open directory; it may not exist.
    fn file_in(
        &mut self,
        directory: &Path,
        dir: &BoardDir<'m, B>,
        name: &str,
    ) -> Result<Option<&'m [u8]>, Failed> {
        let mut opened = dir.open_file(name);
        let mut path = Path::join(directory, name.as_bytes());
        if matches!(opened, Err(Error::NotFound)) && directory.ends_with(b"LOADER") {
            let mut upper: Vec<u8, 32> = name.bytes().collect();
            upper.make_ascii_uppercase();
            opened = dir.open_file(&upper);
            path = Path::join(directory, &upper);
        }
        self.text(&path, opened, MAX_FILE)
    }

    /// Adds the entries of type 1 to `sorted`.
    fn entries(
        &mut self,
        place: &Place,
        loader: &BoardDir<'m, B>,
        sorted: &mut Sorted<'_, 'm>,
    ) -> Result<(), Failed> {
        let root = before_slash(place.root);
        let directory = place.path(place.loader);
        let kind = self.file_in(&directory, loader, MARKER)?;
        if let Some(kind) = kind.map(<[u8]>::trim_ascii)
            && kind != b"type1"
        {
            log::warn!(
                "{}{root}/{}/{MARKER} says {}, not type1: its entries are left out",
                self.mount.prefix(),
                place.loader,
                Text(kind)
            );
            return Ok(());
        }
        let (name, opened) = either::<B>(loader, "entries", "ENTRIES");
        let path = Path::join(&directory, name.as_bytes());
        let opened = match opened {
            // It may be a link: `Dir::open_dir` does not follow links.
            Err(Error::NotADirectory) => self.mount.open_dir(&*path),
            opened => opened,
        };
        match self.there(&path, opened)? {
            Some(dir) => self.candidates(place.root, &path, &dir, false, sorted),
            None => Ok(()),
        }
    }

    /// Adds the unified kernel images, entries of type 2, to `sorted`.
    fn images(&mut self, place: &Place, sorted: &mut Sorted<'_, 'm>) -> Result<(), Failed> {
        let Some(efi) = self.open_place(place, "EFI")? else {
            return Ok(());
        };
        let upper = if sorted.is_lower { "Linux" } else { "LINUX" };
        let (name, opened) = either::<B>(&efi, "Linux", upper);
        let path = Path::join(&place.path("EFI"), name.as_bytes());
        let opened = match opened {
            Err(Error::NotADirectory) => self.mount.open_dir(&*path),
            opened => opened,
        };
        match self.there(&path, opened)? {
            Some(dir) => self.candidates(place.root, &path, &dir, true, sorted),
            None => Ok(()),
        }
    }

    /// Adds the entries in a directory to `sorted`.
    fn candidates(
        &mut self,
        root: &'static str,
        directory: &Path,
        dir: &BoardDir<'m, B>,
        images: bool,
        sorted: &mut Sorted<'_, 'm>,
    ) -> Result<(), Failed> {
        let Some(entries) = self.there(directory, dir.read_dir())? else {
            return Ok(());
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.report(directory, error)?;
                    break;
                }
            };
            let name = entry.file_name();
            sorted.has_addons |= images && name.ends_with(b".extra.d");
            let is_entry = FileName::parse(name).is_some_and(|name| name.profile == 0)
                && bls::is_image(name) == images;
            if !is_entry || !may_be_file(entry.file_type()) {
                continue;
            }
            self.found = true;
            sorted.is_lower |= name.ends_with(b".conf");
            let path = Path::join(directory, name);
            let opened = self.followed(&path, dir.open_file(name));
            if !images {
                self.candidate(root, &path, sorted, |search, text| {
                    search.read(&path, opened, text)
                })?;
                continue;
            }
            let file = match opened {
                Ok(file) => file,
                Err(error) => {
                    self.report(&path, error)?;
                    continue;
                }
            };
            let mut profiles = 1;
            let mut number = 0;
            // An image without profiles is a single entry.
            while number < profiles.min(MAX_ENTRIES as u32) {
                let mut name = path.clone();
                if number > 0 {
                    name.push_number(b'@', number);
                }
                self.candidate(root, &name, sorted, |search, text| {
                    let (size, of) = search.image(&path, &file, number, text)?;
                    profiles = of;
                    Ok(size)
                })?;
                number += 1;
            }
        }
        Ok(())
    }

    /// Adds an entry to `sorted`. `read` writes its text and returns the size, or `None` to skip the entry.
    fn candidate(
        &mut self,
        root: &'static str,
        path: &[u8],
        sorted: &mut Sorted<'_, 'm>,
        read: impl FnOnce(&mut Self, &mut [u8]) -> Result<Option<usize>, Failed>,
    ) -> Result<(), Failed> {
        let memory = match sorted.free.take() {
            Some(memory) => memory,
            None => self.take(MAX_PATH + MAX_FILE)?,
        };
        let (path_memory, text_memory) = memory.split_at_mut(path.len());
        path_memory.copy_from_slice(path);
        match read(self, text_memory)? {
            Some(text) => sorted.insert(Candidate {
                memory,
                root,
                path: path.len(),
                text,
            }),
            None => sorted.free = Some(memory),
        }
        Ok(())
    }

    /// Without the feature `uki`, images are listed but cannot be started.
    #[cfg(not(feature = "uki"))]
    fn image(
        &self,
        path: &[u8],
        _: &crate::loader::shares::BoardFile<'m, B>,
        _: u32,
        text: &mut [u8],
    ) -> Result<(Option<usize>, u32), Failed> {
        use crate::boot::uki::{OsRelease, Profile};
        let entry = OsRelease::default();
        Ok((entry.write_entry(b"", Profile::default(), &[path], text), 1))
    }

    /// Adds the entries to the list, starting with the default one of `loader.conf`.
    fn list_sorted(
        &mut self,
        sorted: Sorted<'_, 'm>,
        default: Option<(&'m [u8], &Place)>,
    ) -> Result<(), Failed> {
        let entries = sorted.first.into_iter().chain(sorted.list);
        let mut directory: Option<&'m [u8]> = None;
        let mut is_default = false;
        for candidate in entries {
            is_default |= candidate.fit(sorted.default) != Fit::None;
            let root = candidate.root;
            let (path, text) = candidate.into_parts();
            let text = self.expanded(root, path, text)?;
            directory.get_or_insert(path);
            let id = FileName::parse(last(path)).map_or(path, |name| name.id);
            // In the entry of an image, its path is relative to the root of the share.
            let is_image = bls::is_image(path) || bls::profile(path).is_some();
            let root = if is_image { "/" } else { root };
            let alone = is_image && !sorted.has_addons;
            self.push(id, path, Content::Bls { root, text, alone });
        }
        if sorted.left_out > 0
            && let Some(path) = directory
        {
            let directory = &path[..path.len() - last(path).len() - 1];
            warn_left_out(&self.mount.prefix(), directory, sorted.left_out);
        }
        if let Some((name, place)) = default
            && !is_default
            && self.choices.list.len() > self.first
        {
            let why = match name.starts_with(b"@") {
                true => "nothing is stored between boots; name an entry",
                false => "no entry has this name",
            };
            log::warn!(
                "{}{}/{}/{CONF}: default {}: {why}",
                self.mount.prefix(),
                before_slash(place.root),
                place.loader,
                Text(name)
            );
        }
        Ok(())
    }

    /// The text of an entry, with GRUB's variables replaced by their values.
    fn expanded(
        &mut self,
        root: &'static str,
        path: &[u8],
        text: &'m [u8],
    ) -> Result<&'m [u8], Failed> {
        if bls::is_image(path) || !bls::wants_expansion(text) {
            return Ok(text);
        }
        let block = self.grub_environment(root)?;
        let environment = Environment::parse(block);
        let size = bls::expand(text, &environment, &mut []);
        if size > MAX_EXPANDED {
            let error = format_args!("it has {size} bytes with its variables; make it shorter");
            failure(&self.mount.shown(path), &error);
            return Ok(text);
        }
        let out = self.take(size)?;
        bls::expand(text, &environment, out);
        Ok(out)
    }

    /// GRUB's environment block, or an empty one. It is read once for all entries of a file system.
    fn grub_environment(&mut self, root: &'static str) -> Result<&'m [u8], Failed> {
        if let Some((of, block)) = self.environment
            && of == root
        {
            return Ok(block);
        }
        let mut block = None;
        for name in ENVIRONMENTS {
            if block.is_none() {
                let path = Path::join(root, name.as_bytes());
                let opened = self.mount.open(&*path);
                block = self.text(&path, opened, MAX_FILE)?;
            }
        }
        let block = block.unwrap_or_default();
        self.environment = Some((root, block));
        Ok(block)
    }
}

/// Opens a directory in another one, by `name` or, if that does not exist, by `upper`.
fn either<'s, B: Board>(
    dir: &BoardDir<'s, B>,
    name: &'static str,
    upper: &'static str,
) -> (&'static str, Result<BoardDir<'s, B>, Error>) {
    match dir.open_dir(name) {
        Err(Error::NotFound) if name != upper => (upper, dir.open_dir(upper)),
        opened => (name, opened),
    }
}
