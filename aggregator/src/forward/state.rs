//! Who gets which batch, as a pure state machine: it takes events and `now` and gives back what to do.
//!
//! Invariants, checked by `tests/forward_model.rs`:
//! - a batch is released only by *committed* or *refused*;
//! - a batch has at most one claim; it gets another one only after *again*, *busy* or *unsupported*, or when the stream of
//!   the claim counts as broken: down for longer than the grace, or no commit for three roll ages while another collector
//!   commits;
//! - what a stream left unanswered is listed on the next one before any payload.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use proto::ids::{AgentName, BatchId};
use proto::intervals::IntervalSet;
use proto::wire::CollectorStatus;

use super::backlog::{Backlog, START};
use super::peer::{AloneLane, Lane, LaneState, Out, Peer, PeerName, Standing};
use crate::channel::index::{NewEntry, Route};
use crate::channel::unreadable::Unreadable;
use crate::channel::{Location, OpenedSegment, Refused, Released};

/// Unclean breaks after which a batch travels alone.
pub const ALONE_AFTER: u32 = 3;
/// Unclean breaks after which it is sent as suspect.
pub const SUSPECT_AFTER: u32 = 6;
/// How long a collector that does not read a batch's format is passed over for it.
const UNSUPPORTED_FOR: Duration = Duration::from_secs(60);
/// How long one request for an early roll is given.
const ROLL_AGAIN: Duration = Duration::from_secs(5);

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most batches of one collector that are sent and not released; at it an early roll is asked for.
    pub max_unreleased: usize,
    /// How long a collector may be down before its batches go to the next one.
    pub failover_after: Duration,
}

/// Collectors in the order in which an agent's batches prefer them.
pub type Ranking = std::sync::Arc<dyn Fn(&AgentName) -> Vec<PeerName> + Send + Sync>;

/// A batch to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its identity.
    pub id: BatchId,
    /// Where it lies.
    pub at: Location,
    /// Offset of its record in the segment.
    pub offset: u64,
    /// Header and payload bytes.
    pub bytes: u64,
    /// It broke too many streams.
    pub suspect: bool,
    /// An earlier send of it was not answered for good.
    pub again: bool,
}

/// An answer to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Frees credit, releases nothing.
    Staged,
    /// Releases; with the committed intervals of the origin.
    Committed(IntervalSet),
    /// Refused for good, and that is in the log: releases.
    Refused(IntervalSet, String),
    /// Not there any more, or never.
    Again,
    /// Its partition waits.
    Busy(Duration),
    /// Another collector has to take it.
    Unsupported,
}

/// A batch that some collector has, had, or may have.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) at: Location,
    /// Who has the claim.
    pub(super) holder: Option<Lane>,
}

/// The state.
pub struct Forward {
    pub(super) limits: Limits,
    pub(super) backlog: Backlog,
    pub(super) peers: BTreeMap<PeerName, Peer>,
    pub(super) flights: HashMap<BatchId, Flight>,
    /// Unclean breaks of batches.
    pub(super) broken: HashMap<BatchId, u32>,
    /// Batches that travel alone and wait for it.
    pub(super) isolated: BTreeMap<Location, BatchId>,
    /// Collectors that do not read a batch's format, and until when they are passed over.
    pub(super) avoid: HashMap<BatchId, Vec<(PeerName, Instant)>>,
    ranking: Ranking,
    /// Chosen collector by agent, for the present availability.
    owners: HashMap<AgentName, Option<PeerName>>,
    available: Vec<PeerName>,
    /// Places that could not be read.
    pub(super) unreadable: Unreadable,
    pub(super) answers: u64,
    pub(super) listings: Vec<(Lane, BatchId)>,
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward").field("peers", &self.peers).field("flights", &self.flights).finish_non_exhaustive()
    }
}

