//! The forward state machine against a model: what it may send, what it has to list, and that everything is released in
//! the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proto::ids::{AgentName, BatchId, DatasetName, Origin, Partition};
use proto::intervals::IntervalSet;
use proto::wire::CollectorStatus;

use super::peer::{Lane, PeerName};
use super::state::{ALONE_AFTER, Forward, Limits, SUSPECT_AFTER, Verdict};
use crate::channel::Location;
use crate::channel::bitmap::Bitmap;
use crate::channel::index::{IndexBuilder, NewEntry, Route, SeqKind};
use crate::channel::unreadable::Fault;

const GRACE: Duration = Duration::from_secs(3);
const CREDIT: u64 = 250;
const PEERS: [&str; 3] = ["a:1", "b:1", "c:1"];
const ROLL_AGE_MS: u64 = 10_000;

#[derive(Debug, Clone)]
enum Step {
    Append { agent: u8, route: u8, bytes: u8 },
    Copy { nth: u8 },
    Connect { peer: u8 },
    Break { peer: u8, alone: bool, unclean: bool },
    Pump { peer: u8, alone: bool },
    Answer { peer: u8, alone: bool, nth: u8, verdict: u8 },
    Status { peer: u8, waiting: bool, draining: bool, since_ms: u32 },
    Advance { ms: u16 },
    Peers { mask: u8 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, 0u8..3, 1u8..120).prop_map(|(agent, route, bytes)| Step::Append { agent, route, bytes }),
        1 => any::<u8>().prop_map(|nth| Step::Copy { nth }),
        2 => (0u8..3).prop_map(|peer| Step::Connect { peer }),
        1 => (0u8..3, any::<bool>(), any::<bool>()).prop_map(|(peer, alone, unclean)| Step::Break { peer, alone, unclean }),
        5 => (0u8..3, prop::bool::weighted(0.2)).prop_map(|(peer, alone)| Step::Pump { peer, alone }),
        6 => (0u8..3, prop::bool::weighted(0.2), any::<u8>(), 0u8..9)
            .prop_map(|(peer, alone, nth, verdict)| Step::Answer { peer, alone, nth, verdict }),
        1 => (0u8..3, any::<bool>(), prop::bool::weighted(0.1), 0u32..100_000)
            .prop_map(|(peer, waiting, draining, since_ms)| Step::Status { peer, waiting, draining, since_ms }),
        2 => (0u16..5000).prop_map(|ms| Step::Advance { ms }),
        1 => (1u8..8).prop_map(|mask| Step::Peers { mask }),
        1 => Just(Step::Reopen),
    ]
}

/// What the model knows of a lane: batches the collector was given or asked about on the present stream.
#[derive(Debug, Default)]
struct LaneModel {
    up: bool,
    /// With: given as payload on this stream and not staged (takes credit).
    open: BTreeMap<BatchId, bool>,
    /// Unanswered by earlier streams.
    left: BTreeSet<BatchId>,
}

struct World {
    state: Forward,
    now: Instant,
    peers: Vec<PeerName>,
    lanes: BTreeMap<Lane, LaneModel>,
    down_since: HashMap<PeerName, Option<Instant>>,
    bytes: HashMap<BatchId, u64>,
    places: HashMap<BatchId, Location>,
    /// Who was given the batch and has neither handed it back nor lost it by a broken stream.
    claims: HashMap<BatchId, Lane>,
    broken: HashMap<BatchId, u32>,
    released: BTreeSet<BatchId>,
    next_seq: [u64; 4],
    segment: u64,
    ordinals: u32,
}

fn ranking(peers: &[PeerName]) -> super::state::Ranking {
    let peers = peers.to_vec();
    Arc::new(move |agent: &AgentName| {
        let mut order = peers.clone();
        let first = agent.as_str().len() % order.len().max(1);
        order.rotate_left(first);
        order
    })
}

fn status(waiting: bool, draining: bool, since_ms: u64) -> CollectorStatus {
    let (roll_age_ms, since_commit_ms) = (ROLL_AGE_MS, since_ms);
    CollectorStatus { roll_age_ms, waiting, draining, since_commit_ms, ..CollectorStatus::default() }
}

