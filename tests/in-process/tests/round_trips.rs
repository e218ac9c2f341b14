//! Counts the requests that each operation takes, with the reason for each request: a superfluous one fails a test.
//! The tree is served from memory by a correct server.

use bootshare::{Error, Options, Share, fuse::FileType, hal::Clock};
use bootshare_test_device::{Device, Opcode, Reply, TestHal, TestShare, Tree, VirtualClock};
use embedded_io::{Seek, SeekFrom};
use std::{ops::ControlFlow::Continue, sync::Mutex, time::Duration};

/// 1 MiB, or less under Miri, which is slow.
const MIB: usize = if cfg!(miri) { 1 << 12 } else { 1 << 20 };

fn options() -> Options {
    Options::default().with_chunk_size(MIB as u32)
}

fn tree() -> Tree {
    let tree = Tree::new()
        .large_file("boot/vmlinuz", 10 * MIB as u64)
        .link("boot/current", "vmlinuz")
        .link("boot/absolute", "/boot/vmlinuz")
        .file("cmdline", "quiet")
        .file("empty", "")
        .file("links/41", "");
    let tree = (0..41).fold(tree, |tree, number| {
        tree.link(format!("links/{number}"), (number + 1).to_string())
    });
    (0..150).fold(tree, |tree, number| {
        tree.file(format!("boot/entries/entry-{number:010}.conf"), "x")
    })
}

/// The requests that `act` causes, counted by opcode, without INIT and DESTROY.
fn requests(options: Options, act: impl FnOnce(&TestShare)) -> Vec<(Opcode, usize)> {
    let device = Device::new(tree());
    let share = device.mount(options).unwrap();
    device.forget_requests();
    act(&share);
    let counts = device.log(|log| log.counts().into_iter().collect());
    share.unmount().unwrap();
    device.log(|log| assert_eq!(log.problems(), Vec::<String>::new()));
    counts
}

#[track_caller]
fn takes(act: impl FnOnce(&TestShare), expected: &[(Opcode, usize)]) {
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(requests(options(), act), expected);
}

use Opcode::{
    Forget, GetAttr, Lookup, Open, OpenDir, Read, ReadDir, ReadLink, Release, ReleaseDir, StatFs,
};

#[test]
fn metadata() {
    // One LOOKUP for each component, whose reply has the attributes, and one FORGET for each.
    takes(
        |share| _ = share.metadata("cmdline").unwrap(),
        &[(Lookup, 1), (Forget, 1)],
    );
    takes(
        |share| _ = share.metadata("/boot/vmlinuz").unwrap(),
        &[(Lookup, 2), (Forget, 2)],
    );
    // There is no LOOKUP of the root, so its attributes need a GETATTR.
    takes(|share| _ = share.metadata("/").unwrap(), &[(GetAttr, 1)]);
    // For `..` the node of the parent is known; only its attributes are requested.
    takes(
        |share| _ = share.metadata("/boot/entries/..").unwrap(),
        &[(Lookup, 2), (Forget, 2), (GetAttr, 1)],
    );
    // A file that should be a directory: the host is not asked for anything below it.
    for path in ["cmdline/", "cmdline/.", "cmdline/below"] {
        takes(
            |share| assert_eq!(share.metadata(path), Err(Error::NotADirectory)),
            &[(Lookup, 1), (Forget, 1)],
        );
    }
    // A missing file needs no FORGET.
    takes(
        |share| _ = share.metadata("/boot/missing").unwrap_err(),
        &[(Lookup, 2), (Forget, 1)],
    );
    takes(|share| _ = share.metadata("").unwrap_err(), &[]);
    takes(
        |share| {
            assert_eq!(share.exists("cmdline"), Ok(true));
            assert_eq!(share.exists("missing"), Ok(false));
        },
        &[(Lookup, 2), (Forget, 1)],
    );
}

#[test]
fn whether_a_file_has_changed() {
    // Each question is one GETATTR. From the second one on, the host reports another size.
    let mut asked = 0;
    let device = Device::with_script(tree(), move |request, good| match request.opcode() {
        GetAttr => {
            asked += 1;
            if asked > 1 {
                good.patch(40, &[9])
            } else {
                good
            }
        }
        _ => good,
    });
    let share = device.mount(options()).unwrap();
    let mut file = share.open("cmdline").unwrap();
    device.forget_requests();
    assert_eq!(file.has_changed(), Ok(false));
    assert_eq!(file.has_changed(), Ok(true));
    assert_eq!(file.refresh().map(|metadata| metadata.len()), Ok(9));
    assert_eq!(file.has_changed(), Ok(false));
    device.log(|log| assert_eq!(log.counts(), [(GetAttr, 4)].into()));
    drop(file);
    share.unmount().unwrap();
}

