//! Partitions as the log has them: published files while one is open, sums and seal afterwards. Pure.
//!
//! Memory: about 100 bytes per file of an open partition, and one row per sealed one: under 150 bytes if it is complete,
//! 80 more per gap that its seal names (1.6 KB if it names 100 ranges), a month later a tenth of those at most.

use std::collections::BTreeMap;

use proto::ids::{AgentName, DatasetName, Partition};
use proto::intervals::IntervalSet;
use proto::wire;

use super::PartitionKey;
use crate::ledger::committed::MergeError;
use crate::log::layout;

/// A seal is old so long after it was decided, milliseconds.
const OLD_MS: i64 = 30 * 24 * 3_600_000;
/// Gaps of an old one that are kept by name.
const OLD_GAPS: usize = 10;

/// A partition that is not sealed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OpenPartition {
    /// Published data files by name (without directory).
    pub files: BTreeMap<String, wire::FileEntry>,
    /// Agents that have a batch in it, with the time of the last commit, milliseconds since the epoch.
    pub agents: BTreeMap<AgentName, i64>,
}

impl OpenPartition {
    /// Events, bytes and raw bytes of its files.
    pub fn sums(&self) -> Sums {
        self.files.values().fold(Sums::default(), |sums, file| Sums {
            files: sums.files + 1,
            events: sums.events + file.events,
            bytes: sums.bytes + file.bytes,
        })
    }
}

/// Of published data files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Number of files.
    pub files: u64,
    /// Events in them.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A sealed partition.
#[derive(Debug, Clone, PartialEq)]
pub struct SealedPartition {
    /// What its seal says.
    pub seal: wire::PartitionSeal,
    /// Number of the seal's record, or of the last record with late events for it.
    pub number: u64,
    /// What came late, wherever the policy put it.
    pub late: Sums,
    /// The part of `late` that lies in this partition.
    pub appended: Sums,
}

/// Open or sealed.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Takes files.
    Open(OpenPartition),
    /// Is said to be complete, or given up.
    Sealed(Box<SealedPartition>),
}

/// One partition.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionRow {
    /// Time of the first record with a file in it, milliseconds since the epoch.
    pub first_commit_unix_ms: i64,
    /// Time of the last one.
    pub last_commit_unix_ms: i64,
    /// Open or sealed.
    pub state: State,
}

/// All partitions of the log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Partitions {
    pub(super) rows: BTreeMap<PartitionKey, PartitionRow>,
}

impl Partitions {
    /// One of them.
    pub fn get(&self, key: &PartitionKey) -> Option<&PartitionRow> {
        self.rows.get(key)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&PartitionKey, &PartitionRow)> {
        self.rows.iter()
    }

    /// Those that are not sealed.
    pub fn open(&self) -> impl Iterator<Item = (&PartitionKey, &PartitionRow, &OpenPartition)> {
        self.rows.iter().filter_map(|(key, row)| match &row.state {
            State::Open(open) => Some((key, row, open)),
            State::Sealed(_) => None,
        })
    }

    /// The seal of a partition, if it has one.
    pub fn sealed(&self, key: &PartitionKey) -> Option<&SealedPartition> {
        match self.rows.get(key).map(|row| &row.state) {
            Some(State::Sealed(sealed)) => Some(sealed),
            _ => None,
        }
    }

    /// Merges the data files of record `n`; `agents` are those of its covers. Returns the partitions whose marker it
    /// outdates.
    pub(super) fn publish(
        &mut self,
        n: u64,
        time_unix_ms: i64,
        files: &[wire::PublishedFile],
        agents: &[AgentName],
    ) -> Result<Vec<PartitionKey>, MergeError> {
        let mut markers = Vec::new();
        for file in files.iter().filter(|file| file.kind() == wire::FileKind::Data) {
            let home = key(n, &file.dataset, file.partition.as_ref())?;
            if !file.late_of.is_empty() {
                let late_of = key(n, &file.late_of, file.partition.as_ref())?;
                self.late(&late_of, n, time_unix_ms, file, late_of == home);
                markers.push(late_of);
            }
            // What the policy put into the dataset of late events is counted with the partition that it missed.
            if file.late_of.is_empty() {
                self.add(&home, time_unix_ms, file, agents);
            }
        }
        markers.sort();
        markers.dedup();
        Ok(markers)
    }

    fn add(&mut self, key: &PartitionKey, time_unix_ms: i64, file: &wire::PublishedFile, agents: &[AgentName]) {
        let row = self.row(key, time_unix_ms);
        match &mut row.state {
            State::Open(open) => {
                let (name, entry) = entry(file, false);
                open.files.insert(name, entry);
                for agent in file.covers.iter().filter_map(|at| agents.get(*at as usize)) {
                    let last = open.agents.entry(agent.clone()).or_insert(time_unix_ms);
                    *last = (*last).max(time_unix_ms);
                }
            }
            // Written by a release that did not know of the seal: late all the same.
            State::Sealed(sealed) => {
                sealed.late.add(file);
                sealed.appended.add(file);
            }
        }
    }

