//! Regular files.

use crate::rig::{Rig, Server, noise};
use bootshare::{Error, FileType, Options};
use bootshare_test_device::{Opcode, raw::Order};
use embedded_io::{Read, ReadExactError, Seek, SeekFrom};
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, mkfifoat, utimensat};
use std::ops::ControlFlow::Continue;
use std::{
    fs,
    os::unix::{
        fs::{FileExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
};

const MIB: usize = 1 << 20;

pub fn sizes_around_a_page_and_a_chunk(server: Server) {
    let rig = Rig::new(server);
    for size in [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1] {
        let content = noise(size);
        rig.write("file", &content);
        rig.run(|share| {
            assert_eq!(share.metadata("file").unwrap().len(), size as u64);
            let file = share.open("file").unwrap();
            assert_eq!(file.metadata().len(), size as u64);
            for room in [size, size + 1, size + 5000] {
                let mut buf = vec![0xee; room];
                assert_eq!(file.read_at(0, &mut buf), Ok(size));
                assert!(buf[..size] == content, "{size} bytes");
                assert!(buf[size..].iter().all(|&byte| byte == 0xee));
            }
            let mut exact = vec![0; size];
            file.read_exact_at(0, &mut exact).unwrap();
            let too_much = file.read_exact_at(0, &mut vec![0; size + 1]);
            assert_eq!(too_much, Err(Error::UnexpectedEof));
            assert_eq!(file.read_at(size as u64, &mut [0; 10]), Ok(0));
            assert_eq!(file.read_at(size as u64 + 1, &mut [0; 10]), Ok(0));
            assert_eq!(file.read_at(0, &mut []), Ok(0));
        });
    }
}

pub fn whole_files_and_missing_ones(server: Server) {
    let rig = Rig::new(server);
    rig.write("file", b"content");
    rig.write("empty", b"");
    rig.symlink("nowhere", "dangling");
    rig.run(|share| {
        let mut buf = [0; 7];
        assert_eq!(share.read("file", &mut buf).as_deref(), Ok(&b"content"[..]));
        assert_eq!(share.read("empty", &mut buf).as_deref(), Ok(&b""[..]));
        assert_eq!(
            share.read("file", &mut buf[..6]),
            Err(Error::BufferTooSmall)
        );
        assert_eq!(share.read("/", &mut buf), Err(Error::IsADirectory));
        assert_eq!(share.exists("file"), Ok(true));
        assert_eq!(share.exists("/"), Ok(true));
        for nothing in ["nothing", "file/below", "dangling", ""] {
            assert_eq!(share.exists(nothing), Ok(false), "{nothing}");
        }
        assert_eq!(share.exists("a\0b"), Err(Error::InvalidName));
    });
}

pub fn odd_offsets_and_sizes(server: Server) {
    let rig = Rig::new(server);
    let content = noise(300_000);
    rig.write("file", &content);
    rig.run_with(Options::default().with_chunk_size(4096 * 3), |share| {
        let file = share.open("file").unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let mut buf = vec![0; 70_001];
        for _ in 0..500 {
            let offset = random.usize(..content.len() + 100);
            let magnitude = random.u32(..17);
            let size = random.usize(..1 << magnitude);
            let there = content.get(offset..).unwrap_or_default();
            let there = &there[..there.len().min(size)];
            let read = file.read_at(offset as u64, &mut buf[..size]).unwrap();
            assert!(buf[..read] == *there, "{size} at {offset}");
        }
    });
}

pub fn every_chunk_size_and_depth(server: Server) {
    let rig = Rig::new(server);
    let content = noise(5 * MIB + 123);
    rig.write("file", &content);
    for chunk in [0, 1, 4095, 4096, 65_536, MIB, 4 * MIB, u32::MAX as usize] {
        for depth in [0, 1, 2, 7, 16, 21, 1000] {
            let options = Options::default()
                .with_chunk_size(chunk as u32)
                .with_depth(depth);
            rig.run_with(options, |share| {
                let file = share.open("file").unwrap();
                // At most some hundred requests.
                let size = content.len().min(chunk.max(1).saturating_mul(300));
                let mut buf = vec![0; size + 1];
                let read = file.read_at(0, &mut buf[..size]).unwrap();
                assert!(buf[..read] == content[..size], "{chunk} {depth}");
                let tail = content.len() - size / 2;
                let read = file.read_at(tail as u64, &mut buf).unwrap();
                assert!(buf[..read] == content[tail..], "{chunk} {depth}");
            });
        }
    }
}

pub fn answers_in_any_order(server: Server) {
    let orders = (0..20).map(Order::Shuffled).chain([Order::Reversed]);
    let rig = Rig::new(server);
    let content = noise(200_000);
    rig.write("file", &content);
    for order in orders {
        rig.device.quirk(|quirks| quirks.order = order);
        rig.run_with(Options::default().with_chunk_size(4096), |share| {
            let file = share.open("file").unwrap();
            let mut buf = vec![0; content.len() + 50_000];
            let mut seen = Vec::new();
            let read = file
                .read_at_with(0, &mut buf, &mut |come| {
                    seen.push(come);
                    Continue(())
                })
                .unwrap();
            assert!(buf[..read] == content, "{order:?}");
            assert!(seen.is_sorted(), "progress goes forward");
            assert_eq!(seen.last(), Some(&(content.len() as u64)));
        });
    }
}

pub fn several_at_once(server: Server) {
    let rig = Rig::new(server);
    // Files that are empty, smaller than a chunk, whole chunks, and larger than what is in flight.
    let sizes = [0, 1, 4095, 4096, 100_000, 0, 12_288, 5];
    let contents: Vec<_> = (sizes.iter().zip(1..))
        .map(|(&size, seed)| noise(size + seed)[seed..].to_vec())
        .collect();
    for (number, content) in contents.iter().enumerate() {
        rig.write(number.to_string(), content);
    }
    let orders = (0..20).map(Order::Shuffled).chain([Order::Reversed]);
    for order in orders {
        rig.device.quirk(|quirks| quirks.order = order);
        rig.run_with(Options::default().with_chunk_size(4096), |share| {
            let open = |number: usize| share.open(number.to_string()).unwrap();
            let files: Vec<_> = (0..sizes.len()).map(open).collect();
            // Buffers that are larger than the files.
            let mut buffers: Vec<_> = sizes.iter().map(|size| vec![0; size + 100]).collect();
            let pairs = files.iter().zip(&mut buffers);
            let mut parts: Vec<_> = pairs.map(|(file, buf)| file.part(0, buf)).collect();
            let mut seen = vec![0; parts.len()];
            let read = share.read_parts(&mut parts, &mut |parts| {
                for ((part, content), seen) in parts.iter().zip(&contents).zip(&mut seen) {
                    assert!(part.bytes() == &content[..part.filled()], "{order:?}");
                    assert!(part.filled() >= *seen, "progress goes forward");
                    *seen = part.filled();
                }
                Continue(())
            });
            read.unwrap();
            assert_eq!(seen, sizes);
            for (part, content) in parts.iter().zip(&contents) {
                assert!(part.bytes() == content, "{order:?}");
                assert_eq!(part.error(), None);
            }
        });
    }
    // Parts of one file in any order, into unaligned buffers.
    rig.run(|share| {
        let file = share.open("4").unwrap();
        let mut buf = vec![0; 100_000];
        let (front, back) = buf.split_at_mut(33_333);
        let mut parts = [file.part(33_333, back), file.part(0, front)];
        share.read_parts(&mut parts, &mut |_| Continue(())).unwrap();
        assert!(buf == contents[4]);
    });
}

pub fn sparse_files_beyond_four_gibibytes(server: Server) {
    const END: u64 = (5 << 30) + 3;
    let rig = Rig::new(server);
    let file = fs::File::create(rig.path("sparse")).unwrap();
    file.set_len(END).unwrap();
    let across = (4u64 << 30) - 2;
    file.write_all_at(b"across", across).unwrap();
    file.write_all_at(b"the end", END - 7).unwrap();
    drop(file);
    rig.run(|share| {
        let file = share.open("sparse").unwrap();
        assert_eq!(file.metadata().len(), END);
        let mut buf = [0; 8];
        file.read_exact_at(across - 1, &mut buf).unwrap();
        assert_eq!(&buf, b"\0across\0");
        assert_eq!(file.read_at(END - 7, &mut buf), Ok(7));
        assert_eq!(&buf[..7], b"the end");
        let mut hole = vec![1; 3 * MIB];
        file.read_exact_at(2 << 30, &mut hole).unwrap();
        assert!(hole.iter().all(|&byte| byte == 0));
        assert_eq!(file.read_at(END, &mut buf), Ok(0));
        assert_eq!(file.read_at(END * 1000, &mut buf), Ok(0));
    });
}

pub fn offsets_beyond_the_largest_file(server: Server) {
    let rig = Rig::new(server);
    rig.write("file", "content");
    rig.run(|share| {
        let file = share.open("file").unwrap();
        let mut buf = [0; 16];
        let last = i64::MAX as u64;
        for offset in [last + 1, u64::MAX, u64::MAX - 16] {
            assert_eq!(
                file.read_at(offset, &mut buf),
                Err(Error::InvalidOffset),
                "{offset:#x}"
            );
        }
        // The last byte that a file can have. The host's file systems have smaller limits and may return any error;
        // the server must survive.
        _ = file.read_at(last - 16, &mut buf);
        _ = file.read_at(last - 15, &mut buf);
        assert_eq!(file.read_at(last, &mut buf), Ok(0));
        assert_eq!(file.read_at(0, &mut buf), Ok(7));
    });
}

pub fn a_file_that_shrinks(server: Server) {
    let rig = Rig::new(server);
    let content = noise(100_000);
    rig.write("file", &content);
    rig.run_with(Options::default().with_chunk_size(8192), |share| {
        let mut file = share.open("file").unwrap();
        let mut buf = vec![0; 100_000];
        file.read_exact_at(0, &mut buf).unwrap();
        let host = fs::File::options().write(true).open(rig.path("file"));
        host.unwrap().set_len(10_000).unwrap();
        assert_eq!(file.read_at(0, &mut buf), Ok(10_000));
        assert!(buf[..10_000] == content[..10_000]);
        assert_eq!(file.read_exact_at(0, &mut buf), Err(Error::UnexpectedEof));
        assert_eq!(file.read_at(50_000, &mut buf), Ok(0));
        assert_eq!(file.metadata().len(), 100_000, "as it was when opened");
        assert_eq!(file.refresh().unwrap().len(), 10_000);
        assert_eq!(file.metadata().len(), 10_000);
    });
}

pub fn a_file_that_grows(server: Server) {
    let rig = Rig::new(server);
    let content = noise(100_000);
    rig.write("file", &content[..10]);
    rig.run_with(Options::default().with_chunk_size(8192), |share| {
        let mut file = share.open("file").unwrap();
        let mut buf = vec![0; 200_000];
        assert_eq!(file.read_at(0, &mut buf), Ok(10));
        rig.write("file", &content);
        assert_eq!(file.read_at(0, &mut buf), Ok(100_000));
        assert!(buf[..100_000] == content);
        assert_eq!(file.refresh().unwrap().len(), 100_000);
    });
}

pub fn a_file_that_changes_while_it_is_read(server: Server) {
    let rig = Rig::new(server);
    let content = noise(100_000);
    let options = Options::default().with_chunk_size(4096).with_depth(1);
    // The change that the host makes after the first chunk, and the number of bytes that the read then returns.
    type Change = fn(&Rig, &[u8]);
    let changes: [(Change, usize); 4] = [
        (
            |rig, _| {
                let host = fs::File::options().write(true).open(rig.path("file"));
                host.unwrap().set_len(20_000).unwrap();
            },
            20_000,
        ),
        (|rig, _| rig.write("file", ""), 4096),
        (|rig, _| fs::remove_file(rig.path("file")).unwrap(), 100_000),
        (
            |rig, content| {
                let host = fs::File::options().append(true).open(rig.path("file"));
                std::io::Write::write_all(&mut host.unwrap(), content).unwrap();
            },
            200_000,
        ),
    ];
    for (change, expected) in changes {
        rig.write("file", &content);
        rig.run_with(options, |share| {
            let file = share.open("file").unwrap();
            let mut buf = vec![0; 200_001];
            let mut first = true;
            let read = file.read_at_with(0, &mut buf, &mut |_| {
                if std::mem::take(&mut first) {
                    change(&rig, &content);
                }
                Continue(())
            });
            assert_eq!(read, Ok(expected));
            let twice = [&content[..], &content].concat();
            assert!(buf[..expected] == twice[..expected]);
            assert_eq!(file.has_changed(), Ok(expected != content.len()));
        });
    }
}

pub fn a_file_that_vanishes(server: Server) {
    let rig = Rig::new(server);
    rig.write("file", "content");
    rig.run(|share| {
        let mut file = share.open("file").unwrap();
        fs::remove_file(rig.path("file")).unwrap();
        let mut buf = [0; 7];
        file.read_exact_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"content", "open files stay");
        assert_eq!(file.refresh().unwrap().attr().nlink, 0);
        assert_eq!(share.metadata("file").err(), Some(Error::NotFound));
        assert_eq!(share.open("file").err(), Some(Error::NotFound));
    });
}

pub fn a_file_that_is_replaced(server: Server) {
    let rig = Rig::new(server);
    rig.write("file", "old");
    rig.write("next", "newer");
    rig.run(|share| {
        let old = share.open("file").unwrap();
        fs::rename(rig.path("next"), rig.path("file")).unwrap();
        let new = share.open("file").unwrap();
        assert_ne!(old.metadata().attr().ino, new.metadata().attr().ino);
        let mut buf = [0; 9];
        assert_eq!(old.read_at(0, &mut buf), Ok(3));
        assert_eq!(&buf[..3], b"old");
        assert_eq!(new.read_at(0, &mut buf), Ok(5));
        assert_eq!(&buf[..5], b"newer");
    });
}

pub fn hard_links_are_one_file(server: Server) {
    let rig = Rig::new(server);
    rig.write("one", "content");
    rig.mkdir("dir");
    fs::hard_link(rig.path("one"), rig.path("dir/two")).unwrap();
    rig.run(|share| {
        let one = share.open("one").unwrap();
        let two = share.open("dir/two").unwrap();
        assert_eq!(one.metadata().attr(), two.metadata().attr());
        assert_eq!(one.metadata().attr().nlink, 2);
        // Each name was looked up once; the FORGET for one name does not remove the node of the other.
        drop(one);
        let mut buf = [0; 7];
        two.read_exact_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"content");
    });
}

