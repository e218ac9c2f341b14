//! A small share on a device whose replies a script can change.

use bootshare::{Error, Options, fuse::Violation};
use bootshare_test_device::{
    Device, Opcode, Reply, Request, TestHal, TestShare, Tree, VirtualClock,
};
use std::time::Duration;

/// The content of `file`.
pub const CONTENT: &[u8] = b"content of the file";
/// Similar cases: all of them, or only the first two under Miri.
pub fn cases<T, const N: usize>(all: [T; N]) -> impl Iterator<Item = T> {
    all.into_iter().take(if cfg!(miri) { 2 } else { N })
}

/// More often than there are slots.
pub const OFTEN: usize = if cfg!(miri) { 30 } else { 100 };
/// The chunk size in bytes for files that are read in many chunks. It is small under Miri, which is slow.
pub const CHUNK: u64 = if cfg!(miri) { 20 } else { 1000 };
/// The number of chunks of `large`: more than are in flight at the same time.
pub const CHUNKS: u64 = if cfg!(miri) { 24 } else { 100 };
/// The size of `large` in bytes.
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

/// A device with a script that changes the replies to `opcode`.
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

/// A device that answers READs only of the first `chunks` chunks.
pub fn silent_after(chunks: u64) -> Device {
    spoiling(Opcode::Read, move |request, good| {
        if request.offset() < chunks * CHUNK {
            good
        } else {
            good.never()
        }
    })
}

pub fn share(device: &Device) -> TestShare {
    device.mount(Options::default()).unwrap()
}

/// Options of a share that reads in chunks of [`CHUNK`] bytes.
pub fn in_chunks() -> Options {
    Options::default().with_chunk_size(CHUNK as u32)
}

/// The number of polls of the device in this time.
pub fn ticks(seconds: u64) -> u64 {
    VirtualClock::ticks(Duration::from_secs(seconds))
}

/// The error for a violation of the protocol.
pub fn broken<T>(violation: Violation) -> Result<T, Error> {
    Err(Error::Protocol(violation))
}

/// Asserts what must hold when no share is mounted any more.
pub fn check(device: &Device) {
    assert!(!device.is_live(), "the device is reset");
    assert_eq!(TestHal::pages(), 0, "all DMA pages are free");
    assert_eq!(TestHal::shared(), 0, "no buffer is shared");
    device.log(|log| assert_eq!(log.faults, Vec::<String>::new()));
}

/// Reads `large` completely and asserts its content.
pub fn read_large(share: &TestShare) {
    let mut buf = vec![0; LARGE as usize];
    let file = share.open("large").unwrap();
    file.read_exact_at(0, &mut buf).unwrap();
    assert!(is_large(&buf, 0));
}

/// Whether `bytes` are the content of `large` at `offset`.
pub fn is_large(bytes: &[u8], offset: u64) -> bool {
    let expected = (offset..).map(Tree::pattern);
    bytes.iter().zip(expected).all(|(&byte, good)| byte == good)
}
