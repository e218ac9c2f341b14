//! A real tree, entry by entry, as the host has it.

use crate::rig::Server;
use bootshare::{Dir, DirEntry, FileType, Options};
use bootshare_tests::{Balance, Device, TestHal, TestTransport, VirtualClock, mount};
use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

/// Files of Debian's packages: names, links and sizes that nobody made up.
const TREE: &str = "/usr/share";

#[derive(Default)]
struct Found {
    entries: usize,
    files: usize,
    links: usize,
    bytes: u64,
}

pub fn a_tree_of_packages(server: Server) {
    let device = Device::new(server.backend(Path::new(TREE)));
    let share = mount(&device, Options::default()).unwrap();
    let mut found = Found::default();
    compare(&share.open_dir("/").unwrap(), Path::new(TREE), &mut found);
    let Found {
        entries,
        files,
        links,
        bytes,
    } = found;
    println!("{entries} entries: {files} files of {bytes} bytes, {links} links");
    assert!(entries >= 1000, "{TREE} is too small for a comparison");
    share.unmount().unwrap();
    device.log(|log| {
        assert_eq!(log.problems(), Vec::<String>::new());
        assert_eq!(log.at_destroy, [Balance::default()]);
    });
}

type TestDir<'s> = Dir<'s, TestTransport, VirtualClock, TestHal>;

fn compare(ours: &TestDir<'_>, host: &Path, found: &mut Found) {
    let mut names: Vec<_> = fs::read_dir(host)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let listed: Result<Vec<DirEntry>, _> = ours.read_dir().unwrap().collect();
    let mut listed = listed.unwrap();
    listed.sort_by(|a, b| a.file_name().cmp(b.file_name()));
    assert!(
        names
            .iter()
            .map(|name| name.as_bytes())
            .eq(listed.iter().map(DirEntry::file_name)),
        "{host:?}"
    );
    for entry in &listed {
        let path = host.join(std::ffi::OsStr::from_bytes(entry.file_name()));
        found.entries += 1;
        one(ours, entry, &path, found);
    }
}

fn one(ours: &TestDir<'_>, entry: &DirEntry, path: &Path, found: &mut Found) {
    let name = entry.file_name();
    let host = fs::symlink_metadata(path).unwrap();
    let meta = ours.symlink_metadata(name).unwrap();
    let kind = host.file_type();
    let expected = match () {
        () if kind.is_file() => FileType::File,
        () if kind.is_dir() => FileType::Directory,
        () if kind.is_symlink() => FileType::Symlink,
        () if kind.is_fifo() => FileType::Fifo,
        () if kind.is_socket() => FileType::Socket,
        () if kind.is_block_device() => FileType::BlockDevice,
        () => FileType::CharDevice,
    };
    assert_eq!(meta.file_type(), expected, "{path:?}");
    assert_eq!(entry.file_type(), Some(expected), "{path:?}");
    assert_eq!(meta.len(), host.len(), "{path:?}");
    assert_eq!(meta.attr().ino, host.ino(), "{path:?}");
    assert_eq!(u32::from(meta.permissions()), host.mode() & 0o7777);
    assert_eq!(meta.modified(), (host.mtime(), host.mtime_nsec() as u32));
    match expected {
        FileType::Directory => {
            // Where the host refuses, so does the server; both have the same rights.
            match fs::read_dir(path) {
                Ok(_) => compare(&ours.open_dir(name).unwrap(), path, found),
                Err(_) => assert!(ours.open_dir(name).unwrap().read_dir().is_err()),
            }
        }
        FileType::Symlink => {
            found.links += 1;
            let target = fs::read_link(path).unwrap();
            let mut buf = [0; 4096];
            let ours = ours.read_link(name, &mut buf).unwrap();
            assert_eq!(ours, target.as_os_str().as_bytes(), "{path:?}");
        }
        FileType::File => {
            found.files += 1;
            let Ok(content) = fs::read(path) else {
                assert!(ours.open_file(name).is_err(), "{path:?}");
                return;
            };
            let mut buf = vec![0; content.len() + 1];
            let size = ours.open_file(name).unwrap().read_at(0, &mut buf).unwrap();
            found.bytes += size as u64;
            assert!(buf[..size] == content, "{path:?}");
        }
        _ => {}
    }
}
