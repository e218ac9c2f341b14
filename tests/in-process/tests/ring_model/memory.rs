//! The pages of a ring for loom, which reports an access that is not ordered after another thread's.

use crate::hal::{BufferDirection, Hal, PhysAddr};
use bootshare::DeviceError;
pub use loom::sync::atomic::fence;
use loom::{
    cell::UnsafeCell,
    sync::{Arc, atomic::AtomicU16},
};
use std::{cell::RefCell, marker::PhantomData};
use zerocopy::{FromBytes, IntoBytes};

/// The modelled bytes of a page; a ring of two descriptors uses fewer.
const BYTES: usize = 48;

thread_local! {
    /// The pages made so far, for the device.
    pub static MADE: RefCell<Vec<Arc<Memory>>> = const { RefCell::new(Vec::new()) };
}

/// A page. Each even offset has an atomic, which orders other accesses, and a plain value, whose accesses must be
/// ordered.
pub struct Memory {
    atomics: Vec<AtomicU16>,
    plain: Vec<UnsafeCell<u64>>,
}

impl Memory {
    pub fn atomic(&self, offset: usize) -> &AtomicU16 {
        &self.atomics[offset / 2]
    }

    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        // SAFETY: loom fails the test if another thread may write at the same time.
        let value = self.plain[offset / 2].with(|at| unsafe { *at });
        T::read_from_prefix(value.as_bytes())
            .expect("8 bytes at most")
            .0
    }

    pub fn write<T: IntoBytes + zerocopy::Immutable>(&self, offset: usize, value: T) {
        let mut bytes = [0; 8];
        value.write_to_prefix(&mut bytes).expect("8 bytes at most");
        // SAFETY: loom fails the test if another thread may access the value at the same time.
        self.plain[offset / 2].with_mut(|at| unsafe { *at = u64::from_ne_bytes(bytes) });
    }
}

/// Replaces the type of `src/session/memory.rs`.
pub struct Pages<H: Hal, const COUNT: usize>(Arc<Memory>, PhantomData<H>);

impl<H: Hal, const COUNT: usize> Pages<H, COUNT> {
    pub fn new(_: BufferDirection) -> Result<Self, DeviceError> {
        let memory = Arc::new(Memory {
            atomics: (0..BYTES / 2).map(|_| AtomicU16::new(0)).collect(),
            plain: (0..BYTES / 2).map(|_| UnsafeCell::new(0)).collect(),
        });
        MADE.with_borrow_mut(|made| made.push(Arc::clone(&memory)));
        Ok(Self(memory, PhantomData))
    }

    pub fn address(&self, offset: usize) -> PhysAddr {
        offset as PhysAddr
    }

    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        self.0.read(offset)
    }

    pub fn write<T: IntoBytes + zerocopy::Immutable>(&mut self, offset: usize, value: T) {
        self.0.write(offset, value);
    }

    pub fn atomic(&self, offset: usize) -> &AtomicU16 {
        self.0.atomic(offset)
    }
}

pub fn or_abort<R>(act: impl FnOnce() -> R) -> R {
    act()
}
