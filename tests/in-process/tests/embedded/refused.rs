//! Requests that the embedded server refuses: changes, paths out of the share, and malformed requests.

use crate::requests::{
    EINVAL, ENOENT, EROFS, ESTALE, LOOKUP, OPEN, OPENDIR, READ, READDIR, RELEASE, ROOT, ask, errno,
    init, lookup, open, read_in, request, server, words,
};
use bootshare::Error;
use bootshare_tests::Embedded;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::os::unix::{fs::symlink, net::UnixListener};
use std::{fs, thread, time::Duration};

#[test]
fn changes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "as it was").unwrap();
    let server = server(&dir);
    let file = lookup(&server, ROOT, "file").unwrap();
    let two_names = b"file\0other\0";
    let mut cases: Vec<(u32, u64, Vec<u8>)> = vec![
        (4, file, words(&[8, 0, 0, 0, 0, 0, 0, 0].repeat(3))),
        (6, ROOT, two_names.to_vec()),
        (
            8,
            ROOT,
            [&words(&[0o100_644, 0, 0, 0])[..], b"new\0"].concat(),
        ),
        (9, ROOT, [&words(&[0o755, 0])[..], b"new\0"].concat()),
        (10, ROOT, b"file\0".to_vec()),
        (11, ROOT, b"file\0".to_vec()),
        (12, ROOT, [&words(&[1, 0])[..], two_names].concat()),
        (13, ROOT, [&words(&[file as u32, 0])[..], b"new\0"].concat()),
        (16, file, words(&[0; 10])),
        (21, file, [&words(&[1, 0])[..], b"user.x\0y"].concat()),
        (24, file, b"user.x\0".to_vec()),
        (
            35,
            ROOT,
            [&words(&[0o102, 0o644, 0, 0])[..], b"new\0"].concat(),
        ),
        (43, file, words(&[0; 8])),
        (45, ROOT, [&words(&[1, 0, 0, 0])[..], two_names].concat()),
        (47, file, words(&[0; 14])),
        (48, file, words(&[0; 10])),
        (51, ROOT, [&words(&[2, 0o644, 0, 0])[..], b"new\0"].concat()),
        // access(2) for writing, and the ioctl FS_IOC_SETFLAGS.
        (34, file, words(&[2, 0])),
        (39, file, words(&[0, 0, 0, 0x4008_6602, 0, 0, 0, 0])),
    ];
    for flags in [0o1, 0o2, 0o3, 0o1000, 0o2002, 0o100] {
        cases.push((OPEN, file, words(&[flags, 0])));
    }
    for (opcode, node, body) in cases {
        let reply = server.ask(&request(opcode, node, &body), 4096).unwrap();
        assert_eq!(errno(&reply), EROFS, "operation {opcode}");
        assert_eq!(reply.len(), 16, "operation {opcode}");
    }
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"as it was");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // The file still exists and can be opened for reading.
    let reply = server.ask(&request(OPEN, file, &words(&[0, 0])), 4096);
    assert_eq!(errno(&reply.unwrap()), 0);
}

#[test]
fn paths_out_of_the_share() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(outside.path().join("share")).unwrap();
    let share_dir = outside.path().join("share");
    fs::create_dir_all(share_dir.join("dir/below")).unwrap();
    fs::write(share_dir.join("dir/below/file"), "ours").unwrap();
    symlink(outside.path(), share_dir.join("absolute")).unwrap();
    symlink("../..", share_dir.join("dir/up")).unwrap();
    symlink("/proc/self/root", share_dir.join("magic")).unwrap();

    let server = Embedded::of(vec![share_dir.clone()]);
    init(&server);
    let dir = lookup(&server, ROOT, "dir").unwrap();
    for name in ["..", ".", "", "../secret", "dir/..", "/", "/etc"] {
        assert_eq!(lookup(&server, ROOT, name), Err(EINVAL), "{name}");
        assert_eq!(lookup(&server, dir, name), Err(EINVAL), "{name}");
    }
    // The server does not follow links.
    for (parent, name) in [(ROOT, "absolute"), (ROOT, "magic"), (dir, "up")] {
        let link = lookup(&server, parent, name).unwrap();
        assert_ne!(lookup(&server, link, "secret"), Ok(0));
        assert!(lookup(&server, link, "secret").is_err(), "{name}");
        assert!(lookup(&server, link, "etc").is_err(), "{name}");
        let reply = server.ask(&request(OPEN, link, &words(&[0, 0])), 4096);
        assert_ne!(errno(&reply.unwrap()), 0, "{name}");
    }
    // A link that replaced a directory is not followed either; the guest's node is still the directory.
    let below = lookup(&server, dir, "below").unwrap();
    fs::rename(share_dir.join("dir/below"), share_dir.join("dir/aside")).unwrap();
    fs::write(outside.path().join("file"), "not ours").unwrap();
    symlink(outside.path(), share_dir.join("dir/below")).unwrap();
    assert_eq!(lookup(&server, below, ".."), Err(EINVAL));
    assert!(lookup(&server, below, "file").is_ok());
    assert_eq!(lookup(&server, below, "secret"), Err(ENOENT));
    // Directories and files that were moved out of the share are stale after a second.
    let file = lookup(&server, below, "file").unwrap();
    for (node, name, errno_below) in [(below, "aside", ESTALE), (file, "aside/file", ENOENT)] {
        let from = share_dir.join("dir").join(name);
        let to = outside.path().join("moved");
        fs::rename(&from, &to).unwrap();
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(lookup(&server, below, "file"), Err(errno_below), "{name}");
        for opcode in [OPEN, 27, 3, 22] {
            let reply = server.ask(&request(opcode, node, &[0; 16]), 4096).unwrap();
            assert_eq!(errno(&reply), ESTALE, "operation {opcode}");
        }
        fs::rename(&to, &from).unwrap();
        assert!(lookup(&server, below, "file").is_ok(), "it is back");
    }
}

