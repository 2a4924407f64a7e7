//! What follows from an agent's runs: which are leaves, which marks count, what stands in the way. Pure.
//!
//! - The *end* of an origin is the seq after its committed close, or what a committed open names. Two different ends,
//!   or a committed seq at or above one, contradict it. What the open of an abandoned origin names counts only while
//!   nothing else says otherwise: of a live clone its origin is abandoned, and the original goes on.
//! - An origin is *complete* when its end is known and all below it is committed (or abandoned), nothing at or above.
//! - A mark *counts* when every seq up to it is, its origin is not contradicted, every origin up the chain is complete,
//!   and no open on the way says *restored*. An origin that was abandoned as a whole is passed.
//! - A *leaf* is an origin in the log that no committed open names with its end, or that is contradicted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::OnceLock;

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;

use super::{AgentRow, Begin, OriginRow, complement, past_end};
use crate::ledger::Committed;

/// Runs that are named of one that is contradicted.
const NAMED_RUNS: usize = 4;

/// What stands in the way of an agent's marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Seqs are not committed. Of an origin that is named and not in the log: all.
    Missing {
        /// Those that are known to exist.
        seqs: IntervalSet,
        /// Everything from here on is unknown.
        from: Option<u64>,
    },
    /// Its state directory was restored or copied from one whose newest origin was this.
    Restored(Origin),
    /// Two ends, or a seq at or above one. These runs say where it ended.
    Contradicted(Vec<Origin>),
    /// Its open says nothing that can be read: it was quarantined.
    NoOpen,
}

/// A run that nothing goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Which.
    pub origin: Origin,
    /// It was abandoned as a whole: nobody waits for it.
    pub abandoned: bool,
    /// It ended with a close that says *left* and counts.
    pub left: bool,
    /// The highest T that counts in it or up its chain, milliseconds since the epoch.
    pub mark_unix_ms: Option<i64>,
    /// What stands in the way of later ones, and at which origin; none: it is only silent.
    pub trouble: Option<(Origin, Trouble)>,
}

/// What an operator said will never come, and did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    /// Of which run.
    pub origin: Origin,
    /// When it was said last, milliseconds since the epoch.
    pub at_unix_ms: i64,
    /// Seqs that are known to have existed.
    pub seqs: IntervalSet,
    /// Everything from here on.
    pub from: Option<u64>,
}

/// An agent's runs, judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// In the order they were minted.
    pub leaves: Vec<Leaf>,
    /// What seals that rest on it have to name.
    pub abandoned: Vec<Abandoned>,
    /// It was forgotten and came back with an empty directory: what of before is not complete.
    pub lost: Vec<(Origin, Trouble)>,
}

impl Standing {
    /// Leaves that somebody waits for.
    pub fn waited_for(&self) -> impl Iterator<Item = &Leaf> {
        self.leaves.iter().filter(|leaf| !leaf.abandoned)
    }

    /// Has it left: has every leaf that is waited for ended so, if there is one?
    pub fn has_left(&self) -> bool {
        self.waited_for().count() > 0 && self.waited_for().all(|leaf| leaf.left)
    }

    /// Has every leaf a counting mark of at least `t_unix_ms` (a *left* is one), and is there one?
    pub fn vouches(&self, t_unix_ms: i64) -> bool {
        self.waited_for().count() > 0 && self.waited_for().all(|leaf| leaf.reaches(t_unix_ms))
    }
}

impl Leaf {
    /// Has it a counting mark of at least `t_unix_ms`?
    pub fn reaches(&self, t_unix_ms: i64) -> bool {
        self.left || self.mark_unix_ms.is_some_and(|at| at >= t_unix_ms)
    }
}

/// A value that is worked out when it is first asked for; copies and comparisons do not see it.
#[derive(Debug, Default)]
pub(in crate::log::view) struct Kept(OnceLock<Standing>);

impl Kept {
    pub(super) fn clear(&mut self) {
        self.0.take();
    }

    pub(super) fn get_or_work_out(&self, work: impl FnOnce() -> Standing) -> &Standing {
        self.0.get_or_init(work)
    }
}

