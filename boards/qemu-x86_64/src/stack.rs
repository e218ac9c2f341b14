//! The firmware's stacks.

use core::cell::UnsafeCell;

/// A stack above a guard page that [`paging`] unmaps, so that an overflow causes a page fault.
#[repr(C, align(4096))]
pub struct Stack<const SIZE: usize> {
    guard: UnsafeCell<[u8; 4096]>,
    space: UnsafeCell<[u8; SIZE]>,
}

// SAFETY: no code refers to the content; only the CPU reaches it, through its stack pointer.
unsafe impl<const SIZE: usize> Sync for Stack<SIZE> {}

impl<const SIZE: usize> Stack<SIZE> {
    /// An unused stack.
    pub const fn new() -> Self {
        const { assert!(SIZE.is_multiple_of(4096), "a stack is whole pages") };
        Self {
            guard: UnsafeCell::new([0; 4096]),
            space: UnsafeCell::new([0; SIZE]),
        }
    }

    /// Address of the guard page.
    pub fn guard(&self) -> u64 {
        self.guard.get().addr() as u64
    }

    /// Where the stack starts to grow down from.
    pub fn top(&self) -> u64 {
        (self.space.get().addr() + SIZE) as u64
    }
}

/// Size of [`STACK`] in bytes. If it is too small, the overflow is reported (see
/// [`exceptions`](crate::exceptions)).
pub const STACK_SIZE: usize = 128 * 1024;

/// The stack.
pub static STACK: Stack<STACK_SIZE> = Stack::new();

/// The exceptions' stack: one error line is formatted on it.
pub static EXCEPTION_STACK: Stack<{ 8 * 1024 }> = Stack::new();
