//! The committed set: per agent and origin the seqs that commit records cover, whatever the kind.
//!
//! It is only ever built from records and a checkpoint of records, in the order of the log.

use std::collections::{BTreeMap, HashMap};

use proto::ids::{AgentName, BatchId, Origin};
use proto::intervals::IntervalSet;
use proto::wire;

use super::OriginKey;

/// Why a record or checkpoint cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A name, origin or interval set in it is none.
    #[error("{what} {n} is damaged: {detail}; it was not written by a Catchment collector")]
    Malformed {
        /// Record or checkpoint.
        what: &'static str,
        /// Its number.
        n: u64,
        /// The fact.
        detail: String,
    },
}

/// One origin's cover in a record, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Cover {
    /// Whose seqs.
    pub key: OriginKey,
    /// All of them: data, quarantined and those without a file.
    pub seqs: IntervalSet,
    /// Seqs that came after the origin expired: they never make it known again.
    pub expired: IntervalSet,
}

impl Cover {
    /// Nothing of it expired.
    pub fn of(key: OriginKey, seqs: IntervalSet) -> Self {
        Self { key, seqs, expired: IntervalSet::new() }
    }
}

#[derive(Debug, Clone, Default)]
struct OriginState {
    committed: IntervalSet,
    last_commit_unix_ms: i64,
}

/// What the log says is committed.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    agents: HashMap<AgentName, BTreeMap<Origin, OriginState>>,
    origins: usize,
}

impl Committed {
    /// As rows of a checkpoint, in a fixed order.
    pub fn to_rows(&self) -> Vec<wire::CheckpointOrigin> {
        let mut agents: Vec<_> = self.agents.iter().collect();
        agents.sort_by(|a, b| a.0.cmp(b.0));
        let origins = agents.into_iter().flat_map(|(agent, origins)| {
            origins.iter().map(|(origin, state)| wire::CheckpointOrigin {
                agent: agent.to_string(),
                origin: origin.to_bytes(),
                committed: Some((&state.committed).into()),
                last_commit_unix_ms: state.last_commit_unix_ms,
                ..Default::default()
            })
        });
        origins.collect()
    }

    /// Adds one origin's seqs. Returns how many of them were in already: anything but 0 means that the log covers a
    /// batch twice (I4), which is reported and counted by the caller.
    pub fn add(&mut self, cover: &Cover, time_unix_ms: i64) -> u64 {
        if cover.seqs.is_empty() {
            return 0;
        }
        let origins = self.agents.entry(cover.key.agent.clone()).or_default();
        let before_origins = origins.len();
        let state = origins.entry(cover.key.origin).or_default();
        let before = state.committed.count();
        state.committed.union_with(&cover.seqs);
        state.last_commit_unix_ms = state.last_commit_unix_ms.max(time_unix_ms);
        let added = state.committed.count() - before;
        self.origins += origins.len() - before_origins;
        cover.seqs.count() - added
    }

    /// Is this batch in the log?
    pub fn contains(&self, id: &BatchId) -> bool {
        self.origin(&id.agent, id.origin).is_some_and(|set| set.contains(id.seq))
    }

    /// The committed seqs of one origin.
    pub fn origin(&self, agent: &AgentName, origin: Origin) -> Option<&IntervalSet> {
        self.agents.get(agent).and_then(|origins| origins.get(&origin)).map(|state| &state.committed)
    }

    /// Time of the last record that covers a seq of it, milliseconds since the epoch.
    pub fn last_commit_unix_ms(&self, agent: &AgentName, origin: Origin) -> Option<i64> {
        self.agents.get(agent).and_then(|origins| origins.get(&origin)).map(|state| state.last_commit_unix_ms)
    }

    /// Takes an origin out: it expired.
    pub fn remove(&mut self, key: &OriginKey) {
        let Some(origins) = self.agents.get_mut(&key.agent) else { return };
        self.origins -= usize::from(origins.remove(&key.origin).is_some());
        if origins.is_empty() {
            self.agents.remove(&key.agent);
        }
    }

