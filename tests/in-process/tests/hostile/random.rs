//! Lies by the dozen: fields of replies and of the used ring, changed at random.

use crate::rig::{CHUNK, LARGE, tree};
use bootshare::Options;
use bootshare_test_device::{Device, Reply, Request, TestHal, TestShare, VirtualClock, raw::Order};
use std::time::Duration;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 17
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    /// A number that is likely to hurt.
    fn nasty(&mut self) -> u64 {
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
        match self.next() % 3 {
            0 => self.next(),
            1 => self.next() % 300,
            _ => NASTY[self.next() as usize % NASTY.len()],
        }
    }
}

fn spoil(random: &mut Random, request: &Request, mut reply: Reply) -> Reply {
    if !random.one_in(4) {
        return reply;
    }
    match random.next() % 10 {
        0..4 if reply.size() > 0 => {
            let wide = random.nasty().to_le_bytes();
            let width = [1, 2, 4, 8][random.next() as usize % 4].min(reply.size());
            let at = random.next() as usize % (reply.size() - width + 1);
            reply = reply.patch(at / width * width, &wide[..width]);
        }
        4 => {
            let size = random.next() as usize % (reply.size() + 1);
            reply = reply.cut(size);
        }
        5 => {
            let size = random.next() as usize % (reply.size() + 1);
            let length = size as u32;
            reply = reply.cut(size).used(length);
            if length >= 4 {
                reply = reply.patch(0, &length.to_le_bytes());
            }
        }
        6 => reply = reply.used(random.nasty() as u32),
        7 => reply = Reply::error_number(request, random.nasty() as i32 & 0xfff),
        8 if random.one_in(4) => reply = reply.id(random.nasty() as u32),
        8 if random.one_in(4) => reply = reply.times(random.next() as u32 % 4),
        8 if random.one_in(4) => reply = reply.jump(random.next() as u16),
        8 if random.one_in(4) => reply = reply.never(),
        _ => reply = reply.after(VirtualClock::TICK * (random.next() % 100) as u32),
    }
    reply
}

/// Everything that a client does, whatever comes of it.
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
            // A listing may be long; 2^24 entries at most, but not here.
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
fn nothing_a_host_says_makes_the_client_panic() {
    // An interpreter takes its time.
    let seeds = if cfg!(miri) { 2 } else { 1500 };
    for seed in 0..seeds {
        let mut random = Random(seed);
        let polls = random.one_in(4);
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
            for _ in 0..3 {
                use_it(&share);
            }
            _ = share.unmount();
        }
        assert!(!device.is_live(), "seed {seed}");
        assert_eq!(TestHal::pages(), 0, "seed {seed}");
        device.log(|log| assert_eq!(log.faults, Vec::<String>::new(), "seed {seed}"));
    }
}
