//! When a partition is complete, or given up as it is. Pure.
//!
//! Invariant: a seal that says *complete* rests on a counting mark (or *left*) of every leaf of every member with a T
//! at or past the partition's end and its lateness, on nothing that was abandoned within the day before, and on
//! nothing a forgotten agent may have left behind. Everything else blocks until `incomplete_after`, and is named.

use std::collections::HashMap;
use std::sync::Arc;

use proto::ids::{AgentName, DatasetName};
use proto::wire;
use proto::wire::GapReason;

use super::inventory::{DEPARTED_AFTER_MS, Inventory};
use super::times::Times;
use super::wait::Wait;
use crate::config::dataset::DatasetConfig;
use crate::log::View;
use crate::log::view::PartitionKey;
use crate::log::view::origins::AgentRow;
use crate::log::view::origins::standing::Standing;
use crate::log::view::partitions::{self, OpenPartition, PartitionRow, State};

/// A historical load is complete for an agent when its T is so much past its last commit in the partition, milliseconds.
pub const LOAD_SETTLES_MS: i64 = 30 * 60_000;
/// Partitions that begin within this time after an abandon, or after the new root of a forgotten agent, rest on it.
pub const DOUBT_MS: i64 = 24 * 3_600_000;
/// Runs of one agent that a seal names.
const NAMED_RUNS: usize = 16;
/// Gaps that a seal names; the others are counted. They stay in every checkpoint: where all agents are silent for days,
/// each partition would add all of their names.
pub const NAMED_GAPS: usize = 100;
/// Runs of missing seqs that a gap names; from the next one on nothing is known.
const NAMED_RANGES: usize = 100;

/// What a partition is judged by, besides the log.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'a> {
    /// Declared datasets: others are not judged.
    pub datasets: &'a HashMap<DatasetName, Arc<DatasetConfig>>,
    /// Agents that are expected.
    pub inventory: &'a Inventory,
}

/// What is to be done with a partition.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Its dataset is not declared here, it is sealed, or nothing was ever published in it.
    NotJudged,
    /// It has not ended, or its lateness is not over.
    NotYet {
        /// When that will be, milliseconds since the epoch.
        due_unix_ms: i64,
    },
    /// Somebody's word is missing.
    Waits {
        /// When it will be sealed without it.
        until_unix_ms: i64,
        /// What is missing.
        for_: Vec<Wait>,
    },
    /// It can be sealed: as complete, or as incomplete since waiting is over or waiting would not help.
    Ready(wire::PartitionSeal),
}

/// Judges one partition.
pub fn evaluate(rule: &Rule<'_>, view: &View, key: &PartitionKey, now_unix_ms: i64) -> Verdict {
    let Some(case) = Case::of(rule, view, key, now_unix_ms) else { return Verdict::NotJudged };
    if now_unix_ms < case.times.due_unix_ms {
        return Verdict::NotYet { due_unix_ms: case.times.due_unix_ms };
    }
    let found = case.judge();
    let until_unix_ms = case.until_unix_ms();
    if !found.waits.is_empty() && now_unix_ms < until_unix_ms {
        return Verdict::Waits { until_unix_ms, for_: found.waits };
    }
    Verdict::Ready(case.seal(found))
}

/// What a seal would say at this moment, whatever is waited for: what an operator gets who seals by hand. None where
/// [`evaluate`] does not judge.
pub fn assess(
    rule: &Rule<'_>,
    view: &View,
    key: &PartitionKey,
    now_unix_ms: i64,
) -> Option<(wire::PartitionSeal, Vec<Wait>)> {
    let case = Case::of(rule, view, key, now_unix_ms)?;
    let found = case.judge();
    let waits = found.waits.clone();
    Some((case.seal(found), waits))
}