#[test]
fn links() {
    // One LOOKUP each for the directory, the link and its target.
    takes(
        |share| _ = share.metadata("/boot/current").unwrap(),
        &[(Lookup, 3), (ReadLink, 1), (Forget, 3)],
    );
    // An absolute target starts at the root again.
    takes(
        |share| _ = share.metadata("/boot/absolute").unwrap(),
        &[(Lookup, 4), (ReadLink, 1), (Forget, 4)],
    );
    takes(
        |share| _ = share.read_link("/boot/current", &mut [0; 64]).unwrap(),
        &[(Lookup, 2), (ReadLink, 1), (Forget, 2)],
    );
    // A link at the end of a path that is not followed.
    takes(
        |share| {
            let metadata = share.symlink_metadata("/boot/current").unwrap();
            assert!(metadata.is_symlink());
        },
        &[(Lookup, 2), (Forget, 2)],
    );
    // Up to 40 links are followed, each from the directory `links`.
    takes(
        |share| assert!(share.metadata("links/1").unwrap().is_file()),
        &[(Lookup, 42), (ReadLink, 40), (Forget, 42)],
    );
    takes(
        |share| assert_eq!(share.metadata("links/0"), Err(Error::TooManyLinks)),
        &[(Lookup, 42), (ReadLink, 40), (Forget, 42)],
    );
}

#[test]
fn open_and_read() {
    // A small file and a larger buffer: the known size makes a second READ unnecessary.
    takes(
        |share| {
            let file = share.open("cmdline").unwrap();
            assert_eq!(file.read_at(0, &mut [0; 4096]), Ok(5));
        },
        &[(Lookup, 1), (Open, 1), (Read, 1), (Release, 1), (Forget, 1)],
    );
    takes(
        |share| {
            let file = share.open("cmdline").unwrap();
            file.read_exact_at(0, &mut [0; 5]).unwrap();
        },
        &[(Lookup, 1), (Open, 1), (Read, 1), (Release, 1), (Forget, 1)],
    );
    takes(
        |share| {
            let file = share.open("empty").unwrap();
            assert_eq!(file.read_at(0, &mut [0; 4096]), Ok(0));
        },
        &[(Lookup, 1), (Open, 1), (Read, 1), (Release, 1), (Forget, 1)],
    );
    // What is no regular file is not opened. Only a path follows a link.
    takes(
        |share| {
            assert_eq!(share.open("boot").err(), Some(Error::IsADirectory));
            let boot = share.open_dir("boot").unwrap();
            assert_eq!(boot.open_file("current").err(), Some(Error::TooManyLinks));
        },
        &[(Lookup, 3), (Forget, 3)],
    );
    // By the traits of embedded-io.
    takes(
        |share| {
            let (mut file, mut buf) = (share.open("cmdline").unwrap(), [0; 4096]);
            assert_eq!(file.seek(SeekFrom::End(-3)), Ok(2));
            assert_eq!(embedded_io::Read::read(&mut file, &mut buf), Ok(3));
            assert_eq!(&buf[..3], b"iet");
            assert_eq!(file.stream_position(), Ok(5));
        },
        &[(Lookup, 1), (Open, 1), (Read, 1), (Release, 1), (Forget, 1)],
    );
    // Ten chunks of 1 MiB.
    takes(
        |share| {
            let file = share.open("/boot/vmlinuz").unwrap();
            file.read_exact_at(0, &mut vec![0; 10 * MIB]).unwrap();
        },
        &[
            (Lookup, 2),
            (Open, 1),
            (Read, 10),
            (Release, 1),
            (Forget, 2),
        ],
    );
}

