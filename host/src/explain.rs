//! Error messages with a remedy.

use std::fmt::{Display, Formatter, Result as Written};

use anyhow::{Error, Result, anyhow};

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
            cause => anyhow!("{what}: {cause:#}: {remedy}"),
        })
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
    }
}
