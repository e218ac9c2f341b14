//! The memory map and the planner that places payloads in it.

use core::fmt;
use heapless::Vec;

/// The most regions a [`MemoryMap`] holds: as many as a zero page has room for (Linux x86 boot
/// protocol, `e820_table`).
pub const MAX_REGIONS: usize = 128;

/// The most free ranges a [`Planner`] keeps: a full memory map in pieces, and some more for what
/// is occupied and allocated.
pub const MAX_FREE: usize = MAX_REGIONS + 32;

/// The first page is never free: a pointer to address 0 is a null pointer.
const FIRST_ADDRESS: u64 = 4096;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
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

/// Which end of free memory a request is served from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Side {
    /// The lowest address that fits: for kernels.
    #[default]
    Low,
    /// The highest address that fits: for an initrd, out of the kernel's way.
    High,
}

/// What [`Planner::allocate`] is asked for.
///
/// ```
/// use bootshare::boot::memory::{Request, Side};
///
/// let initrd = Request {
///     align: 4096,
///     max: 0x8000_0000,
///     side: Side::High,
///     ..Request::new("initrd", 900 << 20)
/// };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it is, for the error line: `kernel`, `initrd`, `device tree`.
    pub what: &'static str,
    /// Size in bytes. One byte is reserved for a size of 0, so that no two ranges are the same.
    pub size: u64,
    /// The start is a multiple of this many bytes; a power of two.
    pub align: u64,
    /// Lowest address to use.
    pub min: u64,
    /// End of the addresses to use: the range ends at it or below.
    pub max: u64,
    /// Where it goes if that is free and within the other wishes.
    pub preferred: Option<u64>,
    /// Which end of memory it goes to otherwise.
    pub side: Side,
}

impl Request {
    /// `size` bytes anywhere above the first MiB, low.
    ///
    /// The first MiB holds the real-mode world of a PC; set [`Request::min`] to use it.
    #[must_use]
    pub const fn new(what: &'static str, size: u64) -> Self {
        Self {
            what,
            size,
            align: 1,
            min: MIB,
            max: u64::MAX,
            preferred: None,
            side: Side::Low,
        }
    }

    /// Where in `free` the request fits, if it does. `align` is a power of two.
    fn place_in(&self, free: &Range) -> Option<Range> {
        let room = free.intersection(&Range {
            start: self.min,
            end: self.max,
        });
        let size = self.size.max(1);
        let start = match self.side {
            Side::Low => room.start.checked_next_multiple_of(self.align)?,
            Side::High => room.end.checked_sub(size)? & self.align.wrapping_neg(),
        };
        self.place_at(start, &room)
    }

    /// The range at `start`, if it is in `room`.
    fn place_at(&self, start: u64, room: &Range) -> Option<Range> {
        let range = Range {
            start,
            end: start.checked_add(self.size.max(1))?,
        };
        room.contains(&range).then_some(range)
    }
}

/// Why [`Planner::allocate`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// No free range is large enough.
    NoRoom {
        /// What was to be placed.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// Lowest address allowed.
        min: u64,
        /// End of the addresses allowed; [`u64::MAX`] if there is no limit.
        max: u64,
        /// The most bytes that would have fitted.
        largest: u64,
        /// Whether memory outside the limits would have had room.
        elsewhere: bool,
    },
    /// The alignment asked for is not a power of two.
    Alignment {
        /// What was to be placed.
        what: &'static str,
        /// The alignment in bytes.
        align: u64,
    },
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoRoom {
                what,
                size,
                min,
                max,
                largest,
                elsewhere,
            } => {
                write!(f, "{what} of {} does not fit ", Size(size))?;
                match (min > MIB, max < u64::MAX) {
                    (false, false) => f.write_str("into memory")?,
                    (false, true) => write!(f, "below {}", Size(max))?,
                    (true, false) => write!(f, "above {}", Size(min))?,
                    (true, true) => write!(f, "between {} and {}", Size(min), Size(max))?,
                }
                write!(f, "; largest free range is {}; ", Size(largest))?;
                if elsewhere {
                    write!(f, "other memory is out of reach, so use a smaller {what}")
                } else {
                    f.write_str("give the machine more memory")
                }
            }
            Self::Alignment { what, align } => {
                write!(
                    f,
                    "{what} asks for an alignment of {align}, which is no power of two"
                )
            }
        }
    }
}

impl core::error::Error for PlacementError {}