#[test]
fn list() {
    // 150 entries of 24 + 24 bytes need two buffers of 4096 bytes; the third reply is empty and ends the listing.
    takes(
        |share| {
            let entries = share.read_dir("/boot/entries").unwrap();
            let types = entries.map(|entry| entry.unwrap().file_type());
            assert_eq!(types.filter(|of| *of == Some(FileType::File)).count(), 150);
        },
        &[
            (Lookup, 2),
            (OpenDir, 1),
            (ReadDir, 3),
            (ReleaseDir, 1),
            (Forget, 2),
        ],
    );
    // With the metadata of each entry, looked up by its name in the open directory: one LOOKUP for each entry, none
    // for the path.
    takes(
        |share| {
            let dir = share.open_dir("/boot/entries").unwrap();
            for entry in dir.read_dir().unwrap() {
                dir.symlink_metadata(entry.unwrap().file_name()).unwrap();
            }
        },
        &[
            (Lookup, 152),
            (OpenDir, 1),
            (ReadDir, 3),
            (ReleaseDir, 1),
            (Forget, 152),
        ],
    );
}

#[test]
fn statistics() {
    takes(|share| _ = share.statistics().unwrap(), &[(StatFs, 1)]);
}

#[test]
fn the_next_file_is_requested_before_the_previous_one_is_complete() {
    // Two files of 16 and 1 READs, all 17 in flight at the same time: one notification.
    let device = Device::new(tree());
    let options = options().with_chunk_size(MIB as u32 / 16).with_depth(17);
    let share = device.mount(options).unwrap();
    let kernel = share.open("/boot/vmlinuz").unwrap();
    let cmdline = share.open("cmdline").unwrap();
    let before = device.notifications();
    let (mut large, mut small) = (vec![0; MIB], vec![0; 5]);
    let mut parts = [kernel.part(0, &mut large), cmdline.part(0, &mut small)];
    share.read_parts(&mut parts, &mut |_| Continue(())).unwrap();
    assert_eq!(parts.map(|part| part.filled()), [MIB, 5]);
    assert_eq!(device.notifications() - before, 1);
    drop((kernel, cmdline));
    share.unmount().unwrap();
}

#[test]
fn one_notification_for_a_batch_of_reads() {
    // One notification announces all 16 READs in flight. On real hardware each notification is an exit from the
    // guest, which is expensive. The first 16 READs return one byte each; one notification also announces the READs
    // of the rest.
    let mut left = 16;
    let device = Device::with_script(tree(), move |request, good| match request.opcode() {
        Read if left > 0 => {
            left -= 1;
            Reply::ok(request, &good.body()[..1])
        }
        _ => good,
    });
    let options = options().with_chunk_size(MIB as u32 / 16);
    let share = device.mount(options).unwrap();
    let file = share.open("/boot/vmlinuz").unwrap();
    let before = device.notifications();
    let mut buf = vec![0; MIB];
    file.read_exact_at(0, &mut buf).unwrap();
    assert_eq!(device.notifications() - before, 2);
    assert!(
        (0..)
            .map(Tree::pattern)
            .zip(&buf)
            .all(|(good, &byte)| good == byte)
    );
    drop(file);
    share.unmount().unwrap();
}

/// A clock that records how long the client would rest.
struct Sleepy<'a>(VirtualClock, &'a Mutex<Vec<Duration>>);

impl Clock for Sleepy<'_> {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn relax(&self) {
        self.0.relax();
    }

    fn rest(&self, at_most: Duration) {
        self.1.lock().unwrap().push(at_most);
        self.relax();
    }
}

#[test]
fn the_processor_rests_only_while_much_data_is_outstanding() {
    let device = Device::with_script(tree(), |request, good| match request.opcode() {
        Read => good.after(3 * VirtualClock::TICK),
        _ => good,
    });
    let rests = Mutex::new(Vec::new());
    let clock = Sleepy(VirtualClock::new(&device), &rests);
    let options = Options::default();
    let share = Share::<_, _, TestHal>::mount_with(device.transport(), clock, options).unwrap();
    let file = share.open("/boot/vmlinuz").unwrap();
    let size = file.metadata().len() as usize;
    // A read of 1 MiB is complete before a rest would be worthwhile.
    file.read_exact_at(0, &mut vec![0; size / 10]).unwrap();
    assert!(rests.lock().unwrap().is_empty());
    // For 10 MiB, the longest rest is the time to read them at 32 GiB/s.
    file.read_exact_at(0, &mut vec![0; size]).unwrap();
    let expected = Duration::from_micros(320);
    let longest = rests.lock().unwrap().iter().max().copied();
    // Under Miri the file is smaller.
    assert_eq!(longest, (!cfg!(miri)).then_some(expected));
    drop(file);
    share.unmount().unwrap();
}
