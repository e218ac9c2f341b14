//! The streams between this process and the command: sockets that QEMU connects to the guest's
//! virtio console ports.
//!
//! A virtio console (virtio 1.2, section 5.3) needs no agent and no network, and distributions'
//! kernels have its driver, built in or as a module. Each stream has a port of its own: an unread
//! stream does not block the others, and each has its own end of file.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::tcgetwinsize;
use signal_hook::consts::SIGWINCH;

use crate::board::Transport;
use crate::console::wait_for_input;
use crate::explain::Explain;
use crate::fd::write_all;
use crate::qemu::Machine;
use crate::qmp::LISTEN;
use crate::run::{Report, socket};

/// The names of the ports. The init relies on `control` being the last.
const PORTS: [&str; 4] = ["stdin", "stdout", "stderr", "control"];

/// Ctrl-], which ends the machine when it is typed three times.
const ESCAPE: u8 = 0x1d;

/// Events that the threads report to the run.
pub(super) enum Event {
    /// QEMU has connected the control port.
    Connected,
    /// The guest has sent this line.
    Line(String),
    /// The guest has closed the control port.
    Silent,
    /// So many bytes of a stream were received: stream 0 is standard output, 1 standard error.
    Received(usize, usize),
    /// Data of a stream was written.
    Written(usize, Vec<u8>),
    /// A stream has ended, or can no longer be written: then, why.
    Closed(usize, Option<io::Error>),
    /// The machine has ended.
    Ended(Result<Report>),
}

/// The connection to the guest's init.
#[derive(Clone, Default)]
pub(super) struct Control(Arc<OnceLock<UnixStream>>);

impl Control {
    /// Sends the guest a line, if it is connected.
    pub(super) fn tell(&self, line: &str) {
        if let Some(mut stream) = self.0.get() {
            // The guest may have ended already.
            let _ = stream.write_all(format!("{line}\n").as_bytes());
        }
    }

    fn tell_size(&self) {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            self.tell(&format!("size {} {}", size.ws_row, size.ws_col));
        }
    }
}

/// Adds the ports to the machine, with their sockets in `dir`, and starts the threads that serve
/// them. If the command has a terminal, `begun_on_terminal` is set when the command begins, and
/// SIGCONT sent to this process (see [`OwnTerminal`](crate::qemu::OwnTerminal)).
pub(super) fn open(
    machine: &mut Machine,
    dir: &Path,
    begun_on_terminal: Option<Arc<AtomicBool>>,
    events: &Sender<Event>,
) -> Result<Control> {
    let terminal = begun_on_terminal.is_some();
    let device = match machine.board.transport() {
        Transport::Mmio => "virtio-serial-device",
        Transport::Pci => "virtio-serial-pci",
    };
    // Port 0 is reserved for a console.
    let mut args = vec![
        "-device".into(),
        format!("{device},max_ports={}", PORTS.len() + 1),
    ];
    let mut listeners = Vec::new();
    for name in PORTS {
        let path = socket(dir, name)?;
        listeners.push(UnixListener::bind(&path).explain("cannot listen for QEMU", LISTEN)?);
        args.extend([
            "-chardev".into(),
            format!("socket,id=run-{name},path={}", doubled(path)?),
            "-device".into(),
            format!("virtserialport,chardev=run-{name},name={name}"),
        ]);
    }
    machine.qemu_args.extend(args.into_iter().map(Into::into));

    let control = Control::default();
    let (begin, begun) = mpsc::channel();
    let (mut begin, mut begun) = (Some(begin), Some(begun));
    for (port, listener) in listeners.into_iter().enumerate() {
        let (control, events) = (control.clone(), events.clone());
        let begun = begun.take_if(|_| port == 0);
        let begin = begin.take_if(|_| port + 1 == PORTS.len());
        let begun_on_terminal = begun_on_terminal.clone();
        let serve = move || {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            match port {
                0 => pass_on_input(stream, terminal, begun),
                1 => write_out(0, stream, stdout(), &events),
                2 => write_out(1, stream, stderr(), &events),
                _ => listen(stream, &control, begun_on_terminal, &events, begin),
            }
        };
        let thread = thread::Builder::new().name(PORTS[port].into());
        thread.spawn(serve).context("cannot start a thread")?;
    }
    Ok(control)
}

