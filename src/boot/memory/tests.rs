use super::*;
use crate::boot::testing::{Random, STRIDE, region, seeds};
use std::{format, string::ToString, vec, vec::Vec as StdVec};

fn usable(start: u64, end: u64) -> MemoryRegion {
    region(start, end, MemoryKind::Usable)
}

fn reserved(start: u64, end: u64) -> MemoryRegion {
    region(start, end, MemoryKind::Reserved)
}

fn ranges(planner: &Planner) -> StdVec<(u64, u64)> {
    planner.free().iter().map(|r| (r.start, r.end)).collect()
}

#[test]
fn sizes_are_shown_with_a_unit() {
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
fn an_allocated_range_is_no_longer_free() {
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
fn a_fixed_range_is_claimed_or_the_obstacle_is_named() {
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
fn a_full_list_leaves_memory_unused_and_hands_none_out_twice() {
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

/// For random maps and requests, each allocated range is within usable memory, overlaps no other range, is
/// aligned and within the limits; and a request is refused only if it does not fit.
#[test]
fn placed_ranges_are_free_aligned_and_within_limits_for_any_map() {
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
