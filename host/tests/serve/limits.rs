//! Tests of the limits on what a guest can use on the host. The server is a process of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vhost::VhostBackend;

use crate::rig::{AVAILABLE, Guest, LOOKUP, MEMORY, NEVER, OPEN, RING, words};

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const RELEASE: u32 = 18;

/// A `serve` of a directory, started through a shell.
struct Process {
    dir: TempDir,
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Process {
    /// Runs the shell code `before`, then `serve` with `options` after the constant ones.
    fn start(before: &str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        let program = env!("CARGO_BIN_EXE_bootshare-host");
        let mut child = Command::new("sh")
            .args([
                "-c",
                &format!("{before} exec \"$0\" \"$@\""),
                program,
                "serve",
            ])
            .arg(dir.path().join("share"))
            .args(options)
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .env("SOCKET", dir.path().join("socket"))
            .current_dir(&dir)
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { dir, child, stderr }
    }

    /// A server that listens on a socket.
    fn listening(before: &str, options: &[&str]) -> Self {
        let mut process = Self::start(before, &[&["--socket", "socket"], options].concat());
        let line = process.line();
        assert_eq!(line, "bootshare-host: listening on socket");
        process
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    fn guest(&self) -> Guest {
        let mut guest = Guest::connect(&self.dir.path().join("socket"), 1);
        guest.init();
        guest
    }

    /// The number of files of the share that the server has open.
    fn open_files(&self) -> usize {
        let share = fs::canonicalize(self.share()).unwrap();
        let fds = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let targets = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        targets
            .filter(|target| target.starts_with(&share) && *target != share)
            .count()
    }

    /// Ends the server with SIGTERM. Returns its status and the rest of its output.
    fn end(mut self) -> (Option<i32>, String) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (status.code(), rest)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lookup(guest: &mut Guest, name: &str) -> Result<u64, i32> {
    let entry = guest.ask(LOOKUP, 1, &[name.as_bytes(), b"\0"].concat())?;
    Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
}

fn open(guest: &mut Guest, node: u64) -> Result<u64, i32> {
    let reply = guest.ask(OPEN, node, &[0; 8])?;
    Ok(u64::from_le_bytes(reply[..8].try_into().unwrap()))
}

fn write_many(dir: &Path, count: usize) {
    for number in 0..count {
        fs::write(dir.join(number.to_string()), "text").unwrap();
    }
}

/// Starts the program with 15 files that its caller has left open, and a limit of 80. Those that it inherits from
/// other tests are closed.
const FEW_LEFT: &str = "exec bash -c 'for fd in {3..79}; do eval \"exec $fd<&-\"; done; \
                        for fd in {10..24}; do eval \"exec $fd<.\"; done; ulimit -n 80; \
                        exec \"$0\" \"$@\"' \"$0\" \"$@\";";

#[test]
fn a_guest_can_know_more_files_than_the_server_may_open() {
    let mut process = Process::listening(FEW_LEFT, &["--rlimit-nofile", "80"]);
    write_many(&process.share(), 300);
    let mut guest = process.guest();
    let nodes: Vec<_> = (0..300)
        .map(|name| lookup(&mut guest, &name.to_string()).unwrap())
        .collect();
    assert!(process.open_files() < 64);
    // All nodes are valid, and a lookup by name finds the same nodes.
    for (name, &node) in nodes.iter().enumerate() {
        assert!(guest.ask(GETATTR, node, &[0; 16]).is_ok(), "{name}");
        assert_eq!(lookup(&mut guest, &name.to_string()), Ok(node), "{name}");
    }
    // A node whose file was renamed, or replaced by another file, is stale.
    let path = |name: usize| process.share().join(name.to_string());
    fs::rename(path(0), path(1000)).unwrap();
    fs::rename(path(2), path(1)).unwrap();
    for node in &nodes[..3] {
        assert_eq!(guest.ask(GETATTR, *node, &[0; 16]), Err(libc::ESTALE));
    }
    assert_eq!(
        lookup(&mut guest, "1000"),
        Ok(nodes[0]),
        "it is there again"
    );
    assert!(guest.ask(GETATTR, nodes[0], &[0; 16]).is_ok());

    // A new file with the size and time of the removed one, and also with its inode number unless the file system
    // does not use numbers again (tmpfs, btrfs).
    let old = path(5);
    let ino = fs::metadata(&old).unwrap().ino();
    let modified = fs::metadata(&old).unwrap().modified().unwrap();
    for node in &nodes[100..] {
        guest.ask(GETATTR, *node, &[0; 16]).unwrap();
    }
    fs::remove_file(&old).unwrap();
    for attempt in 0..1000 {
        let new = process.share().join(format!("new-{attempt}"));
        fs::write(&new, "TEXT").unwrap();
        if fs::metadata(&new).unwrap().ino() == ino || attempt == 999 {
            fs::rename(new, &old).unwrap();
            break;
        }
    }
    fs::File::options()
        .write(true)
        .open(&old)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert_eq!(guest.ask(GETATTR, nodes[5], &[0; 16]), Err(libc::ESTALE));
    assert_ne!(lookup(&mut guest, "5"), Ok(nodes[5]));

    // Open files stay open. At the limit, opening fails and a warning is printed.
    let mut handles = Vec::new();
    let error = loop {
        match open(&mut guest, nodes[100 + handles.len()]) {
            Ok(handle) => handles.push(handle),
            Err(error) => break error,
        }
    };
    assert_eq!(error, libc::ENFILE);
    assert!(
        (16..64).contains(&handles.len()),
        "{} files open",
        handles.len()
    );
    let line = process.line();
    assert!(
        line.contains("ulimit -Hn") && line.contains("--rlimit-nofile"),
        "{line}"
    );
    let release = words(&[handles[0] as u32, 0, 0, 0, 0, 0]);
    guest.ask(RELEASE, nodes[100], &release).unwrap();
    assert!(open(&mut guest, nodes[299]).is_ok());
    // When the connection ends, its files are closed.
    drop(guest);
    let deadline = Instant::now() + Duration::from_secs(60);
    while process.open_files() > 0 {
        assert!(
            Instant::now() < deadline,
            "{} files open",
            process.open_files()
        );
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(process.end(), (Some(0), String::new()));
}

#[test]
fn the_limit_of_open_files_is_raised() {
    let process = Process::listening("ulimit -Sn 100;", &[]);
    write_many(&process.share(), 2000);
    let mut guest = process.guest();
    for name in 0..2000 {
        let node = lookup(&mut guest, &name.to_string()).unwrap();
        open(&mut guest, node).unwrap_or_else(|error| panic!("{name} files, then {error}"));
    }
    assert_eq!(process.open_files(), 2000, "one descriptor a file");
    // After INIT, a guest has no open files and no nodes.
    guest.init();
    assert_eq!(process.open_files(), 0);
    assert_eq!(guest.ask(GETATTR, 2, &[0; 16]), Err(libc::ESTALE));
    // FORGET closes the descriptor of a node without open handles.
    let node = lookup(&mut guest, "7").unwrap();
    assert_eq!(process.open_files(), 1);
    guest.send(FORGET, node, &1_u64.to_le_bytes(), 16);
    assert!(guest.answer().1.is_empty());
    assert_eq!(process.open_files(), 0);
    assert_eq!(process.end(), (Some(0), String::new()));
}

#[test]
fn endless_requests_of_a_guest_use_no_more_memory() {
    let process = Process::listening("", &["--fault", "delay=1ms@LOOKUP"]);
    fs::write(process.share().join("file"), "").unwrap();
    let mut guest = process.guest();
    let path = format!("/proc/{}/statm", process.child.id());
    let resident = || {
        let all = fs::read_to_string(&path).unwrap();
        // Anonymous memory: resident pages minus shared ones.
        let fields: Vec<u64> = all
            .split(' ')
            .map(|field| field.trim().parse().unwrap())
            .collect();
        (fields[1] - fields[2]) * 4096
    };
    for _ in 0..RING / 2 {
        guest.send(LOOKUP, 1, b"file\0", 4096);
    }
    let before = resident();
    let end = Instant::now() + Duration::from_secs(1);
    // The guest adds requests as fast as they are taken, and ignores the answers.
    while Instant::now() < end {
        let ahead = guest.sent.wrapping_sub(guest.used_index());
        guest.sent = guest.sent.wrapping_add((RING - 8).saturating_sub(ahead));
        guest.write(AVAILABLE + 2, &guest.sent.to_le_bytes());
        guest.kick.write(1).unwrap();
        thread::yield_now();
    }
    guest.frontend.get_vring_base(1).unwrap();
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes");
}

#[test]
fn a_ring_outside_of_memory_does_not_make_the_server_spin() {
    let process = Process::listening("", &[]);
    let mut guest = Guest::connect(&process.dir.path().join("socket"), 1);
    guest.stop();
    // The index promises a request, but its ring entry is after the end of memory.
    let available = MEMORY as u64 - 4;
    guest.write(available, &[0, 0, 1, 0]);
    guest.configure_at(available);
    guest.kick.write(1).unwrap();
    guest.frontend.get_features().unwrap();
    // In each sample the queue's thread sleeps.
    let state = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.child.id())).unwrap();
        let mut stats = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("stat")));
        let stat = stats.find_map(|stat| stat.ok().filter(|stat| stat.contains("(share-q1) ")));
        // A new thread sets its name itself, a moment after its start.
        stat?.split(") ").nth(1).unwrap().chars().next()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut sleeping = 0;
    while sleeping < 20 {
        assert!(Instant::now() < deadline, "the thread never sleeps");
        sleeping = if state() == Some('S') {
            sleeping + 1
        } else {
            0
        };
        thread::sleep(Duration::from_millis(5));
    }
    guest.reset();
    guest.init();
}

