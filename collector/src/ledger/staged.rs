//! What is staged here: batches in groups, and seqs without a file. Each batch is in exactly one place, and a group
//! leaves as a whole: committed, poisoned, or deleted because a record covers one of its batches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use proto::header::Kind;
use proto::ids::{BatchId, DatasetName, Partition};
use proto::intervals::IntervalSet;
use proto::wire;

use super::committed::Cover;
use super::counts::Counts;
use super::{OriginKey, StreamId};

pub use crate::partition_writer::GroupKind;

/// What decides the group of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// Data, dead letters or quarantine.
    pub kind: GroupKind,
    /// None for quarantine.
    pub dataset: Option<DatasetName>,
    /// For quarantine and dead letters a UTC day.
    pub partition: Partition,
}

/// How far a group is. It only ever moves down this list, or is removed.
#[derive(Debug, Clone, PartialEq)]
pub enum GroupState {
    /// Takes batches.
    Open,
    /// Rolled; its close is not answered.
    Closing {
        /// Since when.
        since: Instant,
    },
    /// Closed and durable: may be named by a draft.
    Closed {
        /// Its files.
        files: Vec<wire::PublishedFile>,
    },
}

/// One staged group.
#[derive(Debug)]
pub struct Group {
    /// What it holds.
    pub key: GroupKey,
    /// How far it is.
    pub state: GroupState,
    /// When it was opened.
    pub opened: Instant,
    /// The last append.
    pub last_write: Instant,
    /// Bytes in its files and buffers, as last told.
    pub bytes: u64,
    /// The part of `bytes` that lies in memory.
    pub buffered: u64,
    /// Events in it.
    pub events: u64,
    /// Batches in it.
    pub batches: u64,
    /// Somebody asked for an early roll.
    pub requested: bool,
    /// Appends that are not answered, with the time they were made.
    pub pending: BTreeMap<BatchId, Instant>,
    /// Its batches.
    pub members: BTreeMap<OriginKey, IntervalSet>,
    /// What became of the events of those that are appended.
    pub counts: Counts,
    streams: BTreeSet<StreamId>,
    closed_early: Option<Vec<wire::PublishedFile>>,
}

/// A seq without a file.
#[derive(Debug, Clone)]
pub struct WithoutFile {
    /// Open, void, mark or close.
    pub kind: Kind,
    /// When it came.
    pub since: Instant,
    /// An open that somebody waits for: committed within 2 s.
    pub urgent: bool,
    /// Somebody asked for an early roll.
    pub requested: bool,
}

/// Where a batch is.
#[derive(Debug, Clone)]
pub enum Place {
    /// In this group.
    Group(u64),
    /// Kept here, no file.
    WithoutFile(Box<WithoutFile>),
}

/// A staged batch.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is.
    pub place: Place,
    /// Streams that wait for its answer.
    pub waiters: Vec<StreamId>,
    /// Its append was answered: *staged* may be said.
    pub appended: bool,
    /// Why it is in quarantine.
    pub refused: Option<Arc<str>>,
}

/// A batch that left the ledger.
#[derive(Debug, Clone)]
pub struct Left {
    /// Which.
    pub id: BatchId,
    /// As it was.
    pub entry: Entry,
}

/// All groups and seqs of this incarnation that are not committed.
#[derive(Debug, Default)]
pub struct Staged {
    entries: HashMap<OriginKey, BTreeMap<u64, Entry>>,
    groups: BTreeMap<u64, Group>,
    open: HashMap<GroupKey, u64>,
    without_file: BTreeSet<BatchId>,
    batches: usize,
}

impl Staged {
    /// The batch, if it is staged here.
    pub fn find(&self, id: &BatchId) -> Option<&Entry> {
        self.entries.get(&OriginKey::of(id)).and_then(|seqs| seqs.get(&id.seq))
    }

    /// Lets a stream wait for a staged batch. False if it is not staged here.
    pub fn wait(&mut self, id: &BatchId, stream: StreamId) -> bool {
        let Some(entry) = self.entry_mut(id) else { return false };
        if !entry.waiters.contains(&stream) {
            entry.waiters.push(stream);
        }
        if let Place::Group(number) = entry.place
            && let Some(group) = self.groups.get_mut(&number)
        {
            group.streams.insert(stream);
        }
        true
    }

    /// The stream has ended: nobody waits on it any more.
    pub fn forget_stream(&mut self, stream: StreamId) {
        for entry in self.entries.values_mut().flat_map(BTreeMap::values_mut) {
            entry.waiters.retain(|waiter| *waiter != stream);
        }
        for group in self.groups.values_mut() {
            group.streams.remove(&stream);
        }
    }