impl Forward {
    /// Nothing to send and nobody to send to.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            backlog: Backlog::default(),
            peers: BTreeMap::new(),
            flights: HashMap::new(),
            broken: HashMap::new(),
            isolated: BTreeMap::new(),
            avoid: HashMap::new(),
            ranking: std::sync::Arc::new(|_| Vec::new()),
            owners: HashMap::new(),
            available: Vec::new(),
            unreadable: Unreadable::default(),
            answers: 0,
            listings: Vec::new(),
        }
    }

    /// The channel was (re)opened: places are new, claims stay.
    pub fn reset(&mut self, segments: Vec<OpenedSegment>, broken: HashMap<BatchId, u32>) {
        self.backlog = Backlog::new(segments);
        self.broken = broken;
        self.isolated.clear();
        self.unreadable.clear();
        let mut places = HashMap::new();
        if !self.flights.is_empty() {
            let found = self.backlog.free().filter_map(|at| Some((self.backlog.id(at)?, at)));
            places = found.filter(|(id, _)| self.flights.contains_key(id)).collect();
        }
        let backlog = &mut self.backlog;
        self.flights.retain(|id, flight| {
            let Some(&at) = places.get(id) else { return false };
            flight.at = at;
            if flight.holder.is_some() {
                backlog.take(at);
            }
            true
        });
        self.rewind_all();
    }

    /// A batch was stored, perhaps as the copy of one at `from`.
    pub fn stored(&mut self, segment: u64, new: &NewEntry, from: Option<Location>) {
        let at = self.backlog.push(segment, new);
        let Some(from) = from else { return };
        if self.backlog.is_taken(from) {
            self.backlog.take(at);
        }
        self.backlog.take(from);
        if self.isolated.remove(&from).is_some() {
            self.isolated.insert(at, new.id.clone());
        }
        if let Some(flight) = self.flights.get_mut(&new.id)
            && flight.at == from
        {
            flight.at = at;
        }
    }

    /// The segment's index for good.
    pub fn sealed(&mut self, segment: u64, index: std::sync::Arc<crate::channel::index::SegmentIndex>) {
        self.backlog.seal(segment, index);
    }

    /// The segment is gone.
    pub fn removed(&mut self, segment: u64) {
        self.backlog.remove(segment);
        self.unreadable.forget_segment(segment);
        self.isolated.retain(|at, _| at.segment != segment);
    }

    /// The collectors there are now. What one that is gone had is free again.
    pub fn set_peers(&mut self, names: &[PeerName], ranking: Ranking, now: Instant) {
        let gone: Vec<PeerName> = self.peers.keys().filter(|name| !names.contains(name)).cloned().collect();
        for name in gone {
            self.free_claims(&name);
            self.peers.remove(&name);
        }
        for name in names {
            self.peers.entry(name.clone()).or_insert_with(|| Peer::new(now));
        }
        let peers = &self.peers;
        self.flights.retain(|id, flight| flight.holder.is_some() || peers.values().any(|peer| peer.knows(id)));
        self.ranking = ranking;
        self.available.clear();
        self.refresh(now);
    }

    /// A stream is up. What its predecessors left unanswered, to be listed before any payload.
    pub fn connected(&mut self, lane: &Lane, credit: u64, status: &CollectorStatus, now: Instant) -> Vec<BatchId> {
        let Some(peer) = self.peers.get_mut(&lane.peer) else { return Vec::new() };
        if !lane.alone {
            peer.down_since = None;
            peer.stalled = false;
            peer.blocked.clear();
            peer.skipped = None;
            peer.cursor = START;
            peer.health.update(status, true, now);
        }
        let Some(state) = peer.lane_mut(lane.alone) else { return Vec::new() };
        state.connected = true;
        state.credit = credit;
        state.used = 0;
        state.roll_asked = None;
        let mut listed = Vec::new();
        state.out.retain(|id, out| {
            let Some(flight) = self.flights.get_mut(id) else { return false };
            out.standing = Standing::Listed;
            if flight.holder.is_none() {
                flight.holder = Some(lane.clone());
                self.backlog.take(flight.at);
            }
            listed.push(id.clone());
            true
        });
        self.refresh(now);
        listed
    }

    /// The stream ended. Batches whose count of unclean breaks grew, with the new count.
    pub fn broken(&mut self, lane: &Lane, unclean: bool, now: Instant) -> Vec<(BatchId, u32)> {
        let answers = self.answers;
        let Some(peer) = self.peers.get_mut(&lane.peer) else { return Vec::new() };
        if !lane.alone {
            peer.down_since.get_or_insert(now);
        }
        let unclean = unclean && !peer.health.draining;
        // A batch that travels alone is only under suspicion while others are answered.
        let counts = match &peer.alone {
            Some(alone) if lane.alone => answers > alone.answers_at_send,
            _ => true,
        };
        let Some(state) = peer.lane_mut(lane.alone) else { return Vec::new() };
        let was_connected = std::mem::take(&mut state.connected);
        state.used = 0;
        let mut counted = Vec::new();
        let flights = &self.flights;
        let broken = &mut self.broken;
        state.out.retain(|id, out| {
            if !flights.contains_key(id) {
                return false;
            }
            if unclean && counts && was_connected && out.standing == Standing::Sent {
                let count = broken.entry(id.clone()).or_insert(0);
                *count += 1;
                counted.push((id.clone(), *count));
            }
            out.standing = Standing::Left;
            true
        });
        self.refresh(now);
        counted
    }

    /// The next batch for this lane, now claimed for it; none while there is nothing, no credit, or no permission.
    pub fn next(&mut self, lane: &Lane, now: Instant) -> Option<Order> {
        if lane.alone { self.next_alone(lane) } else { self.next_main(lane, now) }
    }

    fn next_main(&mut self, lane: &Lane, now: Instant) -> Option<Order> {
        loop {
            let peer = self.peers.get(&lane.peer)?;
            let open = peer.main.connected && !peer.stalled && !peer.health.draining;
            if !open || peer.main.out.len() >= self.limits.max_unreleased {
                return None;
            }
            let at = self.backlog.next_free(peer.cursor)?;
            let wanted = self.is_for(at, &lane.peer, now);
            let peer = self.peers.get_mut(&lane.peer)?;
            let after = Location { segment: at.segment, ordinal: at.ordinal + 1 };
            if !wanted {
                peer.cursor = after;
                continue;
            }
            let entry = *self.backlog.entry(at)?;
            let id = self.backlog.id(at)?;
            if peer.main.out.contains_key(&id) {
                // It is there already (the claim was given up in between): take the claim back, send nothing.
                self.claim(&id, at, lane);
                continue;
            }
            if !peer.main.has_credit(entry.bytes()) {
                return None;
            }
            peer.cursor = after;
            return Some(self.send(id, at, lane));
        }
    }

    /// Should the free batch at `at` go to this collector now?
    fn is_for(&mut self, at: Location, name: &PeerName, now: Instant) -> bool {
        let Some(agent) = self.backlog.agent(at).cloned() else { return false };
        if !self.avoid.is_empty() || !self.broken.is_empty() {
            let Some(id) = self.backlog.id(at) else { return false };
            if self.broken.get(&id).is_some_and(|count| *count >= ALONE_AFTER) {
                self.isolated.insert(at, id);
                return false;
            }
            if let Some(avoided) = self.avoid.get(&id) {
                let passed = |peer: &PeerName| avoided.iter().any(|(other, until)| other == peer && *until > now);
                return self.choose(&agent, passed).as_ref() == Some(name);
            }
        }
        if self.owner(&agent).as_ref() != Some(name) {
            return false;
        }
        let route = self.backlog.route(at);
        let Some(peer) = self.peers.get_mut(name) else { return false };
        let waits = route.and_then(|route| peer.blocked.get(route)).is_some_and(|until| *until > now);
        if waits {
            peer.skipped = Some(peer.skipped.map_or(at, |first| first.min(at)));
        }
        !waits
    }

    fn next_alone(&mut self, lane: &Lane) -> Option<Order> {
        let answers = self.answers;
        let alone = self.peers.get_mut(&lane.peer)?.alone.as_mut()?;
        if !alone.lane.connected || !alone.lane.out.is_empty() {
            return None;
        }
        let id = alone.id.clone();
        alone.answers_at_send = answers;
        let at = self.isolated.iter().find(|(_, other)| **other == id).map(|(at, _)| *at)?;
        self.isolated.remove(&at);
        (!self.backlog.is_taken(at)).then(|| self.send(id, at, lane))
    }

    fn send(&mut self, id: BatchId, at: Location, lane: &Lane) -> Order {
        let (bytes, offset) = self.backlog.entry(at).map_or((0, 0), |entry| (entry.bytes(), u64::from(entry.offset)));
        let again = self.flights.contains_key(&id) || self.broken.contains_key(&id);
        self.claim(&id, at, lane);
        let state = self.peers.get_mut(&lane.peer).and_then(|peer| peer.lane_mut(lane.alone));
        if let Some(state) = state {
            state.used += bytes;
            state.out.insert(id.clone(), Out { standing: Standing::Sent, bytes });
        }
        let suspect = self.broken.get(&id).is_some_and(|count| *count >= SUSPECT_AFTER);
        Order { id, at, offset, bytes, suspect, again }
    }

    pub(super) fn claim(&mut self, id: &BatchId, at: Location, lane: &Lane) {
        self.backlog.take(at);
        let flight = self.flights.entry(id.clone()).or_insert(Flight { at, holder: None });
        flight.at = at;
        flight.holder = Some(lane.clone());
    }

    /// Collectors that should open a stream for one batch alone.
    pub fn alone_wanted(&mut self) -> Vec<Lane> {
        let waiting: Vec<(Location, BatchId)> = self.isolated.iter().map(|(at, id)| (*at, id.clone())).collect();
        for (at, id) in waiting {
            if self.backlog.is_taken(at) {
                self.isolated.remove(&at);
                continue;
            }
            let Some(agent) = self.backlog.agent(at).cloned() else { continue };
            let Some(peer) = self.owner(&agent).and_then(|name| self.peers.get_mut(&name)) else { continue };
            if peer.alone.is_none() && peer.main.connected {
                peer.alone = Some(AloneLane { id, lane: LaneState::default(), answers_at_send: 0 });
            }
        }
        let wanted = self.peers.iter().filter(|(_, peer)| peer.alone.as_ref().is_some_and(|a| !a.lane.connected));
        wanted.map(|(name, _)| Lane { peer: name.clone(), alone: true }).collect()
    }

    /// Who gets an agent's batches while the availability stays as it is.
    fn owner(&mut self, agent: &AgentName) -> Option<PeerName> {
        if let Some(known) = self.owners.get(agent) {
            return known.clone();
        }
        let owner = self.choose(agent, |_| false);
        self.owners.insert(agent.clone(), owner.clone());
        owner
    }

    fn choose(&self, agent: &AgentName, passed: impl Fn(&PeerName) -> bool) -> Option<PeerName> {
        (self.ranking)(agent).into_iter().find(|name| self.available.contains(name) && !passed(name))
    }

    /// Takes a changed availability in: everybody looks from the start.
    pub(super) fn refresh(&mut self, now: Instant) {
        let grace = self.limits.failover_after;
        let available = self.peers.iter().filter(|(_, peer)| peer.is_available(grace, now));
        let available: Vec<PeerName> = available.map(|(name, _)| name.clone()).collect();
        if available != self.available {
            self.available = available;
            self.owners.clear();
            self.rewind_all();
        }
    }

    pub(super) fn rewind_all(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.cursor = START);
    }

    /// Gives up every claim of a collector: its streams count as broken.
    pub(super) fn free_claims(&mut self, name: &PeerName) {
        let held: Vec<(BatchId, Location)> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.holder.as_ref().is_some_and(|lane| lane.peer == *name))
            .map(|(id, flight)| (id.clone(), flight.at))
            .collect();
        for (id, _) in held {
            self.free(&id);
        }
    }

    /// Gives up the claim on a batch: somebody else who may have it gets the claim, or it is free again.
    pub(super) fn free(&mut self, id: &BatchId) {
        let Some(flight) = self.flights.get_mut(id) else { return };
        let given_up = flight.holder.take();
        let others = self
            .peers
            .iter()
            .filter(|(name, peer)| !peer.stalled && given_up.as_ref().is_none_or(|lane| lane.peer != **name));
        let heir = others.filter_map(|(name, peer)| Some((name.clone(), peer.holds(id)?))).next();
        if let Some((peer, alone)) = heir {
            flight.holder = Some(Lane { peer, alone });
            return;
        }
        let at = flight.at;
        self.backlog.untake(at);
        self.peers.values_mut().for_each(|peer| peer.rewind(at));
        if !self.peers.values().any(|peer| peer.knows(id)) {
            self.flights.remove(id);
        }
    }

    /// Requests for an early roll: lanes at their bound.
    pub fn rolls(&mut self, now: Instant) -> Vec<Lane> {
        let limit = self.limits.max_unreleased;
        let mut rolls = Vec::new();
        for (name, peer) in &mut self.peers {
            let due = peer.main.roll_asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ROLL_AGAIN);
            if peer.main.connected && peer.main.out.len() >= limit && due {
                peer.main.roll_asked = Some(now);
                rolls.push(Lane { peer: name.clone(), alone: false });
            }
        }
        rolls
    }

    pub(super) fn avoid_for_now(&mut self, id: &BatchId, peer: &PeerName, now: Instant) {
        self.avoid.entry(id.clone()).or_default().push((peer.clone(), now + UNSUPPORTED_FOR));
    }

    /// The batch is answered for good; with a reason if it was refused.
    pub(super) fn release(&mut self, id: &BatchId, intervals: IntervalSet, reason: Option<String>) -> Option<Released> {
        let flight = self.flights.remove(id)?;
        let dataset = match self.backlog.route(flight.at) {
            Some(Route::Data { dataset, .. }) => dataset.to_string(),
            Some(Route::Control) | None => String::new(),
        };
        let refused = reason.map(|reason| Refused { dataset, reason });
        self.backlog.take(flight.at);
        self.unreadable.forget(flight.at);
        self.isolated.remove(&flight.at);
        self.broken.remove(id);
        self.avoid.remove(id);
        Some(Released { at: flight.at, id: id.clone(), intervals, refused })
    }
}
