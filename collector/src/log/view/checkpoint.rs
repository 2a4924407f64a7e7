//! A view as a checkpoint and back. Origins, agents and partitions stand in a fixed order, so that equal views give
//! equal bytes.

use std::collections::BTreeMap;

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;

use super::audit::AuditTable;
use super::origins::{AgentRow, OriginRow};
use super::partitions::{OpenPartition, PartitionRow, SealedPartition, State, Sums};
use super::{View, partitions};
use crate::ledger::committed::{Cover, MergeError, origin_key};
use crate::ledger::{Committed, OriginKey};

impl View {
    /// As a checkpoint that covers the records below [`View::next`].
    pub fn to_checkpoint(&self) -> wire::Checkpoint {
        let origins = self.origins.agents.iter().flat_map(|(agent, row)| {
            row.origins.iter().map(|(origin, state)| self.origin_out(agent, *origin, row, state))
        });
        let (mut agents, mut named) = (Vec::new(), Vec::new());
        for (name, row) in &self.origins.agents {
            agents.push(agent_out(name, row));
            let unknown = row.named_ends.iter().filter(|(origin, _)| !row.origins.contains_key(origin));
            named.extend(unknown.map(|(origin, ends)| wire::CheckpointOrigin {
                agent: name.to_string(),
                origin: origin.to_bytes(),
                named_ends: ends.iter().copied().collect(),
                ..Default::default()
            }));
        }
        wire::Checkpoint {
            format: proto::FORMAT,
            next: self.next,
            origins: origins.chain(named).collect(),
            agents,
            partitions: self.partitions.rows.iter().map(|(key, row)| partition_out(key, row)).collect(),
            horizon_unix_ms: self.horizon_unix_ms,
            expired: self.expired.to_rows(),
            audit: self.audit.rows.values().cloned().collect(),
        }
    }

    fn origin_out(
        &self,
        agent: &AgentName,
        origin: Origin,
        row: &AgentRow,
        state: &OriginRow,
    ) -> wire::CheckpointOrigin {
        let ends = row.named_ends.get(&origin);
        wire::CheckpointOrigin {
            agent: agent.to_string(),
            origin: origin.to_bytes(),
            committed: self.committed.origin(agent, origin).map(Into::into),
            last_commit_unix_ms: self.committed.last_commit_unix_ms(agent, origin).unwrap_or_default(),
            open: state.open.clone(),
            close: state.close.as_ref().map(|(seq, close)| wire::SeqClose { seq: *seq, close: Some(close.clone()) }),
            named_ends: ends.into_iter().flatten().copied().collect(),
            counted_mark_unix_ms: state.counted_mark_unix_ms,
            waiting_marks: (state.waiting_marks.iter())
                .map(|(seq, at)| wire::WaitingMark { seq: *seq, at_unix_ms: *at })
                .collect(),
            abandoned: (!state.abandoned.is_empty()).then(|| (&state.abandoned).into()),
            abandoned_unix_ms: state.abandoned_unix_ms,
        }
    }

    /// From a checkpoint; `n` is its number, for the message.
    pub fn from_checkpoint(n: u64, checkpoint: &wire::Checkpoint) -> Result<Self, MergeError> {
        let mut view = Self { next: checkpoint.next, horizon_unix_ms: checkpoint.horizon_unix_ms, ..Self::default() };
        for agent in &checkpoint.agents {
            let (name, row) = agent_in(n, agent)?;
            view.origins.agents.insert(name, row);
        }
        for origin in &checkpoint.origins {
            let key = origin_key(&origin.agent, &origin.origin).map_err(|detail| malformed(n, detail))?;
            let set = set_in(n, origin.committed.as_ref())?;
            let agent = view.origins.agents.entry(key.agent.clone()).or_default();
            if !origin.named_ends.is_empty() {
                agent.named_ends.insert(key.origin, origin.named_ends.iter().copied().collect());
            }
            let abandoned = set_in(n, origin.abandoned.as_ref())?;
            if set.is_empty() && origin.abandoned_unix_ms.is_none() {
                continue;
            }
            agent.origins.insert(key.origin, origin_in(origin, abandoned));
            if !set.is_empty() {
                view.committed.add(&Cover::of(key, set), origin.last_commit_unix_ms);
            }
        }
        for row in &checkpoint.partitions {
            let key = partitions::key(n, &row.dataset, row.partition.as_ref())?;
            view.partitions.rows.insert(key, partition_in(n, row)?);
        }
        view.expired = expired_in(n, &checkpoint.expired)?;
        view.audit = audit_in(n, &checkpoint.audit)?;
        Ok(view)
    }
}

fn malformed(n: u64, detail: String) -> MergeError {
    MergeError::Malformed { what: "checkpoint", n, detail }
}

fn set_in(n: u64, set: Option<&wire::IntervalSet>) -> Result<IntervalSet, MergeError> {
    let set = set.map(IntervalSet::try_from).transpose().map_err(|e| malformed(n, e.to_string()))?;
    Ok(set.unwrap_or_default())
}