    /// The group that takes batches for `key`.
    pub fn open_group(&self, key: &GroupKey) -> Option<u64> {
        self.open.get(key).copied()
    }

    /// A new group, open.
    pub fn add_group(&mut self, number: u64, key: GroupKey, now: Instant) {
        debug_assert!(!self.open.contains_key(&key), "one open group per key");
        self.open.insert(key.clone(), number);
        let group = Group {
            key,
            state: GroupState::Open,
            opened: now,
            last_write: now,
            bytes: 0,
            buffered: 0,
            events: 0,
            batches: 0,
            requested: false,
            pending: BTreeMap::new(),
            members: BTreeMap::new(),
            counts: Counts::default(),
            streams: BTreeSet::new(),
            closed_early: None,
        };
        self.groups.insert(number, group);
    }

    /// Puts a batch into an open group; its append is then under way.
    pub fn add_batch(&mut self, id: &BatchId, number: u64, from: Incoming<'_>, now: Instant) {
        let group = self.groups.get_mut(&number).expect("the group was just found or made");
        debug_assert_eq!(group.state, GroupState::Open);
        let key = OriginKey::of(id);
        group.members.entry(key).or_default().insert(id.seq);
        group.batches += 1;
        group.events += from.events;
        group.last_write = now;
        group.pending.insert(id.clone(), now);
        group.streams.extend(from.waiters);
        let entry = Entry {
            place: Place::Group(number),
            waiters: from.waiters.to_vec(),
            appended: false,
            refused: from.refused,
        };
        self.insert(id, entry);
    }

    /// Keeps a seq without a file.
    pub fn add_without_file(&mut self, id: &BatchId, seq: WithoutFile, stream: StreamId) {
        self.without_file.insert(id.clone());
        let place = Place::WithoutFile(Box::new(seq));
        self.insert(id, Entry { place, waiters: vec![stream], appended: true, refused: None });
    }

    /// An append was answered, with what became of the events. Returns the streams to be told *staged*; none when the
    /// batch or group is gone.
    pub fn appended(&mut self, number: u64, id: &BatchId, counts: Vec<wire::EventCount>) -> Vec<StreamId> {
        if !self.settle_append(number, id) {
            return Vec::new();
        }
        if let Some(group) = self.groups.get_mut(&number) {
            group.counts.add(&OriginKey::of(id), counts);
        }
        let Some(entry) = self.entry_mut(id) else { return Vec::new() };
        entry.appended = true;
        entry.waiters.clone()
    }

    /// The group refused the batch: nothing of it is there. Takes it out, for quarantine.
    pub fn take_refused(&mut self, number: u64, id: &BatchId, events: u64) -> Option<Entry> {
        if !self.groups.get(&number)?.pending.contains_key(id) {
            return None;
        }
        let group = self.groups.get_mut(&number)?;
        let key = OriginKey::of(id);
        if let Some(set) = group.members.get_mut(&key) {
            *set = set.seqs().filter(|seq| *seq != id.seq).collect();
            if set.is_empty() {
                group.members.remove(&key);
            }
        }
        group.batches -= 1;
        group.events -= events.min(group.events);
        let entry = self.remove(id);
        self.settle_append(number, id);
        entry
    }

    /// What the group weighs now.
    pub fn measured(&mut self, number: u64, bytes: u64, buffered: u64) {
        if let Some(group) = self.groups.get_mut(&number) {
            (group.bytes, group.buffered) = (bytes, buffered);
        }
    }

    /// Takes no more batches; true if it was open.
    pub fn roll(&mut self, number: u64, now: Instant) -> bool {
        let Some(group) = self.groups.get_mut(&number) else { return false };
        if group.state != GroupState::Open {
            return false;
        }
        group.state = GroupState::Closing { since: now };
        self.open.remove(&group.key);
        true
    }

    /// The close was answered. It counts once every append before it was.
    pub fn closed(&mut self, number: u64, files: Vec<wire::PublishedFile>) {
        let Some(group) = self.groups.get_mut(&number) else { return };
        debug_assert!(matches!(group.state, GroupState::Closing { .. }), "closed once, after the roll");
        if group.pending.is_empty() {
            group.state = GroupState::Closed { files };
        } else {
            group.closed_early = Some(files);
        }
    }