    /// All origins with the time of their last commit, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&AgentName, Origin, &IntervalSet, i64)> {
        self.agents.iter().flat_map(|(agent, origins)| {
            origins.iter().map(move |(origin, s)| (agent, *origin, &s.committed, s.last_commit_unix_ms))
        })
    }

    /// Does the log name this agent at all?
    pub fn knows_agent(&self, agent: &AgentName) -> bool {
        self.agents.contains_key(agent)
    }

    /// Number of origins.
    pub fn origins(&self) -> usize {
        self.origins
    }

    /// Number of agents.
    pub fn agents(&self) -> usize {
        self.agents.len()
    }
}

/// The covers of a publish action, checked; `n` is the record's number, for the message.
pub fn covers(n: u64, publish: &wire::Publish) -> Result<Vec<Cover>, MergeError> {
    publish.covers.iter().map(|cover| check_cover(n, cover)).collect()
}

fn check_cover(n: u64, cover: &wire::OriginCover) -> Result<Cover, MergeError> {
    let malformed = |detail: String| MergeError::Malformed { what: "commit record", n, detail };
    let key = origin_key(&cover.agent, &cover.origin).map_err(malformed)?;
    let mut seqs = IntervalSet::new();
    for set in [&cover.data, &cover.quarantined].into_iter().flatten() {
        seqs.union_with(&IntervalSet::try_from(set).map_err(|e| malformed(e.to_string()))?);
    }
    let expired = cover.expired.as_ref().map(IntervalSet::try_from).transpose();
    let expired = expired.map_err(|e| malformed(e.to_string()))?.unwrap_or_default();
    let without_file = (cover.opens.iter().map(|s| s.seq))
        .chain(cover.voids.iter().map(|s| s.seq))
        .chain(cover.marks.iter().map(|s| s.seq))
        .chain(cover.closes.iter().map(|s| s.seq));
    for seq in without_file {
        seqs.insert(seq);
    }
    Ok(Cover { key, seqs, expired })
}

/// The typed key of an agent and origin.
pub fn origin_key(agent: &str, origin: &[u8]) -> Result<OriginKey, String> {
    Ok(OriginKey {
        agent: AgentName::new(agent).map_err(|e| e.to_string())?,
        origin: Origin::from_bytes(origin).map_err(|e| e.to_string())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(agent: &str) -> OriginKey {
        OriginKey { agent: AgentName::new(agent).unwrap(), origin: Origin::mint(5, 7) }
    }

    #[test]
    fn a_cover_holds_every_kind() {
        let cover = wire::OriginCover {
            agent: "web-1".into(),
            origin: Origin::mint(5, 7).to_bytes(),
            data: Some(wire::IntervalSet { bounds: vec![1, 3] }),
            quarantined: Some(wire::IntervalSet { bounds: vec![4, 5] }),
            opens: vec![wire::SeqOpen { seq: 0, open: None }],
            voids: vec![wire::SeqVoid { seq: 3, void: None }],
            marks: vec![wire::SeqMark { seq: 5, mark: None }],
            closes: vec![wire::SeqClose { seq: 7, close: None }],
            ..Default::default()
        };
        let covers = covers(0, &wire::Publish { files: vec![], covers: vec![cover] }).unwrap();
        assert_eq!(covers[0].seqs.iter().collect::<Vec<_>>(), [(0, 6), (7, 8)]);
    }

    #[test]
    fn a_seq_covered_twice_is_noticed() {
        let mut committed = Committed::default();
        let cover = |seqs: &[u64]| Cover::of(key("web-1"), seqs.iter().copied().collect());
        assert_eq!(committed.add(&cover(&[0, 1]), 10), 0);
        assert_eq!(committed.add(&cover(&[1, 2]), 11), 1);
        assert!(committed.contains(&key("web-1").batch(2)) && !committed.contains(&key("web-1").batch(3)));
        assert!(!committed.contains(&key("web-2").batch(1)));
    }
}
