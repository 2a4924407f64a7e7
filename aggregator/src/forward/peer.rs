//! What is known of one collector and of the streams to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::ids::BatchId;
use proto::wire::CollectorStatus;

use super::backlog::START;
use crate::channel::Location;
use crate::channel::index::Route;

/// A collector by its address.
pub type PeerName = Arc<str>;

/// One stream: the collector's main one, or the one on which a batch that broke streams travels alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The collector.
    pub peer: PeerName,
    /// Not the main one.
    pub alone: bool,
}

/// Where a batch stands on a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Sent on the present stream; takes credit.
    Sent,
    /// The collector has it in a staged file.
    Staged,
    /// Listed on the present stream, no answer yet.
    Listed,
    /// A stream broke before it was answered.
    Left,
}

/// A batch on a lane.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    pub standing: Standing,
    pub bytes: u64,
}

/// One stream to a collector, over reconnects.
#[derive(Debug, Default)]
pub struct LaneState {
    pub connected: bool,
    /// Bytes that may be sent and not yet staged.
    pub credit: u64,
    pub used: u64,
    pub out: HashMap<BatchId, Out>,
    pub roll_asked: Option<Instant>,
}

impl LaneState {
    /// Removes a batch, giving its credit back.
    pub fn take_out(&mut self, id: &BatchId) -> Option<Out> {
        let out = self.out.remove(id)?;
        if out.standing == Standing::Sent {
            self.used -= out.bytes;
        }
        Some(out)
    }

    /// May a batch of this size be sent? A single one always may, so that none is too big for ever.
    pub fn has_credit(&self, bytes: u64) -> bool {
        self.used == 0 || self.used.saturating_add(bytes) <= self.credit
    }
}

/// The batch that travels alone.
#[derive(Debug)]
pub struct AloneLane {
    pub id: BatchId,
    pub lane: LaneState,
    /// Answers seen on all lanes when it was last sent.
    pub answers_at_send: u64,
}

/// What a collector last said of itself.
#[derive(Debug, Default)]
pub struct Health {
    pub roll_age: Duration,
    pub draining: bool,
    /// When it was first seen waiting for a commit without one since.
    pub waiting_since: Option<Instant>,
    /// Since its last commit, by its own word.
    pub since_commit: Duration,
    /// The instant of its last commit or start, by its own word.
    pub commit_at: Option<Instant>,
    /// When it was last seen to commit.
    pub committed_seen: Option<Instant>,
}

/// Slack when two statuses are compared: they travel and are rounded.
const SLACK: Duration = Duration::from_millis(1500);

impl Health {
    /// Takes a status in. True if it shows a commit that was not known.
    pub fn update(&mut self, status: &CollectorStatus, first: bool, now: Instant) -> bool {
        self.roll_age = Duration::from_millis(status.roll_age_ms);
        self.draining = status.draining;
        self.since_commit = Duration::from_millis(status.since_commit_ms);
        let commit_at = now.checked_sub(self.since_commit).unwrap_or(now);
        let committed = !first && self.commit_at.is_some_and(|last| commit_at > last + SLACK);
        if first || committed || self.commit_at.is_none() {
            self.commit_at = Some(commit_at);
        }
        if committed {
            self.committed_seen = Some(now);
        }
        self.waiting_since = match (status.waiting, self.waiting_since) {
            (false, _) => None,
            (true, Some(since)) if !committed && !first => Some(since),
            (true, _) => Some(now),
        };
        committed
    }

    /// Three of its roll ages.
    pub fn patience(&self) -> Duration {
        self.roll_age.saturating_mul(3).max(Duration::from_secs(3))
    }

    /// Has it waited for a commit longer than three roll ages?
    pub fn is_overdue(&self, now: Instant) -> bool {
        let waited = self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        waited > self.patience() && self.since_commit > self.patience()
    }

    /// Was it seen to commit within three roll ages?
    pub fn commits(&self, now: Instant) -> bool {
        self.committed_seen.is_some_and(|seen| now.saturating_duration_since(seen) <= self.patience())
    }
}

/// One collector.
#[derive(Debug)]
pub struct Peer {
    pub main: LaneState,
    pub alone: Option<AloneLane>,
    pub health: Health,
    /// Since when the main stream is down.
    pub down_since: Option<Instant>,
    /// Alive, but no commit for three roll ages while another one commits.
    pub stalled: bool,
    /// Everything before it was looked at.
    pub cursor: Location,
    /// Partitions that wait, and until when.
    pub blocked: HashMap<Route, Instant>,
    /// The first place that was passed over because its partition waits.
    pub skipped: Option<Location>,
}

impl Peer {
    /// A collector that was not reached yet.
    pub fn new(now: Instant) -> Self {
        Self {
            main: LaneState::default(),
            alone: None,
            health: Health::default(),
            down_since: Some(now),
            stalled: false,
            cursor: START,
            blocked: HashMap::new(),
            skipped: None,
        }
    }

    /// May it be chosen for batches? One that is down only for a moment still may: what is meant for it waits.
    pub fn is_available(&self, failover_after: Duration, now: Instant) -> bool {
        let reachable = self.down_since.is_none_or(|since| now.saturating_duration_since(since) < failover_after);
        reachable && !self.health.draining && !self.stalled
    }

    /// One of its streams.
    pub fn lane_mut(&mut self, alone: bool) -> Option<&mut LaneState> {
        if alone { self.alone.as_mut().map(|alone| &mut alone.lane) } else { Some(&mut self.main) }
    }

    /// Looks again from `at` on.
    pub fn rewind(&mut self, at: Location) {
        self.cursor = self.cursor.min(at);
    }

    /// Does the collector have, or may it have, this batch by a stream that is up?
    pub fn holds(&self, id: &BatchId) -> Option<bool> {
        let up = |lane: &LaneState| lane.connected && lane.out.contains_key(id);
        if up(&self.main) {
            return Some(false);
        }
        self.alone.as_ref().is_some_and(|alone| up(&alone.lane)).then_some(true)
    }

    /// Is the batch on any of its lanes?
    pub fn knows(&self, id: &BatchId) -> bool {
        self.main.out.contains_key(id) || self.alone.as_ref().is_some_and(|alone| alone.lane.out.contains_key(id))
    }
}
