//! Free memory, handed out in slices.
//!
//! The room of this floor that holds `unsafe`.

use super::{Architecture, Board};
use crate::boot::memory::{PlacementError, Planner, Range, Request, Side};
use core::{marker::PhantomData, mem::MaybeUninit};

/// All memory that is free until the hand-off. There is one value of this type.
pub(super) struct Memory {
    planner: Planner,
}

impl Memory {
    /// Takes the board's free memory over.
    ///
    /// # Safety
    ///
    /// As for [`run`](super::run).
    pub unsafe fn of<B: Board>(board: &B) -> Self {
        Self {
            planner: Planner::new(board.memory_map(), board.mapped_end(), &board.occupied()),
        }
    }

    /// All of it, to be divided anew.
    pub fn arena(&mut self) -> Arena<'_> {
        Arena {
            planner: self.planner.clone(),
            memory: PhantomData,
        }
    }
}

/// Divides the free memory. When it is gone, with all that it gave out, another one starts afresh.
pub(super) struct Arena<'m> {
    planner: Planner,
    memory: PhantomData<&'m mut Memory>,
}

/// A piece of memory with its address.
pub(super) struct Block<'m> {
    pub range: Range,
    pub bytes: &'m mut [u8],
}

impl<'m> Arena<'m> {
    pub fn take(&mut self, request: &Request) -> Result<Block<'m>, PlacementError> {
        let range = self.planner.allocate(request)?;
        // SAFETY: the planner has just given it out.
        Ok(unsafe { Self::block(range) })
    }

    /// This very range; else the first part of it that is not free.
    pub fn claim(&mut self, range: Range) -> Result<Block<'m>, Range> {
        let range = self.planner.claim(range)?;
        // SAFETY: the planner has just given it out.
        Ok(unsafe { Self::block(range) })
    }

    /// Keeps `range` free, as far as it is.
    pub fn occupy(&mut self, range: Range) {
        self.planner.occupy(range);
    }

    /// # Safety
    ///
    /// `range` must be one that this arena's planner has given out, which it does once.
    unsafe fn block(range: Range) -> Block<'m> {
        let start = core::ptr::with_exposed_provenance_mut(range.start as usize);
        let size = range.size() as usize;
        // SAFETY: the planner gives out ranges of free memory, each once, none at address 0, and
        // whoever made `Memory` promised that it is identity-mapped RAM that nothing else uses. An
        // arena borrows all of it for `'m`. RAM holds bytes, whatever they are.
        let bytes = unsafe { core::slice::from_raw_parts_mut(start, size) };
        Block { range, bytes }
    }

    /// Moves `value` there, so that it takes no room on the stack. It is never dropped.
    pub fn keep<T>(&mut self, what: &'static str, value: T) -> Result<&'m mut T, PlacementError> {
        let block = self.take(&Request {
            align: align_of::<T>() as u64,
            side: Side::High,
            ..Request::new(what, size_of::<T>() as u64)
        })?;
        let place = block.bytes.as_mut_ptr().cast::<MaybeUninit<T>>();
        // SAFETY: the block is aligned for a `T`, as large as one, and for `'m` nobody else's.
        let place = unsafe { &mut *place };
        Ok(place.write(value))
    }

    /// What is left of it, to be divided anew each time.
    pub fn rest(&mut self) -> Arena<'_> {
        Arena {
            planner: self.planner.clone(),
            memory: PhantomData,
        }
    }

    /// The largest piece there is, of at most `limit` bytes.
    pub fn take_largest(&mut self, limit: u64) -> Result<Block<'m>, PlacementError> {
        let size = self.planner.largest_free().min(limit);
        self.take(&Request {
            align: 4096,
            min: 0,
            // The ends of free memory need not be aligned.
            ..Request::new("scratch memory", size.saturating_sub(8192))
        })
    }
}

/// Whether this machine runs x86-64 payloads, by the Linux x86 boot protocol.
pub(super) fn is_x86<B: Board>() -> bool {
    B::ARCHITECTURE == Architecture::X86_64
}
