//! QEMU's connections, one after the other, and the way to end them.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, getsockname, shutdown};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryMmap;

use super::device::Device;
use super::lock;
use super::ring::Memory;
use super::service::{Service, message};
use crate::fd::either;

/// How a server fares; shared by all its threads.
pub(super) struct Status {
    /// The socket that QEMU connects to: all connections have its name.
    path: PathBuf,
    /// Readable as soon as the server has failed.
    failed: OwnedFd,
    failure: Mutex<Option<String>>,
    /// Readable as soon as the server is to end.
    stop: OwnedFd,
    stopping: AtomicBool,
}

impl Status {
    pub(super) fn new(listener: &UnixListener) -> Result<Self> {
        let address = listener.local_addr().context("a socket without a name")?;
        let path = address.as_pathname().context("a socket without a path")?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            path: path.to_owned(),
            failed: event().context("cannot make an eventfd")?,
            failure: Mutex::default(),
            stop: event().context("cannot make an eventfd")?,
            stopping: AtomicBool::new(false),
        })
    }

    /// Notes what went wrong, unless something did before.
    pub(super) fn fail(&self, what: &str) {
        lock(&self.failure).get_or_insert_with(|| what.to_owned());
        raise(&self.failed);
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// Becomes readable when the server has failed.
    pub(super) fn failed(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// Ends the server soon.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        raise(&self.stop);
        self.hang_up();
    }

    /// Ends the connection that QEMU has.
    ///
    /// vhost-user-backend accepts connections itself and keeps them to itself, so ours is looked for
    /// among the process's descriptors: it has our socket's path and does not listen.
    pub(super) fn hang_up(&self) {
        let Ok(entries) = fs::read_dir("/proc/self/fd") else {
            return;
        };
        for entry in entries.flatten() {
            let Ok(number) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            // SAFETY: the number is used for system calls only. Should the descriptor be closed
            // meanwhile they fail, and should another have its number they find no socket of this
            // path.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let Ok(address) = getsockname(fd) else {
                continue;
            };
            let ours = address.address_family() == AddressFamily::UNIX
                && SocketAddrUnix::try_from(address).is_ok_and(|address| {
                    address.path_bytes() == Some(self.path.as_os_str().as_bytes())
                });
            let listens = rustix::net::sockopt::socket_acceptconn(fd).unwrap_or(true);
            if ours && !listens {
                // It may have ended by itself.
                let _ = shutdown(fd, Shutdown::Both);
            }
        }
    }
}

fn raise(event: &OwnedFd) {
    // It fails when it is raised already, 2^64 times.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Serves each QEMU that connects, until told to stop.
pub(super) fn serve(
    service: &Arc<Service>,
    status: &Arc<Status>,
    listener: UnixListener,
    request_queues: usize,
    threads: usize,
) {
    let mut listener = Listener::from(listener);
    while !status.stopping.load(Ordering::SeqCst) {
        if let Err(error) = one(service, status, &mut listener, request_queues, threads) {
            status.fail(&format!("{error:#}"));
            return;
        }
    }
}

fn one(
    service: &Arc<Service>,
    status: &Arc<Status>,
    listener: &mut Listener,
    request_queues: usize,
    threads: usize,
) -> Result<()> {
    if !wait_for_connection(status, listener)? {
        return Ok(());
    }
    let known = Arc::clone(status);
    let (device, pool) = Device::new(Arc::clone(service), known, request_queues, threads)
        .context("cannot start threads")?;
    let memory = Memory::new(GuestMemoryMmap::new());
    let device = Arc::new(device);
    let mut daemon = VhostUserDaemon::new("share".into(), Arc::clone(&device), memory)
        .map_err(|error| anyhow!("{error}"))?;
    daemon.start(listener).map_err(|error| anyhow!("{error}"))?;
    // Told to stop between the two, it would wait for QEMU's end.
    if status.stopping.load(Ordering::SeqCst) {
        status.hang_up();
    }
    let ended = daemon.wait();
    device.hurry();
    // Without a device the pool has nothing to do, and ends.
    drop((daemon, device));
    drop(pool);
    service.forget_all();
    match ended {
        // QEMU's end, or ours.
        Ok(())
        | Err(DaemonError::HandleRequest(
            VhostError::Disconnected
            | VhostError::PartialMessage
            | VhostError::SocketBroken(_)
            | VhostError::SocketError(_),
        )) => Ok(()),
        // QEMU does not ask how many queues there are.
        Err(DaemonError::HandleRequest(VhostError::InvalidParam)) => Err(anyhow!(
            "QEMU asked for what is not there; its num-request-queues may be {request_queues}: allow \
             more with --request-queues"
        )),
        Err(DaemonError::WaitDaemon(panic)) => Err(anyhow!("it panicked: {}", message(&*panic))),
        Err(error) => Err(anyhow!("{error}")),
    }
}

/// Whether somebody connects before the server is told to stop.
fn wait_for_connection(status: &Status, listener: &Listener) -> Result<bool> {
    // SAFETY: the listener outlives this function, and does not close it.
    let socket = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(listener)) };
    let (stop, _) = either(status.stop.as_fd(), socket).context("cannot wait for QEMU")?;
    Ok(!stop)
}