/// Opening a FIFO would block, and opening a device may have any side effect.
#[test]
fn fifos_and_devices() {
    let dir = tempfile::tempdir().unwrap();
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, dir.path().join("fifo"), FileType::Fifo, mode, 0).unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    // /dev/null is a device that any user may create; it represents all devices.
    let device = dir.path().join("device");
    mknodat(CWD, &device, FileType::CharacterDevice, mode, 0).unwrap();
    let server = server(&dir);
    for name in ["fifo", "socket", "device"] {
        let node = lookup(&server, ROOT, name).unwrap();
        let reply = server.ask(&request(OPEN, node, &words(&[0, 0])), 4096);
        assert_eq!(errno(&reply.unwrap()), 6, "{name}: ENXIO");
    }
    // A FIFO replaced a file: the known node is still the file.
    fs::write(dir.path().join("file"), "").unwrap();
    let node = lookup(&server, ROOT, "file").unwrap();
    fs::rename(dir.path().join("fifo"), dir.path().join("file")).unwrap();
    let reply = server.ask(&request(OPEN, node, &words(&[0, 0])), 4096);
    assert_eq!(errno(&reply.unwrap()), 0);
    let node = lookup(&server, ROOT, "file").unwrap();
    let reply = server.ask(&request(OPEN, node, &words(&[0, 0])), 4096);
    assert_eq!(errno(&reply.unwrap()), 6, "ENXIO");
}

#[test]
fn files_and_handles_of_another_kind() {
    const EBADF: i32 = 9;
    const ENOTDIR: i32 = 20;
    const EISDIR: i32 = 21;
    const ELOOP: i32 = 40;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let server = server(&dir);
    let file = lookup(&server, ROOT, "file").unwrap();
    let link = lookup(&server, ROOT, "link").unwrap();
    assert_eq!(open(&server, OPEN, link), Err(ELOOP));
    assert_eq!(open(&server, OPEN, ROOT), Err(EISDIR));
    assert_eq!(open(&server, OPENDIR, file), Err(ENOTDIR));
    assert_eq!(open(&server, OPENDIR, link), Err(ENOTDIR));
    let (of_file, _) = open(&server, OPEN, file).unwrap();
    let (of_dir, _) = open(&server, OPENDIR, ROOT).unwrap();
    let unknown = of_file.max(of_dir) + 1;
    // The guest did not ask for files that need no OPEN (INIT), so 0 is no handle.
    for (opcode, node, handle, error) in [
        (READ, file, of_dir, EISDIR),
        (READ, file, unknown, EBADF),
        (READ, file, 0, EBADF),
        (READDIR, ROOT, of_file, ENOTDIR),
        (READDIR, ROOT, unknown, EBADF),
        (READDIR, ROOT, 0, EBADF),
    ] {
        let refused = ask(&server, opcode, node, &read_in(handle, 0, 4096));
        assert_eq!(refused, Err(error), "{opcode}, handle {handle}");
    }
    let release = |handle: u64| [&handle.to_le_bytes()[..], &[0; 16]].concat();
    assert_eq!(ask(&server, RELEASE, file, &release(0)), Err(EBADF));
    assert_eq!(ask(&server, RELEASE, file, &release(unknown)), Err(EBADF));
    assert_eq!(ask(&server, RELEASE, file, &release(of_file)), Ok(vec![]));
    let again = ask(&server, READ, file, &read_in(of_file, 0, 4096));
    assert_eq!(again, Err(EBADF));
}

