//! A walk of a real tree, compared entry by entry with the host's.

use crate::rig::Server;
use bootshare::{Dir, DirEntry, FileType, Options};
use bootshare_host::{Arch, debian::Packages};
use bootshare_test_device::{Device, TestHal, TestTransport, VirtualClock, raw::Balance};
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The least number of regular files that must have been compared.
const FEWEST_FILES: usize = 10_000;

/// A real tree, the same on each machine: the headers and build files of a kernel, and an icon theme, which has
/// more links than files.
fn tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
        let tree = root.unwrap().join("target/packages");
        let packages = Packages {
            arch: Arch::X86_64,
            what: "kernel headers and icons",
            choose: |apt| {
                let headers = apt.dependency("linux-headers-amd64", "linux-headers-")?;
                let common = apt.dependency(&headers, "linux-headers-")?;
                Ok(vec![headers, common, "breeze-icon-theme".to_owned()])
            },
        };
        packages
            .fetch(&tree)
            .unwrap_or_else(|error| panic!("{error:#}"));
        tree
    })
}

#[derive(Default)]
struct Found {
    entries: usize,
    files: usize,
    links: usize,
    bytes: u64,
}

pub fn a_tree_of_packages(server: Server) {
    let device = Device::with_backend(server.backend(tree()));
    let share = device.mount(Options::default()).unwrap();
    let mut found = Found::default();
    compare(&share.open_dir("/").unwrap(), tree(), &mut found);
    let Found {
        entries,
        files,
        links,
        bytes,
    } = found;
    println!("{entries} entries: {files} files of {bytes} bytes, {links} links");
    assert!(files >= FEWEST_FILES && links > 0, "too few to compare");
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
        () => panic!("{path:?}: no package has a {kind:?}"),
    };
    assert_eq!(meta.file_type(), expected, "{path:?}");
    assert_eq!(entry.file_type(), Some(expected), "{path:?}");
    assert_eq!(meta.len(), host.len(), "{path:?}");
    assert_eq!(meta.attr().ino, host.ino(), "{path:?}");
    assert_eq!(u32::from(meta.permissions()), host.mode() & 0o7777);
    assert_eq!(meta.modified(), (host.mtime(), host.mtime_nsec() as u32));
    match expected {
        FileType::Directory => compare(&ours.open_dir(name).unwrap(), path, found),
        FileType::Symlink => {
            found.links += 1;
            let target = fs::read_link(path).unwrap();
            let mut buf = [0; 4096];
            let ours = ours.read_link(name, &mut buf).unwrap();
            assert_eq!(ours, target.as_os_str().as_bytes(), "{path:?}");
        }
        FileType::File => {
            found.files += 1;
            let content = fs::read(path).unwrap();
            let mut buf = vec![0; content.len() + 1];
            let size = ours.open_file(name).unwrap().read_at(0, &mut buf).unwrap();
            found.bytes += size as u64;
            assert_eq!(
                Sha256::digest(&buf[..size]),
                Sha256::digest(&content),
                "{path:?}"
            );
        }
        _ => unreachable!(),
    }
}
