//! The ports to the host: files below `/dev`, found by their names.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

/// How long the ports may take to appear.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the kernel lists the ports (Documentation/ABI/testing/sysfs-devices has no entry for them).
const LIST: &str = "/sys/class/virtio-ports";

/// The ports, open and in nonblocking mode.
pub struct Ports {
    pub control: File,
    /// The command's standard input, output and error output; `None` once they have ended.
    pub streams: Option<[OwnedFd; 3]>,
    /// An incomplete line from `control`.
    rest: Vec<u8>,
}

impl Ports {
    pub fn open() -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        // `control` is the last port: when it is connected, all are.
        let control = find("control", deadline)?;
        while flags(&control)?.contains(PollFlags::HUP) {
            wait(deadline, "connect")?;
        }
        let streams = ["stdin", "stdout", "stderr"].map(|name| find(name, deadline));
        let [stdin, stdout, stderr] = streams;
        Ok(Self {
            control,
            streams: Some([stdin?.into(), stdout?.into(), stderr?.into()]),
            rest: Vec::new(),
        })
    }

    /// Sends the host a line, if it is still connected.
    pub fn tell(&mut self, line: &str) {
        let text = format!("{}\n", line.replace('\n', " "));
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            match self.control.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.control, PollFlags::OUT)];
                    let _ = poll(&mut fds, None);
                    if fds[0].revents().contains(PollFlags::HUP) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// The lines that have arrived; `None` once the host has disconnected.
    pub fn lines(&mut self) -> Option<Vec<String>> {
        let mut buffer = [0; 4096];
        match self.control.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        Some(lines)
    }

    /// Waits until the host has read everything or has disconnected. The time limit is the host's: the
    /// reader of the output may be a slow person.
    pub fn wait_for_bye(&mut self) {
        while let Some(lines) = self.lines() {
            if lines.iter().any(|line| line == "bye") {
                return;
            }
            let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
            let _ = poll(&mut fds, None);
        }
    }
}

/// Opens the port of this name as soon as it exists.
fn find(name: &str, deadline: Instant) -> Result<File> {
    loop {
        for port in fs::read_dir(LIST).into_iter().flatten().flatten() {
            let named = fs::read_to_string(port.path().join("name"));
            if named.is_ok_and(|named| named.trim_end() == name) {
                let path = std::path::Path::new("/dev").join(port.file_name());
                let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
                return fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(flags)
                    .open(&path)
                    .with_context(|| format!("cannot open {}", path.display()));
            }
        }
        wait(deadline, name)?;
    }
}

fn wait(deadline: Instant, what: &str) -> Result<()> {
    if Instant::now() >= deadline {
        bail!(
            "the ports to the host do not appear ({what}): has the kernel virtio_console, and the \
             driver of the board's bus?"
        );
    }
    sleep(Duration::from_millis(1));
    Ok(())
}

/// The events of a port that poll(2) reports now.
fn flags(port: impl AsFd) -> Result<PollFlags> {
    let mut fds = [PollFd::new(&port, PollFlags::empty())];
    poll(
        &mut fds,
        Some(&rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )?;
    Ok(fds[0].revents())
}
