//! From an open partition to a sealed one: nothing unfinished in it, its small files joined, nothing unfinished again,
//! then the seal and its marker. Nobody waits for the other collectors: the log decides, and a draft that it overtakes
//! dies.
//!
//! Partitions are shared out among the runs that live, so that one works at each in the ordinary case; what its run does
//! not come to is taken by any other after a while.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use proto::ids::AgentName;
use proto::wire;
use proto::wire::commit_record::Action as Said;
use serde::Serialize;

use super::{Action, Coordinator, Now};
use crate::chores::file_of;
use crate::commit::CommitId;
use crate::compact::{self, CompactError, Plan};
use crate::housekeeping;
use crate::log::view::PartitionKey;
use crate::log::view::partitions::{self, OpenPartition};
use crate::seal::{self, Inventory, Marker, Rule, Verdict, Wait};

/// Rounds of compaction before a seal; attempts that fail for now do not count among them.
const ROUNDS: u32 = 2;
/// Attempts of one round.
const ATTEMPTS: u32 = 5;
/// Partitions in one seal record.
const AT_ONCE: usize = 64;
/// Numbers of groups that one compaction may use.
const NUMBERS: u64 = 1 << 20;
/// Partitions, and reasons of each, that `/status` names.
const NAMED: usize = 50;
const NAMED_WAITS: usize = 10;
/// After this many times the silence of a dead run a partition is anybody's.
const PATIENCE: u32 = 2;

/// What an open partition waits for, for `/status`. Field names are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// Its directory.
    pub partition: String,
    /// `waits`, `compacting`, `ready`.
    pub state: &'static str,
    /// When it is sealed without what is missing, milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<i64>,
    /// What is missing, whose, and what to do.
    pub waits: Vec<WaitStatus>,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitStatus {
    /// Whose; absent where no agent is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// One word.
    pub reason: &'static str,
    /// Since when nothing can be said of it, milliseconds since the epoch.
    pub since_unix_ms: i64,
    /// What to do.
    pub advice: String,
}

/// Sums over open partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionSums {
    /// Not sealed.
    pub open: u64,
    /// Over, and somebody's word is missing.
    pub waiting: u64,
    /// Wait for a compaction or a record.
    pub ready: u64,
    /// The first of them, as far as they are named.
    pub named: Vec<PartitionStatus>,
}

/// What is known of partitions on their way.
#[derive(Debug)]
pub struct Sealing {
    inventory: Inventory,
    /// None: none is configured. False: it was never read.
    inventory_read: Option<bool>,
    next: Instant,
    ready_since: HashMap<PartitionKey, Instant>,
    tries: HashMap<PartitionKey, Tries>,
    compacting: Option<PartitionKey>,
    compacted: Vec<wire::Compact>,
    sums: PartitionSums,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    rounds: u32,
    failed: u32,
}

impl Sealing {
    /// Nothing is known yet. `inventory`: one is configured, and whether it names all agents.
    pub fn new(inventory: Option<bool>, now: Instant) -> Self {
        Self {
            inventory: Inventory::new(inventory.unwrap_or_default()),
            inventory_read: inventory.map(|_| false),
            next: now,
            ready_since: HashMap::new(),
            tries: HashMap::new(),
            compacting: None,
            compacted: Vec::new(),
            sums: PartitionSums::default(),
        }
    }

    /// Agents that are expected.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// As of the last look.
    pub fn sums(&self) -> &PartitionSums {
        &self.sums
    }
}

impl Coordinator {
    pub(super) fn inventory(&mut self, names: BTreeSet<AgentName>, now: Now) {
        self.sealing.inventory.update(names, now.unix_ms);
        self.sealing.inventory_read = Some(true);
    }

    /// A compaction or a seal that is due now.
    pub(super) fn seal_due(&mut self, now: Now) -> Option<Said> {
        while let Some(compact) = self.sealing.compacted.pop() {
            if housekeeping::compact_holds(&compact, &self.view) {
                return Some(Said::Compact(compact));
            }
            self.abandon_compaction(compact);
        }
        let ready = self.count_partitions(now)?;
        if self.sealing.inventory_read == Some(false) {
            // Whoever it names may be missing.
            return None;
        }
        let is_ready = |key: &PartitionKey| ready.iter().any(|(ready, _)| ready == key);
        self.sealing.ready_since.retain(|key, _| is_ready(key));
        self.sealing.tries.retain(|key, _| is_ready(key));
        let mut partitions = Vec::new();
        for (key, seal) in ready {
            let since = *self.sealing.ready_since.entry(key.clone()).or_insert(now.instant);
            if !self.is_mine(&key, since, now.instant) || self.is_unfinished(&key) {
                continue;
            }
            if let Some(plan) = self.compaction_of(&key) {
                self.begin_compaction(plan);
            } else if self.sealing.compacting.as_ref() != Some(&key) && partitions.len() < AT_ONCE {
                partitions.push(seal);
            }
        }
        if partitions.is_empty() {
            return None;
        }
        // There may be more.
        self.sealing.next = now.instant;
        Some(Said::Seal(wire::Seal { partitions }))
    }

