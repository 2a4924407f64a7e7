//! Seqs of one origin that lie in the channel: intervals from which single seqs are taken out again.

use std::collections::BTreeMap;

use proto::wire;

/// A set of seqs; one interval while they come in order and leave in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldSeqs {
    /// start -> end (exclusive).
    spans: BTreeMap<u64, u64>,
}

impl HeldSeqs {
    /// Is `seq` held?
    pub fn contains(&self, seq: u64) -> bool {
        self.spans.range(..=seq).next_back().is_some_and(|(_, &end)| seq < end)
    }

    /// Adds `seq`; false if it was held already.
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        let end = self.spans.remove(&(seq + 1)).unwrap_or(seq + 1);
        match self.spans.range_mut(..seq).next_back() {
            Some((_, before)) if *before == seq => *before = end,
            _ => {
                self.spans.insert(seq, end);
            }
        }
        true
    }

    /// Takes `seq` out; false if it was not held.
    pub fn remove(&mut self, seq: u64) -> bool {
        let Some((&start, &end)) = self.spans.range(..=seq).next_back() else { return false };
        if seq >= end {
            return false;
        }
        if start == seq {
            self.spans.remove(&start);
        } else {
            self.spans.insert(start, seq);
        }
        if seq + 1 < end {
            self.spans.insert(seq + 1, end);
        }
        true
    }

    /// Nothing held?
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// As it travels.
    pub fn to_wire(&self) -> wire::IntervalSet {
        wire::IntervalSet { bounds: self.spans.iter().flat_map(|(&start, &end)| [start, end]).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proto::intervals::IntervalSet;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(steps in prop::collection::vec((any::<bool>(), 0u64..40), 0..200)) {
            let mut held = HeldSeqs::default();
            let mut model = BTreeSet::new();
            for (add, seq) in steps {
                if add {
                    prop_assert_eq!(held.insert(seq), model.insert(seq));
                } else {
                    prop_assert_eq!(held.remove(seq), model.remove(&seq));
                }
                for probe in 0..42 { prop_assert_eq!(held.contains(probe), model.contains(&probe)); }
            }
            let wire = IntervalSet::try_from(&held.to_wire()).unwrap();
            prop_assert_eq!(wire.seqs().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(held.is_empty(), model.is_empty());
        }
    }
}
