//! Tests of the rule: sentence by sentence, and with a random history. Here: a log that is written by hand, record by
//! record. Every record is also read from a checkpoint, so that both always agree.

mod gaps;
mod markers;
mod model;
mod sentences;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::ids::{AgentName, DatasetName, Origin, Partition};
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::commit_record::Action;

use super::{Inventory, Rule, Verdict, evaluate};
use crate::config::dataset::DatasetConfig;
use crate::log::View;
use crate::log::view::{Applied, PartitionKey};

pub const MINUTE: i64 = 60_000;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

pub fn name(agent: &str) -> AgentName {
    AgentName::new(agent).unwrap()
}

/// A run minted `at` milliseconds after the epoch.
pub fn run(at: i64) -> Origin {
    Origin::mint(at as u64, at as u128)
}

pub fn key(day: i32) -> PartitionKey {
    PartitionKey { dataset: DatasetName::new("d").unwrap(), partition: Partition::new(day, None).unwrap() }
}

/// What one record covers of one run.
#[derive(Debug, Clone)]
pub struct Cover(pub wire::OriginCover);

impl Cover {
    pub fn of(agent: &str, origin: Origin) -> Self {
        Self(wire::OriginCover { agent: agent.into(), origin: origin.to_bytes(), ..Default::default() })
    }

    pub fn open(mut self, open: wire::Open) -> Self {
        self.0.opens.push(wire::SeqOpen { seq: 0, open: Some(open) });
        self
    }

    pub fn root(self) -> Self {
        self.open(wire::Open::default())
    }

    pub fn after(self, origin: Origin, end: u64) -> Self {
        let previous = Some(wire::PreviousOrigin { origin: origin.to_bytes(), end });
        self.open(wire::Open { previous, ..Default::default() })
    }

    pub fn restored(self, from: Origin) -> Self {
        self.open(wire::Open { restored: true, restored_from: from.to_bytes(), ..Default::default() })
    }

    pub fn data(mut self, seqs: impl IntoIterator<Item = u64>) -> Self {
        let mut set = self.0.data.as_ref().map(|set| IntervalSet::try_from(set).unwrap()).unwrap_or_default();
        for seq in seqs {
            set.insert(seq);
        }
        self.0.data = Some((&set).into());
        self
    }

    pub fn mark(mut self, seq: u64, at_unix_ms: i64) -> Self {
        self.0.marks.push(wire::SeqMark { seq, mark: Some(wire::Mark { at_unix_ms, ..Default::default() }) });
        self
    }

    pub fn close(mut self, seq: u64, left: bool) -> Self {
        self.0.closes.push(wire::SeqClose { seq, close: Some(wire::Close { left, ..Default::default() }) });
        self
    }
}

/// A log, and what a collector has read of it.
pub struct Log {
    pub view: View,
    pub now: i64,
    pub inventory: Inventory,
    pub datasets: HashMap<DatasetName, Arc<DatasetConfig>>,
}

impl Log {
    pub fn new() -> Self {
        let datasets = HashMap::from([(DatasetName::new("d").unwrap(), Arc::new(DatasetConfig::named("d")))]);
        Self { view: View::default(), now: HOUR, inventory: Inventory::default(), datasets }
    }

    pub fn rule(&self) -> Rule<'_> {
        Rule { datasets: &self.datasets, inventory: &self.inventory }
    }

    pub fn at(&mut self, now: i64) -> &mut Self {
        self.now = now;
        self
    }

    pub fn record(&mut self, action: Action) -> Applied {
        let n = self.view.next();
        let record = wire::CommitRecord {
            format: proto::FORMAT,
            commit_id: Bytes::copy_from_slice(&[n as u8; 16]),
            incarnation: "c-1".into(),
            collector: "c".into(),
            time_unix_ms: self.now,
            action: Some(action),
        };
        let applied = self.view.apply(n, &record).unwrap();
        let checkpoint = self.view.to_checkpoint();
        let again = View::from_checkpoint(n + 1, &checkpoint).unwrap();
        assert_eq!(again.to_checkpoint(), checkpoint, "a checkpoint says what the log says");
        for (agent, row) in self.view.origins().agents() {
            let read = again.origins().agent(agent).unwrap();
            assert_eq!(row.standing(agent, self.view.committed()), read.standing(agent, again.committed()));
        }
        applied
    }

    /// Covers of which the one at each index in `days` has a batch in a file of that day.
    pub fn publish(&mut self, covers: Vec<Cover>, days: &[(i32, usize)]) -> Applied {
        let n = self.view.next();
        let files = days.iter().enumerate().map(|(at, (day, cover))| wire::PublishedFile {
            kind: wire::FileKind::Data as i32,
            r#final: format!("d/{}/c-{n}-{at}.zst", key(*day).partition.path()),
            dataset: "d".into(),
            partition: Some(key(*day).partition.into()),
            bytes: 10,
            events: 1,
            covers: vec![*cover as u32],
            ..Default::default()
        });
        let files = files.collect();
        self.record(Action::Publish(wire::Publish { files, covers: covers.into_iter().map(|cover| cover.0).collect() }))
    }

    pub fn abandon(&mut self, agent: &str, origin: Origin, ranges: &[(u64, u64)]) {
        let bounds = ranges.iter().flat_map(|(start, end)| [*start, *end]).collect();
        self.record(Action::Abandon(wire::Abandon {
            agent: agent.into(),
            origin: origin.to_bytes(),
            ranges: Some(wire::IntervalSet { bounds }),
            time_unix_ms: self.now,
            reason: "lost".into(),
        }));
    }

    pub fn forget(&mut self, agent: &str) {
        self.record(Action::Forget(wire::Forget { agent: agent.into(), reason: "gone".into() }));
    }

    pub fn expire(&mut self, agent: &str, origins: &[Origin]) {
        let origins = origins.iter().map(|origin| wire::OriginId { agent: agent.into(), origin: origin.to_bytes() });
        self.record(Action::Expire(wire::Expire { origins: origins.collect(), ..Default::default() }));
    }

    pub fn seal(&mut self, seal: wire::PartitionSeal) {
        self.record(Action::Seal(wire::Seal { partitions: vec![seal] }));
    }

    pub fn verdict(&self, day: i32) -> Verdict {
        evaluate(&self.rule(), &self.view, &key(day), self.now)
    }

    /// `complete`, `not yet`, `not judged`, or what is waited for or missing: `agent reason` by agent.
    pub fn says(&self, day: i32) -> String {
        let word = |reason| super::wait::word(reason);
        match self.verdict(day) {
            Verdict::NotJudged => "not judged".into(),
            Verdict::NotYet { .. } => "not yet".into(),
            Verdict::Waits { for_, .. } => {
                let mut all: Vec<String> = for_
                    .iter()
                    .map(|wait| format!("{} {}", wait.agent.as_ref().map_or("-", AgentName::as_str), word(wait.reason)))
                    .collect();
                all.dedup();
                format!("waits: {}", all.join(", "))
            }
            Verdict::Ready(seal) if seal.complete => "complete".into(),
            Verdict::Ready(seal) => {
                let gaps: Vec<String> =
                    seal.gaps.iter().map(|gap| format!("{} {}", gap.agent, word(gap.reason()))).collect();
                format!("incomplete: {}", gaps.join(", "))
            }
        }
    }
}
