//! The embedded server: a read-only virtio-fs device over vhost-user, in threads of this process.
//!
//! One server serves one share: a directory, or several layers, of which earlier ones cover later
//! ones. Requests that would modify something are answered with EROFS before they are decoded,
//! nothing outside the directories can be reached, and the server needs no privilege. The `vhost`
//! crate decodes QEMU's messages, fuse-backend-rs decodes and encodes FUSE; file data is read from
//! the page cache into the guest's memory by preadv(2).

mod connection;
mod device;
mod fault;
mod fs;
mod memory;
mod opcode;
mod pace;
mod pool;
mod queue;
mod service;
mod socket;
mod status;
mod trace;

use std::io::{PipeReader, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::PollFlags;
use virtio_queue::DescriptorChain;

pub use fault::{Fault, RULES};
pub use fs::{Cache, Owner, raise_open_files};
pub use service::MemoryRef;
pub use socket::Endpoint;
pub(crate) use socket::short_enough;
pub use trace::{Trace, print};

use crate::fd::{readable_by, ready};
use crate::interrupt::FORCED_GRACE;
use crate::output;
use crate::prepare::Prepare;
use fault::Injector;
use fs::Share;
use service::Service;
use status::Status;

/// The default number of threads that answer requests.
pub const DEFAULT_THREADS: usize = 2;

/// The largest number of threads.
pub const MAX_THREADS: usize = 256;

/// The most request queues of a share.
pub const MAX_REQUEST_QUEUES: u32 = 8;

/// How long a server may take to stop: no disk takes longer to answer a request.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What to serve, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The share's name in messages and traces.
    pub tag: String,
    /// The directories, at least one; earlier ones cover later ones.
    pub dirs: Vec<PathBuf>,
    /// Request queues that a machine may use, 1 to [`MAX_REQUEST_QUEUES`].
    pub request_queues: u32,
    /// Threads that answer requests of any queue in addition to each queue's own thread, at most
    /// [`MAX_THREADS`].
    pub threads: usize,
    /// How long the guest may cache names, attributes and content.
    pub cache: Cache,
    /// Whether the guest sees extended attributes.
    pub xattr: bool,
    /// Which owner of the files the guest sees.
    pub owner: Owner,
    /// Whether file systems mounted in the directories are announced to the guest as submounts.
    /// Linux's overlayfs refuses submounts in a lower layer, with EREMOTE.
    pub submounts: bool,
    /// How kernels are prepared for the firmware; `None` if they are not.
    pub prepare: Option<Prepare>,
    /// The process's limit of open files; `None` is the hard limit.
    pub open_files: Option<u64>,
    /// Faults that are injected for tests.
    pub fault: Option<Fault>,
    /// The trace in which requests and replies are recorded.
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
        Ok(self.service_of(self.share()?, self.trace.clone()))
    }

    fn service_of(&self, share: Share, trace: Option<Arc<Trace>>) -> Service {
        let injector = self.fault.clone().map(Injector::new);
        Service::new(self.tag.clone(), share, injector, trace)
    }

    /// Opens the directories.
    fn share(&self) -> Result<Share> {
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
        Ok(share)
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    service: Arc<Service>,
    status: Arc<Status>,
    /// Closed at the other end when the thread has finished.
    ended: PipeReader,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each QEMU that connects to `listener`, one at a time; further connections are refused
    /// meanwhile.
    ///
    /// # Errors
    /// A directory cannot be read, or threads cannot be started.
    pub fn start(options: &Options, listener: UnixListener) -> Result<Self> {
        Self::with(options.service()?, options, listener)
    }

    fn with(service: Service, options: &Options, listener: UnixListener) -> Result<Self> {
        let service = Arc::new(service);
        let status = Arc::new(Status::new()?);
        let (ended, end) = pipe().context("cannot make a pipe")?;
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

    /// Becomes readable when the server has a failure; it may continue nevertheless.
    pub fn failed(&self) -> BorrowedFd<'_> {
        self.status.failed()
    }

    /// The first failure.
    pub fn failure(&self) -> Option<String> {
        self.status.failure().map(|failure| failure.what)
    }

    /// The first file that a guest could not read because of the host's permissions, and the
    /// reason, on one line.
    pub fn denied(&self) -> Option<String> {
        self.service.denied()
    }

    /// The last request that was answered, and the last one that failed, on one line: operation, path
    /// in the share, and bytes or error.
    pub fn last_requests(&self) -> Option<String> {
        self.service.last_requests()
    }

    /// Stops the server, even with QEMU connected, and joins its threads. It waits for at most 10
    /// s, because a thread may hang in a read from a file system of the host; such a thread ends
    /// with the process.
    pub fn stop(&mut self) {
        self.stop_by(Instant::now() + STOP_LIMIT);
    }

    /// Asks the threads to end, and does not wait.
    pub(crate) fn begin_stop(&self) {
        self.status.stop();
    }

    /// Becomes readable when the threads have ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Like [`stop`](Self::stop), but waits until `deadline`.
    pub(crate) fn stop_by(&mut self, deadline: Instant) {
        self.begin_stop();
        let Some(thread) = self.thread.take() else {
            return;
        };
        if !readable_by(self.ended(), deadline).unwrap_or(false) {
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

/// Answers FUSE requests without a vhost-user device, for callers with queues of their own.
pub struct Handler(Service);

impl Handler {
    /// A handler of `options`. It starts no threads.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn new(options: &Options) -> Result<Self> {
        options.service().map(Self)
    }

    /// Answers a request immediately: an injected delay has no effect here. Returns how many bytes
    /// of its buffers were written; `None` if the request must not be returned to the driver.
    pub fn answer(&self, chain: &DescriptorChain<impl MemoryRef>) -> Option<u32> {
        let taken = self.0.take(chain);
        self.0.answer(chain, &taken, None).used
    }
}

/// Serves at `endpoint` until a signal arrives or, with `once`, until the first QEMU has
/// disconnected. With `trace`, requests and replies are recorded in that file.
///
/// # Errors
/// The socket cannot be created, a directory cannot be read, or the server failed.
pub fn run(options: &Options, trace: Option<&Path>, endpoint: &Endpoint, once: bool) -> Result<()> {
    // Until then signals have their default effect, and nothing was created: a directory's file system may
    // not answer.
    let share = options.share()?;
    let trace = trace.map(Trace::create).transpose()?.map(Arc::new);
    let service = options.service_of(share, trace);
    let interrupt = crate::interrupt::interrupted().context("cannot watch for signals")?;
    let (listener, _socket) = endpoint.listen()?;
    let mut server = Server::with(service, options, listener)?;
    output::note(format_args!("listening on {endpoint}"));
    if let Err(error) = socket::tell_manager() {
        output::note(format_args!(
            "warning: cannot tell the service manager that the server is ready: {error}: see \
             NOTIFY_SOCKET in sd_notify(3)"
        ));
    }
    let status = Arc::clone(&server.status);
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
            output::note(format_args!("warning: {tag}: {what}"));
        }
        match status.take_failure() {
            // With `once` there is no next QEMU, also if the end of the connection is noticed only later.
            Some(failure) if failure.fatal || once => {
                bail!("the server of {tag} failed: {}", failure.what);
            }
            // The server goes on with the next QEMU.
            Some(failure) => output::note(format_args!("warning: {tag}: {}", failure.what)),
            None => {}
        }
        if interrupted {
            server.stop_by(Instant::now() + FORCED_GRACE);
        }
        if interrupted || (once && served) {
            return Ok(());
        }
        if served {
            // Clear the event.
            let _ = rustix::io::read(&status.served, &mut [0; 8]);
        }
    }
}
