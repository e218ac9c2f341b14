//! The memory map and the planner that places payloads in it.

mod planner;
#[cfg(test)]
mod tests;

pub use planner::{ClaimError, MAX_FREE, Obstacle, PlacementError, Planner, Request, Side};

use core::fmt;
use heapless::Vec;

/// The most regions a [`MemoryMap`] holds: as many as a zero page has room for (Linux x86 boot
/// protocol, `e820_table`).
pub const MAX_REGIONS: usize = 128;

const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Physical addresses from `start` up to, and without, `end`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

impl Range {
    /// `size` bytes from `start`; cut off at the end of the address space.
    #[must_use]
    pub const fn with_size(start: u64, size: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(size),
        }
    }

    /// Size in bytes; 0 if the range is empty or the wrong way round.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the two share an address.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether every address of `other` is in this range.
    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The addresses that are in both; of size 0 if there are none.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

/// A number of bytes as people write it: `512 MiB`, `1.5 KiB`, `17 bytes`.
///
/// Whole numbers stand without a fraction; others are cut after one digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0;
        // 1536 MiB reads better than 1.5 GiB next to 512 MiB, so GiB only where it is exact.
        let (shift, unit) = if size >= GIB && size.is_multiple_of(GIB) {
            (30_u32, "GiB")
        } else if size >= MIB {
            (20, "MiB")
        } else if size >= KIB {
            (10, "KiB")
        } else {
            return write!(f, "{size} bytes");
        };
        let whole = size >> shift;
        let rest = size & !(u64::MAX << shift);
        if rest == 0 {
            write!(f, "{whole} {unit}")
        } else {
            // `rest` is below 2^30, so ten times that is far from the end of 64 bits.
            write!(f, "{whole}.{} {unit}", rest.saturating_mul(10) >> shift)
        }
    }
}

/// What a region of the memory map is for; the numbers are those of e820 (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM that is free for use.
    Usable = 1,
    /// Not for use.
    Reserved = 2,
    /// ACPI tables; RAM once they were read.
    AcpiReclaimable = 3,
    /// ACPI's own storage.
    AcpiNvs = 4,
    /// Broken RAM.
    Unusable = 5,
    /// Persistent memory.
    Persistent = 7,
}

/// One region of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Where it is.
    pub range: Range,
    /// What it is for.
    pub kind: MemoryKind,
}

/// The machine's memory as its platform describes it, handed on to the kernel as it is.
pub type MemoryMap = Vec<MemoryRegion, MAX_REGIONS>;
