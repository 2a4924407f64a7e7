//! What the log says: a fold over its records, in order, that every collector and every tool makes alike. Pure.
//!
//! Invariant: a view is a function of the records below `next` and of nothing else, so any two that read as far agree,
//! and a checkpoint is a view that was written down. Whoever commits has read every record before its own.

pub mod audit;
mod checkpoint;
pub mod origins;
pub mod partitions;

use std::collections::BTreeMap;

use proto::ids::{AgentName, DatasetName, Partition};
use proto::wire;
use proto::wire::commit_record::Action;

use crate::ledger::committed::{Cover, MergeError, covers, origin_key};
use crate::ledger::{Committed, OriginKey};
use audit::AuditTable;
use origins::Origins;
use partitions::Partitions;

/// Records between two looks for audit rows and seals that are old.
const FOLD_EVERY: u64 = 64;

/// A dataset's partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The dataset.
    pub dataset: DatasetName,
    /// The partition.
    pub partition: Partition,
}

impl PartitionKey {
    /// Its directory, relative to the destination root.
    pub fn dir(&self) -> String {
        format!("{}/{}", self.dataset, self.partition.path())
    }
}

impl std::fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.dir())
    }
}

/// What must be done in the store before a record is finished. Every part is idempotent and may be done by anybody.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Finish {
    /// Who staged the files: its directory stays until they are brought.
    pub incarnation: String,
    /// Files that go from their staged to their final names.
    pub bring: Vec<wire::PublishedFile>,
    /// Files that are deleted once all of `bring` are in their places.
    pub remove: Vec<String>,
    /// Partitions whose marker must have at least the number of this record.
    pub markers: Vec<PartitionKey>,
}

impl Finish {
    /// Nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.bring.is_empty() && self.remove.is_empty() && self.markers.is_empty()
    }
}

/// What a record did to the view: for conflicts with what is staged or drafted, and for what has to be done next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// Seqs that it covers.
    pub covers: Vec<Cover>,
    /// Seqs among them that were covered before: anything but 0 is a defect (I4).
    pub twice: u64,
    /// What is to be done in the store.
    pub finish: Finish,
    /// An incarnation that must stop.
    pub retired: Option<String>,
    /// Origins that it expires: whatever is staged of them is deleted and asked for again.
    pub expired: Vec<OriginKey>,
    /// An origin of which it abandons seqs.
    pub abandoned: Option<OriginKey>,
    /// An agent that it forgets.
    pub forgotten: Option<AgentName>,
    /// Partitions that it seals.
    pub sealed: Vec<PartitionKey>,
    /// Origins with a mark that does not count since it is too far ahead of the record's time, and by how much,
    /// milliseconds: a clock is wrong.
    pub marks_ahead: Vec<(OriginKey, i64)>,
}

/// What records of an incarnation say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation {
    /// Its last record: it has read everything below.
    pub last_record: u64,
    /// The record that retires it.
    pub retired_by: Option<u64>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct View {
    next: u64,
    committed: Committed,
    origins: Origins,
    partitions: Partitions,
    incarnations: BTreeMap<String, Incarnation>,
    horizon_unix_ms: i64,
    expired: Committed,
    audit: AuditTable,
}

impl View {
    /// Merges record `n`, which must be the next one.
    pub fn apply(&mut self, n: u64, record: &wire::CommitRecord) -> Result<Applied, MergeError> {
        assert_eq!(n, self.next, "records are merged in order");
        let malformed = |detail: String| MergeError::Malformed { what: "commit record", n, detail };
        let time = record.time_unix_ms;
        let applied = match &record.action {
            None => return Err(malformed("it has no action that this release knows".into())),
            Some(Action::Publish(publish)) => self.publish(n, record, publish)?,
            Some(Action::Retire(retire)) => Applied { retired: Some(retire.incarnation.clone()), ..Applied::default() },
            Some(Action::Expire(expire)) => self.expire(n, expire)?,
            Some(Action::Compact(compact)) => self.compact(n, record, compact)?,
            Some(Action::Seal(seal)) => self.seal(n, seal)?,
            Some(Action::Forget(forget)) => {
                let agent = AgentName::new(&forget.agent).map_err(|e| malformed(e.to_string()))?;
                self.origins.forget(&agent, n, time);
                Applied { forgotten: Some(agent), ..Applied::default() }
            }
            Some(Action::Abandon(abandon)) => {
                let key = origin_key(&abandon.agent, &abandon.origin).map_err(malformed)?;
                let ranges = partitions::intervals(n, abandon.ranges.as_ref())?;
                self.origins.abandon(&key, &ranges, abandon.time_unix_ms, &self.committed);
                Applied { abandoned: Some(key), ..Applied::default() }
            }
        };
        let row = self.incarnations.entry(record.incarnation.clone());
        row.or_insert(Incarnation { last_record: n, retired_by: None }).last_record = n;
        if let Some(retired) = &applied.retired {
            let row = self.incarnations.entry(retired.clone());
            row.or_insert(Incarnation { last_record: 0, retired_by: None }).retired_by.get_or_insert(n);
        }
        if n.is_multiple_of(FOLD_EVERY) {
            self.audit.fold(time);
            self.partitions.fold(time);
        }
        self.next = n + 1;
        Ok(applied)
    }

