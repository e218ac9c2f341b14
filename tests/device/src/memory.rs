//! Guest memory, which is this process's own: an address is a pointer.
//!
//! The device gets addresses in descriptors, as hardware does, and makes pointers of them again.
//! The driver's side exposes the provenance of everything it shares (see `hal`), so these pointers
//! may reach what was shared and nothing else.

use std::{
    ptr::{with_exposed_provenance, with_exposed_provenance_mut},
    sync::atomic::{AtomicU16, Ordering},
};

/// Copies `out.len()` bytes from `address`.
///
/// # Safety
///
/// The driver must have shared that range with the device and not have it back yet.
pub unsafe fn read(address: u64, out: &mut [u8]) {
    let from = with_exposed_provenance::<u8>(address as usize);
    // SAFETY: promised by the caller; `out` is ours, so they do not overlap.
    unsafe { from.copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
}

/// Copies `bytes` to `address`.
///
/// # Safety
///
/// As [`read`], and the range must have been shared for writing.
pub unsafe fn write(address: u64, bytes: &[u8]) {
    let to = with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: as above.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

/// Reads the index that a driver publishes at `address`, and with it what came before.
///
/// # Safety
///
/// As [`read`], for two aligned bytes.
pub unsafe fn load_index(address: u64) -> u16 {
    let pointer = with_exposed_provenance::<AtomicU16>(address as usize);
    // SAFETY: promised by the caller.
    unsafe { &*pointer }.load(Ordering::Acquire)
}

/// Publishes an index at `address`, and with it what was written before.
///
/// # Safety
///
/// As [`write`], for two aligned bytes.
pub unsafe fn store_index(address: u64, value: u16) {
    let pointer = with_exposed_provenance::<AtomicU16>(address as usize);
    // SAFETY: promised by the caller.
    unsafe { &*pointer }.store(value, Ordering::Release);
}
