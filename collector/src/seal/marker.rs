//! `_SUCCESS` and `_INCOMPLETE`: what readers of a partition wait for, as JSON with stable keys.
//!
//! A marker carries the number of its record: that of the seal, or of the last record with late events behind it. Any
//! collector may write it, any number at once. Keeps: a marker is replaced only by one with a higher number, whole, by
//! renames without overwrite.
//!
//! A lower one is not deleted under its name but taken away into the own staging directory: so what was taken is known
//! for certain, and if it was a higher one after all it goes back. Whoever is retired has no staging directory any more
//! and can take nothing.

use std::time::Duration;

use bytes::Bytes;
use proto::ids::{DatasetName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use serde::{Deserialize, Serialize};

use super::times::parse_partition;
use super::wait::{ranges, word};
use crate::commit::CommitId;
use crate::config::dataset::DatasetConfig;
use crate::log::Layout;
use crate::log::files::write_once;
use crate::log::view::partitions::SealedPartition;
use crate::log::view::{PartitionKey, View};
use crate::store::{Renamed, Store, StoreError};

/// Of a partition that is complete.
pub const SUCCESS: &str = "_SUCCESS";
/// Of one that was sealed as it was.
pub const INCOMPLETE: &str = "_INCOMPLETE";
/// Begins the names of markers that were taken away to be replaced.
pub const TAKEN: &str = "taken-";

/// Longest marker that is read.
pub const MAX_BYTES: u64 = 64 << 20;

const FORMAT: u32 = 1;
const FILE_MODE: u32 = 0o640;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Of this file, 1 at present.
    pub format: u32,
    /// The dataset.
    pub dataset: String,
    /// `event_date=2026-11-20`, with `/event_hour=05` for hours.
    pub partition: String,
    /// Did every agent's counts close?
    pub complete: bool,
    /// Events in the published files of the partition, late ones that were appended among them.
    pub events: u64,
    /// Those files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events that came after the seal, wherever the late policy put them.
    pub late_events: u64,
    /// Their files.
    pub late_files: u64,
    /// Number of the record of the seal, or of the last one with late events.
    pub seal: u64,
    /// When it was sealed, RFC 3339, UTC.
    pub sealed_at: String,
    /// The operator who asked for it; absent where the rule did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_by: Option<String>,
    /// Why it is not complete; empty if it is.
    pub gaps: Vec<GapText>,
    /// So many more than `gaps` names; absent if it names all.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more_gaps: u64,
    /// The same in a sentence.
    pub message: String,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapText {
    /// Whose; empty where no agent is known.
    pub agent: String,
    /// `silent`, `missing_batches`, `restored`, `contradicted`, `never_seen`, `departed`, `abandoned`, `forgotten`.
    pub reason: String,
    /// The run, 32 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What the agent had read up to then is in: RFC 3339, UTC. Absent: nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_mark: Option<String>,
    /// Numbers of batches that are not in the log, e.g. `3-9,12`; one that ends with `-` is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A file that belongs into a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Directory of the partition, relative to the destination root.
    pub dir: String,
    /// [`SUCCESS`] or [`INCOMPLETE`].
    pub name: &'static str,
    /// Its number.
    pub number: u64,
    /// Its content.
    pub json: Bytes,
    /// Its mode.
    pub mode: u32,
    /// Its group; none: as the destination gives it.
    pub group: Option<String>,
}

impl Marker {
    /// Readable by whoever may read the files of the dataset.
    pub fn readable_as(self, dataset: &DatasetConfig) -> Self {
        Self { mode: dataset.file_mode, group: dataset.group.clone(), ..self }
    }

    /// Where it goes.
    pub fn path(&self) -> String {
        format!("{}/{}", self.dir, self.name)
    }
}

/// The marker of a partition as the log has it; none while it is not sealed.
pub fn marker(view: &View, key: &PartitionKey) -> Option<Marker> {
    let sealed = view.partitions().sealed(key)?;
    let text = text(key, sealed);
    let mut json = serde_json::to_vec_pretty(&text).expect("strings and numbers");
    json.push(b'\n');
    let name = if sealed.seal.complete { SUCCESS } else { INCOMPLETE };
    Some(Marker { dir: key.dir(), name, number: sealed.number, json: json.into(), mode: FILE_MODE, group: None })
}

/// What the marker of a sealed partition says.
pub fn text(key: &PartitionKey, sealed: &SealedPartition) -> Text {
    let SealedPartition { seal, number, late, appended } = sealed;
    let gaps: Vec<GapText> = seal.gaps.iter().map(gap).collect();
    Text {
        format: FORMAT,
        dataset: key.dataset.to_string(),
        partition: key.partition.path(),
        complete: seal.complete,
        events: seal.events + appended.events,
        files: seal.files + appended.files,
        bytes: seal.bytes + appended.bytes,
        late_events: late.events,
        late_files: late.files,
        seal: *number,
        sealed_at: time(seal.sealed_unix_ms),
        sealed_by: (!seal.by.is_empty()).then(|| seal.by.clone()),
        message: message(seal.complete, &gaps, seal.more_gaps),
        gaps,
        more_gaps: seal.more_gaps,
    }
}

/// One reason of a seal in words.
pub fn gap(gap: &wire::SealGap) -> GapText {
    let seqs = gap.missing.as_ref().and_then(|set| IntervalSet::try_from(set).ok()).unwrap_or_default();
    let missing = ranges(&seqs, gap.missing_from);
    GapText {
        agent: gap.agent.clone(),
        reason: word(gap.reason()).to_owned(),
        origin: Origin::from_bytes(&gap.origin).ok().map(|origin| origin.to_string()),
        last_mark: gap.last_mark_unix_ms.map(time),
        missing: (!missing.is_empty()).then_some(missing),
    }
}

fn is_none(more: &u64) -> bool {
    *more == 0
}

fn message(complete: bool, gaps: &[GapText], more_gaps: u64) -> String {
    if complete {
        return "complete: everything that any agent had read of this partition is in it".into();
    }
    let mut agents: Vec<&str> = gaps.iter().map(|gap| gap.agent.as_str()).filter(|agent| !agent.is_empty()).collect();
    agents.dedup();
    let more = agents.len().saturating_sub(5);
    agents.truncate(5);
    if more_gaps > 0 {
        let all = gaps.len() as u64 + more_gaps;
        let (agents, named) = (agents.join(", "), gaps.len());
        return format!(
            "incomplete: events of {agents} and others may be missing, gaps names {named} of {all} reasons"
        );
    }
    match (agents.is_empty(), more) {
        (true, _) => "incomplete: no agent vouches for it".into(),
        (_, 0) => format!("incomplete: events of {} may be missing, see gaps", agents.join(", ")),
        _ => format!("incomplete: events of {} and {more} more agents may be missing, see gaps", agents.join(", ")),
    }
}

/// RFC 3339, UTC, to the millisecond.
pub fn time(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(|_| unix_ms.to_string(), |at| format!("{at:.3}"))
}

/// Partitions whose markers a run had taken away when it ended: before its staging directory is deleted they must be
/// written again.
pub async fn orphaned_markers(store: &dyn Store, staging: &str) -> Result<Vec<PartitionKey>, StoreError> {
    let mut keys = Vec::new();
    for entry in store.list(staging).await?.into_iter().filter(|entry| entry.name.starts_with(TAKEN)) {
        match store.read(&format!("{staging}/{}", entry.name), MAX_BYTES).await {
            Ok(bytes) => keys.extend(partition_of(&bytes)),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    keys.sort();
    keys.dedup();
    Ok(keys)
}

fn partition_of(json: &[u8]) -> Option<PartitionKey> {
    let text: Text = serde_json::from_slice(json).ok()?;
    Some(PartitionKey { dataset: DatasetName::new(&text.dataset).ok()?, partition: parse_partition(&text.partition)? })
}

/// Makes sure that the partition has this marker or one with a higher number. Idempotent, by any collector, any number
/// of times; `id` is used for nothing else. It tries again by itself once it has taken something away: until then an
/// error means that nothing was changed.
pub async fn finish_marker(
    store: &dyn Store,
    layout: &Layout,
    id: CommitId,
    marker: &Marker,
) -> Result<(), StoreError> {
    let mut work =
        Work { store, layout, id, target: marker.path(), names: 0, spare: Vec::new(), backoff: FIRST_BACKOFF };
    let done = work.place(marker).await;
    for path in &work.spare {
        if let Err(error) = store.delete(path, false).await {
            tracing::info!(file = %path, %error, "replaced marker cannot be deleted now");
        }
    }
    done
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum There {
    Nothing,
    /// Not written by a collector: as good as any lower number.
    Foreign,
    Number(u64),
}

struct Work<'a> {
    store: &'a dyn Store,
    layout: &'a Layout,
    id: CommitId,
    target: String,
    names: u32,
    /// Own files that are not needed any more.
    spare: Vec<String>,
    backoff: Duration,
}

impl Work<'_> {
    async fn place(&mut self, marker: &Marker) -> Result<(), StoreError> {
        let wanted = There::Number(marker.number);
        if self.there(&self.target).await? >= wanted {
            return Ok(());
        }
        let mut best = (wanted, self.stage(marker).await?);
        loop {
            match self.store.rename_new(&best.1, &self.target).await {
                Ok(Renamed::Done) => return Ok(()),
                Ok(Renamed::ParentMissing) => {
                    tracing::info!(partition = %marker.dir, "no marker: the directory of the partition was removed");
                    self.spare.push(best.1);
                    return Ok(());
                }
                Ok(Renamed::TargetExists) => {}
                // It was carried out though the answer was lost, and replaced since; or the own directory is gone.
                Ok(Renamed::SourceMissing) => {
                    if self.look().await? >= best.0 {
                        return Ok(());
                    }
                    best = (wanted, self.stage(marker).await?);
                    continue;
                }
                Err(error) => {
                    self.wait(error).await?;
                    continue;
                }
            }
            let there = self.look().await?;
            if there >= best.0 {
                self.spare.push(best.1);
                return Ok(());
            }
            if there == There::Nothing {
                continue;
            }
            if let Some((taken, path)) = self.take().await? {
                let lower = if taken > best.0 { std::mem::replace(&mut best, (taken, path)).1 } else { path };
                self.spare.push(lower);
            }
        }
    }

    /// Writes the marker under a name of its own.
    async fn stage(&mut self, marker: &Marker) -> Result<String, StoreError> {
        let path = self.name("marker-");
        write_once(self.store, &path, marker.json.clone()).await?;
        if let Err(error) = self.store.set_attributes(&path, marker.mode, marker.group.as_deref()).await {
            tracing::error!(marker = %self.target, %error, "mode or group of a marker cannot be set: written as it is");
        }
        Ok(path)
    }

    /// Takes away what stands under the name, whatever it is by now.
    async fn take(&mut self) -> Result<Option<(There, String)>, StoreError> {
        let path = self.name(TAKEN);
        loop {
            match self.store.rename_new(&self.target, &path).await {
                Ok(Renamed::Done | Renamed::TargetExists) => break,
                Ok(Renamed::SourceMissing) => return Ok(None),
                Ok(Renamed::ParentMissing) => {
                    let detail = "this run is retired: its staging directory is gone".into();
                    return Err(StoreError::NotFound { op: "rename", path, detail });
                }
                Err(error @ StoreError::Unanswered { .. }) => {
                    self.wait(error).await?;
                    self.occupy(&path).await?;
                    break;
                }
                Err(error) => self.wait(error).await?,
            }
        }
        let taken = loop {
            match self.there(&path).await {
                Ok(taken) => break taken,
                Err(error) => self.wait(error).await?,
            }
        };
        Ok(Some((taken, path)))
    }

    /// Makes a rename to `path` that was not answered impossible, unless it was carried out: something stands there.
    async fn occupy(&mut self, path: &str) -> Result<(), StoreError> {
        loop {
            match write_once(self.store, path, Bytes::new()).await {
                Ok(()) | Err(StoreError::AlreadyExists { .. }) => return Ok(()),
                Err(error) => self.wait(error).await?,
            }
        }
    }

    /// What stands under the marker's name; asked until it is answered.
    async fn look(&mut self) -> Result<There, StoreError> {
        loop {
            match self.there(&self.target).await {
                Ok(there) => return Ok(there),
                Err(error) => self.wait(error).await?,
            }
        }
    }

    async fn there(&self, path: &str) -> Result<There, StoreError> {
        match self.store.read(path, MAX_BYTES).await {
            Ok(bytes) => {
                Ok(serde_json::from_slice::<Text>(&bytes).map_or(There::Foreign, |text| There::Number(text.seal)))
            }
            Err(StoreError::NotFound { .. }) => Ok(There::Nothing),
            Err(error) => Err(error),
        }
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{}/{what}{}-{}", self.layout.staging(), self.id, self.names)
    }

    /// Waits after an error that may pass; gives any other back.
    async fn wait(&mut self, error: StoreError) -> Result<(), StoreError> {
        if !matches!(error, StoreError::Unanswered { .. } | StoreError::Unavailable { .. }) {
            return Err(error);
        }
        tracing::info!(marker = %self.target, %error, "marker not finished yet");
        tokio::time::sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        Ok(())
    }
}