pub fn attributes_are_the_hosts(server: Server) {
    let rig = Rig::new(server);
    rig.write("file", "content");
    rig.mkdir("dir");
    rig.symlink("file", "link");
    for mode in [0o7777, 0o644, 0o4755, 0o1600] {
        fs::set_permissions(rig.path("file"), fs::Permissions::from_mode(mode)).unwrap();
        for seconds in [-5i64, 0, 1_700_000_000] {
            let time = Timespec {
                tv_sec: seconds,
                tv_nsec: 123_456_789,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            utimensat(CWD, rig.path("file"), &times, AtFlags::empty()).unwrap();
            rig.run(|share| {
                let meta = share.metadata("file").unwrap();
                assert_eq!(u32::from(meta.permissions()), mode);
                assert_eq!(meta.modified(), (seconds, 123_456_789));
            });
        }
    }
    rig.run(|share| {
        for name in ["file", "dir", "link"] {
            let host = fs::symlink_metadata(rig.path(name)).unwrap();
            let meta = share.symlink_metadata(name).unwrap();
            let attr = meta.attr();
            assert_eq!(attr.ino, host.ino());
            assert_eq!(meta.len(), host.len());
            assert_eq!(u64::from(attr.nlink), host.nlink());
            assert_eq!((attr.uid, attr.gid), (host.uid(), host.gid()));
            assert_eq!(attr.mtime, host.mtime());
            assert_eq!(meta.is_file(), host.is_file());
            assert_eq!(meta.is_dir(), host.is_dir());
            assert_eq!(meta.is_symlink(), host.is_symlink());
        }
    });
}

pub fn only_regular_files_are_opened(server: Server) {
    let rig = Rig::new(server);
    rig.mkdir("dir");
    mkfifoat(CWD, rig.path("fifo"), Mode::from_raw_mode(0o666)).unwrap();
    let _socket = UnixListener::bind(rig.path("socket")).unwrap();
    rig.run(|share| {
        assert_eq!(share.open("dir").err(), Some(Error::IsADirectory));
        assert_eq!(share.open("/").err(), Some(Error::IsADirectory));
        // Opening a FIFO without a writer would block a thread of the server.
        assert_eq!(share.open("fifo").err(), Some(Error::NotAFile));
        assert_eq!(share.open("socket").err(), Some(Error::NotAFile));
        let kind = |name: &str| share.metadata(name).unwrap().file_type();
        assert_eq!(kind("fifo"), FileType::Fifo);
        assert_eq!(kind("socket"), FileType::Socket);
        assert_eq!(kind("dir"), FileType::Directory);
        let mut listed: Vec<_> = share
            .read_dir("/")
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().to_vec(), entry.file_type()))
            .collect();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            (b"dir".to_vec(), Some(FileType::Directory)),
            (b"fifo".to_vec(), Some(FileType::Fifo)),
            (b"socket".to_vec(), Some(FileType::Socket)),
        ];
        assert_eq!(listed, expected);
        rig.device.log(|log| {
            let opened = log.counts().get(&Opcode::Open).copied();
            assert_eq!(opened, None, "no server was asked to open any of them");
        });
    });
}