    fn late(&mut self, key: &PartitionKey, n: u64, time_unix_ms: i64, file: &wire::PublishedFile, appended: bool) {
        let row = self.row(key, time_unix_ms);
        if let State::Sealed(sealed) = &mut row.state {
            sealed.number = n;
            sealed.late.add(file);
            if appended {
                sealed.appended.add(file);
            }
        }
    }

    fn row(&mut self, key: &PartitionKey, time_unix_ms: i64) -> &mut PartitionRow {
        let row = self.rows.entry(key.clone()).or_insert_with(|| PartitionRow {
            first_commit_unix_ms: time_unix_ms,
            last_commit_unix_ms: time_unix_ms,
            state: State::Open(OpenPartition::default()),
        });
        row.last_commit_unix_ms = row.last_commit_unix_ms.max(time_unix_ms);
        row
    }

    /// Merges a compaction. The times of the partition do not change: no event came.
    pub(super) fn compact(&mut self, key: &PartitionKey, compact: &wire::Compact) {
        let Some(PartitionRow { state: State::Open(open), .. }) = self.rows.get_mut(key) else { return };
        for path in compact.replaced.iter().chain(&compact.missing) {
            open.files.remove(layout::name(path));
        }
        open.files.extend(compact.files.iter().map(|file| entry(file, true)));
    }

    /// Merges a seal. A partition that is sealed already keeps its first seal.
    pub(super) fn seal(&mut self, key: &PartitionKey, n: u64, seal: &wire::PartitionSeal) {
        let row = self.rows.entry(key.clone()).or_insert_with(|| PartitionRow {
            first_commit_unix_ms: seal.due_unix_ms,
            last_commit_unix_ms: seal.due_unix_ms,
            state: State::Open(OpenPartition::default()),
        });
        if matches!(row.state, State::Open(_)) {
            let (late, appended) = (Sums::default(), Sums::default());
            row.state = State::Sealed(Box::new(SealedPartition { seal: seal.clone(), number: n, late, appended }));
        }
    }
}

impl Partitions {
    /// Bounds what is kept for ever: of partitions that were sealed long ago the first gaps are named, the others counted.
    pub(super) fn fold(&mut self, now_unix_ms: i64) {
        for row in self.rows.values_mut() {
            let State::Sealed(sealed) = &mut row.state else { continue };
            let seal = &mut sealed.seal;
            if seal.gaps.len() > OLD_GAPS && now_unix_ms.saturating_sub(seal.sealed_unix_ms) > OLD_MS {
                seal.more_gaps += (seal.gaps.len() - OLD_GAPS) as u64;
                seal.gaps.truncate(OLD_GAPS);
                seal.gaps.shrink_to_fit();
            }
        }
    }
}

impl Sums {
    fn add(&mut self, file: &wire::PublishedFile) {
        self.files += 1;
        self.events += file.events;
        self.bytes += file.bytes;
    }
}

fn entry(file: &wire::PublishedFile, compacted: bool) -> (String, wire::FileEntry) {
    let name = layout::name(&file.r#final).to_owned();
    let entry = wire::FileEntry {
        name: name.clone(),
        bytes: file.bytes,
        events: file.events,
        crc32c: file.crc32c,
        raw_bytes: file.raw_bytes,
        compacted,
    };
    (name, entry)
}

/// The typed key of a dataset and partition in record `n`.
pub fn key(n: u64, dataset: &str, partition: Option<&wire::Partition>) -> Result<PartitionKey, MergeError> {
    let malformed = |detail: String| MergeError::Malformed { what: "commit record", n, detail };
    let dataset = DatasetName::new(dataset).map_err(|e| malformed(e.to_string()))?;
    let wire = partition.ok_or_else(|| malformed("a partition is missing".into()))?;
    let partition = Partition::new(wire.date, wire.hour).map_err(|e| malformed(e.to_string()))?;
    Ok(PartitionKey { dataset, partition })
}

/// An interval set in record `n`, checked; empty if absent.
pub fn intervals(n: u64, set: Option<&wire::IntervalSet>) -> Result<IntervalSet, MergeError> {
    let malformed = |detail: String| MergeError::Malformed { what: "commit record", n, detail };
    let set = set.map(IntervalSet::try_from).transpose().map_err(|e| malformed(e.to_string()))?;
    Ok(set.unwrap_or_default())
}
