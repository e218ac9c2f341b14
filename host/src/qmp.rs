//! The part of QEMU's machine protocol (QMP) that reports how a guest ended, and whether QEMU still
//! answers.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::explain::Explain;
use crate::fd::{read_rest, read_some};

/// The remedy if no socket can be created.
pub(crate) const LISTEN: &str = "point TMPDIR at a directory that takes sockets and has room";

/// How long QEMU may leave a query unanswered. QEMU blocks without a limit when a server hangs.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How often QEMU is queried.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// The reason why QEMU ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// The guest asked for power off.
    PowerOff,
    /// The guest was reset, also by a crash; `-no-reboot` turns this into an end.
    Reset,
    /// The guest reported a panic, by the pvpanic device or in another way that QEMU supports.
    Panic,
    /// The person at the console quit QEMU.
    Quit,
}

/// A message of QEMU's.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    /// An answer to a command. The first one, to the handshake, arrives when the machine is built
    /// and connected to its servers.
    Answer,
    Shutdown(Shutdown),
}

/// The QMP connection.
pub(crate) struct Monitor {
    starts_machine: bool,
    listener: Option<UnixListener>,
    stream: Option<UnixStream>,
    /// An incomplete line.
    partial: Vec<u8>,
    question: Question,
    shutdown: Option<Shutdown>,
}

/// The state of the periodic query.
#[derive(Clone, Copy)]
enum Question {
    NotYet,
    Due(Instant),
    Asked(Instant),
}

impl Monitor {
    /// Listens for QEMU at `path`.
    pub(crate) fn listen(path: &Path, starts_machine: bool) -> Result<Self> {
        Ok(Self {
            starts_machine,
            listener: Some(UnixListener::bind(path).explain("cannot listen for QEMU", LISTEN)?),
            stream: None,
            partial: Vec::new(),
            question: Question::NotYet,
            shutdown: None,
        })
    }

    /// The descriptor to wait for, until QEMU has ended.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let listener = self.listener.as_ref().map(AsFd::as_fd);
        listener.or(self.stream.as_ref().map(AsFd::as_fd))
    }

    /// Accepts QEMU's connection, or reads its messages; returns the number of bytes read.
    pub(crate) fn read(&mut self) -> Result<usize> {
        if let Some(listener) = self.listener.take() {
            let (mut stream, _) = listener.accept().context("cannot talk to QEMU")?;
            // QEMU answers once the machine is built. An error means that QEMU has ended, which is handled
            // elsewhere.
            _ = send(&mut stream, "qmp_capabilities");
            if self.starts_machine {
                _ = send(&mut stream, "cont");
            }
            self.stream = Some(stream);
            return Ok(0);
        }
        let Some(stream) = &mut self.stream else {
            return Ok(0);
        };
        let Some(bytes) = read_some(stream)? else {
            self.stream = None;
            return Ok(0);
        };
        for message in messages(&mut self.partial, &bytes) {
            match message {
                Message::Answer => self.question = Question::Due(Instant::now() + ASK_EVERY),
                Message::Shutdown(why) => self.shutdown = Some(why),
            }
        }
        Ok(bytes.len())
    }

    /// Reads the rest after QEMU has ended.
    pub(crate) fn drain(&mut self) -> Result<()> {
        read_rest(
            self,
            |monitor| Some(monitor.stream.as_ref()?.as_fd()),
            Self::read,
        )
    }

    /// Restarts the query's deadline after QEMU was stopped by a signal and could not answer.
    pub(crate) fn was_stopped(&mut self) {
        if let Question::Asked(at) = &mut self.question {
            *at = Instant::now();
        }
    }

    /// Whether QEMU has answered, which means that the machine is built.
    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.question, Question::NotYet)
    }

    /// Queries QEMU if that is due; returns when the next query is due.
    pub(crate) fn ask(&mut self, now: Instant) -> Option<Instant> {
        let Question::Due(at) = self.question else {
            return None;
        };
        let stream = self.stream.as_mut()?;
        if at > now {
            return Some(at);
        }
        // An error means that QEMU has ended, which is handled elsewhere.
        _ = send(stream, "query-status");
        self.question = Question::Asked(now);
        None
    }

    /// The deadline of the pending query.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.question {
            Question::Asked(at) => Some(at + ANSWER_LIMIT),
            _ => None,
        }
    }

    /// The reason why QEMU ends, once it was reported.
    pub(crate) fn shutdown(&self) -> Option<Shutdown> {
        self.shutdown
    }
}

/// The complete messages in `partial` followed by `bytes`; the rest is kept in `partial`.
fn messages(partial: &mut Vec<u8>, bytes: &[u8]) -> Vec<Message> {
    partial.extend(bytes);
    let end = partial.iter().rposition(|&byte| byte == b'\n');
    let whole: Vec<_> = partial.drain(..end.map_or(0, |end| end + 1)).collect();
    let lines = whole.split(|&byte| byte == b'\n');
    lines.filter_map(decode).collect()
}

fn decode(line: &[u8]) -> Option<Message> {
    let message: Value = serde_json::from_slice(line).ok()?;
    if message.get("return").is_some() {
        return Some(Message::Answer);
    }
    if message.get("event")? != "SHUTDOWN" {
        return None;
    }
    Some(Message::Shutdown(
        match message.pointer("/data/reason")?.as_str()? {
            "guest-shutdown" => Shutdown::PowerOff,
            "guest-reset" => Shutdown::Reset,
            "guest-panic" => Shutdown::Panic,
            _ => Shutdown::Quit,
        },
    ))
}

fn send(stream: &mut UnixStream, command: &str) -> Result<()> {
    let line = format!("{{\"execute\":\"{command}\"}}\n");
    stream
        .write_all(line.as_bytes())
        .context("cannot talk to QEMU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_in_a_stream_cut_anywhere() {
        let text = br#"{"QMP": {"version": {}, "capabilities": ["oob"]}}
{"return": {}}
{"timestamp": {"seconds": 1}, "event": "RESUME"}
{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}
{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}
{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-panic"}}
"#;
        for cut in 0..text.len() {
            let mut partial = Vec::new();
            let mut said = messages(&mut partial, &text[..cut]);
            said.extend(messages(&mut partial, &text[cut..]));
            assert_eq!(
                said,
                [
                    Message::Answer,
                    Message::Shutdown(Shutdown::Reset),
                    Message::Shutdown(Shutdown::PowerOff),
                    Message::Shutdown(Shutdown::Panic)
                ]
            );
        }
    }
}
