//! The planner: decides which part of the free memory a payload gets.

use super::{MAX_REGIONS, MIB, MemoryKind, MemoryRegion, Range, Size};
use core::fmt;
use heapless::Vec;

/// Most free ranges of a [`Planner`]: one for each region of a full memory map, and some more because
/// occupied and allocated ranges split them.
pub const MAX_FREE: usize = MAX_REGIONS + 32;

/// The first page is never allocated: a pointer to address 0 is a null pointer.
const FIRST_ADDRESS: u64 = 4096;

/// The end of free memory from which a request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Side {
    /// The lowest address that fits. For kernels.
    #[default]
    Low,
    /// The highest address that fits. For initrds, away from the kernel.
    High,
}

/// A request for memory, for [`Planner::allocate`].
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
    /// What the memory is for, as in error messages: `kernel`, `initrd`, `device tree`.
    pub what: &'static str,
    /// Size in bytes. For size 0 one byte is allocated, so that no two ranges are the same.
    pub size: u64,
    /// Alignment of the start in bytes; a power of two.
    pub align: u64,
    /// Lowest allowed address.
    pub min: u64,
    /// End of the allowed addresses.
    pub max: u64,
    /// The start to use if it is free and meets the other conditions.
    pub preferred: Option<u64>,
    /// The end of memory to use otherwise.
    pub side: Side,
}

impl Request {
    /// A request for `size` bytes at the lowest free place above the first MiB.
    ///
    /// The first MiB is special on a PC (real mode, legacy devices); set [`Request::min`] to use it.
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

    /// The place for the request in the range `free`, if it fits. `align` must be a power of two.
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

    /// The range that begins at `start`, if it is within `room`.
    fn place_at(&self, start: u64, room: &Range) -> Option<Range> {
        let range = Range {
            start,
            end: start.checked_add(self.size.max(1))?,
        };
        room.contains(&range).then_some(range)
    }
}

/// Why [`Planner::allocate`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// No free range is large enough.
    NoRoom {
        /// The purpose of the request.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// Lowest allowed address.
        min: u64,
        /// End of the allowed addresses; [`u64::MAX`] if there is no limit.
        max: u64,
        /// Most bytes that would have fitted.
        largest: u64,
        /// Whether there is enough free memory outside of the limits.
        elsewhere: bool,
    },
    /// The requested alignment is not a power of two.
    Alignment {
        /// The purpose of the request.
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

/// Why something cannot be placed at its fixed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimError {
    /// What it is: `segment`.
    pub what: &'static str,
    /// Its fixed addresses.
    pub range: Range,
    /// What occupies them.
    pub obstacle: Obstacle,
}

/// What prevents the use of a range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no usable memory from this address on.
    NoRam(u64),
    /// The firmware, or data that the platform passed to it.
    Firmware(Range),
    /// Other loaded data, or memory reserved by a device tree, from this address on.
    Taken(u64),
}

impl Obstacle {
    /// Explains why [`Planner::claim`] failed for `range` with the error `taken`, in a machine with the memory
    /// `map` whose firmware occupies the ranges `occupied`.
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

/// The free memory, from which payloads are allocated.
///
/// Every range that [`Planner::allocate`] returns is within usable memory and does not overlap a region of
/// another type, an occupied range, or another allocated range. If the free memory has more pieces than the
/// list can hold, excess ranges stay unused; none is handed out twice.
#[derive(Clone, Debug)]
pub struct Planner {
    /// Sorted by address. No range is empty, and no two overlap or are adjacent.
    free: Vec<Range, MAX_FREE>,
    mapped_end: u64,
    /// Whether there is usable memory at or above `mapped_end`.
    more_above: bool,
}

impl Planner {
    /// Starts with the usable memory of `map` below `mapped_end`, without the `occupied` ranges.
    ///
    /// Regions may be in any order and may overlap; if a usable and another region overlap, the memory is not
    /// used.
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

    /// Allocates memory for `request`: at the preferred address if that is free and meets the other
    /// conditions, otherwise at the place nearest to the end of memory that [`Request::side`] names.
    ///
    /// # Errors
    ///
    /// [`PlacementError`] if the request does not fit; the planner is unchanged then.
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

    /// Allocates exactly `range`, for data with a fixed address.
    ///
    /// # Errors
    ///
    /// The first part of the range that is not free; the planner is unchanged then.
    pub fn claim(&mut self, range: Range) -> Result<Range, Range> {
        let mut taken = range;
        for free in &self.free {
            if free.contains(&taken) {
                self.occupy(range);
                return Ok(range);
            }
            // The start of `taken` is free up to the end of `free`. Free ranges are never adjacent, so the next
            // byte is not free.
            if free.start <= taken.start {
                taken.start = taken.start.max(free.end);
            } else {
                taken.end = taken.end.min(free.start);
                break;
            }
        }
        Err(taken)
    }

    /// Removes `range` from the free memory; parts of it may not be free.
    pub fn occupy(&mut self, range: Range) {
        if range.size() == 0 {
            return;
        }
        let mut at = 0_usize;
        while let Some(free) = self.free.get_mut(at) {
            if range.end <= free.start {
                break;
            }
            let [below, above] = free.outside(&range);
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
                    // If the list is full, keep the larger part and give up the other one.
                    if self.free.insert(at, above).is_err()
                        && above.size() > below.size()
                        && let Some(kept) = self.free.get_mut(at.saturating_sub(1))
                    {
                        *kept = above;
                    }
                    // Free ranges do not overlap, so later ones are not in `range`.
                    break;
                }
            }
            at = at.saturating_add(1);
        }
    }

    /// Adds `range` to the free memory, merged with free ranges that overlap it or are adjacent.
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
        // If the list is full, the range stays unused.
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
        // The end of the memory that the firmware maps is a limit like those of the request.
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
