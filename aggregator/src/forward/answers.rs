//! The state machine's other half: answers, statuses, the passing of time, unreadable payloads.

use std::time::{Duration, Instant};

use proto::ids::BatchId;
use proto::wire::CollectorStatus;

use super::peer::{Lane, PeerName, Standing};
use super::state::{Forward, Verdict};
use crate::channel::unreadable::Fault;
use crate::channel::{Location, Released};

/// How long a partition waits after a payload of it could not be read.
const UNREADABLE_FOR: Duration = Duration::from_secs(1);

impl Forward {
    /// One answer on a lane. Gives back the batch if that released it.
    pub fn answered(&mut self, lane: &Lane, id: &BatchId, verdict: Verdict, now: Instant) -> Option<Released> {
        self.answers += 1;
        let state = self.peers.get_mut(&lane.peer).and_then(|peer| peer.lane_mut(lane.alone));
        if verdict == Verdict::Staged {
            let state = state?;
            let out = state.out.get_mut(id)?;
            if out.standing == Standing::Sent {
                state.used -= out.bytes;
            }
            out.standing = Standing::Staged;
            if lane.alone {
                self.join_main(lane, id);
                return None;
            }
            let flight = self.flights.get(id)?;
            if flight.holder.is_none() && !self.peers[&lane.peer].stalled {
                self.claim(id, self.flights[id].at, lane);
            }
            return None;
        }
        let known = state.and_then(|state| state.take_out(id)).is_some();
        let released = match verdict {
            Verdict::Committed(intervals) => self.release(id, intervals, None),
            Verdict::Refused(intervals, reason) => self.release(id, intervals, Some(reason)),
            _ if !known => None,
            Verdict::Busy(delay) => {
                let at = self.flights.get(id).map(|flight| flight.at);
                let route = at.and_then(|at| self.backlog.route(at)).cloned();
                if let (Some(route), Some(peer)) = (route, self.peers.get_mut(&lane.peer)) {
                    peer.blocked.insert(route, now + delay);
                }
                self.give_back(lane, id);
                None
            }
            Verdict::Unsupported => {
                self.avoid_for_now(id, &lane.peer, now);
                self.give_back(lane, id);
                None
            }
            Verdict::Again | Verdict::Staged => {
                self.give_back(lane, id);
                None
            }
        };
        self.end_alone(lane, id);
        released
    }

    /// The lane does not have the batch any more.
    fn give_back(&mut self, lane: &Lane, id: &BatchId) {
        let Some(flight) = self.flights.get(id) else { return };
        if flight.holder.as_ref().is_none_or(|holder| holder == lane) {
            self.free(id);
        }
    }

    /// A batch that travelled alone is staged, so it is innocent: from here on it is answered on the main stream, which
    /// has to name it once.
    fn join_main(&mut self, lane: &Lane, id: &BatchId) {
        let Some(peer) = self.peers.get_mut(&lane.peer) else { return };
        let Some(alone) = peer.alone.take() else { return };
        let main = Lane { peer: lane.peer.clone(), alone: false };
        for (other, mut out) in alone.lane.out {
            out.standing = if peer.main.connected { Standing::Listed } else { Standing::Left };
            peer.main.out.insert(other, out);
        }
        if peer.main.connected {
            self.listings.push((main.clone(), id.clone()));
        }
        if let Some(flight) = self.flights.get_mut(id)
            && flight.holder.as_ref() == Some(lane)
        {
            flight.holder = Some(main);
        }
    }

    /// Batches that are to be listed on streams that are up.
    pub fn take_listings(&mut self) -> Vec<(Lane, BatchId)> {
        std::mem::take(&mut self.listings)
    }

    /// A batch that travelled alone has arrived, or has to start over: its lane goes.
    fn end_alone(&mut self, lane: &Lane, id: &BatchId) {
        if !lane.alone {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&lane.peer)
            && peer.alone.as_ref().is_some_and(|alone| alone.id == *id)
        {
            peer.alone = None;
        }
    }

    /// Is the lane still wanted? One for a batch alone goes when that batch is answered.
    pub fn is_wanted(&self, lane: &Lane) -> bool {
        self.peers.get(&lane.peer).is_some_and(|peer| !lane.alone || peer.alone.is_some())
    }

