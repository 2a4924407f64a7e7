//! Why collectors refused batches for good, kept for the agents that sent them.
//!
//! Invariant: bounded. At most [`PER_ORIGIN`] of one run of an agent and [`IN_ALL`] together are kept, each reason cut
//! to 256 bytes; the oldest goes first and is counted. The rows go to the ledger in the same write as the committed
//! intervals, so a restart does not tell an agent that a batch is covered without the reason that was known.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use proto::ids::BatchId;
use proto::wire;

use super::ledger::Changes;
use super::rows;
use super::state::OriginKey;

/// Reasons kept of one origin of one agent.
pub const PER_ORIGIN: usize = 64;
/// Reasons kept together.
pub const IN_ALL: usize = 4096;

/// Why one batch was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// When it was heard, milliseconds since the epoch.
    pub unix_ms: u64,
    /// The batch's dataset; empty for one without data.
    pub dataset: String,
    /// For people; cleaned.
    pub reason: String,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    seq: u64,
    refusal: Refusal,
}

/// All reasons.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Oldest first.
    origins: HashMap<OriginKey, VecDeque<Kept>>,
    /// Whose the reason with this number is.
    ages: BTreeMap<u64, OriginKey>,
    next: u64,
    changed: HashSet<BatchId>,
    dropped: u64,
}

impl Refusals {
    /// Those of the ledger.
    pub fn load(mut rows: Vec<(BatchId, Refusal)>) -> Self {
        rows.sort_by_key(|(_, refusal)| refusal.unix_ms);
        let mut refusals = Self::default();
        rows.into_iter().for_each(|(id, refusal)| refusals.keep(id, refusal));
        // What the ledger has need not be written again; what did not fit goes there too.
        let held: HashSet<BatchId> = refusals.ids().collect();
        refusals.changed.retain(|id| !held.contains(id));
        refusals
    }

    /// Keeps one. Of a batch that is known already the first reason stays.
    pub fn keep(&mut self, id: BatchId, refusal: Refusal) {
        let key = (id.agent.clone(), id.origin);
        let of_origin = self.origins.entry(key.clone()).or_default();
        if of_origin.iter().any(|kept| kept.seq == id.seq) {
            return;
        }
        let reason = proto::reason::clean(&refusal.reason);
        of_origin.push_back(Kept { number: self.next, seq: id.seq, refusal: Refusal { reason, ..refusal } });
        let crowded = of_origin.len() > PER_ORIGIN;
        self.ages.insert(self.next, key.clone());
        self.next += 1;
        self.changed.insert(id);
        if crowded {
            self.drop_oldest(&key);
        } else if self.ages.len() > IN_ALL
            && let Some(oldest) = self.ages.values().next().cloned()
        {
            self.drop_oldest(&oldest);
        }
    }

    fn drop_oldest(&mut self, key: &OriginKey) {
        let Some(of_origin) = self.origins.get_mut(key) else { return };
        if let Some(kept) = of_origin.pop_front() {
            self.ages.remove(&kept.number);
            self.changed.insert(BatchId { agent: key.0.clone(), origin: key.1, seq: kept.seq });
            self.dropped += 1;
        }
        if of_origin.is_empty() {
            self.origins.remove(key);
        }
    }

    /// Those of one origin, oldest first.
    pub fn of(&self, key: &OriginKey) -> Vec<wire::QuarantinedBatch> {
        let tell = |kept: &Kept| wire::QuarantinedBatch {
            seq: kept.seq,
            dataset: kept.refusal.dataset.clone(),
            reason: kept.refusal.reason.clone(),
        };
        self.origins.get(key).map(|kept| kept.iter().map(tell).collect()).unwrap_or_default()
    }

    /// Reasons that had to go since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn ids(&self) -> impl Iterator<Item = BatchId> + '_ {
        self.origins.iter().flat_map(|((agent, origin), kept)| {
            kept.iter().map(|kept| BatchId { agent: agent.clone(), origin: *origin, seq: kept.seq })
        })
    }

    fn get(&self, id: &BatchId) -> Option<&Refusal> {
        let of_origin = self.origins.get(&(id.agent.clone(), id.origin))?;
        of_origin.iter().find(|kept| kept.seq == id.seq).map(|kept| &kept.refusal)
    }

    /// Adds the rows that changed since the last call.
    pub fn take_changes(&mut self, changes: &mut Changes) {
        for id in std::mem::take(&mut self.changed) {
            match self.get(&id) {
                Some(refusal) => changes.put(rows::refused_key(&id), rows::refused_value(refusal)),
                None => changes.remove(rows::refused_key(&id)),
            }
        }
    }

    /// Everything has to be written again.
    pub fn dirty_all(&mut self) {
        let ids: Vec<BatchId> = self.ids().collect();
        self.changed.extend(ids);
    }
}

#[cfg(test)]
mod tests {
    use proto::ids::{AgentName, Origin};

    use super::*;

    fn id(agent: u64, seq: u64) -> BatchId {
        BatchId { agent: AgentName::new(&format!("web-{agent}")).unwrap(), origin: Origin::mint(1, 1), seq }
    }

    fn refusal(at: u64) -> Refusal {
        Refusal { unix_ms: at, dataset: "clickstream".into(), reason: format!("because\n of {at}") }
    }

    fn seqs(refusals: &Refusals, agent: u64) -> Vec<u64> {
        let id = id(agent, 0);
        refusals.of(&(id.agent, id.origin)).iter().map(|told| told.seq).collect()
    }

    #[test]
    fn the_oldest_of_an_origin_goes_first_and_is_counted() {
        let mut refusals = Refusals::default();
        (0..100).for_each(|seq| refusals.keep(id(1, seq), refusal(seq)));
        refusals.keep(id(1, 99), refusal(7));
        refusals.keep(id(2, 5), refusal(100));
        assert_eq!(seqs(&refusals, 1), (36..100).collect::<Vec<_>>());
        assert_eq!(seqs(&refusals, 2), [5]);
        assert_eq!(refusals.dropped(), 36);
        let key = (id(2, 5).agent, id(2, 5).origin);
        let told = wire::QuarantinedBatch { seq: 5, dataset: "clickstream".into(), reason: "because of 100".into() };
        assert_eq!(refusals.of(&key), [told], "without control characters");
    }

    #[test]
    fn many_origins_together_are_bounded() {
        let mut refusals = Refusals::default();
        let agents = (IN_ALL / 2) as u64;
        (0..4).for_each(|seq| (0..agents).for_each(|agent| refusals.keep(id(agent, seq), refusal(seq))));
        assert_eq!(refusals.ids().count(), IN_ALL);
        assert_eq!((seqs(&refusals, 0), refusals.dropped()), (vec![2, 3], 2 * agents));
    }

    #[test]
    fn what_the_ledger_has_comes_back_in_order_and_within_bounds() {
        let rows = (0..100).rev().map(|seq| (id(1, seq), refusal(seq))).collect();
        let mut refusals = Refusals::load(rows);
        assert_eq!(seqs(&refusals, 1), (36..100).collect::<Vec<_>>());
        assert_eq!(refusals.changed.len(), 36, "those are to be removed");
        let mut changes = Changes::default();
        refusals.take_changes(&mut changes);
        assert!(!changes.is_empty());
        refusals.dirty_all();
        assert_eq!(refusals.changed.len(), 64);
    }
}