/// A path as part of a QEMU option; commas are doubled.
fn doubled(path: PathBuf) -> Result<String> {
    let text = path.into_os_string().into_string().ok();
    let text = text.context("the directory for sockets is not UTF-8: point TMPDIR at another")?;
    Ok(text.replace(',', ",,"))
}

/// Forwards our standard input and its end once the command has `begun`. It is not read before: a
/// second machine may need it, and with the tree's own init it is not read here at all.
fn pass_on_input(mut guest: UnixStream, terminal: bool, begun: Option<Receiver<()>>) {
    if begun.is_none_or(|begun| begun.recv().is_err()) {
        return;
    }
    let mut buffer = vec![0; 64 << 10];
    let mut escapes = 0;
    loop {
        // Unbuffered. A closed standard input counts as ended.
        let bytes = match wait_for_input().map(|()| rustix::io::read(stdin(), &mut buffer[..])) {
            Ok(Ok(count)) => &buffer[..count],
            // Another process that shares the descriptor has set O_NONBLOCK, and was faster.
            Ok(Err(Errno::AGAIN | Errno::INTR)) => continue,
            Ok(Err(_)) | Err(_) => &[],
        };
        for &byte in bytes.iter().filter(|_| terminal) {
            escapes = if byte == ESCAPE { escapes + 1 } else { 0 };
            if escapes == 3 {
                // The effect is that of a signal from another process.
                let _ = kill_process(getpid(), Signal::TERM);
            }
        }
        if bytes.is_empty() || guest.write_all(bytes).is_err() {
            break;
        }
    }
    // Close this direction only: closing both at once would lose data in flight.
    let _ = guest.shutdown(Shutdown::Write);
    // Keep the socket until QEMU ends, for the same reason.
    let _ = guest.read(&mut [0]);
}

/// Writes a port's data to one of our standard streams.
fn write_out(index: usize, mut guest: UnixStream, ours: BorrowedFd<'_>, events: &Sender<Event>) {
    let mut buffer = vec![0; 64 << 10];
    // Without the library's buffer, so that output is visible at once.
    let mut written = Ok(());
    while let Ok(count @ 1..) = guest.read(&mut buffer) {
        let _ = events.send(Event::Received(index, count));
        written = write_all(ours, &buffer[..count], drop);
        if written.is_err() {
            // Closing the port sends SIGPIPE to the guest's command.
            break;
        }
        let _ = events.send(Event::Written(index, buffer[..count].to_vec()));
    }
    let _ = guest.shutdown(Shutdown::Both);
    let _ = events.send(Event::Closed(index, written.err()));
}

/// Reads the guest's lines, and reports when the command has begun.
fn listen(
    guest: UnixStream,
    control: &Control,
    begun_on_terminal: Option<Arc<AtomicBool>>,
    events: &Sender<Event>,
    begin: Option<Sender<()>>,
) {
    if let Ok(copy) = guest.try_clone() {
        let _ = control.0.set(copy);
    }
    let _ = events.send(Event::Connected);
    if begun_on_terminal.is_some() {
        control.tell_size();
        let control = control.clone();
        // Without notice of size changes the terminal still works.
        let _ = thread::Builder::new()
            .name("size".into())
            .spawn(move || follow_size(&control));
    }
    for line in BufReader::new(guest).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(begin) = begin.as_ref().filter(|_| line == "stage command") {
            if let Some(begun) = &begun_on_terminal {
                begun.store(true, Ordering::Relaxed);
                let _ = kill_process(getpid(), Signal::CONT);
            }
            // If the input's thread has ended, nobody waits for this.
            let _ = begin.send(());
        }
        let _ = events.send(Event::Line(line));
    }
    let _ = events.send(Event::Silent);
}

fn follow_size(control: &Control) {
    let Ok((mut changes, write)) = UnixStream::pair() else {
        return;
    };
    if signal_hook::low_level::pipe::register(SIGWINCH, write).is_err() {
        return;
    }
    while let Ok(1..) = changes.read(&mut [0; 16]) {
        control.tell_size();
    }
}
