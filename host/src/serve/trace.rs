//! Recording of all requests and replies, and printing of such a trace.
//!
//! The file has one JSON object a line. The first is `{"bootshare-trace":1}`; then each request with
//! its reply, in the order of the replies, with these keys:
//!
//! | key | |
//! |---|---|
//! | `tag` | the share |
//! | `at`, `took` | when the server took the request and how long it had it, in µs; no `took`: never answered |
//! | `op`, `unique`, `node` | from the request's header |
//! | `name`, `handle`, `offset`, `size` | from its body, when it has them |
//! | `in`, `out` | bytes of the request and of the reply |
//! | `error` | errno of the reply, unless 0 |
//! | `child` | the node that a LOOKUP found |
//! | `children` | the names and nodes in the reply to a READDIRPLUS |
//! | `fault` | what was done wrong on purpose |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use super::fault::Verdict;
use super::opcode::{self, long, word};
use crate::explain::Explain;
use crate::lock::lock;
use crate::output;

/// How much of a request is recorded: its header, and enough of its body for the longest names.
pub(super) const REQUEST_HEAD: usize = 40 + 512;

/// How much of a reply is recorded: its header and a `fuse_entry_out`.
const REPLY_HEAD: usize = 16 + ENTRY;

/// How much of a reply that lists nodes is recorded.
const LISTING: usize = 64 << 10;

/// Size of `fuse_entry_out`, and of `fuse_dirent` before the name.
const ENTRY: usize = 128;
const DIRENT: usize = 24;

/// How much of a reply to this operation is recorded.
pub(super) fn reply_head(opcode: u32) -> usize {
    match opcode::name(opcode) {
        Some("READDIRPLUS") => LISTING,
        _ => REPLY_HEAD,
    }
}

/// A file in which requests and replies are recorded.
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    start: Instant,
    file: Mutex<Destination>,
}

/// Where the lines are written.
#[derive(Debug)]
enum Destination {
    /// A temporary file, which is renamed to its final name with the first line: a run that fails
    /// before does not replace an earlier trace.
    Beside(NamedTempFile),
    Open(File),
    /// Nowhere: writing has failed.
    Ended,
}

impl Destination {
    fn write(&mut self, path: &Path, line: &[u8]) -> Result<()> {
        let mut file = match std::mem::replace(self, Self::Ended) {
            Self::Beside(file) => output::put(file, path)?,
            Self::Open(file) => file,
            Self::Ended => return Ok(()),
        };
        file.write_all(line)?;
        *self = Self::Open(file);
        Ok(())
    }
}

/// The first line of each trace.
const HEADER: &[u8] = b"{\"bootshare-trace\":1}\n";

/// A request and its reply.
pub(super) struct Exchange<'a> {
    pub(super) tag: &'a str,
    pub(super) start: Instant,
    /// The first [`REQUEST_HEAD`] bytes of the request, and its full length.
    pub(super) request: &'a [u8],
    pub(super) request_len: usize,
    /// The first [`reply_head`] bytes of the reply and the length in the used ring; `None` if the
    /// request was never answered.
    pub(super) reply: Option<(&'a [u8], u32)>,
    pub(super) verdict: Verdict,
}

impl Trace {
    /// A trace whose file is created, or replaces an earlier trace, at the first request. A device
    /// or a pipe is written to directly.
    ///
    /// # Errors
    /// It cannot be written, or an existing file is not a trace.
    pub fn create(path: &Path) -> Result<Self> {
        let file = destination(path)?;
        Ok(Self {
            path: path.to_owned(),
            start: Instant::now(),
            file: Mutex::new(file),
        })
    }

    pub(super) fn record(&self, exchange: &Exchange<'_>) {
        let end = Instant::now();
        let mut line = exchange.describe(self.start, end).to_string();
        line.push('\n');
        if let Err(error) = lock(&self.file).write(&self.path, line.as_bytes()) {
            // The guest continues; the lines written so far stay valid.
            let path = self.path.display();
            output::note(format_args!(
                "warning: the trace {path} ends here: {error:#}"
            ));
        }
    }
}

