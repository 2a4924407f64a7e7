//! Slow work beside the commits, one piece at a time: looking at the other runs, the files of records whose owner did
//! not come to it, directories of retired runs, checkpoints, cleaning. Thin IO; when and what is the coordinator's
//! decision.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use proto::wire;

use crate::commit::CommitId;
use crate::housekeeping::clean::{Cleaned, clean};
use crate::housekeeping::life::{self, Looked};
use crate::housekeeping::look::look;
use crate::housekeeping::retention;
use crate::log::files::{LogFiles, MAX_BYTES, write_once};
use crate::log::view::{Finish, PartitionKey, partitions};
use crate::log::{Layout, layout};
use crate::publish::{self, DirModes};
use crate::seal::marker::orphaned_markers;
use crate::seal::{Marker, finish_marker};
use crate::store::{Renamed, Store, StoreError};

/// One piece of work.
#[derive(Debug)]
pub enum Chore {
    /// Look at all staging directories.
    Look,
    /// Finish records.
    Sweep {
        /// What is left to do for each.
        work: Work,
        /// Markers of all partitions that are named in it, as the log has them now.
        markers: Markers,
    },
    /// Give the directory of a retired run a name that it does not know, so that it can rename nothing any more.
    Fence(String),
    /// Delete such a directory.
    Delete {
        /// Whose.
        incarnation: String,
        /// Markers that it had taken away.
        markers: Vec<(CommitId, Marker)>,
    },
    /// Write a checkpoint of the records below a number.
    Checkpoint {
        /// Names its draft.
        id: CommitId,
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
    /// The directory of a retired run has its other name, or is gone.
    Fenced {
        /// Whose.
        incarnation: String,
        /// Partitions whose markers lie in it; none: not now.
        markers: Option<Vec<PartitionKey>>,
    },
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
    /// Does one piece. `known` is the highest checkpoint that was seen.
    pub async fn perform(&self, chore: Chore, known: u64) -> Done {
        let store = &**self.log.store();
        match chore {
            Chore::Look => match look(store, self.layout.incarnation()).await {
                Ok(looked) => Done::Looked(Some(looked)),
                Err(error) => {
                    tracing::info!(%error, "staging directories cannot be listed now");
                    Done::Looked(None)
                }
            },
            Chore::Sweep { work, markers } => {
                Done::Swept(sweep(store, &self.layout, &self.modes, work, &markers).await)
            }
            Chore::Fence(incarnation) => {
                let markers = fence(store, &incarnation).await;
                Done::Fenced { incarnation, markers }
            }
            Chore::Delete { incarnation, markers } => {
                let gone = delete(store, &self.layout, &incarnation, markers).await;
                Done::Deleted { incarnation, gone }
            }
            Chore::Checkpoint { id, next, bytes } => {
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

/// Gives the directory of a retired run its other name. What it holds that is still needed; none: not known now.
async fn fence(store: &dyn Store, incarnation: &str) -> Option<Vec<PartitionKey>> {
    let from = format!("{}/{incarnation}", layout::STAGING);
    let to = format!("{}/{}", layout::STAGING, life::fenced(incarnation));
    let renamed = store.rename_new(&from, &to).await;
    let there = match renamed {
        Ok(Renamed::Done | Renamed::SourceMissing) => orphaned_markers(store, &to).await,
        Ok(other) => {
            tracing::warn!(incarnation, ?other, "directory of a retired run cannot get its other name");
            return None;
        }
        Err(error) => Err(error),
    };
    match there {
        Ok(keys) => Some(keys),
        // Somebody else has deleted it.
        Err(StoreError::NotFound { .. }) => Some(Vec::new()),
        Err(error) => {
            tracing::info!(incarnation, %error, "directory of a retired run cannot be deleted now");
            None
        }
    }
}

/// Deletes the directory of a retired run with all it holds, open files too. True when it is gone.
async fn delete(store: &dyn Store, own: &Layout, incarnation: &str, markers: Vec<(CommitId, Marker)>) -> bool {
    let dir = format!("{}/{}", layout::STAGING, life::fenced(incarnation));
    for (id, marker) in &markers {
        if let Err(error) = finish_marker(store, own, *id, marker).await {
            tracing::info!(file = marker.path(), %error, "marker cannot be written now");
            return false;
        }
    }
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
/// Markers by partition.
pub type Markers = HashMap<PartitionKey, (CommitId, Marker)>;

/// Finishes records: what is still staged goes to its place, then what it replaces is deleted, then markers are written.
/// One listing per incarnation tells what is staged; returns what is left of each record, everything if the store does
/// not answer.
pub async fn sweep(store: &dyn Store, own: &Layout, modes: &DirModes, work: Work, markers: &Markers) -> Work {
    let mut incarnations: BTreeMap<String, Work> = BTreeMap::new();
    for (n, finish) in work {
        incarnations.entry(finish.incarnation.clone()).or_default().push((n, finish));
    }
    let mut left = Vec::new();
    for (incarnation, records) in incarnations {
        let dir = format!("{}/{incarnation}", layout::STAGING);
        let needs_listing = records.iter().any(|(_, finish)| !finish.bring.is_empty());
        let listed = if needs_listing { store.list(&dir).await } else { Ok(Vec::new()) };
        let staged: HashSet<String> = match listed {
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
                tracing::info!(
                    n,
                    incarnation,
                    files = finish.bring.len(),
                    "bringing files of a record to their places"
                );
            }
            let brought = publish::bring_all(store, modes, std::mem::take(&mut finish.bring)).await;
            finish.bring = brought.again.into_iter().chain(brought.stuck).collect();
            if finish.bring.is_empty() {
                finish.remove = remove(store, finish.remove).await;
            }
            left.push((n, finish));
        }
    }
    mark(store, own, &mut left, markers).await;
    left
}

/// Is this a file in that partition, or one that came late for it?
pub fn file_of(file: &wire::PublishedFile, key: &PartitionKey) -> bool {
    let is_of = |dataset: &str| partitions::key(0, dataset, file.partition.as_ref()).is_ok_and(|of| of == *key);
    is_of(&file.dataset) || (!file.late_of.is_empty() && is_of(&file.late_of))
}

/// Writes the markers that records ask for and that are given, one per partition, once no file of it is left.
async fn mark(store: &dyn Store, own: &Layout, left: &mut Work, markers: &Markers) {
    for (key, (id, marker)) in markers {
        let is_left = |finish: &Finish| {
            let removes = finish.markers.contains(key) && !finish.remove.is_empty();
            removes || finish.bring.iter().any(|file| file_of(file, key))
        };
        if left.iter().any(|(_, finish)| is_left(finish)) {
            continue;
        }
        match finish_marker(store, own, *id, marker).await {
            Ok(()) => left.iter_mut().for_each(|(_, finish)| finish.markers.retain(|of| of != key)),
            Err(error) => tracing::info!(file = marker.path(), %error, "marker cannot be written now"),
        }
    }
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
    checkpoint_within(MAX_BYTES, log, own, id, next, bytes, known).await
}

async fn checkpoint_within(
    max_bytes: u64,
    log: &LogFiles,
    own: &Layout,
    id: CommitId,
    next: u64,
    bytes: Bytes,
    known: u64,
) -> u64 {
    let store = &**log.store();
    if bytes.len() as u64 > max_bytes {
        tracing::error!(
            next,
            bytes = bytes.len(),
            max_bytes,
            "checkpoint not written, nobody could read one of this length: the log is kept instead and grows"
        );
        return known;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DestinationConfig, open};

    #[tokio::test]
    async fn a_checkpoint_that_nobody_could_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        let own = Layout::new("col-1-run");
        for path in [layout::CHECKPOINTS, &own.staging()] {
            store.make_dirs(path, 0o750).await.unwrap();
        }
        let log = LogFiles::new(Arc::clone(&store), 0);
        let bytes: Bytes = proto::record::encode_checkpoint(&wire::Checkpoint { next: 7, ..Default::default() }).into();
        let max = bytes.len() as u64;
        let written = checkpoint_within(max - 1, &log, &own, CommitId([1; 16]), 7, bytes.clone(), 3).await;
        assert_eq!((written, log.highest_checkpoint().await.unwrap()), (3, None));
        let written = checkpoint_within(max, &log, &own, CommitId([2; 16]), 7, bytes, 3).await;
        assert_eq!((written, log.highest_checkpoint_number().await.unwrap()), (7, Some(7)));
    }
}
