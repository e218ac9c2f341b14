//! Allocates free memory as slices.
//!
//! This is the only module of this floor that consists of `unsafe` code.

use super::Board;
use crate::boot::memory::{PlacementError, Planner, Range, Request, Side};
use core::{marker::PhantomData, mem::MaybeUninit};

/// All memory that is free until the hand-off. There is only one value of this type.
pub(super) struct Memory {
    planner: Planner,
}

impl Memory {
    /// Takes over the board's free memory.
    ///
    /// # Safety
    ///
    /// As for [`run`](super::run).
    pub unsafe fn of<B: Board>(board: &B) -> Self {
        Self {
            planner: Planner::new(board.memory_map(), board.mapped_end(), &board.occupied()),
        }
    }

    /// An arena of all free memory.
    pub fn arena(&mut self) -> Arena<'_> {
        Arena {
            planner: self.planner.clone(),
            memory: PhantomData,
        }
    }
}

/// Allocates from the free memory. Once an arena and its slices are dropped, a new one may reuse the memory.
pub(super) struct Arena<'m> {
    planner: Planner,
    memory: PhantomData<&'m mut Memory>,
}

/// Allocated memory and its addresses.
pub(super) struct Block<'m> {
    pub range: Range,
    pub bytes: &'m mut [u8],
}

impl<'m> Arena<'m> {
    pub fn take(&mut self, request: &Request) -> Result<Block<'m>, PlacementError> {
        let range = self.planner.allocate(request)?;
        // SAFETY: the planner has just allocated it.
        Ok(unsafe { Self::block(range) })
    }

    /// Allocates exactly `range`; the error is the first part of it that is not free.
    pub fn claim(&mut self, range: Range) -> Result<Block<'m>, Range> {
        let range = self.planner.claim(range)?;
        // SAFETY: the planner has just allocated it.
        Ok(unsafe { Self::block(range) })
    }

    /// Excludes `range` from later allocations; parts of it may be in use already.
    pub fn occupy(&mut self, range: Range) {
        self.planner.occupy(range);
    }

    /// # Safety
    ///
    /// This arena's planner must have allocated `range`, and `block` must not be called for it again.
    unsafe fn block(range: Range) -> Block<'m> {
        let start = core::ptr::with_exposed_provenance_mut(range.start as usize);
        let size = range.size() as usize;
        // SAFETY: the planner allocates each range of free memory at most once, and none at address 0. The
        // creator of `Memory` has guaranteed that free memory is identity-mapped RAM that nothing else uses,
        // and an arena borrows all of it for `'m`. Any content of RAM is valid for bytes.
        let bytes = unsafe { core::slice::from_raw_parts_mut(start, size) };
        Block { range, bytes }
    }

    /// Moves `value` into the arena, so that it does not occupy the stack. It is never dropped.
    pub fn keep<T>(&mut self, what: &'static str, value: T) -> Result<&'m mut T, PlacementError> {
        let block = self.take(&Request {
            align: align_of::<T>() as u64,
            side: Side::High,
            ..Request::new(what, size_of::<T>() as u64)
        })?;
        let place = block.bytes.as_mut_ptr().cast::<MaybeUninit<T>>();
        // SAFETY: the block has the alignment and size of a `T`, and is borrowed exclusively for `'m`.
        let place = unsafe { &mut *place };
        Ok(place.write(value))
    }

    /// An arena of the memory that is left. It ends before this one allocates again.
    pub fn rest(&mut self) -> Arena<'_> {
        Arena {
            planner: self.planner.clone(),
            memory: PhantomData,
        }
    }

    /// Allocates the largest free range, but at most `limit` bytes.
    pub fn take_largest(&mut self, limit: u64) -> Result<Block<'m>, PlacementError> {
        let size = self.planner.largest_free().min(limit);
        self.take(&Request {
            align: 4096,
            min: 0,
            // The ends of the free range may not be aligned.
            ..Request::new("scratch memory", size.saturating_sub(8192))
        })
    }
}
