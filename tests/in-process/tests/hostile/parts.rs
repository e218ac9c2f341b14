//! Several files read at the same time from a host that fails for one of them, or for all.

use crate::rig::{
    CHUNK, CONTENT, LARGE, check, in_chunks, is_large, share, silent_after, spoiling, tree,
};
use bootshare::{Error, Part, fuse::Errno};
use bootshare_test_device::{Device, Opcode, Reply, TestHal, raw::Log};
use std::{
    ops::ControlFlow::{Break, Continue},
    time::Duration,
};

/// The number of bytes read into each part.
fn filled(parts: &[Part<'_>]) -> Vec<usize> {
    parts.iter().map(Part::filled).collect()
}

#[test]
fn a_failing_part_is_named_and_the_others_keep_their_data() {
    let mut failing = true;
    // The third READ of `large` fails, once.
    let device = spoiling(Opcode::Read, move |request, good| {
        if failing && request.offset() == 7 + 2 * CHUNK {
            failing = false;
            Reply::error(request, Errno::EIO)
        } else {
            good
        }
    });
    let share = device.mount(in_chunks()).unwrap();
    let (file, large) = (share.open("file").unwrap(), share.open("large").unwrap());
    let (mut first, mut second) = (vec![0; CONTENT.len()], vec![0; LARGE as usize - 7]);
    let mut parts = [file.part(0, &mut first), large.part(7, &mut second)];
    let mut reported = Vec::new();
    let error = share.read_parts(&mut parts, &mut |parts| {
        reported = filled(parts);
        Continue(())
    });
    assert_eq!(error.unwrap_err().errno(), Some(Errno::EIO));
    assert_eq!(parts[0].error(), None);
    assert_eq!(parts[1].error(), error.err());
    assert_eq!(filled(&parts), [CONTENT.len(), 2 * CHUNK as usize]);
    assert_eq!(reported, filled(&parts));
    assert!(share.is_connected(), "it is only a file that failed");

    // A second call continues where the first one stopped.
    device.forget_requests();
    share.read_parts(&mut parts, &mut |_| Continue(())).unwrap();
    assert_eq!(parts[0].bytes(), CONTENT);
    assert!(is_large(parts[1].bytes(), 7));
    assert_eq!(parts[1].filled() as u64, LARGE - 7);
    let again = |log: &Log| {
        let reads = log.requests.iter().filter(|r| r.opcode() == Opcode::Read);
        reads.map(|r| r.offset()).min()
    };
    assert_eq!(device.log(again), Some(7 + 2 * CHUNK));
    drop((file, large));
    share.unmount().unwrap();
    check(&device);
}

#[test]
fn files_of_another_share_or_an_earlier_session_are_refused() {
    let (one, other) = (Device::new(tree()), Device::new(tree()));
    let (share_one, share_other) = (share(&one), share(&other));
    let (here, there) = (
        share_one.open("file").unwrap(),
        share_other.open("file").unwrap(),
    );
    let (mut first, mut second) = ([0; 4], [0; 4]);
    let mut parts = [here.part(0, &mut first), there.part(0, &mut second)];
    one.forget_requests();
    let error = share_one.read_parts(&mut parts, &mut |_| Continue(()));
    assert_eq!(error, Err(Error::Disconnected));
    assert_eq!(parts[0].error(), None);
    assert_eq!(parts[1].error(), Some(Error::Disconnected));
    assert_eq!(filled(&parts), [0, 0]);
    one.log(|log| assert!(log.requests.is_empty(), "nothing was asked"));
    // The share that the file belongs to reads it.
    share_other
        .read_parts(&mut parts[1..], &mut |_| Continue(()))
        .unwrap();
    assert_eq!(parts[1].bytes(), &CONTENT[..4]);
    drop((here, there));
    share_one.unmount().unwrap();
    share_other.unmount().unwrap();
    check(&one);
    check(&other);
}

#[test]
fn offsets_beyond_the_largest_file() {
    let device = Device::new(tree());
    let share = share(&device);
    let file = share.open("file").unwrap();
    let largest = i64::MAX as u64;
    for offset in [u64::MAX, largest + 1] {
        let (mut first, mut second) = ([0; 4], [0; 4]);
        let mut parts = [file.part(0, &mut first), file.part(offset, &mut second)];
        let error = share.read_parts(&mut parts, &mut |_| Continue(()));
        assert_eq!(error, Err(Error::InvalidOffset));
        assert_eq!(parts[1].error(), Some(Error::InvalidOffset));
    }
    // Files end before the largest offset. The device checks that no READ goes beyond it.
    for offset in [largest, largest - 3] {
        let mut buf = [0; 8];
        assert_eq!(file.read_at(offset, &mut buf), Ok(0), "{offset:#x}");
        let mut file = share.open("file").unwrap();
        file.set_position(offset).unwrap();
        assert_eq!(file.read(&mut buf), Ok(0), "{offset:#x}");
    }
    // A read of no bytes succeeds without a request.
    assert_eq!(share.read_parts(&mut [], &mut |_| Continue(())), Ok(()));
    assert_eq!(
        share.read_parts(&mut [file.part(0, &mut [])], &mut |_| Continue(())),
        Ok(())
    );
    drop(file);
    share.unmount().unwrap();
    check(&device);
}

#[test]
fn data_read_before_the_host_stops_answering_is_kept() {
    let device = silent_after(3);
    let share = device.mount(in_chunks()).unwrap();
    let (file, large) = (share.open("file").unwrap(), share.open("large").unwrap());
    let (mut first, mut second) = (vec![0; LARGE as usize], vec![0; CONTENT.len()]);
    let mut parts = [large.part(0, &mut first), file.part(0, &mut second)];
    let error = share.read_parts(&mut parts, &mut |_| Continue(()));
    assert!(matches!(error, Err(Error::TimedOut { .. })), "{error:?}");
    assert_eq!(parts[0].filled() as u64, 3 * CHUNK);
    assert!(is_large(parts[0].bytes(), 0));
    assert!(!device.is_live(), "the buffers are the caller's again");
    drop((file, large));
    drop(share);
    check(&device);
}

#[test]
fn a_cancelled_read_keeps_its_data() {
    let device = spoiling(Opcode::Read, |_, good| good.after(Duration::from_secs(1)));
    let share = device.mount(in_chunks().with_depth(4)).unwrap();
    let large = share.open("large").unwrap();
    let mut buf = vec![0; LARGE as usize];
    let mut part = [large.part(0, &mut buf)];
    let cancelled = share.read_parts(&mut part, &mut |parts| match parts[0].filled() as u64 {
        0..CHUNK => Continue(()),
        _ => Break(()),
    });
    assert_eq!(cancelled, Err(Error::Cancelled));
    // The buffers in flight were returned without a reset, and no further data was requested.
    assert!(share.is_connected());
    assert_eq!(TestHal::shared(), 0);
    let filled = part[0].filled() as u64;
    assert!((CHUNK..=8 * CHUNK).contains(&filled), "{filled}");
    assert!(is_large(part[0].bytes(), 0));
    // The read can be continued.
    share.read_parts(&mut part, &mut |_| Continue(())).unwrap();
    assert!(is_large(part[0].bytes(), 0));
    assert_eq!(part[0].filled() as u64, LARGE);
    let whole = large.read_at_with(0, &mut buf, &mut |filled| {
        // Cancelling after the last byte has no effect.
        if filled == LARGE {
            Break(())
        } else {
            Continue(())
        }
    });
    assert_eq!(whole, Ok(LARGE as usize));
    drop(large);
    share.unmount().unwrap();
    check(&device);
}
