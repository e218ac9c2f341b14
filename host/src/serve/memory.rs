//! The guest's memory: QEMU's memory files, mapped into this process.
//!
//! If QEMU truncates such a file, an access to the missing part raises SIGBUS, which would end the
//! process and with it the connections of all guests. The handler here maps zero-filled memory over
//! the whole region and has the connection closed.

mod place;

use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use place::{Entry, Place};

/// The guest's memory, and QEMU's addresses of it. Clones refer to the same memory.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Table>);

#[derive(Default)]
struct Table {
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
    /// Maps QEMU's regions; `lost` becomes readable when one of them was truncated.
    pub(super) fn new(
        regions: &[VhostUserMemoryRegion],
        files: Vec<std::fs::File>,
        lost: &Arc<OwnedFd>,
    ) -> io::Result<Self> {
        catch()?;
        if regions.len() > MOST_REGIONS {
            return Err(io::Error::other("more than 8 memory regions"));
        }
        let mut mapped = Vec::new();
        let mut watched = Vec::new();
        let mut mappings = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let mapping = region.mmap_region::<()>(file).map_err(io::Error::other)?;
            let start = GuestAddress(region.guest_phys_addr);
            let mapping =
                GuestRegionMmap::new(mapping, start).ok_or(io::ErrorKind::InvalidInput)?;
            let mapping = Arc::new(mapping);
            watched.push(Watched::new(&mapping, lost)?);
            mapped.push(mapping);
            let sizes = (region.user_addr, region.guest_phys_addr, region.memory_size);
            mappings.push(sizes);
        }
        let memory = GuestMemoryMmap::from_arc_regions(mapped).map_err(io::Error::other)?;
        Ok(Self(Arc::new(Table {
            _watched: watched,
            memory,
            mappings,
        })))
    }

    /// Translates one of QEMU's addresses to a guest address.
    pub(super) fn guest_address(&self, address: u64) -> Option<GuestAddress> {
        self.0.mappings.iter().find_map(|&(theirs, guest, size)| {
            let offset = address
                .checked_sub(theirs)
                .filter(|&offset| offset < size)?;
            Some(GuestAddress(guest + offset))
        })
    }
}

/// The most regions of a front end without VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS.
const MOST_REGIONS: usize = 8;

/// Enough for 16 shares, each with a table of regions and a new one that replaces it.
static PLACES: [Place; 256] = [const {
    Place {
        turn: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        lost: AtomicI32::new(-1),
    }
}; 256];

/// A mapping in the handler's table.
struct Watched {
    place: &'static Place,
    /// Keeps the mapping while it is in the table. Otherwise the handler could replace what the kernel
    /// maps at its address next.
    _mapping: Arc<GuestRegionMmap>,
    /// Keeps the descriptor open, whose number the handler uses.
    _lost: Arc<OwnedFd>,
}

impl Watched {
    fn new(mapping: &Arc<GuestRegionMmap>, lost: &Arc<OwnedFd>) -> io::Result<Self> {
        let entry = Entry {
            start: mapping.as_ptr() as usize,
            size: mapping.size(),
            lost: lost.as_raw_fd(),
        };
        let place = PLACES.iter().find(|place| place.take(entry));
        let place = place.ok_or_else(|| io::Error::other("too many memory regions"))?;
        Ok(Self {
            place,
            _mapping: Arc::clone(mapping),
            _lost: Arc::clone(lost),
        })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The fields are dropped after this.
        self.place.free();
    }
}

