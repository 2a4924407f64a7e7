//! Carries one step of the planner out on the store. Thin: it decides nothing, every answer goes back as it came.

use std::sync::Arc;

use super::draft::CommitId;
use super::planner::{Outcome, Step, Stop};
use crate::log::files::{LogError, LogFiles, ReadRecord, write_once};
use crate::log::{Layout, layout};
use crate::publish::{self, DirModes};
use crate::store::{Store, StoreError};

/// Hands for the planner.
#[derive(Debug, Clone)]
pub struct Driver {
    log: LogFiles,
    layout: Layout,
    modes: Arc<DirModes>,
}

impl Driver {
    /// For one incarnation.
    pub fn new(log: LogFiles, layout: Layout, modes: Arc<DirModes>) -> Self {
        Self { log, layout, modes }
    }

    /// Does one step. A future that is dropped leaves its step unanswered: only a process that ends may do that.
    pub async fn perform(&self, step: Step) -> Outcome {
        match step {
            Step::Read { n } => self.read(n).await,
            Step::WriteDraft { id, bytes } => match write_once(self.store(), &self.layout.draft(id), bytes).await {
                Ok(()) => Outcome::Written,
                Err(error) => Outcome::Unusable(error.to_string()),
            },
            Step::Rename { id, n } => self.rename(id, n).await,
            Step::Void { id } => match self.store().rename_new(&self.layout.draft(id), &self.layout.void(id)).await {
                Ok(renamed) => Outcome::Voided(renamed),
                Err(error) => Outcome::Again(error.to_string()),
            },
            Step::OwnDirectory => match self.store().stat(&self.layout.staging()).await {
                Ok(stat) => Outcome::OwnDirectory(stat.is_some()),
                Err(error) => Outcome::Again(error.to_string()),
            },
            Step::Publish { files } => Outcome::Published(publish::bring_all(self.store(), &self.modes, files).await),
        }
    }

    async fn read(&self, n: u64) -> Outcome {
        match self.log.record(n).await {
            Ok(ReadRecord::Record(record)) => Outcome::Record { n, record },
            Ok(ReadRecord::End) => Outcome::End { n },
            Err(LogError::Unavailable(error)) => Outcome::Again(error.to_string()),
            Err(LogError::Newer(what)) => Outcome::Stop(Stop::Newer(what)),
            Err(LogError::Broken(what)) => Outcome::Stop(Stop::Log(what)),
        }
    }

    async fn rename(&self, id: CommitId, n: u64) -> Outcome {
        match self.store().rename_new(&self.layout.draft(id), &layout::commit(n)).await {
            Ok(renamed) => Outcome::Renamed(renamed),
            // Nothing was done.
            Err(error @ (StoreError::Unavailable { .. } | StoreError::Full { .. } | StoreError::Permission { .. })) => {
                Outcome::Again(error.to_string())
            }
            // Whatever else was answered or not: it is settled like a time-out.
            Err(error) => Outcome::RenameUnanswered(error.to_string()),
        }
    }

    fn store(&self) -> &dyn Store {
        &**self.log.store()
    }
}