impl Clone for Kept {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Kept {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// How far an origin and everything up its chain can be relied on.
#[derive(Debug, Clone, Default)]
struct Chain {
    /// Its marks count.
    counts: bool,
    /// It is complete, and so is everything up its chain.
    complete: bool,
    mark_unix_ms: Option<i64>,
    trouble: Option<(Origin, Trouble)>,
}

/// An end that was worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Unknown,
    At(u64),
    Contradicted,
}

/// Judges the runs of one agent.
pub(super) fn of(agent: &AgentName, row: &AgentRow, committed: &Committed) -> Standing {
    let judge = Judge::new(agent, row, committed);
    let mut chains = HashMap::new();
    let mut standing = Standing::default();
    let old = |origin: &Origin| {
        row.new_root_unix_ms.is_some()
            && row.last_forget.is_some_and(|(at, _)| i64::try_from(origin.unix_ms()).unwrap_or(i64::MAX) <= at)
    };
    for (origin, state) in &row.origins {
        if let Some(abandoned) = judge.abandoned(*origin, state) {
            standing.abandoned.push(abandoned);
        }
        let leaf = judge.is_leaf(*origin).then(|| judge.leaf(*origin, state, &mut chains));
        if !old(origin) {
            standing.leaves.extend(leaf);
        } else if !state.is_abandoned() {
            // One that nothing goes on from may have gone on where nobody saw it, unless it left.
            let open = leaf.filter(|leaf| !leaf.left).map(|_| judge.open_ended(*origin, state));
            standing.lost.extend(judge.incomplete(*origin, state).or(open).map(|trouble| (*origin, trouble)));
            standing.lost.extend(judge.missing_predecessor(state));
        }
    }
    standing
}

/// Runs of which nothing can come any more: each has an end with all below it committed or abandoned and nothing at or
/// above it, and so has every run up its chain. Only those may expire: across one that has, nothing is asked any more.
pub fn complete(agent: &AgentName, row: &AgentRow, committed: &Committed) -> Vec<Origin> {
    let judge = Judge::new(agent, row, committed);
    let settled = |(origin, state): &(&Origin, &OriginRow)| {
        judge.incomplete(**origin, state).is_none() && judge.missing_predecessor(state).is_none()
    };
    let mut complete: BTreeMap<Origin, &OriginRow> =
        row.origins.iter().filter(settled).map(|(origin, state)| (*origin, state)).collect();
    loop {
        let blocked = |state: &OriginRow| match state.begin {
            Begin::After { origin, .. } => row.origins.contains_key(&origin) && !complete.contains_key(&origin),
            Begin::Root | Begin::Restored { .. } | Begin::Unknown => false,
        };
        let next: BTreeMap<_, _> = complete.iter().filter(|(_, s)| !blocked(s)).map(|(o, s)| (*o, *s)).collect();
        if next.len() == complete.len() {
            return next.into_keys().collect();
        }
        complete = next;
    }
}

struct Judge<'a> {
    agent: &'a AgentName,
    row: &'a AgentRow,
    committed: &'a Committed,
    ends: HashMap<Origin, (End, bool)>,
}

impl<'a> Judge<'a> {
    fn new(agent: &'a AgentName, row: &'a AgentRow, committed: &'a Committed) -> Self {
        let mut judge = Self { agent, row, committed, ends: HashMap::new() };
        let (mut named, mut weakly): (BTreeMap<Origin, Vec<u64>>, BTreeMap<Origin, Vec<u64>>) = Default::default();
        for (origin, state) in &row.origins {
            if let Begin::After { origin: previous, end } = state.begin {
                let map = if state.is_abandoned() { &mut weakly } else { &mut named };
                map.entry(previous).or_default().push(end);
            }
            if let Some(ends) = state.rare().map(|rare| &rare.ends).filter(|ends| !ends.is_empty()) {
                named.entry(*origin).or_default().extend(ends);
            }
        }
        for origin in row.origins.keys() {
            let end = judge.end(*origin, named.get(origin), weakly.get(origin));
            judge.ends.insert(*origin, end);
        }
        judge
    }