fn destination(path: &Path) -> Result<Destination> {
    if let Some(mut file) = output::direct(path)? {
        file.write_all(HEADER)
            .with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Destination::Open(file));
    }
    output::check(path, "a trace", |head| head.starts_with(HEADER))?;
    let mut file = output::beside(path)?;
    output::write(&mut file, path, HEADER)?;
    Ok(Destination::Beside(file))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The nodes in a READDIRPLUS's reply, by name.
fn children(mut rest: &[u8]) -> Value {
    let mut found = Map::new();
    while let (Some(node), Some(size)) = (long(rest, 0), word(rest, ENTRY + 16)) {
        let end = ENTRY + DIRENT + size as usize;
        let Some(name) = rest.get(ENTRY + DIRENT..end) else {
            break;
        };
        if node != 0 {
            found.insert(name.escape_ascii().to_string(), json!(node));
        }
        rest = rest.get(end.next_multiple_of(8)..).unwrap_or_default();
    }
    Value::Object(found)
}

impl Exchange<'_> {
    fn describe(&self, origin: Instant, end: Instant) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
        let request = self.request;
        put("tag", json!(self.tag));
        put(
            "at",
            json!(micros(self.start.saturating_duration_since(origin))),
        );
        let opcode = word(request, 4).unwrap_or(0);
        match opcode::name(opcode) {
            Some(name) => put("op", json!(name)),
            None => put("op", json!(opcode.to_string())),
        }
        put("unique", json!(long(request, 8)));
        put("node", json!(long(request, 16)));
        put("in", json!(self.request_len));
        let body = request.get(40..).unwrap_or_default();
        self.describe_body(opcode, body, &mut put);
        if let Some((reply, used)) = self.reply {
            put(
                "took",
                json!(micros(end.saturating_duration_since(self.start))),
            );
            put("out", json!(used));
            let error = word(reply, 4).map_or(0, u32::cast_signed);
            if used >= 16 && error != 0 {
                put("error", json!(error.wrapping_neg()));
            } else if opcode::is_lookup(opcode) {
                put("child", json!(long(reply, 16)));
            } else if opcode::name(opcode) == Some("READDIRPLUS") {
                put("children", children(reply.get(16..).unwrap_or_default()));
            }
        }
        if let Some(fault) = self.verdict.describe() {
            put("fault", json!(fault));
        }
        Value::Object(out)
    }

    fn describe_body(&self, opcode: u32, body: &[u8], put: &mut dyn FnMut(&str, Value)) {
        let name_at = match opcode::name(opcode).unwrap_or_default() {
            "LOOKUP" | "UNLINK" | "RMDIR" | "REMOVEXATTR" | "SYMLINK" => 0,
            "MKDIR" | "GETXATTR" | "SETXATTR" | "RENAME" | "LINK" => 8,
            "MKNOD" | "CREATE" | "RENAME2" | "TMPFILE" => 16,
            "READ" | "READDIR" | "READDIRPLUS" | "WRITE" => {
                put("handle", json!(long(body, 0)));
                put("offset", json!(long(body, 8)));
                put("size", json!(word(body, 16)));
                return;
            }
            "RELEASE" | "RELEASEDIR" | "FSYNC" | "LSEEK" => {
                put("handle", json!(long(body, 0)));
                return;
            }
            _ => return,
        };
        let name = body.get(name_at..).unwrap_or_default();
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        put("name", json!(name.escape_ascii().to_string()));
    }
}

/// The totals of one operation.
#[derive(Default)]
struct Total {
    count: u64,
    errors: u64,
    unanswered: u64,
    bytes_in: u64,
    bytes_out: u64,
    took: u64,
    longest: u64,
}

/// The totals of a trace.
#[derive(Default)]
struct Totals {
    operations: BTreeMap<String, Total>,
    /// When the server had each request: start and end.
    spans: Vec<(u64, u64)>,
    /// The path of each node, by share.
    paths: BTreeMap<(String, u64), String>,
}

