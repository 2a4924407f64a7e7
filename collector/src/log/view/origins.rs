//! Runs of agents and how they hang together: opens, ends, marks, closes, what was abandoned. What the seal is decided
//! by; what follows from it is in [`standing`]. Pure.
//!
//! Memory: under 100 bytes per run. Of opens and closes only what later decisions need is kept.

pub mod standing;

use std::collections::BTreeMap;

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;

use crate::ledger::OriginKey;
use crate::ledger::committed::{Committed, Cover};
use standing::{Kept, Standing};

/// Marks further ahead of the collector's clock than this do not count, milliseconds.
pub const MARK_AHEAD_MS: i64 = 60_000;
/// Marks of one origin that wait for a missing seq; past that the oldest but one go, which only delays a seal.
const WAITING_MARKS: usize = 64;

/// How a run began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Begin {
    /// Its open is not committed.
    #[default]
    Unknown,
    /// Its state directory knew of no earlier run, or everything before it has expired complete.
    Root,
    /// It goes on where another run ended.
    After {
        /// The newest origin of its state directory.
        origin: Origin,
        /// That one's end.
        end: u64,
    },
    /// Its state directory was restored or copied: nothing counts across it until `from` is abandoned.
    Restored {
        /// The newest origin of that directory.
        from: Origin,
    },
}

impl Begin {
    /// What an open says. One that names an origin in a way that cannot be read is as good as none; a copied directory
    /// in which no run had begun is as good as an empty one.
    pub fn of(open: &wire::Open) -> Self {
        let origin = |bytes: &[u8]| Origin::from_bytes(bytes).ok();
        match &open.previous {
            _ if open.restored && !open.restored_from.is_empty() => {
                origin(&open.restored_from).map_or(Self::Unknown, |from| Self::Restored { from })
            }
            None => Self::Root,
            Some(previous) => {
                origin(&previous.origin).map_or(Self::Unknown, |origin| Self::After { origin, end: previous.end })
            }
        }
    }

    /// Does it name this origin?
    pub fn names(self, origin: Origin) -> bool {
        match self {
            Self::Unknown | Self::Root => false,
            Self::After { origin: named, .. } | Self::Restored { from: named } => named == origin,
        }
    }

    /// As an open that says the same.
    pub fn to_open(self) -> Option<wire::Open> {
        match self {
            Self::Unknown => None,
            Self::Root => Some(wire::Open::default()),
            Self::After { origin, end } => {
                let previous = Some(wire::PreviousOrigin { origin: origin.to_bytes(), end });
                Some(wire::Open { previous, ..Default::default() })
            }
            Self::Restored { from } => {
                Some(wire::Open { restored: true, restored_from: from.to_bytes(), ..Default::default() })
            }
        }
    }
}

/// A committed close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Its seq: the last one of its origin.
    pub seq: u64,
    /// The agent has left.
    pub left: bool,
}

/// What few runs have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rare {
    /// T of marks above the first seq that is missing, by seq.
    pub waiting_marks: BTreeMap<u64, i64>,
    /// What an operator said will never come; up to `u64::MAX` if that is all the rest.
    pub abandoned: IntervalSet,
    /// When that was said last, milliseconds since the epoch.
    pub abandoned_unix_ms: Option<i64>,
    /// Ends that opens of runs name which have expired since.
    pub ends: Vec<u64>,
}

/// One run of an agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OriginRow {
    /// Its open.
    pub begin: Begin,
    /// Its close.
    pub close: Option<Closed>,
    /// The highest T of the marks below the first seq that is missing.
    pub counted_mark_unix_ms: Option<i64>,
    pub(super) rare: Option<Box<Rare>>,
}

impl OriginRow {
    /// What few runs have.
    pub fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    /// Seqs that an operator said will never come.
    pub fn abandoned(&self) -> Option<&IntervalSet> {
        self.rare().map(|rare| &rare.abandoned).filter(|ranges| !ranges.is_empty())
    }

    /// Was all that was missing abandoned, the unknown end with it?
    pub fn is_abandoned(&self) -> bool {
        self.abandoned().is_some_and(|ranges| ranges.contains(u64::MAX - 1))
    }

