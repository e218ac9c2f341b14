//! The socket that QEMU connects to.

use std::fmt;
use std::fs::{File, Permissions, remove_file, set_permissions, symlink_metadata};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::explain::Explain;

/// The backlog of listen(2).
const BACKLOG: i32 = 16;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A socket file that is created, and removed at the end.
    Path {
        /// Its path.
        path: PathBuf,
        /// Its permissions; `None` leaves them to the umask.
        mode: Option<u32>,
    },
    /// An inherited listening socket, by its descriptor number.
    Fd(i32),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, .. } => path.display().fmt(f),
            Self::Fd(number) => write!(f, "descriptor {number}"),
        }
    }
}

impl Endpoint {
    /// The listening socket, and a guard that removes its file.
    pub(super) fn listen(&self) -> Result<(UnixListener, Option<Socket<'_>>)> {
        match self {
            Self::Path { path, mode } => {
                let listener = make(path, *mode)?;
                Ok((listener, Some(Socket::new(path)?)))
            }
            Self::Fd(number) => Ok((inherit(*number)?, None)),
        }
    }
}

/// The remedy for a descriptor that is no listening socket.
const LISTENING: &str = "pass on a listening socket, as systemd does";

fn inherit(number: i32) -> Result<UnixListener> {
    ensure!(
        number > 2,
        "--fd {number} is a standard stream: pass a socket as 3 or more"
    );
    // SAFETY: the descriptor is only used for queries here; if it is not open, they fail with
    // EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let listens = socket_acceptconn(fd).explain(
        format_args!("--fd {number} is no inherited socket"),
        LISTENING,
    )?;
    ensure!(
        listens,
        "the socket --fd {number} does not listen: {LISTENING}"
    );
    // A duplicate: the inherited descriptor itself stays open.
    let copy: OwnedFd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
    Ok(copy.into())
}

/// Whether a socket can have this path; `remedy` is for one that is too long.
///
/// # Errors
/// It is too long.
pub(crate) fn short_enough(path: &Path, remedy: &str) -> Result<()> {
    // unix(7): sun_path holds 107 bytes and a NUL.
    ensure!(
        path.as_os_str().len() <= 107,
        "{} is too long for a socket: {remedy}",
        path.display()
    );
    Ok(())
}

/// How long the lock of a socket's directory is tried: another server needs it for a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// A socket at `path`. It replaces only the socket of a server that no longer runs.
fn make(path: &Path, mode: Option<u32>) -> Result<UnixListener> {
    short_enough(path, "choose a shorter path")?;
    // Of two servers that find the socket of one that has ended, the second must see the first one's.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = File::open(dir.unwrap_or(Path::new(".")));
    // Without the lock only such a race is open: the directory may not be readable, or another program may hold
    // the lock for long, as flock(1) does around this one.
    let deadline = Instant::now() + LOCK_LIMIT;
    while let Ok(dir) = &dir
        && flock(dir, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
        && Instant::now() < deadline
    {
        thread::sleep(LOCK_LIMIT / 100);
    }
    let listener = match bind_at(path, mode) {
        Err(Errno::ADDRINUSE) => {
            let found = symlink_metadata(path);
            ensure!(
                found.is_ok_and(|found| found.file_type().is_socket()),
                "cannot listen on {}: the file exists and is not a socket: choose another path",
                path.display()
            );
            match connect_to(path) {
                Err(Errno::CONNREFUSED) => {}
                Ok(()) => bail!(
                    "a server listens on {} already: choose another path, or end it",
                    path.display()
                ),
                // The sockets of live programs: of another type (EPROTOTYPE), of another user
                // (EACCES), or busy (EAGAIN).
                Err(error) => bail!(
                    "cannot listen on {}: another program may use this socket ({error}): choose \
                     another path, or remove it",
                    path.display()
                ),
            }
            remove_file(path)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
                .and_then(|()| bind_at(path, mode))
        }
        other => other,
    };
    listener.explain(
        format_args!("cannot listen on {}", path.display()),
        "name a new file in a directory that you can write to",
    )
}

/// Tries to connect without waiting.
fn connect_to(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

fn bind_at(path: &Path, mode: Option<u32>) -> Result<UnixListener, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address)?;
    // Set the permissions before listening, so that nobody can connect without them.
    if let Some(mode) = mode {
        set_permissions(path, Permissions::from_mode(mode))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A bound socket. Dropping it removes its file, unless another file has that name by now.
pub(super) struct Socket<'a> {
    path: &'a Path,
    /// Device and inode number.
    identity: (u64, u64),
}

impl<'a> Socket<'a> {
    fn new(path: &'a Path) -> Result<Self> {
        let identity = identity(path);
        let identity = identity.with_context(|| format!("cannot look at {}", path.display()))?;
        Ok(Self { path, identity })
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        if identity(self.path).is_ok_and(|found| found == self.identity) {
            // It may have been removed already.
            let _ = remove_file(self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Tells the service manager, if one started this process, that QEMU may connect (sd_notify(3)).
pub(super) fn tell_manager() -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_of_a_server_that_has_ended_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let refused = |said: &str| {
            let before = identity(&path).unwrap();
            let error = format!("{:#}", make(&path, None).unwrap_err());
            assert!(error.contains(said), "{error}");
            assert_eq!(identity(&path).unwrap(), before);
        };
        let live = make(&path, None).unwrap();
        refused("a server listens on");
        drop(live);
        drop(make(&path, None).unwrap());
        remove_file(&path).unwrap();
        // The socket of a program such as syslog.
        let datagram = UnixDatagram::bind(&path).unwrap();
        refused("another program may use this socket");
        drop(datagram);
        remove_file(&path).unwrap();
        std::fs::write(&path, "a text").unwrap();
        refused("is not a socket");
    }
}
