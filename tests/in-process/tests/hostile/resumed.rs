//! A share that is resumed with another host or another file than before.

use crate::rig::{check, in_chunks};
use bootshare::{Error, Options};
use bootshare_test_device::{Device, Opcode, Reply, Request, Tree};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Reads a part of a file, loses the host, resumes, and opens the file again. `second` changes the LOOKUP replies
/// from then on.
fn resumed(second: impl Fn(Reply) -> Reply + Send + 'static) -> Result<(), Error> {
    let lost = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&lost);
    let tree = Tree::new().file("kernel", [b'A'; 3000]);
    let device = Device::with_script(tree, move |request, good| {
        let lost = now.load(Ordering::SeqCst);
        match request.opcode() {
            Opcode::Lookup if lost => second(good),
            Opcode::Read if !lost && request.offset() > 0 => good.never(),
            _ => good,
        }
    });
    let share = device.mount(in_chunks().with_depth(1)).unwrap();
    let mut file = share.open("kernel").unwrap();
    let mut buf = [0; 3000];
    file.read_at(0, &mut buf).unwrap_err();
    lost.store(true, Ordering::SeqCst);
    share.resume().unwrap();
    let resumed = file.resume("kernel");
    if resumed.is_ok() {
        assert_eq!(file.read_at(0, &mut buf), Ok(3000));
    } else {
        assert_eq!(file.read_at(0, &mut buf), Err(Error::Disconnected));
    }
    drop(file);
    share.unmount().unwrap();
    check(&device);
    resumed
}

#[test]
fn an_unchanged_file_can_be_resumed() {
    // Offsets in fuse_attr, which is in fuse_entry_out after the reply's header.
    const ATTR: usize = 16 + 40;
    assert_eq!(resumed(|good| good), Ok(()));
    // The link count may change.
    assert_eq!(resumed(|good| good.patch(ATTR + 64, &[7; 4])), Ok(()));
    // Inode number and size; the times of modification and change, in seconds and nanoseconds.
    for at in [0, 8, 32, 40, 52, 56] {
        let changed = resumed(move |good| good.patch(ATTR + at, &[99, 0, 0, 0]));
        assert_eq!(changed, Err(Error::Changed), "{at}");
    }
}

#[test]
fn the_version_is_that_of_the_current_server() {
    let mut inits = 0;
    let device =
        Device::with_script(
            Tree::new(),
            move |request: &Request, good: Reply| match request.opcode() {
                Opcode::Init => {
                    inits += 1;
                    let minor = 38 - 7 * (inits - 1);
                    good.patch(20, &u32::to_le_bytes(minor))
                }
                Opcode::StatFs => good.never(),
                _ => good,
            },
        );
    let share = device.mount(Options::default()).unwrap();
    assert_eq!(share.protocol(), (7, 38));
    share.statistics().unwrap_err();
    share.resume().unwrap();
    assert_eq!(share.protocol(), (7, 31));
    share.unmount().unwrap();
    check(&device);
}
