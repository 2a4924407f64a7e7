//! Brings files of commit records from their staged to their final names: for the own record before the answers leave,
//! and for any record of a collector that did not come to it (roll-forward). Idempotent, any number may do it at once.
//!
//! Keeps I5: nothing is ever replaced; a file whose staged and final name are both missing is reported once by name.

use std::collections::HashMap;

use futures::StreamExt;
use proto::wire;

use crate::log::layout;
use crate::store::{Reach, Renamed, Store, StoreError};

/// Renames under way at once.
const PARALLEL: usize = 8;
const PRIVATE_DIR: u32 = 0o700;
const DEFAULT_DIR: u32 = 0o750;

/// Modes and groups of the directories of datasets, by dataset.
#[derive(Debug, Clone, Default)]
pub struct DirModes(HashMap<String, (u32, Option<String>)>);

impl DirModes {
    /// From the declarations.
    pub fn new(modes: impl IntoIterator<Item = (String, u32, Option<String>)>) -> Self {
        Self(modes.into_iter().map(|(dataset, mode, group)| (dataset, (mode, group))).collect())
    }

    fn of(&self, file: &wire::PublishedFile) -> (u32, Option<&str>) {
        if file.kind() != wire::FileKind::Data {
            return (PRIVATE_DIR, None);
        }
        // Late events lie in a dataset of their own that nobody declares: as readable as what they missed.
        let dataset = if file.late_of.is_empty() { &file.dataset } else { &file.late_of };
        self.0.get(dataset).map_or((DEFAULT_DIR, None), |(mode, group)| (*mode, group.as_deref()))
    }
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brought {
    /// It is in its final place, or was brought there by somebody else.
    Done,
    /// Neither name exists: replaced by a later record, or removed by its users.
    Missing,
    /// To be tried again at once: the store as a whole is away, or did not answer.
    Again(String),
    /// The store refuses this path, for example by a quota: nothing else waits for it.
    Stuck(String),
}

/// What became of many.
#[derive(Debug, Clone, Default)]
pub struct BroughtAll {
    /// To be tried again.
    pub again: Vec<wire::PublishedFile>,
    /// Why the first of those was not brought.
    pub reason: Option<String>,
    /// Refused by the store: reported here, to be tried now and then, and nothing waits for them.
    pub stuck: Vec<wire::PublishedFile>,
}

/// Brings every file to its place; missing ones are reported here, once.
pub async fn bring_all(store: &dyn Store, modes: &DirModes, files: Vec<wire::PublishedFile>) -> BroughtAll {
    let mut all = BroughtAll::default();
    let work = files.into_iter().map(|file| async move {
        let brought = bring(store, modes, &file).await;
        (file, brought)
    });
    let mut done = futures::stream::iter(work).buffered(PARALLEL);
    while let Some((file, brought)) = done.next().await {
        match brought {
            Brought::Done => {}
            Brought::Missing => tracing::warn!(
                file = %file.r#final,
                "published file is missing under its staged and its final name: a later record replaced it, or it was removed"
            ),
            Brought::Again(reason) => {
                all.reason.get_or_insert(reason);
                all.again.push(file);
            }
            Brought::Stuck(reason) => {
                tracing::error!(file = %file.r#final, staged = %file.staged, reason, "committed file cannot be brought to its place");
                all.stuck.push(file);
            }
        }
    }
    all
}

/// Brings one file to its place.
pub async fn bring(store: &dyn Store, modes: &DirModes, file: &wire::PublishedFile) -> Brought {
    match try_bring(store, modes, file).await {
        Ok(brought) => brought,
        Err(error) if error.reach() == Reach::Store => Brought::Again(error.to_string()),
        Err(error) => Brought::Stuck(error.to_string()),
    }
}

async fn try_bring(store: &dyn Store, modes: &DirModes, file: &wire::PublishedFile) -> Result<Brought, StoreError> {
    let group = (!file.group.is_empty()).then_some(file.group.as_str());
    match store.set_attributes(&file.staged, file.mode, group).await {
        Ok(()) => {}
        Err(StoreError::NotFound { .. }) => return at_final(store, file).await,
        Err(error @ (StoreError::Permission { .. } | StoreError::Other { .. })) => {
            tracing::error!(file = %file.staged, %error, "mode or group of a published file cannot be set: published as it is");
        }
        Err(error) => return Err(error),
    }
    match store.rename_new(&file.staged, &file.r#final).await? {
        Renamed::Done => return Ok(Brought::Done),
        Renamed::SourceMissing => return at_final(store, file).await,
        Renamed::TargetExists => return taken(store, file).await,
        Renamed::ParentMissing => {}
    }
    make_parent(store, modes, file).await?;
    match store.rename_new(&file.staged, &file.r#final).await? {
        Renamed::Done => Ok(Brought::Done),
        Renamed::SourceMissing => at_final(store, file).await,
        Renamed::TargetExists => taken(store, file).await,
        Renamed::ParentMissing => Ok(Brought::Again(format!("{} vanished again", parent_of(file)))),
    }
}

/// Makes every directory below the root that is missing, with mode and group: who may read the last one must be able to
/// reach it. Those that are there belong to whoever made them.
async fn make_parent(store: &dyn Store, modes: &DirModes, file: &wire::PublishedFile) -> Result<(), StoreError> {
    let (mode, group) = modes.of(file);
    let parent = parent_of(file);
    let ends = parent.match_indices('/').map(|(at, _)| at).chain([parent.len()]);
    for dir in ends.map(|end| &parent[..end]) {
        if store.stat(dir).await?.is_some() {
            continue;
        }
        store.make_dirs(dir, mode).await?;
        if group.is_some()
            && let Err(error) = store.set_attributes(dir, mode, group).await
        {
            tracing::warn!(dir, %error, "mode or group of a partition directory cannot be set");
        }
    }
    Ok(())
}

fn parent_of(file: &wire::PublishedFile) -> &str {
    layout::parent(&file.r#final)
}

async fn taken(store: &dyn Store, file: &wire::PublishedFile) -> Result<Brought, StoreError> {
    Ok(match store.stat(&file.staged).await? {
        None => Brought::Done,
        Some(_) => Brought::Stuck("something that is not ours stands under its final name".into()),
    })
}

async fn at_final(store: &dyn Store, file: &wire::PublishedFile) -> Result<Brought, StoreError> {
    Ok(if store.stat(&file.r#final).await?.is_some() { Brought::Done } else { Brought::Missing })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::store::observed::{Call, Observed};
    use crate::store::{DestinationConfig, open};

    fn staged(root: &Path, name: &str, dataset: &str, late_of: &str, partition: &str) -> wire::PublishedFile {
        std::fs::write(root.join(name), "x\n").unwrap();
        wire::PublishedFile {
            kind: wire::FileKind::Data as i32,
            staged: name.into(),
            r#final: format!("{dataset}/{partition}/{name}"),
            dataset: dataset.into(),
            late_of: late_of.into(),
            mode: 0o640,
            ..Default::default()
        }
    }

    /// Directories that were given a mode and a group, in order.
    async fn given(store: Arc<dyn Store>, modes: &DirModes, file: &wire::PublishedFile) -> Vec<(String, u32, String)> {
        let calls = Mutex::new(Vec::new());
        let observed = Observed::new(store, |call: &Call<'_>| {
            if let Call::SetAttributes { path, mode, group: Some(group) } = call {
                calls.lock().unwrap().push(((*path).to_owned(), *mode, (*group).to_owned()));
            }
        });
        assert_eq!(bring(&observed, modes, file).await, Brought::Done);
        drop(observed);
        calls.into_inner().unwrap()
    }

    #[tokio::test]
    async fn every_directory_of_a_dataset_gets_its_mode_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let store = open(&DestinationConfig::new(format!("file://{}", root.display()))).unwrap();
        // The group that it has anyway: anybody may set it.
        let group = std::os::unix::fs::MetadataExt::gid(&root.metadata().unwrap()).to_string();
        let modes = DirModes::new([("d".to_owned(), 0o770, Some(group.clone()))]);
        let hour = "event_date=2026-11-20/event_hour=05";
        for (dataset, late_of) in [("d", ""), ("d_late", "d")] {
            let file = staged(root, &format!("{dataset}-1.log"), dataset, late_of, hour);
            let wanted = [dataset.to_owned(), format!("{dataset}/event_date=2026-11-20"), format!("{dataset}/{hour}")];
            let made = given(Arc::clone(&store), &modes, &file).await;
            assert_eq!(made, wanted.clone().map(|dir| (dir, 0o770, group.clone())));
            for dir in &wanted {
                assert_eq!(store.stat(dir).await.unwrap().unwrap().mode, 0o770, "{dir}");
            }
            // What is there belongs to whoever made it.
            store.set_attributes(dataset, 0o700, None).await.unwrap();
            let next = "event_date=2026-11-20/event_hour=06";
            let file = staged(root, &format!("{dataset}-2.log"), dataset, late_of, next);
            let made = given(Arc::clone(&store), &modes, &file).await;
            assert_eq!(made, [(format!("{dataset}/{next}"), 0o770, group.clone())]);
            assert_eq!(store.stat(dataset).await.unwrap().unwrap().mode, 0o700);
        }
        let file = staged(root, "other-1.log", "other", "", hour);
        assert_eq!(given(Arc::clone(&store), &modes, &file).await, []);
        assert_eq!(store.stat("other").await.unwrap().unwrap().mode, DEFAULT_DIR, "nothing is said of it");
    }
}
