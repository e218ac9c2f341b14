//! The guest's memory: files of QEMU's that are mapped here as well.
//!
//! QEMU may cut such a file short; a look at what is gone is a SIGBUS, which would end the process,
//! and every other guest with it. The handler here puts empty memory in the place of the whole region and
//! has the connection ended.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// The guest's memory, and how QEMU addresses it. Clones are the same memory.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Table>);

#[derive(Default)]
struct Table {
    /// Ends before the mappings do.
    _watched: Vec<Watched>,
    memory: GuestMemoryMmap,
    /// QEMU's address, the guest's, and the size of each region.
    mappings: Vec<(u64, u64, u64)>,
}

impl Deref for Memory {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.0.memory
    }
}

impl Memory {
    /// Maps QEMU's regions; `lost` becomes readable when one of them is gone.
    pub(super) fn new(
        regions: &[VhostUserMemoryRegion],
        files: Vec<std::fs::File>,
        lost: &Arc<OwnedFd>,
    ) -> io::Result<Self> {
        catch()?;
        let mut mapped = Vec::new();
        let mut watched = Vec::new();
        let mut mappings = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let mapping = region.mmap_region::<()>(file).map_err(io::Error::other)?;
            watched.push(Watched::new(&mapping, lost)?);
            let start = GuestAddress(region.guest_phys_addr);
            let mapping = GuestRegionMmap::new(mapping, start);
            mapped.push(mapping.ok_or(io::ErrorKind::InvalidInput)?);
            let sizes = (region.user_addr, region.guest_phys_addr, region.memory_size);
            mappings.push(sizes);
        }
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(io::Error::other)?;
        Ok(Self(Arc::new(Table {
            _watched: watched,
            memory,
            mappings,
        })))
    }

    /// The guest's address of one of QEMU's.
    pub(super) fn guest_address(&self, address: u64) -> Option<GuestAddress> {
        self.0.mappings.iter().find_map(|&(theirs, guest, size)| {
            let offset = address
                .checked_sub(theirs)
                .filter(|&offset| offset < size)?;
            Some(GuestAddress(guest + offset))
        })
    }
}

/// A place in the table that the handler looks at: it can neither allocate nor wait.
struct Place {
    /// 0: free; 1: being filled.
    start: AtomicUsize,
    size: AtomicUsize,
    lost: AtomicI32,
}

/// As many as 32 shares can have: a QEMU has 8 regions.
static PLACES: [Place; 256] = [const {
    Place {
        start: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        lost: AtomicI32::new(-1),
    }
}; 256];

/// A mapping that the handler knows; it must be dropped before the mapping.
struct Watched {
    place: &'static Place,
    /// The handler has its number.
    _lost: Arc<OwnedFd>,
}

impl Watched {
    fn new(mapping: &MmapRegion, lost: &Arc<OwnedFd>) -> io::Result<Self> {
        let free = |place: &&Place| {
            let taken = place
                .start
                .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
            taken.is_ok()
        };
        let place = PLACES.iter().find(free);
        let place = place.ok_or_else(|| io::Error::other("too many memory regions"))?;
        place.size.store(mapping.size(), Ordering::Relaxed);
        place.lost.store(lost.as_raw_fd(), Ordering::Relaxed);
        let start = mapping.as_ptr() as usize;
        place.start.store(start, Ordering::Release);
        Ok(Self {
            place,
            _lost: Arc::clone(lost),
        })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.place.start.store(0, Ordering::Release);
    }
}

/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Has SIGBUS handled, once for the process.
fn catch() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let mut before = MaybeUninit::uninit();
        // SAFETY: with no new action the call writes the present one, and nothing else.
        if unsafe { libc::sigaction(libc::SIGBUS, null(), before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        // SAFETY: the call before has filled it.
        let before = BEFORE.get_or_init(|| unsafe { before.assume_init() });
        let mut action = *before;
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler does what a handler may (signal-safety(7)): it reads atomics and
        // makes system calls. It has the arguments that SA_SIGINFO asks for.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        Ok(())
    });
    done.map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_bus_error(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: it is one of a SIGBUS, which has an address.
    let address = unsafe { info.si_addr() } as usize;
    for place in &PLACES {
        let start = place.start.load(Ordering::Acquire);
        let size = place.size.load(Ordering::Relaxed);
        if start <= 1 || address < start || address - start >= size {
            continue;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: these addresses are a mapping of the guest's memory, whose bytes nobody relies on
        // (vm-memory takes all of them for volatile); it goes on to be one, and is unmapped as it
        // would have been.
        let new = unsafe { libc::mmap(start as *mut _, size, access, flags, -1, 0) };
        if new != libc::MAP_FAILED {
            let one = 1_u64.to_ne_bytes();
            let lost = place.lost.load(Ordering::Relaxed);
            // SAFETY: the bytes are there; the descriptor is open as long as the place is taken.
            unsafe { libc::write(lost, one.as_ptr().cast(), one.len()) };
            return;
        }
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: it is the action that was in effect before; the fault comes again, and is its own.
        unsafe { libc::sigaction(libc::SIGBUS, before, null_mut()) };
    }
}
