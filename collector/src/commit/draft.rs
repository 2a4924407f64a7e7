//! A commit record before it is one. Pure.
//!
//! Keeps I9: it names only closed groups, and those whole; and I3: every seq it covers stands in it by its kind.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::header::Kind;
use proto::ids::BatchId;
use proto::intervals::IntervalSet;
use proto::wire;

use crate::ledger::staged::GroupState;
use crate::ledger::{GroupKind, OriginKey, Staged};

/// 16 random bytes: names a draft and its void, each used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommitId(pub [u8; 16]);

impl std::fmt::Display for CommitId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Who writes a record, and when.
#[derive(Debug, Clone)]
pub struct Author {
    /// The collector's configured name.
    pub collector: String,
    /// This run of it.
    pub incarnation: String,
    /// Wall clock, milliseconds since the epoch.
    pub time_unix_ms: i64,
}

/// What one commit is about.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its id.
    pub id: CommitId,
    /// Groups it names.
    pub groups: Vec<u64>,
    /// Seqs without a file that ride in it.
    pub seqs: Vec<BatchId>,
    /// What it publishes and covers.
    pub publish: wire::Publish,
    /// The encoded record with its envelope.
    pub bytes: Bytes,
    /// A record took something out of it: it must never be renamed again.
    pub touched: bool,
}

impl Draft {
    /// Everything that is closed, and every seq without a file; none if there is nothing.
    pub fn of(staged: &Staged, id: CommitId, author: &Author) -> Option<Self> {
        let mut covers: BTreeMap<OriginKey, wire::OriginCover> = BTreeMap::new();
        let mut sets: BTreeMap<OriginKey, (IntervalSet, IntervalSet)> = BTreeMap::new();
        let (mut files, mut groups, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
        for (number, group) in staged.groups() {
            let GroupState::Closed { files: closed } = &group.state else { continue };
            groups.push(number);
            files.extend(closed.iter().cloned());
            for (key, members) in &group.members {
                let (data, quarantined) = sets.entry(key.clone()).or_default();
                let set = if group.key.kind == GroupKind::Quarantine { quarantined } else { data };
                set.union_with(members);
            }
        }
        for (id, seq) in staged.without_file() {
            seqs.push(id.clone());
            add_seq(covers.entry(OriginKey::of(id)).or_default(), id.seq, &seq.kind);
        }
        if groups.is_empty() && seqs.is_empty() {
            return None;
        }
        for (key, (data, quarantined)) in sets {
            let cover = covers.entry(key).or_default();
            cover.data = (!data.is_empty()).then(|| (&data).into());
            cover.quarantined = (!quarantined.is_empty()).then(|| (&quarantined).into());
        }
        let covers = covers.into_iter().map(|(key, mut cover)| {
            (cover.agent, cover.origin) = (key.agent.to_string(), key.origin.to_bytes());
            cover
        });
        let publish = wire::Publish { files, covers: covers.collect() };
        let bytes = proto::record::encode_record(&record(id, author, publish.clone())).into();
        Some(Self { id, groups, seqs, publish, bytes, touched: false })
    }

    /// Does this draft name the group?
    pub fn names(&self, group: u64) -> bool {
        self.groups.binary_search(&group).is_ok()
    }
}

fn record(id: CommitId, author: &Author, publish: wire::Publish) -> wire::CommitRecord {
    wire::CommitRecord {
        format: proto::FORMAT,
        commit_id: Bytes::copy_from_slice(&id.0),
        incarnation: author.incarnation.clone(),
        collector: author.collector.clone(),
        time_unix_ms: author.time_unix_ms,
        action: Some(wire::commit_record::Action::Publish(publish)),
    }
}

fn add_seq(cover: &mut wire::OriginCover, seq: u64, kind: &Kind) {
    match kind.clone() {
        Kind::Open(open) => cover.opens.push(wire::SeqOpen { seq, open: Some(open) }),
        Kind::Void(void) => cover.voids.push(wire::SeqVoid { seq, void: Some(void) }),
        Kind::Mark(mark) => cover.marks.push(wire::SeqMark { seq, mark: Some(mark) }),
        Kind::Close(close) => cover.closes.push(wire::SeqClose { seq, close: Some(close) }),
        Kind::Data(_) => unreachable!("data always lies in a group"),
    }
}