#[test]
fn a_failed_connection_is_reported_and_the_next_is_served() {
    let mut process = Process::listening("", &[]);
    fs::write(process.share().join("file"), "").unwrap();
    let guest = Guest::connect(&process.dir.path().join("socket"), 1);
    guest.frontend.set_vring_num(7, RING).unwrap();
    let line = process.line();
    assert!(
        line.contains("warning: bootshare: QEMU asked for queue 7"),
        "{line}"
    );
    let guest = Guest::connect_when_free(&process.dir.path().join("socket"));
    // Another failed connection is reported at once.
    let second = Guest::try_connect(&process.dir.path().join("socket"));
    assert!(second.is_none());
    let line = process.line();
    assert!(line.contains("in use"), "{line}");
    drop(guest);
    assert_eq!(process.end(), (Some(0), String::new()));
}

#[test]
fn a_server_whose_messages_cannot_be_written_goes_on() {
    let process = Process::start("exec 2>/dev/full;", &["--socket", "socket"]);
    let socket = process.dir.path().join("socket");
    let deadline = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "it does not listen");
        thread::sleep(Duration::from_millis(10));
    }
    let mut guest = Guest::connect_when_free(&socket);
    guest.init();
    // It is refused, with a message.
    let mut second = UnixStream::connect(&socket).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    guest.reset();
    guest.init();
    drop(guest);
    Guest::connect_when_free(&socket).init();
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn a_failure_of_the_server_ends_it_and_with_once_also_one_of_the_connection() {
    for (options, part) in [
        (&["--fault", "panic=LOOKUP:1"][..], "as the fault asks"),
        (&["--once"], "QEMU asked for queue 7"),
    ] {
        let mut process = Process::listening("", options);
        let mut guest = process.guest();
        if options == ["--once"] {
            guest.frontend.set_vring_num(7, RING).unwrap();
        } else {
            assert_eq!(lookup(&mut guest, "file"), Err(libc::EIO));
        }
        assert_eq!(process.child.wait().unwrap().code(), Some(123));
        let mut said = String::new();
        process.stderr.read_to_string(&mut said).unwrap();
        let error = said.lines().find(|line| line.contains("error: "));
        assert!(error.is_some_and(|error| error.contains(part)), "{said}");
    }
}