    fn publish(&mut self, n: u64, record: &wire::CommitRecord, publish: &wire::Publish) -> Result<Applied, MergeError> {
        let time = record.time_unix_ms;
        let covers = covers(n, publish)?;
        let (mut twice, mut marks_ahead) = (0, Vec::new());
        for (cover, wire) in covers.iter().zip(&publish.covers) {
            twice += self.committed.add(cover, time);
            self.expired.add(&Cover::of(cover.key.clone(), cover.expired.clone()), time);
            if !cover.seqs.is_empty() {
                let ahead = self.origins.cover(n, time, cover, wire, &self.committed);
                marks_ahead.extend(ahead.map(|by| (cover.key.clone(), by)));
            }
            self.audit.cover(&cover.key.agent, wire, time);
        }
        let agents: Vec<AgentName> = covers.iter().map(|cover| cover.key.agent.clone()).collect();
        let markers = self.partitions.publish(n, time, &publish.files, &agents)?;
        let finish = Finish {
            incarnation: record.incarnation.clone(),
            bring: publish.files.clone(),
            remove: Vec::new(),
            markers,
        };
        Ok(Applied { covers, twice, finish, marks_ahead, ..Applied::default() })
    }

    fn expire(&mut self, n: u64, expire: &wire::Expire) -> Result<Applied, MergeError> {
        let keys = |origins: &[wire::OriginId]| -> Result<Vec<OriginKey>, MergeError> {
            let malformed = |detail: String| MergeError::Malformed { what: "commit record", n, detail };
            origins.iter().map(|id| origin_key(&id.agent, &id.origin).map_err(malformed)).collect()
        };
        let origins = keys(&expire.origins)?;
        for key in &origins {
            self.origins.expire(key, &self.committed);
            self.committed.remove(key);
        }
        for key in keys(&expire.expired_sets)? {
            self.expired.remove(&key);
        }
        self.horizon_unix_ms = self.horizon_unix_ms.max(expire.horizon_unix_ms);
        Ok(Applied { expired: origins, ..Applied::default() })
    }

    fn compact(&mut self, n: u64, record: &wire::CommitRecord, compact: &wire::Compact) -> Result<Applied, MergeError> {
        let key = partitions::key(n, &compact.dataset, compact.partition.as_ref())?;
        self.partitions.compact(&key, compact);
        let finish = Finish {
            incarnation: record.incarnation.clone(),
            bring: compact.files.clone(),
            remove: compact.replaced.clone(),
            markers: Vec::new(),
        };
        Ok(Applied { finish, ..Applied::default() })
    }

    fn seal(&mut self, n: u64, seal: &wire::Seal) -> Result<Applied, MergeError> {
        let mut sealed = Vec::new();
        for one in &seal.partitions {
            let key = partitions::key(n, &one.dataset, one.partition.as_ref())?;
            self.partitions.seal(&key, n, one);
            sealed.push(key);
        }
        let finish = Finish { markers: sealed.clone(), ..Finish::default() };
        Ok(Applied { finish, sealed, ..Applied::default() })
    }

    /// The first number that was not merged.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Seqs that records cover.
    pub fn committed(&self) -> &Committed {
        &self.committed
    }

    /// Runs of agents and how they hang together.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Partitions, open and sealed.
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }

    /// Incarnations that wrote a record, or are retired by one, since the checkpoint.
    pub fn incarnations(&self) -> &BTreeMap<String, Incarnation> {
        &self.incarnations
    }

    /// Forgets a retired incarnation whose directory is deleted.
    pub fn directory_deleted(&mut self, incarnation: &str) {
        self.incarnations.remove(incarnation);
    }

    /// A batch of an origin minted before this, and not in [`Self::committed`], is expired; milliseconds since the
    /// epoch, 0 while nothing ever expired.
    pub fn horizon_unix_ms(&self) -> i64 {
        self.horizon_unix_ms
    }

    /// Seqs that came after their origin expired.
    pub fn expired(&self) -> &Committed {
        &self.expired
    }

    /// Must a batch of this origin be quarantined as expired?
    pub fn is_expired(&self, key: &OriginKey) -> bool {
        let minted = i64::try_from(key.origin.unix_ms()).unwrap_or(i64::MAX);
        minted < self.horizon_unix_ms && self.committed.origin(&key.agent, key.origin).is_none()
    }

    /// Counts by agent, dataset and hour.
    pub fn audit(&self) -> &AuditTable {
        &self.audit
    }
}
