//! Paths: slashes, dots and lengths, compared with what the kernel does.

use crate::rig::{Rig, Server};
use bootshare::{Error, Metadata};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use std::{fs, io, os::unix::fs::MetadataExt};

pub fn slashes_and_dots(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir/below");
    rig.write("dir/file", "content");
    rig.run(|share| {
        for path in [
            "dir/file",
            "/dir/file",
            "//dir///file",
            "./dir/./file",
            "dir/../dir/file",
            "../dir/file",
            "/../../dir/file",
            "dir/below/../file",
            "dir/below/../../../dir/file",
        ] {
            assert_eq!(share.metadata(path).unwrap().len(), 7, "{path}");
            assert_eq!(share.symlink_metadata(path).unwrap().len(), 7, "{path}");
        }
        let root = share.metadata("/").unwrap().attr().ino;
        for path in [
            "/", "//", ".", "./", "..", "/..", "../..", "dir/..", "dir/../",
        ] {
            assert_eq!(share.metadata(path).unwrap().attr().ino, root, "{path}");
        }
        for path in ["dir", "dir/", "dir//", "dir/.", "dir/./", "dir/below/.."] {
            assert!(share.metadata(path).unwrap().is_dir(), "{path}");
            assert_eq!(share.read_dir(path).unwrap().count(), 2, "{path}");
        }
        for path in [
            "dir/file/",
            "dir/file//",
            "dir/file/.",
            "dir/file/..",
            "dir/file/x",
        ] {
            let error = Some(Error::NotADirectory);
            assert_eq!(share.metadata(path).err(), error, "{path}");
            assert_eq!(share.symlink_metadata(path).err(), error, "{path}");
            assert_eq!(share.open(path).err(), error, "{path}");
        }
    });
}

pub fn errors(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir");
    rig.write("file", "");
    rig.run(|share| {
        let found = |path: &[u8]| share.metadata(path).err();
        assert_eq!(found(b""), Some(Error::NotFound));
        assert_eq!(found(b"missing"), Some(Error::NotFound));
        assert_eq!(found(b"missing/"), Some(Error::NotFound));
        assert_eq!(found(b"missing/.."), Some(Error::NotFound));
        assert_eq!(found(b"dir/missing"), Some(Error::NotFound));
        assert_eq!(found(b"a\0b"), Some(Error::InvalidName));
        assert_eq!(found(b"dir/\0"), Some(Error::InvalidName));
        assert_eq!(share.read_dir("file").err(), Some(Error::NotADirectory));
        assert_eq!(share.open_dir("file").err(), Some(Error::NotADirectory));
        assert_eq!(share.read_dir("missing").err(), Some(Error::NotFound));
        assert_eq!(share.open("").err(), Some(Error::NotFound));
        assert_eq!(share.read_dir("").err(), Some(Error::NotFound));
    });
}

pub fn lengths_and_depths(server: Server) {
    let rig = Rig::new(server);
    let deep = |depth: usize| "d/".repeat(depth);
    rig.mkdir(deep(300));
    rig.write("file", "content");
    rig.run(|share| {
        let padded = |length: usize| format!("{}file", "/".repeat(length - 4));
        assert_eq!(share.metadata(padded(4095)).unwrap().len(), 7);
        let error = share.metadata(padded(4096)).err();
        assert_eq!(error, Some(Error::PathTooLong));
        assert!(share.metadata(deep(256)).unwrap().is_dir());
        assert_eq!(share.metadata(deep(257)).err(), Some(Error::PathTooLong));
        assert_eq!(share.metadata(deep(300)).err(), Some(Error::PathTooLong));
        let back = format!("{}{}", deep(256), "../".repeat(256));
        assert!(share.metadata(back).unwrap().is_dir());
        // The depth is limited for paths only, not when directories are opened one by one.
        let mut dir = share.open_dir(deep(256)).unwrap();
        for _ in 256..300 {
            dir = dir.open_dir("d").unwrap();
        }
        assert_eq!(dir.read_dir().unwrap().count(), 0);
    });
}

/// The inode number that the kernel finds at `path`, with `root` as the root directory.
fn kernel(root: &fs::File, path: &str, follow: bool) -> io::Result<u64> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow);
    // openat2(2) fails with EAGAIN for `..` if a rename happens anywhere on the machine meanwhile.
    let found = loop {
        match openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Err(Errno::AGAIN) => {}
            found => break found?,
        }
    };
    Ok(fs::File::from(found).metadata()?.ino())
}

pub fn as_the_kernel_resolves(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("a/b/c");
    rig.mkdir("d");
    rig.write("f", "");
    rig.write("a/f", "");
    rig.write("a/b/f", "");
    for (target, name) in [
        ("..", "a/up"),
        ("../..", "a/b/up"),
        ("/a/b", "d/l"),
        ("a/b/", "l"),
        ("/", "r"),
        ("f", "lf"),
        ("f/", "lfs"),
        ("../f", "a/lf"),
        ("l/c", "a/x"),
        ("/l/c/..", "x"),
        ("missing", "m"),
        ("o", "o"),
        (".", "s"),
    ] {
        rig.symlink(target, name);
    }
    let names = [
        "a", "b", "c", "d", "f", "l", "r", "lf", "lfs", "up", "x", "m", "o", "s", ".", "..", "",
        "..", "a", "l", "d", "up",
    ];
    let root = fs::File::open(rig.dir.path()).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut found = 0;
    let share = rig.mount();
    for _ in 0..4000 {
        let mut path = String::new();
        for _ in 0..random.usize(1..=6) {
            path.push_str(names[random.usize(..names.len())]);
            path.push('/');
        }
        if random.u8(..4) != 0 {
            path.pop();
        }
        for follow in [true, false] {
            let ours = if follow {
                share.metadata(&path)
            } else {
                share.symlink_metadata(&path)
            };
            let ours = ours.map(|meta: Metadata| meta.attr().ino);
            match kernel(&root, &path, follow) {
                Ok(ino) => assert_eq!(ours, Ok(ino), "{path} {follow}"),
                Err(error) => {
                    let errno = ours.err().and_then(|error| error.errno());
                    let errno = errno.map(|errno| i32::from(errno.get()));
                    assert_eq!(errno, error.raw_os_error(), "{path} {follow}");
                }
            }
            found += u32::from(ours.is_ok());
        }
    }
    assert!(found > 1000, "paths that lead somewhere: {found}");
    drop(root);
    rig.unmount(share);
}
