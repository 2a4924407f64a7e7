//! What the channel holds, as a pure state machine: which batches lie in which segment, which of them are answered, and
//! what may be taken in.
//!
//! Invariants: a batch is known as held only while a segment here holds its payload unanswered; deduplication rests on
//! that or on committed intervals, never on any highest seq; capacity is counted in bytes of segments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use proto::ids::{AgentName, BatchId, Origin};
use proto::intervals::IntervalSet;

use super::Location;
use super::bitmap::Bitmap;
use super::held::HeldSeqs;
use super::index::{IndexBuilder, NewEntry, SegmentIndex, SeqKind};
use super::ledger::Changes;
use super::refusals::Refusals;
use super::rows::{self, LastMark, OriginRow};

/// Origins kept in memory although nothing of them is held.
const IDLE_ORIGINS: usize = 8192;

/// One run of one agent.
pub type OriginKey = (AgentName, Origin);

/// May a batch be taken in?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Store it.
    Store,
    /// A live segment holds it.
    Held,
    /// The log covers it.
    Committed,
    /// No room.
    Full,
    /// Above half full, and this agent holds more than a quarter.
    Share,
}

#[derive(Debug)]
enum Contents {
    Growing(Box<IndexBuilder>),
    Sealed(Arc<SegmentIndex>),
}

/// One segment.
#[derive(Debug)]
pub struct Segment {
    contents: Contents,
    answered: Bitmap,
    live: u32,
    live_bytes: u64,
    dirty: bool,
    /// When a batch of it was last answered or it was opened, milliseconds of the owner's clock.
    pub touched_ms: u64,
    /// Length of its file; known once sealed.
    pub file_bytes: u64,
}

impl Segment {
    /// What lies in it.
    pub fn index(&self) -> &SegmentIndex {
        match &self.contents {
            Contents::Growing(builder) => builder.index(),
            Contents::Sealed(index) => index,
        }
    }

    /// Bits of answered batches.
    pub fn answered(&self) -> &Bitmap {
        &self.answered
    }

    /// Batches that are not answered.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// Its index, shared, once it is sealed.
    pub fn sealed(&self) -> Option<Arc<SegmentIndex>> {
        match &self.contents {
            Contents::Sealed(index) => Some(index.clone()),
            Contents::Growing(_) => None,
        }
    }

    /// Is it still written?
    pub fn is_growing(&self) -> bool {
        matches!(self.contents, Contents::Growing(_))
    }
}

#[derive(Debug, Default)]
struct OriginState {
    held: HeldSeqs,
    row: OriginRow,
    dirty: bool,
}

#[derive(Debug, Default)]
struct AgentState {
    held_bytes: u64,
    dirty: bool,
}

/// The whole state.
#[derive(Debug)]
pub struct State {
    /// Why batches were refused for good.
    pub refusals: Refusals,
    max_bytes: u64,
    segments: BTreeMap<u64, Segment>,
    origins: HashMap<OriginKey, OriginState>,
    agents: HashMap<AgentName, AgentState>,
    broken: HashMap<BatchId, u32>,
    broken_dirty: HashSet<BatchId>,
    /// Where a batch went that was copied out of a pinned segment.
    moved: HashMap<Location, Location>,
    /// Segments that went since the last call of [`State::take_changes`].
    gone: Vec<u64>,
    held_batches: u64,
    held_bytes: u64,
}

impl State {
    /// An empty channel of at most `max_bytes` of segments.
    pub fn new(max_bytes: u64, broken: HashMap<BatchId, u32>) -> Self {
        Self {
            refusals: Refusals::default(),
            max_bytes,
            segments: BTreeMap::new(),
            origins: HashMap::new(),
            agents: HashMap::new(),
            broken,
            broken_dirty: HashSet::new(),
            moved: HashMap::new(),
            gone: Vec::new(),
            held_batches: 0,
            held_bytes: 0,
        }
    }

    /// Batches not answered.
    pub fn held_batches(&self) -> u64 {
        self.held_batches
    }

    /// Their header and payload bytes.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// All segments.
    pub fn segments(&self) -> impl Iterator<Item = (u64, &Segment)> {
        self.segments.iter().map(|(&id, segment)| (id, segment))
    }

