//! The first round of questions of a run: is any aggregator there, what do they know of our newest origin, and which
//! of our unconfirmed batches do they hold already (those are not sent again, so an agent that restarts while the
//! destination is down does not fill the channels with copies). Pure.

use std::collections::HashMap;

use proto::ids::Origin;
use proto::intervals::IntervalSet;

use super::balance::Node;

/// Origins asked about at most, newest first.
const ORIGINS: usize = 16;

/// The state of the round.
#[derive(Debug)]
pub struct Contact {
    /// Newest first.
    origins: Vec<Origin>,
    asking: bool,
    left: usize,
    answered: bool,
    known_end: u64,
    held: HashMap<Origin, Vec<(Node, IntervalSet)>>,
}

impl Contact {
    /// `origins`: those of the outbox, newest first.
    pub fn new(mut origins: Vec<Origin>) -> Self {
        origins.truncate(ORIGINS);
        Self { origins, asking: true, left: 0, answered: false, known_end: 0, held: HashMap::new() }
    }

    /// Not over yet?
    pub fn is_asking(&self) -> bool {
        self.asking
    }

    /// The questions of a round, if one is to begin now: whom, about which origin.
    pub fn round(&mut self, nodes: &[Node]) -> Vec<(Node, Option<Origin>)> {
        if !self.asking || self.left > 0 {
            return Vec::new();
        }
        let about: Vec<Option<Origin>> = match self.origins.is_empty() {
            true => vec![None],
            false => self.origins.iter().copied().map(Some).collect(),
        };
        let questions: Vec<_> = nodes.iter().flat_map(|n| about.iter().map(move |o| (n.clone(), *o))).collect();
        self.left = questions.len();
        questions
    }

    /// One question was answered (`committed`, `held`) or failed. When that ends the contact: the exclusive end of what
    /// is known of the newest origin. A round that nobody answered is repeated.
    pub fn ended(
        &mut self,
        node: &Node,
        origin: Option<Origin>,
        answer: Option<(&IntervalSet, &IntervalSet)>,
    ) -> Option<u64> {
        if !self.asking {
            return None;
        }
        self.left = self.left.saturating_sub(1);
        if let Some((committed, held)) = answer {
            self.answered = true;
            let end = |set: &IntervalSet| set.iter().last().map_or(0, |(_, end)| end);
            if origin.is_some() && origin == self.origins.first().copied() {
                self.known_end = self.known_end.max(end(committed)).max(end(held));
            }
            if let Some(origin) = origin.filter(|_| !held.is_empty()) {
                self.held.entry(origin).or_default().push((node.clone(), held.clone()));
            }
        }
        if self.left > 0 || !self.answered {
            return None;
        }
        self.asking = false;
        Some(self.known_end)
    }

    /// Who holds a batch already?
    pub fn holder(&self, origin: Origin, seq: u64) -> Option<Node> {
        self.held.get(&origin)?.iter().find(|(_, held)| held.contains(seq)).map(|(node, _)| node.clone())
    }

    /// What was held then may be gone later: used for the first hand-over only.
    pub fn forget_held(&mut self) {
        self.held = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(seqs: impl IntoIterator<Item = u64>) -> IntervalSet {
        seqs.into_iter().collect()
    }

    #[test]
    fn a_round_ends_with_the_last_answer_and_silence_repeats_it() {
        let (newest, older) = (Origin::mint(2, 1), Origin::mint(1, 1));
        let mut contact = Contact::new(vec![newest, older]);
        let nodes: Vec<Node> = vec!["a".into(), "b".into()];
        assert_eq!(contact.round(&nodes).len(), 4);
        assert!(contact.round(&nodes).is_empty(), "one round at a time");
        for _ in 0..4 {
            assert_eq!(contact.ended(&nodes[0], Some(newest), None), None);
        }
        assert_eq!(contact.round(&nodes).len(), 4, "nobody answered");
        assert_eq!(contact.ended(&nodes[0], Some(newest), Some((&set([0, 1]), &set([5])))), None);
        assert_eq!(contact.ended(&nodes[0], Some(older), Some((&set([]), &set([99])))), None);
        assert_eq!(contact.ended(&nodes[1], Some(newest), None), None);
        assert_eq!(contact.ended(&nodes[1], Some(older), None), Some(6), "of the newest origin only");
        assert!(!contact.is_asking());
        assert_eq!(contact.holder(older, 99), Some(nodes[0].clone()));
        assert_eq!(contact.holder(newest, 1), None);
        contact.forget_held();
        assert_eq!(contact.holder(older, 99), None);
    }
}
