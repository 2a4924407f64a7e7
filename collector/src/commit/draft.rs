//! A commit record before it is one. Pure.
//!
//! Keeps I9: it names only closed groups, and those whole; and I3: every seq it covers stands in it by its kind.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::header::Kind;
use proto::ids::BatchId;
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::commit_record::Action;

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
    /// What it says.
    pub record: wire::CommitRecord,
    /// The same, encoded with its envelope.
    pub bytes: Bytes,
    /// A record took something out of it: it must never be renamed again.
    pub touched: bool,
}

impl Draft {
    /// Everything that is closed, and every seq without a file; none if there is nothing. `late` gives a file of a
    /// sealed partition the place that the late policy says, and leaves every other as it is. What lies in quarantine of
    /// an `expired` origin is listed apart, so that it never makes the origin known again.
    pub fn of(
        staged: &Staged,
        id: CommitId,
        author: &Author,
        late: impl Fn(wire::PublishedFile) -> wire::PublishedFile,
        expired: impl Fn(&OriginKey) -> bool,
    ) -> Option<Self> {
        let mut covers: BTreeMap<OriginKey, wire::OriginCover> = BTreeMap::new();
        let mut sets: BTreeMap<OriginKey, [IntervalSet; 3]> = BTreeMap::new();
        let (mut files, mut groups, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
        for (number, group) in staged.groups() {
            let GroupState::Closed { files: closed } = &group.state else { continue };
            groups.push(number);
            files.extend(closed.iter().cloned().map(|file| (late(file), &group.members)));
            for (key, members) in &group.members {
                let [data, quarantined, gone] = sets.entry(key.clone()).or_default();
                let set = match group.key.kind {
                    GroupKind::Quarantine if expired(key) => gone,
                    GroupKind::Quarantine => quarantined,
                    GroupKind::Data | GroupKind::DeadLetters => data,
                };
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
        for (key, sets) in sets {
            let cover = covers.entry(key).or_default();
            [cover.data, cover.quarantined, cover.expired] = sets.map(|set| (!set.is_empty()).then(|| (&set).into()));
        }
        let at: BTreeMap<&OriginKey, u32> = covers.keys().zip(0..).collect();
        let files = files.into_iter().map(|(mut file, members)| {
            if file.kind() == wire::FileKind::Data {
                file.covers = members.keys().filter_map(|key| at.get(key).copied()).collect();
            }
            file
        });
        let files = files.collect();
        let covers = covers.into_iter().map(|(key, mut cover)| {
            (cover.agent, cover.origin) = (key.agent.to_string(), key.origin.to_bytes());
            cover
        });
        let publish = wire::Publish { files, covers: covers.collect() };
        Some(Self { groups, seqs, ..Self::of_action(id, author, Action::Publish(publish)) })
    }

    /// Something other than a publication.
    pub fn of_action(id: CommitId, author: &Author, action: Action) -> Self {
        let record = record(id, author, action);
        let bytes = proto::record::encode_record(&record).into();
        Self { id, groups: Vec::new(), seqs: Vec::new(), record, bytes, touched: false }
    }

    /// What it publishes and covers, if that is its action.
    pub fn publish(&self) -> Option<&wire::Publish> {
        match &self.record.action {
            Some(Action::Publish(publish)) => Some(publish),
            _ => None,
        }
    }

    /// Does this draft name the group?
    pub fn names(&self, group: u64) -> bool {
        self.groups.binary_search(&group).is_ok()
    }
}

fn record(id: CommitId, author: &Author, action: Action) -> wire::CommitRecord {
    wire::CommitRecord {
        format: proto::FORMAT,
        commit_id: Bytes::copy_from_slice(&id.0),
        incarnation: author.incarnation.clone(),
        collector: author.collector.clone(),
        time_unix_ms: author.time_unix_ms,
        action: Some(action),
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