#[test]
fn the_threads_of_a_connection_end_with_it() {
    let process = Process::listening("", &[]);
    // One for QEMU and one for each queue: share-qemu, share-q0, share-q1.
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.child.id())).unwrap();
        let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
        names
            .filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("share-q")))
            .count()
    };
    // A new thread sets its name itself, a moment after its start.
    let wait_for = |count| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while threads() != count {
            assert!(Instant::now() < deadline, "{} threads", threads());
            thread::sleep(Duration::from_millis(10));
        }
    };
    let guest = process.guest();
    wait_for(3);
    drop(guest);
    wait_for(0);
}

#[test]
fn with_once_a_server_ends_with_its_first_qemu() {
    let mut process = Process::listening("", &["--once"]);
    drop(process.guest());
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
    assert!(!process.dir.path().join("socket").exists());
}

#[test]
fn a_file_that_may_not_be_read_is_named_once() {
    // Root may read every file without these.
    let before = if rustix::process::geteuid().is_root() {
        "exec setpriv --bounding-set=-dac_override,-dac_read_search \"$0\" \"$@\";"
    } else {
        ""
    };
    let named = "the guest could not read";
    // A process that another test starts has a copy of the last guest's connection for a moment.
    let ask = |process: &Process| {
        let mut guest = Guest::connect_when_free(&process.dir.path().join("socket"));
        guest.init();
        let node = lookup(&mut guest, "secret").unwrap();
        assert_eq!(open(&mut guest, node), Err(libc::EACCES));
        guest
    };
    let refused = |guests: usize| {
        let mut process = Process::listening(before, &[]);
        let secret = process.share().join("secret");
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o0)).unwrap();
        let mut lines = Vec::new();
        for _ in 1..guests {
            drop(ask(&process));
            if lines.is_empty() {
                lines.push(process.line());
            }
        }
        // With this one the server is ended.
        let _guest = ask(&process);
        let (status, rest) = process.end();
        assert_eq!(status, Some(0), "{rest}");
        lines.extend(rest.lines().map(str::to_owned));
        lines.retain(|line| line.contains(named));
        lines
    };
    for guests in [1, 3] {
        let lines = refused(guests);
        assert_eq!(lines.len(), 1, "{guests}: {lines:?}");
        assert!(lines[0].contains("secret"), "{lines:?}");
    }
}

