//! Random changes to fields of replies and of the used ring.

use crate::rig::{CHUNK, LARGE, tree};
use bootshare::Options;
use bootshare_test_device::{Device, Reply, Request, TestHal, TestShare, VirtualClock, raw::Order};
use fastrand::Rng;
use std::time::Duration;

/// A number that often reveals errors.
fn nasty(random: &mut Rng) -> u64 {
    const NASTY: [u64; 12] = [
        0,
        1,
        15,
        16,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
        u64::MAX - 15,
        0x1000,
    ];
    match random.u8(..3) {
        0 => random.u64(..),
        1 => random.u64(..300),
        _ => NASTY[random.usize(..NASTY.len())],
    }
}

fn one_in(random: &mut Rng, n: u32) -> bool {
    random.u32(..n) == 0
}

fn spoil(random: &mut Rng, request: &Request, mut reply: Reply) -> Reply {
    if !one_in(random, 4) {
        return reply;
    }
    match random.u8(..10) {
        0..4 if reply.size() > 0 => {
            let wide = nasty(random).to_le_bytes();
            let width = [1, 2, 4, 8][random.usize(..4)].min(reply.size());
            let at = random.usize(..=reply.size() - width);
            reply = reply.patch(at / width * width, &wide[..width]);
        }
        4 => {
            let size = random.usize(..=reply.size());
            reply = reply.cut(size);
        }
        5 => {
            let size = random.usize(..=reply.size());
            let length = size as u32;
            reply = reply.cut(size).used(length);
            if length >= 4 {
                reply = reply.patch(0, &length.to_le_bytes());
            }
        }
        6 => reply = reply.used(nasty(random) as u32),
        7 => reply = Reply::error_number(request, nasty(random) as i32 & 0xfff),
        8 if one_in(random, 4) => reply = reply.id(nasty(random) as u32),
        8 if one_in(random, 4) => reply = reply.times(random.u32(..4)),
        8 if one_in(random, 4) => reply = reply.jump(random.u16(..)),
        8 if one_in(random, 4) => reply = reply.never(),
        _ => reply = reply.after(VirtualClock::TICK * random.u32(..100)),
    }
    reply
}

/// Uses every operation of a client and ignores the results.
fn use_it(share: &TestShare) {
    let mut buf = [0x55; 4096];
    for path in [
        "file",
        "dir/one",
        "link",
        "link/x",
        "dir/../large",
        "/",
        "fifo",
    ] {
        _ = share.metadata(path);
        _ = share.symlink_metadata(path);
        _ = share.read_link(path, &mut buf);
        if let Ok(mut file) = share.open(path) {
            _ = file.read_at(0, &mut buf);
            _ = file.read_at(LARGE - 10 * CHUNK, &mut vec![0; 20 * CHUNK as usize]);
            _ = file.refresh();
        }
        if let Ok(listing) = share.read_dir(path) {
            // A listing may have 2^24 entries; here fewer are enough.
            _ = listing.take(200).count();
        }
    }
    _ = share.statistics();
    if let Ok(dir) = share.open_dir("dir") {
        _ = dir.symlink_metadata("one");
        _ = dir.open_file("one").map(|file| file.read_at(0, &mut buf));
    }
}

#[test]
fn no_reply_of_a_host_makes_the_client_panic() {
    // Miri is slow.
    let seeds = if cfg!(miri) { 2 } else { 1500 };
    let mut mounted = 0;
    for seed in 0..seeds {
        let mut random = Rng::with_seed(seed);
        let polls = one_in(&mut random, 4);
        let device = Device::with_script(tree(), move |request, good| {
            spoil(&mut random, request, good)
        });
        device.quirk(|quirks| {
            quirks.order = Order::Shuffled(seed);
            quirks.polls = polls;
        });
        let options = Options::default()
            .with_chunk_size(CHUNK as u32 * 3 / 2)
            .with_deadline(Duration::from_secs(1));
        if let Ok(share) = device.mount(options) {
            mounted += 1;
            for _ in 0..3 {
                use_it(&share);
            }
            _ = share.unmount();
        }
        assert!(!device.is_live(), "seed {seed}");
        assert_eq!(TestHal::pages(), 0, "seed {seed}");
        device.log(|log| assert_eq!(log.faults, Vec::<String>::new(), "seed {seed}"));
    }
    // Only some replies are changed, so most runs get beyond INIT.
    assert!(cfg!(miri) || mounted > seeds / 2, "{mounted} of {seeds}");
}
