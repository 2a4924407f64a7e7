//! Slow work beside the commits, one piece at a time: the files of records whose owner did not come to it, and
//! checkpoints. Thin IO; when and what is the coordinator's decision.

use std::collections::BTreeMap;
use std::collections::HashSet;

use bytes::Bytes;
use proto::wire;

use crate::commit::CommitId;
use crate::log::files::{LogFiles, write_once};
use crate::log::view::Finish;
use crate::log::{Layout, layout};
use crate::publish::{self, DirModes};
use crate::store::{Renamed, Store, StoreError};

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
