//! What is to be sent, in flight, and waiting for its ack. Pure.
//!
//! Invariants: every batch handed in stays here until it is acked, let go or gone; of a gated origin only seq 0 is sent;
//! a durable batch is sent again only when the node that stored it says that it holds it no more and it is not
//! committed, or when that node has been given up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use proto::ids::Origin;
use proto::intervals::IntervalSet;

use super::balance::Node;
use super::wrong::Disputed;
use crate::outbox::Stored;
use crate::outbox::index::Kind;

/// A batch, ordered by age of its origin and seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    ordinal: u32,
    seq: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Ready,
    Waiting(Instant),
    InFlight,
    /// Stored by that node since then.
    Durable(Node, Instant),
    /// The owner makes a void of it.
    Replacing,
}

#[derive(Debug)]
struct Tracked {
    stored: Stored,
    state: State,
    attempts: u32,
    avoid: Option<Node>,
    disputed: Disputed,
    /// Reads of the stored copy that the disk failed since the last good one, and when the first did.
    failed_reads: Option<(u32, Instant)>,
}

/// A batch to send now.
#[derive(Debug, Clone, PartialEq)]
pub struct Take {
    /// Handle for the answer.
    pub key: Key,
    /// What and where.
    pub stored: Stored,
    /// Sends before this one.
    pub attempts: u32,
    /// Nodes to use only if there is no other.
    pub avoid: Vec<Node>,
}

/// The queue. See the module.
#[derive(Debug)]
pub struct Queue {
    /// Acked only when committed (else when durable).
    until_committed: bool,
    gated: Option<u32>,
    origins: Vec<Origin>,
    ordinals: HashMap<Origin, u32>,
    batches: BTreeMap<Key, Tracked>,
    ready: BTreeSet<Key>,
    waiting: BTreeSet<(Instant, Key)>,
    durable: u64,
    durable_opens: u64,
    in_flight_bytes: u64,
}

impl Queue {
    /// An empty queue.
    pub fn new(until_committed: bool) -> Self {
        Self {
            until_committed,
            gated: None,
            origins: Vec::new(),
            ordinals: HashMap::new(),
            batches: BTreeMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            durable: 0,
            durable_opens: 0,
            in_flight_bytes: 0,
        }
    }

    fn ordinal(&mut self, origin: Origin) -> u32 {
        let next = self.origins.len() as u32;
        let ordinal = *self.ordinals.entry(origin).or_insert(next);
        if ordinal == next {
            self.origins.push(origin);
        }
        ordinal
    }

    fn key(&self, origin: Origin, seq: u64) -> Option<Key> {
        self.ordinals.get(&origin).map(|ordinal| Key { ordinal: *ordinal, seq })
    }

    /// Takes a batch in, or the void that replaces it.
    pub fn add(&mut self, stored: Stored) {
        let key = Key { ordinal: self.ordinal(stored.origin), seq: stored.seq };
        self.drop_key(key);
        self.batches.insert(
            key,
            Tracked {
                stored,
                state: State::Ready,
                attempts: 0,
                avoid: None,
                disputed: Disputed::default(),
                failed_reads: None,
            },
        );
        self.ready.insert(key);
    }

    /// Of this origin only the open is sent from now on.
    pub fn close_gate(&mut self, origin: Origin) {
        self.gated = Some(self.ordinal(origin));
    }

    /// Everything may be sent.
    pub fn open_gate(&mut self) {
        self.gated = None;
    }