    /// Notes how things stand, if that is due; what is ready.
    pub(super) fn count_partitions(&mut self, now: Now) -> Option<Vec<(PartitionKey, wire::PartitionSeal)>> {
        if now.instant < self.sealing.next {
            return None;
        }
        self.sealing.next = now.instant + self.settings.seal_every;
        let (ready, sums) = self.judge(now);
        self.sealing.sums = sums;
        Some(ready)
    }

    /// What is ready, and how things stand.
    fn judge(&self, now: Now) -> (Vec<(PartitionKey, wire::PartitionSeal)>, PartitionSums) {
        let rule = self.rule();
        let (mut ready, mut sums) = (Vec::new(), PartitionSums::default());
        for (key, _, _) in self.view.partitions().open() {
            sums.open += 1;
            let status = match seal::evaluate(&rule, &self.view, key, now.unix_ms) {
                Verdict::NotJudged | Verdict::NotYet { .. } => continue,
                Verdict::Waits { until_unix_ms, for_ } => {
                    sums.waiting += 1;
                    status(key, "waits", Some(until_unix_ms), &for_)
                }
                Verdict::Ready(seal) => {
                    sums.ready += 1;
                    ready.push((key.clone(), seal));
                    let compacting = self.sealing.compacting.as_ref() == Some(key);
                    status(key, if compacting { "compacting" } else { "ready" }, None, &[])
                }
            };
            if sums.named.len() < NAMED {
                sums.named.push(status);
            }
        }
        (ready, sums)
    }

    fn rule(&self) -> Rule<'_> {
        Rule { datasets: &self.settings.datasets, inventory: &self.sealing.inventory }
    }

    /// A seal draft after another record was read.
    pub(super) fn seal_holds(&self, seal: &wire::Seal, now: Now) -> bool {
        seal::holds(&self.rule(), &self.view, seal, now.unix_ms)
    }

    fn is_mine(&self, key: &PartitionKey, ready_since: Instant, now: Instant) -> bool {
        let dir = key.dir();
        let weight = |name: &str| (weigh(&dir, name), name.to_owned());
        let own = weight(&self.settings.incarnation);
        let patience = self.keeper.limits().retire_after * PATIENCE;
        self.keeper.life().living().all(|other| weight(other) < own)
            || now.saturating_duration_since(ready_since) >= patience
    }

    /// Is a file of this partition not known to be in its place, or one there that is to be deleted?
    fn is_unfinished(&self, key: &PartitionKey) -> bool {
        let dir = format!("{}/", key.dir());
        self.unfinished.values().any(|row| {
            let finish = &row.finish;
            finish.markers.contains(key)
                || finish.remove.iter().any(|path| path.starts_with(&dir))
                || finish.bring.iter().any(|file| file_of(file, key))
        })
    }

    /// The next round for a partition; none when nothing is worth it, or enough was tried.
    fn compaction_of(&self, key: &PartitionKey) -> Option<Plan> {
        let tries = self.sealing.tries.get(key).copied().unwrap_or_default();
        if tries.rounds >= ROUNDS || tries.failed >= ATTEMPTS || self.sealing.compacting.as_ref() == Some(key) {
            return None;
        }
        let dataset = self.settings.datasets.get(&key.dataset)?;
        let open: &OpenPartition = self.view.partitions().open().find(|(of, _, _)| *of == key)?.2;
        let progress = &self.settings.progress;
        compact::plan_except(dataset, key, open, &self.settings.compaction, |path| progress.is_refused(path))
    }

    /// One at a time; a partition whose turn it is not yet is looked at again soon.
    fn begin_compaction(&mut self, plan: Plan) {
        if self.sealing.compacting.is_some() {
            return;
        }
        self.sealing.compacting = Some(plan.key.clone());
        let numbers = self.next_group;
        self.next_group += NUMBERS;
        self.actions.push(Action::Compact { plan: Box::new(plan), numbers });
    }

    pub(super) fn compacted(&mut self, key: &PartitionKey, result: Result<wire::Compact, CompactError>, now: Now) {
        self.sealing.compacting = None;
        self.sealing.next = now.instant;
        let tries = self.sealing.tries.entry(key.clone()).or_default();
        match result {
            Ok(compact) => {
                tries.rounds += 1;
                self.sealing.compacted.push(compact);
            }
            Err(error) if error.is_transient() => {
                tries.failed += 1;
                self.sealing.next = now.instant + self.settings.seal_every;
            }
            Err(_) => tries.rounds = ROUNDS,
        }
    }

    /// Its draft will never be a record.
    pub(super) fn abandon_compaction(&mut self, compact: wire::Compact) {
        if let Ok(key) = partitions::key(0, &compact.dataset, compact.partition.as_ref())
            && let Some(tries) = self.sealing.tries.get_mut(&key)
        {
            tries.rounds = tries.rounds.saturating_sub(1);
            tries.failed += 1;
        }
        self.actions.push(Action::AbandonCompaction(Box::new(compact)));
    }

    /// The markers of these partitions as the log has them now.
    pub(super) fn markers<'a>(
        &mut self,
        keys: impl IntoIterator<Item = &'a PartitionKey>,
    ) -> HashMap<PartitionKey, (CommitId, Marker)> {
        let mut markers = HashMap::new();
        for key in keys {
            let Some(marker) = seal::marker(&self.view, key) else { continue };
            let marker = match self.settings.datasets.get(&key.dataset) {
                Some(dataset) => marker.readable_as(dataset),
                None => marker,
            };
            markers.insert(key.clone(), (CommitId((self.ids)()), marker));
        }
        markers
    }

    /// What keeps every partition from being sealed, if something does: commits go on all the same.
    pub fn seal_trouble(&self) -> Option<&'static str> {
        (self.sealing.inventory_read == Some(false)).then_some(
            "nothing is sealed before the inventory was read once; if it cannot be, the log of this process says why: put a \
             readable file where housekeeping.inventory names it",
        )
    }

    /// Open partitions, as of the last look.
    pub fn partition_sums(&self) -> &PartitionSums {
        self.sealing.sums()
    }
}

