//! Directory entries and link targets that no correct server sends.

use crate::rig::{broken, cases, check, share, spoiling, tree};
use bootshare::{
    Error, Options,
    fuse::{Errno, Violation},
};
use bootshare_test_device::{Device, Opcode, Reply, Request, Tree, raw::dirent};

/// Lists a directory whose READDIR replies come from `script`. Returns the names, and the error at the end.
fn listing(
    script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
) -> (Vec<Vec<u8>>, Option<Error>) {
    let device = spoiling(Opcode::ReadDir, script);
    let share = share(&device);
    let mut names = Vec::new();
    let mut error = None;
    let mut entries = share.read_dir("dir").unwrap();
    for entry in entries.by_ref() {
        match entry {
            Ok(entry) => names.push(entry.file_name().to_vec()),
            Err(found) => error = Some(found),
        }
    }
    assert!(entries.next().is_none(), "it stays ended");
    drop(entries);
    share.unmount().unwrap();
    check(&device);
    (names, error)
}

/// Lists a directory whose first READDIR reply has these bytes; the next reply is empty.
fn listing_of(bytes: Vec<u8>) -> (Vec<Vec<u8>>, Option<Error>) {
    listing(move |request, _| {
        let all: &[u8] = if request.offset() == 0 { &bytes } else { &[] };
        Reply::ok(request, all)
    })
}

#[test]
fn directory_entries() {
    let good = dirent(7, 1, 8, b"good");
    let bad_entry = Some(Error::Protocol(Violation::DirectoryEntry));
    let with_length = |length: u32| {
        let mut entry = dirent(7, 2, 8, b"name");
        entry[16..20].copy_from_slice(&length.to_le_bytes());
        entry
    };
    for bad in cases([
        dirent(7, 2, 8, b""),
        dirent(7, 2, 8, b"/"),
        dirent(7, 2, 8, b"a/b"),
        dirent(7, 2, 8, b"../../etc/passwd"),
        dirent(7, 2, 8, b"a\0"),
        dirent(7, 2, 8, &[b'n'; 1025]),
        dirent(7, 2, 8, &[b'n'; 2000]),
        with_length(9),
        with_length(4096),
        with_length(u32::MAX),
        with_length(u32::MAX - 7),
        dirent(7, 2, 8, b"name")[..24].to_vec(),
        dirent(7, 2, 8, b"name")[..27].to_vec(),
        // Without the padding, which is required.
        dirent(7, 2, 8, b"name")[..28].to_vec(),
        vec![0; 24],
        vec![0; 4064],
        vec![0xff; 100],
        vec![1],
    ]) {
        let (names, error) = listing_of([&good[..], &bad].concat());
        assert_eq!(names, [b"good"], "{bad:?}");
        assert_eq!(error, bad_entry, "{bad:?}");
        let (names, error) = listing_of(bad);
        assert!(names.is_empty());
        assert_eq!(error, bad_entry);
    }
    let dots = [
        dirent(1, 1, 4, b"."),
        dirent(1, 2, 4, b".."),
        dirent(7, 3, 8, &[b'n'; 255]),
        dirent(7, u64::MAX, u32::MAX, b"strange type"),
    ];
    let (names, error) = listing_of(dots.concat());
    assert_eq!(names, [&[b'n'; 255][..], b"strange type"]);
    assert_eq!(error, None);
}

#[test]
fn names_too_long_for_a_lookup_are_omitted() {
    // 256 to 1024 bytes. File systems that count characters, not bytes, allow such names.
    for name in cases([
        vec![b'n'; 256],
        "\u{6f22}".repeat(100).into(),
        vec![b'n'; 1024],
    ]) {
        let entries = [
            dirent(7, 1, 8, b"before"),
            dirent(8, 2, 8, &name),
            dirent(9, 3, 8, b"behind"),
        ];
        let (names, error) = listing_of(entries.concat());
        assert_eq!(names, [b"before", b"behind"]);
        assert_eq!(error, None);
        // The first reply contains only such a name; the client asks for another reply.
        let (names, error) = listing(move |request, _| {
            let entry = match request.offset() {
                0 => dirent(7, 1, 8, &name),
                1 => dirent(8, 2, 8, b"behind"),
                _ => Vec::new(),
            };
            Reply::ok(request, &entry)
        });
        assert_eq!(names, [b"behind"]);
        assert_eq!(error, None);
    }
}

