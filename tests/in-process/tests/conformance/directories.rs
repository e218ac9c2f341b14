//! Directories and their names.

use crate::rig::{Rig, Server};
use bootshare::{Error, FileType};
use bootshare_test_device::{Device, TestShare};
use rustix::fs::RawDir;
use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    fs,
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt,
};

/// Lists `path`, and asserts that no name is listed twice.
fn names(share: &TestShare, path: &str) -> BTreeSet<Vec<u8>> {
    let mut names = BTreeSet::new();
    for entry in share.read_dir(path).unwrap() {
        let name = entry.unwrap().file_name().to_vec();
        assert!(names.insert(name.clone()), "{name:?} came twice");
    }
    names
}

fn set<S: AsRef<[u8]>>(names: impl IntoIterator<Item = S>) -> BTreeSet<Vec<u8>> {
    let owned = |name: S| name.as_ref().to_vec();
    names.into_iter().map(owned).collect()
}

pub fn small_ones(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("empty");
    rig.mkdir("one/below");
    rig.run(|share| {
        assert_eq!(names(share, "empty"), set::<&str>([]));
        assert_eq!(names(share, "one"), set(["below"]));
        assert_eq!(names(share, "/"), set(["empty", "one"]));
        let mut ended = share.read_dir("empty").unwrap();
        assert!(ended.next().is_none());
        assert!(ended.next().is_none(), "it stays ended");
    });
}

pub fn a_thousand_entries(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir");
    // Names of all lengths, so that entries end at every offset of the buffer.
    let name = |number: usize| format!("{number:04}{}", "x".repeat(number % 252));
    for number in 0..1000 {
        rig.write(format!("dir/{}", name(number)), "");
    }
    rig.run(|share| {
        assert_eq!(names(share, "dir"), set((0..1000).map(name)));
    });
}

#[test]
fn a_hundred_thousand_entries() {
    // One directory for all servers, because making it takes longer than listing it.
    let dir = tempfile::tempdir().unwrap();
    let name = |number: usize| format!("entry-{number}");
    for number in 0..100_000 {
        fs::File::create_new(dir.path().join(name(number))).unwrap();
    }
    let expected = set((0..100_000).map(name));
    for server in [Server::Virtiofsd, Server::FuseBackend, Server::Embedded] {
        let device = Device::with_backend(server.backend(dir.path()));
        let share = device.mount(bootshare::Options::default()).unwrap();
        assert!(names(&share, "/") == expected);
        share.unmount().unwrap();
        device.log(|log| assert_eq!(log.problems(), Vec::<String>::new()));
    }
}

pub fn a_listing_left_early(server: Server) {
    let rig = Rig::new(server);
    for number in 0..500 {
        rig.write(number.to_string(), "");
    }
    rig.run(|share| {
        let mut one = share.read_dir("/").unwrap();
        let mut two = share.read_dir("/").unwrap();
        // Two listings of the same directory are independent.
        for _ in 0..200 {
            assert_eq!(one.next().unwrap().unwrap(), two.next().unwrap().unwrap());
        }
        drop(one);
        assert_eq!(two.count(), 300);
    });
}

pub fn a_directory_that_changes(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir");
    for number in 0..400 {
        rig.write(format!("dir/{number}"), "");
    }
    rig.run(|share| {
        let mut seen = BTreeSet::new();
        let mut listing = share.read_dir("dir").unwrap();
        for entry in listing.by_ref().take(50) {
            seen.insert(entry.unwrap().file_name().to_vec());
        }
        // Entries that were not listed yet disappear, which POSIX allows at any time.
        for number in 0..400 {
            if !seen.contains(number.to_string().as_bytes()) {
                fs::remove_file(rig.path(format!("dir/{number}"))).unwrap();
            }
        }
        rig.write("dir/new", "");
        let mut is_twice = false;
        for entry in listing {
            is_twice |= !seen.insert(entry.unwrap().file_name().to_vec());
        }
        assert!(!is_twice || host_lists_twice(&rig), "an entry comes twice");
        let left = names(share, "dir");
        assert_eq!(left.len(), 51);
    });
}

/// Whether the host's file system itself lists an entry twice if others disappear, as tmpfs does in some versions
/// of Linux.
fn host_lists_twice(rig: &Rig) -> bool {
    rig.mkdir("host");
    for number in 0..400 {
        rig.write(format!("host/{number}"), "");
    }
    let dir = fs::File::open(rig.path("host")).unwrap();
    // Space for a part of the entries.
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut seen = BTreeSet::new();
    loop {
        seen.insert(entries.next().unwrap().unwrap().file_name().to_owned());
        if entries.is_buffer_empty() {
            break;
        }
    }
    for number in 0..400 {
        if !seen.contains(&*CString::new(number.to_string()).unwrap()) {
            fs::remove_file(rig.path(format!("host/{number}"))).unwrap();
        }
    }
    rig.write("host/new", "");
    let mut is_twice = false;
    while let Some(entry) = entries.next() {
        is_twice |= !seen.insert(entry.unwrap().file_name().to_owned());
    }
    is_twice
}

