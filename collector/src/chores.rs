//! Slow work beside the commits, one piece at a time: looking at the other runs, the files of records whose owner did
//! not come to it, directories of retired runs, checkpoints, cleaning. Thin IO; when and what is the coordinator's
//! decision.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use proto::wire;

use crate::commit::CommitId;
use crate::housekeeping::clean::{Cleaned, clean};
use crate::housekeeping::life::Looked;
use crate::housekeeping::look::look;
use crate::housekeeping::retention;
use crate::log::files::{LogFiles, write_once};
use crate::log::view::Finish;
use crate::log::{Layout, layout};
use crate::publish::{self, DirModes};
use crate::store::{Renamed, Store, StoreError};

/// One piece of work.
#[derive(Debug)]
pub enum Chore {
    /// Look at all staging directories.
    Look,
    /// Finish records.
    Sweep(Work),
    /// Delete the directory of a retired run.
    Delete(String),
    /// Write a checkpoint of the records below a number.
    Checkpoint {
        /// Records below it are covered.
        next: u64,
        /// Encoded, with its envelope.
        bytes: Bytes,
    },
    /// Delete files of the own directory that are of no use any more, by name.
    Leftovers(Vec<String>),
    /// Free numbers of the log.
    Clean {
        /// Of records written before this, milliseconds since the epoch.
        older_than_unix_ms: i64,
    },
    /// Delete old quarantine and dead letters.
    Retention(retention::Limits),
}

/// How it ended.
#[derive(Debug)]
pub enum Done {
    /// What the directories show; none: not now.
    Looked(Option<Looked>),
    /// What is left of each record.
    Swept(Work),
    /// Is the directory gone for good?
    Deleted {
        /// Whose.
        incarnation: String,
        /// No listing shows it any more.
        gone: bool,
    },
    /// A checkpoint was written, or could not be: the highest one known then.
    Checkpointed(u64),
    /// Small files were deleted.
    Tidied,
    /// Numbers were freed.
    Cleaned(Cleaned),
}

/// What chores are done with.
#[derive(Debug, Clone)]
pub struct Hands {
    /// The log, and its store.
    pub log: LogFiles,
    /// Own names.
    pub layout: Layout,
    /// Modes of partition directories.
    pub modes: Arc<DirModes>,
}

impl Hands {
    /// Does one piece. `id` names what is written; `known` is the highest checkpoint that was seen.
    pub async fn perform(&self, chore: Chore, id: CommitId, known: u64) -> Done {
        let store = &**self.log.store();
        match chore {
            Chore::Look => match look(store, self.layout.incarnation()).await {
                Ok(looked) => Done::Looked(Some(looked)),
                Err(error) => {
                    tracing::info!(%error, "staging directories cannot be listed now");
                    Done::Looked(None)
                }
            },
            Chore::Sweep(work) => Done::Swept(sweep(store, &self.modes, work).await),
            Chore::Delete(incarnation) => {
                let gone = delete(store, &incarnation).await;
                Done::Deleted { incarnation, gone }
            }
            Chore::Checkpoint { next, bytes } => {
                Done::Checkpointed(checkpoint(&self.log, &self.layout, id, next, bytes, known).await)
            }
            Chore::Leftovers(names) => {
                tidy(store, &self.layout, names).await;
                Done::Tidied
            }
            Chore::Clean { older_than_unix_ms } => {
                let cleaned = clean(&self.log, self.layout.incarnation(), older_than_unix_ms).await;
                if let Err(error) = &cleaned {
                    tracing::info!(%error, "the log cannot be cleaned now");
                }
                Done::Cleaned(cleaned.unwrap_or_default())
            }
            Chore::Retention(limits) => {
                if let Err(error) = retention::delete_old(store, limits).await {
                    tracing::info!(%error, "old quarantine and dead letters cannot be deleted now");
                }
                Done::Tidied
            }
        }
    }
}