/// Prints a trace as a table, followed by its totals.
///
/// # Errors
/// The file is not a trace, or `out` cannot be written.
pub fn print(path: &Path, out: &mut impl Write) -> Result<()> {
    let name = path.display();
    let file = File::open(path).explain(
        format_args!("cannot read {name}"),
        "name a file that `boot --trace` or `serve --trace` wrote",
    )?;
    let mut file = BufReader::new(file);
    // A file of another kind may be one endless line.
    let mut head = [0; HEADER.len()];
    let is_trace = file.read_exact(&mut head).is_ok() && head == *HEADER;
    ensure!(
        is_trace,
        "{name} is no trace: make one with `bootshare-host boot DIR --trace FILE`"
    );
    writeln!(
        out,
        "{:>12} {:>9}  {:<12} {:<32} {:>9}  result",
        "at ms", "took ms", "operation", "file", "bytes"
    )?;
    let mut totals = Totals::default();
    for (number, line) in file.lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {name}"))?;
        // A run that was killed may leave an incomplete line.
        let Ok(Value::Object(record)) = serde_json::from_str(&line) else {
            writeln!(out, "line {} is cut short", number + 2)?;
            continue;
        };
        writeln!(out, "{}", totals.add(&record))?;
    }
    out.write_all(totals.describe().as_bytes())?;
    Ok(())
}

impl Totals {
    /// Adds a record to the totals, and returns its line of the table.
    fn add(&mut self, record: &Map<String, Value>) -> String {
        let number = |key: &str| record.get(key).and_then(Value::as_u64);
        let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default();
        let (at, took) = (number("at").unwrap_or(0), number("took"));
        let (op, error) = (text("op"), number("error"));
        let out = number("out").unwrap_or(0);

        let total = self.operations.entry(op.to_owned()).or_default();
        total.count += 1;
        total.errors += u64::from(error.is_some());
        total.unanswered += u64::from(took.is_none());
        total.bytes_in += number("in").unwrap_or(0);
        total.bytes_out += out;
        total.took += took.unwrap_or(0);
        total.longest = total.longest.max(took.unwrap_or(0));
        // FORGET and the like have no reply: they are no round trip.
        if !opcode::by_name(op).is_some_and(opcode::is_silent) {
            self.spans.push((at, at + took.unwrap_or(0)));
        }

        let file = self.file(record);
        let mut result = match (took, error) {
            (None, _) => "never answered".to_owned(),
            (_, Some(error)) => error_name(error),
            (..) => "ok".to_owned(),
        };
        if let Some(offset) = number("offset") {
            let size = number("size").unwrap_or(0);
            let _infallible = write!(result, ", {size} at {offset}");
        }
        if !text("fault").is_empty() {
            let _infallible = write!(result, " (fault: {})", text("fault"));
        }
        format!(
            "{:>12} {:>9}  {op:<12} {file:<32} {out:>9}  {result}",
            millis(at),
            took.map_or_else(|| "-".to_owned(), millis)
        )
    }

    /// The path of a record's node, as far as the trace shows it.
    fn file(&mut self, record: &Map<String, Value>) -> String {
        let number = |key: &str| record.get(key).and_then(Value::as_u64);
        let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default();
        let tag = text("tag").to_owned();
        let node = number("node").unwrap_or(0);
        if node == 0 {
            return format!("{tag}:");
        }
        let mut path = match self.paths.get(&(tag.clone(), node)) {
            Some(path) => path.clone(),
            None if node == 1 => format!("{tag}:"),
            None => format!("{tag}:#{node}"),
        };
        if let Some(name) = record.get("name").and_then(Value::as_str) {
            path.push('/');
            path.push_str(name);
        }
        if let Some(child) = number("child") {
            self.paths.insert((tag.clone(), child), path.clone());
        }
        let children = record.get("children").and_then(Value::as_object);
        for (name, child) in children.into_iter().flatten() {
            let child = child.as_u64().unwrap_or(0);
            let below = format!("{path}/{name}");
            self.paths.insert((tag.clone(), child), below);
        }
        path
    }

