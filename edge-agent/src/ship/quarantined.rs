//! What collectors refused for good, as aggregators tell it: each batch is said once, with its reason. The state is pure.
//!
//! Batches of `ack = "committed"` may be seen covered in the answer of an aggregator that never had them; then the one
//! that stored them is asked once more, since only that one knows the reason. Everything kept here is bounded, and what
//! comes from outside is cleaned before it is logged or shown.

use std::collections::{BTreeMap, VecDeque};

use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;

use super::Ship;
use super::balance::Node;
use crate::status::QuarantinedBatch;

/// Origins remembered.
const ORIGINS: usize = 16;
/// Intervals of known seqs per origin; beyond that gaps between the lowest are taken as known.
const SPANS: usize = 128;
/// Batches taken from one answer.
const PER_ANSWER: usize = 64;
/// Aggregators that are still to be asked.
const OWED: usize = 64;
/// An aggregator that does not answer so often is not asked any more.
const TRIES: u32 = 5;

/// Where a person finds the batch.
const WAY_OUT: &str = "the collectors keep the whole batch, with this reason, under _catchment/quarantine/ and the UTC day at the \
     destination: `catchment-collector quarantine show` lists them; correct what the reason names, then `quarantine replay`";

#[derive(Debug, Default)]
struct Owed {
    seqs: IntervalSet,
    failures: u32,
}

/// What is known, and who has to be asked. See the module.
#[derive(Debug, Default)]
pub struct Quarantined {
    /// Oldest first.
    known: VecDeque<(Origin, IntervalSet)>,
    owed: BTreeMap<(Node, Origin), Owed>,
}

impl Quarantined {
    /// Seqs of an origin that need not be told again.
    pub fn known(&self, origin: Origin) -> Option<wire::IntervalSet> {
        self.known.iter().find(|(of, _)| *of == origin).map(|(_, seqs)| seqs.into())
    }

    /// Takes in what an answer tells of an origin; what is new of it.
    pub fn tell(&mut self, origin: Origin, told: Vec<wire::QuarantinedBatch>) -> Vec<wire::QuarantinedBatch> {
        let mut fresh: Vec<wire::QuarantinedBatch> = Vec::new();
        for batch in told.into_iter().take(PER_ANSWER).filter(|batch| batch.seq < u64::MAX - 1) {
            let seqs = self.of(origin);
            if !seqs.contains(batch.seq) {
                seqs.insert(batch.seq);
                let lowest: Vec<(u64, u64)> = seqs.iter().take(2).collect();
                if seqs.spans() > SPANS
                    && let [(start, _), (_, end)] = lowest[..]
                {
                    seqs.insert_range(start, end);
                }
                let (dataset, reason) = (proto::reason::clean(&batch.dataset), proto::reason::clean(&batch.reason));
                fresh.push(wire::QuarantinedBatch { seq: batch.seq, dataset, reason });
            }
        }
        fresh
    }

    fn of(&mut self, origin: Origin) -> &mut IntervalSet {
        let at = self.known.iter().position(|(of, _)| *of == origin).unwrap_or_else(|| {
            if self.known.len() >= ORIGINS {
                self.known.pop_front();
            }
            self.known.push_back((origin, IntervalSet::new()));
            self.known.len() - 1
        });
        &mut self.known[at].1
    }

    /// A batch that `node` stored was seen covered elsewhere: `node` has to say whether it was refused.
    pub fn owe(&mut self, node: Node, origin: Origin, seq: u64) {
        if self.owed.len() < OWED || self.owed.contains_key(&(node.clone(), origin)) {
            self.owed.entry((node, origin)).or_default().seqs.insert(seq);
        }
    }

    /// Who has to be asked about which origin, `most` at most.
    pub fn questions(&self, most: usize) -> Vec<(Node, Origin)> {
        self.owed.keys().take(most).cloned().collect()
    }

    /// A node answered, or not: what it still holds it will know more about later.
    pub fn asked(&mut self, node: &Node, origin: Origin, held: Option<&IntervalSet>) {
        let key = (node.clone(), origin);
        let Some(owed) = self.owed.get_mut(&key) else { return };
        owed.failures += u32::from(held.is_none());
        let over = held.is_some_and(|held| !held.intersects(&owed.seqs));
        if over || owed.failures >= TRIES {
            self.owed.remove(&key);
        }
    }
}

impl Ship {
    /// Says what an answer tells about quarantined batches, once each. Before the answer's committed seqs are taken in.
    pub(super) fn quarantined(&mut self, node: &Node, origin: Origin, told: Vec<wire::QuarantinedBatch>) {
        for wire::QuarantinedBatch { seq, dataset, reason } in self.quarantined.tell(origin, told) {
            tracing::error!(
                dataset,
                %origin,
                seq,
                reason,
                %node,
                way_out = WAY_OUT,
                "a collector refused a batch for good, it lies in quarantine"
            );
            self.gauges.quarantined_batches.add(1);
            self.gauges.quarantine(QuarantinedBatch { dataset, origin: origin.to_string(), seq, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(n: u128) -> Origin {
        Origin::mint(1_793_500_000_000, n)
    }

    fn batch(seq: u64) -> wire::QuarantinedBatch {
        wire::QuarantinedBatch { seq, dataset: "clickstream".into(), reason: "two\u{1b}[2J frames\n".into() }
    }

    fn set(seqs: impl IntoIterator<Item = u64>) -> IntervalSet {
        seqs.into_iter().collect()
    }

    #[test]
    fn each_is_told_once_and_clean() {
        let mut state = Quarantined::default();
        assert_eq!(state.known(origin(1)), None);
        let fresh = state.tell(origin(1), vec![batch(3), batch(3), batch(4)]);
        assert_eq!(fresh.iter().map(|told| told.seq).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(fresh[0].reason, "two[2J frames");
        assert!(state.tell(origin(1), vec![batch(4), batch(3)]).is_empty());
        assert_eq!(state.known(origin(1)).unwrap().bounds, [3, 5]);
        assert_eq!(state.tell(origin(2), vec![batch(3)]).len(), 1, "of another origin");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_is_told_twice() {
        let mut state = Quarantined::default();
        for seq in (0..10_000).step_by(2) {
            assert_eq!(state.tell(origin(1), vec![batch(seq)]).len(), 1);
        }
        assert!(state.known(origin(1)).unwrap().bounds.len() <= 2 * SPANS);
        assert!(state.tell(origin(1), (0..64).map(|n| batch(n * 2)).collect()).is_empty());
        (2..100).for_each(|n| drop(state.tell(origin(n), vec![batch(1)])));
        assert_eq!(state.known.len(), ORIGINS);
        assert_eq!(state.tell(origin(500), (0..1000).map(batch).collect()).len(), PER_ANSWER);
    }

    #[test]
    fn the_one_that_stored_it_is_asked_until_it_holds_it_no_more() {
        let mut state = Quarantined::default();
        let (a, b) = (Node::from("a"), Node::from("b"));
        state.owe(a.clone(), origin(1), 7);
        state.owe(b.clone(), origin(1), 8);
        assert_eq!(state.questions(9).len(), 2);
        state.asked(&a, origin(1), Some(&set([7, 9])));
        assert_eq!(state.questions(9).len(), 2, "it waits for its own answer");
        state.asked(&a, origin(1), Some(&set([9])));
        assert_eq!(state.questions(9), [(b.clone(), origin(1))]);
        (0..TRIES).for_each(|_| state.asked(&b, origin(1), None));
        assert!(state.questions(9).is_empty(), "given up");
    }
}