/// Why something can't lie where it has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimError {
    /// What it is: `segment`.
    pub what: &'static str,
    /// Where it has to lie.
    pub range: Range,
    /// What is in the way.
    pub obstacle: Obstacle,
}

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// From this address on there is no memory that is free for use.
    NoRam(u64),
    /// The firmware, or what the platform left there for it.
    Firmware(Range),
    /// Something else that was loaded, or what a device tree reserves, from this address on.
    Taken(u64),
}

impl Obstacle {
    /// Why `range` is not free from `taken` on, the error of [`Planner::claim`], in a machine with
    /// this memory, in which the firmware occupies these ranges.
    #[must_use]
    pub fn of(range: Range, taken: Range, map: &[MemoryRegion], occupied: &[Range]) -> Self {
        if let Err(missing) = Planner::new(map, u64::MAX, &[]).claim(range) {
            return Self::NoRam(missing.start);
        }
        let firmware = occupied.iter().find(|range| range.overlaps(&taken));
        firmware.map_or(Self::Taken(taken.start), |range| Self::Firmware(*range))
    }
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} at {:?} ", self.what, self.range)?;
        match self.obstacle {
            Obstacle::NoRam(address) => write!(
                f,
                "is not in usable memory from {address:#x} on; link it for other addresses or give \
                 the machine more memory"
            ),
            Obstacle::Firmware(range) => write!(
                f,
                "overlaps the firmware, which has {range:?}; link it for other addresses"
            ),
            Obstacle::Taken(address) => write!(
                f,
                "overlaps memory that is reserved or in use from {address:#x} on; link it for other \
                 addresses"
            ),
        }
    }
}

impl core::error::Error for ClaimError {}

/// The free memory, from which payloads get their places.
///
/// Every range that [`Planner::allocate`] hands out is inside usable memory and overlaps neither
/// a region of another kind, nor what is occupied, nor another range handed out. Should the map be
/// in more pieces than the list of free ranges holds, memory is lost: it never serves twice.
#[derive(Clone, Debug)]
pub struct Planner {
    /// Sorted, none empty, no two overlap or touch.
    free: Vec<Range, MAX_FREE>,
    mapped_end: u64,
    /// Whether there is usable memory at or above `mapped_end`.
    more_above: bool,
}

impl Planner {
    /// The memory that `map` calls usable, below `mapped_end`, without the `occupied` ranges.
    ///
    /// The regions may come in any order and may overlap; where they do, the one that is not
    /// usable wins.
    #[must_use]
    pub fn new(map: &[MemoryRegion], mapped_end: u64, occupied: &[Range]) -> Self {
        let mut planner = Self {
            free: Vec::new(),
            mapped_end,
            more_above: false,
        };
        let mapped = Range {
            start: FIRST_ADDRESS,
            end: mapped_end,
        };
        let (usable, other) = (
            map.iter().filter(|r| r.kind == MemoryKind::Usable),
            map.iter().filter(|r| r.kind != MemoryKind::Usable),
        );
        for region in usable {
            planner.more_above |= region.range.size() > 0 && region.range.end > mapped_end;
            planner.insert(region.range.intersection(&mapped));
        }
        for region in other {
            planner.occupy(region.range);
        }
        for range in occupied {
            planner.occupy(*range);
        }
        planner
    }

    /// The free ranges, lowest first.
    #[must_use]
    pub fn free(&self) -> &[Range] {
        &self.free
    }

    /// Size in bytes of the largest free range; 0 if there is none.
    #[must_use]
    pub fn largest_free(&self) -> u64 {
        self.free.iter().map(Range::size).max().unwrap_or(0)
    }

    /// Takes a place for `request` out of the free memory.
    ///
    /// The first of: the preferred address, if it meets the request's other wishes; the place
    /// nearest to the end of memory that [`Request::side`] names.
    ///
    /// # Errors
    ///
    /// [`PlacementError`] if nothing fits; the planner is as it was.
    pub fn allocate(&mut self, request: &Request) -> Result<Range, PlacementError> {
        if !request.align.is_power_of_two() {
            return Err(PlacementError::Alignment {
                what: request.what,
                align: request.align,
            });
        }
        let mut fits = self.free.iter().filter_map(|free| request.place_in(free));
        let place = self
            .preferred(request)
            .or_else(|| match request.side {
                Side::Low => fits.next(),
                Side::High => fits.next_back(),
            })
            .ok_or_else(|| self.refusal(request))?;
        self.occupy(place);
        Ok(place)
    }

