//! The console as a person reads it: its text in lines, and the last of them.

use std::collections::VecDeque;

use anstream::adapter::StripBytes;

/// How many of the console's last lines are kept, and how many bytes at most.
pub(crate) const LAST_LINES: usize = 40;
pub(crate) const LAST_BYTES: usize = 8192;

/// Converts the guest's output to lines of text.
#[derive(Default)]
pub(crate) struct Screen {
    strip: StripBytes,
    after_return: bool,
    /// The first bytes of an incomplete character.
    cut: Vec<u8>,
}

impl Screen {
    pub(crate) fn text(&mut self, bytes: &[u8]) -> Vec<u8> {
        let bytes = self.characters(bytes);
        let mut out = Vec::with_capacity(bytes.len());
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, end) = match line.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (line, false),
            };
            for &byte in self.strip.strip_next(text).flatten() {
                if byte == b'\r' {
                    self.after_return = true;
                    continue;
                }
                if std::mem::take(&mut self.after_return) {
                    // A bare carriage return starts the line again, as progress bars do.
                    out.push(b'\n');
                }
                out.push(byte);
            }
            if end {
                self.after_return = false;
                // An escape sequence ends with its line: an incomplete one must not hide the rest.
                self.strip = StripBytes::new();
                out.push(b'\n');
            }
        }
        out
    }

    /// All characters that are complete with `bytes`; invalid bytes become U+FFFD, as on a
    /// terminal.
    fn characters(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.cut.extend_from_slice(bytes);
        let whole = std::mem::take(&mut self.cut);
        let mut out = Vec::with_capacity(whole.len());
        let mut rest = &whole[..];
        while let Err(error) = std::str::from_utf8(rest) {
            let (good, bad) = rest.split_at(error.valid_up_to());
            out.extend_from_slice(good);
            let Some(length) = error.error_len() else {
                self.cut = bad.to_vec();
                return out;
            };
            out.extend("\u{fffd}".bytes());
            rest = &bad[length..];
        }
        out.extend_from_slice(rest);
        out
    }
}

/// The last lines of the console, and the latest messages of the firmware.
#[derive(Default)]
pub(crate) struct LastLines {
    pub(crate) bytes: VecDeque<u8>,
    /// The firmware's message about the boot entry.
    entry: String,
    /// The firmware's last message.
    firmware: String,
}

/// Prefixes of the firmware's messages: all of them, the one that names the boot entry, and the one
/// before it starts a kernel.
const FIRMWARE: &str = "bootshare: ";
const ENTRY: &str = "bootshare: entry ";
pub(crate) const START: &str = "bootshare: starting ";

impl LastLines {
    pub(crate) fn push(&mut self, byte: u8) {
        if byte == b'\n' {
            let line = self.bytes.iter().rev().take_while(|&&byte| byte != b'\n');
            let mut line: Vec<u8> = line.copied().collect();
            line.reverse();
            if line.starts_with(FIRMWARE.as_bytes()) {
                self.firmware = String::from_utf8_lossy(&line).into_owned();
                if self.firmware.starts_with(ENTRY) {
                    self.entry.clone_from(&self.firmware);
                }
            }
        }
        if self.bytes.len() == LAST_BYTES {
            self.bytes.pop_front();
        }
        self.bytes.push_back(byte);
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        let first = lines.len().saturating_sub(LAST_LINES);
        let lines = lines.into_iter().skip(first);
        let mut before = vec![self.entry.as_str()];
        if self.firmware != self.entry {
            before.push(&self.firmware);
        }
        before.retain(|said| !said.is_empty() && !lines.clone().any(|line| line == *said));
        before.into_iter().chain(lines).map(str::to_owned).collect()
    }
}
