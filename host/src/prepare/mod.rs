//! Prepared kernels: unpacked on the host, once, so that no guest has to.
//!
//! The embedded server offers them to the firmware, which asks for one below the kernel's own file:
//! `Part` has the names. A guest's kernel never looks there, and no directory lists them.

mod bzimage;
mod cache;
#[cfg(test)]
mod tests;
mod unpack;

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

pub use cache::Cache;

use crate::serve::lock;

/// What stands in a name before the part of the file.
const PREFIX: &str = ".bootshare-prepared-";

/// Part of the names in the cache: changes with what is made of a file.
const VERSION: u32 = 1;

/// What ends a file of the cache.
const MAGIC: [u8; 8] = *b"prepared";

/// As much of an image as its header needs.
const PAGE: usize = 4096;

/// The largest kernel that is looked at, in bytes.
const MOST: u64 = 256 << 20;

/// How kernels are prepared.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// Memory of the machine, in MiB: the kernel is loaded somewhere in its first eighth.
    pub memory_mib: u32,
    /// Where they are kept for other runs.
    pub cache: Option<Cache>,
}

/// Which part of a file the kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where it starts.
    pub start: u64,
    /// How long it is.
    pub size: u64,
}

impl Part {
    /// The part that `name` asks to be prepared: `.bootshare-prepared-START-SIZE`, in bytes.
    pub fn of(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?.strip_prefix(PREFIX)?;
        let (start, size) = name.split_once('-')?;
        Some(Self {
            start: start.parse().ok()?,
            size: size.parse().ok()?,
        })
    }
}

/// A kernel that needs no unpacking, before its address is chosen.
struct Unpacked {
    /// What the firmware starts.
    image: Vec<u8>,
    /// How many virtual addresses there are for it, and how far apart.
    slots: u32,
    alignment: u32,
    /// What in it depends on that: see [`bzimage`].
    lists: [Vec<u32>; 3],
}

/// The numbers behind the lists: slots, alignment, lengths of the lists, and the magic.
const TRAILER: usize = 5 * 4 + MAGIC.len();

impl Unpacked {
    /// As it is kept.
    fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.image;
        let lengths = self.lists.each_ref().map(|list| list.len() as u32);
        let words = self.lists.iter().flatten().copied();
        for word in words.chain([self.slots, self.alignment]).chain(lengths) {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(MAGIC);
        bytes
    }
}

/// Where a prepared kernel is read from.
enum Source {
    /// The cache: its page cache is shared by all runs.
    File(File),
    Memory(Vec<u8>),
}