#[test]
fn names_of_up_to_255_bytes_are_looked_up() {
    let device = Device::new(tree());
    let share = share(&device);
    for (size, error, lookups) in [(255, Error::NotFound, 1), (256, Error::NameTooLong, 0)] {
        device.forget_requests();
        assert_eq!(share.metadata(vec![b'n'; size]).err(), Some(error));
        device.log(|log| assert_eq!(log.requests.len(), lookups));
    }
    share.unmount().unwrap();
    check(&device);
}

#[test]
fn a_directory_with_too_many_entries_is_refused() {
    // Endless: each reply has ten more entries.
    let entries = |request: &Request| {
        let from = request.offset();
        let entries = (from + 1..from + 11).map(|next| dirent(7, next, 8, b"name"));
        entries.collect::<Vec<_>>().concat()
    };
    let device = spoiling(Opcode::ReadDir, move |request, _| {
        Reply::ok(request, &entries(request))
    });
    let share = device
        .mount(Options::default().with_max_entries(25))
        .unwrap();
    let mut listing = share.read_dir("dir").unwrap();
    assert_eq!(listing.by_ref().take(25).filter(Result::is_ok).count(), 25);
    let endless = broken(Violation::EndlessDirectory);
    assert_eq!(listing.next().map(|entry| entry.map(drop)), Some(endless));
    assert!(listing.next().is_none());
    drop(listing);
    share.unmount().unwrap();
    check(&device);
}

/// Another thread keeps overwriting the first name of a listing with `/`, NUL and `a` after the device has returned
/// it.
#[cfg(not(miri))]
mod racing {
    use super::*;
    use bootshare_test_device::raw::{Backend, Chain};
    use std::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, AtomicU8, Ordering},
        },
        thread::{JoinHandle, spawn},
    };

    #[derive(Clone, Default)]
    struct Racer {
        goes_on: Arc<AtomicBool>,
        thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    }

    impl Backend for Racer {
        fn answer(&self, chain: &Chain, request: &Request) -> Reply {
            let byte = match request.opcode() {
                Opcode::ReadDir if request.offset() == 0 => 24,
                Opcode::ReadLink => 4,
                _ => return tree().good_reply(request),
            };
            let at = chain.writable()[1].address as usize + byte;
            let goes_on = Arc::clone(&self.goes_on);
            goes_on.store(true, Ordering::SeqCst);
            *self.thread.lock().unwrap() = Some(spawn(move || {
                // SAFETY: the page stays mapped until the share is dropped, and the client reads it only as memory
                // that a device writes to. A real host can do the same.
                let byte = unsafe { &*std::ptr::with_exposed_provenance::<AtomicU8>(at) };
                while goes_on.load(Ordering::Relaxed) {
                    byte.store(b'/', Ordering::Relaxed);
                    byte.store(0, Ordering::Relaxed);
                    byte.store(b'a', Ordering::Relaxed);
                }
            }));
            match request.opcode() {
                Opcode::ReadLink => Reply::ok(request, &[b'a'; 200]),
                _ => Reply::ok(request, &dirent(7, 1, 8, &[b'a'; 255])),
            }
        }
    }

    #[test]
    fn a_name_that_changes_while_it_is_read_is_copied_before_it_is_checked() {
        let racer = Racer::default();
        let device = Device::with_backend(racer.clone());
        device.quirk(|quirks| quirks.records = false);
        let share = share(&device);
        for _ in 0..2000 {
            // About every third name contains a `/` when the client copies it.
            let entry = share.read_dir("dir").unwrap().next().unwrap();
            if let Ok(entry) = entry {
                let name = entry.file_name();
                assert!(!name.iter().any(|byte| matches!(byte, 0 | b'/')));
            }
            racer.stop();
            let mut buf = [0; 4096];
            if let Ok(target) = share.read_link("link", &mut buf) {
                assert!(!target.contains(&0));
            }
            racer.stop();
        }
        share.unmount().unwrap();
        check(&device);
    }

    impl Racer {
        fn stop(&self) {
            self.goes_on.store(false, Ordering::SeqCst);
            if let Some(thread) = self.thread.lock().unwrap().take() {
                thread.join().unwrap();
            }
        }
    }
}

#[test]
fn a_stale_path_is_looked_up_again_once() {
    for opcode in [
        Opcode::Lookup,
        Opcode::Open,
        Opcode::OpenDir,
        Opcode::ReadLink,
    ] {
        for stale in [1, 2] {
            let mut left = stale;
            let device = spoiling(opcode, move |request, good| {
                if left > 0 {
                    left -= 1;
                    Reply::error(request, Errno::ESTALE)
                } else {
                    good
                }
            });
            let share = share(&device);
            let result = match opcode {
                Opcode::Open => share.open("dir/one").map(drop),
                Opcode::OpenDir => share.read_dir("dir").map(drop),
                Opcode::ReadLink => share.read_link("link", &mut [0; 9]).map(drop),
                _ => share.metadata("dir/one").map(drop),
            };
            let expected = match stale {
                1 => Ok(()),
                _ => Err(Error::Host(Errno::ESTALE)),
            };
            assert_eq!(result, expected, "{opcode:?}");
            share.unmount().unwrap();
            device.log(|log| assert_eq!(log.at_destroy, [Default::default()]));
            check(&device);
        }
    }
}