#[test]
fn malformed_requests() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    let server = server(&dir);
    // Pseudo-random numbers, the same in each run.
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    for _ in 0..20_000 {
        let body: Vec<u8> = (0..random() % 80).map(|_| random() as u8 % 3).collect();
        let mut bytes = request((random() % 60) as u32, random() % 4, &body);
        match random() % 4 {
            0 => bytes.truncate(random() as usize % (bytes.len() + 1)),
            1 => bytes[0..4].copy_from_slice(&(random() as u32).to_le_bytes()),
            _ => {}
        }
        let room = [0, 1, 15, 16, 24, 100, 8192][random() as usize % 7];
        let reply = server.ask(&bytes, room).expect("a reply to each");
        assert!(reply.len() <= room);
    }
    // The server still works.
    init(&server);
    assert!(lookup(&server, ROOT, "file").is_ok());
}

#[test]
fn files_of_different_file_systems_have_different_inode_numbers() {
    // Two layers on two file systems, whose first inode numbers are often the same.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    let server = Embedded::of(vec![dir.path().into(), "/proc/self/fdinfo".into()]);
    init(&server);
    let ino = |name: &str| {
        let body = [name.as_bytes(), b"\0"].concat();
        let reply = server.ask(&request(LOOKUP, ROOT, &body), 4096).unwrap();
        assert_eq!(errno(&reply), 0, "{name}");
        // `ino` of fuse_attr, which follows fuse_entry_out.
        u64::from_le_bytes(reply[16 + 40..][..8].try_into().unwrap())
    };
    let top = |name| ino(name) >> 54;
    assert_eq!(top("a"), 0);
    assert_eq!(top("0"), 1, "a file of another file system");
}

#[test]
fn a_read_of_any_size_is_one_reply() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..9_000_000_u32).map(|n| ((n * 7) >> 3) as u8).collect();
    fs::write(dir.path().join("file"), &content).unwrap();
    let server = server(&dir);
    let node = lookup(&server, ROOT, "file").unwrap();
    let reply = server
        .ask(&request(OPEN, node, &words(&[0, 0])), 4096)
        .unwrap();
    let handle = u32::from_le_bytes(reply[16..20].try_into().unwrap());
    let read = |offset: u32, size: u32, room: usize| {
        let body = words(&[handle, 0, offset, 0, size, 0, 0, 0, 0, 0]);
        let reply = server.ask(&request(15, node, &body), room).unwrap();
        assert_eq!(errno(&reply), 0);
        reply[16..].to_vec()
    };
    assert!(read(0, 16 << 20, 16 + (16 << 20)) == content);
    assert!(read(1, 8 << 20, 16 + (8 << 20)) == content[1..][..8 << 20]);
    assert!(
        read(5, 4096, 16 + 100) == content[5..][..100],
        "what there is room for"
    );
    assert!(read(8_999_999, 4096, 8192) == content[8_999_999..]);
    assert!(read(9_000_000, 4096, 8192).is_empty());
}

#[test]
fn files_that_the_user_may_not_read() {
    use bootshare_test_device::Device;
    use bootshare_tests::AsNobody;
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("closed"), "secret").unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    for (name, mode) in [("closed", 0), ("dir", 0)] {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(dir.path().join(name), mode).unwrap();
    }
    let server = Embedded::of(vec![dir.path().into(), dir.path().into()]);
    let device = Device::with_backend(AsNobody(server));
    let share = device.mount(bootshare::Options::default()).unwrap();
    assert_eq!(share.open("closed").err(), Some(Error::PermissionDenied));
    assert!(share.metadata("closed").is_ok());
    assert!(share.read_dir("dir").is_err());
    share.unmount().unwrap();
}

#[test]
fn a_share_that_is_not_a_directory() {
    use bootshare_host::serve::{Handler, Options};
    for (dir, part) in [
        ("/nonexistent/dir", "/nonexistent/dir"),
        ("/etc/hostname", "hostname"),
    ] {
        let options = Options::new("test", vec!["/".into(), dir.into()]);
        let Err(error) = Handler::new(&options) else {
            panic!("{dir} is shared");
        };
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
    let none = Options::new("test", Vec::new());
    assert!(Handler::new(&none).is_err());
}
