//! A small share behind a script.

use bootshare::Options;
use bootshare_tests::{
    Device, Node, Opcode, Reply, Request, Scripted, TestHal, TestShare, Tree, VirtualClock, mount,
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

/// Node 2 is `file`, 3 is `dir`, 4 is `link`, 5 is `large`.
pub fn tree() -> Tree {
    Tree::new()
        .with("file", Node::File(CONTENT.to_vec()))
        .with("dir", Node::Dir)
        .with("link", Node::Link(b"file".to_vec()))
        .with("large", Node::Pattern(LARGE))
        .with_in(3, "one", Node::File(b"1".to_vec()))
        .with_in(3, "two", Node::Dir)
        .with("fifo", Node::Other(0o010_644))
}

/// A device that spoils the replies to `opcode`.
pub fn spoiling(
    opcode: Opcode,
    script: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
) -> Device {
    Device::new(Scripted::spoiling(tree(), opcode, script))
}

pub fn share(device: &Device) -> TestShare {
    mount(device, Options::default()).unwrap()
}

/// For a share that reads in chunks of [`CHUNK`] bytes.
pub fn in_chunks() -> Options {
    Options::default().with_chunk_size(CHUNK as u32)
}

/// Looks at the device in so many seconds.
pub fn seconds(seconds: u64) -> u64 {
    VirtualClock::ticks(Duration::from_secs(seconds))
}

/// What must hold once no share is mounted any more.
pub fn check(device: &Device) {
    assert!(!device.is_live(), "the device is reset");
    assert_eq!(TestHal::pages(), 0, "all DMA pages are free");
    device.log(|log| assert_eq!(log.faults, Vec::<String>::new()));
}

/// Whether `bytes` are what `large` has at `offset`.
pub fn is_large(bytes: &[u8], offset: u64) -> bool {
    let expected = (offset..).map(Tree::pattern);
    bytes.iter().zip(expected).all(|(&byte, good)| byte == good)
}