    /// A collector says how it is.
    pub fn status(&mut self, lane: &Lane, status: &CollectorStatus, now: Instant) {
        let Some(peer) = self.peers.get_mut(&lane.peer) else { return };
        let committed = peer.health.update(status, false, now);
        if committed || !status.waiting {
            peer.stalled = false;
        }
        if status.credit_bytes > 0
            && let Some(state) = peer.lane_mut(lane.alone)
        {
            state.credit = status.credit_bytes;
        }
        self.refresh(now);
    }

    /// The payload of an order could not be read. What stays unreadable or gone counts as damaged in the end. Gives back
    /// the batch if it has to be given up.
    pub fn unreadable(
        &mut self,
        lane: &Lane,
        id: &BatchId,
        at: Location,
        fault: Fault,
        now: Instant,
    ) -> Option<Location> {
        let state = self.peers.get_mut(&lane.peer).and_then(|peer| peer.lane_mut(lane.alone));
        state?.take_out(id)?;
        let moved = self.flights.get(id).is_none_or(|flight| flight.at != at);
        let gone = match fault {
            _ if moved => false,
            Fault::Damaged => true,
            Fault::Medium => self.unreadable.failed(at, now),
            Fault::Passing => false,
        };
        if !gone {
            // A disk that cannot be read is not asked again at once.
            if !moved
                && let Some(route) = self.backlog.route(at).cloned()
                && let Some(peer) = self.peers.get_mut(&lane.peer)
            {
                peer.blocked.insert(route, now + UNREADABLE_FOR);
            }
            self.give_back(lane, id);
            self.end_alone(lane, id);
            return None;
        }
        self.unreadable.forget(at);
        self.flights.remove(id);
        self.backlog.take(at);
        self.end_alone(lane, id);
        Some(at)
    }

    /// How many payloads the channel's reader has read well by now.
    pub fn read_well(&mut self, records: u64) {
        self.unreadable.read_well(records);
    }

    /// Time passes: claims of collectors that are down for too long or have stalled are given up, waits end.
    pub fn tick(&mut self, now: Instant) {
        self.stall(now);
        self.refresh(now);
        let grace = self.limits.failover_after;
        let expired = |since: Instant| now.saturating_duration_since(since) >= grace;
        let down = self.peers.iter().filter(|(_, peer)| peer.down_since.is_some_and(expired));
        let down: Vec<PeerName> = down.map(|(name, _)| name.clone()).collect();
        for name in down {
            self.fold_alone(&name);
            self.free_claims(&name);
        }
        for peer in self.peers.values_mut() {
            let waiting = peer.blocked.len();
            peer.blocked.retain(|_, until| *until > now);
            if peer.blocked.len() < waiting
                && let Some(skipped) = peer.skipped.take()
            {
                peer.rewind(skipped);
            }
        }
        let avoided = self.avoid.len();
        self.avoid.retain(|_, peers| {
            peers.retain(|(_, until)| *until > now);
            !peers.is_empty()
        });
        if self.avoid.len() < avoided {
            self.rewind_all();
        }
    }

    /// What travelled alone to a collector that is down is listed on its next main stream.
    fn fold_alone(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(alone) = peer.alone.take() else { return };
        for (id, mut out) in alone.lane.out {
            out.standing = Standing::Left;
            let lane = Lane { peer: name.clone(), alone: true };
            if let Some(flight) = self.flights.get_mut(&id)
                && flight.holder.as_ref() == Some(&lane)
            {
                flight.holder = Some(Lane { peer: name.clone(), alone: false });
            }
            peer.main.out.insert(id, out);
        }
    }

    /// A collector that is alive but commits nothing counts as broken while another one commits.
    fn stall(&mut self, now: Instant) {
        let overdue = |peer: &super::peer::Peer| peer.main.connected && !peer.stalled && peer.health.is_overdue(now);
        let names: Vec<PeerName> =
            self.peers.iter().filter(|(_, peer)| overdue(peer)).map(|(name, _)| name.clone()).collect();
        for name in names {
            if self.peers.iter().any(|(other, peer)| *other != name && peer.health.commits(now)) {
                if let Some(peer) = self.peers.get_mut(&name) {
                    peer.stalled = true;
                }
                self.free_claims(&name);
            }
        }
    }
}