    fn describe(mut self) -> String {
        let mut text = format!(
            "\n{:<12} {:>8} {:>7} {:>6} {:>12} {:>14} {:>11} {:>9} {:>9}\n",
            "operation",
            "count",
            "errors",
            "lost",
            "bytes in",
            "bytes out",
            "total ms",
            "mean ms",
            "most ms"
        );
        let mut sum = Total::default();
        for (op, total) in &self.operations {
            text.push_str(&total.line(op));
            sum.count += total.count;
            sum.errors += total.errors;
            sum.unanswered += total.unanswered;
            sum.bytes_in += total.bytes_in;
            sum.bytes_out += total.bytes_out;
            sum.took += total.took;
            sum.longest = sum.longest.max(total.longest);
        }
        text.push_str(&sum.line("all"));

        // Requests that overlap in time count as one round trip.
        self.spans.sort_unstable();
        let (mut trips, mut waiting, mut end) = (0, 0, None);
        for &(from, to) in &self.spans {
            let open = end.filter(|&end| from <= end);
            trips += u64::from(open.is_none());
            let already = open.unwrap_or(from);
            waiting += to.saturating_sub(already);
            end = Some(to.max(already));
        }
        let first = self.spans.first().map_or(0, |span| span.0);
        let _infallible = writeln!(
            text,
            "\n{} operations in {trips} round trips; {} ms of {} ms waiting for the server",
            sum.count,
            millis(waiting),
            millis(end.unwrap_or(0).saturating_sub(first))
        );
        text
    }
}

impl Total {
    fn line(&self, name: &str) -> String {
        let mean = self.took / self.count.max(1);
        format!(
            "{name:<12} {:>8} {:>7} {:>6} {:>12} {:>14} {:>11} {:>9} {:>9}\n",
            self.count,
            self.errors,
            self.unanswered,
            self.bytes_in,
            self.bytes_out,
            millis(self.took),
            millis(mean),
            millis(self.longest)
        )
    }
}

