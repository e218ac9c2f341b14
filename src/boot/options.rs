//! The firmware's own options: the words `bootshare.KEY=VALUE` of its command line.
//!
//! | option | meaning |
//! |---|---|
//! | `bootshare.tag=TAG` | the share to use; may be given up to 4 times |
//! | `bootshare.entry=NAME` | the boot entry to start: its id or a glob |
//! | `bootshare.fallback=yes\|no` | whether entries of other kinds than the first one found are tried, too |
//! | `bootshare.timeout=SECONDS` | how long the menu waits; 0 for no menu; or a word as in [`Timeout`] |
//! | `bootshare.cmdline-default="WORDS"` | words for the payload's command line, unless it has the key of the first of them; may be given up to 4 times |
//! | `bootshare.cmd="ls /; walk /"` | shell commands to run instead of a boot |
//! | `bootshare.on-error=shell\|exit\|halt` | what to do after the last entry failed |
//! | `bootshare.prepared=yes\|no` | whether the host is asked for kernels that it has decompressed |
//! | `bootshare.deadline=SECONDS` | longest wait for progress from the host |
//! | `bootshare.chunk-size=BYTES` | largest read request |
//! | `bootshare.depth=N` | most read requests in flight |
//! | `bootshare.log=error\|warn\|info\|debug\|trace` | log level |
//! | words after `--` | for the payload's command line |
//!
//! If any other option is repeated, the last one wins. Words without the prefix `bootshare.` are ignored.

use crate::boot::{
    bls::Timeout,
    cmdline::{key_and_value, words},
    text::{as_str, number},
};
use core::{fmt, time::Duration};
use heapless::Vec;
use log::LevelFilter;

/// Most tags: the client's DMA memory is large enough for as many shares.
pub const MAX_TAGS: usize = 4;

/// Most groups of default words for the payload's command line.
pub const MAX_DEFAULTS: usize = 4;

/// Longest default word in bytes.
pub const MAX_DEFAULT_BYTES: usize = 64;

/// Longest tag in bytes (virtio 1.3, 5.11.4, `tag`).
pub const MAX_TAG_BYTES: usize = 36;

const PREFIX: &[u8] = b"bootshare.";
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// One day. A larger number is a typing error.
const MAX_SECONDS: u32 = 86_400;

const TIMEOUT: &str =
    "a whole number of seconds, 86400 at most, or menu-force, menu-hidden or menu-disabled";
const DEADLINE_SECONDS: &str = "a whole number of seconds, from 1 to 86400";
const CHUNK_SIZE: &str = "a whole number of bytes, from 4096 to 1073741824";
const DEPTH: &str = "a whole number from 1 to 64";
const TAG: &str = "a virtio-fs tag of 1 to 36 bytes";
const ENTRY: &str = "an entry's name";
const DEFAULTS: &str =
    "words of 64 bytes at most, as in \"root=TAG rootfstype=virtiofs\", in up to four such options";
const COMMANDS: &str = "shell commands, as in \"ls /; walk /\"";
const ON_ERROR: &str = "shell, exit or halt";
const YES_OR_NO: &str = "yes or no";
const LOG: &str = "error, warn, info, debug or trace";

/// What happens after the last boot entry failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnError {
    /// The shell is started.
    Shell,
    /// The machine exits with a failure, so that a script never hangs.
    #[default]
    Exit,
    /// The machine halts, so that it can be examined.
    Halt,
}

/// The parsed options; values borrow from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// Tags of the shares to use; empty for all shares.
    pub tags: Vec<&'a [u8], MAX_TAGS>,
    /// Id or glob of the boot entry.
    pub entry: Option<&'a [u8]>,
    /// Whether boot entries of other kinds than the first one found are tried, too: for example kernels with
    /// conventional names, if no entry can be loaded.
    pub fallback: bool,
    /// Whether there is a menu, and how long it waits.
    pub timeout: Option<Timeout>,
    /// Groups of default words for the payload. A group is added unless the payload's command line has a word
    /// with the key of the group's first word.
    pub defaults: Vec<&'a [u8], MAX_DEFAULTS>,
    /// Shell commands to run: see [`commands`](crate::boot::commands).
    pub commands: Option<&'a [u8]>,
    /// What happens after the last boot entry failed.
    pub on_error: OnError,
    /// Whether the host is asked for kernels that it has decompressed. Only the server of the host tool has
    /// such kernels.
    pub prepared: bool,
    /// Longest wait for progress from the host; never 0.
    pub deadline: Duration,
    /// Largest read request in bytes; `None` for the client's default.
    pub chunk_size: Option<u32>,
    /// Most read requests in flight; `None` for the client's default.
    pub depth: Option<u32>,
    /// The most verbose level of messages to print.
    pub log: LevelFilter,
    /// The text after the word `--`, for the payload's command line.
    pub payload: &'a [u8],
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            tags: Vec::new(),
            entry: None,
            fallback: false,
            timeout: None,
            defaults: Vec::new(),
            commands: None,
            on_error: OnError::default(),
            prepared: false,
            deadline: DEFAULT_DEADLINE,
            chunk_size: None,
            depth: None,
            log: LevelFilter::Info,
            payload: b"",
        }
    }
}

