//! What Linux needs if the share is its root file system.

use crate::requests::{
    ENOENT, GETATTR, GETXATTR, INIT, LISTXATTR, LOOKUP, LSEEK, OPEN, OPENDIR, READ, READDIR,
    RELEASE, ROOT, STATFS, ask, entries, init, list, long, lookup, open, read_in, server, word,
    words,
};
use bootshare_host::serve::{Cache, Options};
use bootshare_tests::{AsNobody, Embedded};
use rustix::fs::{XattrFlags, lsetxattr, statvfs};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const ENODATA: i32 = 61;
const ERANGE: i32 = 34;
const ENXIO: i32 = 6;

// Flags of INIT, OPEN and attributes (linux/fuse.h).
const AUTO_INVAL_DATA: u32 = 1 << 12;
const NO_OPEN_SUPPORT: u32 = 1 << 17;
const CACHE_SYMLINKS: u32 = 1 << 23;
const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
const SUBMOUNTS: u32 = 1 << 27;
const DIRECT_IO: u32 = 1;
const KEEP_CACHE: u32 = 2;

fn with(dir: &Path, change: impl FnOnce(&mut Options)) -> Embedded {
    let mut options = Options::new("test", vec![dir.into()]);
    change(&mut options);
    Embedded::new(&options)
}

/// Sends INIT with these flags. Returns the flags that the server accepted.
fn init_with(server: &Embedded, flags: u32) -> u32 {
    let reply = ask(server, INIT, 0, &words(&[7, 38, 1 << 20, flags])).unwrap();
    word(&reply, 12)
}

/// The mount points in /proc/self/mountinfo and their file system types.
fn mounts() -> Vec<(PathBuf, String)> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = |line: &str| {
        let (before, after) = line.split_once(" - ").unwrap();
        let path = before.split(' ').nth(4).unwrap();
        let kind = after.split(' ').next().unwrap();
        (PathBuf::from(path), kind.to_owned())
    };
    all.lines().map(line).collect()
}

#[test]
fn pseudo_file_systems_of_the_host_are_empty_directories() {
    let server = Embedded::of(vec!["/".into()]);
    let names: BTreeSet<_> = ["proc", "sys"].into();
    let mounted: BTreeSet<_> = mounts()
        .into_iter()
        .filter(|(_, kind)| kind == "proc" || kind == "sysfs")
        .map(|(path, _)| path)
        .collect();
    for flags in [0, SUBMOUNTS] {
        init_with(&server, flags);
        for name in &names {
            assert!(
                mounted.contains(&Path::new("/").join(name)),
                "{name} is needed here"
            );
            let node = lookup(&server, ROOT, name).unwrap();
            for inner in ["self", "1", "kernel", "cmdline"] {
                assert_eq!(lookup(&server, node, inner), Err(ENOENT), "{name}/{inner}");
            }
            let seen: Vec<_> = list(&server, node)
                .into_iter()
                .map(|(name, ..)| name)
                .collect();
            assert_eq!(seen, [".", ".."], "{name}");
        }
        // devtmpfs is served like other file systems.
        let dev = lookup(&server, ROOT, "dev").unwrap();
        let null = lookup(&server, dev, "null").unwrap();
        assert_eq!(open(&server, OPEN, null), Err(ENXIO));
    }
    // A pseudo file system is served if it is shared itself.
    let server = Embedded::of(vec!["/proc/self".into()]);
    init(&server);
    let node = lookup(&server, ROOT, "status").unwrap();
    assert!(open(&server, OPEN, node).is_ok());
}

