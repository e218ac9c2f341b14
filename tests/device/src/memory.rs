//! Guest memory, which is the memory of this process. Addresses are pointers, except those of platforms with
//! scattered pages or with an IOMMU (see `hal`).
//!
//! As in hardware, the device gets addresses in descriptors. It makes pointers from them. The driver's side exposes
//! the provenance of everything that it shares (see `hal`), so these pointers may access what was shared and
//! nothing else.

use bootshare::hal::{BufferDirection, PAGE_SIZE};
use std::{
    collections::BTreeMap,
    ptr::{with_exposed_provenance, with_exposed_provenance_mut},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
};

/// Set in addresses of scattered pages.
const SCATTERED: u64 = 1 << 62;
/// Set in addresses of the IOMMU.
const MAPPED: u64 = 1 << 61;
const PAGE: u64 = PAGE_SIZE as u64;
/// The number of bits of a page number.
const PAGE_BITS: u32 = 48;

/// The device address of `address` on a platform with scattered pages.
pub fn scattered(address: u64) -> u64 {
    SCATTERED + turn(address / PAGE) * PAGE + address % PAGE
}

/// Reverses the bits of a page number, so that neighbours become distant. It is its own inverse.
fn turn(page: u64) -> u64 {
    page.reverse_bits() >> (u64::BITS - PAGE_BITS)
}

/// A range that the device can access through the IOMMU.
struct Mapping {
    to: u64,
    size: u64,
    direction: BufferDirection,
}

static MAPPINGS: Mutex<BTreeMap<u64, Mapping>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(MAPPED);

fn mappings() -> MutexGuard<'static, BTreeMap<u64, Mapping>> {
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maps `size` bytes at `to` for the device. Returns their device address.
pub fn map(to: u64, size: usize, direction: BufferDirection) -> u64 {
    let size = size as u64;
    let address = NEXT.fetch_add(size.next_multiple_of(PAGE) + PAGE, Ordering::Relaxed);
    let mapping = Mapping {
        to,
        size,
        direction,
    };
    mappings().insert(address, mapping);
    address
}

/// Removes the mapping at the device address `address`.
pub fn unmap(address: u64) {
    mappings().remove(&address).expect("it was mapped");
}

/// The address in this process for a device address, and how many of `size` bytes are contiguous there.
fn translate(address: u64, size: usize, direction: BufferDirection) -> (usize, usize) {
    let in_page = (PAGE - address % PAGE) as usize;
    if address & SCATTERED != 0 {
        let page = turn((address & !SCATTERED) / PAGE);
        ((page * PAGE + address % PAGE) as usize, size.min(in_page))
    } else if address & MAPPED != 0 {
        let mappings = mappings();
        let mapping = mappings.range(..=address).next_back();
        // The device's record may read what the device has written.
        let found = mapping.filter(|(start, mapping)| {
            let may = [BufferDirection::DriverToDevice, mapping.direction].contains(&direction);
            may && address - **start + size as u64 <= mapping.size
        });
        let (start, mapping) = found.expect(
            "the device accesses memory that is not mapped, or not mapped in this direction",
        );
        ((mapping.to + (address - start)) as usize, size)
    } else {
        (address as usize, size)
    }
}

/// Copies `out.len()` bytes from `address`.
///
/// # Safety
///
/// The driver must have shared that range with the device, and not have taken it back.
pub unsafe fn read(address: u64, out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        let rest = &mut out[done..];
        let from = address + done as u64;
        let (from, size) = translate(from, rest.len(), BufferDirection::DriverToDevice);
        let from = with_exposed_provenance::<u8>(from);
        // SAFETY: the caller's promise; `out` belongs to us, so they do not overlap.
        unsafe { from.copy_to_nonoverlapping(rest.as_mut_ptr(), size) };
        done += size;
    }
}

/// Copies `bytes` to `address`.
///
/// # Safety
///
/// As [`read`]; in addition, the range must have been shared for writing.
pub unsafe fn write(address: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let to = address + done as u64;
        let (to, size) = translate(to, rest.len(), BufferDirection::DeviceToDriver);
        let to = with_exposed_provenance_mut::<u8>(to);
        // SAFETY: as above.
        unsafe { to.copy_from_nonoverlapping(rest.as_ptr(), size) };
        done += size;
    }
}

/// Reads the index that a driver publishes at `address`, with acquire ordering.
///
/// # Safety
///
/// As [`read`], for two aligned bytes.
pub unsafe fn load_index(address: u64) -> u16 {
    let pointer = with_exposed_provenance::<AtomicU16>(address as usize);
    // SAFETY: the caller's promise.
    unsafe { &*pointer }.load(Ordering::Acquire)
}

/// Publishes an index at `address`, with release ordering.
///
/// # Safety
///
/// As [`write`], for two aligned bytes.
pub unsafe fn store_index(address: u64, value: u16) {
    let pointer = with_exposed_provenance::<AtomicU16>(address as usize);
    // SAFETY: the caller's promise.
    unsafe { &*pointer }.store(value, Ordering::Release);
}