/// Why the command line cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionError<'a> {
    /// There is no such option.
    Unknown {
        /// Its name, with the prefix.
        key: &'a [u8],
    },
    /// The option has no value, or an empty one.
    NoValue {
        /// Its name, with the prefix.
        key: &'a [u8],
        /// A description of valid values.
        expected: &'static str,
    },
    /// The value is not valid for the option.
    BadValue {
        /// The option's name, with the prefix.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// A description of valid values.
        expected: &'static str,
    },
    /// There are more than [`MAX_TAGS`] tags.
    TooManyTags,
    /// A double quote is not closed.
    OpenQuote {
        /// The text from the start of the word to the end of the line.
        word: &'a [u8],
    },
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unknown { key } => write!(
                f,
                "{}: there is no such option; bootshare.tag, .entry, .fallback, .timeout, .cmd, \
                 .cmdline-default, .on-error, .prepared, .deadline, .chunk-size, .depth and .log are known",
                key.escape_ascii()
            ),
            Self::NoValue { key, expected } => {
                let key = key.escape_ascii();
                write!(
                    f,
                    "{key}: the value is missing; write {key}= and {expected}"
                )
            }
            Self::BadValue {
                key,
                value,
                expected,
            } => write!(
                f,
                "{}={}: invalid value; expected {expected}",
                key.escape_ascii(),
                value.escape_ascii()
            ),
            Self::TooManyTags => {
                write!(
                    f,
                    "bootshare.tag: given more than {MAX_TAGS} times; remove some"
                )
            }
            Self::OpenQuote { word } => write!(
                f,
                "{}: a double quote is not closed; add another one at the end",
                word.escape_ascii()
            ),
        }
    }
}

impl core::error::Error for OptionError<'_> {}

