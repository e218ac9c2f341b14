//! The planner, compared with the memory map.

use crate::source::Source;
use bootshare::boot::memory::{
    MAX_FREE, MemoryKind, MemoryRegion, PlacementError, Planner, Range, Request, Side,
};

const KINDS: [MemoryKind; 6] = [
    MemoryKind::Usable,
    MemoryKind::Reserved,
    MemoryKind::AcpiReclaimable,
    MemoryKind::AcpiNvs,
    MemoryKind::Unusable,
    MemoryKind::Persistent,
];

/// A memory map, either arbitrary or similar to a real one.
pub fn regions(source: &mut Source<'_>) -> Vec<MemoryRegion> {
    let count = source.below(160);
    let regions = (0..count).map_while(|_| {
        (!source.is_empty()).then(|| {
            // Most regions are usable.
            let kind = KINDS[source.below(12).saturating_sub(6)];
            let range = range(source);
            MemoryRegion { range, kind }
        })
    });
    regions.collect()
}

/// A range of arbitrary addresses, or of a few pages.
fn range(source: &mut Source<'_>) -> Range {
    if source.below(8) == 0 {
        return Range {
            start: source.edge(),
            end: source.edge(),
        };
    }
    let page = |number: u16| u64::from(number) << 16;
    Range::with_size(page(source.u16()), page(source.u8().into()))
}

pub fn planner(mut source: Source<'_>) {
    let map = regions(&mut source);
    let mapped_end = match source.below(3) {
        0 => source.edge(),
        1 => 1 << 32,
        _ => u64::MAX,
    };
    let mut taken: Vec<Range> = (0..source.below(8)).map(|_| range(&mut source)).collect();
    let mut planner = Planner::new(&map, mapped_end, &taken);
    check_free(&planner);
    let mut left = 48;
    while !source.is_empty() && left > 0 {
        left -= 1;
        if source.below(8) == 0 {
            let range = range(&mut source);
            planner.occupy(range);
            taken.push(range);
        } else {
            let request = request(&mut source);
            let before = planner.free().to_vec();
            match planner.allocate(&request) {
                Ok(place) => {
                    check_place(&request, &place, &map, mapped_end, &taken);
                    check_preferred(&request, &place, &before);
                    taken.push(place);
                }
                Err(error) => {
                    assert_eq!(planner.free(), before);
                    check_refusal(&request, &error, &before);
                }
            }
        }
        check_free(&planner);
    }
}

fn request(source: &mut Source<'_>) -> Request {
    Request {
        size: source.edge(),
        align: match source.below(8) {
            0 => source.edge(),
            _ => 1 << source.below(32),
        },
        min: match source.below(3) {
            0 => source.edge(),
            1 => 0,
            _ => 1 << 20,
        },
        max: match source.below(3) {
            0 => source.edge(),
            1 => 1 << 32,
            _ => u64::MAX,
        },
        preferred: source.flag().then(|| source.edge()),
        side: if source.flag() { Side::High } else { Side::Low },
        ..Request::new("it", 0)
    }
}

fn check_free(planner: &Planner) {
    let free = planner.free();
    assert!(free.len() <= MAX_FREE);
    assert!(free.iter().all(|range| range.start < range.end));
    assert!(free.windows(2).all(|pair| pair[0].end < pair[1].start));
    let largest = free.iter().map(Range::size).max();
    assert_eq!(planner.largest_free(), largest.unwrap_or(0));
}

/// Asserts that every byte of `place` is usable RAM and free.
fn check_place(
    request: &Request,
    place: &Range,
    map: &[MemoryRegion],
    mapped_end: u64,
    taken: &[Range],
) {
    assert_eq!(place.size(), request.size.max(1));
    assert!(place.start.is_multiple_of(request.align));
    assert!(place.start >= request.min.max(1) && place.end <= request.max.min(mapped_end));
    let overlaps = |range: &Range| range.size() > 0 && range.overlaps(place);
    assert!(!taken.iter().any(overlaps));
    let mut covered = place.start;
    while covered < place.end {
        let next = map.iter().filter(|region| {
            let range = region.range;
            region.kind == MemoryKind::Usable && range.start <= covered && covered < range.end
        });
        let next = next.map(|region| region.range.end).max();
        covered = next.expect("it lies outside of usable memory");
    }
    for region in map {
        assert!(region.kind == MemoryKind::Usable || !overlaps(&region.range));
    }
}

fn check_preferred(request: &Request, place: &Range, free: &[Range]) {
    let Some(start) = request.preferred else {
        return;
    };
    let Some(end) = start.checked_add(request.size.max(1)) else {
        return;
    };
    let wish = Range { start, end };
    let allowed = start.is_multiple_of(request.align) && start >= request.min && end <= request.max;
    if allowed && free.iter().any(|free| free.contains(&wish)) {
        assert_eq!(*place, wish);
    }
}

/// Asserts that there is no suitable place.
fn check_refusal(request: &Request, error: &PlacementError, free: &[Range]) {
    assert!(!error.to_string().is_empty());
    let PlacementError::NoRoom { largest, .. } = *error else {
        assert!(!request.align.is_power_of_two());
        return;
    };
    assert!(request.align.is_power_of_two());
    assert!(largest < request.size.max(1), "{request:?} in {free:?}");
    for free in free {
        let start = free.start.max(request.min);
        let start = start.checked_next_multiple_of(request.align);
        let end = start.and_then(|start| start.checked_add(request.size.max(1)));
        assert!(end.is_none_or(|end| end > free.end.min(request.max)));
    }
}
