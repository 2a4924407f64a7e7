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

use crate::ledger::counts::Counts;
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
        let mut counts = Counts::default();
        for (number, group) in staged.groups() {
            let GroupState::Closed { files: closed } = &group.state else { continue };
            groups.push(number);
            files.extend(closed.iter().cloned().map(|file| (late(file), &group.members)));
            // What expired is in no sum: its origin's counts closed long ago.
            let counted = |key: &OriginKey| group.key.kind != GroupKind::Quarantine || !expired(key);
            counts.merge(&group.counts, counted);
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
            cover.counts = counts.take(&key);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Instant;

    use proptest::prelude::*;
    use proto::ids::{AgentName, DatasetName, Origin, Partition};
    use proto::wire::batch_header;

    use super::*;
    use crate::ledger::committed::Cover;
    use crate::ledger::counts::{of_batch, of_quarantined};
    use crate::ledger::staged::{GroupKey, Incoming};
    use crate::partition_writer::Appended;

    const BATCHES: u64 = 12;

    fn id(seq: u64) -> BatchId {
        let name = format!("web-{}", seq % 2);
        BatchId { agent: AgentName::new(&name).unwrap(), origin: Origin::mint(1, 1), seq }
    }

    /// Batch `seq` has `seq` events in each of two hours.
    fn counts(seq: u64) -> Vec<wire::EventCount> {
        let hour = |hour| wire::HourCount { hour: Some(hour), events: seq };
        let data = wire::Data {
            dataset: "d".into(),
            partition: Some(wire::Partition { date: 1, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 2 * seq,
            raw_bytes: 4 * seq,
            payload_bytes: 4 * seq,
            zone: "UTC".into(),
            hours: vec![hour(1), hour(2)],
            ..Default::default()
        };
        let header = proto::header::Header::encode(Origin::mint(1, 1), seq, batch_header::Kind::Data(data)).unwrap();
        match seq % 3 {
            0 => of_quarantined(&header),
            kind => of_batch(&header, Appended { events: 2 * seq - kind, dead_letters: kind }),
        }
    }

    fn group_key(seq: u64) -> GroupKey {
        let kind = if seq.is_multiple_of(3) { GroupKind::Quarantine } else { GroupKind::Data };
        let dataset = (kind == GroupKind::Data).then(|| DatasetName::new("d").unwrap());
        GroupKey { kind, dataset, partition: Partition::new(1 + (seq % 2) as i32, None).unwrap() }
    }

    #[derive(Default)]
    struct Run {
        staged: Staged,
        next: u64,
        committed: BTreeSet<u64>,
        sums: [u64; 3],
    }

    impl Run {
        fn deliver(&mut self, seq: u64) {
            if self.committed.contains(&seq) || self.staged.find(&id(seq)).is_some() {
                return;
            }
            let (now, key) = (Instant::now(), group_key(seq));
            let number = self.staged.open_group(&key).unwrap_or_else(|| {
                self.next += 1;
                self.staged.add_group(self.next, key, now);
                self.next
            });
            self.staged.add_batch(&id(seq), number, Incoming { events: 0, waiters: &[1], refused: None }, now);
        }

        /// Every append is answered; those of groups that are gone too.
        fn answer(&mut self, seq: u64) {
            for number in 0..=self.next {
                self.staged.appended(number, &id(seq), counts(seq));
            }
        }

        fn close(&mut self) {
            for number in 0..=self.next {
                if self.staged.roll(number, Instant::now()) {
                    self.staged.closed(number, Vec::new());
                }
            }
        }

        fn conflict(&mut self, seq: u64) {
            let cover = Cover::of(OriginKey::of(&id(seq)), [seq].into_iter().collect());
            for group in self.staged.touched_by(&[cover]).0 {
                self.staged.remove_group(group);
            }
            if self.committed.insert(seq) {
                self.count(&counts(seq));
            }
        }

        fn commit(&mut self) {
            let author = Author { collector: "c".into(), incarnation: "c-1".into(), time_unix_ms: 1 };
            let Some(draft) = Draft::of(&self.staged, CommitId([1; 16]), &author, |file| file, |_| false) else {
                return;
            };
            let covers = draft.publish().unwrap().covers.clone();
            self.count(&covers.into_iter().flat_map(|cover| cover.counts).collect::<Vec<_>>());
            for group in draft.groups {
                self.committed.extend(self.staged.remove_group(group).into_iter().map(|left| left.id.seq));
            }
        }

        fn count(&mut self, counts: &[wire::EventCount]) {
            for count in counts {
                let fates = [count.published, count.dead_lettered, count.quarantined];
                self.sums.iter_mut().zip(fates).for_each(|(sum, fate)| *sum += fate);
            }
        }
    }

    proptest! {
        #[test]
        fn sums_of_records_are_the_events_delivered(
            steps in proptest::collection::vec((0..6u8, 1..BATCHES), 0..120),
        ) {
            let mut run = Run::default();
            for (step, seq) in steps {
                match step {
                    0 | 1 => run.deliver(seq),
                    2 => run.answer(seq),
                    3 => run.close(),
                    4 => run.commit(),
                    _ if seq % 2 == 0 => run.conflict(seq),
                    // Poisoned.
                    _ => drop(run.staged.remove_group(run.next)),
                }
            }
            for _ in 0..2 {
                (1..BATCHES).for_each(|seq| run.deliver(seq));
                (1..BATCHES).for_each(|seq| run.answer(seq));
                run.close();
                run.commit();
            }
            let expected = |fate: usize| -> u64 {
                let all = (1..BATCHES).flat_map(counts);
                all.map(|c| [c.published, c.dead_lettered, c.quarantined][fate]).sum()
            };
            prop_assert_eq!(run.sums, [expected(0), expected(1), expected(2)]);
            prop_assert_eq!(run.sums.iter().sum::<u64>(), (1..BATCHES).map(|seq| 2 * seq).sum::<u64>());
        }
    }
}
