//! Compaction: the small files of a partition become few of the configured size, in front of its seal.
//!
//! [`plan`] says which files ([`mod@plan`], pure), [`run`] writes their contents into new staged files of the own
//! incarnation and says what the commit record must say. Published files are only read here: what a record replaces is
//! deleted by whoever finishes the record, once the new files are in their places. Frames of text are passed through
//! ([`text`]), rows of Parquet are encoded anew ([`parquet`]).
//!
//! Invariant: every event of a replaced file is in exactly one of the new ones. So length and checksum of every input are
//! compared with what the log says, and a file that differs stays as it is.

mod budget;
mod input;
mod output;
mod parquet;
pub mod plan;
mod progress;
mod run;
mod text;

pub use budget::Budget;
pub use plan::{Kind, Plan, PlannedFile, plan, plan_except};
pub use progress::{Progress, Refused, Running, Snapshot, Totals};
pub use run::{abandon, run};

use crate::store::StoreError;

/// Why a compaction came to nothing. No published file was touched, and what was staged is deleted as far as that works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    /// The store failed: try later, with a new plan and new numbers.
    #[error("{partition} is not compacted now: {source}")]
    Store {
        /// The partition's directory.
        partition: String,
        /// What it said.
        source: StoreError,
    },
    /// It was told to stop.
    #[error("the compaction of {partition} was stopped")]
    Stopped {
        /// The partition's directory.
        partition: String,
    },
    /// No two files are left that can be joined: what was planned cannot be read, and was reported by name.
    #[error("{partition} stays as it is: no two of its small files can be joined")]
    Nothing {
        /// The partition's directory.
        partition: String,
    },
}

impl CompactError {
    /// May it work later?
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Nothing { .. })
    }
}

/// Why an input is not taken.
#[derive(Debug)]
enum Trouble {
    /// It is not there any more.
    Missing,
    /// It is not what the log says; it stays as it is.
    Refused(String),
    /// The store does not answer: nothing is known about the file.
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } => Self::Missing,
            // Of this file alone: the others can be joined without it.
            StoreError::Permission { .. } | StoreError::Other { .. } => Self::Refused(error.to_string()),
            error => Self::Store(error),
        }
    }
}

#[cfg(test)]
mod tests;
