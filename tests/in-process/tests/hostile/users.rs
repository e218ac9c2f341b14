//! Several users of one share: none of them delays the others.

use crate::rig::{CHUNK, CONTENT, LARGE, check, in_chunks, is_large, share, spoiling, tree};
use bootshare::{Error, Options, fuse::Violation};
use bootshare_test_device::{Device, Opcode};
use std::{
    ops::ControlFlow,
    sync::{Arc, mpsc::channel},
    thread,
    time::Duration,
};

#[test]
fn a_malformed_reply_does_not_lose_its_slot() {
    // More often than there are slots, so that a leak of slots would use them all.
    for position in [0, 7, 15] {
        let mut left = 10;
        let device = spoiling(Opcode::Read, move |request, good| {
            if request.offset() == position * CHUNK && left > 0 {
                left -= 1;
                good.patch(8, &[0xff; 8])
            } else {
                good
            }
        });
        let share = device.mount(in_chunks()).unwrap();
        let file = share.open("large").unwrap();
        let mut buf = vec![0; LARGE as usize];
        for _ in 0..10 {
            let malformed = Err(Error::Protocol(Violation::ReplyUnique));
            assert_eq!(file.read_at(0, &mut buf), malformed);
            assert!(share.is_connected());
        }
        file.read_exact_at(0, &mut buf).unwrap();
        assert!(is_large(&buf, 0));
        drop(file);
        share.unmount().unwrap();
        check(&device);
    }
}

#[test]
fn reads_continue_while_files_are_closed_slowly() {
    let device = spoiling(Opcode::Release, |_, good| {
        good.after(Duration::from_secs(15))
    });
    let share = device.mount(in_chunks()).unwrap();
    let large = share.open("large").unwrap();
    let mut buf = vec![0; LARGE as usize];
    // As many posted requests as may be in flight; each takes longer than the deadline.
    for _ in 0..20 {
        drop(share.open("file").unwrap());
    }
    large.read_exact_at(0, &mut buf).unwrap();
    assert!(is_large(&buf, 0));
    share.metadata("dir/one").unwrap();
    drop(large);
    drop(share);
    check(&device);
}

#[test]
fn a_second_user_does_not_wait_for_the_first_ones_read() {
    // The READ is answered when the device is polled for long enough. That happens only after the second user has
    // finished.
    let device = spoiling(Opcode::Read, |_, good| good.after(Duration::from_secs(1)));
    let clock = bootshare_test_device::raw::RealClock::default();
    let share = bootshare::Share::<_, _, bootshare_test_device::TestHal>::mount_with(
        device.transport(),
        clock,
        Options::default(),
    );
    let share = &share.unwrap();
    let (asked, is_asked) = channel();
    let (finish, is_finished) = channel();
    let reader = &device;
    thread::scope(|scope| {
        let file = share.open("large").unwrap();
        scope.spawn(move || {
            let mut buf = vec![0; LARGE as usize];
            let before = reader.notifications();
            let ticker = thread::spawn({
                let device = reader.clone();
                move || {
                    while device.notifications() == before {
                        thread::yield_now();
                    }
                    asked.send(()).unwrap();
                    is_finished.recv().unwrap();
                    (0..crate::rig::ticks(1)).for_each(|_| device.tick());
                }
            });
            file.read_exact_at(0, &mut buf).unwrap();
            assert!(is_large(&buf, 0));
            ticker.join().unwrap();
        });
        is_asked.recv().unwrap();
        for _ in 0..crate::rig::OFTEN {
            share.metadata("dir/one").unwrap();
            assert_eq!(share.read_dir("dir").unwrap().count(), 2);
        }
        finish.send(()).unwrap();
    });
    assert!(share.is_connected());
}

#[test]
fn progress_may_use_the_share_even_if_the_queue_is_full() {
    // The first READ is answered at once; afterwards the queue of 64 descriptors is full.
    let device = spoiling(Opcode::Read, |request, good| {
        if request.offset() == 0 {
            good
        } else {
            good.after(Duration::from_secs(1))
        }
    });
    let share = device.mount(in_chunks().with_depth(21)).unwrap();
    let file = share.open("large").unwrap();
    let mut buf = vec![0; LARGE as usize];
    let mut looks = 0;
    let read = file.read_at_with(0, &mut buf, &mut |_| {
        looks += 1;
        if looks < 5 {
            assert_eq!(file.read_at(7, &mut [0; 9]), Ok(9));
            share.metadata("file").unwrap();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(read, Ok(LARGE as usize));
    assert!(looks > 5 && is_large(&buf, 0));
    drop(file);
    share.unmount().unwrap();
    check(&device);
}

#[test]
fn raw_files_and_directories_are_closed_after_they_were_converted_back() {
    let (device, other) = (Device::new(tree()), Device::new(tree()));
    let stranger = share(&other);
    let share = Arc::new(share(&device));
    let dir = share.open_dir("dir").unwrap().into_raw();
    let one = share.dir_of(&dir).open_file("one").unwrap().into_raw();
    let mut file = share.open("file").unwrap();
    assert_eq!(file.read(&mut [0; 8]), Ok(8));
    let file = file.into_raw();
    // Another thread uses the files, and the share.
    let taken = Arc::clone(&share);
    let (dir, one, file) = thread::spawn(move || {
        let mut buf = [0; CONTENT.len()];
        assert_eq!(taken.file_of(&one).read_at(0, &mut buf), Ok(1));
        assert_eq!(taken.file_of(&file).read_at(0, &mut buf), Ok(CONTENT.len()));
        assert_eq!(buf, *CONTENT);
        assert_eq!(taken.dir_of(&dir).read_dir().unwrap().count(), 2);
        (dir, one, file)
    })
    .join()
    .unwrap();
    device.log(|log| {
        assert_eq!((log.balance().handles, log.balance().lookups), (2, 3));
    });
    assert_eq!(share.file_of(&file).position(), 8);
    assert_eq!(
        stranger.file_of(&file).read_at(0, &mut [0; 8]),
        Err(Error::Disconnected)
    );
    drop((share.file(one), share.dir(dir), share.file(file)));
    device.log(|log| {
        assert_eq!(log.balance(), Default::default());
        assert_eq!(log.problems(), Vec::<String>::new());
    });
    other.log(|log| assert_eq!(log.problems(), Vec::<String>::new()));
    stranger.unmount().unwrap();
    Arc::into_inner(share).unwrap().unmount().unwrap();
    check(&device);
}