pub fn a_directory_that_vanishes(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir/below");
    rig.run(|share| {
        let dir = share.open_dir("dir").unwrap();
        let listing = dir.read_dir().unwrap();
        fs::remove_dir_all(rig.path("dir")).unwrap();
        assert!(listing.count() <= 1);
        assert_eq!(dir.open_dir("below").err(), Some(Error::NotFound));
        assert_eq!(share.read_dir("dir").err(), Some(Error::NotFound));
    });
}

pub fn names_of_any_bytes(server: Server) {
    let rig = Rig::new(server);
    let mut all: BTreeSet<Vec<u8>> = (1..=255u8)
        .filter(|byte| !matches!(byte, b'/' | b'.'))
        .map(|byte| vec![byte])
        .collect();
    all.extend(set([
        &b"..."[..],
        b".hidden",
        b"..two",
        b" leading and trailing ",
        b"new\nline",
        b"\xff\xfe\x80 not UTF-8",
        "ünïcödé ☃".as_bytes(),
        b"-rf",
        b"back\\slash",
    ]));
    for name in &all {
        rig.write(OsStr::from_bytes(name), name);
    }
    rig.run(|share| {
        assert_eq!(names(share, "/"), all);
        let root = share.open_dir("/").unwrap();
        for name in &all {
            let mut buf = [0; 64];
            let size = share.open(name).unwrap().read_at(0, &mut buf).unwrap();
            assert_eq!(buf[..size], name[..]);
            assert!(root.symlink_metadata(name).unwrap().is_file());
        }
    });
}

pub fn names_of_255_bytes(server: Server) {
    let rig = Rig::new(server);
    let longest = "n".repeat(255);
    let too_long = "n".repeat(256);
    rig.mkdir(format!("{longest}/{longest}"));
    rig.write(format!("{longest}/{longest}/{longest}"), "deep");
    for number in 0..40 {
        rig.write(format!("{number:0255}"), "");
    }
    rig.run(|share| {
        let path = format!("{longest}/{longest}/{longest}");
        assert_eq!(share.metadata(path).unwrap().len(), 4);
        let all = names(share, "/");
        assert_eq!(all.len(), 41);
        assert!(all.iter().all(|name| name.len() == 255));
        let error = Some(Error::NameTooLong);
        assert_eq!(share.metadata(&too_long).err(), error);
        assert_eq!(share.metadata(format!("{too_long}/x")).err(), error);
        let root = share.open_dir("/").unwrap();
        assert_eq!(root.symlink_metadata(&too_long).err(), error);
    });
}

pub fn work_by_names(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir/below");
    rig.write("dir/file", "content");
    rig.symlink("file", "dir/link");
    rig.symlink("below", "dir/dirlink");
    rig.run(|share| {
        let dir = share.open_dir("dir").unwrap();
        assert!(dir.metadata().unwrap().is_dir());
        assert_eq!(dir.symlink_metadata("file").unwrap().len(), 7);
        assert!(dir.symlink_metadata("link").unwrap().is_symlink());
        let file = dir.open_file("file").unwrap();
        let below = dir.open_dir("below").unwrap();
        assert_eq!(below.read_dir().unwrap().count(), 0);
        assert_eq!(dir.read_link("link", &mut [0; 64]).unwrap(), b"file");
        let types: BTreeSet<_> = dir
            .read_dir()
            .unwrap()
            .map(|entry| format!("{:?}", entry.unwrap()))
            .collect();
        let expected = [
            "\"below\" (Some(Directory))",
            "\"dirlink\" (Some(Symlink))",
            "\"file\" (Some(File))",
            "\"link\" (Some(Symlink))",
        ];
        assert!(types.iter().eq(expected), "{types:?}");

        // Links are not followed.
        assert_eq!(dir.open_file("link").err(), Some(Error::TooManyLinks));
        assert_eq!(dir.open_dir("dirlink").err(), Some(Error::NotADirectory));
        assert_eq!(dir.open_dir("file").err(), Some(Error::NotADirectory));
        assert_eq!(dir.open_file("below").err(), Some(Error::IsADirectory));
        assert_eq!(dir.open_file("missing").err(), Some(Error::NotFound));
        let no_link = dir.read_link("file", &mut [0; 64]).map(<[u8]>::to_vec);
        assert_eq!(no_link, Err(Error::NotASymlink));
        // These are not names of a single component.
        for name in [&b""[..], b".", b"..", b"/", b"below/", b"below/x", b"a\0b"] {
            let error = dir.symlink_metadata(name).err();
            assert_eq!(error, Some(Error::InvalidName), "{name:?}");
            assert_eq!(dir.open_dir(name).err(), error);
            assert_eq!(dir.open_file(name).err(), error);
        }
        // Open files and directories stay usable after the parent was dropped.
        drop(dir);
        assert_eq!(file.read_at(0, &mut [0; 10]), Ok(7));
        assert_eq!(below.metadata().unwrap().file_type(), FileType::Directory);
    });
}
