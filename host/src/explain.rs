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
