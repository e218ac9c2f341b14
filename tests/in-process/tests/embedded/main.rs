//! The host tool's embedded server beyond what all servers do: layers, and what it refuses.

mod layers;
mod nodes;
mod refused;
mod requests;
mod root_fs;

use bootshare::{Dir, Options};
use bootshare_test_device::{Device, TestHal, TestShare, TestTransport, VirtualClock};
use bootshare_tests::Embedded;
use std::path::PathBuf;

type TestDir<'s> = Dir<'s, TestTransport, VirtualClock, TestHal>;

/// Directories as one share, earlier ones over later ones.
fn share(dirs: Vec<PathBuf>) -> TestShare {
    let device = Device::with_backend(Embedded::of(dirs));
    device.mount(Options::default()).unwrap()
}