    /// Takes this very `range` out of the free memory, for what can lie nowhere else.
    ///
    /// # Errors
    ///
    /// The first part of it that is not free; the planner is as it was.
    pub fn claim(&mut self, range: Range) -> Result<Range, Range> {
        let mut taken = range;
        for free in &self.free {
            if free.contains(&taken) {
                self.occupy(range);
                return Ok(range);
            }
            // The start is free, as two free ranges never touch; what follows is not.
            if free.start <= taken.start {
                taken.start = taken.start.max(free.end);
            } else {
                taken.end = taken.end.min(free.start);
                break;
            }
        }
        Err(taken)
    }

    /// Takes `range` out of the free memory, as far as it was in it.
    pub fn occupy(&mut self, range: Range) {
        if range.size() == 0 {
            return;
        }
        let mut at = 0_usize;
        while let Some(free) = self.free.get_mut(at) {
            if range.end <= free.start {
                break;
            }
            let below = Range {
                start: free.start,
                end: range.start.min(free.end),
            };
            let above = Range {
                start: range.end.max(free.start),
                end: free.end,
            };
            match (below.size() > 0, above.size() > 0) {
                (false, false) => {
                    self.free.remove(at);
                    continue;
                }
                (true, false) => *free = below,
                (false, true) => *free = above,
                (true, true) => {
                    *free = below;
                    at = at.saturating_add(1);
                    // A full list: keep the larger part, lose the other.
                    if self.free.insert(at, above).is_err()
                        && above.size() > below.size()
                        && let Some(kept) = self.free.get_mut(at.saturating_sub(1))
                    {
                        *kept = above;
                    }
                    // Free ranges do not overlap: nothing after this one is in `range`.
                    break;
                }
            }
            at = at.saturating_add(1);
        }
    }

    /// Adds `range` to the free memory, joined with what it overlaps or touches.
    fn insert(&mut self, range: Range) {
        if range.size() == 0 {
            return;
        }
        let mut joined = range;
        self.free.retain(|free| {
            let apart = free.end < joined.start || joined.end < free.start;
            if !apart {
                joined.start = joined.start.min(free.start);
                joined.end = joined.end.max(free.end);
            }
            apart
        });
        let at = self
            .free
            .iter()
            .position(|free| free.start > joined.start)
            .unwrap_or(self.free.len());
        // A full list loses the range: less memory, never memory twice.
        let _lost = self.free.insert(at, joined);
    }

    fn preferred(&self, request: &Request) -> Option<Range> {
        let start = request.preferred?;
        if !start.is_multiple_of(request.align) {
            return None;
        }
        let limits = Range {
            start: request.min,
            end: request.max,
        };
        let place = request.place_at(start, &limits)?;
        self.free
            .iter()
            .any(|free| free.contains(&place))
            .then_some(place)
    }