/// A seal draft after another record was read: does it still say what the log says? One by an operator does not have
/// to wait, but its counts and its gaps must be right.
pub fn holds(rule: &Rule<'_>, view: &View, seal: &wire::Seal, now_unix_ms: i64) -> bool {
    seal.partitions.iter().all(|drafted| {
        let Ok(key) = partitions::key(0, &drafted.dataset, drafted.partition.as_ref()) else { return false };
        let anew = if drafted.by.is_empty() {
            match evaluate(rule, view, &key, now_unix_ms) {
                Verdict::Ready(seal) => Some(seal),
                Verdict::NotJudged | Verdict::NotYet { .. } | Verdict::Waits { .. } => None,
            }
        } else {
            assess(rule, view, &key, now_unix_ms).map(|(seal, _)| seal)
        };
        anew.is_some_and(|anew| {
            let (by, sealed_unix_ms) = (drafted.by.clone(), drafted.sealed_unix_ms);
            *drafted == wire::PartitionSeal { by, sealed_unix_ms, ..anew }
        })
    })
}

/// What was found: what is waited for, and what only makes the seal incomplete.
#[derive(Debug, Default)]
struct Found {
    waits: Vec<Wait>,
    gaps: Vec<wire::SealGap>,
}

struct Case<'a> {
    rule: &'a Rule<'a>,
    view: &'a View,
    key: &'a PartitionKey,
    row: &'a PartitionRow,
    open: &'a OpenPartition,
    times: Times,
    now_unix_ms: i64,
}

impl<'a> Case<'a> {
    fn of(rule: &'a Rule<'a>, view: &'a View, key: &'a PartitionKey, now_unix_ms: i64) -> Option<Self> {
        let dataset = rule.datasets.get(&key.dataset)?;
        let row = view.partitions().get(key)?;
        let State::Open(open) = &row.state else { return None };
        let times = Times::of(dataset, key.partition)?;
        Some(Self { rule, view, key, row, open, times, now_unix_ms })
    }

    /// Was it loaded when it was over already?
    fn is_load(&self) -> bool {
        self.row.first_commit_unix_ms > self.times.due_unix_ms
    }

    /// When waiting ends. A load is given the same time, from when it settles.
    fn until_unix_ms(&self) -> i64 {
        let Times { due_unix_ms, until_unix_ms, .. } = self.times;
        if !self.is_load() {
            return until_unix_ms;
        }
        let settles = self.row.last_commit_unix_ms.saturating_add(LOAD_SETTLES_MS);
        settles.max(due_unix_ms).saturating_add(until_unix_ms - due_unix_ms)
    }

    fn judge(&self) -> Found {
        let mut found = Found::default();
        let mut vouched = false;
        for (agent, row) in self.view.origins().agents() {
            vouched |= self.judge_agent(agent, row, &mut found);
        }
        for agent in self.rule.inventory.iter() {
            if !self.view.origins().agent(agent).is_some_and(AgentRow::is_in_the_log) {
                let advice = format!(
                    "the inventory names {agent} and nothing of it was ever seen: start it, or take it out of the file"
                );
                let since = self.times.end_unix_ms;
                found.waits.push(Wait::of_agent(Some(agent), GapReason::NeverSeen, since, advice));
            }
        }
        if !vouched && found.waits.is_empty() {
            found.waits.push(Wait::nobody(self.times.end_unix_ms));
        }
        found
    }

    /// True if its word is one that the seal can rest on.
    fn judge_agent(&self, agent: &AgentName, row: &AgentRow, found: &mut Found) -> bool {
        let standing = row.standing(agent, self.view.committed());
        let begins_after = |doubt: i64| self.times.start_unix_ms >= doubt.saturating_add(DOUBT_MS);
        for abandoned in standing.abandoned.iter().filter(|abandoned| !begins_after(abandoned.at_unix_ms)) {
            found.gaps.push(wire::SealGap {
                agent: agent.to_string(),
                reason: GapReason::Abandoned as i32,
                origin: abandoned.origin.to_bytes(),
                last_mark_unix_ms: None,
                missing: (!abandoned.seqs.is_empty()).then(|| (&abandoned.seqs).into()),
                missing_from: abandoned.from,
            });
        }
        if row.new_root_unix_ms.is_some_and(|root| !begins_after(root)) {
            let lost = standing.lost.iter().take(NAMED_RUNS);
            found.waits.extend(lost.map(|(origin, trouble)| {
                let wait = Wait::of_trouble(agent, *origin, trouble, row.last_record_unix_ms);
                Wait { reason: GapReason::Forgotten, ..wait }
            }));
        }
        let is_member = self.is_member(agent, row, standing);
        let load = self.open.agents.get(agent).filter(|_| self.is_load());
        let load = load.map(|last| last.saturating_add(LOAD_SETTLES_MS));
        let due = is_member.then_some(self.times.due_unix_ms);
        match due.max(load) {
            Some(needed) if !standing.vouches(needed) => {
                if self.has_departed(agent, row) {
                    found.gaps.push(departed(agent, standing));
                } else {
                    found.waits.extend(self.silent(agent, row, standing, needed));
                }
                false
            }
            Some(_) => true,
            None => row.forgotten_unix_ms.is_none() && standing.has_left(),
        }
    }

