//! Which aggregator gets the next batch, which ones are left out, and how they come back. Pure: it is told outcomes and
//! the time, and is asked to pick.
//!
//! Invariants: a node that is ejected or busy is never picked before its time; a node that comes back from an ejection
//! gets one request at a time, then twice as many after each success; while any node is available, one is picked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// An aggregator's address, as configured.
pub type Node = Arc<str>;

/// How batches are spread over the aggregators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// One of them, left on error, ejection or busy.
    #[default]
    Home,
    /// Each batch by power of two choices.
    Spread,
    /// The first available in the order given.
    Priority,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, after this long.
    Answered(Duration),
    /// Answered *busy*: not before this delay.
    Busy(Duration),
    /// Answered *retry*: nothing stored, elsewhere.
    Refused,
    /// No answer: transport, time-out.
    Failed,
}

/// Errors in a row that eject a node.
const EJECT_AFTER: u32 = 3;
const EJECT_BASE: Duration = Duration::from_millis(500);
const EJECT_MAX: Duration = Duration::from_secs(8);
/// A home is chosen anew after this time, so that a restarted aggregator gets its share back.
const REHOME: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct State {
    node: Node,
    /// Smoothed latency in seconds; none before the first answer.
    latency: Option<f64>,
    errors_in_row: u32,
    ejections_in_row: u32,
    /// Not to be picked before.
    not_before: Option<Instant>,
    /// Requests at once while it comes back; none: no limit.
    warming: Option<u32>,
    in_flight: u32,
    ejections: u64,
}

impl State {
    fn new(node: Node) -> Self {
        Self {
            node,
            latency: None,
            errors_in_row: 0,
            ejections_in_row: 0,
            not_before: None,
            warming: None,
            in_flight: 0,
            ejections: 0,
        }
    }

    fn available(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| now >= at) && self.warming.is_none_or(|most| self.in_flight < most)
    }

    /// Lower is better: errors first, then latency in steps of a factor of two (so that noise does not beat the ring
    /// order), with what is in flight.
    fn cost(&self, step: bool) -> (u32, i64) {
        let latency = self.latency.unwrap_or(0.001) * f64::from(self.in_flight + 1);
        let scaled = if step { latency.max(0.000_5).log2().floor() } else { latency * 1e6 };
        (self.errors_in_row, scaled as i64)
    }
}

/// The nodes and what is known of them.
#[derive(Debug)]
pub struct Balance {
    policy: Policy,
    nodes: Vec<State>,
    home: Option<(Node, Instant)>,
}