    /// Its seqs that are committed or abandoned.
    pub fn settled(&self, committed: Option<&IntervalSet>) -> IntervalSet {
        let mut all = committed.cloned().unwrap_or_default();
        if let Some(abandoned) = self.abandoned() {
            all.union_with(abandoned);
        }
        all
    }

    fn first_missing(&self, committed: Option<&IntervalSet>) -> u64 {
        match self.abandoned() {
            None => committed.map_or(0, IntervalSet::first_missing),
            Some(_) => self.settled(committed).first_missing(),
        }
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn mark(&mut self, seq: u64, at_unix_ms: i64, first_missing: u64) {
        if seq < first_missing {
            self.counted_mark_unix_ms = self.counted_mark_unix_ms.max(Some(at_unix_ms));
        } else {
            self.rare_mut().waiting_marks.insert(seq, at_unix_ms);
        }
    }

    /// Counts the marks that nothing is missing below any more.
    fn promote(&mut self, first_missing: u64) {
        let Some(rare) = self.rare.as_deref_mut().filter(|rare| !rare.waiting_marks.is_empty()) else { return };
        let later = rare.waiting_marks.split_off(&first_missing);
        let counted = std::mem::replace(&mut rare.waiting_marks, later);
        self.counted_mark_unix_ms = counted.into_values().max().max(self.counted_mark_unix_ms);
        while rare.waiting_marks.len() > WAITING_MARKS {
            let second = rare.waiting_marks.keys().nth(1).copied().expect("more than two are there");
            rare.waiting_marks.remove(&second);
        }
        if *rare == Rare::default() {
            self.rare = None;
        }
    }
}

/// One agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentRow {
    /// Its runs that did not expire.
    pub origins: BTreeMap<Origin, OriginRow>,
    /// Number of its first record.
    pub first_record: u64,
    /// Time of its first record, milliseconds since the epoch.
    pub first_record_unix_ms: i64,
    /// Time of its last record; 0: it never wrote one.
    pub last_record_unix_ms: i64,
    /// The newest origin that expired complete, and its end.
    pub expired: Option<(Origin, u64)>,
    /// Set while it is no member.
    pub forgotten_unix_ms: Option<i64>,
    /// Time and record of the last forget, also after its return.
    pub last_forget: Option<(i64, u64)>,
    /// When the first run with an empty state directory was minted after that forget, once its open is committed.
    pub new_root_unix_ms: Option<i64>,
    pub(super) kept: Kept,
}

impl AgentRow {
    /// What follows from its rows; worked out once per change.
    pub fn standing(&self, agent: &AgentName, committed: &Committed) -> &Standing {
        self.kept.get_or_work_out(|| standing::of(agent, self, committed))
    }

    /// Was there ever a record of it?
    pub fn is_in_the_log(&self) -> bool {
        self.last_record_unix_ms != 0
    }
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

    fn row(&mut self, agent: &AgentName) -> &mut AgentRow {
        let row = self.agents.entry(agent.clone()).or_default();
        row.kept.clear();
        row
    }

