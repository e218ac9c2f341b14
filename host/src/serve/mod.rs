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
mod memory;
mod opcode;
mod pool;
mod queue;
mod service;
mod socket;
mod trace;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::PollFlags;
use virtio_queue::DescriptorChain;

pub use fault::{Fault, RULES};
pub use fs::{Cache, Owner};
pub use service::MemoryRef;
pub use socket::Endpoint;
pub use trace::{Trace, print};

use crate::fd::ready;
use crate::prepare::Prepare;
use connection::Status;
use fault::Injector;
use fs::Share;
use service::Service;

/// Threads that answer requests, unless told otherwise.
pub const DEFAULT_THREADS: usize = 2;

/// The most threads that may be asked for.
pub const MAX_THREADS: usize = 256;

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
    /// Threads that answer requests of whatever queue beside each queue's own, at most [`MAX_THREADS`].
    pub threads: usize,
    /// How long the guest may rely on what it was told.
    pub cache: Cache,
    /// Whether the guest sees extended attributes.
    pub xattr: bool,
    /// Whose the guest sees the files to be.
    pub owner: Owner,
    /// Whether the guest is told what is mounted in the directories. Linux's overlayfs refuses such a
    /// place in a lower layer, with EREMOTE.
    pub submounts: bool,
    /// How kernels are prepared for the firmware, if they are.
    pub prepare: Option<Prepare>,
    /// The process's limit of open files [default: as many as it may have].
    pub open_files: Option<u64>,
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
            owner: Owner::default(),
            submounts: true,
            prepare: None,
            open_files: None,
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
        ensure!(
            self.threads <= MAX_THREADS,
            "{} threads: a share has at most {MAX_THREADS}",
            self.threads
        );
        let mut share =
            Share::new(&self.dirs, self.cache, self.xattr, self.open_files)?.of_owner(self.owner);
        if !self.submounts {
            share = share.without_submounts();
        }
        if let Some(how) = &self.prepare {
            let mut how = how.clone();
            how.cache.take_if(|cache| cache.is_below(&self.dirs));
            share = share.with_kernels(how);
        }
        let injector = self.fault.clone().map(Injector::new);
        let trace = self.trace.clone();
        Ok(Service::new(self.tag.clone(), share, injector, trace))
    }
}

/// A server that runs. Dropping it ends it.
pub struct Server {
    service: Arc<Service>,
    status: Arc<Status>,
    /// Its sender is gone when the thread's work is done.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each QEMU that connects to `listener`, one at a time; another one that comes meanwhile is
    /// turned away.
    ///
    /// # Errors
    /// A directory cannot be read, or threads cannot be started.
    pub fn start(options: &Options, listener: UnixListener) -> Result<Self> {
        let service = Arc::new(options.service()?);
        let status = Arc::new(Status::new()?);
        let (end, ended) = channel::<()>();
        let thread = {
            let (queues, threads) = (options.request_queues as usize, options.threads);
            let (service, status) = (Arc::clone(&service), Arc::clone(&status));
            let tag = options.tag.clone();
            thread::Builder::new()
                .name("share".into())
                .spawn(move || {
                    let _end = end;
                    connection::serve(&service, &status, &listener, queues, threads, &tag);
                })
                .context("cannot start a thread")?
        };
        Ok(Self {
            service,
            status,
            ended,
            thread: Some(thread),
        })
    }

    /// Becomes readable when the server has failed; it may go on all the same.
    pub fn failed(&self) -> BorrowedFd<'_> {
        self.status.failed()
    }

    /// What went wrong first.
    pub fn failure(&self) -> Option<String> {
        self.status.failure().map(|failure| failure.what)
    }

    /// Which file the host's permissions have kept from a guest first, and why, on one line.
    pub fn denied(&self) -> Option<String> {
        self.service.denied()
    }

    /// Ends the server, also under a QEMU that runs, and waits for its threads; but not for ever for
    /// one that waits for a file system of the host: it ends with the process.
    pub fn stop(&mut self) {
        self.status.stop();
        let Some(thread) = self.thread.take() else {
            return;
        };
        if self.ended.recv_timeout(STOP_LIMIT) == Err(RecvTimeoutError::Timeout) {
            self.status.fail("a file of the share does not answer");
            return;
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
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves at `endpoint` until a signal ends it, or with `once` until a QEMU has come and gone.
///
/// # Errors
/// The socket cannot be made, a directory cannot be read, or the server failed.
pub fn run(options: &Options, endpoint: &Endpoint, once: bool) -> Result<()> {
    let interrupt = crate::interrupt::interrupted().context("cannot watch for signals")?;
    let (listener, _socket) = endpoint.listen()?;
    let server = Server::start(options, listener)?;
    eprintln!("bootshare-host: listening on {endpoint}");
    socket::tell_manager().context("cannot tell systemd that the server is ready")?;
    let status = &server.status;
    let mut told_denied = false;
    loop {
        let fds = [interrupt, server.failed(), status.served.as_fd()];
        let ready = ready(&fds.map(|fd| (fd, PollFlags::IN)), None);
        let [interrupted, _, served] = ready.context("cannot wait for QEMU")?[..] else {
            bail!("nothing to wait for");
        };
        let tag = &options.tag;
        if (served || interrupted)
            && let Some(what) = server.denied().filter(|_| !told_denied)
        {
            told_denied = true;
            eprintln!("bootshare-host: warning: {tag}: {what}");
        }
        match status.take_failure() {
            Some(failure) if failure.fatal || (once && served) => {
                bail!("the server of {tag} failed: {}", failure.what);
            }
            // The next QEMU is served.
            Some(failure) => eprintln!("bootshare-host: warning: {tag}: {}", failure.what),
            None => {}
        }
        if interrupted || (once && served) {
            return Ok(());
        }
        if served {
            // It is not asked for.
            let _ = rustix::io::read(&status.served, &mut [0; 8]);
        }
    }
}
