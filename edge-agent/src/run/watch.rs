//! Watches, during the whole run, for seqs that aggregators know and this outbox does not have: then the state directory
//! is a copy, or was restored, and was not noticed at the start. Pure.
//!
//! What follows (design section 4 and its limit "a copy is noticed only when the log has a record that the original
//! appended after it"):
//! - **of an origin that this run's open (or an earlier open of this outbox) names with an end**: somebody else went on
//!   with it after the copy was made. The end we named is false, and a record at or above it contradicts that origin in
//!   the log, so none of our marks counts any more. But until that record is committed they would: so this run stops
//!   saying that anything is complete, at once, even if the seqs are only held by an aggregator. It goes on reading and
//!   sending: that loses nothing, and repeats at most what was unacked when the copy was made. The next start, after
//!   somebody has decided which of the two stays, marks again.
//! - **of this run's own origin**: another process has our memory (a snapshot of a running machine was started beside
//!   it). Two processes that append to one origin hide each other's batches, so this one appends nothing more and ends;
//!   its next run has an origin of its own and an open that says *restored*.

use std::collections::BTreeMap;

use proto::ids::Origin;

/// What was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    /// Nothing new.
    Nothing,
    /// Somebody else has appended to an origin before this run's.
    Copied(Origin),
    /// Somebody else appends to this run's own origin.
    Twin,
}

/// The ends that this outbox has named, and what was noticed.
#[derive(Debug, Clone)]
pub struct Watch {
    own: Origin,
    named: BTreeMap<Origin, u64>,
    copied: Option<Origin>,
}

impl Watch {
    /// `named`: every older origin whose end an open of this outbox names.
    pub fn new(own: Origin, named: impl IntoIterator<Item = (Origin, u64)>) -> Self {
        Self { own, named: named.into_iter().collect(), copied: None }
    }

    /// An aggregator knows `origin` up to `end` (exclusive), committed or held; `own_next` is this run's next seq.
    pub fn seen(&mut self, origin: Origin, end: u64, own_next: u64) -> Noticed {
        if origin == self.own {
            return if end > own_next { Noticed::Twin } else { Noticed::Nothing };
        }
        if self.copied.is_some() || self.named.get(&origin).is_none_or(|named| end <= *named) {
            return Noticed::Nothing;
        }
        self.copied = Some(origin);
        Noticed::Copied(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(n: u128) -> Origin {
        Origin::mint(1_793_500_000_000, n)
    }

    #[test]
    fn seqs_at_or_above_a_named_end_are_noticed_once() {
        let mut watch = Watch::new(origin(3), [(origin(2), 7)]);
        assert_eq!(watch.seen(origin(2), 7, 1), Noticed::Nothing, "all of it is ours");
        assert_eq!(watch.seen(origin(1), 99, 1), Noticed::Nothing, "no end of it was named: its open said restored");
        assert_eq!(watch.seen(origin(2), 8, 1), Noticed::Copied(origin(2)));
        assert_eq!(watch.seen(origin(2), 9, 1), Noticed::Nothing, "said once");
    }

    #[test]
    fn nobody_else_appends_to_our_own_origin() {
        let mut watch = Watch::new(origin(3), [(origin(2), 7)]);
        assert_eq!(watch.seen(origin(3), 5, 5), Noticed::Nothing);
        assert_eq!(watch.seen(origin(3), 6, 5), Noticed::Twin);
    }
}
