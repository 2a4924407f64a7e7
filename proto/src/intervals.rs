//! Sets of seqs as ascending, disjoint, non-touching half-open intervals: one interval while nothing is missing.

use std::collections::BTreeMap;

use crate::wire;

/// A set of `u64` below `u64::MAX`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IntervalSet {
    /// start -> end (exclusive).
    spans: BTreeMap<u64, u64>,
}

/// Bounds that are not ascending pairs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("interval bounds are not ascending pairs at position {0}")]
pub struct IntervalError(pub usize);

impl IntervalSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one seq; false if it was in already.
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        self.insert_range(seq, seq + 1);
        true
    }

    /// Adds `start..end`.
    pub fn insert_range(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        if let Some((&s, &e)) = self.spans.range(..=start).next_back()
            && e >= start
        {
            start = s;
            end = end.max(e);
        }
        while let Some((&s, &e)) = self.spans.range(start..=end).next() {
            end = end.max(e);
            self.spans.remove(&s);
        }
        self.spans.insert(start, end);
    }

    /// Is `seq` in the set?
    pub fn contains(&self, seq: u64) -> bool {
        self.spans.range(..=seq).next_back().is_some_and(|(_, &end)| seq < end)
    }

    /// Are all of `start..end` in the set? True for an empty range.
    pub fn contains_range(&self, start: u64, end: u64) -> bool {
        start >= end || self.spans.range(..=start).next_back().is_some_and(|(_, &e)| end <= e)
    }

    /// Adds everything in `other`.
    pub fn union_with(&mut self, other: &Self) {
        for (start, end) in other.iter() {
            self.insert_range(start, end);
        }
    }

    /// Do the two share a seq?
    pub fn intersects(&self, other: &Self) -> bool {
        let (small, large) = if self.spans.len() <= other.spans.len() { (self, other) } else { (other, self) };
        small.iter().any(|(start, end)| large.spans.range(..end).next_back().is_some_and(|(_, &e)| e > start))
    }

    /// Intervals as `(start, end)`, end exclusive, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.spans.iter().map(|(&s, &e)| (s, e))
    }

    /// Every seq in the set, ascending.
    pub fn seqs(&self) -> impl Iterator<Item = u64> + '_ {
        self.iter().flat_map(|(s, e)| s..e)
    }

    /// Number of seqs.
    pub fn count(&self) -> u64 {
        self.iter().map(|(s, e)| e - s).sum()
    }

    /// Number of intervals.
    pub fn spans(&self) -> usize {
        self.spans.len()
    }

    /// No seq at all?
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The first seq that is missing: the exclusive end of the interval that begins at 0.
    pub fn first_missing(&self) -> u64 {
        self.spans.get(&0).copied().unwrap_or(0)
    }
}

impl FromIterator<u64> for IntervalSet {
    fn from_iter<T: IntoIterator<Item = u64>>(seqs: T) -> Self {
        let mut set = Self::new();
        for seq in seqs {
            set.insert(seq);
        }
        set
    }
}

impl From<&IntervalSet> for wire::IntervalSet {
    fn from(set: &IntervalSet) -> Self {
        Self { bounds: set.iter().flat_map(|(s, e)| [s, e]).collect() }
    }
}

impl TryFrom<&wire::IntervalSet> for IntervalSet {
    type Error = IntervalError;
    fn try_from(set: &wire::IntervalSet) -> Result<Self, IntervalError> {
        if !set.bounds.len().is_multiple_of(2) {
            return Err(IntervalError(set.bounds.len()));
        }
        if let Some(at) = set.bounds.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(IntervalError(at));
        }
        Ok(Self { spans: set.bounds.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(ranges in prop::collection::vec((0u64..60, 0u64..8), 0..30),
                                   others in prop::collection::vec(0u64..70, 0..20)) {
            let mut set = IntervalSet::new();
            let mut model = BTreeSet::new();
            for (start, len) in ranges {
                set.insert_range(start, start + len);
                model.extend(start..start + len);
            }
            prop_assert_eq!(set.seqs().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            for seq in 0..80 { prop_assert_eq!(set.contains(seq), model.contains(&seq)); }
            let spans: Vec<_> = set.iter().collect();
            prop_assert!(spans.windows(2).all(|w| w[0].1 < w[1].0), "touching: {:?}", spans);
            let other: IntervalSet = others.iter().copied().collect();
            prop_assert_eq!(set.intersects(&other), others.iter().any(|s| model.contains(s)));
            prop_assert_eq!(IntervalSet::try_from(&wire::IntervalSet::from(&set)).unwrap(), set.clone());
            set.union_with(&other);
            model.extend(others);
            prop_assert_eq!(set.count(), model.len() as u64);
        }
    }

    #[test]
    fn bad_bounds_are_refused() {
        assert!(IntervalSet::try_from(&wire::IntervalSet { bounds: vec![1] }).is_err());
        assert!(IntervalSet::try_from(&wire::IntervalSet { bounds: vec![1, 1] }).is_err());
        assert!(IntervalSet::try_from(&wire::IntervalSet { bounds: vec![1, 3, 3, 4] }).is_err());
    }
}
