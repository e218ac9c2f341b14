//! Symbolic links.

use crate::rig::{Rig, Server};
use bootshare::Error;
use bootshare_test_device::TestShare;
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

fn content(share: &TestShare, path: impl AsRef<[u8]>) -> Result<String, Error> {
    let mut buf = [0; 64];
    let size = share.open(path)?.read_at(0, &mut buf)?;
    Ok(String::from_utf8(buf[..size].to_vec()).unwrap())
}

fn says(share: &TestShare, path: &str, expected: &str) {
    assert_eq!(content(share, path).as_deref(), Ok(expected), "{path}");
}

pub fn relative_and_absolute(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir/below");
    rig.write("file", "top");
    rig.write("dir/file", "in dir");
    rig.write("dir/below/file", "below");
    rig.symlink("file", "dir/same");
    rig.symlink("./below//file", "dir/down");
    rig.symlink("../file", "dir/up");
    rig.symlink("/file", "dir/below/absolute");
    rig.symlink("/dir/below/../file", "dir/below/winding");
    rig.symlink("../../../../../../file", "dir/below/beyond");
    rig.symlink("/../../dir/file", "dir/below/above");
    // The target exists on the host, so a link that left the share would be noticed.
    rig.symlink("/etc/hostname", "outside");
    rig.run(|share| {
        says(share, "dir/same", "in dir");
        says(share, "dir/down", "below");
        says(share, "dir/up", "top");
        says(share, "dir/below/absolute", "top");
        says(share, "dir/below/winding", "in dir");
        says(share, "dir/below/beyond", "top");
        says(share, "dir/below/above", "in dir");
        assert_eq!(content(share, "outside"), Err(Error::NotFound));
        assert!(share.symlink_metadata("dir/same").unwrap().is_symlink());
        assert_eq!(share.symlink_metadata("dir/same").unwrap().len(), 4);
        assert!(share.metadata("dir/same").unwrap().is_file());
    });
}

pub fn through_directories(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("real/deep");
    rig.write("real/deep/file", "content");
    rig.symlink("real", "link");
    rig.symlink("link/deep", "second");
    rig.symlink("/second/", "third");
    rig.run(|share| {
        says(share, "link/deep/file", "content");
        says(share, "second/file", "content");
        says(share, "third/file", "content");
        // A link is followed if anything comes after it in the path, even only a slash.
        assert!(share.symlink_metadata("link").unwrap().is_symlink());
        assert!(share.symlink_metadata("link/").unwrap().is_dir());
        assert!(share.symlink_metadata("link/.").unwrap().is_dir());
        assert!(share.symlink_metadata("third").unwrap().is_symlink());
        assert_eq!(share.read_dir("third").unwrap().count(), 1);
        assert_eq!(share.read_dir("link/").unwrap().count(), 1);
        assert!(share.open_dir("second").is_ok());
    });
}

pub fn chains(server: Server) {
    let rig = Rig::new(server);
    rig.write("0", "the end");
    for number in 1..=41 {
        rig.symlink((number - 1).to_string(), number.to_string());
    }
    rig.mkdir("dir");
    rig.write("dir/file", "in dir");
    rig.symlink("dir", "d");
    rig.run(|share| {
        says(share, "1", "the end");
        says(share, "40", "the end");
        assert_eq!(content(share, "41"), Err(Error::TooManyLinks));
        assert_eq!(share.metadata("41").err(), Some(Error::TooManyLinks));
        assert!(share.symlink_metadata("41").unwrap().is_symlink());
        // The limit counts all links of a path, not those of a single component.
        says(share, &format!("{}d/file", "d/../".repeat(39)), "in dir");
        let one_more = format!("{}d/file", "d/../".repeat(40));
        assert_eq!(content(share, one_more), Err(Error::TooManyLinks));
        let last = format!("{}41", "d/../".repeat(40));
        assert!(share.symlink_metadata(last).unwrap().is_symlink());
    });
}

