//! What can go wrong with the outbox, and whether it is only a lack of room.

use std::path::PathBuf;

use common::record_log::LogError;
use proto::header::HeaderError;

use super::entry::FORMAT;
use super::rejected;

/// Why the outbox cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The log failed; nothing more is stored until the process is started again.
    #[error("the outbox cannot be written or read: {0}")]
    Log(#[from] LogError),
    /// A newer release wrote it.
    #[error("the outbox has format {found}, this release reads up to {FORMAT}: start the newer release again")]
    NewerFormat {
        /// Format found.
        found: u32,
    },
    /// A checked record that does not decode: not written by this program.
    #[error("a record of the outbox cannot be understood: {0}")]
    Undecodable(String),
    /// A header that this process made is not valid; a defect.
    #[error("a batch header could not be made: {0}")]
    Header(#[from] HeaderError),
    /// Keeping rejected bytes failed.
    #[error("keeping bytes under {path} failed: {error}")]
    Rejected {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl OutboxError {
    /// There was no room, and that was all: nothing was lost, and the call may be made again.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Log(error) => error.is_full(),
            Self::Rejected { error, .. } => rejected::is_full(error),
            _ => false,
        }
    }
}