fn millis(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

/// The text of strerror(3).
fn error_name(errno: u64) -> String {
    let known = i32::try_from(errno).map(std::io::Error::from_raw_os_error);
    known.map_or_else(|_| errno.to_string(), |error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes[16..24].copy_from_slice(&node.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    fn reply(error: i32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[4..8].copy_from_slice(&error.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_trace_may_be_written_into_another_programs_pipe() {
        use std::os::unix::fs::OpenOptionsExt;

        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK);
        let mut reader = options.open(&path).unwrap();
        let _trace = Trace::create(&path).unwrap();
        let mut head = vec![0; HEADER.len()];
        reader.read_exact(&mut head).unwrap();
        assert_eq!(head, HEADER);
    }

    #[test]
    fn a_trace_does_not_replace_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let record = |trace: Trace| {
            trace.record(&Exchange {
                tag: "t",
                start: Instant::now(),
                request: &request(1, 1, b"x\0"),
                request_len: 42,
                reply: None,
                verdict: Verdict::default(),
            });
        };
        fs::write(&path, "a kernel").unwrap();
        let error = format!("{:#}", Trace::create(&path).unwrap_err());
        assert!(
            error.contains("not a trace: choose another name"),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"a kernel");
        // A link is replaced by the first request, and not before.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        drop(Trace::create(&link).unwrap());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        record(Trace::create(&link).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"a kernel");
        assert!(fs::read(&link).unwrap().starts_with(HEADER));
        // An earlier trace is replaced.
        record(Trace::create(&link).unwrap());
        assert_eq!(fs::read_to_string(&link).unwrap().lines().count(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_trace_reads_as_a_table_with_paths_and_totals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let trace = Trace::create(&path).unwrap();
        let record = |request: &[u8], reply: Option<&[u8]>| {
            trace.record(&Exchange {
                tag: "t",
                start: Instant::now(),
                request,
                request_len: request.len(),
                reply: reply.map(|reply| (reply, reply.len() as u32)),
                verdict: Verdict::default(),
            });
        };
        let found = reply(0, &7_u64.to_le_bytes());
        record(&request(1, 1, b"dir\0"), Some(&found));
        record(&request(1, 7, b"no\0"), Some(&reply(-libc::ENOENT, &[])));
        // A listing with a node for one of two names.
        let mut listing = Vec::new();
        for (node, name) in [(0_u64, "."), (9, "below")] {
            listing.extend(node.to_le_bytes());
            listing.resize(listing.len() + ENTRY - 8 + 16, 0);
            listing.extend((name.len() as u32).to_le_bytes());
            listing.extend([0; 4]);
            listing.extend(name.as_bytes());
            listing.resize(listing.len().next_multiple_of(8), 0);
        }
        record(&request(44, 7, &[0; 40]), Some(&reply(0, &listing)));
        record(&request(3, 9, &[0; 16]), Some(&reply(0, &[0; 104])));
        let mut read = 3_u64.to_le_bytes().to_vec();
        read.extend(4096_u64.to_le_bytes());
        read.extend(100_u32.to_le_bytes());
        record(&request(15, 7, &read), None);
        drop(trace);

        let mut text = Vec::new();
        print(&path, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let line = |parts: &[&str]| {
            let found = text
                .lines()
                .find(|l| parts.iter().all(|part| l.contains(part)));
            assert!(found.is_some(), "no line has {parts:?}:\n{text}");
        };
        line(&["LOOKUP", "t:/dir ", "ok"]);
        line(&["LOOKUP", "t:/dir/no", "No such file"]);
        line(&["READ", "t:/dir ", "never answered, 100 at 4096"]);
        line(&["GETATTR", "t:/dir/below ", "ok"]);
        line(&["all", " 5 ", " 1 "]);
        line(&["5 operations in ", "round trips"]);
    }

    /// A record of a request with this body and reply.
    fn described(opcode: u32, body: &[u8], reply: Option<(&[u8], u32)>, verdict: Verdict) -> Value {
        let origin = Instant::now();
        let request = request(opcode, 7, body);
        let exchange = Exchange {
            tag: "t",
            start: origin + Duration::from_micros(5),
            request: &request,
            request_len: 99,
            reply,
            verdict,
        };
        exchange.describe(origin, origin + Duration::from_micros(12))
    }

    #[test]
    fn a_record_has_what_the_request_and_the_reply_hold() {
        let dropped = Verdict {
            drop: true,
            ..Verdict::default()
        };
        let record = described(3, &[], None, dropped);
        let expected = json!({
            "tag": "t", "at": 5, "op": "GETATTR", "unique": 0, "node": 7, "in": 99, "fault": "drop",
        });
        assert_eq!(record, expected);
        let found = reply(0, &9_u64.to_le_bytes());
        let record = described(1, b"a\xff\0b", Some((&found, 144)), Verdict::default());
        let expected = json!({
            "tag": "t", "at": 5, "took": 7, "op": "LOOKUP", "unique": 0, "node": 7, "in": 99,
            "out": 144, "name": "a\\xff", "child": 9,
        });
        assert_eq!(record, expected);
        // Less than a header was written: nothing is known.
        let record = described(3, &[], Some((&reply(-5, &[]), 15)), Verdict::default());
        assert_eq!((record.get("error"), &record["out"]), (None, &json!(15)));
        let record = described(3, &[], Some((&reply(-5, &[]), 16)), Verdict::default());
        assert_eq!(record["error"], json!(5));
        assert_eq!(described(4096, &[], None, dropped)["op"], json!("4096"));
    }

    #[test]
    fn a_body_is_described_by_its_operation() {
        let names: [(usize, &[&str]); 3] = [
            (0, &["LOOKUP", "UNLINK", "RMDIR", "REMOVEXATTR", "SYMLINK"]),
            (8, &["MKDIR", "GETXATTR", "SETXATTR", "RENAME", "LINK"]),
            (16, &["MKNOD", "CREATE", "RENAME2", "TMPFILE"]),
        ];
        for (at, operations) in names {
            for operation in operations {
                let body = [&[b'x'; 16][..at], b"name\0rest"].concat();
                let opcode = opcode::by_name(operation).unwrap();
                let record = described(opcode, &body, None, Verdict::default());
                assert_eq!(record["name"], json!("name"), "{operation}");
            }
        }
        let mut body = 3_u64.to_le_bytes().to_vec();
        body.extend(4_u64.to_le_bytes());
        body.extend(5_u32.to_le_bytes());
        for (operation, keys) in [
            ("READ", 3),
            ("READDIR", 3),
            ("READDIRPLUS", 3),
            ("WRITE", 3),
            ("RELEASE", 1),
            ("RELEASEDIR", 1),
            ("FSYNC", 1),
            ("LSEEK", 1),
            ("STATFS", 0),
        ] {
            let opcode = opcode::by_name(operation).unwrap();
            let record = described(opcode, &body, None, Verdict::default());
            let found = ["handle", "offset", "size"].map(|key| record.get(key).cloned());
            let all = [json!(3), json!(4), json!(5)].map(Some);
            assert_eq!(found[..keys], all[..keys], "{operation}");
            assert!(found[keys..].iter().all(Option::is_none), "{operation}");
            assert_eq!(record.get("name"), None);
        }
    }

    #[test]
    fn replies_are_recorded_as_far_as_they_are_needed() {
        assert_eq!(REQUEST_HEAD, 552);
        assert_eq!(reply_head(1), 16 + 128);
        assert_eq!(reply_head(44), 64 << 10);
    }

    #[test]
    fn totals_add_up_and_overlapping_requests_are_one_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let lines = r#"{"bootshare-trace":1}
{"tag":"t","at":1000,"took":1500,"op":"LOOKUP","node":1,"in":45,"out":144,"name":"a","child":2}
{"tag":"t","at":2000,"took":250,"op":"LOOKUP","node":2,"in":46,"out":16,"name":"b","error":2}
{"tag":"t","at":2400,"took":600,"op":"READ","node":2,"in":80,"out":26,"offset":9,"size":10}
{"tag":"t","at":4000,"op":"READ","node":5,"in":80,"offset":0,"size":7,"fault":"drop"}
{"tag":"t","at":5000,"took":2000,"op":"FORGET","node":2,"in":48,"out":0}
{"tag":"u","at":6000,"took":1000,"op":"INIT","node":0,"in":56,"out":80,"error":99999}
"#;
        fs::write(&path, lines).unwrap();
        let mut text = Vec::new();
        print(&path, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let rows: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let expected = [
            "at ms took ms operation file bytes result",
            "1.000 1.500 LOOKUP t:/a 144 ok",
            "2.000 0.250 LOOKUP t:/a/b 16 No such file or directory (os error 2)",
            "2.400 0.600 READ t:/a 26 ok, 10 at 9",
            "4.000 - READ t:#5 0 never answered, 7 at 0 (fault: drop)",
            "5.000 2.000 FORGET t:/a 0 ok",
            "6.000 1.000 INIT u: 80 Unknown error 99999 (os error 99999)",
            "",
            "operation count errors lost bytes in bytes out total ms mean ms most ms",
            "FORGET 1 0 0 48 0 2.000 2.000 2.000",
            "INIT 1 1 0 56 80 1.000 1.000 1.000",
            "LOOKUP 2 1 0 91 160 1.750 0.875 1.500",
            "READ 2 0 1 160 26 0.600 0.300 0.600",
            "all 6 2 1 355 266 5.350 0.891 2.000",
            "",
            // From 1.0 to 3.0, at 4.0, and from 6.0 to 7.0.
            "6 operations in 3 round trips; 3.000 ms of 6.000 ms waiting for the server",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_file_that_is_not_a_trace_is_refused_and_a_truncated_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "hello\n").unwrap();
        let error = print(&path, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("is no trace"), "{error}");
        fs::write(&path, "{\"bootshare-trace\":1}\n{\"at\":").unwrap();
        let mut text = Vec::new();
        print(&path, &mut text).unwrap();
        assert!(
            String::from_utf8(text)
                .unwrap()
                .contains("line 2 is cut short")
        );
    }
}
