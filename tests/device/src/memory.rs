//! Guest memory, which is this process's own: an address is a pointer, but for those that a platform
//! of scattered pages or with an IOMMU has given (see `hal`).
//!
//! The device gets addresses in descriptors, as hardware does, and makes pointers of them again.
//! The driver's side exposes the provenance of everything it shares (see `hal`), so these pointers
//! may reach what was shared and nothing else.

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
/// Set in addresses that the IOMMU has given.
const MAPPED: u64 = 1 << 61;
const PAGE: u64 = PAGE_SIZE as u64;
/// Page numbers have so many bits here.
const PAGE_BITS: u32 = 48;

/// The address that the device has for `address` of a platform of scattered pages.
pub fn scattered(address: u64) -> u64 {
    SCATTERED + turn(address / PAGE) * PAGE + address % PAGE
}

/// Turns the bits of a page's number round, so that neighbours are far from each other. Done twice,
/// it is the number again.
fn turn(page: u64) -> u64 {
    page.reverse_bits() >> (u64::BITS - PAGE_BITS)
}

/// What the IOMMU lets the device reach.
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

/// Lets the device reach `size` bytes at `to`; the address that it has for them.
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

/// Lets the device no longer reach what it had at `address`.
pub fn unmap(address: u64) {
    mappings().remove(&address).expect("it was mapped");
}

/// Where `address` of the device is in this process, and how many of `size` bytes there are together.
fn translate(address: u64, size: usize, direction: BufferDirection) -> (usize, usize) {
    let in_page = (PAGE - address % PAGE) as usize;
    if address & SCATTERED != 0 {
        let page = turn((address & !SCATTERED) / PAGE);
        ((page * PAGE + address % PAGE) as usize, size.min(in_page))
    } else if address & MAPPED != 0 {
        let mappings = mappings();
        let mapping = mappings.range(..=address).next_back();
        // What the device has written, its record may read.
        let found = mapping.filter(|(start, mapping)| {
            let may = [BufferDirection::DriverToDevice, mapping.direction].contains(&direction);
            may && address - **start + size as u64 <= mapping.size
        });
        let (start, mapping) =
            found.expect("a device behind an IOMMU touches what it has not, or the other way");
        ((mapping.to + (address - start)) as usize, size)
    } else {
        (address as usize, size)
    }
}

/// Copies `out.len()` bytes from `address`.
///
/// # Safety
///
/// The driver must have shared that range with the device and not have it back yet.
pub unsafe fn read(address: u64, out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        let rest = &mut out[done..];
        let from = address + done as u64;
        let (from, size) = translate(from, rest.len(), BufferDirection::DriverToDevice);
        let from = with_exposed_provenance::<u8>(from);
        // SAFETY: promised by the caller; `out` is ours, so they do not overlap.
        unsafe { from.copy_to_nonoverlapping(rest.as_mut_ptr(), size) };
        done += size;
    }
}

/// Copies `bytes` to `address`.
///
/// # Safety
///
/// As [`read`], and the range must have been shared for writing.
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
