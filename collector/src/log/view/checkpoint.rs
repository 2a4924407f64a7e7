//! A view as a checkpoint and back. Origins, agents and partitions stand in a fixed order, so that equal views give
//! equal bytes.

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;

use super::audit::AuditTable;
use super::origins::{AgentRow, Begin, Closed, OriginRow, Rare};
use super::partitions::{OpenPartition, PartitionRow, SealedPartition, State, Sums};
use super::{View, partitions};
use crate::ledger::committed::{Cover, MergeError, origin_key};
use crate::ledger::{Committed, OriginKey};

impl View {
    /// As a checkpoint that covers the records below [`View::next`].
    pub fn to_checkpoint(&self) -> wire::Checkpoint {
        let origins =
            self.origins.agents.iter().flat_map(|(agent, row)| {
                row.origins.iter().map(|(origin, state)| self.origin_out(agent, *origin, state))
            });
        wire::Checkpoint {
            format: proto::FORMAT,
            next: self.next,
            origins: origins.collect(),
            agents: self.origins.agents.iter().map(|(name, row)| agent_out(name, row)).collect(),
            partitions: self.partitions.rows.iter().map(|(key, row)| partition_out(key, row)).collect(),
            horizon_unix_ms: self.horizon_unix_ms,
            expired: self.expired.to_rows(),
            audit: self.audit.rows.values().cloned().collect(),
        }
    }

    fn origin_out(&self, agent: &AgentName, origin: Origin, row: &OriginRow) -> wire::CheckpointOrigin {
        let close = |close: Closed| wire::SeqClose {
            seq: close.seq,
            close: Some(wire::Close { left: close.left, ..Default::default() }),
        };
        let mut out = wire::CheckpointOrigin {
            agent: agent.to_string(),
            origin: origin.to_bytes(),
            committed: self.committed.origin(agent, origin).map(Into::into),
            last_commit_unix_ms: self.committed.last_commit_unix_ms(agent, origin).unwrap_or_default(),
            open: row.begin.to_open(),
            close: row.close.map(close),
            counted_mark_unix_ms: row.counted_mark_unix_ms,
            ..Default::default()
        };
        if let Some(rare) = row.rare() {
            let mark = |(seq, at): (&u64, &i64)| wire::WaitingMark { seq: *seq, at_unix_ms: *at };
            out.waiting_marks = rare.waiting_marks.iter().map(mark).collect();
            out.abandoned = (!rare.abandoned.is_empty()).then(|| (&rare.abandoned).into());
            out.abandoned_unix_ms = rare.abandoned_unix_ms;
            out.named_ends.clone_from(&rare.ends);
        }
        out
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
            agent.origins.insert(key.origin, origin_in(n, origin)?);
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

fn origin_in(n: u64, origin: &wire::CheckpointOrigin) -> Result<OriginRow, MergeError> {
    let rare = Rare {
        waiting_marks: origin.waiting_marks.iter().map(|mark| (mark.seq, mark.at_unix_ms)).collect(),
        abandoned: set_in(n, origin.abandoned.as_ref())?,
        abandoned_unix_ms: origin.abandoned_unix_ms,
        ends: origin.named_ends.clone(),
    };
    let left = |close: &wire::SeqClose| close.close.as_ref().is_some_and(|close| close.left);
    Ok(OriginRow {
        begin: origin.open.as_ref().map_or(Begin::Unknown, Begin::of),
        close: origin.close.as_ref().map(|close| Closed { seq: close.seq, left: left(close) }),
        counted_mark_unix_ms: origin.counted_mark_unix_ms,
        rare: (rare != Rare::default()).then(|| Box::new(rare)),
    })
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
        new_root_unix_ms: row.new_root_unix_ms,
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
        first_record: agent.first_record,
        first_record_unix_ms: agent.first_record_unix_ms,
        last_record_unix_ms: agent.last_record_unix_ms,
        expired,
        forgotten_unix_ms: agent.forgotten_unix_ms,
        last_forget: agent.last_forget_unix_ms.zip(agent.forget_record),
        new_root_unix_ms: agent.new_root_unix_ms,
        ..AgentRow::default()
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