    /// One segment.
    pub fn segment(&self, id: u64) -> Option<&Segment> {
        self.segments.get(&id)
    }

    /// Broken sends of every batch that has any.
    pub fn broken(&self) -> &HashMap<BatchId, u32> {
        &self.broken
    }

    /// Must the origin's row be loaded with [`State::know_origin`] before anything else is asked about it?
    pub fn is_unknown(&self, key: &OriginKey) -> bool {
        !self.origins.contains_key(key)
    }

    /// Takes over the ledger's row of an origin.
    pub fn know_origin(&mut self, key: OriginKey, row: OriginRow) {
        self.origins.entry(key).or_insert_with(|| OriginState { row, ..OriginState::default() });
    }

    /// May this batch be taken in, with `used_bytes` in segment files? The origin must be known.
    pub fn admit(&self, id: &BatchId, bytes: u64, used_bytes: u64) -> Admission {
        if let Some(origin) = self.origins.get(&(id.agent.clone(), id.origin)) {
            if origin.held.contains(id.seq) {
                return Admission::Held;
            }
            if origin.row.committed.contains(id.seq) {
                return Admission::Committed;
            }
        }
        if used_bytes.saturating_add(bytes) > self.max_bytes {
            return Admission::Full;
        }
        let held = self.agents.get(&id.agent).map_or(0, |agent| agent.held_bytes);
        if used_bytes > self.max_bytes / 2 && held > self.max_bytes / 4 {
            return Admission::Share;
        }
        Admission::Store
    }

    /// Takes in a segment found at the start, with the ledger's bits. Batches that the log covers or that an earlier
    /// segment holds count as answered. All its origins must be known.
    pub fn add_sealed(
        &mut self,
        id: u64,
        index: Arc<SegmentIndex>,
        answered: Option<Bitmap>,
        file_bytes: u64,
        now: u64,
    ) {
        let len = index.entries.len() as u32;
        let mut answered = answered.unwrap_or_else(|| Bitmap::new(len));
        let keys: Vec<OriginKey> =
            index.origins.iter().map(|(agent, origin)| (index.agents[*agent as usize].clone(), *origin)).collect();
        // Bits that no row has yet: without one, a segment that goes would look like one that was lost.
        let mut dirty = false;
        let (mut live, mut live_bytes) = (0, 0);
        for (ordinal, entry) in index.entries.iter().enumerate() {
            if answered.get(ordinal as u32) {
                continue;
            }
            let key = &keys[entry.origin as usize];
            let origin = self.origins.entry(key.clone()).or_default();
            if origin.row.committed.contains(entry.seq) || !origin.held.insert(entry.seq) {
                answered.set(ordinal as u32);
                dirty = true;
                continue;
            }
            live += 1;
            live_bytes += entry.bytes();
            let agent = self.agents.entry(key.0.clone()).or_default();
            agent.held_bytes += entry.bytes();
            agent.dirty = true;
        }
        self.held_batches += u64::from(live);
        self.held_bytes += live_bytes;
        let contents = Contents::Sealed(index);
        let segment = Segment { contents, answered, live, live_bytes, dirty, touched_ms: now, file_bytes };
        self.segments.insert(id, segment);
    }

    /// Takes in a batch that was appended. Its place.
    pub fn append(
        &mut self,
        segment: u64,
        new: &NewEntry,
        created_unix_ms: u64,
        mark_at: Option<i64>,
        now: u64,
    ) -> Location {
        let ordinal = self.push(segment, new, created_unix_ms, now);
        let bytes = u64::from(new.payload_bytes) + u64::from(new.header_bytes);
        let origin = self.origins.entry((new.id.agent.clone(), new.id.origin)).or_default();
        origin.held.insert(new.id.seq);
        if new.kind == SeqKind::Mark
            && let Some(at_unix_ms) = mark_at
            && origin.row.mark.is_none_or(|last| last.seq < new.id.seq)
        {
            origin.row.mark = Some(LastMark { seq: new.id.seq, at_unix_ms });
            origin.row.updated_unix_ms = created_unix_ms;
            origin.dirty = true;
        }
        let agent = self.agents.entry(new.id.agent.clone()).or_default();
        agent.held_bytes += bytes;
        agent.dirty = true;
        self.held_batches += 1;
        self.held_bytes += bytes;
        Location { segment, ordinal }
    }