impl<'a> Options<'a> {
    /// Parses the firmware's command line.
    ///
    /// # Errors
    ///
    /// [`OptionError`] for the first invalid word that starts with `bootshare.`, or for an unclosed quote.
    pub fn parse(line: &'a [u8]) -> Result<Self, OptionError<'a>> {
        let mut options = Self::default();
        let mut all = words(line);
        while let Some(word) = all.next() {
            if word == b"--" {
                options.payload = all.rest().trim_ascii();
                break;
            }
            if all.open_quote() {
                // The word may contain options of ours and the `--`.
                return Err(OptionError::OpenQuote { word });
            }
            options.set(word)?;
        }
        Ok(options)
    }

    fn set(&mut self, word: &'a [u8]) -> Result<(), OptionError<'a>> {
        let (key, value) = key_and_value(word);
        let Some(name) = key.strip_prefix(PREFIX) else {
            return Ok(());
        };
        let value = |expected| match value {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(OptionError::NoValue { key, expected }),
        };
        let bad = |value, expected| OptionError::BadValue {
            key,
            value,
            expected,
        };
        match as_str(name) {
            "tag" => {
                let tag = value(TAG)?;
                if tag.len() > MAX_TAG_BYTES {
                    return Err(bad(tag, TAG));
                }
                let full = self.tags.push(tag);
                full.map_err(|_| OptionError::TooManyTags)?;
            }
            "entry" => self.entry = Some(value(ENTRY)?),
            "fallback" => {
                self.fallback = is_yes(value(YES_OR_NO)?).map_err(|word| bad(word, YES_OR_NO))?
            }
            "prepared" => {
                self.prepared = is_yes(value(YES_OR_NO)?).map_err(|word| bad(word, YES_OR_NO))?
            }
            "timeout" => {
                let text = value(TIMEOUT)?;
                let timeout = Timeout::parse(text).filter(|timeout| match timeout {
                    Timeout::Seconds(seconds) => *seconds <= MAX_SECONDS,
                    _ => true,
                });
                self.timeout = Some(timeout.ok_or_else(|| bad(text, TIMEOUT))?);
            }
            "cmdline-default" => {
                let group = value(DEFAULTS)?;
                if words(group).any(|word| word.len() > MAX_DEFAULT_BYTES)
                    || str::from_utf8(group).is_err()
                    || self.defaults.push(group).is_err()
                {
                    return Err(bad(group, DEFAULTS));
                }
            }
            "cmd" => self.commands = Some(value(COMMANDS)?),
            "on-error" => {
                self.on_error = match as_str(value(ON_ERROR)?) {
                    "shell" => OnError::Shell,
                    "exit" => OnError::Exit,
                    "halt" => OnError::Halt,
                    _ => return Err(bad(value(ON_ERROR)?, ON_ERROR)),
                }
            }
            "deadline" => {
                let text = value(DEADLINE_SECONDS)?;
                let seconds = number(text).filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
                let seconds = seconds.ok_or_else(|| bad(text, DEADLINE_SECONDS))?;
                self.deadline = Duration::from_secs(seconds.into());
            }
            "chunk-size" => {
                let text = value(CHUNK_SIZE)?;
                let bytes = number(text).filter(|bytes| (4096..=1 << 30).contains(bytes));
                self.chunk_size = Some(bytes.ok_or_else(|| bad(text, CHUNK_SIZE))?);
            }
            "depth" => {
                let text = value(DEPTH)?;
                let depth = number(text).filter(|depth| (1..=64).contains(depth));
                self.depth = Some(depth.ok_or_else(|| bad(text, DEPTH))?);
            }
            "log" => {
                self.log = match as_str(value(LOG)?) {
                    "error" => LevelFilter::Error,
                    "warn" => LevelFilter::Warn,
                    "info" => LevelFilter::Info,
                    "debug" => LevelFilter::Debug,
                    "trace" => LevelFilter::Trace,
                    _ => return Err(bad(value(LOG)?, LOG)),
                }
            }
            _ => return Err(OptionError::Unknown { key }),
        }
        Ok(())
    }
}

/// Parses `yes` or `no`; any other word is the error.
fn is_yes(word: &[u8]) -> Result<bool, &[u8]> {
    match word {
        b"yes" => Ok(true),
        b"no" => Ok(false),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::collections::BTreeSet;
    use std::string::{String, ToString};

    fn error(line: &str) -> String {
        Options::parse(line.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_list_of_options_is_complete() {
        let list = include_str!("../../docs/options.txt");
        let listed = list.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("firmware bootshare.")?.split_once('=')?;
            Some(name)
        });
        // The match arms of `set`, recognised by their indentation.
        let known = include_str!("options.rs").lines().filter_map(|line| {
            let arm = line.strip_prefix("            \"")?;
            Some(arm.split_once("\" =>")?.0)
        });
        let (listed, known): (BTreeSet<_>, BTreeSet<_>) = (listed.collect(), known.collect());
        assert_eq!(listed, known, "docs/options.txt has to list each option");
    }

    #[test]
    fn without_options_the_defaults_hold() {
        let options = Options::parse(b"").unwrap();
        assert_eq!(options, Options::default());
        assert_eq!(options.deadline, Duration::from_secs(10));
        assert_eq!(options.on_error, OnError::Exit);
        assert_eq!(options.log, LevelFilter::Info);
        assert!(options.tags.is_empty());
    }

    #[test]
    fn every_option_is_read() {
        let options = Options::parse(
            b"bootshare.tag=a bootshare.tag=\xff\"b bootshare.entry=deb*\" bootshare.fallback=yes bootshare.timeout=0 \
              bootshare.cmdline-default=\"root=a ro\" bootshare.cmdline-default=b bootshare.cmd=\"ls /; walk /\" bootshare.on-error=halt bootshare.deadline=3 \
              bootshare.chunk-size=65536 bootshare.depth=2 bootshare.log=trace -- quiet  root=\"a b\" ",
        );
        // A quote within a value is part of it, as in the kernel.
        let options = options.unwrap();
        assert_eq!(options.tags, [&b"a"[..], b"\xff\"b bootshare.entry=deb*\""]);
        assert!(options.fallback);
        assert_eq!(options.timeout, Some(Timeout::Seconds(0)));
        assert_eq!(options.defaults, [&b"root=a ro"[..], b"b"]);
        assert_eq!(options.commands, Some(&b"ls /; walk /"[..]));
        assert_eq!(options.on_error, OnError::Halt);
        assert_eq!(options.deadline, Duration::from_secs(3));
        assert_eq!(options.chunk_size, Some(65_536));
        assert_eq!(options.depth, Some(2));
        assert_eq!(options.log, LevelFilter::Trace);
        assert_eq!(options.payload, b"quiet  root=\"a b\"");
    }

    #[test]
    fn quotes_may_stand_around_the_word_or_the_value() {
        for line in [
            &b"bootshare.cmd=\"ls /; walk /\""[..],
            b"\"bootshare.cmd=ls /; walk /\"",
        ] {
            let options = Options::parse(line).unwrap();
            assert_eq!(options.commands, Some(&b"ls /; walk /"[..]));
        }
        let options = Options::parse(b"bootshare.cmd=\"cat 'a -- b'\" -- c").unwrap();
        assert_eq!(options.commands, Some(&b"cat 'a -- b'"[..]));
        assert_eq!(options.payload, b"c");
    }

    #[test]
    fn words_without_the_prefix_are_ignored() {
        let line = b"console=ttyS0 virtio_mmio.device=512@0xfeb00e00:12 bootshare bootshares.x=1 \
                     bootshare.entry=x -- bootshare.nonsense";
        let options = Options::parse(line).unwrap();
        assert_eq!(options.entry, Some(&b"x"[..]));
        assert_eq!(options.payload, b"bootshare.nonsense");
    }

    #[test]
    fn the_last_value_of_a_repeated_option_wins() {
        let options = Options::parse(b"bootshare.deadline=1 bootshare.deadline=2").unwrap();
        assert_eq!(options.deadline, Duration::from_secs(2));
    }

    #[test]
    fn an_invalid_option_is_named_with_the_valid_ones() {
        assert_eq!(
            error("bootshare.tags=a"),
            "bootshare.tags: there is no such option; bootshare.tag, .entry, .fallback, .timeout, \
             .cmd, .cmdline-default, .on-error, .prepared, .deadline, .chunk-size, .depth and .log are known"
        );
        assert_eq!(
            error("quiet bootshare.on-error=reboot"),
            "bootshare.on-error=reboot: invalid value; expected shell, exit or halt"
        );
        assert_eq!(
            error("bootshare.entry"),
            "bootshare.entry: the value is missing; write bootshare.entry= and an entry's name"
        );
        assert_eq!(
            error("bootshare.tag="),
            "bootshare.tag: the value is missing; \
             write bootshare.tag= and a virtio-fs tag of 1 to 36 bytes"
        );
        assert_eq!(
            error("bootshare.cmd=\"ls / -- quiet"),
            "bootshare.cmd=\\\"ls / -- quiet: a double quote is not closed; \
             add another one at the end"
        );
        let long = std::format!("bootshare.cmdline-default=\"a b={}\"", "x".repeat(63));
        for bad in [long, "bootshare.cmdline-default=a ".repeat(5)] {
            let error = error(&bad);
            let remedy = ": invalid value; expected words of 64 bytes at most, as in \
                          \"root=TAG rootfstype=virtiofs\", in up to four such options";
            assert!(error.ends_with(remedy), "{error}");
        }
        assert_eq!(
            error("bootshare.log=loud"),
            "bootshare.log=loud: invalid value; expected error, warn, info, debug or trace"
        );
    }

    #[test]
    fn seconds_are_whole_and_bounded() {
        for bad in ["-1", "1.5", "1s", "86401", "99999999999999999999", "0"] {
            assert_eq!(
                error(&std::format!("bootshare.deadline={bad}")),
                std::format!(
                    "bootshare.deadline={bad}: invalid value; \
                     expected a whole number of seconds, from 1 to 86400"
                )
            );
        }
        for timeout in ["86400", "menu-force", "menu-hidden", "menu-disabled"] {
            Options::parse(std::format!("bootshare.timeout={timeout}").as_bytes()).unwrap();
        }
        Options::parse(b"bootshare.timeout=86401").unwrap_err();
        Options::parse(b"bootshare.timeout=menu").unwrap_err();
    }

    #[test]
    fn a_tag_has_36_bytes_at_most_and_there_are_4_at_most() {
        let tag = |n| std::format!("bootshare.tag={}", "t".repeat(n));
        Options::parse(tag(36).as_bytes()).unwrap();
        assert!(error(&tag(37)).ends_with("expected a virtio-fs tag of 1 to 36 bytes"));
        Options::parse("bootshare.tag=a ".repeat(4).as_bytes()).unwrap();
        assert_eq!(
            error(&"bootshare.tag=a ".repeat(5)),
            "bootshare.tag: given more than 4 times; remove some"
        );
    }

    #[test]
    fn damaged_lines_do_not_panic() {
        for seed in seeds(20_000) {
            let random = &mut Random::new(seed);
            let mut line = *b"bootshare.tag=a bootshare.cmd=\"ls /\" bootshare.timeout=7 -- x";
            random.damage(&mut line);
            if let Err(error) = Options::parse(&line) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}
