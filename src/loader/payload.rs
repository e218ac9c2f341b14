//! A payload that is being loaded: its open files, and the parts of them to read into memory.

use super::{Board, path::Path, shares::BoardFile};
use crate::{
    Error,
    boot::{
        elf::MAX_SEGMENTS,
        entry::{MAX_INITRDS, Place},
        image,
        memory::Range,
    },
};
use heapless::{String, Vec};

/// Most initrds of a payload, and most open files: those of an entry, and one or two of an image.
pub(super) const MAX_PARTS: usize = MAX_INITRDS + 2;

/// Most parts to read: the segments of an ELF program, two of which may be split by the memory that the
/// firmware occupies, the initrds of the entry, and two of a unified kernel image.
pub(super) const MAX_WANTED: usize = MAX_SEGMENTS + 2 + MAX_INITRDS + 2;

/// The index of the kernel's file in [`Files`].
pub(super) const KERNEL: usize = 0;

/// The index of the file that the kernel was packed in, if a prepared kernel is read instead of it.
pub(super) const PACKED: usize = usize::MAX;

/// The position in [`Files::list`] of the file with this index.
pub(super) const fn in_list(index: usize) -> usize {
    if index == PACKED { KERNEL } else { index }
}

/// The open files of a payload: first the kernel's, then the initrds'. A thin image may name the first initrd.
pub(super) struct Files<'s, 'm, B: Board> {
    /// Each file with the place where it was found.
    pub list: Vec<(Place<'m>, BoardFile<'s, B>), MAX_PARTS>,
    /// The file to read instead of the kernel's.
    pub prepared: Option<Prepared<'s, B>>,
}

/// A kernel that the host has decompressed.
pub(super) struct Prepared<'s, B: Board> {
    /// Its name below the original file.
    pub name: String<64>,
    pub file: BoardFile<'s, B>,
}

impl<'s, 'm, B: Board> Files<'s, 'm, B> {
    /// The path of the file with this index.
    pub fn path(&self, index: usize) -> Path {
        Path::of(&self.list[in_list(index)].0)
    }

    pub fn get(&self, index: usize) -> &BoardFile<'s, B> {
        match &self.prepared {
            Some(prepared) if index == KERNEL => &prepared.file,
            _ => &self.list[in_list(index)].1,
        }
    }

    /// Opens a file again after its share was resumed.
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

/// A part of a file to read, and the memory for it.
pub(super) struct Wanted<'m> {
    /// The index of the file.
    pub file: usize,
    /// The offset in the file, in bytes.
    pub offset: u64,
    pub bytes: &'m mut [u8],
}

/// All parts to read.
pub(super) type WantedList<'m> = Vec<Wanted<'m>, MAX_WANTED>;

/// Registers `bytes` to be filled from `offset` of a file on.
pub(super) fn want<'m>(wanted: &mut WantedList<'m>, file: usize, offset: u64, bytes: &'m mut [u8]) {
    // It fits: see `MAX_WANTED`.
    _ = wanted.push(Wanted {
        file,
        offset,
        bytes,
    });
}

/// A kernel and everything that is loaded with it.
pub(super) struct Payload<'s, 'm, B: Board> {
    pub files: Files<'s, 'm, B>,
    /// The path of the kernel's file.
    pub path: Path,
    /// The range of the kernel in its file.
    pub kernel: Range,
    /// The first bytes of the kernel.
    pub head: Vec<u8, { image::HEAD_BYTES }>,
    /// The command line in a unified kernel image.
    pub inner: &'m [u8],
    /// The command lines of the image's addons.
    pub addons: &'m [u8],
    /// The device tree in a unified kernel image or addon, and the place of its file.
    pub tree: Option<(Place<'m>, &'m [u8])>,
    /// The initrds: the index of the file, and the range in it.
    pub initrds: Vec<(usize, Range), MAX_PARTS>,
    /// The number of initrds that come before those of the entry.
    pub before: usize,
    /// The parts to read once everything has its place.
    pub wanted: WantedList<'m>,
    /// The command line of the entry.
    pub text: &'m [u8],
    /// The words that the firmware's own command line adds to it.
    pub more: &'m [u8],
    pub device_tree: DeviceTree<'m>,
}

impl<B: Board> Payload<'_, '_, B> {
    /// A payload without files.
    pub fn new() -> Self {
        Self {
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
        }
    }
}

/// The device tree for the kernel.
#[derive(Clone, Copy)]
pub(super) enum DeviceTree<'m> {
    /// The machine's own, if it has one.
    Machine,
    /// One from a file.
    File { place: Place<'m>, blob: &'m [u8] },
}
