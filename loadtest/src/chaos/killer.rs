//! Kills processes of a running cluster at planned points of the flow, starts them again, and measures how long it took
//! until events were committed again. What happens when is decided here; the caller says how far the flow is.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster::Cluster;
use crate::cluster::spec::{Tier, node_name};

/// A flow that is not back after so long has nothing left to carry: the kill came too late.
const GIVE_UP: Duration = Duration::from_secs(60);

/// One planned kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// Which tier.
    pub tier: Tier,
    /// Which process of it; if that one has ended already, the next that runs.
    pub index: usize,
    /// When this many events were committed.
    pub at_committed: u64,
    /// How long it stays away.
    pub down: Duration,
}

/// What came of a kill.
#[derive(Debug, Clone, PartialEq)]
pub struct Killed {
    /// Name of the process.
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// Events committed before it.
    pub committed_before: u64,
    /// From the kill until an event was committed after the process was started again; `None` if none was any more.
    pub back_after: Option<Duration>,
}

#[derive(Debug)]
enum State {
    Waiting,
    Down { at: Instant, index: usize },
    Back { at: Instant, since: Instant, committed: u64 },
}

/// Carries out a plan, one kill after the other.
#[derive(Debug)]
pub struct Killer {
    plan: std::vec::IntoIter<Kill>,
    now: Option<(Kill, State)>,
    done: Vec<Killed>,
}

impl Killer {
    /// Kills in the order of `at_committed`.
    pub fn new(mut plan: Vec<Kill>) -> Self {
        plan.sort_by_key(|kill| kill.at_committed);
        Self { plan: plan.into_iter(), now: None, done: Vec::new() }
    }

    /// Nothing is planned any more and everything runs again.
    pub fn is_done(&self) -> bool {
        self.now.is_none() && self.plan.len() == 0
    }

    /// A process is away at the moment.
    pub fn is_down(&self) -> bool {
        matches!(self.now, Some((_, State::Down { .. })))
    }

    /// What was done so far.
    pub fn killed(&self) -> &[Killed] {
        &self.done
    }

    /// Does what is due. `before_restart` may change what the process comes back with. Returns a sentence when something
    /// happened.
    pub fn tick(
        &mut self,
        cluster: &mut Cluster,
        committed: u64,
        before_restart: &mut dyn FnMut(&mut Cluster, Tier) -> Result<()>,
    ) -> Result<Option<String>> {
        let Some((kill, state)) = self.now.take().or_else(|| self.plan.next().map(|kill| (kill, State::Waiting)))
        else {
            return Ok(None);
        };
        match state {
            State::Waiting => self.kill_if_due(cluster, kill, committed),
            State::Down { at, index } if at.elapsed() < kill.down => {
                self.now = Some((kill, State::Down { at, index }));
                Ok(None)
            }
            State::Down { at, index } => {
                before_restart(cluster, kill.tier)?;
                match kill.tier {
                    Tier::EdgeAgent => cluster.start_agent(index, false)?,
                    tier => {
                        cluster.start(tier, index)?;
                        cluster.wait_ready(tier, index)?;
                    }
                }
                self.now = Some((kill, State::Back { at, since: Instant::now(), committed }));
                Ok(Some(format!("started {} again", node_name(kill.tier, index))))
            }
            State::Back { at, committed: before, .. } if committed > before => {
                let took = at.elapsed();
                if let Some(killed) = self.done.last_mut() {
                    killed.back_after = Some(took);
                }
                Ok(Some(format!("events are committed again {:.1} s after the kill", took.as_secs_f64())))
            }
            State::Back { since, .. } if since.elapsed() > GIVE_UP => {
                Ok(Some(format!("nothing was committed for {GIVE_UP:?} after the restart: there was nothing left")))
            }
            State::Back { .. } => {
                self.now = Some((kill, state));
                Ok(None)
            }
        }
    }

    fn kill_if_due(&mut self, cluster: &mut Cluster, kill: Kill, committed: u64) -> Result<Option<String>> {
        if committed < kill.at_committed.max(1) {
            self.now = Some((kill, State::Waiting));
            return Ok(None);
        }
        let count = cluster.count(kill.tier);
        let candidates = (0..count).map(|step| (kill.index + step) % count);
        let Some(index) = candidates.into_iter().find(|index| cluster.is_running(kill.tier, *index)) else {
            return Ok(Some(format!("no {} runs any more, none was killed", kill.tier.name())));
        };
        cluster.kill(kill.tier, index)?;
        let name = node_name(kill.tier, index);
        let text = format!("killed {name} after {} events were committed", crate::verify::report::group(committed));
        self.done.push(Killed { name, tier: kill.tier, committed_before: committed, back_after: None });
        self.now = Some((kill, State::Down { at: Instant::now(), index }));
        Ok(Some(text))
    }
}

/// Events committed by all collectors together, over their restarts: a counter that fell was begun anew.
#[derive(Debug, Default)]
pub struct CommitCounter {
    last: Vec<u64>,
    before: u64,
}

impl CommitCounter {
    /// Asks all collectors.
    pub fn read(&mut self, cluster: &Cluster) -> u64 {
        let count = cluster.count(Tier::Collector);
        let told = (0..count).map(|index| cluster.status(Tier::Collector, index)?.get("committed_events")?.as_u64());
        self.add(told)
    }

    fn add(&mut self, told: impl Iterator<Item = Option<u64>>) -> u64 {
        for (index, value) in told.enumerate() {
            if self.last.len() <= index {
                self.last.push(0);
            }
            if let Some(value) = value {
                if value < self.last[index] {
                    self.before += self.last[index];
                }
                self.last[index] = value;
            }
        }
        self.before + self.last.iter().sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_begins_anew_loses_nothing() {
        let mut counter = CommitCounter::default();
        assert_eq!(counter.add([Some(5), Some(7)].into_iter()), 12);
        assert_eq!(counter.add([None, Some(8)].into_iter()), 13);
        assert_eq!(counter.add([Some(2), Some(8)].into_iter()), 15);
        assert_eq!(counter.add([Some(4), Some(8)].into_iter()), 17);
    }
}