impl Balance {
    /// Without nodes yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, nodes: Vec::new(), home: None }
    }

    /// The nodes to use from now on, in order of preference; what is known of those that stay is kept.
    pub fn set_nodes(&mut self, nodes: impl IntoIterator<Item = Node>) {
        let mut old = std::mem::take(&mut self.nodes);
        for node in nodes {
            let known = old.iter().position(|state| state.node == node);
            self.nodes.push(known.map_or_else(|| State::new(node), |at| old.swap_remove(at)));
        }
        let stays = |home: &Node| self.nodes.iter().any(|state| state.node == *home);
        self.home.take_if(|(home, _)| !stays(home));
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().map(|state| &state.node)
    }

    /// Ejections so far.
    pub fn ejections(&self) -> u64 {
        self.nodes.iter().map(|state| state.ejections).sum()
    }

    /// Picks a node for one request, if one is available, and counts the request as in flight. `random` is any number;
    /// those in `avoid` are picked only when nothing else is available.
    pub fn pick(&mut self, now: Instant, random: u64, avoid: &[Node]) -> Option<Node> {
        let usable: Vec<usize> = (0..self.nodes.len()).filter(|at| self.nodes[*at].available(now)).collect();
        let preferred: Vec<usize> =
            usable.iter().copied().filter(|at| !avoid.contains(&self.nodes[*at].node)).collect();
        let from = if preferred.is_empty() { &usable } else { &preferred };
        let at = match self.policy {
            Policy::Priority => from.first().copied(),
            Policy::Spread => self.pick_of_two(from, random),
            Policy::Home => self.pick_home(from, now, random),
        }?;
        self.nodes[at].in_flight += 1;
        Some(self.nodes[at].node.clone())
    }

    fn pick_of_two(&self, from: &[usize], random: u64) -> Option<usize> {
        let len = from.len() as u64;
        let one = *from.get((random % len.max(1)) as usize)?;
        let rest: Vec<usize> = from.iter().copied().filter(|at| *at != one).collect();
        let Some(two) = rest.get(((random >> 32) % (len - 1).max(1)) as usize).copied() else { return Some(one) };
        Some(if self.nodes[two].cost(false) < self.nodes[one].cost(false) { two } else { one })
    }

    fn pick_home(&mut self, from: &[usize], now: Instant, random: u64) -> Option<usize> {
        if let Some((home, until)) = &self.home
            && now < *until
            && let Some(at) = from.iter().copied().find(|at| self.nodes[*at].node == *home)
            && self.nodes[at].errors_in_row == 0
        {
            return Some(at);
        }
        let best = from.iter().copied().min_by_key(|at| self.nodes[*at].cost(true))?;
        let jitter = Duration::from_secs(random % 120);
        self.home = Some((self.nodes[best].node.clone(), now + REHOME + jitter));
        Some(best)
    }

    /// Tells what came of a request that was picked (`picked`), or of a question that was asked beside it.
    pub fn report(&mut self, node: &Node, outcome: Outcome, picked: bool, now: Instant, random: u64) {
        let Some(state) = self.nodes.iter_mut().find(|state| state.node == *node) else { return };
        if picked {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
        match outcome {
            Outcome::Answered(latency) => {
                let seconds = latency.as_secs_f64();
                state.latency = Some(state.latency.map_or(seconds, |before| before * 0.8 + seconds * 0.2));
                state.errors_in_row = 0;
                state.warming = state.warming.map(|most| most * 2).filter(|most| *most < 64);
                if state.warming.is_none() {
                    state.ejections_in_row = 0;
                }
            }
            Outcome::Busy(delay) => {
                let until = now + delay.clamp(Duration::from_millis(10), Duration::from_secs(60));
                state.not_before = Some(state.not_before.map_or(until, |at| at.max(until)));
            }
            Outcome::Refused => state.not_before = Some(now + Duration::from_millis(500 + random % 500)),
            Outcome::Failed => {
                state.errors_in_row += 1;
                let out_already = state.not_before.is_some_and(|at| now < at);
                if !out_already && (state.errors_in_row >= EJECT_AFTER || state.warming.is_some()) {
                    let factor = 1u32 << state.ejections_in_row.min(6);
                    let base = (EJECT_BASE * factor).min(EJECT_MAX);
                    let jitter = base.mul_f64((random % 1000) as f64 / 4000.0);
                    state.not_before = Some(now + base + jitter);
                    state.ejections_in_row += 1;
                    state.ejections += 1;
                    state.warming = Some(1);
                }
            }
        }
        let left = outcome != Outcome::Failed && !matches!(outcome, Outcome::Answered(_));
        if left || matches!(outcome, Outcome::Failed) {
            self.home.take_if(|(home, _)| home == node);
        }
    }

    /// When a node may become available by time alone; none if one is available now, or none ever will be.
    pub fn next_available(&self, now: Instant) -> Option<Instant> {
        self.nodes.iter().filter_map(|state| state.not_before.filter(|at| *at > now)).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn balance(policy: Policy, nodes: &[&str]) -> Balance {
        let mut balance = Balance::new(policy);
        balance.set_nodes(nodes.iter().map(|node| Node::from(*node)));
        balance
    }

    fn failed(balance: &mut Balance, node: &Node, now: Instant) {
        balance.report(node, Outcome::Failed, true, now, 0);
    }

    #[test]
    fn home_stays_and_is_left_on_error_and_busy() {
        let now = Instant::now();
        let mut balance = balance(Policy::Home, &["a", "b", "c"]);
        let first = balance.pick(now, 0, &[]).unwrap();
        assert_eq!(&*first, "a", "ring order while nothing is known");
        balance.report(&first, Outcome::Answered(Duration::from_millis(5)), true, now, 0);
        assert_eq!(balance.pick(now, 7, &[]).unwrap(), first);
        failed(&mut balance, &first, now);
        let second = balance.pick(now, 7, &[]).unwrap();
        assert_ne!(second, first);
        balance.report(&second, Outcome::Busy(Duration::from_secs(2)), true, now, 0);
        let third = balance.pick(now, 7, &[]).unwrap();
        assert!(third != first && third != second);
    }

    #[test]
    fn ejected_nodes_come_back_slowly() {
        let mut now = Instant::now();
        let mut balance = balance(Policy::Priority, &["a"]);
        for _ in 0..EJECT_AFTER {
            let node = balance.pick(now, 0, &[]).unwrap();
            failed(&mut balance, &node, now);
        }
        assert_eq!(balance.pick(now, 0, &[]), None);
        now = balance.next_available(now).unwrap();
        let node = balance.pick(now, 0, &[]).unwrap();
        assert_eq!(balance.pick(now, 0, &[]), None, "one at a time");
        balance.report(&node, Outcome::Answered(Duration::from_millis(1)), true, now, 0);
        assert!(balance.pick(now, 0, &[]).is_some() && balance.pick(now, 0, &[]).is_some());
        assert_eq!(balance.pick(now, 0, &[]), None, "then two");
    }

    #[test]
    fn ejections_grow_to_a_bound() {
        let mut now = Instant::now();
        let mut balance = balance(Policy::Home, &["a"]);
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            match balance.pick(now, 0, &[]) {
                Some(node) => failed(&mut balance, &node, now),
                None => {
                    let next = balance.next_available(now).unwrap();
                    longest = longest.max(next - now);
                    now = next;
                }
            }
        }
        assert!(longest > EJECT_BASE * 8 && longest <= EJECT_MAX * 2, "{longest:?}");
    }

    #[test]
    fn spread_uses_all_nodes() {
        let now = Instant::now();
        let mut balance = balance(Policy::Spread, &["a", "b", "c"]);
        let mut seen = std::collections::BTreeSet::new();
        for random in 0..60u64 {
            let node = balance.pick(now, random.wrapping_mul(0x9e37_79b9_7f4a_7c15), &[]).unwrap();
            balance.report(&node, Outcome::Answered(Duration::from_millis(2)), true, now, 0);
            seen.insert(node);
        }
        assert_eq!(seen.len(), 3);
    }

    proptest! {
        #[test]
        fn never_picks_what_is_out_and_never_starves(policy in prop::sample::select(vec![Policy::Home, Policy::Spread, Policy::Priority]),
                                                     steps in prop::collection::vec((0u8..4, any::<u64>(), 0u64..3000), 1..200)) {
            let mut now = Instant::now();
            let mut balance = balance(policy, &["a", "b", "c"]);
            let mut out: std::collections::BTreeMap<Node, Instant> = Default::default();
            for (what, random, wait) in steps {
                now += Duration::from_millis(wait);
                let Some(node) = balance.pick(now, random, &[]) else {
                    prop_assert!(balance.next_available(now).is_some(), "none picked and none will come back");
                    now = balance.next_available(now).unwrap();
                    prop_assert!(balance.pick(now, random, &[]).map(|node| balance.report(&node, Outcome::Answered(Duration::ZERO), true, now, 0)).is_some());
                    continue;
                };
                prop_assert!(out.get(&node).is_none_or(|until| now >= *until), "picked a busy node");
                let outcome = match what {
                    0 => Outcome::Answered(Duration::from_millis(random % 100)),
                    1 => { out.insert(node.clone(), now + Duration::from_millis(700)); Outcome::Busy(Duration::from_millis(700)) }
                    2 => Outcome::Refused,
                    _ => Outcome::Failed,
                };
                balance.report(&node, outcome, true, now, random);
            }
        }
    }
}
