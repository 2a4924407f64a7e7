//! Slow work beside the commits, one piece at a time: the files of records whose owner did not come to it, and
//! checkpoints. Thin IO; when and what is the coordinator's decision.

use std::collections::BTreeMap;
use std::collections::HashSet;

use bytes::Bytes;
use proto::wire;

use crate::commit::CommitId;
use crate::log::files::{LogFiles, write_once};
use crate::log::{Layout, layout};
use crate::publish::{self, DirModes};
use crate::store::{Renamed, Store, StoreError};

/// A record with the files to be looked after: number, incarnation, files.
pub type Work = Vec<(u64, String, Vec<wire::PublishedFile>)>;

/// Brings what is still staged of these records to its place. One listing per incarnation tells what is; returns what
/// is left of each record, everything if the store does not answer.
pub async fn sweep(store: &dyn Store, modes: &DirModes, work: Work) -> Vec<(u64, Vec<wire::PublishedFile>)> {
    let mut incarnations: BTreeMap<String, Vec<(u64, Vec<wire::PublishedFile>)>> = BTreeMap::new();
    for (n, incarnation, files) in work {
        incarnations.entry(incarnation).or_default().push((n, files));
    }
    let mut left = Vec::new();
    for (incarnation, records) in incarnations {
        let dir = format!("{}/{incarnation}", layout::STAGING);
        let staged: HashSet<String> = match store.list(&dir).await {
            Ok(entries) => entries.into_iter().map(|entry| entry.name).collect(),
            // Deleted by a later release, after everything in it was brought to its place.
            Err(StoreError::NotFound { .. }) => HashSet::new(),
            Err(error) => {
                tracing::info!(incarnation, %error, "staging directory cannot be listed now");
                left.extend(records);
                continue;
            }
        };
        for (n, files) in records {
            let is_staged = |file: &wire::PublishedFile| {
                file.staged.rsplit_once('/').is_none_or(|(parent, name)| parent != dir || staged.contains(name))
            };
            let waiting: Vec<_> = files.into_iter().filter(is_staged).collect();
            if !waiting.is_empty() {
                tracing::info!(n, incarnation, files = waiting.len(), "finishing the record of another run");
            }
            let brought = publish::bring_all(store, modes, waiting).await;
            left.push((n, brought.again.into_iter().chain(brought.stuck).collect()));
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