pub fn loops_and_dangling(server: Server) {
    let rig = Rig::new(server);
    rig.symlink("self", "self");
    rig.symlink("b", "a");
    rig.symlink("a", "b");
    rig.symlink("grows/grows", "grows");
    rig.symlink("nowhere", "dangling");
    rig.symlink("/nowhere/at/all", "far");
    rig.write("file", "");
    rig.symlink("file/below", "through");
    rig.symlink("file/", "slash");
    rig.run(|share| {
        for name in ["self", "a", "b", "grows", "self/x", "a/"] {
            let error = Some(Error::TooManyLinks);
            assert_eq!(share.metadata(name).err(), error, "{name}");
            assert_eq!(share.open(name).err(), error);
            assert_eq!(share.read_dir(name).err(), error);
        }
        for name in ["dangling", "far", "dangling/", "dangling/x"] {
            assert_eq!(share.metadata(name).err(), Some(Error::NotFound), "{name}");
        }
        for name in ["through", "slash"] {
            let error = Some(Error::NotADirectory);
            assert_eq!(share.metadata(name).err(), error, "{name}");
        }
        for name in ["self", "a", "grows", "dangling", "far", "through"] {
            assert!(share.symlink_metadata(name).unwrap().is_symlink());
        }
    });
}

pub fn targets_of_any_bytes(server: Server) {
    let rig = Rig::new(server);
    let odd: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    rig.write(OsStr::from_bytes(&odd), "odd");
    rig.symlink(OsStr::from_bytes(&odd), "link");
    // The longest target is 4095 bytes; some file systems allow less.
    let long = format!("{}target", "./".repeat(2044));
    assert_eq!(long.len(), 4094);
    rig.symlink(&long, "long");
    rig.write("target", "far away");
    rig.run(|share| {
        says(share, "link", "odd");
        assert_eq!(share.read_link("link", &mut [0; 300]).unwrap(), odd);
        assert_eq!(
            share.read_link("long", &mut [0; 4095]).unwrap(),
            long.as_bytes()
        );
        says(share, "long", "far away");
        // The target together with the rest of the path is longer than a path may be.
        assert_eq!(share.metadata("long/x").err(), Some(Error::PathTooLong));
    });
}

pub fn parents_of_links(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("a/b/c");
    rig.write("file", "top");
    rig.write("a/file", "in a");
    rig.write("a/b/file", "in b");
    rig.symlink("a/b/c", "link");
    rig.symlink("..", "a/b/parent");
    rig.run(|share| {
        // `..` after a link is the parent of its target, not of the directory that holds the link.
        says(share, "link/../file", "in b");
        says(share, "link/../../file", "in a");
        says(share, "link/../../../file", "top");
        says(share, "link/../../../../../file", "top");
        says(share, "a/b/parent/file", "in a");
        says(share, "a/b/parent/../file", "top");
        assert!(share.metadata("link/../..").unwrap().is_dir());
    });
}

pub fn reading_targets(server: Server) {
    let rig = Rig::new(server);
    rig.write("file", "");
    rig.mkdir("dir");
    rig.symlink("the/target/", "link");
    rig.symlink("link", "second");
    rig.run(|share| {
        let read = |path: &str, room: usize| {
            let mut buf = vec![0; room];
            share.read_link(path, &mut buf).map(<[u8]>::to_vec)
        };
        assert_eq!(read("link", 100).unwrap(), b"the/target/");
        assert_eq!(read("link", 11).unwrap(), b"the/target/");
        assert_eq!(read("link", 10), Err(Error::BufferTooSmall));
        assert_eq!(read("link", 0), Err(Error::BufferTooSmall));
        assert_eq!(read("second", 100).unwrap(), b"link", "one step");
        assert_eq!(read("file", 100), Err(Error::NotASymlink));
        assert_eq!(read("dir", 100), Err(Error::NotASymlink));
        assert_eq!(read("/", 100), Err(Error::NotASymlink));
        assert_eq!(read("missing", 100), Err(Error::NotFound));
    });
}