fn origin_in(origin: &wire::CheckpointOrigin, abandoned: IntervalSet) -> OriginRow {
    OriginRow {
        open: origin.open.clone(),
        close: origin.close.as_ref().and_then(|close| Some((close.seq, close.close.clone()?))),
        counted_mark_unix_ms: origin.counted_mark_unix_ms,
        waiting_marks: origin.waiting_marks.iter().map(|mark| (mark.seq, mark.at_unix_ms)).collect(),
        abandoned,
        abandoned_unix_ms: origin.abandoned_unix_ms,
    }
}

fn agent_out(name: &AgentName, row: &AgentRow) -> wire::CheckpointAgent {
    wire::CheckpointAgent {
        agent: name.to_string(),
        first_record_unix_ms: row.first_record_unix_ms,
        last_record_unix_ms: row.last_record_unix_ms,
        expired_origin: row.expired.map(|(origin, _)| origin.to_bytes()).unwrap_or_default(),
        expired_end: row.expired.map_or(0, |(_, end)| end),
        forgotten_unix_ms: row.forgotten_unix_ms,
        last_forget_unix_ms: row.last_forget.map(|(at, _)| at),
        forget_record: row.last_forget.map(|(_, n)| n),
        first_record: row.first_record,
    }
}

fn agent_in(n: u64, agent: &wire::CheckpointAgent) -> Result<(AgentName, AgentRow), MergeError> {
    let name = AgentName::new(&agent.agent).map_err(|e| malformed(n, e.to_string()))?;
    let expired = match agent.expired_origin.is_empty() {
        true => None,
        false => {
            let origin = Origin::from_bytes(&agent.expired_origin).map_err(|e| malformed(n, e.to_string()))?;
            Some((origin, agent.expired_end))
        }
    };
    let row = AgentRow {
        origins: BTreeMap::new(),
        named_ends: BTreeMap::new(),
        first_record: agent.first_record,
        first_record_unix_ms: agent.first_record_unix_ms,
        last_record_unix_ms: agent.last_record_unix_ms,
        expired,
        forgotten_unix_ms: agent.forgotten_unix_ms,
        last_forget: agent.last_forget_unix_ms.zip(agent.forget_record),
    };
    Ok((name, row))
}

fn partition_out(key: &super::PartitionKey, row: &PartitionRow) -> wire::CheckpointPartition {
    let mut out = wire::CheckpointPartition {
        dataset: key.dataset.to_string(),
        partition: Some(key.partition.into()),
        first_commit_unix_ms: row.first_commit_unix_ms,
        last_commit_unix_ms: row.last_commit_unix_ms,
        ..Default::default()
    };
    match &row.state {
        State::Open(open) => {
            out.files = open.files.values().cloned().collect();
            let agent = |(agent, at): (&AgentName, &i64)| wire::PartitionAgent {
                agent: agent.to_string(),
                last_commit_unix_ms: *at,
            };
            out.agents = open.agents.iter().map(agent).collect();
        }
        State::Sealed(sealed) => {
            out.seal = Some(sealed.seal.clone());
            out.seal_number = sealed.number;
            let Sums { files, events, bytes } = sealed.late;
            (out.late_files, out.late_events, out.late_bytes) = (files, events, bytes);
            let Sums { files, events, bytes } = sealed.appended;
            (out.appended_files, out.appended_events, out.appended_bytes) = (files, events, bytes);
        }
    }
    out
}

fn partition_in(n: u64, row: &wire::CheckpointPartition) -> Result<PartitionRow, MergeError> {
    let state = match &row.seal {
        Some(seal) => State::Sealed(Box::new(SealedPartition {
            seal: seal.clone(),
            number: row.seal_number,
            late: Sums { files: row.late_files, events: row.late_events, bytes: row.late_bytes },
            appended: Sums { files: row.appended_files, events: row.appended_events, bytes: row.appended_bytes },
        })),
        None => {
            let mut open = OpenPartition::default();
            open.files.extend(row.files.iter().map(|file| (file.name.clone(), file.clone())));
            for agent in &row.agents {
                let name = AgentName::new(&agent.agent).map_err(|e| malformed(n, e.to_string()))?;
                open.agents.insert(name, agent.last_commit_unix_ms);
            }
            State::Open(open)
        }
    };
    let (first_commit_unix_ms, last_commit_unix_ms) = (row.first_commit_unix_ms, row.last_commit_unix_ms);
    Ok(PartitionRow { first_commit_unix_ms, last_commit_unix_ms, state })
}

fn expired_in(n: u64, rows: &[wire::CheckpointOrigin]) -> Result<Committed, MergeError> {
    let mut expired = Committed::default();
    for origin in rows {
        let key: OriginKey = origin_key(&origin.agent, &origin.origin).map_err(|detail| malformed(n, detail))?;
        expired.add(&Cover::of(key, set_in(n, origin.committed.as_ref())?), origin.last_commit_unix_ms);
    }
    Ok(expired)
}

fn audit_in(n: u64, rows: &[wire::AuditRow]) -> Result<AuditTable, MergeError> {
    let mut table = AuditTable::default();
    for row in rows {
        let agent = AgentName::new(&row.agent).map_err(|e| malformed(n, e.to_string()))?;
        table.rows.insert((agent, row.dataset.clone(), row.event_hour), row.clone());
    }
    Ok(table)
}
