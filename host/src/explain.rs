//! Errors that say what to do.

use std::fmt::Display;

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
        self.map_err(|cause| anyhow!("{what}: {:#}: {remedy}", cause.into()))
    }
}
