//! Error messages with a remedy.

use std::fmt::{Display, Formatter, Result as Written};
use std::io;

use anyhow::{Error, Result, anyhow};
use rustix::io::Errno;

/// Turns an error into one that names the thing, the cause and the remedy, in this order.
pub trait Explain<T> {
    /// Adds what failed before the error's own text, and the remedy after it.
    ///
    /// # Errors
    /// The original error with these two texts around it.
    fn explain(self, what: impl Display, remedy: impl Display) -> Result<T>;
}

impl<T, E: Into<Error>> Explain<T> for Result<T, E> {
    fn explain(self, what: impl Display, remedy: impl Display) -> Result<T> {
        self.map_err(|cause| match cause.into() {
            // An interruption by the user is no fault and needs no remedy.
            cause if cause.is::<Interrupted>() => cause,
            cause => remedied(&cause.context(what.to_string()), remedy),
        })
    }
}

/// Adds the remedy to an error that names the thing already. If a limit of the process is the cause, its
/// remedy is added instead.
pub(crate) fn remedied(error: &Error, remedy: impl Display) -> Error {
    match remedy_of(error) {
        Some(limit) => anyhow!("{error:#}: {limit}"),
        None => anyhow!("{error:#}: {remedy}"),
    }
}

/// An error's text, with a remedy if a limit of the process is the cause.
pub fn text_of(error: &Error) -> String {
    match remedy_of(error) {
        Some(limit) => format!("{error:#}: {limit}"),
        None => format!("{error:#}"),
    }
}

/// The remedy if a limit of the process is the cause, whatever the process was doing.
fn remedy_of(error: &Error) -> Option<&'static str> {
    let cause = error.root_cause();
    let code = match cause.downcast_ref::<io::Error>() {
        Some(cause) => cause.raw_os_error()?,
        None => cause.downcast_ref::<Errno>()?.raw_os_error(),
    };
    match code {
        // The soft limit was raised to the hard one.
        libc::EMFILE => Some("raise the hard limit of open files (`ulimit -Hn`, as root)"),
        libc::ENFILE => Some("end other programs, or raise fs.file-max (sysctl)"),
        libc::EAGAIN => Some(
            "end other programs, or raise the limit of processes (`ulimit -u`, a container's pids.max)",
        ),
        libc::EFBIG => Some("raise the limit of a file's size (`ulimit -f unlimited`)"),
        _ => None,
    }
}

/// A signal arrived before the machine was started, so there is no outcome to report.
#[derive(Debug)]
pub struct Interrupted;

impl Display for Interrupted {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_thing_cause_and_remedy_unless_the_user_interrupted() {
        let failed: Result<()> = Err(anyhow!("the cause"));
        let error = failed.explain("the thing", "the remedy").unwrap_err();
        assert_eq!(error.to_string(), "the thing: the cause: the remedy");
        let interrupted: Result<()> = Err(Interrupted.into());
        let error = interrupted.explain("the thing", "the remedy").unwrap_err();
        assert!(error.is::<Interrupted>());
        assert_eq!(error.to_string(), "interrupted");
        assert_eq!(Ok::<_, Error>(3).explain("", "").unwrap(), 3);
        let limited: Result<()> = Err(io::Error::from_raw_os_error(libc::EMFILE).into());
        let error = limited.explain("the thing", "the remedy").unwrap_err();
        let wanted = "Too many open files (os error 24): raise the hard limit of open files (`ulimit -Hn`, as root)";
        assert_eq!(error.to_string(), format!("the thing: {wanted}"));
        let bare = Error::from(Errno::MFILE).context("the thing");
        assert_eq!(text_of(&bare), format!("the thing: {wanted}"));
        assert_eq!(text_of(&anyhow!("other")), "other");
    }
}
