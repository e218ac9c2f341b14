//! Directory entries and link targets that no server should give.

use crate::rig::{broken, cases, check, share, spoiling, tree};
use bootshare::{Error, fuse::Violation};
use bootshare_test_device::{Device, Opcode, Reply, Request, Tree, raw::dirent};

/// What a device that answers READDIR like this gives: names, and the error at the end.
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

/// The first READDIR gives these bytes, the next ones nothing.
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
        dirent(7, 2, 8, &[b'n'; 256]),
        dirent(7, 2, 8, &[b'n'; 2000]),
        with_length(9),
        with_length(4096),
        with_length(u32::MAX),
        with_length(u32::MAX - 7),
        dirent(7, 2, 8, b"name")[..24].to_vec(),
        dirent(7, 2, 8, b"name")[..27].to_vec(),
        // Without its padding.
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
fn directories_that_never_end() {
    let endless = Some(Error::Protocol(Violation::EndlessDirectory));
    // It always starts again where it is.
    let (names, error) = listing(|request, _| {
        let entry = dirent(7, request.offset(), 8, b"again");
        Reply::ok(request, &entry)
    });
    assert!(names.len() <= 1);
    assert_eq!(error, endless);
    // It goes on once and then stays.
    let (names, error) = listing(|request, _| {
        let entries = [dirent(7, 5, 8, b"one"), dirent(7, 9, 8, b"two")];
        Reply::ok(request, &entries.concat())
    });
    assert_eq!(names.len(), 2);
    assert_eq!(error, endless);
    // More than was asked for.
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
    // The longest there is: only slashes, so it is the root.
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
    // Whatever is looked up is a directory; whatever is a link leads deeper.
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
