//! The embedded server's trace of a run.

use crate::machines;
use anyhow::{Context, Result};
use bootshare_host::Machine;
use serde_json::Value;
use std::{fs, path::Path};

/// A request that was answered.
pub struct Request {
    /// Its operation.
    pub op: String,
    /// The node that it concerns.
    pub node: u64,
    /// The name in the request, if it has one.
    pub name: Option<String>,
    /// The node in the reply.
    pub child: Option<u64>,
    /// When the server received it, in ms since the server's start.
    pub at: f64,
    /// When the server answered it, in the same unit.
    pub end: f64,
}

/// Runs `machine`, and returns the requests of its first session. The trace is written to `path`.
///
/// The cost of recording is smaller than the spread, both for a listing of 20,000 requests and for the
/// 300 large requests of a boot.
pub fn run(machine: &mut Machine, path: &Path) -> Result<Vec<Request>> {
    machine.trace = Some(path.to_owned());
    machines::run(machine)?;
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the trace {}", path.display()))?;
    let mut requests = Vec::new();
    for line in text.lines() {
        let Some(request) = parse(line)? else {
            continue;
        };
        // The kernel's driver starts another session after this.
        let is_last = request.op == "DESTROY";
        requests.push(request);
        if is_last {
            break;
        }
    }
    Ok(requests)
}

/// Parses a line of the trace. The first line has no request.
fn parse(line: &str) -> Result<Option<Request>> {
    let value: Value = serde_json::from_str(line).context("the trace")?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let ms = |key: &str| number(key).unwrap_or(0) as f64 / 1e3;
    let at = ms("at");
    Ok(text("op").map(|op| Request {
        op,
        node: number("node").unwrap_or(0),
        name: text("name"),
        child: number("child"),
        at,
        end: at + ms("took"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_request_are_in_ms() {
        let line = r#"{"at":1500,"took":250,"op":"LOOKUP","node":1,"name":"a","child":7}"#;
        let request = parse(line).unwrap().unwrap();
        assert_eq!((request.at, request.end), (1.5, 1.75));
        assert_eq!(request.child, Some(7));
        assert!(parse(r#"{"bootshare-trace":1}"#).unwrap().is_none());
    }
}
