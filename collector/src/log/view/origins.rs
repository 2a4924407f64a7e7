//! Runs of agents and how they hang together: opens, ends, marks, closes, what was abandoned. What the seal is decided
//! by. Pure.

use std::collections::{BTreeMap, BTreeSet};

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;

use crate::ledger::OriginKey;
use crate::ledger::committed::{Committed, Cover};

/// Marks further ahead of the collector's clock than this do not count, milliseconds.
pub const MARK_AHEAD_MS: i64 = 60_000;
/// Marks of one origin that wait for a missing seq; past that the oldest but one go, which only delays a seal.
const WAITING_MARKS: usize = 64;

/// One run of an agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OriginRow {
    /// As it says; none while it is not committed.
    pub open: Option<wire::Open>,
    /// Its committed close and that one's seq.
    pub close: Option<(u64, wire::Close)>,
    /// The highest T of the marks below the first seq that is missing.
    pub counted_mark_unix_ms: Option<i64>,
    /// T of marks above it, by seq.
    pub waiting_marks: BTreeMap<u64, i64>,
    /// What an operator said will never come, and when.
    pub abandoned: IntervalSet,
    /// When that was said, milliseconds since the epoch.
    pub abandoned_unix_ms: Option<i64>,
}

/// One agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentRow {
    /// Its runs that did not expire.
    pub origins: BTreeMap<Origin, OriginRow>,
    /// Ends that committed opens name, by the origin they name, in the log or not.
    pub named_ends: BTreeMap<Origin, BTreeSet<u64>>,
    /// Number of its first record.
    pub first_record: u64,
    /// Time of its first record, milliseconds since the epoch.
    pub first_record_unix_ms: i64,
    /// Time of its last record.
    pub last_record_unix_ms: i64,
    /// The newest origin that expired complete, and its end.
    pub expired: Option<(Origin, u64)>,
    /// Set while it is no member.
    pub forgotten_unix_ms: Option<i64>,
    /// Time and record of the last forget, also after its return.
    pub last_forget: Option<(i64, u64)>,
}

/// All agents of the log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Origins {
    pub(super) agents: BTreeMap<AgentName, AgentRow>,
}

impl Origins {
    /// One agent.
    pub fn agent(&self, agent: &AgentName) -> Option<&AgentRow> {
        self.agents.get(agent)
    }

    /// All agents, members or not.
    pub fn agents(&self) -> impl Iterator<Item = (&AgentName, &AgentRow)> {
        self.agents.iter()
    }

    /// Merges what record `n` says of one origin; `committed` has it already.
    pub(super) fn cover(
        &mut self,
        n: u64,
        time_unix_ms: i64,
        cover: &Cover,
        wire: &wire::OriginCover,
        committed: &Committed,
    ) {
        let agent = self.agents.entry(cover.key.agent.clone()).or_insert_with(|| AgentRow {
            first_record: n,
            first_record_unix_ms: time_unix_ms,
            ..AgentRow::default()
        });
        agent.last_record_unix_ms = agent.last_record_unix_ms.max(time_unix_ms);
        agent.forgotten_unix_ms = None;
        for open in wire.opens.iter().filter_map(|open| open.open.as_ref()) {
            if let Some(previous) = &open.previous
                && let Ok(origin) = Origin::from_bytes(&previous.origin)
            {
                agent.named_ends.entry(origin).or_default().insert(previous.end);
            }
        }
        let row = agent.origins.entry(cover.key.origin).or_default();
        if let Some(open) = wire.opens.first() {
            row.open.clone_from(&open.open);
        }
        if let Some(wire::SeqClose { seq, close: Some(close) }) = wire.closes.first() {
            row.close = Some((*seq, close.clone()));
        }
        for mark in &wire.marks {
            let Some(at) = mark.mark.as_ref().map(|mark| mark.at_unix_ms) else { continue };
            if at > 0 && at <= time_unix_ms + MARK_AHEAD_MS {
                row.waiting_marks.insert(mark.seq, at);
            }
        }
        row.promote(&cover.key, committed);
    }

    pub(super) fn abandon(&mut self, key: &OriginKey, ranges: &IntervalSet, time_unix_ms: i64, committed: &Committed) {
        let agent = self.agents.entry(key.agent.clone()).or_default();
        let row = agent.origins.entry(key.origin).or_default();
        row.abandoned.union_with(ranges);
        row.abandoned_unix_ms = Some(row.abandoned_unix_ms.map_or(time_unix_ms, |at| at.max(time_unix_ms)));
        row.promote(key, committed);
    }

    pub(super) fn forget(&mut self, agent: &AgentName, n: u64, time_unix_ms: i64) {
        let row = self.agents.entry(agent.clone()).or_default();
        row.forgotten_unix_ms = Some(time_unix_ms);
        row.last_forget = Some((time_unix_ms, n));
    }

    /// Takes an origin out; the agent's row stays.
    pub(super) fn expire(&mut self, key: &OriginKey, committed: &Committed) {
        let Some(agent) = self.agents.get_mut(&key.agent) else { return };
        agent.origins.remove(&key.origin);
        agent.named_ends.remove(&key.origin);
        let end = committed.origin(&key.agent, key.origin).map_or(0, IntervalSet::first_missing);
        if agent.expired.is_none_or(|(newest, _)| newest < key.origin) {
            agent.expired = Some((key.origin, end));
        }
    }
}

impl OriginRow {
    /// The first seq that is neither committed nor abandoned.
    pub fn first_missing(&self, key: &OriginKey, committed: &Committed) -> u64 {
        let mut all = committed.origin(&key.agent, key.origin).cloned().unwrap_or_default();
        if !self.abandoned.is_empty() {
            all.union_with(&self.abandoned);
        }
        all.first_missing()
    }

    fn promote(&mut self, key: &OriginKey, committed: &Committed) {
        if self.waiting_marks.is_empty() {
            return;
        }
        let first_missing = self.first_missing(key, committed);
        let later = self.waiting_marks.split_off(&first_missing);
        let counted = std::mem::replace(&mut self.waiting_marks, later);
        self.counted_mark_unix_ms = counted.into_values().chain(self.counted_mark_unix_ms).max();
        while self.waiting_marks.len() > WAITING_MARKS {
            let second = self.waiting_marks.keys().nth(1).copied().expect("more than two are there");
            self.waiting_marks.remove(&second);
        }
    }
}