impl Source {
    fn size(&self) -> io::Result<usize> {
        Ok(match self {
            Self::File(file) => usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX),
            Self::Memory(bytes) => bytes.len(),
        })
    }

    /// Fills `bytes` from `start` on.
    fn read(&self, start: usize, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, start as u64),
            Self::Memory(all) => {
                let found = all.get(start..).and_then(|rest| rest.get(..bytes.len()));
                bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// A prepared kernel at its address.
pub(crate) struct Image {
    source: Source,
    size: usize,
    lists: [Vec<u32>; 3],
    delta: u64,
    /// The load address in the header.
    address: Option<(usize, [u8; 8])>,
    /// Buffers that were used before: memory that is new is slow.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Image {
    /// Prepares a kernel for one boot, `file` being all of it.
    ///
    /// # Errors
    /// It is no kernel that can be prepared.
    pub(crate) fn new(file: &[u8], how: &Prepare, random: &mut Random<'_>) -> Result<Self> {
        let name = name(file);
        let kept = how.cache.as_ref().and_then(|cache| cache.get(&name));
        if let Some(image) = kept.and_then(|kept| Self::place(Source::File(kept), how, random)) {
            return Ok(image);
        }
        let bytes = unpack(file)?.into_bytes();
        if let Some(cache) = &how.cache {
            // Without it the next run takes longer.
            let _ = cache.put(&name, &bytes);
        }
        Self::place(Source::Memory(bytes), how, random).context("it cannot be relocated")
    }

    /// Chooses the address of what was kept, if that is whole.
    fn place(source: Source, how: &Prepare, random: &mut Random<'_>) -> Option<Self> {
        let end = source.size().ok()?.checked_sub(TRAILER)?;
        let mut trailer = [0; TRAILER];
        source.read(end, &mut trailer).ok()?;
        let words = trailer.strip_suffix(&MAGIC)?.as_chunks::<4>().0;
        let words: [u32; 5] = std::array::from_fn(|index| u32::from_le_bytes(words[index]));
        let [slots, alignment, lengths @ ..] = words;
        let bytes_of_lists = lengths
            .iter()
            .map(|length| 4 * u64::from(*length))
            .sum::<u64>();
        let size = end.checked_sub(usize::try_from(bytes_of_lists).ok()?)?;
        let mut image = Self {
            size,
            lists: Default::default(),
            delta: 0,
            address: None,
            buffers: Mutex::default(),
            source,
        };
        if slots > 1 {
            let mut bytes = vec![0; end - size];
            image.source.read(size, &mut bytes).ok()?;
            let mut words = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|word| u32::from_le_bytes(*word));
            image.lists = lengths.map(|length| words.by_ref().take(length as usize).collect());
            let mut head = [0; PAGE];
            image.source.read(0, &mut head).ok()?;
            let pages = random(bzimage::pages(&head, u64::from(how.memory_mib) << 20));
            image.address = Some(bzimage::raised(&head, pages)?);
            image.delta = random(slots.into()) * u64::from(alignment);
        }
        Some(image)
    }

    /// How many bytes it has.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Hands `size` bytes from `offset` on to `take`, as far as there are so many; how many there were.
    pub(crate) fn read(
        &self,
        offset: u64,
        size: usize,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        /// As long as the longest of what is relocated.
        const MOST: usize = 8;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.size);
        let size = size.min(self.size - offset);
        // What is relocated may begin before, or end behind.
        let start = offset.saturating_sub(MOST);
        let end = (offset + size + MOST).min(self.size);
        let mut buffer = lock(&self.buffers).pop().unwrap_or_default();
        if buffer.len() < end - start {
            buffer.resize(end - start, 0);
        }
        let bytes = &mut buffer[..end - start];
        self.source.read(start, bytes)?;
        bzimage::relocate(bytes, start, &self.lists, self.delta);
        if let Some((at, address)) = &self.address {
            for (at, byte) in (*at..).zip(address) {
                if let Some(place) = at.checked_sub(start).and_then(|at| bytes.get_mut(at)) {
                    *place = *byte;
                }
            }
        }
        take(&bytes[offset - start..][..size])?;
        lock(&self.buffers).push(buffer);
        Ok(size)
    }
}

/// Gives a number below the one that it gets.
pub(crate) type Random<'a> = dyn FnMut(u64) -> u64 + 'a;

/// A number below `end` that nobody can guess.
pub(crate) fn random(end: u64) -> u64 {
    let mut bytes = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    // Once the host has started it gives as few bytes at once.
    let _ = rustix::rand::getrandom(&mut bytes, flags);
    u64::from_le_bytes(bytes) % end.max(1)
}

/// In the cache.
fn name(file: &[u8]) -> String {
    let mut name = String::new();
    for byte in Sha256::digest(file) {
        // A string takes it all.
        let _ = write!(name, "{byte:02x}");
    }
    format!("{name}-{VERSION}")
}

/// Reads the part of a file that a kernel is.
///
/// # Errors
/// It cannot be read, or is too large.
pub(crate) fn read(file: &File, part: Part) -> Result<Vec<u8>> {
    ensure!(part.size <= MOST, "it has more than {MOST} bytes");
    let mut bytes = vec![0; part.size as usize];
    file.read_exact_at(&mut bytes, part.start)?;
    Ok(bytes)
}

fn unpack(file: &[u8]) -> Result<Unpacked> {
    if let Some(packed) = bzimage::payload(file)? {
        return bzimage::make(file, &unpack::unpack(packed)?);
    }
    let packed = match zboot_payload(file) {
        Some(packed) => packed.context("it is cut off")?,
        None => file,
    };
    let image = unpack::unpack(packed)?;
    // Documentation/arch/arm64/booting.rst.
    if image.get(56..60) != Some(b"ARM\x64") {
        bail!("what it packs is no arm64 Image");
    }
    Ok(Unpacked {
        image,
        slots: 1,
        alignment: 0,
        lists: Default::default(),
    })
}

/// What an EFI zboot image unpacks, if `file` is one (drivers/firmware/efi/libstub/zboot-header.S).
fn zboot_payload(file: &[u8]) -> Option<Option<&[u8]>> {
    let is_zboot = file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg");
    let number = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
    is_zboot.then(|| file.get(number(8)?..)?.get(..number(12)?))
}