    /// Removes a group and all its batches.
    pub fn remove_group(&mut self, number: u64) -> Vec<Left> {
        let Some(group) = self.groups.remove(&number) else { return Vec::new() };
        if self.open.get(&group.key) == Some(&number) {
            self.open.remove(&group.key);
        }
        let mut left = Vec::new();
        for (key, seqs) in group.members {
            for seq in seqs.seqs() {
                let id = key.batch(seq);
                if let Some(entry) = self.remove(&id) {
                    left.push(Left { id, entry });
                }
            }
        }
        left
    }

    /// Removes a seq without a file.
    pub fn remove_without_file(&mut self, id: &BatchId) -> Option<Left> {
        if !self.without_file.remove(id) {
            return None;
        }
        Some(Left { id: id.clone(), entry: self.remove(id)? })
    }

    /// Which of ours a record covers: groups that hold such a batch, and seqs without a file.
    pub fn touched_by(&self, covers: &[Cover]) -> (BTreeSet<u64>, Vec<BatchId>) {
        let (mut groups, mut seqs) = (BTreeSet::new(), Vec::new());
        for cover in covers {
            let Some(staged) = self.entries.get(&cover.key) else { continue };
            for (start, end) in cover.seqs.iter().chain(cover.expired.iter()) {
                for (seq, entry) in staged.range(start..end) {
                    match entry.place {
                        Place::Group(number) => _ = groups.insert(number),
                        Place::WithoutFile(_) => seqs.push(cover.key.batch(*seq)),
                    }
                }
            }
        }
        (groups, seqs)
    }

    /// Groups of data that hold a batch of such an origin, and such seqs without a file. What lies in quarantine stays
    /// there whatever becomes of its origin.
    pub fn of_origins(&self, wanted: impl Fn(&OriginKey) -> bool) -> (BTreeSet<u64>, Vec<BatchId>) {
        let (mut groups, mut seqs) = (BTreeSet::new(), Vec::new());
        for (key, entries) in self.entries.iter().filter(|(key, _)| wanted(key)) {
            for (seq, entry) in entries {
                match entry.place {
                    Place::Group(number) => _ = groups.insert(number),
                    Place::WithoutFile(_) => seqs.push(key.batch(*seq)),
                }
            }
        }
        groups.retain(|group| self.groups.get(group).is_some_and(|group| group.key.kind != GroupKind::Quarantine));
        (groups, seqs)
    }

    /// Asks for an early roll of everything a stream waits for.
    pub fn request_roll(&mut self, stream: StreamId) {
        for group in self.groups.values_mut().filter(|group| group.streams.contains(&stream)) {
            group.requested = true;
        }
        for id in self.without_file.iter() {
            let entry = self.entries.get_mut(&OriginKey::of(id)).and_then(|seqs| seqs.get_mut(&id.seq));
            if let Some(Entry { place: Place::WithoutFile(seq), waiters, .. }) = entry
                && waiters.contains(&stream)
            {
                seq.requested = true;
            }
        }
    }

    /// A group by number.
    pub fn group(&self, number: u64) -> Option<&Group> {
        self.groups.get(&number)
    }

    /// All groups, by number.
    pub fn groups(&self) -> impl Iterator<Item = (u64, &Group)> {
        self.groups.iter().map(|(number, group)| (*number, group))
    }

    /// Seqs without a file, in order of identity.
    pub fn without_file(&self) -> impl Iterator<Item = (&BatchId, &WithoutFile)> {
        self.without_file.iter().filter_map(|id| match &self.find(id)?.place {
            Place::WithoutFile(seq) => Some((id, &**seq)),
            Place::Group(_) => None,
        })
    }

    /// Batches and seqs staged here.
    pub fn len(&self) -> usize {
        self.batches
    }

    /// Nothing at all?
    pub fn is_empty(&self) -> bool {
        self.batches == 0 && self.groups.is_empty()
    }

    fn settle_append(&mut self, number: u64, id: &BatchId) -> bool {
        let Some(group) = self.groups.get_mut(&number) else { return false };
        let was = group.pending.remove(id).is_some();
        if group.pending.is_empty()
            && let Some(files) = group.closed_early.take()
        {
            group.state = GroupState::Closed { files };
        }
        was
    }

    fn entry_mut(&mut self, id: &BatchId) -> Option<&mut Entry> {
        self.entries.get_mut(&OriginKey::of(id)).and_then(|seqs| seqs.get_mut(&id.seq))
    }

    fn insert(&mut self, id: &BatchId, entry: Entry) {
        let before = self.entries.entry(OriginKey::of(id)).or_default().insert(id.seq, entry);
        assert!(before.is_none(), "a batch is staged in one place (I4): {id}");
        self.batches += 1;
    }

