//! The embedded server: a read-only virtio-fs device over vhost-user, in threads of this process.
//!
//! One server serves one share: a directory, or several of which earlier ones cover later ones.
//! Whatever would change something is answered with EROFS before the file system sees it, nothing
//! outside the directories can be reached, and it needs no privilege. vhost-user-backend talks to
//! QEMU, fuse-backend-rs decodes and encodes FUSE; file data goes from the page cache into the
//! guest's memory by preadv(2).

mod connection;
mod device;
mod fault;
mod fs;
mod opcode;
mod ring;
mod service;
mod trace;

use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtio_queue::DescriptorChain;

pub use fault::{Fault, RULES};
pub use fs::Cache;
pub use service::MemoryRef;
pub use trace::{Trace, print};

use crate::fd::either;
use connection::Status;
use fault::Injector;
use fs::Share;
use service::Service;

/// Threads that answer requests, unless told otherwise.
pub const DEFAULT_THREADS: usize = 2;

/// The most request queues of a share.
pub const MAX_REQUEST_QUEUES: u32 = 8;

/// How long a server may take to end: no disk takes longer for a request.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What to serve, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The share's name in messages and traces.
    pub tag: String,
    /// The directories, at least one; earlier ones cover later ones.
    pub dirs: Vec<PathBuf>,
    /// Request queues that a machine may use, 1 to [`MAX_REQUEST_QUEUES`].
    pub request_queues: u32,
    /// Threads that answer requests, of whatever queue; with 0 each queue's own thread does.
    pub threads: usize,
    /// How long the guest may rely on what it was told.
    pub cache: Cache,
    /// Whether the guest sees extended attributes.
    pub xattr: bool,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// Where requests and replies are recorded.
    pub trace: Option<Arc<Trace>>,
}

impl Options {
    /// Serves `dirs` on one request queue, with the default number of threads.
    pub fn new(tag: impl Into<String>, dirs: Vec<PathBuf>) -> Self {
        Self {
            tag: tag.into(),
            dirs,
            request_queues: 1,
            threads: DEFAULT_THREADS,
            cache: Cache::default(),
            xattr: false,
            fault: None,
            trace: None,
        }
    }

    fn service(&self) -> Result<Service> {
        ensure!(!self.dirs.is_empty(), "no directory to share: name one");
        ensure!(
            (1..=MAX_REQUEST_QUEUES).contains(&self.request_queues),
            "{} request queues: a share has 1 to {MAX_REQUEST_QUEUES}",
            self.request_queues
        );
        let share = Share::new(&self.dirs, self.cache, self.xattr)?;
        let injector = self.fault.clone().map(Injector::new);
        let trace = self.trace.clone();
        Ok(Service::new(self.tag.clone(), share, injector, trace))
    }
}

/// A server that runs. Dropping it ends it.
pub struct Server {
    status: Arc<Status>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each QEMU that connects to `listener`, one at a time.
    ///
    /// # Errors
    /// A directory cannot be read, or threads cannot be started.
    pub fn start(options: &Options, listener: UnixListener) -> Result<Self> {
        let service = Arc::new(options.service()?);
        let status = Arc::new(Status::new(&listener)?);
        let thread = {
            let (queues, threads) = (options.request_queues as usize, options.threads);
            let status = Arc::clone(&status);
            thread::Builder::new()
                .name("share".into())
                .spawn(move || connection::serve(&service, &status, listener, queues, threads))
                .context("cannot start a thread")?
        };
        Ok(Self {
            status,
            thread: Some(thread),
        })
    }

    /// Becomes readable when the server has failed; it may go on all the same.
    pub fn failed(&self) -> BorrowedFd<'_> {
        self.status.failed()
    }

    /// What went wrong first.
    pub fn failure(&self) -> Option<String> {
        self.status.failure()
    }

    /// Ends the server, also under a QEMU that runs, and waits for its threads; but not for ever for
    /// one that waits for a file system of the host: it ends with the process.
    pub fn stop(&mut self) {
        self.status.stop();
        let Some(thread) = self.thread.take() else {
            return;
        };
        let deadline = Instant::now() + STOP_LIMIT;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                self.status.fail("a file of the share does not answer");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if let Err(panic) = thread.join() {
            let panic = service::message(&*panic);
            self.status.fail(&format!("it panicked: {panic}"));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A share without a device: for one that has its own queues.
pub struct Handler(Service);

impl Handler {
    /// A handler of `options`; its threads are the caller's.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn new(options: &Options) -> Result<Self> {
        options.service().map(Self)
    }

    /// Answers a request, at once: of the faults a delay has no effect here. Returns how many bytes
    /// of its buffers were written; `None` when it is not to be given back.
    pub fn answer(&self, chain: &DescriptorChain<impl MemoryRef>) -> Option<u32> {
        let taken = self.0.take(chain);
        self.0.answer(chain, &taken, None).used
    }
}

/// A panic elsewhere leaves nothing half done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves on a socket at `path`, until a signal ends it; then the socket is gone.
///
/// # Errors
/// The socket cannot be made, a directory cannot be read, or the server failed.
pub fn run(options: &Options, path: &Path) -> Result<()> {
    let interrupt = crate::interrupt::interrupted().context("cannot watch for signals")?;
    let listener = bind(path)?;
    let _socket = Socket::new(path)?;
    let server = Server::start(options, listener)?;
    either(interrupt, server.failed()).context("cannot wait for QEMU")?;
    match server.failure() {
        Some(failure) => bail!("the server of {} failed: {failure}", options.tag),
        None => Ok(()),
    }
}

/// A socket at `path`, also where a server that was killed left its own. Nothing else is replaced.
fn bind(path: &Path) -> Result<UnixListener> {
    let listen = || UnixListener::bind(path);
    let listener = match listen() {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let found = std::fs::symlink_metadata(path);
            ensure!(
                found.is_ok_and(|found| found.file_type().is_socket()),
                "cannot listen on {}: there is a file that is no socket: choose another path",
                path.display()
            );
            let lives = std::os::unix::net::UnixStream::connect(path).is_ok();
            ensure!(
                !lives,
                "a server listens on {} already: choose another path, or end it",
                path.display()
            );
            std::fs::remove_file(path).and_then(|()| listen())
        }
        other => other,
    };
    listener.with_context(|| format!("cannot listen on {}", path.display()))
}

/// A socket that was bound; its name is gone with this, unless it has become another file's.
struct Socket<'a> {
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
            // Somebody may have removed it before us.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