#[test]
fn a_socket_has_the_permissions_that_were_asked_for() {
    for (mode, wanted) in [("660", 0o660), ("0600", 0o600)] {
        let process = Process::listening("umask 0;", &["--socket-mode", mode]);
        let found = fs::metadata(process.dir.path().join("socket")).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, wanted);
    }
    let mut process = Process::start("", &["--socket", "socket", "--socket-mode", "999"]);
    assert_eq!(process.child.wait().unwrap().code(), Some(123));
}

#[test]
fn a_socket_may_be_inherited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // The shell passes the socket to the server.
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let number = listener.as_raw_fd().to_string();
    let mut process = Process::start("", &["--fd", &number]);
    drop(listener);
    assert_eq!(
        process.line(),
        format!("bootshare-host: listening on descriptor {number}")
    );
    fs::write(process.share().join("file"), "").unwrap();
    let mut guest = Guest::connect(&path, 1);
    guest.init();
    assert!(lookup(&mut guest, "file").is_ok());
    for (number, part) in [("1", "standard stream"), ("999", "is no inherited socket")] {
        let mut process = Process::start("", &["--fd", number]);
        let line = process.line();
        assert!(line.contains(part), "{line}");
        assert_eq!(process.child.wait().unwrap().code(), Some(123));
    }
}

#[test]
fn the_service_manager_is_notified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify").display().to_string();
    // A file, and an abstract address, which begins with `@` (sd_notify(3)).
    for (name, address) in [
        (path.clone(), SocketAddr::from_pathname(&path)),
        (format!("@{path}"), SocketAddr::from_abstract_name(&path)),
    ] {
        let manager = UnixDatagram::bind_addr(&address.unwrap()).unwrap();
        let _process = Process::listening(&format!("NOTIFY_SOCKET={name} "), &[]);
        manager
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut message = [0; 100];
        let size = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..size], b"READY=1");
    }
}

/// flock(1) is often given a directory, to let only one of several jobs run.
#[test]
fn a_lock_of_the_sockets_directory_delays_the_start_for_a_moment_only() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("share")).unwrap();
    let mut locked = Command::new("timeout");
    locked.args(["--kill-after=1", "6", "flock", "--no-fork", "."]);
    locked.args([
        env!("CARGO_BIN_EXE_bootshare-host"),
        "serve",
        "share",
        "--socket",
        "socket",
    ]);
    let output = locked.current_dir(&dir).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "bootshare-host: listening on socket\n");
}

#[test]
fn the_socket_of_a_running_server_is_not_replaced() {
    let process = Process::listening("", &[]);
    // The timeout is for the case that the second server starts nevertheless.
    let mut second = Command::new("timeout");
    let program = env!("CARGO_BIN_EXE_bootshare-host");
    let second = second
        .args(["10", program, "serve", "share", "--socket", "socket"])
        .current_dir(&process.dir);
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(123));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("a server listens on socket already"),
        "{error}"
    );
    assert!(process.dir.path().join("socket").exists());
    drop(process.guest());
}

/// A thread that waits for a file system of the host does not delay the end of `serve`.
#[test]
fn a_file_that_does_not_answer_does_not_delay_the_end() {
    assert!(fs::exists("/dev/fuse").unwrap(), "no /dev/fuse");
    let map = match rustix::process::geteuid().is_root() {
        true => "",
        false => "--map-root-user",
    };
    // Nobody answers for the file system that is mounted in the share.
    let before = format!(
        "mkdir share/hangs; exec unshare {map} --mount sh -c 'exec 3<>/dev/fuse; \
         mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none share/hangs || exit 99; \
         exec \"$0\" \"$@\"' \"$0\" \"$@\";"
    );
    let process = Process::listening(&before, &[]);
    let mut guest = process.guest();
    guest.send(LOOKUP, 1, b"hangs\0", 8192);
    assert!(!guest.is_answered(NEVER.try_into().unwrap()));
    let since = Instant::now();
    let (status, rest) = process.end();
    let time = since.elapsed();
    assert_eq!((status, &*rest), (Some(0), ""));
    // It does not wait the ten seconds that a thread has to end.
    assert!(time < Duration::from_secs(9), "{time:?}");
}
