//! A small share behind a script.

use bootshare::{Error, Options, fuse::Violation};
use bootshare_test_device::{
    Device, Opcode, Reply, Request, TestHal, TestShare, Tree, VirtualClock,
};
use std::time::Duration;

/// What `file` has in it.
pub const CONTENT: &[u8] = b"content of the file";
/// Cases that are much alike: all of them, or the first two for an interpreter.
pub fn cases<T, const N: usize>(all: [T; N]) -> impl Iterator<Item = T> {
    all.into_iter().take(if cfg!(miri) { 2 } else { N })
}

/// More often than there is room for what is under way.
pub const OFTEN: usize = if cfg!(miri) { 30 } else { 100 };
/// Size of a chunk in bytes, where a file is read in many. An interpreter is slow with bytes.
pub const CHUNK: u64 = if cfg!(miri) { 20 } else { 1000 };
/// Chunks of `large`: more than are in flight at a time.
pub const CHUNKS: u64 = if cfg!(miri) { 24 } else { 100 };
/// Size of `large` in bytes.
pub const LARGE: u64 = CHUNKS * CHUNK;

pub fn tree() -> Tree {
    Tree::new()
        .file("file", CONTENT)
        .dir("dir")
        .link("link", "file")
        .large_file("large", LARGE)
        .file("dir/one", "1")
        .dir("dir/two")
        .special("fifo", 0o010_644)
}

/// A device that spoils the replies to `opcode`.
pub fn spoiling(
    opcode: Opcode,
    mut script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
) -> Device {
    Device::with_script(tree(), move |request, good| {
        if request.opcode() == opcode {
            script(request, good)
        } else {
            good
        }
    })
}

pub fn share(device: &Device) -> TestShare {
    device.mount(Options::default()).unwrap()
}

/// For a share that reads in chunks of [`CHUNK`] bytes.
pub fn in_chunks() -> Options {
    Options::default().with_chunk_size(CHUNK as u32)
}

/// Looks at the device in so many seconds.
pub fn ticks(seconds: u64) -> u64 {
    VirtualClock::ticks(Duration::from_secs(seconds))
}

/// The host broke the protocol.
pub fn broken<T>(violation: Violation) -> Result<T, Error> {
    Err(Error::Protocol(violation))
}

/// What must hold once no share is mounted any more.
pub fn check(device: &Device) {
    assert!(!device.is_live(), "the device is reset");
    assert_eq!(TestHal::pages(), 0, "all DMA pages are free");
    assert_eq!(TestHal::shared(), 0, "no buffer is shared");
    device.log(|log| assert_eq!(log.faults, Vec::<String>::new()));
}

/// Whether `bytes` are what `large` has at `offset`.
pub fn is_large(bytes: &[u8], offset: u64) -> bool {
    let expected = (offset..).map(Tree::pattern);
    bytes.iter().zip(expected).all(|(&byte, good)| byte == good)
}
