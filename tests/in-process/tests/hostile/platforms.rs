//! Platforms whose buffers have other addresses for the device: scattered pages, bounce buffers, an IOMMU. Each
//! test `Hal` verifies what is shared and unshared.

use crate::rig::{CHUNK, LARGE, check, in_chunks, is_large, spoiling, tree};
use bootshare::{
    DeviceError, Error, Options,
    hal::{BufferDirection, Hal, IdentityHal, PAGE_SIZE, PhysAddr},
};
use bootshare_test_device::{
    BouncingHal, Device, IommuHal, Opcode, Reply, ScatteredHal, TestHal, VirtualClock,
    raw::{Backend, Chain},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
    sync::{Arc, Mutex},
};

/// Reads all data, into buffers at any offset in a page, with several chunk sizes.
fn reads_everything<H: Hal>() {
    let chunks = [
        CHUNK as u32,
        PAGE_SIZE as u32,
        3 * PAGE_SIZE as u32,
        1 << 20,
    ];
    for chunk in crate::rig::cases(chunks) {
        let device = Device::new(tree());
        let options = Options::default().with_chunk_size(chunk);
        let share = device.mount_with::<H>(options).unwrap();
        let mut room = vec![0x55; LARGE as usize + 2 * PAGE_SIZE];
        let page = room.as_ptr().align_offset(PAGE_SIZE);
        let large = share.open("large").unwrap();
        for start in [0, 1, 0x10, PAGE_SIZE - 1] {
            let start = page + start;
            let end = start + LARGE as usize;
            large.read_exact_at(0, &mut room[start..end]).unwrap();
            assert!(is_large(&room[start..end], 0));
            assert!(room[..start].iter().all(|&byte| byte == 0x55));
            assert!(room[end..].iter().all(|&byte| byte == 0x55));
            room.fill(0x55);
        }
        assert_eq!(TestHal::shared(), 0, "all of it was given back");
        let names = share.read_dir("dir").unwrap().map(|entry| entry.unwrap());
        let names: Vec<_> = names.map(|entry| entry.file_name().to_vec()).collect();
        assert_eq!(names, [b"one", b"two"]);
        assert_eq!(share.read_link("link", &mut [0; 9]).unwrap(), b"file");
        let mut buf = [0; 100];
        assert_eq!(share.read("link", &mut buf).unwrap(), crate::rig::CONTENT);
        drop(large);
        share.unmount().unwrap();
        check(&device);
    }
}

#[test]
fn all_data_is_read_with_identical_scattered_copied_and_mapped_buffers() {
    reads_everything::<IdentityHal>();
    reads_everything::<ScatteredHal>();
    reads_everything::<BouncingHal>();
    reads_everything::<IommuHal>();
}

/// A tree, and a record of the sizes of the data buffers of each READ.
struct Noting {
    pieces: Arc<Mutex<Vec<Vec<u32>>>>,
}

impl Backend for Noting {
    fn answer(&self, chain: &Chain, request: &bootshare_test_device::Request) -> Reply {
        if request.opcode() == Opcode::Read {
            let data = chain.writable()[1..].iter().map(|buffer| buffer.length);
            self.pieces.lock().unwrap().push(data.collect());
        }
        tree().good_reply(request)
    }
}

/// The sizes of the pieces of each READ, for a read of `size` bytes to offset `start` of a page.
fn pieces<H: Hal>(start: usize, size: usize) -> Vec<Vec<u32>> {
    let pieces = Arc::default();
    let device = Device::with_backend(Noting {
        pieces: Arc::clone(&pieces),
    });
    let share = device.mount_with::<H>(Options::default()).unwrap();
    let file = share.open("large").unwrap();
    let mut room = vec![0; size + 2 * PAGE_SIZE];
    let start = room.as_ptr().align_offset(PAGE_SIZE) + start;
    file.read_exact_at(0, &mut room[start..start + size])
        .unwrap();
    drop(file);
    share.unmount().unwrap();
    check(&device);
    let pieces = pieces.lock().unwrap();
    pieces.clone()
}