    fn refusal(&self, request: &Request) -> PlacementError {
        let largest = |limits: Range| {
            self.free
                .iter()
                .filter_map(|free| {
                    let room = free.intersection(&limits);
                    let start = room.start.checked_next_multiple_of(request.align)?;
                    room.end.checked_sub(start)
                })
                .max()
                .unwrap_or(0)
        };
        let everywhere = Range {
            start: 0,
            end: u64::MAX,
        };
        let limits = Range {
            start: request.min,
            end: request.max,
        };
        // Memory that the firmware does not map is a limit like the request's own.
        let (max, more_above) = if self.more_above {
            (request.max.min(self.mapped_end), true)
        } else {
            (request.max, false)
        };
        PlacementError::NoRoom {
            what: request.what,
            size: request.size,
            min: request.min,
            max,
            largest: largest(limits),
            elsewhere: more_above || largest(everywhere) >= request.size.max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, STRIDE, seeds};
    use std::{format, string::ToString, vec, vec::Vec as StdVec};

    fn usable(start: u64, end: u64) -> MemoryRegion {
        MemoryRegion {
            range: Range { start, end },
            kind: MemoryKind::Usable,
        }
    }

    fn reserved(start: u64, end: u64) -> MemoryRegion {
        MemoryRegion {
            range: Range { start, end },
            kind: MemoryKind::Reserved,
        }
    }

    fn ranges(planner: &Planner) -> StdVec<(u64, u64)> {
        planner.free().iter().map(|r| (r.start, r.end)).collect()
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        for (size, text) in [
            (0, "0 bytes"),
            (17, "17 bytes"),
            (1536, "1.5 KiB"),
            (512 * MIB, "512 MiB"),
            (2 * GIB, "2 GiB"),
            (1536 * MIB, "1536 MiB"),
            (512 * MIB - 1, "511.9 MiB"),
            (u64::MAX, "17592186044415.9 MiB"),
        ] {
            assert_eq!(Size(size).to_string(), text);
        }
    }

    #[test]
    fn regions_are_joined_and_reserved_ones_win() {
        let map = [
            usable(0x30_0000, 0x40_0000),
            reserved(0x18_0000, 0x19_0000),
            usable(0x10_0000, 0x20_0000),
            usable(0x20_0000, 0x30_0000),
            usable(0x15_0000, 0x16_0000),
            usable(0x60_0000, 0x50_0000),
        ];
        let planner = Planner::new(&map, u64::MAX, &[Range::with_size(0x3f_0000, 0x1_0000)]);
        assert_eq!(
            ranges(&planner),
            [(0x10_0000, 0x18_0000), (0x19_0000, 0x3f_0000)]
        );
        assert_eq!(planner.largest_free(), 0x26_0000);
    }

    #[test]
    fn page_zero_is_not_free_and_nothing_is_above_the_mapped_end() {
        let planner = Planner::new(&[usable(0, 8 * GIB)], 4 * GIB, &[]);
        assert_eq!(ranges(&planner), [(4096, 4 * GIB)]);
    }

    #[test]
    fn a_range_handed_out_is_gone() {
        let mut planner = Planner::new(&[usable(MIB, 4 * MIB)], u64::MAX, &[]);
        let request = Request::new("kernel", MIB);
        let first = planner.allocate(&request).unwrap();
        assert_eq!(first, Range::with_size(MIB, MIB));
        let high = Request {
            side: Side::High,
            ..request
        };
        assert_eq!(
            planner.allocate(&high).unwrap(),
            Range::with_size(3 * MIB, MIB)
        );
        assert_eq!(
            planner.allocate(&request).unwrap(),
            Range::with_size(2 * MIB, MIB)
        );
        planner.allocate(&request).unwrap_err();
        assert_eq!(planner.largest_free(), 0);
    }

    #[test]
    fn the_first_mebibyte_is_used_only_when_asked_for() {
        let mut planner = Planner::new(&[usable(0, 0x9_fc00)], u64::MAX, &[]);
        planner
            .allocate(&Request::new("zero page", 4096))
            .unwrap_err();
        let low = Request {
            min: 0,
            align: 4096,
            ..Request::new("zero page", 4096)
        };
        assert_eq!(
            planner.allocate(&low).unwrap(),
            Range::with_size(4096, 4096)
        );
    }

    #[test]
    fn the_preferred_address_is_taken_if_it_is_free_and_aligned() {
        let mut planner = Planner::new(&[usable(MIB, GIB)], u64::MAX, &[]);
        let request = Request {
            align: 2 * MIB,
            preferred: Some(16 * MIB),
            ..Request::new("kernel", 32 * MIB)
        };
        assert_eq!(planner.allocate(&request).unwrap().start, 16 * MIB);
        assert_eq!(planner.allocate(&request).unwrap().start, 48 * MIB);
        let crooked = Request {
            preferred: Some(500 * MIB + 1),
            ..request
        };
        assert_eq!(planner.allocate(&crooked).unwrap().start, 80 * MIB);
    }

    #[test]
    fn a_refusal_names_the_sizes_and_the_remedy() {
        let mut planner = Planner::new(&[usable(MIB, 513 * MIB)], u64::MAX, &[]);
        let request = Request {
            max: 2 * GIB,
            ..Request::new("initrd", 900 * MIB)
        };
        assert_eq!(
            planner.allocate(&request).unwrap_err().to_string(),
            "initrd of 900 MiB does not fit below 2 GiB; largest free range is 512 MiB; \
             give the machine more memory"
        );
        let request = Request::new("kernel", 513 * MIB);
        assert_eq!(
            planner.allocate(&request).unwrap_err().to_string(),
            "kernel of 513 MiB does not fit into memory; largest free range is 512 MiB; \
             give the machine more memory"
        );
    }

    #[test]
    fn a_refusal_says_so_when_more_memory_would_not_help() {
        let map = [usable(MIB, GIB), usable(4 * GIB, 8 * GIB)];
        let request = Request::new("initrd", 2 * GIB);
        let text = "initrd of 2 GiB does not fit below 4 GiB; largest free range is 1023 MiB; \
                    other memory is out of reach, so use a smaller initrd";
        let mut unmapped = Planner::new(&map, 4 * GIB, &[]);
        assert_eq!(unmapped.allocate(&request).unwrap_err().to_string(), text);
        let mut mapped = Planner::new(&map, u64::MAX, &[]);
        let low = Request {
            max: 4 * GIB,
            ..request
        };
        assert_eq!(mapped.allocate(&low).unwrap_err().to_string(), text);
    }

    #[test]
    fn what_can_lie_nowhere_else_gets_its_place_or_the_reason() {
        let map = [
            usable(MIB, 16 * MIB),
            reserved(8 * MIB, 9 * MIB),
            usable(16 * MIB, 64 * MIB),
        ];
        let firmware = Range::with_size(MIB, MIB);
        let mut planner = Planner::new(&map, 32 * MIB, &[firmware]);
        let mut claim = |start: u64, end: u64| {
            let range = Range { start, end };
            planner.claim(range).map_err(|taken| {
                let error = ClaimError {
                    what: "segment",
                    range,
                    obstacle: Obstacle::of(range, taken, &map, &[firmware]),
                };
                error.to_string()
            })
        };
        let place = Range::with_size(15 * MIB, 2 * MIB);
        assert_eq!(claim(15 * MIB, 17 * MIB), Ok(place));
        for (start, end, text) in [
            (
                0,
                MIB,
                "its segment at 0x0..0x100000 is not in usable memory from 0x0 on; \
                 link it for other addresses or give the machine more memory",
            ),
            (
                7 * MIB,
                10 * MIB,
                "its segment at 0x700000..0xa00000 is not in usable memory from 0x800000 on; \
                 link it for other addresses or give the machine more memory",
            ),
            (
                MIB + 1,
                3 * MIB,
                "its segment at 0x100001..0x300000 overlaps the firmware, which has \
                 0x100000..0x200000; link it for other addresses",
            ),
            (
                14 * MIB,
                18 * MIB,
                "its segment at 0xe00000..0x1200000 overlaps memory that is reserved or in use \
                 from 0xf00000 on; link it for other addresses",
            ),
            // Not mapped.
            (
                31 * MIB,
                33 * MIB,
                "its segment at 0x1f00000..0x2100000 overlaps memory that is reserved or in use \
                 from 0x2000000 on; link it for other addresses",
            ),
        ] {
            assert_eq!(claim(start, end).unwrap_err(), text);
        }
    }

    #[test]
    fn odd_requests_are_refused_without_a_panic() {
        let mut planner = Planner::new(&[usable(0, u64::MAX)], u64::MAX, &[]);
        for align in [0, 3] {
            let request = Request {
                align,
                ..Request::new("kernel", 1)
            };
            assert_eq!(
                planner.allocate(&request).unwrap_err(),
                PlacementError::Alignment {
                    what: "kernel",
                    align
                }
            );
        }
        for side in [Side::Low, Side::High] {
            for (size, align, min, max) in [
                (u64::MAX, 1, 0, u64::MAX),
                (1, 1, u64::MAX, u64::MAX),
                (1, 1, 10, 5),
                (4096, 1 << 63, (1 << 63) + 1, u64::MAX),
            ] {
                let request = Request {
                    what: "kernel",
                    size,
                    align,
                    min,
                    max,
                    preferred: Some(u64::MAX),
                    side,
                };
                let error = planner.allocate(&request).unwrap_err();
                assert!(!format!("{error}").is_empty());
            }
        }
    }

    #[test]
    fn a_list_that_overflows_loses_memory_and_gives_none_twice() {
        // One large region with more holes than the list has places for.
        let holes: StdVec<_> = (1..=400_u64)
            .map(|i| Range::with_size(MIB + i * 0x2000, 0x1000))
            .collect();
        let mut planner = Planner::new(&[usable(MIB, GIB)], u64::MAX, &holes);
        assert!(planner.free().len() <= MAX_FREE);
        let mut given = StdVec::new();
        while let Ok(range) = planner.allocate(&Request::new("page", 0x1000)) {
            let mut taken = holes.iter().chain(&given).step_by(STRIDE);
            assert!(taken.all(|other| !other.overlaps(&range)));
            given.push(range);
            if given.len() > 500 {
                break;
            }
        }
        assert!(given.len() > 300);
    }

    /// Random maps, random requests: what is handed out is inside usable memory, in nobody's way,
    /// aligned and within the limits; and a refusal is true.
    #[test]
    fn whatever_the_map_ranges_are_free_aligned_and_within_limits() {
        // Addresses are multiples of `GRAIN` here, so that memory can be checked cell by cell.
        const GRAIN: u64 = 0x1000;
        const CELLS: u64 = if cfg!(miri) { 256 } else { 4096 };
        for seed in seeds(600) {
            let random = &mut Random::new(seed);
            let mut map = StdVec::new();
            let mut free = vec![false; CELLS as usize];
            let mut blocked = vec![false; CELLS as usize];
            for _ in 0..random.below(40) {
                let start = random.below(CELLS);
                let end = (start + random.below(CELLS / 4)).min(CELLS);
                let is_usable = random.below(3) > 0;
                for cell in start..end {
                    let cells = if is_usable { &mut free } else { &mut blocked };
                    cells[cell as usize] = true;
                }
                map.push(if is_usable {
                    usable(start * GRAIN, end * GRAIN)
                } else {
                    reserved(start * GRAIN, end * GRAIN)
                });
            }
            let mapped_end = random.below(CELLS + 1);
            let occupied: StdVec<_> = (0..random.below(4))
                .map(|_| {
                    let start = random.below(CELLS);
                    let end = (start + random.below(64)).min(CELLS);
                    blocked[start as usize..end as usize].fill(true);
                    Range {
                        start: start * GRAIN,
                        end: end * GRAIN,
                    }
                })
                .collect();
            for cell in 0..CELLS as usize {
                let hidden = cell == 0 || cell as u64 >= mapped_end;
                free[cell] &= !blocked[cell] && !hidden;
            }
            let mut planner = Planner::new(&map, mapped_end * GRAIN, &occupied);
            for range in planner.free() {
                assert!(range.size() > 0, "seed {seed}");
            }
            for pair in planner.free().windows(2) {
                assert!(pair[0].end < pair[1].start, "seed {seed}");
            }
            for _ in 0..20 {
                let cells = 1 + random.below(200);
                if random.below(4) == 0 {
                    // As for a segment of an ELF program.
                    let start = random.below(CELLS);
                    let end = (start + cells).min(CELLS);
                    let wanted = start as usize..end as usize;
                    let range = Range {
                        start: start * GRAIN,
                        end: end * GRAIN,
                    };
                    let taken = free[wanted.clone()].iter().position(|&free| !free);
                    match planner.claim(range) {
                        Ok(place) => {
                            assert_eq!((place, taken), (range, None), "seed {seed}");
                            free[wanted].fill(false);
                        }
                        Err(part) => {
                            let first = taken.map(|cell| (start + cell as u64) * GRAIN);
                            assert_eq!(first, Some(part.start), "seed {seed}");
                            assert!(range.contains(&part) && part.size() > 0);
                        }
                    }
                    continue;
                }
                let request = Request {
                    what: "thing",
                    size: cells * GRAIN,
                    align: GRAIN << random.below(6),
                    min: random.below(CELLS) * GRAIN,
                    max: if random.below(2) == 0 {
                        u64::MAX
                    } else {
                        random.below(CELLS) * GRAIN
                    },
                    preferred: (random.below(2) == 0).then(|| random.below(CELLS) * GRAIN),
                    side: if random.below(2) == 0 {
                        Side::Low
                    } else {
                        Side::High
                    },
                };
                let fits = |start: u64| {
                    let end = start + cells;
                    start * GRAIN >= request.min
                        && end * GRAIN <= request.max
                        && end <= CELLS
                        && (start * GRAIN).is_multiple_of(request.align)
                        && free[start as usize..end as usize].iter().all(|&free| free)
                };
                let expected = request
                    .preferred
                    .map(|at| at / GRAIN)
                    .filter(|&at| fits(at))
                    .or_else(|| match request.side {
                        Side::Low => (0..CELLS).find(|&at| fits(at)),
                        Side::High => (0..CELLS).rev().find(|&at| fits(at)),
                    });
                let place = planner.allocate(&request).ok();
                assert_eq!(place.map(|p| p.start / GRAIN), expected, "seed {seed}");
                if let Some(place) = place {
                    assert_eq!(place.size(), request.size, "seed {seed}");
                    let cells = (place.start / GRAIN) as usize..(place.end / GRAIN) as usize;
                    free[cells].fill(false);
                }
            }
        }
    }
}