    /// Takes in the copy of a batch that lies at `from`. The old place counts until [`State::copied`].
    pub fn copy(&mut self, from: Location, segment: u64, new: &NewEntry, created_unix_ms: u64, now: u64) -> Location {
        let ordinal = self.push(segment, new, created_unix_ms, now);
        let to = Location { segment, ordinal };
        self.moved.insert(from, to);
        to
    }

    /// Was the batch at `from` copied, so that it is the copy that counts?
    pub fn is_moved(&self, from: Location) -> bool {
        self.moved.contains_key(&from)
    }

    /// The copy of the batch at `from` is durable: the old place counts as answered.
    pub fn copied(&mut self, from: Location, now: u64) {
        self.settle(from, now);
    }

    fn push(&mut self, segment: u64, new: &NewEntry, created_unix_ms: u64, now: u64) -> u32 {
        let slot = self.segments.entry(segment).or_insert_with(|| Segment {
            contents: Contents::Growing(Box::new(IndexBuilder::new(created_unix_ms))),
            answered: Bitmap::default(),
            live: 0,
            live_bytes: 0,
            dirty: false,
            touched_ms: now,
            file_bytes: 0,
        });
        let Contents::Growing(builder) = &mut slot.contents else { panic!("segment {segment} is sealed") };
        let ordinal = builder.push(new);
        slot.answered.push();
        slot.live += 1;
        slot.live_bytes += u64::from(new.payload_bytes) + u64::from(new.header_bytes);
        ordinal
    }

    /// The segment is sealed; its finished index.
    pub fn seal(&mut self, id: u64, file_bytes: u64) -> Option<Arc<SegmentIndex>> {
        let segment = self.segments.get_mut(&id)?;
        if let Contents::Growing(builder) = &mut segment.contents {
            let index = Arc::new(std::mem::take(builder).finish());
            segment.contents = Contents::Sealed(index);
        }
        segment.file_bytes = file_bytes;
        match &segment.contents {
            Contents::Sealed(index) => Some(index.clone()),
            Contents::Growing(_) => None,
        }
    }

    /// Marks one place as answered; false if it was, or is no place here.
    fn settle(&mut self, at: Location, now: u64) -> bool {
        let Some(segment) = self.segments.get_mut(&at.segment) else { return false };
        if !segment.answered.set(at.ordinal) {
            return false;
        }
        let bytes = segment.index().entries[at.ordinal as usize].bytes();
        segment.live -= 1;
        segment.live_bytes -= bytes;
        segment.dirty = true;
        segment.touched_ms = now;
        true
    }

    /// A collector has answered the batch for good: it is in the log, with these intervals of its origin. False if it
    /// was not held.
    pub fn release(&mut self, at: Location, id: &BatchId, intervals: &IntervalSet, unix_ms: u64, now: u64) -> bool {
        let released = self.drop_batch(at, id, now);
        let origin = self.origins.entry((id.agent.clone(), id.origin)).or_default();
        origin.row.committed.union_with(intervals);
        origin.row.committed.insert(id.seq);
        origin.row.updated_unix_ms = unix_ms;
        origin.dirty = true;
        released
    }

    /// The payload cannot be read back: the batch is no longer held, and nothing says that it is committed, so its agent
    /// can append it again.
    pub fn give_up(&mut self, at: Location, id: &BatchId, now: u64) -> bool {
        self.drop_batch(at, id, now)
    }

    fn drop_batch(&mut self, at: Location, id: &BatchId, now: u64) -> bool {
        let mut place = at;
        while let Some(next) = self.moved.remove(&place) {
            place = next;
        }
        let is_it = self.segments.get(&place.segment).is_some_and(|segment| {
            (place.ordinal as usize) < segment.index().entries.len() && segment.index().id(place.ordinal) == *id
        });
        if !is_it {
            return false;
        }
        let bytes = self.segments[&place.segment].index().entries[place.ordinal as usize].bytes();
        if !self.settle(place, now) {
            return false;
        }
        self.held_batches -= 1;
        self.held_bytes -= bytes;
        if let Some(origin) = self.origins.get_mut(&(id.agent.clone(), id.origin)) {
            origin.held.remove(id.seq);
        }
        if let Some(agent) = self.agents.get_mut(&id.agent) {
            agent.held_bytes -= bytes;
            agent.dirty = true;
        }
        if self.broken.remove(id).is_some() {
            self.broken_dirty.insert(id.clone());
        }
        true
    }