fn status(key: &PartitionKey, state: &'static str, until_unix_ms: Option<i64>, waits: &[Wait]) -> PartitionStatus {
    let waits = waits.iter().take(NAMED_WAITS).map(|wait| WaitStatus {
        agent: wait.agent.as_ref().map(ToString::to_string),
        reason: seal::wait::word(wait.reason),
        since_unix_ms: wait.since_unix_ms,
        advice: wait.advice.clone(),
    });
    PartitionStatus { partition: key.dir(), state, until_unix_ms, waits: waits.collect() }
}

/// Rendezvous hashing: the same everywhere, and a run that comes or goes moves only its share.
fn weigh(partition: &str, incarnation: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in partition.bytes().chain([0]).chain(incarnation.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // The last bytes reach only the low bits otherwise.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// How often open partitions are looked at.
pub const SEAL_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::intake::tests::coordinator;
    use crate::status::Snapshot;

    /// Somebody whom it names may be missing; what waits is shown all the same.
    #[test]
    fn without_the_inventory_partitions_are_counted_and_not_sealed() {
        let mut owner = coordinator();
        let mut at = Now { instant: owner.sealing.next, unix_ms: 10 * 86_400_000 };
        owner.sealing = Sealing::new(Some(false), at.instant);
        let file = wire::PublishedFile {
            kind: wire::FileKind::Data as i32,
            r#final: "d/event_date=1970-01-02/run-0.log.zst".into(),
            dataset: "d".into(),
            partition: Some(wire::Partition { date: 1, hour: None }),
            ..Default::default()
        };
        let publish = wire::Publish { files: vec![file], covers: Vec::new() };
        let record = wire::CommitRecord { action: Some(Said::Publish(publish)), ..Default::default() };
        owner.view.apply(0, &record).unwrap();
        assert_eq!(owner.seal_due(at), None);
        assert_eq!((owner.partition_sums().open, owner.partition_sums().ready), (1, 1));
        let shown = Snapshot::of(&owner, at, 0, 0);
        assert_eq!((shown.open_partitions, shown.ready_partitions, shown.held_up), (1, 1, None));
        assert!(shown.trouble.is_some_and(|trouble| trouble.contains("before the inventory was read")));
        owner.inventory(BTreeSet::new(), at);
        at.instant += owner.settings.seal_every;
        assert!(matches!(owner.seal_due(at), Some(Said::Seal(_))));
        assert_eq!(Snapshot::of(&owner, at, 0, 0).trouble, None);
    }

    #[test]
    fn partitions_are_shared_out_evenly() {
        let runs = ["col-1-a", "col-2-b", "col-3-c"];
        let mut shares = [0; 3];
        for day in 0..300 {
            let dir = format!("d/event_date=2026-{day}");
            let best = (0..3).max_by_key(|run| weigh(&dir, runs[*run])).unwrap();
            shares[best] += 1;
        }
        assert!(shares.iter().all(|share| (70..130).contains(share)), "{shares:?}");
    }
}