#[test]
fn mounts_inside_the_share_are_reported_as_submounts() {
    let server = Embedded::of(vec!["/".into()]);
    let kinds = ["tmpfs", "devtmpfs", "ext4", "xfs", "btrfs", "overlay"];
    let all = mounts();
    let (path, _) = all
        .iter()
        .find(|(path, kind)| {
            path.components().count() == 2 && path.is_dir() && kinds.contains(&&**kind)
        })
        .expect("a directory in / that something is mounted at");
    let name = [path.file_name().unwrap().as_bytes(), b"\0"].concat();
    let host = fs::metadata(path).unwrap();
    for flags in [SUBMOUNTS, 0] {
        assert_eq!(init_with(&server, flags), flags);
        let entry = ask(&server, LOOKUP, ROOT, &name).unwrap();
        // The last word of `fuse_attr` is its flags; FUSE_ATTR_SUBMOUNT is 1.
        assert_eq!(
            word(&entry, 40 + 84),
            u32::from(flags != 0),
            "{}",
            path.display()
        );
        if flags != 0 {
            assert_eq!(long(&entry, 40), host.ino());
        }
        let reply = ask(&server, STATFS, long(&entry, 0), &[]).unwrap();
        assert_eq!(long(&reply, 0), statvfs(path).unwrap().f_blocks);
        let root = ask(&server, STATFS, ROOT, &[]).unwrap();
        assert_eq!(long(&root, 0), statvfs("/").unwrap().f_blocks);
        // A plain directory does not have the flag.
        let plain = ask(&server, LOOKUP, ROOT, b"etc\0").unwrap();
        assert_eq!(word(&plain, 40 + 84), 0);
    }
}

#[test]
fn holes_are_reported_as_on_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("file")).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.set_len(4 << 20).unwrap();
    let server = server(&dir);
    let node = lookup(&server, ROOT, "file").unwrap();
    let (handle, _) = open(&server, OPEN, node).unwrap();
    let seek = |offset: u64, whence: u32| {
        let body = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
        let body = [&body[..], &words(&[whence, 0])].concat();
        ask(&server, LSEEK, node, &body).map(|reply| long(&reply, 0))
    };
    assert_eq!(seek(0, 3), Ok(1 << 20), "SEEK_DATA");
    assert_eq!(seek(1 << 20, 4), Ok((1 << 20) + 4096), "SEEK_HOLE");
    assert_eq!(seek(2 << 20, 3), Err(ENXIO));
    assert_eq!(seek(0, 2), Err(EINVAL));
    // Reading at any offset still works.
    let bytes = ask(&server, READ, node, &read_in(handle, 0, 10)).unwrap();
    assert_eq!(bytes, [0; 10]);
}

