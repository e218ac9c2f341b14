//! The host tool's embedded server beyond what all servers do: layers, and what it refuses.

mod layers;
mod refused;

use bootshare::{Dir, Options};
use bootshare_tests::{Device, Embedded, TestHal, TestShare, TestTransport, VirtualClock, mount};
use std::path::PathBuf;

type TestDir<'s> = Dir<'s, TestTransport, VirtualClock, TestHal>;

/// Directories as one share, earlier ones over later ones.
fn share(dirs: Vec<PathBuf>) -> TestShare {
    let device = Device::new(Embedded::of(dirs));
    mount(&device, Options::default()).unwrap()
}