impl World {
    fn new() -> Self {
        let now = Instant::now() + Duration::from_secs(1000);
        let peers: Vec<PeerName> = PEERS.iter().map(|name| PeerName::from(*name)).collect();
        let mut state = Forward::new(Limits { max_unreleased: 6, failover_after: GRACE });
        state.set_peers(&peers, ranking(&peers), now);
        Self {
            state,
            now,
            down_since: peers.iter().map(|peer| (peer.clone(), Some(now))).collect(),
            peers,
            lanes: BTreeMap::new(),
            bytes: HashMap::new(),
            places: HashMap::new(),
            claims: HashMap::new(),
            broken: HashMap::new(),
            released: BTreeSet::new(),
            next_seq: [0; 4],
            segment: 1,
            ordinals: 0,
        }
    }

    fn lane(&self, peer: u8, alone: bool) -> Lane {
        Lane { peer: PeerName::from(PEERS[usize::from(peer)]), alone }
    }

    fn entry(&self, id: &BatchId, route: u8, bytes: u64) -> NewEntry {
        let dataset = DatasetName::new("d").unwrap();
        let partition = Partition::new(20_000 + i32::from(route), None).unwrap();
        let route = Route::Data { dataset, partition, dead_letters: false };
        NewEntry { id: id.clone(), offset: 0, payload_bytes: bytes as u32, header_bytes: 0, kind: SeqKind::Data, route }
    }

    fn append(&mut self, agent: u8, route: u8, bytes: u64) {
        let name = AgentName::new(&"w".repeat(usize::from(agent) + 1)).unwrap();
        let seq = self.next_seq[usize::from(agent)];
        self.next_seq[usize::from(agent)] += 1;
        let id = BatchId { agent: name, origin: Origin([agent; 16]), seq };
        self.state.stored(self.segment, &self.entry(&id, route, bytes), None);
        self.places.insert(id.clone(), Location { segment: self.segment, ordinal: self.ordinals });
        self.ordinals += 1;
        self.bytes.insert(id, bytes);
    }

    fn copy(&mut self, nth: u8) {
        let mut held: Vec<_> = self.places.keys().filter(|id| !self.released.contains(*id)).cloned().collect();
        held.sort();
        if held.is_empty() {
            return;
        }
        let id = held[usize::from(nth) % held.len()].clone();
        let from = self.places[&id];
        let route = 0;
        self.state.stored(self.segment, &self.entry(&id, route, self.bytes[&id]), Some(from));
        self.places.insert(id, Location { segment: self.segment, ordinal: self.ordinals });
        self.ordinals += 1;
    }

    /// The channel is opened again: every unanswered batch has another place, claims stay.
    fn reopen(&mut self) {
        let mut builder = IndexBuilder::new(0);
        self.segment += 1;
        let mut held: Vec<_> = self.places.keys().filter(|id| !self.released.contains(*id)).cloned().collect();
        held.sort();
        for id in held {
            let ordinal = builder.push(&self.entry(&id, 0, self.bytes[&id]));
            self.places.insert(id, Location { segment: self.segment, ordinal });
        }
        let index = builder.finish();
        let answered = Bitmap::new(index.entries.len() as u32);
        self.state.reset(vec![(self.segment, Arc::new(index), answered)], self.broken.clone());
        self.segment += 1;
        self.ordinals = 0;
    }

