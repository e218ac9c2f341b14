//! The host's files: system calls on one descriptor, or on one name below a directory. None of them
//! follows a link or leaves the directory.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, fstatfs, getxattr,
    getxattr_query, listxattr, listxattr_query, makedev, open, openat, openat2, readlinkat, statx,
};
use rustix::io::Errno;

/// How often opening is retried when the file is renamed at the same moment.
const RENAME_RETRIES: usize = 64;

/// File systems that show the host's kernel and processes, not files (linux/magic.h).
const PSEUDO: [u32; 22] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x5a3c_69f0, // apparmorfs
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0x9584_58f6, // hugetlbfs
    0x6759_6969, // rpc_pipefs
    0x6e66_7364, // nfsd
];

/// Identifies a file as long as a descriptor of it is open: until it is closed, the inode number is
/// not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: u64,
    /// The mount ID; 0 before Linux 5.8.
    mount: u64,
    pub(super) ino: u64,
}

impl Key {
    pub(super) fn of(stat: &Statx) -> Self {
        Self {
            device: device(stat),
            mount: if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
                0
            } else {
                stat.stx_mnt_id
            },
            ino: stat.stx_ino,
        }
    }

    /// Whether the two are on different mounts.
    pub(super) fn is_mounted_over(&self, other: &Self) -> bool {
        (self.device, self.mount) != (other.device, other.mount)
    }
}

pub(super) fn device(stat: &Statx) -> u64 {
    makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// Distinguishes a file whose descriptor was closed from a later file with the same [`Key`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    kind: u32,
    /// Creation time in seconds and nanoseconds; zero if the file system has none.
    birth: (i64, u32),
    /// The file handle's type and bytes, if the file system has handles: they contain the inode's
    /// generation number.
    handle: Option<(i32, Vec<u8>)>,
}

impl Generation {
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = stat(fd)?;
        Ok(Self {
            kind: u32::from(stat.stx_mode) & libc::S_IFMT,
            birth: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
            handle: handle(fd),
        })
    }
}

/// The file's handle; name_to_handle_at(2) needs no privilege.
fn handle(fd: BorrowedFd<'_>) -> Option<(i32, Vec<u8>)> {
    /// `struct file_handle` with space for the longest handle.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        place: [u8; libc::MAX_HANDLE_SZ as usize],
    }
    let mut handle = Handle {
        bytes: libc::MAX_HANDLE_SZ as u32,
        kind: 0,
        place: [0; libc::MAX_HANDLE_SZ as usize],
    };
    let mut mount = 0;
    // SAFETY: the path is a C string. The kernel writes at most `bytes` bytes after the two numbers
    // of `handle`, and one number to `mount`.
    let done = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    let bytes = handle.place.get(..handle.bytes as usize)?;
    (done == 0).then(|| (handle.kind, bytes.to_vec()))
}

pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    statx(fd, c"", AtFlags::EMPTY_PATH, wanted)
}

/// Opens a directory entry of any type with O_PATH, which has no effect on the file.
pub(super) fn open_name(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RENAME_RETRIES {
        match openat2(dir, name, flags, Mode::empty(), resolve) {
            // The file was renamed during the call.
            Err(Errno::XDEV | Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::NOENT)
}

/// Whether a file is on a pseudo file system that shows the host's kernel or processes.
pub(super) fn is_pseudo(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let found = fstatfs(fd)?;
    Ok(PSEUDO.contains(&(found.f_type as u32)))
}

/// /proc/self/fd, by which an O_PATH descriptor is reopened for reading, and its path is read.
pub(super) struct Descriptors(OwnedFd);

impl Descriptors {
    pub(super) fn new() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open("/proc/self/fd", flags, Mode::empty());
        let dir = dir.context("cannot open /proc/self/fd: mount proc at /proc")?;
        Ok(Self(dir))
    }

    /// Reopens a file or directory for reading, with O_NOATIME where that is permitted: for the
    /// user's own files.
    pub(super) fn open(&self, fd: BorrowedFd<'_>, is_dir: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        flags.set(OFlags::DIRECTORY, is_dir);
        let name = name_of(fd);
        match openat(&self.0, &*name, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => openat(&self.0, &*name, flags, Mode::empty()),
            result => result,
        }
    }

    /// The current path of an open file.
    pub(super) fn path(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        Ok(readlinkat(&self.0, name_of(fd), Vec::new())?.into_bytes())
    }

    /// The value of an extended attribute of an open file or symbolic link.
    pub(super) fn attribute(fd: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
        let path = path_of(fd);
        of_any_size(
            || getxattr_query(&*path, name),
            |place| getxattr(&*path, name, place),
        )
    }

    /// The names of the extended attributes, each with a NUL.
    pub(super) fn attributes(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let path = path_of(fd);
        of_any_size(|| listxattr_query(&*path), |place| listxattr(&*path, place))
    }
}

/// Queries the size, then the value; repeats both if the value has grown meanwhile.
fn of_any_size(
    size: impl Fn() -> Result<usize, Errno>,
    read: impl Fn(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Vec<u8>, Errno> {
    loop {
        let mut bytes = vec![0; size()?];
        if bytes.is_empty() {
            return Ok(bytes);
        }
        match read(&mut bytes) {
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
            Ok(size) => {
                bytes.truncate(size);
                return Ok(bytes);
            }
        }
    }
}

fn name_of(fd: BorrowedFd<'_>) -> String {
    fd.as_raw_fd().to_string()
}

fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
