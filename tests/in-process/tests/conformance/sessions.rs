//! Mounting, unmounting, and what the server keeps open in between.

use crate::rig::{Rig, Server, noise, open_files_below};
use bootshare::{Error, Options, Share};
use bootshare_test_device::{
    Device, Opcode, TestHal, TestTransport,
    raw::{Balance, Order, Quirks, RealClock},
};
use bootshare_tests::Virtiofsd;
use std::thread;

pub fn mount_and_unmount(server: Server) {
    let rig = Rig::new(server);
    let share = rig.mount();
    let (major, minor) = share.protocol();
    assert_eq!(major, 7);
    let newest = match server {
        Server::Virtiofsd => 38,
        Server::FuseBackend | Server::Embedded => 33,
    };
    assert_eq!(minor, newest);
    assert_eq!(share.tag().as_bytes(), b"test");
    assert_eq!(TestHal::pages(), bootshare::session::pages_per_share(1));
    assert!(rig.device.is_live());
    rig.unmount(share);
    rig.device.log(|log| {
        let asked: Vec<_> = log
            .requests
            .iter()
            .map(|request| request.opcode())
            .collect();
        assert_eq!(asked, [Opcode::Init, Opcode::Destroy]);
    });
    // One reset before the set-up, one after it.
    assert_eq!(rig.device.resets(), 2);
}

pub fn again_and_again(server: Server) {
    let rig = Rig::new(server);
    rig.write("file", "content");
    for round in 0..20 {
        let share = rig.mount();
        assert_eq!(share.open("file").unwrap().read_at(0, &mut [0; 9]), Ok(7));
        if round % 2 == 0 {
            rig.unmount(share);
        } else {
            // Without DESTROY: the next INIT makes the server release everything.
            drop(share);
            assert!(!rig.device.is_live());
            assert_eq!(TestHal::pages(), 0);
        }
    }
    rig.run(|share| assert_eq!(share.metadata("file").unwrap().len(), 7));
}

/// Every operation once, with and without success.
fn everything<T, C, H>(share: &Share<T, C, H>)
where
    T: bootshare::transport::Transport,
    C: bootshare::hal::Clock,
    H: bootshare::hal::Hal,
{
    let mut buf = [0; 64];
    share.metadata("dir/below/file").unwrap();
    share.symlink_metadata("link").unwrap();
    share.metadata("link").unwrap();
    share.read_link("link", &mut buf).unwrap();
    share.statistics().unwrap();
    assert_eq!(share.metadata("link/missing").err(), Some(Error::NotFound));
    assert_eq!(share.metadata("loop").err(), Some(Error::TooManyLinks));
    assert_eq!(share.open("dir").err(), Some(Error::IsADirectory));
    assert!(share.read_dir("dir/below/file").is_err());
    let mut file = share.open("link/file").unwrap();
    file.refresh().unwrap();
    assert_eq!(file.read_at(0, &mut buf), Ok(7));
    let dir = share.open_dir("dir/below").unwrap();
    assert_eq!(dir.read_dir().unwrap().count(), 1);
    assert_eq!(dir.open_file("file").unwrap().read_at(3, &mut buf), Ok(4));
    assert_eq!(dir.open_file("missing").err(), Some(Error::NotFound));
    let mut listing = share.read_dir("/dir/../dir").unwrap();
    listing.next().unwrap().unwrap();
}

fn furnish(rig: &Rig) {
    rig.mkdir("dir/below");
    rig.write("dir/below/file", "content");
    rig.symlink("dir/below", "link");
    rig.symlink("loop", "loop");
}

pub fn nothing_is_left_behind(server: Server) {
    let rig = Rig::new(server);
    furnish(&rig);
    let share = rig.mount();
    for _ in 0..50 {
        everything(&share);
        // The number of files that the server has open, and the balance of LOOKUP and FORGET, OPEN and RELEASE.
        assert_eq!(open_files_below(rig.dir.path()).unwrap(), 1);
        rig.device
            .log(|log| assert_eq!(log.balance(), Balance::default()));
    }
    rig.unmount(share);
}

#[test]
fn a_few_file_descriptors_on_the_host_are_enough() {
    // The limit of virtiofsd allows for the root, the deepest path and a handle.
    let rig = Rig::new(Server::Virtiofsd);
    furnish(&rig);
    let device = Device::with_backend(Virtiofsd::with_fd_limit(rig.dir.path(), 9).unwrap());
    let share = device.mount(Options::default()).unwrap();
    for _ in 0..500 {
        everything(&share);
    }
    // The limit takes effect.
    let held: Vec<_> = (0..10).map(|_| share.open("dir/below/file")).collect();
    assert!(held.iter().any(Result::is_err));
    drop(held);
    everything(&share);
    share.unmount().unwrap();
}

pub fn figures(server: Server) {
    let rig = Rig::new(server);
    let host = rustix::fs::statvfs(rig.dir.path()).unwrap();
    rig.run(|share| {
        let figures = share.statistics().unwrap();
        assert_eq!(u64::from(figures.block_size), host.f_frsize);
        assert_eq!(figures.blocks, host.f_blocks);
        assert_eq!(u64::from(figures.name_max), host.f_namemax);
        assert!(figures.blocks_free <= figures.blocks);
    });
}

pub fn served_by_threads(server: Server) {
    let rig = Rig::with(server, |backend| Device::threaded(backend, 2));
    rig.device.quirk(|quirks| quirks.order = Order::Shuffled(3));
    let content = noise(2_000_000);
    rig.write("file", &content);
    furnish(&rig);
    let options = Options::default().with_chunk_size(20_000).with_depth(21);
    let transport = rig.device.transport();
    let share: Share<TestTransport, RealClock, TestHal> =
        Share::mount_with(transport, RealClock::default(), options).unwrap();
    // Two threads use the same share.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut buf = vec![0; content.len() + 1];
                for _ in 0..5 {
                    let file = share.open("file").unwrap();
                    assert_eq!(file.read_at(0, &mut buf), Ok(content.len()));
                    assert!(buf[..content.len()] == content);
                    everything(&share);
                }
            });
        }
    });
    share.unmount().unwrap();
    rig.device.log(|log| {
        assert_eq!(log.at_destroy, [Balance::default()]);
        assert_eq!(log.problems(), Vec::<String>::new());
    });
}

pub fn a_device_that_polls(server: Server) {
    let rig = Rig::new(server);
    rig.device.quirk(|quirks| {
        quirks.polls = true;
        quirks.order = Order::Reversed;
    });
    furnish(&rig);
    let share = rig.mount();
    for _ in 0..20 {
        everything(&share);
    }
    share.unmount().unwrap();
    assert_eq!(rig.device.notifications(), 0);
    rig.device
        .log(|log| assert_eq!(log.problems(), Vec::<String>::new()));
}

#[test]
fn tags_of_1_to_36_bytes() {
    let rig = Rig::new(Server::Virtiofsd);
    for length in 1..=36 {
        // Bytes that are not ASCII; at full length there is no NUL.
        let tag: Vec<u8> = (0..length).map(|index| 0xd0 + index as u8).collect();
        let config = Quirks::config_of(&tag, 1);
        rig.device.quirk(|quirks| quirks.config = config);
        let share = rig.mount();
        assert_eq!(share.tag().as_bytes(), tag);
        rig.unmount(share);
    }
}
