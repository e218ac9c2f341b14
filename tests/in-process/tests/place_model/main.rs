//! Model checking of a place of the SIGBUS handler's table with loom: the handler's reads while other threads take and
//! free the place, with every value that C11's memory model allows for a load.

#[path = "../../../../host/src/serve/memory/place.rs"]
mod place;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicUsize, Ordering, fence},
    },
    thread,
};
use place::{Entry, Place};

/// The most preemptions in one interleaving.
const PREEMPTIONS: usize = 3;

/// mmap(2) returns the same address again after another mapping was in the place.
const ENTRIES: [Entry; 3] = [entry(0x1000, 1), entry(0x2000, 2), entry(0x1000, 3)];

const fn entry(start: usize, size: usize) -> Entry {
    let lost = size as i32;
    Entry { start, size, lost }
}

fn check(act: impl Fn(Arc<Place>) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(move || {
        act(Arc::new(Place {
            turn: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            size: AtomicUsize::new(0),
            lost: AtomicI32::new(-1),
        }));
    });
}

#[test]
fn an_entry_is_read_whole_or_not_at_all() {
    check(|place| {
        let writer = Arc::clone(&place);
        let writer = thread::spawn(move || {
            for entry in ENTRIES {
                assert!(writer.take(entry));
                writer.free();
            }
        });
        if let Some(entry) = place.read() {
            assert!(ENTRIES.contains(&entry), "{entry:?}");
        }
        writer.join().expect("no panic");
    });
}

#[test]
fn a_place_has_one_owner() {
    check(|place| {
        let owner = |entry| {
            let place = Arc::clone(&place);
            thread::spawn(move || {
                let taken = place.take(entry);
                if taken {
                    assert_eq!(place.read(), Some(entry));
                    place.free();
                }
                taken
            })
        };
        let owners = [owner(ENTRIES[0]), owner(ENTRIES[1])];
        if let Some(entry) = place.read() {
            assert!(ENTRIES.contains(&entry), "{entry:?}");
        }
        let taken = owners.map(|owner| owner.join().expect("no panic"));
        assert!(taken.contains(&true), "it was free");
        assert_eq!(place.read(), None, "it is free again");
    });
}
