//! Tests of the host tool's embedded server that do not apply to other servers: layers, and refused requests.

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

/// A share of directories as layers; earlier ones are above later ones.
fn share(dirs: Vec<PathBuf>) -> TestShare {
    let device = Device::with_backend(Embedded::of(dirs));
    device.mount(Options::default()).unwrap()
}