    fn seqs(&self, origin: Origin) -> Option<&'a IntervalSet> {
        self.committed.origin(self.agent, origin)
    }

    /// The end of an origin, and whether a committed open names it.
    fn end(&self, origin: Origin, named: Option<&Vec<u64>>, weakly: Option<&Vec<u64>>) -> (End, bool) {
        let past = self.seqs(origin).map_or(0, past_end);
        let close = self.row.origins.get(&origin).and_then(|row| row.close).map(|close| close.seq + 1);
        let mut ends: Vec<u64> = named.into_iter().flatten().copied().chain(close).collect();
        let mut is_named = named.is_some();
        if ends.is_empty() || !is_named {
            let mut weak: Vec<u64> = weakly.into_iter().flatten().copied().filter(|end| *end >= past).collect();
            weak.dedup();
            let agrees = |end: &u64| close.is_none_or(|close| close == *end);
            if let [end] = weak[..]
                && agrees(&end)
            {
                ends = vec![end];
                is_named = true;
            }
        }
        match ends.first() {
            None => (End::Unknown, false),
            Some(end) if ends.iter().any(|other| other != end) || past > *end => (End::Contradicted, is_named),
            Some(end) => (End::At(*end), is_named),
        }
    }

    fn end_of(&self, origin: Origin) -> End {
        self.ends.get(&origin).map_or(End::Unknown, |(end, _)| *end)
    }

    fn is_leaf(&self, origin: Origin) -> bool {
        let (end, named) = self.ends.get(&origin).copied().unwrap_or((End::Unknown, false));
        self.seqs(origin).is_some() && (!named || end == End::Contradicted)
    }

    /// What keeps an origin itself from being complete.
    fn incomplete(&self, origin: Origin, row: &OriginRow) -> Option<Trouble> {
        if row.is_abandoned() {
            return None;
        }
        match self.end_of(origin) {
            End::Contradicted => Some(self.contradicted(origin)),
            End::At(end) => {
                let seqs = complement(Some(&row.settled(self.seqs(origin))), end);
                (!seqs.is_empty()).then_some(Trouble::Missing { seqs, from: None })
            }
            End::Unknown => Some(self.open_ended(origin, row)),
        }
    }

    fn contradicted(&self, origin: Origin) -> Trouble {
        let names = |row: &OriginRow| matches!(row.begin, Begin::After { origin: named, .. } if named == origin);
        let by = self.row.origins.iter().filter(|(_, row)| names(row)).map(|(by, _)| *by);
        Trouble::Contradicted(by.take(NAMED_RUNS).collect())
    }

    fn open_ended(&self, origin: Origin, row: &OriginRow) -> Trouble {
        let settled = row.settled(self.seqs(origin));
        let past = past_end(&settled);
        Trouble::Missing { seqs: complement(Some(&settled), past), from: Some(past) }
    }

    /// A predecessor that is named and neither in the log nor expired as complete.
    fn missing_predecessor(&self, row: &OriginRow) -> Option<(Origin, Trouble)> {
        let Begin::After { origin, end } = row.begin else { return None };
        if self.row.origins.contains_key(&origin) || self.row.expired == Some((origin, end)) {
            return None;
        }
        Some((origin, Trouble::Missing { seqs: complement(None, end), from: None }))
    }

    fn leaf(&self, origin: Origin, row: &OriginRow, chains: &mut HashMap<Origin, Chain>) -> Leaf {
        let chain = self.chain(origin, chains);
        let first_missing = row.settled(self.seqs(origin)).first_missing();
        let left = chain.counts && row.close.is_some_and(|close| close.left && close.seq < first_missing);
        let trouble = chain.trouble.or_else(|| {
            // A hole in the leaf itself; that its end is not known is no trouble.
            let trouble = self.open_ended(origin, row);
            let holes = matches!(&trouble, Trouble::Missing { seqs, .. } if !seqs.is_empty());
            holes.then_some((origin, trouble))
        });
        Leaf { origin, abandoned: row.is_abandoned(), left, mark_unix_ms: chain.mark_unix_ms, trouble }
    }

    /// Walks up from `origin` to the first origin that is judged already, or the root, and judges down from there.
    fn chain(&self, origin: Origin, chains: &mut HashMap<Origin, Chain>) -> Chain {
        let (mut way, mut seen, mut at) = (Vec::new(), HashSet::new(), origin);
        let mut above = loop {
            if let Some(chain) = chains.get(&at) {
                break chain.clone();
            }
            let Some(row) = self.row.origins.get(&at) else {
                // Named, and neither in the log nor known to be complete.
                let end = way.last().and_then(|(_, row): &(Origin, &OriginRow)| match row.begin {
                    Begin::After { end, .. } => Some(end),
                    _ => None,
                });
                let end = end.unwrap_or_default();
                if self.row.expired == Some((at, end)) {
                    break Chain { counts: true, complete: true, ..Chain::default() };
                }
                let trouble = Trouble::Missing { seqs: complement(None, end), from: None };
                break Chain { trouble: Some((at, trouble)), ..Chain::default() };
            };
            if !seen.insert(at) {
                // Two opens that name each other: nobody who keeps the protocol writes them.
                break Chain { trouble: Some((at, self.contradicted(at))), ..Chain::default() };
            }
            way.push((at, row));
            match row.begin {
                Begin::After { origin: previous, .. } => at = previous,
                Begin::Root | Begin::Restored { .. } | Begin::Unknown => {
                    break Chain { counts: true, complete: true, ..Chain::default() };
                }
            }
        };
        for (origin, row) in way.into_iter().rev() {
            above = self.below(origin, row, above);
            chains.insert(origin, above.clone());
        }
        above
    }

    /// Judges an origin whose chain up is judged.
    fn below(&self, origin: Origin, row: &OriginRow, above: Chain) -> Chain {
        let abandoned = row.is_abandoned();
        let contradicted = self.end_of(origin) == End::Contradicted && !abandoned;
        let own = match row.begin {
            _ if contradicted => Some((origin, self.contradicted(origin))),
            Begin::Restored { from } if !abandoned && !self.is_abandoned(from) => {
                Some((origin, Trouble::Restored(from)))
            }
            Begin::Unknown if self.seqs(origin).is_some_and(|seqs| seqs.contains(0)) && !abandoned => {
                Some((origin, Trouble::NoOpen))
            }
            _ => None,
        };
        let counts = above.complete && own.is_none();
        let incomplete = self.incomplete(origin, row);
        let mark = row.counted_mark_unix_ms.filter(|_| counts);
        let trouble = above.trouble.or(own).or_else(|| {
            // For those below; the leaf itself has no end yet.
            incomplete.clone().filter(|_| !self.is_leaf(origin)).map(|trouble| (origin, trouble))
        });
        Chain { counts, complete: counts && incomplete.is_none(), mark_unix_ms: above.mark_unix_ms.max(mark), trouble }
    }

    fn is_abandoned(&self, origin: Origin) -> bool {
        self.row.origins.get(&origin).is_some_and(OriginRow::is_abandoned)
    }

    /// What was abandoned of an origin and did not come after all, or what others are relied on for.
    fn abandoned(&self, origin: Origin, row: &OriginRow) -> Option<Abandoned> {
        let ranges = row.abandoned()?;
        let at_unix_ms = row.rare()?.abandoned_unix_ms?;
        let committed = self.seqs(origin);
        let past = committed.map_or(0, past_end);
        let whole = row.is_abandoned();
        // Known to have existed: below the highest committed seq or the end that is known, or named by the operator.
        let end = match self.end_of(origin) {
            End::At(end) => Some(end),
            End::Unknown | End::Contradicted => None,
        };
        let stop = if whole { end.unwrap_or(past) } else { past_end(ranges) };
        let mut seqs = IntervalSet::new();
        for (from, to) in complement(committed, stop).iter() {
            for (start, end) in ranges.iter() {
                seqs.insert_range(from.max(start), to.min(end));
            }
        }
        let from = (whole && end.is_none()).then_some(past);
        let relied_on = whole
            && self.row.origins.values().any(|other| matches!(other.begin, Begin::Restored { from } if from == origin));
        (!seqs.is_empty() || from.is_some() || relied_on).then_some(Abandoned { origin, at_unix_ms, seqs, from })
    }
}
