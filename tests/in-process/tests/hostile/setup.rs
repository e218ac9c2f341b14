//! Devices that cannot be set up, or only just.

use crate::rig::{cases, check, ticks, tree};
use bootshare::{DeviceError, Error, Options, Share, session::pages_per_share, transport::ByRef};
use bootshare_test_device::{
    Device, TestHal, VirtualClock,
    raw::{Quirks, Reset},
};

/// Mounts a device with these quirks and looks up a file.
#[track_caller]
fn mounting(change: impl FnOnce(&mut Quirks)) -> Result<(), Error> {
    let device = Device::new(tree());
    device.quirk(change);
    let result = device.mount(Options::default()).map(|share| {
        share.metadata("dir/one").unwrap();
        share.unmount().unwrap();
    });
    check(&device);
    result
}

#[test]
fn queue_sizes() {
    for size in cases([64, 65, 127, 128, 1024, 32_768, 65_535, 65_536, u32::MAX]) {
        assert_eq!(mounting(|quirks| quirks.queues = vec![size, size]), Ok(()));
        assert_eq!(mounting(|quirks| quirks.queues = vec![8, size]), Ok(()));
    }
    let too_small = |entries, needed| {
        Err(Error::Device(DeviceError::QueueTooSmall {
            entries,
            needed,
        }))
    };
    for size in cases([0, 1, 3, 32, 63]) {
        let result = mounting(|quirks| quirks.queues = vec![128, size]);
        assert_eq!(result, too_small(size, 64));
    }
    for size in cases([0, 1, 3, 7]) {
        let result = mounting(|quirks| quirks.queues = vec![size, 128]);
        assert_eq!(result, too_small(size, 8));
    }
    assert_eq!(mounting(|quirks| quirks.queues = vec![]), too_small(0, 8));
    assert_eq!(
        mounting(|quirks| quirks.queues = vec![128]),
        too_small(0, 64)
    );
    assert_eq!(
        mounting(|quirks| quirks.queues_in_use = true),
        Err(Error::Device(DeviceError::QueueInUse))
    );
}

#[test]
fn features() {
    let not_modern = Err(Error::Device(DeviceError::NotModern));
    for features in [0, 1, !(1 << 32), 1 << 33] {
        assert_eq!(mounting(|quirks| quirks.features = features), not_modern);
    }
    // VIRTIO_F_ACCESS_PLATFORM is accepted; unknown features are not.
    for features in [1 << 32, 3 << 32, u64::MAX] {
        assert_eq!(mounting(|quirks| quirks.features = features), Ok(()));
    }
    assert_eq!(
        mounting(|quirks| quirks.accepts_features = false),
        Err(Error::Device(DeviceError::FeaturesRefused))
    );
}

#[test]
fn configurations() {
    let unreadable = Err(Error::Device(DeviceError::Configuration));
    for lasts in [1, 2, 3] {
        let result = mounting(|quirks| quirks.generation_lasts = lasts);
        // With 3 reads, a generation sometimes lasts for a whole round.
        assert_eq!(result.is_ok(), lasts == 3, "{lasts}: {result:?}");
        assert!(result.is_ok() || result == unreadable);
    }
    for size in cases([0, 1, 35, 36, 39]) {
        let result = mounting(|quirks| quirks.config.truncate(size));
        assert_eq!(result, unreadable, "{size}");
    }
    for tag in [&[][..], &[0; 36], &[0xff; 36], b"\0hidden"] {
        for queues in cases([0, 1, u32::MAX]) {
            let config = Quirks::config_of(tag, queues);
            let device = Device::new(tree());
            device.quirk(|quirks| quirks.config = config);
            let share = device.mount(Options::default()).unwrap();
            let end = tag.iter().position(|&byte| byte == 0).unwrap_or(tag.len());
            assert_eq!(share.tag().as_bytes(), &tag[..end]);
            share.unmount().unwrap();
            check(&device);
        }
    }
}

#[test]
fn too_little_dma_memory() {
    for pages in 0..pages_per_share(1) {
        TestHal::limit(pages);
        assert_eq!(
            mounting(|_| ()),
            Err(Error::Device(DeviceError::NoDmaMemory)),
            "{pages}"
        );
    }
    TestHal::limit(pages_per_share(1));
    assert_eq!(mounting(|_| ()), Ok(()));
}

#[test]
fn slow_resets() {
    // A read of the status register takes as long as a poll of the device.
    for reads in [1, 10, ticks(1) as u32] {
        let slow = mounting(|quirks| quirks.reset = Reset::After(reads));
        assert_eq!(slow, Ok(()));
    }
}

#[test]
fn a_lent_transport_can_be_used_again() {
    let device = Device::new(tree());
    device.quirk(|quirks| quirks.accepts_features = false);
    let mut transport = device.transport();
    let clock = VirtualClock::new(&device);
    let mut mount = || {
        let transport = ByRef(&mut transport);
        let share = Share::<_, _, TestHal>::mount_with(transport, &clock, Options::default())?;
        share.metadata("file")?;
        share.unmount()
    };
    let refused = Err(Error::Device(DeviceError::FeaturesRefused));
    assert_eq!(mount(), refused);
    device.quirk(|quirks| quirks.accepts_features = true);
    assert_eq!(mount(), Ok(()));
    assert_eq!(mount(), Ok(()));
    check(&device);
}
