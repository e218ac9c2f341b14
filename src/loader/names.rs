//! Sorted lists of the names in directories, without a heap, in memory given by the caller.

use super::shares::BoardReadDir;
use crate::{DirEntry, Error, loader::Board};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One name.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    /// Its offset in the text.
    start: u32,
    /// Its length in bytes.
    length: u32,
}

/// A stack of lists: the list of a directory is above that of its parent.
pub(super) struct Names<'a> {
    records: &'a mut [Record],
    text: &'a mut [u8],
    /// The end of the used part.
    top: Mark,
}

/// A position in the memory: the number of records and of bytes of text below it.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    records: u32,
    text: u32,
}

/// The list of one directory.
#[derive(Clone, Copy)]
pub(super) struct List {
    /// Where it begins.
    below: Mark,
    next: u32,
    end: u32,
}

/// Why a directory cannot be listed.
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
    /// Uses a third of `scratch` for records, which have 8 bytes, and the rest for names, which have about 16.
    pub fn new(scratch: &'a mut [u8]) -> Self {
        let third = scratch.len() / 3;
        let (records, text) = scratch.split_at_mut(third);
        // Use only the part with the alignment and a multiple of the size of a record.
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

    /// Reads a directory and sorts its names in byte order, as the topmost list.
    pub fn read<B: Board>(&mut self, entries: &mut BoardReadDir<'_, B>) -> Result<List, ListError> {
        let below = self.top;
        let result = self.fill::<B>(entries);
        if let Err(error) = result {
            self.top = below;
            return Err(error);
        }
        let Self { records, text, .. } = self;
        let list = &mut records[below.records as usize..self.top.records as usize];
        sort(list, text);
        Ok(List {
            below,
            next: below.records,
            end: self.top.records,
        })
    }

    fn fill<B: Board>(&mut self, entries: &mut BoardReadDir<'_, B>) -> Result<(), ListError> {
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

    /// Removes `list`, which must be the topmost one.
    pub fn drop_list(&mut self, list: &List) {
        self.top = list.below;
    }
}

/// Sorts names in byte order by heapsort: it needs no memory, O(n log n) steps for any names, and 5 KiB less code
/// than `sort_unstable_by`.
fn sort(records: &mut [Record], text: &[u8]) {
    let is_less = |a: &Record, b: &Record| slice(text, a) < slice(text, b);
    // Moves the record at `top` down to its place in the heap below it.
    let sift = |heap: &mut [Record], mut top: usize| {
        while let Some(left) = heap.get(2 * top + 1) {
            let right = heap.get(2 * top + 2);
            let is_right = right.is_some_and(|right| is_less(left, right));
            let child = 2 * top + 1 + usize::from(is_right);
            if !is_less(&heap[top], &heap[child]) {
                break;
            }
            heap.swap(top, child);
            top = child;
        }
    };
    for top in (0..records.len() / 2).rev() {
        sift(records, top);
    }
    for end in (1..records.len()).rev() {
        records.swap(0, end);
        sift(&mut records[..end], 0);
    }
}

fn slice<'t>(text: &'t [u8], record: &Record) -> &'t [u8] {
    let start = record.start as usize;
    text.get(start..start + record.length as usize)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::vec::Vec;

    #[test]
    fn names_are_sorted_in_byte_order() {
        for seed in seeds(300) {
            let random = &mut Random::new(seed);
            let count = random.below(70);
            let names: Vec<Vec<u8>> = (0..count)
                .map(|_| {
                    let length = random.below(4);
                    (0..length).map(|_| b'a' + random.below(3) as u8).collect()
                })
                .collect();
            let text = names.concat();
            let mut start = 0;
            let mut records: Vec<Record> = Vec::new();
            for name in &names {
                let length = name.len() as u32;
                records.push(Record { start, length });
                start += length;
            }
            sort(&mut records, &text);
            let sorted: Vec<&[u8]> = records.iter().map(|record| slice(&text, record)).collect();
            let mut expected: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            expected.sort_unstable();
            assert_eq!(sorted, expected);
        }
    }
}