    fn connect(&mut self, lane: &Lane) {
        if !self.peers.contains(&lane.peer) || self.lanes.get(lane).is_some_and(|model| model.up) {
            return;
        }
        let listed = self.state.connected(lane, CREDIT, &status(false, false, 0), self.now);
        if !lane.alone {
            self.down_since.insert(lane.peer.clone(), None);
        }
        let released = &self.released;
        let model = self.lanes.entry(lane.clone()).or_default();
        model.up = true;
        let expected: BTreeSet<BatchId> = std::mem::take(&mut model.left).difference(released).cloned().collect();
        assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), expected, "listed before any payload");
        for id in listed {
            model.open.insert(id.clone(), false);
            self.claims.entry(id).or_insert_with(|| lane.clone());
        }
    }

    fn break_lane(&mut self, lane: &Lane, unclean: bool) {
        let Some(model) = self.lanes.get_mut(lane).filter(|model| model.up) else { return };
        model.up = false;
        let open = std::mem::take(&mut model.open);
        model.left.extend(open.keys().cloned());
        if !lane.alone {
            self.down_since.insert(lane.peer.clone(), Some(self.now));
        }
        for (id, count) in self.state.broken(lane, unclean, self.now) {
            assert!(unclean, "silence and drains are no fault of a batch");
            assert!(open[&id], "only what was sent and not staged");
            let known = self.broken.entry(id).or_insert(0);
            *known += 1;
            assert_eq!(*known, count);
        }
    }

    /// A claim is over when its stream counts as broken.
    fn is_lost(&self, lane: &Lane) -> bool {
        !self.peers.contains(&lane.peer)
            || self.down_since[&lane.peer].is_some_and(|since| self.now >= since + GRACE)
            || self.state.peers.get(&lane.peer).is_none_or(|peer| peer.stalled)
    }

    fn pump(&mut self, lane: &Lane) {
        let up = self.lanes.get(lane).is_some_and(|model| model.up);
        while let Some(order) = self.state.next(lane, self.now) {
            assert!(up, "nothing is sent on a stream that is down");
            assert!(!self.released.contains(&order.id), "released batches are never sent");
            assert_eq!(self.places[&order.id], order.at);
            if let Some(claim) = self.claims.get(&order.id) {
                panic!("{} is claimed by {claim:?} and sent to {lane:?}", order.id);
            }
            let count = self.broken.get(&order.id).copied().unwrap_or(0);
            assert_eq!(lane.alone, count >= ALONE_AFTER, "alone after three breaks");
            assert_eq!(order.suspect, count >= SUSPECT_AFTER);
            let model = self.lanes.get_mut(lane).unwrap();
            let before = model.open.insert(order.id.clone(), true);
            assert_eq!(before, None, "sent twice on one stream");
            if lane.alone {
                assert_eq!(model.open.len(), 1, "alone is alone");
            }
            let used: u64 = model.open.iter().filter(|(_, sent)| **sent).map(|(id, _)| self.bytes[id]).sum();
            assert!(used <= CREDIT || model.open.values().filter(|sent| **sent).count() == 1, "credit");
            self.claims.insert(order.id, lane.clone());
        }
    }

    fn answer(&mut self, lane: &Lane, nth: u8, verdict: u8) {
        let Some(model) = self.lanes.get_mut(lane).filter(|model| model.up && !model.open.is_empty()) else { return };
        let id = model.open.keys().nth(usize::from(nth) % model.open.len()).unwrap().clone();
        let (verdict, gone, final_) = match verdict {
            0..=2 => (Verdict::Staged, false, false),
            3 | 4 => (Verdict::Committed(IntervalSet::new()), true, true),
            5 => (Verdict::Refused(IntervalSet::new(), "r".into()), true, true),
            6 => (Verdict::Again, true, false),
            7 => (Verdict::Busy(Duration::from_millis(500)), true, false),
            _ => (Verdict::Unsupported, true, false),
        };
        if gone {
            model.open.remove(&id);
        } else {
            model.open.insert(id.clone(), false);
        }
        let released = self.state.answered(lane, &id, verdict, self.now);
        let fresh = final_ && !self.released.contains(&id);
        assert_eq!(released.is_some(), fresh, "released by committed and refused alone, once");
        if let Some(released) = released {
            assert_eq!((&released.id, released.at), (&id, self.places[&id]));
            self.released.insert(id.clone());
            self.broken.remove(&id);
        }
        if gone && self.claims.get(&id) == Some(lane) {
            self.claims.remove(&id);
        }
        if !lane.alone {
            return;
        }
        self.lanes.remove(lane);
        if !gone {
            // Innocent: the main stream lists it and waits for its answer.
            let main = Lane { alone: false, ..lane.clone() };
            let model = self.lanes.entry(main.clone()).or_default();
            let listed = self.state.take_listings();
            assert_eq!(listed, if model.up { vec![(main.clone(), id.clone())] } else { Vec::new() });
            if model.up {
                model.open.insert(id.clone(), false);
            } else {
                model.left.insert(id.clone());
            }
            if self.claims.get(&id) == Some(lane) {
                self.claims.insert(id, main);
            }
        }
    }

    fn advance(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.state.tick(self.now);
        self.lose_claims();
        self.fold_alone();
        for lane in self.state.alone_wanted() {
            self.connect(&lane);
        }
    }

    /// A lane for one batch alone goes with its collector; what it left is listed on the main stream.
    fn fold_alone(&mut self) {
        let alone: Vec<Lane> = self.lanes.keys().filter(|lane| lane.alone).cloned().collect();
        for lane in alone {
            if self.state.is_wanted(&lane) {
                continue;
            }
            let model = self.lanes.remove(&lane).unwrap();
            let main = self.lanes.entry(Lane { alone: false, ..lane }).or_default();
            main.left.extend(model.left.into_iter().chain(model.open.into_keys()));
        }
    }

    fn set_peers(&mut self, mask: u8) {
        let wanted = (0..3).filter(|n| mask & (1 << n) != 0).map(|n| PeerName::from(PEERS[n]));
        let peers: Vec<PeerName> = wanted.collect();
        for name in &peers {
            if !self.peers.contains(name) {
                self.down_since.insert(name.clone(), Some(self.now));
            }
        }
        self.lanes.retain(|lane, _| peers.contains(&lane.peer));
        self.state.set_peers(&peers, ranking(&peers), self.now);
        self.peers = peers;
        self.lose_claims();
    }

    fn lose_claims(&mut self) {
        let lost: Vec<BatchId> =
            self.claims.iter().filter(|(_, lane)| self.is_lost(lane)).map(|(id, _)| id.clone()).collect();
        for id in lost {
            self.claims.remove(&id);
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Append { agent, route, bytes } => self.append(agent, route, u64::from(bytes)),
            Step::Copy { nth } => self.copy(nth),
            Step::Connect { peer } => self.connect(&self.lane(peer, false)),
            Step::Break { peer, alone, unclean } => self.break_lane(&self.lane(peer, alone), unclean),
            Step::Pump { peer, alone } => self.pump(&self.lane(peer, alone)),
            Step::Answer { peer, alone, nth, verdict } => self.answer(&self.lane(peer, alone), nth, verdict),
            Step::Status { peer, waiting, draining, since_ms } => {
                let lane = self.lane(peer, false);
                if self.lanes.get(&lane).is_some_and(|model| model.up) {
                    self.state.status(&lane, &status(waiting, draining, u64::from(since_ms)), self.now);
                }
            }
            Step::Advance { ms } => self.advance(u64::from(ms)),
            Step::Peers { mask } => self.set_peers(mask),
            Step::Reopen => self.reopen(),
        }
    }

    /// Every collector is well and commits what it gets: everything has to be released.
    fn finish(&mut self) {
        self.set_peers(7);
        for _ in 0..400 {
            if self.released.len() == self.bytes.len() {
                return;
            }
            for peer in 0..3 {
                let main = self.lane(peer, false);
                self.connect(&main);
                self.state.status(&main, &status(false, false, 0), self.now);
                for lane in [main, self.lane(peer, true)] {
                    self.pump(&lane);
                    while self.lanes.get(&lane).is_some_and(|model| model.up && !model.open.is_empty()) {
                        self.answer(&lane, 0, 3);
                    }
                }
            }
            self.advance(1000);
        }
        let missing: Vec<_> = self.bytes.keys().filter(|id| !self.released.contains(*id)).collect();
        panic!("never released: {missing:?}\n{:?}", self.state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn keeps_its_promises(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        world.finish();
        prop_assert!(world.state.flights.is_empty(), "nothing is remembered of what is released");
    }
}

#[test]
fn a_silent_collector_counts_as_broken_only_while_another_one_commits() {
    let mut world = World::new();
    let (one, two) = (world.lane(1, false), world.lane(2, false));
    // Agent "w" prefers b, the second.
    world.append(0, 0, 10);
    world.connect(&one);
    world.connect(&two);
    world.pump(&one);
    world.answer(&one, 0, 0);
    for since in [0, 20_000, 40_000] {
        world.state.status(&one, &status(true, false, since), world.now);
        world.state.status(&two, &status(true, false, since), world.now);
        world.advance(20_000);
    }
    world.pump(&two);
    assert!(world.lanes[&two].open.is_empty(), "no collector commits: everything waits where it is");
    world.state.status(&one, &status(true, false, 60_000), world.now);
    world.state.status(&two, &status(false, false, 100), world.now);
    world.advance(100);
    world.pump(&two);
    assert_eq!(world.lanes[&two].open.len(), 1, "another one commits: it takes over");
    // The silent one answers after all.
    world.answer(&one, 0, 3);
    assert_eq!(world.released.len(), 1);
}

#[test]
fn a_batch_that_breaks_streams_travels_alone_and_then_as_suspect() {
    let mut world = World::new();
    let main = world.lane(1, false);
    world.append(0, 0, 10);
    for _ in 0..3 {
        world.connect(&main);
        // A collector that came back does not know the batch.
        world.answer(&main, 0, 6);
        world.pump(&main);
        world.break_lane(&main, true);
    }
    world.connect(&main);
    world.answer(&main, 0, 6);
    world.append(0, 1, 10);
    let alone = world.lane(1, true);
    for _ in 0..3 {
        world.advance(100);
        world.answer(&alone, 0, 6);
        world.pump(&main);
        world.advance(100);
        world.pump(&alone);
        world.append(0, 1, 10);
        world.pump(&main);
        world.answer(&main, 0, 0);
        world.break_lane(&alone, true);
    }
    world.advance(100);
    world.answer(&alone, 0, 6);
    world.pump(&main);
    world.advance(100);
    let order = world.state.next(&alone, world.now).unwrap();
    assert!(order.suspect, "six breaks");
}

#[test]
fn a_payload_that_stays_unreadable_for_a_minute_is_given_up_and_nothing_waits_for_it() {
    let mut world = World::new();
    let main = world.lane(1, false);
    world.append(0, 0, 10);
    world.connect(&main);
    let begun = world.now;
    let mut given_up = None;
    let mut tries = 0;
    while given_up.is_none() {
        world.now += Duration::from_secs(2);
        world.state.tick(world.now);
        let order = world.state.next(&main, world.now).expect("it is tried again");
        // The first minutes: too many open files, then nothing else can be read either.
        let fault = if tries < 40 { Fault::Passing } else { Fault::Medium };
        world.state.read_well(if tries < 90 { 1 } else { 2 });
        given_up = world.state.unreadable(&main, &order.id, order.at, fault, world.now).map(|at| (at, order.at));
        tries += 1;
        assert!(tries < 100, "for ever");
    }
    let (at, ordered) = given_up.unwrap();
    assert_eq!(at, ordered);
    assert!(tries > 90 && world.now - begun >= Duration::from_secs(60));
    world.now += Duration::from_secs(2);
    world.state.tick(world.now);
    assert_eq!(world.state.next(&main, world.now), None, "it is not sent any more");
}

#[test]
fn a_payload_that_cannot_be_read_now_is_not_read_again_at_once() {
    let mut world = World::new();
    let main = world.lane(1, false);
    world.append(0, 0, 10);
    world.connect(&main);
    let order = world.state.next(&main, world.now).unwrap();
    assert_eq!(
        world.state.unreadable(&main, &order.id, order.at, Fault::Medium, world.now),
        None,
        "it is not given up"
    );
    assert_eq!(world.state.next(&main, world.now), None, "its partition waits");
    world.append(0, 1, 10);
    assert!(world.state.next(&main, world.now).is_some(), "alone");
    world.now += Duration::from_secs(2);
    world.state.tick(world.now);
    assert_eq!(world.state.next(&main, world.now).map(|next| next.id), Some(order.id));
}