#[test]
fn directories_that_never_end() {
    let endless = Some(Error::Protocol(Violation::EndlessDirectory));
    // Each entry's offset is the one that was asked for, so the listing stays at its start.
    let (names, error) = listing(|request, _| {
        let entry = dirent(7, request.offset(), 8, b"again");
        Reply::ok(request, &entry)
    });
    assert!(names.len() <= 1);
    assert_eq!(error, endless);
    // The listing advances once and then repeats.
    let (names, error) = listing(|request, _| {
        let entries = [dirent(7, 5, 8, b"one"), dirent(7, 9, 8, b"two")];
        Reply::ok(request, &entries.concat())
    });
    assert_eq!(names.len(), 2);
    assert_eq!(error, endless);
    // The reply is longer than requested.
    let (_, error) = listing(|request, _| {
        let much = vec![0; request.size() as usize + 8];
        Reply::ok(request, &much)
    });
    assert_eq!(error, Some(Error::Protocol(Violation::ReplyLength)));
}

#[test]
fn link_targets() {
    let read = |target: Vec<u8>| {
        let device = spoiling(Opcode::ReadLink, move |request, _| {
            Reply::ok(request, &target)
        });
        let share = share(&device);
        let followed = share.metadata("link").map(|meta| meta.len());
        let mut buf = [0; 4096];
        let read = share.read_link("link", &mut buf).map(<[u8]>::len);
        share.unmount().unwrap();
        check(&device);
        (read, followed)
    };
    let wrong = Violation::LinkTarget;
    assert_eq!(read(Vec::new()), (broken(wrong), broken(wrong)));
    assert_eq!(read(vec![0]), (broken(wrong), broken(wrong)));
    assert_eq!(read(b"fi\0le".to_vec()), (broken(wrong), broken(wrong)));
    assert_eq!(read(b"file\0".to_vec()), (broken(wrong), broken(wrong)));
    assert_eq!(read(vec![b'/'; 4096]), (broken(wrong), broken(wrong)));
    // The longest valid target. It consists of slashes, so it is the root.
    assert_eq!(read(vec![b'/'; 4095]), (Ok(4095), Ok(4096)));
    let much = broken(Violation::ReplyLength);
    assert_eq!(
        read(vec![b'a'; 4097]),
        (much, broken(Violation::ReplyLength))
    );
    assert_eq!(read(vec![b'n'; 300]), (Ok(300), Err(Error::NameTooLong)));
    assert_eq!(read(b"link".to_vec()), (Ok(4), Err(Error::TooManyLinks)));
    assert_eq!(
        read(b"link/x/y".to_vec()),
        (Ok(8), Err(Error::TooManyLinks))
    );
    let long = b"./".repeat(2000);
    assert_eq!(
        read([&b"link/"[..], &long].concat()).1,
        Err(Error::PathTooLong)
    );
}

#[test]
fn trees_without_a_bottom() {
    // Every name is a directory.
    let device = spoiling(Opcode::Lookup, |request, _| {
        let tree = Tree::new().dir(request.name());
        tree.good_reply(&request.about(1))
    });
    let share = share(&device);
    let deep = "d/".repeat(1000);
    assert_eq!(share.metadata(deep).err(), Some(Error::PathTooLong));
    assert!(share.metadata("d/".repeat(256)).is_ok());
    share.unmount().unwrap();
    device.log(|log| assert_eq!(log.at_destroy.last(), Some(&Default::default())));
    check(&device);

    let device = Device::with_script(tree(), |request, good| match request.opcode() {
        Opcode::Lookup => {
            let tree = Tree::new().link(request.name(), "?");
            tree.good_reply(&request.about(1))
        }
        Opcode::ReadLink => {
            let target = format!("deeper-{}/x", request.unique());
            Reply::ok(request, target.as_bytes())
        }
        _ => good,
    });
    let share = crate::rig::share(&device);
    assert_eq!(share.metadata("a").err(), Some(Error::TooManyLinks));
    share.unmount().unwrap();
    check(&device);
}
