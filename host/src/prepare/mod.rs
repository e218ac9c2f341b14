//! Prepared kernels: unpacked once on the host, so that the guest need not do it.
//!
//! The embedded server offers them to the firmware, which looks up an entry below the kernel's own
//! file; see `Part::of` for its name. A guest's kernel never looks there, and no directory lists
//! it.

mod bzimage;
mod cache;
mod state;
#[cfg(test)]
mod tests;
mod unpack;

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

pub use cache::Cache;
pub(crate) use unpack::compression;

use crate::lock::lock;
use state::State;

/// The prefix of an entry's name.
const PREFIX: &str = ".bootshare-prepared-";

/// A part of the names in the cache. It must change when the result of a preparation changes.
const VERSION: u32 = 1;

/// The last bytes of a complete file in the cache.
const MAGIC: [u8; 8] = *b"prepared";

/// The size of an image's first part, which contains its header.
const PAGE: usize = 4096;

/// The largest kernel file that is prepared, in bytes.
const MOST: u64 = 256 << 20;

/// How kernels are prepared.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// The machine's memory in MiB. The kernel's load address is chosen in its first eighth.
    pub memory_mib: u32,
    /// The cache that keeps them for other runs.
    pub cache: Option<Cache>,
}

/// The part of a file that is the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its offset in bytes.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl Part {
    /// Parses an entry's name, `.bootshare-prepared-START-SIZE`, with numbers of bytes.
    pub fn of(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?.strip_prefix(PREFIX)?;
        let (start, size) = name.split_once('-')?;
        Some(Self {
            start: start.parse().ok()?,
            size: size.parse().ok()?,
        })
    }
}

/// An unpacked kernel whose address is not chosen yet.
struct Unpacked {
    /// The image that the firmware starts.
    image: Vec<u8>,
    /// The number of possible virtual addresses, and the distance between them.
    slots: u32,
    alignment: u32,
    /// The places in the image that depend on the virtual address: see [`bzimage`].
    lists: [Vec<u32>; 3],
}

/// The size of the trailer after the lists: slots, alignment, lengths of the lists, and the magic.
const TRAILER: usize = 5 * 4 + MAGIC.len();

impl Unpacked {
    /// The content of its file in the cache.
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
    /// A file of the cache, whose pages in the page cache all runs share.
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

/// A prepared kernel at its chosen address.
pub(crate) struct Image {
    source: Source,
    size: usize,
    lists: [Vec<u32>; 3],
    delta: u64,
    /// The offset and the value of the load address in the header.
    address: Option<(usize, [u8; 8])>,
    /// Buffers for reuse: newly allocated memory is slow at first.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Image {
    /// Prepares the kernel in a part of `file` for one boot. The file is not read if the cache has the
    /// kernel of its current [state](state).
    ///
    /// # Errors
    /// It cannot be read, or is not a kernel that can be prepared.
    pub(crate) fn open(
        file: &File,
        part: Part,
        how: &Prepare,
        random: &mut Random<'_>,
    ) -> Result<Self> {
        Self::open_at(SystemTime::now(), file, part, how, random)
    }

    /// `now` must be before the file is read: see [`Version::is_settled`](crate::version::Version::is_settled).
    fn open_at(
        now: SystemTime,
        file: &File,
        part: Part,
        how: &Prepare,
        random: &mut Random<'_>,
    ) -> Result<Self> {
        let state = State::of(file, part).context("cannot look at it")?;
        let recorded = how
            .cache
            .as_ref()
            .and_then(|cache| cache.recorded(&state.name()));
        if let Some(image) = recorded.and_then(|name| Self::kept(&name, how, random)) {
            return Ok(image);
        }
        let bytes = read(file, part).context("cannot read it")?;
        let name = name(&bytes);
        let image = Self::new(&name, &bytes, how, random)?;
        if let Some(cache) = &how.cache
            && state.version.is_settled(now)
            && State::of(file, part).is_ok_and(|after| after == state)
        {
            // If it cannot be kept, the next run reads the kernel again.
            let _ = cache.put(&state.name(), name.as_bytes());
        }
        Ok(image)
    }

    /// The kernel of this name in the cache; `None` if it is missing or damaged.
    fn kept(name: &str, how: &Prepare, random: &mut Random<'_>) -> Option<Self> {
        let file = how.cache.as_ref()?.get(name)?;
        Self::place(Source::File(file), how, random)
    }

    /// The kernel whose content is `file`, from the cache or unpacked now.
    fn new(name: &str, file: &[u8], how: &Prepare, random: &mut Random<'_>) -> Result<Self> {
        if let Some(image) = Self::kept(name, how, random) {
            return Ok(image);
        }
        let bytes = unpack(file)?.into_bytes();
        if let Some(cache) = &how.cache {
            // If it cannot be kept, the next run takes longer.
            let _ = cache.put(name, &bytes);
        }
        Self::place(Source::Memory(bytes), how, random).context("it cannot be relocated")
    }

    /// Chooses an address for an unpacked kernel; `None` if its file is damaged.
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

    /// Passes up to `size` bytes from `offset` to `take`; returns how many there were.
    pub(crate) fn read(
        &self,
        offset: u64,
        size: usize,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        /// The size of the largest relocation.
        const MOST: usize = 8;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.size);
        let size = size.min(self.size - offset);
        // A relocation may begin before these bytes or end after them.
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

/// Returns a random number below its argument.
pub(crate) type Random<'a> = dyn FnMut(u64) -> u64 + 'a;

/// An unpredictable number below `end`.
pub(crate) fn random(end: u64) -> u64 {
    let mut bytes = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    // Once the kernel's generator is initialised, a request of so few bytes does not fail.
    let _ = rustix::rand::getrandom(&mut bytes, flags);
    u64::from_le_bytes(bytes) % end.max(1)
}

/// The name of a kernel's file in the cache.
fn name(file: &[u8]) -> String {
    let mut name = String::new();
    for byte in Sha256::digest(file) {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    format!("{name}-{VERSION}")
}

/// Reads the kernel from its part of a file.
///
/// # Errors
/// It cannot be read, or is too large.
fn read(file: &File, part: Part) -> Result<Vec<u8>> {
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
        bail!("the compressed data is not an arm64 Image");
    }
    Ok(Unpacked {
        image,
        slots: 1,
        alignment: 0,
        lists: Default::default(),
    })
}

/// The compressed payload of an EFI zboot image (drivers/firmware/efi/libstub/zboot-header.S):
/// `None` if `file` is not one, `Some(None)` if it is cut off.
fn zboot_payload(file: &[u8]) -> Option<Option<&[u8]>> {
    let is_zboot = file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg");
    let number = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
    is_zboot.then(|| file.get(number(8)?..)?.get(..number(12)?))
}
