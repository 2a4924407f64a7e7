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
    /// From a checkpoint; `n` is its number, for the message.
    pub fn from_checkpoint(n: u64, checkpoint: &wire::Checkpoint) -> Result<Self, MergeError> {
        let mut committed = Self::default();
        for origin in &checkpoint.origins {
            let malformed = |detail: String| MergeError::Malformed { what: "checkpoint", n, detail };
            let key = origin_key(&origin.agent, &origin.origin).map_err(malformed)?;
            let set = origin.committed.as_ref().map(IntervalSet::try_from).transpose();
            let set = set.map_err(|e| malformed(e.to_string()))?.unwrap_or_default();
            committed.add(&Cover { key, seqs: set }, origin.last_commit_unix_ms);
        }
        Ok(committed)
    }

    /// As a checkpoint that covers the records below `next`. Origins in a fixed order.
    pub fn to_checkpoint(&self, next: u64) -> wire::Checkpoint {
        let mut agents: Vec<_> = self.agents.iter().collect();
        agents.sort_by(|a, b| a.0.cmp(b.0));
        let origins = agents.into_iter().flat_map(|(agent, origins)| {
            origins.iter().map(|(origin, state)| wire::CheckpointOrigin {
                agent: agent.to_string(),
                origin: origin.to_bytes(),
                committed: Some((&state.committed).into()),
                last_commit_unix_ms: state.last_commit_unix_ms,
            })
        });
        wire::Checkpoint { format: proto::FORMAT, next, origins: origins.collect() }
    }

    /// Adds one origin's seqs. Returns how many of them were in already: anything but 0 means that the log covers a
    /// batch twice (I4), which is reported and counted by the caller.
    pub fn add(&mut self, cover: &Cover, time_unix_ms: i64) -> u64 {
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
    let without_file = (cover.opens.iter().map(|s| s.seq))
        .chain(cover.voids.iter().map(|s| s.seq))
        .chain(cover.marks.iter().map(|s| s.seq))
        .chain(cover.closes.iter().map(|s| s.seq));
    for seq in without_file {
        seqs.insert(seq);
    }
    Ok(Cover { key, seqs })
}

fn origin_key(agent: &str, origin: &[u8]) -> Result<OriginKey, String> {
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
        };
        let covers = covers(0, &wire::Publish { files: vec![], covers: vec![cover] }).unwrap();
        assert_eq!(covers[0].seqs.iter().collect::<Vec<_>>(), [(0, 6), (7, 8)]);
    }

    #[test]
    fn a_seq_covered_twice_is_noticed() {
        let mut committed = Committed::default();
        let cover = |seqs: &[u64]| Cover { key: key("web-1"), seqs: seqs.iter().copied().collect() };
        assert_eq!(committed.add(&cover(&[0, 1]), 10), 0);
        assert_eq!(committed.add(&cover(&[1, 2]), 11), 1);
        assert!(committed.contains(&key("web-1").batch(2)) && !committed.contains(&key("web-1").batch(3)));
        assert!(!committed.contains(&key("web-2").batch(1)));
    }

    #[test]
    fn a_checkpoint_gives_the_same_set_back() {
        let mut committed = Committed::default();
        for (agent, seqs) in [("web-2", vec![0, 1, 5]), ("web-1", vec![2])] {
            committed.add(&Cover { key: key(agent), seqs: seqs.into_iter().collect() }, 42);
        }
        let checkpoint = committed.to_checkpoint(9);
        let again = Committed::from_checkpoint(9, &checkpoint).unwrap();
        assert_eq!(again.to_checkpoint(9), checkpoint);
        assert_eq!((again.origins(), again.agents()), (2, 2));
        let mut damaged = checkpoint;
        damaged.origins[0].origin = vec![1].into();
        assert!(Committed::from_checkpoint(9, &damaged).is_err());
    }
}