#[cfg(not(miri))]
#[test]
fn a_read_uses_the_fewest_pieces_that_the_platform_allows() {
    const SIZE: usize = 80_000;
    assert_eq!(pieces::<IommuHal>(0x10, SIZE), [[SIZE as u32]]);
    // A READ has at most 17 pieces; the rest of the data belongs to the next READ.
    let scattered = pieces::<ScatteredHal>(0x10, SIZE);
    let mut first = vec![4096; 17];
    first[0] = 4080;
    let rest = SIZE as u32 - first.iter().sum::<u32>();
    assert_eq!(scattered, [first, vec![4096, 4096, rest - 8192]]);
    // When the bounce buffers are full, the client waits until some are returned.
    let bounced = pieces::<BouncingHal>(0x10, SIZE);
    let most = BouncingHal::ROOM as u32;
    assert!(bounced.len() >= SIZE / BouncingHal::ROOM, "{bounced:?}");
    assert!(bounced.iter().all(|read| read.iter().sum::<u32>() <= most));
}

/// If the device is silent or lies, or the caller panics, shared buffers are unshared before the caller gets the
/// buffer back.
fn gives_back_after_a_reset<H: Hal>() {
    type Spoil = fn(Reply) -> Reply;
    let spoils: [Spoil; 3] = [
        |good| good.never(),
        |good| good.id(63),
        |good| good.times(2),
    ];
    for spoil in spoils {
        let mut count = 0;
        let device = spoiling(Opcode::Read, move |_, good| {
            count += 1;
            if count == 3 {
                spoil(good)
            } else {
                good.after(VirtualClock::TICK)
            }
        });
        let share = device.mount_with::<H>(in_chunks()).unwrap();
        let file = share.open("large").unwrap();
        let mut buf = vec![0; LARGE as usize];
        file.read_at(0, &mut buf).unwrap_err();
        assert_eq!(TestHal::shared(), 0);
        drop(file);
        share.resume().unwrap();
        let file = share.open("large").unwrap();
        let read = catch_unwind(AssertUnwindSafe(|| {
            file.read_at_with(0, &mut buf, &mut |_| panic!("in the caller's own code"))
        }));
        assert!(read.is_err());
        assert_eq!(TestHal::shared(), 0);
        drop(file);
        drop(share);
        check(&device);
    }
}

#[test]
fn shared_buffers_are_unshared_after_a_reset() {
    gives_back_after_a_reset::<TestHal>();
    gives_back_after_a_reset::<ScatteredHal>();
    gives_back_after_a_reset::<BouncingHal>();
    gives_back_after_a_reset::<IommuHal>();
}

/// A platform that cannot share any buffer.
struct RefusingHal;

// SAFETY: as `TestHal`, which does everything except sharing.
unsafe impl Hal for RefusingHal {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        TestHal::dma_alloc(pages, direction)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { TestHal::dma_dealloc(paddr, vaddr, pages) }
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("the test transport has no registers")
    }

    unsafe fn share(_buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        0
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {
        unreachable!("nothing is shared")
    }
}

#[test]
fn a_platform_that_cannot_share_reads_names_but_no_data() {
    let device = Device::new(tree());
    let share = device
        .mount_with::<RefusingHal>(Options::default())
        .unwrap();
    assert_eq!(share.read_link("link", &mut [0; 9]).unwrap(), b"file");
    assert_eq!(share.read_dir("dir").unwrap().count(), 2);
    let file = share.open("file").unwrap();
    let refused = Err(Error::Device(DeviceError::BufferRefused));
    assert_eq!(file.read_at(0, &mut [0; 4]), refused);
    assert_eq!(file.read_at(0, &mut []), Ok(0));
    assert!(share.is_connected());
    drop(file);
    share.unmount().unwrap();
    check(&device);
}

/// A `Hal` that returns used pages without zeroing them, like the `Hal`s of some kernels.
struct DirtyHal;

// SAFETY: as `TestHal`; the content of new pages does not matter.
unsafe impl Hal for DirtyHal {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let (paddr, vaddr) = TestHal::dma_alloc(pages, direction);
        // SAFETY: the pages have this size and belong to us.
        unsafe { vaddr.write_bytes(0xa5, pages * PAGE_SIZE) };
        (paddr, vaddr)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { TestHal::dma_dealloc(paddr, vaddr, pages) }
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        // SAFETY: the caller's promise.
        unsafe { TestHal::mmio_phys_to_virt(paddr, size) }
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller's promise.
        unsafe { TestHal::share(buffer, direction) }
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        // SAFETY: the caller's promise.
        unsafe { TestHal::unshare(paddr, buffer, direction) }
    }
}

#[test]
fn pages_need_not_be_zeroed() {
    reads_everything::<DirtyHal>();
}