#[test]
fn extended_attributes_are_served_if_enabled() {
    let dir = tempfile::tempdir().unwrap();
    let set = |name: &str, key: &str, value: &[u8]| {
        lsetxattr(dir.path().join(name), key, value, XattrFlags::empty()).unwrap();
    };
    fs::write(dir.path().join("file"), "").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    set("file", "user.key", b"value");
    set("file", "user.overlay.opaque", b"y");
    let get = |server: &Embedded, node: u64, name: &str, size: u32| {
        let body = [&words(&[size, 0])[..], name.as_bytes(), b"\0"].concat();
        ask(server, GETXATTR, node, &body)
    };
    let names =
        |server: &Embedded, node: u64, size: u32| ask(server, LISTXATTR, node, &words(&[size, 0]));
    let without = server(&dir);
    let node = lookup(&without, ROOT, "file").unwrap();
    assert_eq!(get(&without, node, "user.key", 100), Err(ENOSYS));
    assert_eq!(names(&without, node, 100), Err(ENOSYS));

    let server = with(dir.path(), |options| options.xattr = true);
    init(&server);
    let node = lookup(&server, ROOT, "file").unwrap();
    assert_eq!(get(&server, node, "user.key", 100).unwrap(), b"value");
    assert_eq!(word(&get(&server, node, "user.key", 0).unwrap(), 0), 5);
    assert_eq!(get(&server, node, "user.key", 4), Err(ERANGE));
    assert_eq!(get(&server, node, "user.none", 100), Err(ENODATA));
    let all = b"user.key\0user.overlay.opaque\0";
    let sorted = |bytes: &[u8]| {
        bytes
            .split(|&byte| byte == 0)
            .map(<[u8]>::to_vec)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(sorted(&names(&server, node, 1000).unwrap()), sorted(all));
    assert_eq!(word(&names(&server, node, 0).unwrap(), 0), all.len() as u32);
    assert_eq!(names(&server, node, 8), Err(ERANGE));
    // A link has attributes of its own.
    let link = lookup(&server, ROOT, "link").unwrap();
    assert_eq!(names(&server, link, 100).unwrap(), b"");
    if rustix::process::geteuid().is_root() {
        set("link", "trusted.key", b"of the link");
        assert_eq!(
            get(&server, link, "trusted.key", 100).unwrap(),
            b"of the link"
        );
    }

    // The attributes that mark layers are not shown to the guest.
    let empty = tempfile::tempdir().unwrap();
    let server = with(dir.path(), |options| {
        options.xattr = true;
        options.dirs.push(empty.path().into());
    });
    init(&server);
    let node = lookup(&server, ROOT, "file").unwrap();
    assert_eq!(get(&server, node, "user.overlay.opaque", 100), Err(ENODATA));
    assert_eq!(names(&server, node, 100).unwrap(), b"user.key\0");
}

#[test]
fn a_listing_continues_at_any_cookie_on_any_handle() {
    let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for number in 0..1500 {
        fs::write(one.path().join(format!("name-{number}")), "").unwrap();
    }
    for dirs in [vec![one.path()], vec![one.path(), other.path()]] {
        let server = Embedded::of(dirs.into_iter().map(Into::into).collect());
        init(&server);
        let all = list(&server, ROOT);
        let names: BTreeSet<_> = all.iter().map(|(name, ..)| name.clone()).collect();
        assert_eq!((all.len(), names.len()), (1502, 1502));
        let at = |handle, offset, size| {
            ask(&server, READDIR, ROOT, &read_in(handle, offset, size)).map(|bytes| entries(&bytes))
        };
        let mut handle = open(&server, OPENDIR, ROOT).unwrap().0;
        for place in [700, 3, 1400, 0] {
            let found = at(handle, all[place].2, 4096).unwrap();
            assert_eq!(found[..20], all[place + 1..][..20], "behind {place}");
            // Continue on the same handle, and then on a new one.
            let found = at(handle, found[9].2, 4096).unwrap();
            assert_eq!(found[..20], all[place + 11..][..20]);
            handle = open(&server, OPENDIR, ROOT).unwrap().0;
        }
        assert_eq!(at(handle, all[1501].2, 4096), Ok(vec![]), "the end");
        // A buffer that is too small for one entry is an error, not the end of the directory.
        for size in [0, 1, 20, 24] {
            assert_eq!(at(handle, 0, size), Err(EINVAL), "{size}");
            assert_eq!(at(handle, all[700].2, size), Err(EINVAL), "{size}");
        }
        // After a rewind, new names are listed.
        fs::write(one.path().join("new"), "").unwrap();
        let rewound = list(&server, ROOT);
        assert!(rewound.iter().any(|(name, ..)| name == "new"));
        fs::remove_file(one.path().join("new")).unwrap();
    }
}

#[test]
fn many_handles_of_a_large_directory() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..20_000 {
        File::create(dir.path().join(number.to_string())).unwrap();
    }
    let lower = tempfile::tempdir().unwrap();
    for dirs in [vec![dir.path()], vec![dir.path(), lower.path()]] {
        let server = Embedded::of(dirs.into_iter().map(Into::into).collect());
        init(&server);
        // If each handle kept its own list, 300 handles would keep 6 million names.
        for _ in 0..300 {
            let (handle, _) = open(&server, OPENDIR, ROOT).unwrap();
            let some = ask(&server, READDIR, ROOT, &read_in(handle, 0, 4096)).unwrap();
            assert!(entries(&some).len() > 50);
        }
    }
}

#[test]
fn a_directory_that_may_be_read_but_not_searched() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(dir.path().join("dir/below")).unwrap();
    fs::set_permissions(dir.path().join("dir"), Permissions::from_mode(0o744)).unwrap();
    let share = bootshare_test_device::Device::with_backend(AsNobody(server(&dir)));
    let share = share.mount(bootshare::Options::default()).unwrap();
    let names: Vec<_> = share
        .read_dir("dir")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_vec())
        .collect();
    assert!(names.contains(&b"below".to_vec()), "{names:?}");
    share.unmount().unwrap();
}