    /// Merges what record `n` says of one origin; `committed` has it already. Returns how far ahead of the record's
    /// time the furthest mark is that does not count for that reason, milliseconds.
    pub(super) fn cover(
        &mut self,
        n: u64,
        time_unix_ms: i64,
        cover: &Cover,
        wire: &wire::OriginCover,
        committed: &Committed,
    ) -> Option<i64> {
        let agent = self.row(&cover.key.agent);
        if !agent.is_in_the_log() {
            (agent.first_record, agent.first_record_unix_ms) = (n, time_unix_ms);
        }
        agent.last_record_unix_ms = agent.last_record_unix_ms.max(time_unix_ms);
        agent.forgotten_unix_ms = None;
        let row = agent.origins.entry(cover.key.origin).or_default();
        if let Some(open) = wire.opens.iter().find(|open| open.seq == 0).and_then(|open| open.open.as_ref()) {
            row.begin = Begin::of(open);
            if let (Begin::Root, Some((forgotten, _))) = (row.begin, agent.last_forget) {
                // By the time it was minted: the old root may arrive late.
                let minted = i64::try_from(cover.key.origin.unix_ms()).unwrap_or(i64::MAX);
                if minted > forgotten {
                    agent.new_root_unix_ms = Some(agent.new_root_unix_ms.map_or(minted, |root| root.min(minted)));
                }
            }
        }
        for close in &wire.closes {
            let left = close.close.as_ref().is_some_and(|close| close.left);
            if row.close.is_none_or(|first| close.seq < first.seq) {
                row.close = Some(Closed { seq: close.seq, left });
            }
        }
        let first_missing = row.first_missing(committed.origin(&cover.key.agent, cover.key.origin));
        let mut ahead = None;
        for mark in &wire.marks {
            let Some(at) = mark.mark.as_ref().map(|mark| mark.at_unix_ms).filter(|at| *at > 0) else { continue };
            if at > time_unix_ms.saturating_add(MARK_AHEAD_MS) {
                ahead = ahead.max(Some(at - time_unix_ms));
            } else {
                row.mark(mark.seq, at, first_missing);
            }
        }
        row.promote(first_missing);
        ahead
    }

    /// Merges what an operator said; no ranges: whatever is missing now, and all that would come after.
    pub(super) fn abandon(&mut self, key: &OriginKey, ranges: &IntervalSet, time_unix_ms: i64, committed: &Committed) {
        let committed = committed.origin(&key.agent, key.origin);
        let row = self.row(&key.agent).origins.entry(key.origin).or_default();
        let rare = row.rare_mut();
        if ranges.is_empty() {
            rare.abandoned.union_with(&complement(committed, u64::MAX));
        } else {
            rare.abandoned.union_with(ranges);
        }
        rare.abandoned_unix_ms = Some(rare.abandoned_unix_ms.map_or(time_unix_ms, |at| at.max(time_unix_ms)));
        let first_missing = row.first_missing(committed);
        row.promote(first_missing);
    }

    pub(super) fn forget(&mut self, agent: &AgentName, n: u64, time_unix_ms: i64) {
        let row = self.row(agent);
        row.forgotten_unix_ms = Some(time_unix_ms);
        row.last_forget = Some((time_unix_ms, n));
        row.new_root_unix_ms = None;
    }

    /// Takes an origin out; the agent's row stays. What leads across it counts as settled from now on.
    pub(super) fn expire(&mut self, key: &OriginKey, committed: &Committed) {
        if !self.agents.contains_key(&key.agent) {
            return;
        }
        let agent = self.row(&key.agent);
        let end = committed.origin(&key.agent, key.origin).map_or(0, IntervalSet::first_missing);
        let gone = agent.origins.remove(&key.origin).unwrap_or_default();
        if agent.expired.is_none_or(|(newest, _)| newest < key.origin) {
            agent.expired = Some((key.origin, end));
        }
        for row in agent.origins.values_mut() {
            match row.begin {
                Begin::After { origin, end: named }
                    if origin == key.origin && (gone.is_abandoned() || named == end) =>
                {
                    row.begin = Begin::Root;
                }
                Begin::Restored { from: origin } if origin == key.origin && gone.is_abandoned() => {
                    row.begin = Begin::Root;
                }
                _ => {}
            }
        }
        // Its predecessor keeps the end that it named.
        if let Begin::After { origin, end } = gone.begin
            && let Some(row) = agent.origins.get_mut(&origin)
            && committed.origin(&key.agent, origin).is_none_or(|seqs| past_end(seqs) <= end)
        {
            let ends = &mut row.rare_mut().ends;
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
    }
}

/// The seqs below `end` that are not in `seqs`.
pub fn complement(seqs: Option<&IntervalSet>, end: u64) -> IntervalSet {
    let mut missing = IntervalSet::new();
    let mut next = 0;
    for (start, stop) in seqs.into_iter().flat_map(IntervalSet::iter) {
        missing.insert_range(next, start.min(end));
        next = stop;
    }
    missing.insert_range(next, end);
    missing
}

/// The seq after the highest one in it.
pub fn past_end(seqs: &IntervalSet) -> u64 {
    seqs.iter().last().map_or(0, |(_, end)| end)
}