    /// Those in the log are members unless they left, were forgotten, or all of their runs expired; those that the
    /// inventory names always are.
    fn is_member(&self, agent: &AgentName, row: &AgentRow, standing: &Standing) -> bool {
        row.is_in_the_log()
            && (self.rule.inventory.contains(agent)
                || (row.forgotten_unix_ms.is_none() && !row.origins.is_empty() && !standing.has_left()))
    }

    fn has_departed(&self, agent: &AgentName, row: &AgentRow) -> bool {
        let since = self.rule.inventory.missing_since_unix_ms(agent);
        since.is_some_and(|since| since.max(row.first_record_unix_ms) + DEPARTED_AFTER_MS <= self.now_unix_ms)
    }

    fn silent(&self, agent: &AgentName, row: &AgentRow, standing: &Standing, needed: i64) -> Vec<Wait> {
        let leaves = standing.waited_for().filter(|leaf| !leaf.reaches(needed)).take(NAMED_RUNS);
        let mut waits: Vec<Wait> = leaves.map(|leaf| Wait::of_leaf(agent, leaf, row.first_record_unix_ms)).collect();
        if waits.is_empty() {
            let advice = format!(
                "every run of {agent} was abandoned or has expired: start it again, or `catchment-collector seal forget \
                 {agent}` if it is gone for good"
            );
            let since = row.last_record_unix_ms;
            waits.push(Wait::of_agent(Some(agent), GapReason::NoMark, since, advice));
        }
        for wait in &mut waits {
            if row.forgotten_unix_ms.is_some() {
                wait.reason = GapReason::Forgotten;
            }
            if needed > self.times.due_unix_ms && wait.reason == GapReason::NoMark {
                wait.advice = format!(
                    "{agent} loaded into this day after it was over: its next mark 30 minutes after its last batch \
                     counts, or `catchment-edge-agent leave` if it only came to load. Otherwise: `catchment-collector \
                     seal now`"
                );
            }
        }
        waits
    }

    fn seal(&self, found: Found) -> wire::PartitionSeal {
        let sums = self.open.sums();
        let mut gaps = found.gaps;
        gaps.extend(found.waits.iter().map(Wait::to_gap));
        gaps.sort_by(|a, b| (&a.agent, &a.origin, a.reason).cmp(&(&b.agent, &b.origin, b.reason)));
        let more_gaps = gaps.len().saturating_sub(NAMED_GAPS) as u64;
        gaps.truncate(NAMED_GAPS);
        gaps.iter_mut().for_each(shorten);
        wire::PartitionSeal {
            dataset: self.key.dataset.to_string(),
            partition: Some(self.key.partition.into()),
            complete: gaps.is_empty(),
            events: sums.events,
            files: sums.files,
            bytes: sums.bytes,
            gaps,
            more_gaps,
            by: String::new(),
            due_unix_ms: self.times.due_unix_ms,
            sealed_unix_ms: self.now_unix_ms,
        }
    }
}

/// Names the first of very many ranges: from the next one on anything may be missing.
fn shorten(gap: &mut wire::SealGap) {
    let Some(missing) = gap.missing.as_mut() else { return };
    let Some(next) = missing.bounds.get(2 * NAMED_RANGES).copied() else { return };
    missing.bounds.truncate(2 * NAMED_RANGES);
    gap.missing_from = Some(next);
}

fn departed(agent: &AgentName, standing: &Standing) -> wire::SealGap {
    let earliest = standing.waited_for().filter(|leaf| !leaf.left).map(|leaf| leaf.mark_unix_ms).min();
    wire::SealGap {
        agent: agent.to_string(),
        reason: GapReason::Departed as i32,
        last_mark_unix_ms: earliest.flatten(),
        ..Default::default()
    }
}
