//! Errors that say what to do.

use std::fmt::{Display, Formatter, Result as Written};

use anyhow::{Error, Result, anyhow};

/// Makes of an error one that names the thing, the cause and the remedy, in this order.
pub trait Explain<T> {
    /// What failed, and what to do.
    ///
    /// # Errors
    /// That of before, with these around it.
    fn explain(self, what: impl Display, remedy: impl Display) -> Result<T>;
}

impl<T, E: Into<Error>> Explain<T> for Result<T, E> {
    fn explain(self, what: impl Display, remedy: impl Display) -> Result<T> {
        self.map_err(|cause| match cause.into() {
            // That is no fault, and has no remedy.
            cause if cause.is::<Interrupted>() => cause,
            cause => anyhow!("{what}: {cause:#}: {remedy}"),
        })
    }
}

/// A signal came, before there was anything whose end could be told.
#[derive(Debug)]
pub struct Interrupted;

impl Display for Interrupted {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}
