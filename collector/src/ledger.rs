//! What is committed and what is staged here. Pure: no time of its own, no IO.
//!
//! - [`committed`]: per agent and origin the seqs that commit records cover,
//! - [`counts`]: what became of events, by dataset and hour,
//! - [`staged`]: batches in groups and seqs without a file, each in exactly one place.
//!
//! Keeps I4 on this side: a batch is in one group at most, and whatever a record of another incarnation covers
//! leaves this ledger with its whole group.

pub mod committed;
pub mod counts;
pub mod staged;

use proto::ids::{AgentName, BatchId, Origin};

pub use committed::Committed;
pub use staged::{GroupKey, GroupKind, Staged};

/// Agent and origin: the key of an interval set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OriginKey {
    /// As the transport names it.
    pub agent: AgentName,
    /// The run that cut the batches.
    pub origin: Origin,
}

impl OriginKey {
    /// The key of a batch's origin.
    pub fn of(id: &BatchId) -> Self {
        Self { agent: id.agent.clone(), origin: id.origin }
    }

    /// A batch of this origin.
    pub fn batch(&self, seq: u64) -> BatchId {
        BatchId { agent: self.agent.clone(), origin: self.origin, seq }
    }
}

/// One Deliver stream of this process.
pub type StreamId = u64;
