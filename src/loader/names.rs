//! The names of a directory, sorted, without a heap: they lie in scratch memory.

use super::shares::BoardReadDir;
use crate::{DirEntry, Error, loader::Board};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One name.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    /// Where in the text it starts.
    start: u32,
    /// Its length in bytes.
    length: u32,
}

/// Lists of names, one above the other: a directory's list lies above its parent's.
pub(super) struct Names<'a> {
    records: &'a mut [Record],
    text: &'a mut [u8],
    /// What is in use.
    top: Mark,
}

/// How full the lists are.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    records: u32,
    text: u32,
}

/// The list of one directory.
#[derive(Clone, Copy)]
pub(super) struct List {
    /// What lies below it.
    below: Mark,
    next: u32,
    end: u32,
}

/// Why a directory can't be listed.
pub(super) enum ListError {
    /// The share's error.
    Share(Error),
    /// There is not enough memory for its names.
    TooMany,
}

impl core::fmt::Display for ListError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Share(error) => error.fmt(f),
            Self::TooMany => f.write_str(
                "there is not enough memory to sort its entries; give the machine more memory",
            ),
        }
    }
}

impl From<Error> for ListError {
    fn from(error: Error) -> Self {
        Self::Share(error)
    }
}

impl<'a> Names<'a> {
    /// Lists in `scratch`, a third of it for records: names have some 16 bytes.
    pub fn new(scratch: &'a mut [u8]) -> Self {
        let third = scratch.len() / 3;
        let (records, text) = scratch.split_at_mut(third);
        // What does not fit the alignment and size of a record is left out.
        let skip = records.as_ptr().align_offset(align_of::<Record>());
        let records = records.get_mut(skip..).unwrap_or_default();
        let whole = records.len() / size_of::<Record>() * size_of::<Record>();
        let records = <[Record]>::mut_from_bytes(&mut records[..whole]).unwrap_or_default();
        Self {
            records,
            text,
            top: Mark {
                records: 0,
                text: 0,
            },
        }
    }

    /// Reads a directory and sorts its names in byte order.
    pub fn read<B: Board>(&mut self, entries: BoardReadDir<'_, B>) -> Result<List, ListError> {
        let below = self.top;
        let result = self.fill::<B>(entries);
        if let Err(error) = result {
            self.top = below;
            return Err(error);
        }
        let Self { records, text, .. } = self;
        let list = &mut records[below.records as usize..self.top.records as usize];
        list.sort_unstable_by(|a, b| slice(text, a).cmp(slice(text, b)));
        Ok(List {
            below,
            next: below.records,
            end: self.top.records,
        })
    }

    fn fill<B: Board>(&mut self, entries: BoardReadDir<'_, B>) -> Result<(), ListError> {
        for entry in entries {
            self.push(&entry?).ok_or(ListError::TooMany)?;
        }
        Ok(())
    }

    fn push(&mut self, entry: &DirEntry) -> Option<()> {
        let name = entry.file_name();
        let Mark { records, text } = self.top;
        let length = name.len() as u32;
        let end = text.checked_add(length)?;
        let room = self.text.get_mut(text as usize..end as usize)?;
        room.copy_from_slice(name);
        *self.records.get_mut(records as usize)? = Record {
            start: text,
            length,
        };
        self.top = Mark {
            records: records + 1,
            text: end,
        };
        Some(())
    }

    /// The next name of `list`, which must be the topmost one.
    pub fn next(&self, list: &mut List) -> Option<&[u8]> {
        if list.next >= list.end {
            return None;
        }
        let record = self.records.get(list.next as usize)?;
        list.next += 1;
        Some(slice(self.text, record))
    }

    /// Takes `list`, the topmost one, off.
    pub fn drop_list(&mut self, list: &List) {
        self.top = list.below;
    }
}

fn slice<'t>(text: &'t [u8], record: &Record) -> &'t [u8] {
    let start = record.start as usize;
    text.get(start..start + record.length as usize)
        .unwrap_or_default()
}