    /// The next batch to send: the oldest that is ready, if it fits into `limit` bytes in flight (one always does).
    pub fn take(&mut self, now: Instant, limit: u64) -> Option<Take> {
        while let Some(&(at, key)) = self.waiting.first().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, key));
            self.set(key, State::Ready);
        }
        let key = self.next_ready()?;
        let bytes = u64::from(self.batches.get(&key)?.stored.place.bytes);
        if self.in_flight_bytes > 0 && self.in_flight_bytes + bytes > limit {
            return None;
        }
        self.set(key, State::InFlight);
        self.in_flight_bytes += bytes;
        let tracked = self.batches.get_mut(&key)?;
        let mut avoid = tracked.disputed.by().to_vec();
        avoid.extend(tracked.avoid.clone().filter(|node| !avoid.contains(node)));
        let take = Take { key, stored: tracked.stored, attempts: tracked.attempts, avoid };
        tracked.attempts += 1;
        Some(take)
    }

    /// The oldest batch that is ready and that the gate lets through: it never holds back other origins.
    fn next_ready(&self) -> Option<Key> {
        let first = *self.ready.first()?;
        match self.gated {
            Some(ordinal) if ordinal == first.ordinal && first.seq > 0 => {
                self.ready.range(Key { ordinal: ordinal + 1, seq: 0 }..).next().copied()
            }
            _ => Some(first),
        }
    }

    /// A request has ended, however; to be called once per [`take`](Self::take), before the outcome.
    pub fn landed(&mut self, take: &Take) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(u64::from(take.stored.place.bytes));
    }

    /// Is the answer still wanted: the batch is here, and is the one that was sent?
    fn is_current(&self, take: &Take) -> bool {
        self.batches.get(&take.key).is_some_and(|t| t.state == State::InFlight && t.stored == take.stored)
    }

    /// It was not sent after all.
    pub fn put_back(&mut self, take: &Take) {
        if self.is_current(take) {
            self.set(take.key, State::Ready);
            if let Some(tracked) = self.batches.get_mut(&take.key) {
                tracked.attempts = take.attempts;
            }
        }
    }

    /// To be sent again from `at` on, elsewhere than `avoid` if possible.
    pub fn again(&mut self, take: &Take, at: Instant, avoid: Option<Node>) {
        if self.is_current(take) {
            self.set(take.key, State::Waiting(at));
            if let Some(tracked) = self.batches.get_mut(&take.key) {
                tracked.avoid = avoid;
            }
        }
    }

    /// A node called it wrong: who has by now.
    pub fn disputed(&mut self, take: &Take, node: &Node, now: Instant) -> Disputed {
        if !self.is_current(take) {
            return Disputed::default();
        }
        let Some(tracked) = self.batches.get_mut(&take.key) else { return Disputed::default() };
        tracked.disputed.said(node, now);
        tracked.disputed.clone()
    }

    /// The disk failed a read of its stored copy: how often by now, and for how long.
    pub fn read_failed(&mut self, take: &Take, now: Instant) -> (u32, Duration) {
        let Some(tracked) = self.batches.get_mut(&take.key) else { return (0, Duration::ZERO) };
        let (times, since) = tracked.failed_reads.unwrap_or((0, now));
        tracked.failed_reads = Some((times + 1, since));
        (times + 1, now.saturating_duration_since(since))
    }

    /// Its stored copy was read: what failed before that has passed.
    pub fn was_read(&mut self, take: &Take) {
        if let Some(tracked) = self.batches.get_mut(&take.key) {
            tracked.failed_reads = None;
        }
    }

    /// The answer was *busy*: that is no failed attempt, and takes nothing out of the retry budget.
    pub fn not_counted(&mut self, take: &Take) {
        if self.is_current(take)
            && let Some(tracked) = self.batches.get_mut(&take.key)
        {
            tracked.attempts = take.attempts;
        }
    }

    /// A node has stored it. True if that releases it.
    pub fn stored_by(&mut self, take: &Take, node: Node, now: Instant) -> bool {
        if !self.is_current(take) {
            return false;
        }
        if self.until_committed || take.stored.place.kind == Kind::Open {
            self.set(take.key, State::Durable(node, now));
            false
        } else {
            self.drop_key(take.key);
            true
        }
    }

    /// A node holds it already, as it has just said. True if that releases it.
    pub fn held_already(&mut self, stored: Stored, node: Node, now: Instant) -> bool {
        let key = Key { ordinal: self.ordinal(stored.origin), seq: stored.seq };
        if self.until_committed || stored.place.kind == Kind::Open {
            self.set(key, State::Durable(node, now));
            false
        } else {
            self.drop_key(key);
            true
        }
    }

    /// It waits for the owner, who replaces it by a void. False if it is not wanted any more.
    pub fn replacing(&mut self, take: &Take) -> bool {
        let current = self.is_current(take);
        if current {
            self.set(take.key, State::Replacing);
        }
        current
    }

    /// Seqs need not be kept any more: committed, or let go.
    pub fn release(&mut self, origin: Origin, seqs: &IntervalSet) {
        let Some(Key { ordinal, .. }) = self.key(origin, 0) else { return };
        for (start, end) in seqs.iter() {
            let range = Key { ordinal, seq: start }..Key { ordinal, seq: end };
            let keys: Vec<Key> = self.batches.range(range).map(|(key, _)| *key).collect();
            keys.into_iter().for_each(|key| self.drop_key(key));
        }
    }

    /// Data batches among `seqs` that another node than `by` has stored, with that node.
    pub fn held_elsewhere(&self, origin: Origin, seqs: &IntervalSet, by: &Node) -> Vec<(Node, u64)> {
        let Some(Key { ordinal, .. }) = self.key(origin, 0) else { return Vec::new() };
        let mut held = Vec::new();
        for (start, end) in seqs.iter() {
            for (key, tracked) in self.batches.range(Key { ordinal, seq: start }..Key { ordinal, seq: end }) {
                if let State::Durable(node, _) = &tracked.state
                    && node != by
                    && tracked.stored.place.kind == Kind::Data
                {
                    held.push((node.clone(), key.seq));
                }
            }
        }
        held
    }

    /// Whom to ask about which origin: the nodes that hold durable batches, oldest first, `most` at most.
    pub fn questions(&self, most: usize) -> Vec<(Node, Origin)> {
        let mut questions: Vec<(Node, Origin)> = Vec::new();
        for (key, tracked) in &self.batches {
            if let State::Durable(node, _) = &tracked.state {
                let origin = self.origins[key.ordinal as usize];
                if !questions.iter().any(|(n, o)| n == node && *o == origin) {
                    questions.push((node.clone(), origin));
                    if questions.len() >= most {
                        break;
                    }
                }
            }
        }
        questions
    }

    /// A node's answer to a question asked at `asked`: what it holds of an origin. Batches that it stored before and
    /// holds no more become ready again; they are returned. Committed ones must have been released before.
    pub fn held(&mut self, node: &Node, origin: Origin, asked: Instant, held: &IntervalSet) -> Vec<Stored> {
        let Some(Key { ordinal, .. }) = self.key(origin, 0) else { return Vec::new() };
        let range = Key { ordinal, seq: 0 }..=Key { ordinal, seq: u64::MAX };
        let lost: Vec<Key> = self
            .batches
            .range(range)
            .filter(|(key, tracked)| {
                matches!(&tracked.state, State::Durable(at, since) if at == node && *since < asked)
                    && !held.contains(key.seq)
            })
            .map(|(key, _)| *key)
            .collect();
        self.resend(lost)
    }

    /// A node is given up: everything it stored is sent elsewhere.
    pub fn give_up(&mut self, node: &Node) -> Vec<Stored> {
        let at_node = |tracked: &Tracked| matches!(&tracked.state, State::Durable(at, _) if at == node);
        let keys = self.batches.iter().filter(|(_, tracked)| at_node(tracked)).map(|(key, _)| *key).collect();
        self.resend(keys)
    }

    fn resend(&mut self, keys: Vec<Key>) -> Vec<Stored> {
        let mut stored = Vec::with_capacity(keys.len());
        for key in keys {
            self.set(key, State::Ready);
            if let Some(tracked) = self.batches.get_mut(&key) {
                // No send of it has failed: that takes nothing out of the retry budget.
                tracked.attempts = 0;
                stored.push(tracked.stored);
            }
        }
        stored
    }

    /// Which nodes hold which batches, as far as is known.
    pub fn stored_at(&self) -> Vec<(Node, Origin, IntervalSet)> {
        let mut at: BTreeMap<(Node, u32), IntervalSet> = BTreeMap::new();
        for (key, tracked) in &self.batches {
            if let State::Durable(node, _) = &tracked.state {
                at.entry((node.clone(), key.ordinal)).or_default().insert(key.seq);
            }
        }
        at.into_iter().map(|((node, ordinal), seqs)| (node, self.origins[ordinal as usize], seqs)).collect()
    }

    /// When a waiting batch becomes ready.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// Is something ready that the gate lets through?
    pub fn has_ready(&self) -> bool {
        self.next_ready().is_some()
    }

    /// Batches that no aggregator has stored yet.
    pub fn undelivered(&self) -> u64 {
        self.batches.len() as u64 - self.durable
    }

    /// Batches that are not acked.
    pub fn unacked(&self) -> u64 {
        let acked = if self.until_committed { 0 } else { self.durable_opens };
        self.batches.len() as u64 - acked
    }

    /// Bytes in flight.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    fn count_durable(&mut self, state: &State, kind: Kind, up: bool) {
        if matches!(state, State::Durable(..)) {
            let opens = u64::from(kind == Kind::Open);
            if up {
                (self.durable, self.durable_opens) = (self.durable + 1, self.durable_opens + opens);
            } else {
                (self.durable, self.durable_opens) = (self.durable - 1, self.durable_opens - opens);
            }
        }
    }

    fn set(&mut self, key: Key, state: State) {
        let Some(tracked) = self.batches.get_mut(&key) else { return };
        let kind = tracked.stored.place.kind;
        let before = std::mem::replace(&mut tracked.state, state.clone());
        self.leave(key, &before);
        self.count_durable(&before, kind, false);
        self.count_durable(&state, kind, true);
        match state {
            State::Ready => drop(self.ready.insert(key)),
            State::Waiting(at) => drop(self.waiting.insert((at, key))),
            _ => {}
        }
    }

    fn leave(&mut self, key: Key, state: &State) {
        match state {
            State::Ready => drop(self.ready.remove(&key)),
            State::Waiting(at) => drop(self.waiting.remove(&(*at, key))),
            _ => {}
        }
    }

    fn drop_key(&mut self, key: Key) {
        if let Some(tracked) = self.batches.remove(&key) {
            self.leave(key, &tracked.state);
            self.count_durable(&tracked.state, tracked.stored.place.kind, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::record_log::RecordAt;
    use proptest::prelude::*;

    use super::*;
    use crate::outbox::index::Place;

    fn origin(n: u128) -> Origin {
        Origin::mint(1_793_500_000_000, n)
    }

    fn stored(of: u128, seq: u64) -> Stored {
        let kind = if seq == 0 { Kind::Open } else { Kind::Data };
        let at = RecordAt { segment: 1, offset: seq * 100 };
        Stored { origin: origin(of), seq, place: Place { at, part: 0, bytes: 100, kind, durable: false } }
    }

    fn filled(until_committed: bool, count: u64) -> Queue {
        let mut queue = Queue::new(until_committed);
        (0..count).for_each(|seq| queue.add(stored(1, seq)));
        queue
    }

    fn set(seqs: impl IntoIterator<Item = u64>) -> IntervalSet {
        seqs.into_iter().collect()
    }

    #[test]
    fn failed_reads_are_counted_per_batch() {
        let now = Instant::now();
        let mut queue = filled(true, 2);
        let (first, second) = (queue.take(now, 1 << 20).unwrap(), queue.take(now, 1 << 20).unwrap());
        assert_eq!(queue.read_failed(&first, now), (1, Duration::ZERO));
        let later = now + Duration::from_secs(60);
        assert_eq!(queue.read_failed(&first, later), (2, Duration::from_secs(60)));
        assert_eq!(queue.read_failed(&second, later), (1, Duration::ZERO), "another batch");
        queue.was_read(&first);
        assert_eq!(queue.read_failed(&first, later), (1, Duration::ZERO), "it could be read in between");
        assert_eq!(queue.read_failed(&second, later).0, 2, "the other one could not");
    }

    #[test]
    fn the_gate_lets_only_the_open_and_old_origins_through() {
        let now = Instant::now();
        let mut queue = Queue::new(true);
        queue.add(stored(1, 4));
        queue.close_gate(origin(2));
        queue.add(stored(2, 0));
        queue.add(stored(2, 1));
        let sent: Vec<_> =
            std::iter::from_fn(|| queue.take(now, 1 << 20)).map(|t| (t.stored.origin, t.stored.seq)).collect();
        assert_eq!(sent, [(origin(1), 4), (origin(2), 0)]);
        queue.open_gate();
        assert_eq!(queue.take(now, 1 << 20).unwrap().stored.seq, 1);
    }

    #[test]
    fn a_closed_gate_holds_back_no_other_origin() {
        let now = Instant::now();
        let mut queue = Queue::new(true);
        // The owner closes the gate before it hands over what is left of earlier runs.
        queue.close_gate(origin(2));
        queue.add(stored(1, 4));
        queue.add(stored(2, 0));
        queue.add(stored(2, 1));
        let sent: Vec<_> =
            std::iter::from_fn(|| queue.take(now, 1 << 20)).map(|t| (t.stored.origin, t.stored.seq)).collect();
        assert_eq!(sent, [(origin(2), 0), (origin(1), 4)]);
        assert!(!queue.has_ready());
    }

    #[test]
    fn what_a_node_lost_is_no_retry() {
        let now = Instant::now();
        let mut queue = filled(true, 1);
        let take = queue.take(now, 1 << 20).unwrap();
        queue.stored_by(&take, "a".into(), now);
        queue.give_up(&"a".into());
        assert_eq!(queue.take(now, 1 << 20).unwrap().attempts, 0);
    }

    #[test]
    fn bytes_in_flight_are_bounded_and_one_always_fits() {
        let now = Instant::now();
        let mut queue = filled(true, 5);
        assert!(queue.take(now, 10).is_some());
        assert!(queue.take(now, 10).is_none());
        let second = queue.take(now, 200).unwrap();
        assert!(queue.take(now, 200).is_none());
        queue.landed(&second);
        assert!(queue.take(now, 200).is_some());
    }

    #[test]
    fn durable_acks_release_all_but_the_open() {
        let now = Instant::now();
        let mut queue = filled(false, 2);
        let (open, data) = (queue.take(now, 1 << 20).unwrap(), queue.take(now, 1 << 20).unwrap());
        assert!(!queue.stored_by(&open, "a".into(), now), "its commit is still asked for");
        assert!(queue.stored_by(&data, "a".into(), now));
        assert_eq!(queue.unacked(), 0);
        assert_eq!(queue.questions(9), [(Node::from("a"), origin(1))]);
    }

    #[test]
    fn only_what_a_node_lost_after_storing_it_is_sent_again() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut queue = filled(true, 4);
        let takes: Vec<_> = std::iter::from_fn(|| queue.take(start, 1 << 20)).collect();
        for take in &takes[..3] {
            queue.stored_by(take, "a".into(), start);
        }
        queue.stored_by(&takes[3], "a".into(), later);
        queue.release(origin(1), &set([0]));
        let lost = queue.held(&"a".into(), origin(1), later, &set([1]));
        assert_eq!(lost.iter().map(|s| s.seq).collect::<Vec<_>>(), [2], "3 was stored after the question");
        assert!(queue.held(&"b".into(), origin(1), later, &set([])).is_empty(), "another node's answer says nothing");
        assert_eq!(queue.give_up(&"a".into()).len(), 2);
        assert_eq!(queue.undelivered(), 3);
    }

    #[test]
    fn who_else_had_a_batch_that_is_covered() {
        let now = Instant::now();
        let mut queue = filled(true, 4);
        let takes: Vec<_> = std::iter::from_fn(|| queue.take(now, 1 << 20)).collect();
        for (take, node) in takes.iter().zip(["a", "a", "b"]) {
            queue.stored_by(take, node.into(), now);
        }
        // 0 is an open, 3 is in flight.
        assert_eq!(queue.held_elsewhere(origin(1), &set([0, 1, 2, 3]), &"b".into()), [(Node::from("a"), 1)]);
        assert_eq!(queue.held_elsewhere(origin(1), &set([0, 1]), &"a".into()), []);
        assert_eq!(queue.held_elsewhere(origin(2), &set([1]), &"b".into()), []);
    }

    #[test]
    fn an_answer_for_replaced_bytes_is_ignored() {
        let now = Instant::now();
        let mut queue = filled(true, 2);
        queue.take(now, 1 << 20).unwrap();
        let take = queue.take(now, 1 << 20).unwrap();
        assert!(queue.replacing(&take));
        let mut void = stored(1, 1);
        void.place.at.offset = 777;
        queue.add(void);
        queue.stored_by(&take, "a".into(), now);
        assert_eq!(queue.take(now, 1 << 20).unwrap().stored, void);
    }

    proptest! {
        #[test]
        fn nothing_is_forgotten_before_its_ack(steps in prop::collection::vec((0u8..6, 0u64..30), 1..300)) {
            let mut now = Instant::now();
            let mut queue = Queue::new(true);
            let (mut next, mut in_flight, mut open) = (0u64, Vec::<Take>::new(), BTreeSet::new());
            for (what, n) in steps {
                now += Duration::from_millis(n);
                match what {
                    0 => { queue.add(stored(1, next)); open.insert(next); next += 1; }
                    1 => in_flight.extend(queue.take(now, 500)),
                    2 if !in_flight.is_empty() => { let t = in_flight.swap_remove(n as usize % in_flight.len()); queue.landed(&t); queue.stored_by(&t, "a".into(), now); }
                    3 if !in_flight.is_empty() => { let t = in_flight.swap_remove(n as usize % in_flight.len()); queue.landed(&t); queue.again(&t, now + Duration::from_millis(n), None); }
                    4 => { queue.release(origin(1), &set([n])); open.remove(&n); }
                    _ => { queue.held(&"a".into(), origin(1), now, &set([n])); }
                }
                prop_assert_eq!(queue.unacked(), open.len() as u64);
            }
            // Everything left can still be sent and acked.
            for t in in_flight { queue.landed(&t); queue.again(&t, now, None); }
            now += Duration::from_secs(9);
            queue.give_up(&"a".into());
            while let Some(t) = queue.take(now, 500) { queue.landed(&t); queue.stored_by(&t, "b".into(), now); }
            prop_assert_eq!(queue.undelivered(), 0);
            prop_assert_eq!(queue.in_flight_bytes(), 0);
        }
    }
}