pub fn embedded_io(server: Server) {
    let rig = Rig::new(server);
    let content = noise(10_000);
    rig.write("file", &content);
    rig.run(|share| {
        let mut file = share.open("file").unwrap();
        let mut buf = vec![0; 10_000];
        file.read_exact(&mut buf[..4000]).unwrap();
        file.read_exact(&mut buf[4000..]).unwrap();
        assert!(buf == content);
        assert_eq!(file.read(&mut buf), Ok(0));
        assert!(matches!(
            file.read_exact(&mut buf),
            Err(ReadExactError::UnexpectedEof)
        ));
        assert_eq!(file.seek(SeekFrom::Start(10)), Ok(10));
        assert_eq!(file.seek(SeekFrom::Current(-3)), Ok(7));
        file.read_exact(&mut buf[..5]).unwrap();
        assert_eq!(buf[..5], content[7..12]);
        assert_eq!(file.stream_position(), Ok(12));
        assert_eq!(file.seek(SeekFrom::End(-1)), Ok(9999));
        assert_eq!(file.read(&mut buf), Ok(1));
        assert_eq!(file.seek(SeekFrom::End(1000)), Ok(11_000));
        assert_eq!(file.read(&mut buf), Ok(0), "beyond the end is nothing");
        for nowhere in [
            SeekFrom::Start(1 << 63),
            SeekFrom::Current(-11_001),
            SeekFrom::End(-10_001),
            SeekFrom::Current(i64::MAX),
        ] {
            assert_eq!(file.seek(nowhere), Err(Error::InvalidOffset));
            assert_eq!(file.stream_position(), Ok(11_000), "it stays");
        }
    });
}

