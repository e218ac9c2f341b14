//! The upper limit: a process of the host that reads the same file from the page cache into shared memory
//! of the kind that a virtual machine uses. No machine, device or protocol is involved.

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use std::{
    ffi::c_void,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    ptr, slice,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

/// The size of one read: that of the client's READ.
const CHUNK: u64 = 1 << 20;

/// Shared memory like that of QEMU's `memory-backend-memfd,share=on`.
struct Memory {
    start: *mut c_void,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> Result<Self> {
        let fd = memfd_create("limit", MemfdFlags::CLOEXEC).context("memfd_create")?;
        ftruncate(&fd, len as u64).context("ftruncate")?;
        // SAFETY: the kernel chooses the address of the new mapping, so it replaces no memory in use.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        };
        Ok(Self {
            start: start.context("mmap")?,
            len,
        })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes are mapped at `start` until `self` is dropped. They are zero at first,
        // and `self` has the only pointer to them.
        unsafe { slice::from_raw_parts_mut(self.start.cast(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to `self`, and no slice of it outlives `self`.
        _ = unsafe { munmap(self.start, self.len) };
    }
}

/// Reads the file at `path` twice with `threads` threads: first into memory that was never touched, then
/// into the same memory. Returns both speeds in MiB/s.
pub fn cold_and_warm(path: &Path, threads: usize) -> Result<[f64; 2]> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let len = file.metadata()?.len();
    let mut memory = Memory::new(len as usize)?;
    let mut speeds = [0.0; 2];
    for speed in &mut speeds {
        let start = Instant::now();
        let read = read(&file, memory.bytes(), threads);
        let took = start.elapsed();
        ensure!(read == len, "{} is shorter than it was", path.display());
        *speed = len as f64 / (1 << 20) as f64 / took.as_secs_f64();
    }
    Ok(speeds)
}

/// Reads `file` into `memory`, chunk by chunk, by `threads` threads. Returns the number of bytes read.
fn read(file: &File, memory: &mut [u8], threads: usize) -> u64 {
    let come = AtomicU64::new(0);
    let chunks = std::sync::Mutex::new((0..).zip(memory.chunks_mut(CHUNK as usize)));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = chunks.lock().ok().and_then(|mut chunks| chunks.next());
                    let Some((number, chunk)) = next else { return };
                    if file.read_exact_at(chunk, number * CHUNK).is_ok() {
                        come.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    come.into_inner()
}