#[test]
fn the_cache_mode_decides_how_long_replies_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let offered = AUTO_INVAL_DATA | NO_OPEN_SUPPORT | NO_OPENDIR_SUPPORT | CACHE_SYMLINKS;
    for (cache, seconds, agreed, flags) in [
        (Cache::None, 0, AUTO_INVAL_DATA, Ok(DIRECT_IO)),
        (Cache::Auto, 1, AUTO_INVAL_DATA | CACHE_SYMLINKS, Ok(0)),
        (
            Cache::Always,
            86_400,
            offered & !AUTO_INVAL_DATA,
            Err(ENOSYS),
        ),
    ] {
        let server = with(dir.path(), |options| options.cache = cache);
        assert_eq!(init_with(&server, offered), agreed, "{cache:?}");
        let entry = ask(&server, LOOKUP, ROOT, b"file\0").unwrap();
        assert_eq!(
            (long(&entry, 16), long(&entry, 24)),
            (seconds, seconds),
            "{cache:?}"
        );
        let node = long(&entry, 0);
        let attributes = ask(&server, GETATTR, node, &[0; 16]).unwrap();
        assert_eq!(long(&attributes, 0), seconds, "{cache:?}");
        assert_eq!(
            open(&server, OPEN, node).map(|(_, flags)| flags),
            flags,
            "{cache:?}"
        );
        let none = ask(&server, LOOKUP, ROOT, b"none\0");
        if cache == Cache::Always {
            // Missing names are cached; directories and files are read without OPEN.
            let none = none.unwrap();
            assert_eq!((long(&none, 0), long(&none, 16)), (0, seconds));
            assert_eq!(open(&server, OPENDIR, ROOT), Err(ENOSYS));
            let some = ask(&server, READDIR, ROOT, &read_in(0, 0, 4096)).unwrap();
            assert_eq!(entries(&some).len(), 3);
            assert!(ask(&server, READ, node, &read_in(0, 0, 4096)).is_ok());
            assert_eq!(ask(&server, RELEASE, node, &[0; 24]), Ok(vec![]));
            // A guest that did not negotiate this gets handles.
            init(&server);
            let node = lookup(&server, ROOT, "file").unwrap();
            let (handle, flags) = open(&server, OPEN, node).unwrap();
            assert_eq!((handle != 0, flags), (true, KEEP_CACHE));
            assert!(ask(&server, READ, node, &read_in(0, 0, 4096)).is_err());
        } else {
            assert_eq!(none, Err(ENOENT), "{cache:?}");
        }
    }
}

/// Linux drops a file's cached pages at each OPEN without KEEP_CACHE, even those of a library that all programs
/// use.
#[test]
fn the_guest_keeps_the_pages_of_an_unchanged_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let server = server(&dir);
    let flags = |node| open(&server, OPEN, node).unwrap().1;
    // Directly after a change, another change could have the same time. This thread may be delayed until that is over.
    let is_kept_at_first = |number: u32| {
        fs::write(&path, format!("{number}ld")).unwrap();
        let node = lookup(&server, ROOT, "file").unwrap();
        [flags(node), flags(node)] != [0, 0]
    };
    assert!(!(0..10).all(is_kept_at_first));
    let node = lookup(&server, ROOT, "file").unwrap();
    let flags = || flags(node);
    std::thread::sleep(Duration::from_millis(3100));
    assert_eq!([flags(), flags(), flags()], [0, KEEP_CACHE, KEEP_CACHE]);
    // Restores the size and the modification time; only the change time differs.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "new").unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(before)
        .unwrap();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() < SystemTime::now());
    assert_eq!([flags(), flags()], [0, 0]);
}

/// Backups use access times, and a read-only server must not change them.
#[test]
fn reading_does_not_change_the_access_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "text").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(5 * 86_400);
    let times = fs::FileTimes::new().set_accessed(long_ago);
    for path in [&path, dir.path()] {
        File::open(path).unwrap().set_times(times).unwrap();
    }
    let server = server(&dir);
    list(&server, ROOT);
    let node = lookup(&server, ROOT, "file").unwrap();
    assert_eq!(crate::requests::read(&server, node).unwrap(), "text");
    for path in [&path, dir.path()] {
        assert_eq!(fs::metadata(path).unwrap().accessed().unwrap(), long_ago);
    }
}

#[test]
fn a_directory_may_be_deeper_than_the_longest_path() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let name = "d".repeat(250);
    let mut at = rustix::fs::open(dir.path(), rustix::fs::OFlags::RDONLY, 0o0.into()).unwrap();
    let mut node = ROOT;
    for _ in 0..60 {
        rustix::fs::mkdirat(&at, &*name, 0o755.into()).unwrap();
        at = rustix::fs::openat(&at, &*name, rustix::fs::OFlags::RDONLY, 0o0.into()).unwrap();
        node = lookup(&server, node, &name).unwrap();
    }
    // The path is longer than the kernel allows, but the directory is still below the root.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(lookup(&server, node, "none"), Err(ENOENT));
    assert_eq!(list(&server, node).len(), 2);
}
