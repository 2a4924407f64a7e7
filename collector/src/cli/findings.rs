//! What a tool found wrong, and how its process ends: 0 clean, 1 findings, 2 could not look.

use std::fmt;
use std::future::Future;

use serde::Serialize;

use crate::commit::solo::SoloError;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file it is about.
    pub file: String,
    /// The fact.
    pub what: String,
    /// What follows from it.
    pub means: String,
    /// The way out.
    pub what_to_do: String,
}

impl Finding {
    /// All four sentences.
    pub fn new(
        file: impl Into<String>,
        what: impl Into<String>,
        means: impl Into<String>,
        what_to_do: impl Into<String>,
    ) -> Self {
        Self { file: file.into(), what: what.into(), means: means.into(), what_to_do: what_to_do.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "FINDING {}: {}", self.file, self.what)?;
        writeln!(f, "  means: {}", self.means)?;
        write!(f, "  do: {}", self.what_to_do)
    }
}

/// The end of a tool that is not clean.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Ended {
    /// For the process.
    pub code: u8,
    /// For standard error; empty where standard output has said it.
    pub message: String,
}

/// What a command that acts was told not to do, or could not do to the end; the log itself is whole.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Makes an end of a command that acts: 0 done, 1 refused or not finished, 2 could not look.
pub async fn acted(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let Err(error) = work.await else { return Ok(()) };
    let by_the_log = |error: &SoloError| matches!(error, SoloError::Refused(_) | SoloError::Unfinished { .. });
    let refused = error.is::<Refused>() || error.downcast_ref().is_some_and(by_the_log);
    Err(Ended { code: if refused { 1 } else { 2 }, message: format!("{error:#}") }.into())
}

/// Makes an end of what a tool answered: the number of its findings, or why it could not look.
pub async fn ended(work: impl Future<Output = anyhow::Result<usize>>) -> anyhow::Result<()> {
    match work.await {
        Ok(0) => Ok(()),
        Ok(_) => Err(Ended { code: 1, message: String::new() }.into()),
        Err(error) => Err(Ended { code: 2, message: format!("{error:#}") }.into()),
    }
}