/// Deletes the directory of a retired run with all it holds, open files too. True when it is gone.
async fn delete(store: &dyn Store, incarnation: &str) -> bool {
    let dir = format!("{}/{incarnation}", layout::STAGING);
    if let Err(error) = store.delete(&dir, true).await {
        tracing::info!(incarnation, %error, "directory of a retired run cannot be deleted now");
        return false;
    }
    match store.stat(&dir).await {
        Ok(None) => {
            tracing::info!(incarnation, "directory of a retired run deleted");
            true
        }
        Ok(Some(_)) | Err(_) => false,
    }
}

async fn tidy(store: &dyn Store, own: &Layout, names: Vec<String>) {
    for name in names {
        if let Err(error) = store.delete(&format!("{}/{name}", own.staging()), false).await {
            tracing::info!(name, %error, "leftover cannot be deleted now");
            return;
        }
    }
}

/// Records with what is left to do for each.
pub type Work = Vec<(u64, Finish)>;

/// Finishes records: what is still staged goes to its place, then what it replaces is deleted. One listing per
/// incarnation tells what is staged; returns what is left of each record, everything if the store does not answer.
pub async fn sweep(store: &dyn Store, modes: &DirModes, work: Work) -> Work {
    let mut incarnations: BTreeMap<String, Work> = BTreeMap::new();
    for (n, finish) in work {
        incarnations.entry(finish.incarnation.clone()).or_default().push((n, finish));
    }
    let mut left = Vec::new();
    for (incarnation, records) in incarnations {
        let dir = format!("{}/{incarnation}", layout::STAGING);
        let staged: HashSet<String> = match store.list(&dir).await {
            Ok(entries) => entries.into_iter().map(|entry| entry.name).collect(),
            // Deleted after everything in it was brought to its place.
            Err(StoreError::NotFound { .. }) => HashSet::new(),
            Err(error) => {
                tracing::info!(incarnation, %error, "staging directory cannot be listed now");
                left.extend(records);
                continue;
            }
        };
        for (n, mut finish) in records {
            let is_staged = |file: &wire::PublishedFile| {
                file.staged.rsplit_once('/').is_none_or(|(parent, name)| parent != dir || staged.contains(name))
            };
            finish.bring.retain(is_staged);
            if !finish.bring.is_empty() {
                tracing::info!(n, incarnation, files = finish.bring.len(), "finishing the record of another run");
            }
            let brought = publish::bring_all(store, modes, std::mem::take(&mut finish.bring)).await;
            finish.bring = brought.again.into_iter().chain(brought.stuck).collect();
            if finish.bring.is_empty() {
                finish.remove = remove(store, finish.remove).await;
            }
            left.push((n, finish));
        }
    }
    left
}

/// Deletes files that a record replaced; returns those that may still be there.
async fn remove(store: &dyn Store, paths: Vec<String>) -> Vec<String> {
    let mut left = Vec::new();
    for path in paths {
        if let Err(error) = store.delete(&path, false).await {
            tracing::info!(file = %path, %error, "replaced file cannot be deleted now");
            left.push(path);
        }
    }
    left
}

/// Writes the checkpoint of all records below `next`, unless there is a higher one. Returns the highest that is known
/// then; `known` if nothing could be learnt.
pub async fn checkpoint(log: &LogFiles, own: &Layout, id: CommitId, next: u64, bytes: Bytes, known: u64) -> u64 {
    let store = &**log.store();
    match log.highest_checkpoint_number().await {
        Ok(Some(highest)) if highest >= next || highest > known => return highest,
        Ok(_) => {}
        Err(error) => {
            tracing::info!(%error, "checkpoints cannot be listed now");
            return known;
        }
    }
    let draft = own.small("checkpoint", id);
    if let Err(error) = write_once(store, &draft, bytes).await {
        tracing::info!(%error, "checkpoint cannot be written now");
        return known;
    }
    match store.rename_new(&draft, &layout::checkpoint(next)).await {
        Ok(Renamed::Done) => {
            tracing::info!(next, "checkpoint written");
            next
        }
        Ok(Renamed::TargetExists) => next,
        Ok(other) => {
            tracing::warn!(next, ?other, "checkpoint cannot get its name");
            known
        }
        // If it is carried out later it says the same.
        Err(error) => {
            tracing::info!(%error, "checkpoint cannot get its name now");
            known
        }
    }
}
