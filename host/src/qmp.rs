//! The little of QEMU's machine protocol (QMP) that tells how a guest ended.

use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use serde_json::Value;

/// What QEMU said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// An answer to what we sent. The first one, to our handshake, comes when the machine is built
    /// and connected to its servers.
    Answer,
    /// The guest asked for power off.
    PowerOff,
    /// The guest reset (or crashed into a reset), which `-no-reboot` turns into an end.
    Reset,
    /// The person at the console quit QEMU.
    Quit,
}

/// Splits the byte stream into messages.
#[derive(Default)]
pub(crate) struct Decoder {
    partial: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they come; appends what they say to `messages`.
    pub(crate) fn feed(&mut self, bytes: &[u8], messages: &mut Vec<Message>) {
        for &byte in bytes {
            if byte == b'\n' {
                messages.extend(decode(&self.partial));
                self.partial.clear();
            } else {
                self.partial.push(byte);
            }
        }
    }
}

fn decode(line: &[u8]) -> Option<Message> {
    let message: Value = serde_json::from_slice(line).ok()?;
    if message.get("return").is_some() {
        return Some(Message::Answer);
    }
    if message.get("event")? != "SHUTDOWN" {
        return None;
    }
    Some(match message.pointer("/data/reason")?.as_str()? {
        "guest-shutdown" => Message::PowerOff,
        "guest-reset" | "guest-panic" => Message::Reset,
        _ => Message::Quit,
    })
}

/// Asks QEMU for events; it answers once the machine runs.
pub(crate) fn hello(stream: &mut UnixStream) -> Result<()> {
    stream
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
        .context("cannot talk to QEMU")
}

/// Asks QEMU something that it answers as long as it does anything at all.
pub(crate) fn ask(stream: &mut UnixStream) -> Result<()> {
    stream
        .write_all(b"{\"execute\":\"query-status\"}\n")
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
"#;
        for cut in 0..text.len() {
            let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
            decoder.feed(&text[..cut], &mut messages);
            decoder.feed(&text[cut..], &mut messages);
            assert_eq!(
                messages,
                [Message::Answer, Message::Reset, Message::PowerOff]
            );
        }
    }
}