    /// A stream broke while the batch was sent: its count is now `count`.
    pub fn set_broken(&mut self, id: BatchId, count: u32) {
        self.broken.insert(id.clone(), count);
        self.broken_dirty.insert(id);
    }

    /// Committed intervals of a known origin.
    pub fn committed(&self, key: &OriginKey) -> Option<&IntervalSet> {
        self.origins.get(key).map(|origin| &origin.row.committed)
    }

    /// Seqs of an origin that are held.
    pub fn held(&self, key: &OriginKey) -> Option<&HeldSeqs> {
        self.origins.get(key).map(|origin| &origin.held)
    }

    /// Rows that changed since the last call. They are lost if the caller does not write them: call
    /// [`State::dirty_all`] then.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for (id, segment) in &mut self.segments {
            if std::mem::take(&mut segment.dirty) {
                changes.put(rows::segment_key(*id), rows::bitmap_value(&segment.answered));
            }
        }
        for id in self.gone.drain(..) {
            changes.remove(rows::segment_key(id));
        }
        for ((agent, origin), state) in &mut self.origins {
            if std::mem::take(&mut state.dirty) {
                changes.put(rows::origin_key(agent, *origin), rows::origin_value(&state.row));
            }
        }
        self.agents.retain(|agent, state| {
            if std::mem::take(&mut state.dirty) {
                match state.held_bytes {
                    0 => changes.remove(rows::agent_key(agent)),
                    bytes => changes.put(rows::agent_key(agent), rows::number_value(bytes)),
                }
            }
            state.held_bytes > 0
        });
        for id in self.broken_dirty.drain() {
            match self.broken.get(&id) {
                Some(count) => changes.put(rows::broken_key(&id), rows::number_value(u64::from(*count))),
                None => changes.remove(rows::broken_key(&id)),
            }
        }
        self.refusals.take_changes(&mut changes);
        if self.origins.len() > IDLE_ORIGINS {
            self.origins.retain(|_, origin| !origin.held.is_empty());
        }
        changes
    }

    /// Everything has to be written again (to a ledger that was opened anew).
    pub fn dirty_all(&mut self) {
        self.segments.values_mut().for_each(|segment| segment.dirty = segment.answered.count() > 0);
        self.origins.values_mut().for_each(|origin| origin.dirty = origin.row != OriginRow::default());
        self.agents.values_mut().for_each(|agent| agent.dirty = true);
        self.broken_dirty.extend(self.broken.keys().cloned());
        self.refusals.dirty_all();
    }

    /// Segments that are sealed and have nothing unanswered.
    pub fn finished(&self) -> Vec<u64> {
        let done = |segment: &Segment| segment.live == 0 && !segment.is_growing();
        self.segments.iter().filter(|(_, segment)| done(segment)).map(|(&id, _)| id).collect()
    }

    /// The oldest sealed segment worth copying forward: at most an eighth of it is unanswered, and nothing of it was
    /// answered since `quiet_since` (or it is not asked).
    pub fn pinned(&self, quiet_since: Option<u64>) -> Option<u64> {
        let pinned = |segment: &Segment| {
            segment.live > 0
                && !segment.is_growing()
                && segment.live_bytes.saturating_mul(8) <= segment.file_bytes
                && quiet_since.is_none_or(|since| segment.touched_ms <= since)
        };
        self.segments.iter().find(|(_, segment)| pinned(segment)).map(|(&id, _)| id)
    }

    /// The segment's file is gone. Its row goes with the next changes; one that stays behind is dropped by a start.
    pub fn remove(&mut self, id: u64) {
        if self.segments.remove(&id).is_some() {
            self.gone.push(id);
        }
        let segments = &self.segments;
        let alive = |to: &Location| segments.get(&to.segment).is_some_and(|s| !s.answered.get(to.ordinal));
        let passed: HashSet<Location> = self.moved.keys().copied().collect();
        self.moved.retain(|_, to| alive(to) || passed.contains(to));
    }
}