    fn remove(&mut self, id: &BatchId) -> Option<Entry> {
        let key = OriginKey::of(id);
        let seqs = self.entries.get_mut(&key)?;
        let entry = seqs.remove(&id.seq)?;
        if seqs.is_empty() {
            self.entries.remove(&key);
        }
        self.batches -= 1;
        Some(entry)
    }
}

/// What the ledger notes of a batch that goes into a group.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// Its events.
    pub events: u64,
    /// Streams that wait for it.
    pub waiters: &'a [StreamId],
    /// Why it goes into quarantine, if it does.
    pub refused: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use proto::ids::{AgentName, Origin};

    use super::*;

    fn id(seq: u64) -> BatchId {
        BatchId { agent: AgentName::new("web-1").unwrap(), origin: Origin::mint(1, 1), seq }
    }

    fn key(day: i32) -> GroupKey {
        GroupKey {
            kind: GroupKind::Data,
            dataset: DatasetName::new("d").ok(),
            partition: Partition::new(day, None).unwrap(),
        }
    }

    fn stage(staged: &mut Staged, seq: u64, number: u64, now: Instant) {
        let from = Incoming { events: 1, waiters: &[7], refused: None };
        staged.add_batch(&id(seq), number, from, now);
    }

    #[test]
    fn a_covered_batch_takes_its_whole_group_with_it() {
        let now = Instant::now();
        let mut staged = Staged::default();
        staged.add_group(0, key(1), now);
        staged.add_group(1, key(2), now);
        for (seq, number) in [(1, 0), (2, 0), (3, 1)] {
            stage(&mut staged, seq, number, now);
        }
        let mark = WithoutFile { kind: Kind::Mark(wire::Mark::default()), since: now, urgent: false, requested: false };
        staged.add_without_file(&id(4), mark, 7);
        let cover = Cover::of(OriginKey::of(&id(0)), [2, 4, 9].into_iter().collect());
        let (groups, seqs) = staged.touched_by(&[cover]);
        assert_eq!((groups.into_iter().collect::<Vec<_>>(), seqs), (vec![0], vec![id(4)]));
        let left: Vec<_> = staged.remove_group(0).into_iter().map(|left| left.id.seq).collect();
        assert_eq!(left, [1, 2]);
        assert!(staged.remove_without_file(&id(4)).is_some());
        assert_eq!(staged.len(), 1);
        assert!(staged.find(&id(1)).is_none() && staged.find(&id(3)).is_some());
    }

    #[test]
    fn an_early_roll_concerns_what_the_stream_waits_for() {
        let now = Instant::now();
        let mut staged = Staged::default();
        staged.add_group(0, key(1), now);
        staged.add_group(1, key(2), now);
        stage(&mut staged, 1, 0, now);
        stage(&mut staged, 2, 1, now);
        let mark = WithoutFile { kind: Kind::Mark(wire::Mark::default()), since: now, urgent: false, requested: false };
        staged.add_without_file(&id(3), mark, 7);
        assert!(staged.wait(&id(2), 8) && !staged.wait(&id(9), 8));
        staged.request_roll(8);
        let requested: Vec<_> = staged.groups().map(|(number, group)| (number, group.requested)).collect();
        assert_eq!(requested, [(0, false), (1, true)]);
        assert!(!staged.without_file().next().unwrap().1.requested);
        staged.request_roll(7);
        assert!(staged.groups().all(|(_, group)| group.requested) && staged.without_file().next().unwrap().1.requested);
    }

    #[test]
    fn a_close_counts_after_the_last_append() {
        let now = Instant::now();
        let mut staged = Staged::default();
        staged.add_group(0, key(1), now);
        stage(&mut staged, 1, 0, now);
        stage(&mut staged, 2, 0, now);
        assert!(staged.roll(0, now) && !staged.roll(0, now));
        assert_eq!(staged.appended(0, &id(1), vec![]), [7]);
        staged.closed(0, vec![]);
        assert!(matches!(staged.group(0).unwrap().state, GroupState::Closing { .. }));
        let refused = staged.take_refused(0, &id(2), 1).unwrap();
        assert_eq!(refused.waiters, [7]);
        assert!(matches!(staged.group(0).unwrap().state, GroupState::Closed { .. }));
        assert_eq!(staged.group(0).unwrap().events, 1);
        assert!(staged.open_group(&key(1)).is_none());
        assert!(staged.appended(0, &id(2), vec![]).is_empty(), "an answer for a batch that left is ignored");
    }
}