pub fn many_files_open_at_once(server: Server) {
    const FILES: usize = 300;
    let rig = Rig::new(server);
    for number in 0..FILES {
        rig.write(number.to_string(), format!("content {number}"));
    }
    rig.run(|share| {
        let open = |number: usize| share.open(number.to_string()).unwrap();
        let files: Vec<_> = (0..FILES).map(open).collect();
        for (number, file) in files.iter().enumerate().rev() {
            let mut buf = [0; 20];
            let size = file.read_at(0, &mut buf).unwrap();
            assert_eq!(buf[..size], *format!("content {number}").as_bytes());
        }
    });
}

pub fn without_permission(server: Server) {
    let rig = Rig::as_nobody(server);
    rig.write("secret", "content");
    rig.mkdir("closed/below");
    rig.mkdir("searchable");
    rig.write("searchable/open", "content");
    rig.write("closed/inside", "content");
    let set = |name: &str, mode: u32| {
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("", 0o755);
    set("secret", 0);
    set("closed", 0);
    set("searchable/open", 0o644);
    set("searchable", 0o111);
    rig.run(|share| {
        let denied = Some(Error::PermissionDenied);
        assert_eq!(share.open("secret").err(), denied);
        assert_eq!(share.metadata("secret").unwrap().len(), 7);
        assert_eq!(share.read_dir("closed").err(), denied);
        assert_eq!(share.metadata("closed/inside").err(), denied);
        assert_eq!(share.metadata("closed/missing").err(), denied);
        assert_eq!(
            share.metadata("closed/..").unwrap().file_type(),
            FileType::Directory
        );
        assert_eq!(share.read_dir("searchable").err(), denied);
        assert_eq!(share.open("searchable/open").unwrap().metadata().len(), 7);
    });
    // So that the test's directory can be removed.
    set("closed", 0o755);
    set("searchable", 0o755);
}
