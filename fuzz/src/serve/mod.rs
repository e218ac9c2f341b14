//! The host's server with a hostile front end: QEMU's side of the vhost-user socket, the rings, and the FUSE
//! requests in them.
//!
//! An input is one connection: its messages, writes to the guest's memory, and how it ends. Zeros mean the
//! usual values, so an input of zeros mounts the share. After each connection, the server must have as many
//! threads and open descriptors as before, and must serve the next connection.

mod frontend;
mod session;

use crate::source::Source;
use bootshare_host::serve::{Options, Server};
use frontend::Frontend;
use session::Session;
use std::{
    cell::RefCell,
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{MetadataExt, symlink},
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A time limit for the server, which only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(20);

/// The number of connections after which the process's memory is compared.
const PERIOD: u64 = 20_000;

/// How much the process may grow after the first [`PERIOD`]. The fuzzer itself needs memory for the inputs that
/// it finds.
const GROWTH: u64 = 128 << 20;

thread_local! {
    /// Dropped when the thread ends.
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Connects to a server that serves all inputs, and does what the input says.
pub fn serve(input: &[u8]) {
    WORLD.with_borrow_mut(|world| {
        world.get_or_insert_with(World::new).connection(input);
    });
}

/// A share and its server.
struct World {
    server: Server,
    address: SocketAddr,
    /// The open descriptors without a connection.
    before: Vec<String>,
    counts: Option<Counts>,
    connections: u64,
    /// The resident memory after the first [`PERIOD`], in bytes.
    memory: u64,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory is made");
        let [upper, lower] = ["upper", "lower"].map(|name| dir.path().join(name));
        fill(&upper, &lower).expect("the share is filled");
        let name = dir.path().as_os_str().as_encoded_bytes();
        let address = SocketAddr::from_abstract_name(name).expect("a path is a name");
        let listener = UnixListener::bind_addr(&address).expect("the name is new");
        let mut options = Options::new("fuzz", vec![upper, lower]);
        options.xattr = true;
        let server = Server::start(&options, listener).expect("the server starts");
        let mut world = Self {
            server,
            address,
            before: Vec::new(),
            counts: None,
            connections: 0,
            memory: 0,
            dir,
        };
        // The first connection causes allocations that the process keeps.
        world.run(&[]);
        world.wait("the threads of a connection end", |world| {
            world.threads() == 0
        });
        // The thread that accepts connections closes a connection after its threads have ended.
        thread::sleep(Duration::from_secs(1));
        world.before = world.descriptors();
        world.counts = Counts::now();
        world
    }

    fn connection(&mut self, input: &[u8]) {
        self.run(input);
        self.wait("threads and descriptors are as before", |world| {
            (world.counts.is_some() && Counts::now() == world.counts)
                || world.threads() == 0 && world.descriptors() == world.before
        });
        // Only a connection may fail, through a fault of the front end.
        if let Some(failure) = self.server.failure() {
            let harmless = ["an invalid message", "asked for queue", "was cut short"];
            assert!(
                harmless.iter().any(|part| failure.contains(part)),
                "the server failed: {failure}"
            );
        }
        self.connections += 1;
        // In tests, other threads also allocate memory.
        if cfg!(fuzzing) && self.connections.is_multiple_of(PERIOD) {
            let now = memory();
            let before = *match self.memory {
                0 => &now,
                ref memory => memory,
            };
            self.memory = before;
            eprintln!(
                "serve: {} connections, {} descriptors, {} MiB, first {} MiB",
                self.connections,
                self.before.len(),
                now >> 20,
                before >> 20
            );
            assert!(now < before + GROWTH, "the memory grows");
        }
    }

    fn run(&self, input: &[u8]) {
        let mut source = Source::new(input);
        let frontend = Frontend::connect(&self.address, Duration::from_millis(2));
        let session = Session::new(frontend, &mut source);
        let session = session.unwrap_or_else(|| {
            panic!("a connection is not served: {:?}", self.server.failure());
        });
        session.run(&mut source);
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < LIMIT,
                "never: {what}: {} threads, descriptors {:?}, before {:?}",
                self.threads(),
                self.descriptors(),
                self.before
            );
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// The number of threads that serve a connection.
    fn threads(&self) -> usize {
        let tasks = fs::read_dir("/proc/self/task").expect("proc is mounted");
        let names = tasks.flatten().map(|task| {
            // The thread may have ended meanwhile.
            fs::read(task.path().join("comm")).unwrap_or_default()
        });
        names.filter(|name| name.starts_with(b"share-q")).count()
    }

    /// The descriptors that a connection could leave open, by what they refer to. Other tests in the process
    /// open files of their own.
    fn descriptors(&self) -> Vec<String> {
        let open = fs::read_dir("/proc/self/fd").expect("proc is mounted");
        let mut names: Vec<_> = open
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .filter(|path| {
                let text = path.to_string_lossy();
                let kinds = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/"];
                kinds.iter().any(|kind| text.starts_with(kind)) || path.starts_with(self.dir.path())
            })
            .map(|path| path.display().to_string())
            .collect();
        names.sort();
        names
    }
}

/// The numbers of the process's threads and descriptors. This is cheaper than [`World::threads`] and
/// [`World::descriptors`], and can be used if the process does nothing else.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    threads: u64,
    descriptors: u64,
}

impl Counts {
    /// `None` before Linux 6.2, whose directory of descriptors has no size.
    fn now() -> Option<Self> {
        let [tasks, fds] = ["task", "fd"]
            .map(|name| fs::metadata(format!("/proc/self/{name}")).expect("proc is mounted"));
        (fds.len() > 0).then(|| Self {
            // Each thread is a directory.
            threads: tasks.nlink(),
            descriptors: fds.len(),
        })
    }
}

/// Fills two layers with files of all kinds that the server treats differently.
fn fill(upper: &Path, lower: &Path) -> std::io::Result<()> {
    for dir in [upper, lower] {
        fs::create_dir_all(dir.join("dir/deep"))?;
    }
    fs::write(upper.join("file"), vec![b'f'; 100_000])?;
    fs::write(lower.join("file"), "covered")?;
    fs::write(upper.join("empty"), "")?;
    fs::hard_link(upper.join("file"), upper.join("same"))?;
    symlink("file", upper.join("link"))?;
    fs::write(lower.join("dir/lower"), "lower")?;
    for number in 0..40 {
        let name = format!("dir/deep/{number:0100}");
        fs::write(upper.join(name), number.to_string())?;
    }
    let hole = fs::File::create(lower.join("hole"))?;
    hole.set_len(1 << 30)
}

/// The process's resident memory in bytes.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.and_then(|number| number.parse::<u64>().ok());
    number.expect("the kernel says it in KiB") << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Detects mistakes in the front end, after which the server would answer nothing and the fuzzer would test
    /// nothing.
    #[test]
    fn an_input_of_zeros_is_answered() {
        let world = World::new();
        // Without VIRTIO_RING_F_EVENT_IDX, so that each answer is signalled.
        let mut input = [0; 200];
        input[0] = 2;
        let mut source = Source::new(&input);
        let frontend = Frontend::connect(&world.address, LIMIT);
        let session = Session::new(frontend, &mut source).expect("it is served");
        let answers = session.run(&mut source);
        assert!(answers > 10, "{answers}");
    }
}