/// The previous action of SIGBUS.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the SIGBUS handler, once for the process.
fn catch() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let mut before = MaybeUninit::uninit();
        // SAFETY: without a new action, the call only writes the present one to `before`.
        if unsafe { libc::sigaction(libc::SIGBUS, null(), before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        // SAFETY: the call above has initialised it.
        let before = BEFORE.get_or_init(|| unsafe { before.assume_init() });
        let mut action = *before;
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler is async-signal-safe (signal-safety(7)): it reads atomics and makes
        // system calls. Its signature is that of an SA_SIGINFO handler.
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
    // SAFETY: the function may be called at any time (signal-safety(7)).
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is this thread's errno, and exists as long as the thread.
    let interrupted = unsafe { *errno };
    // SAFETY: the kernel passes a valid siginfo_t.
    handle(unsafe { &*info });
    // SAFETY: as above. The interrupted code may be about to read the errno of its last call.
    unsafe { *errno = interrupted };
}

fn handle(info: &libc::siginfo_t) {
    // The kernel's own signals have positive codes, those of kill(2) and the like have others.
    // BUS_MCEERR_AO reports broken memory that this thread may not be accessing, so another thread
    // could unmap it meanwhile.
    if info.si_code <= 0 || info.si_code == libc::BUS_MCEERR_AO {
        return pass_on();
    }
    // SAFETY: the siginfo_t of a SIGBUS of the kernel has an address (sigaction(2)).
    let address = unsafe { info.si_addr() } as usize;
    if replace(address) {
        return;
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: this restores the previous action; the access faults again and is handled by
        // that.
        unsafe { libc::sigaction(libc::SIGBUS, before, null_mut()) };
    }
}

/// Replaces the guest memory that `address` is in. Returns whether it was.
fn replace(address: usize) -> bool {
    for Entry { start, size, lost } in PLACES.iter().filter_map(Place::read) {
        if address < start || address - start >= size {
            continue;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is a mapping of guest memory, which vm-memory accesses as volatile
        // only. It is the mapping that this thread is accessing, so the thread's `Memory` keeps it
        // until the handler returns; it is unmapped later like the original one. It is no other,
        // because mappings do not overlap, and the entry of an earlier mapping of the address was
        // removed before munmap(2), hence before mmap(2) returned the address again.
        let new = unsafe { libc::mmap(start as *mut _, size, access, flags, -1, 0) };
        if new != libc::MAP_FAILED {
            let one = 1_u64.to_ne_bytes();
            // SAFETY: the buffer is valid, and the descriptor is open as long as the table entry is
            // in use.
            unsafe { libc::write(lost, one.as_ptr().cast(), one.len()) };
            return true;
        }
    }
    false
}

/// Lets a signal that no access has caused have the effect that it has without the handler: it ends
/// the process, unless SIGBUS was ignored.
///
/// The previous action is not called: that of Rust's run time takes each SIGBUS for a fault that
/// will occur again, and so would swallow the signal.
fn pass_on() {
    if BEFORE
        .get()
        .is_some_and(|before| before.sa_sigaction == libc::SIG_IGN)
    {
        return;
    }
    // SAFETY: zeros are a valid `sigaction`: SIG_DFL, no flags, an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the action is valid, and the old one is not asked for.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const default, null_mut()) };
    // SAFETY: the function may be called in a handler (signal-safety(7)). The signal is blocked
    // until the handler returns.
    unsafe { libc::raise(libc::SIGBUS) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
    use vm_memory::Bytes;

    /// Set for the process that is sent a signal: this program, which runs the test again.
    const IS_SENT: &str = "BOOTSHARE_TEST_IS_SENT_SIGBUS";

    /// The size of a region: a multiple of any page size.
    const SIZE: u64 = 0x10000;

    /// `count` regions, each with its part of a file; region 1 begins at the guest address `second`.
    fn memory(count: u64, second: u64, lost: &Arc<OwnedFd>) -> io::Result<(Memory, std::fs::File)> {
        let file = std::fs::File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
        file.set_len(count * SIZE)?;
        let region = |number| {
            let guest = if number == 1 { second } else { number * SIZE };
            VhostUserMemoryRegion::new(guest, SIZE, number * SIZE, number * SIZE)
        };
        let regions: Vec<_> = (0..count).map(region).collect();
        let files = regions.iter().map(|_| file.try_clone());
        let memory = Memory::new(&regions, files.collect::<io::Result<_>>()?, lost)?;
        Ok((memory, file))
    }

    fn event() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
    }

    /// Fails if a mapping in the table does not exist.
    fn check_table() {
        for place in &PLACES {
            let turn = place.turn.load(Ordering::Acquire);
            let Some(entry) = place.read() else { continue };
            let mut resident = 0;
            // SAFETY: the buffer has a byte for one page, and the call only looks for that page.
            let result = unsafe { libc::mincore(entry.start as *mut _, 1, &raw mut resident) };
            let error = io::Error::last_os_error();
            let same = place.read().is_some() && place.turn.load(Ordering::Acquire) == turn;
            assert!(result == 0 || !same, "{entry:x?}: {error}");
        }
    }

    #[test]
    fn a_mapping_exists_while_it_is_in_the_table() {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let checker = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    check_table();
                }
            });
            for _ in 0..1000 {
                // The first regions overlap; then they do not.
                assert!(memory(8, 0, &event()).is_err());
                assert!(memory(8, SIZE, &event()).is_ok());
            }
            done.store(true, Ordering::Relaxed);
            checker.join().unwrap();
        });
    }

    #[test]
    fn the_handler_does_not_change_errno() {
        // The handler cannot write to it, so its write(2) fails.
        let lost = std::fs::File::open("/dev/null").unwrap();
        let (memory, file) = memory(1, 0, &Arc::new(lost.into())).unwrap();
        file.set_len(0).unwrap();
        // SAFETY: the function may be called at any time.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: it is this thread's errno.
        unsafe { *errno = libc::ENOENT };
        let read = memory.read_obj::<u64>(GuestAddress(8));
        let errno = io::Error::last_os_error().raw_os_error();
        assert_eq!(read.unwrap(), 0);
        assert_eq!(errno, Some(libc::ENOENT));
    }

    /// Runs a test of this module in a process of its own.
    fn again(test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("serve::memory::tests::{test}");
        command.args(["--exact", &name, "--nocapture"]);
        command.env(IS_SENT, "yes").stdout(Stdio::piped());
        command
    }

    #[test]
    fn a_sigbus_that_is_sent_ends_the_process() {
        if std::env::var_os(IS_SENT).is_some() {
            let none = Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            setrlimit(Resource::Core, none).unwrap();
            catch().unwrap();
            println!("\nREADY");
            thread::sleep(Duration::from_secs(60));
            return;
        }
        let child = again("a_sigbus_that_is_sent_ends_the_process").spawn();
        let mut child = child.unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "READY"));
        kill_process(Pid::from_child(&child), Signal::BUS).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
    }

    #[test]
    fn a_sigbus_that_is_sent_and_was_ignored_is_ignored() {
        if std::env::var_os(IS_SENT).is_some() {
            // SAFETY: nothing else in this process handles SIGBUS.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
            let (memory, file) = memory(1, 0, &event()).unwrap();
            // SAFETY: it is ignored.
            assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
            // The handler is still there.
            file.set_len(0).unwrap();
            assert_eq!(memory.read_obj::<u64>(GuestAddress(8)).unwrap(), 0);
            println!("\nREADY");
            return;
        }
        let child = again("a_sigbus_that_is_sent_and_was_ignored_is_ignored").output();
        let child = child.unwrap();
        assert!(child.status.success(), "{child:?}");
        let lines = String::from_utf8(child.stdout).unwrap();
        assert!(lines.lines().any(|line| line == "READY"), "{lines}");
    }
}
