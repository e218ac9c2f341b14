//! What goes between us and the command: sockets that QEMU connects to the guest's ports.
//!
//! A virtio console (virtio 1.2, section 5.3) needs no agent and no network, and its driver is built
//! into distributions' kernels or is a module of theirs. Each stream has a port of its own, so one
//! that nobody reads stops no other, and an end of file is that port's.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::tcgetwinsize;
use signal_hook::consts::SIGWINCH;

use crate::board::Transport;
use crate::qemu::Machine;
use crate::run::{Report, socket};

/// The ports by their names. The init relies on `control` being the last.
const PORTS: [&str; 4] = ["stdin", "stdout", "stderr", "control"];

/// Ctrl-], which ends the machine when it is typed three times.
const ESCAPE: u8 = 0x1d;

/// What the run is told of by its threads.
pub(super) enum Event {
    /// QEMU has connected the control port.
    Connected,
    /// The guest says this.
    Line(String),
    /// The guest says no more.
    Silent,
    /// This has come of a stream and was written: 0 is standard output, 1 standard error.
    Written(usize, Vec<u8>),
    /// No more of a stream will be written.
    Closed(usize),
    /// The machine has ended.
    Ended(Result<Report>),
}

/// The way to the guest's init.
#[derive(Clone, Default)]
pub(super) struct Control(Arc<OnceLock<UnixStream>>);

impl Control {
    /// Tells the guest a line; one that is not connected is told nothing.
    pub(super) fn tell(&self, line: &str) {
        if let Some(mut stream) = self.0.get() {
            // The guest may have ended.
            let _ = stream.write_all(format!("{line}\n").as_bytes());
        }
    }

    fn tell_size(&self) {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            self.tell(&format!("size {} {}", size.ws_row, size.ws_col));
        }
    }
}

/// Gives the machine the ports, their sockets in `dir`, and starts what serves them.
pub(super) fn open(
    machine: &mut Machine,
    dir: &Path,
    terminal: bool,
    events: &Sender<Event>,
) -> Result<Control> {
    let device = match machine.board.transport() {
        Transport::Mmio => "virtio-serial-device",
        Transport::Pci => "virtio-serial-pci",
    };
    // Port 0 is a console's.
    let mut args = vec![
        "-device".into(),
        format!("{device},max_ports={}", PORTS.len() + 1),
    ];
    let mut listeners = Vec::new();
    for name in PORTS {
        let path = socket(dir, name)?;
        listeners.push(UnixListener::bind(&path).context("cannot listen for QEMU")?);
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
        let serve = move || {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            match port {
                0 => pass_on_input(stream, terminal, begun),
                1 => write_out(0, stream, io::stdout().as_fd(), &events),
                2 => write_out(1, stream, io::stderr().as_fd(), &events),
                _ => listen(stream, &control, terminal, &events, begin),
            }
        };
        let thread = thread::Builder::new().name(PORTS[port].into());
        thread.spawn(serve).context("cannot start a thread")?;
    }
    Ok(control)
}

/// A path as a part of a QEMU option, in which a comma is written twice.
fn doubled(path: PathBuf) -> Result<String> {
    let text = path.into_os_string().into_string().ok();
    let text = text.context("the directory for sockets is not UTF-8: point TMPDIR at another")?;
    Ok(text.replace(',', ",,"))
}

/// Passes our standard input on, and its end, once the command has `begun`: before, another machine
/// may need it, and with the tree's own init nobody reads it here.
fn pass_on_input(mut guest: UnixStream, terminal: bool, begun: Option<Receiver<()>>) {
    if begun.is_none_or(|begun| begun.recv().is_err()) {
        return;
    }
    let mut buffer = vec![0; 64 << 10];
    let mut escapes = 0;
    loop {
        // Unbuffered, and none is none: a standard input may be closed.
        let read = rustix::io::retry_on_intr(|| rustix::io::read(io::stdin(), &mut buffer[..]));
        let bytes = &buffer[..read.unwrap_or(0)];
        for &byte in bytes.iter().filter(|_| terminal) {
            escapes = if byte == ESCAPE { escapes + 1 } else { 0 };
            if escapes == 3 {
                // As if somebody else had ended us.
                let _ = kill_process(getpid(), Signal::TERM);
            }
        }
        if bytes.is_empty() || guest.write_all(bytes).is_err() {
            break;
        }
    }
    // Only this direction: what is on its way would be lost if both were closed at once.
    let _ = guest.shutdown(Shutdown::Write);
    // Until QEMU ends, for the same reason.
    let _ = guest.read(&mut [0]);
}

/// Writes what comes to one of our streams.
fn write_out(index: usize, mut guest: UnixStream, ours: BorrowedFd<'_>, events: &Sender<Event>) {
    let mut buffer = vec![0; 64 << 10];
    // Without a buffer of the library's: what has come is seen at once.
    if let Ok(ours) = ours.try_clone_to_owned() {
        let mut ours = File::from(ours);
        while let Ok(count @ 1..) = guest.read(&mut buffer) {
            if ours.write_all(&buffer[..count]).is_err() {
                // The guest's command is told so by SIGPIPE.
                break;
            }
            let _ = events.send(Event::Written(index, buffer[..count].to_vec()));
        }
    }
    let _ = guest.shutdown(Shutdown::Both);
    let _ = events.send(Event::Closed(index));
}

/// Hears what the guest says, and passes on that the command has begun.
fn listen(
    guest: UnixStream,
    control: &Control,
    terminal: bool,
    events: &Sender<Event>,
    begin: Option<Sender<()>>,
) {
    if let Ok(copy) = guest.try_clone() {
        let _ = control.0.set(copy);
    }
    let _ = events.send(Event::Connected);
    if terminal {
        control.tell_size();
        let control = control.clone();
        // A terminal whose size is not followed is one all the same.
        let _ = thread::Builder::new()
            .name("size".into())
            .spawn(move || follow_size(&control));
    }
    for line in BufReader::new(guest).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(begin) = begin.as_ref().filter(|_| line == "stage command") {
            // Nobody waits where the input's port is closed.
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
