//! What `/status` and the gauges show: a copy of the coordinator's numbers, made at every tick.

use serde::Serialize;

use crate::coordinator::sealing::PartitionStatus;
use crate::coordinator::{Coordinator, Counts, Now};
use crate::ledger::staged::GroupState;

/// Names in one list, at most.
const NAMED: usize = 16;

/// `GET /status`. Field names are stable.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Configured name.
    pub collector: String,
    /// This run; empty while it begins.
    pub incarnation: String,
    /// Events in published data files of this run.
    pub committed_events: u64,
    /// Batches in records of this run, seqs without a file among them.
    pub committed_batches: u64,
    /// Bytes of published data files of this run.
    pub committed_bytes: u64,
    /// Batches and seqs that are staged and not committed.
    pub staged_batches: u64,
    /// Groups that take batches.
    pub open_groups: u64,
    /// Groups that are being closed.
    pub closing_groups: u64,
    /// Records written by this run.
    pub commits: u64,
    /// The first number of the log that was not read.
    pub next_record: u64,
    /// Agents and origins that the log names.
    pub agents: u64,
    /// Runs of them.
    pub origins: u64,
    /// Events in dead-letter files of this run.
    pub dead_letters: u64,
    /// Batches in quarantine files of this run.
    pub quarantined_batches: u64,
    /// Batches that were committed before they came.
    pub duplicates: u64,
    /// Groups deleted because another collector committed a batch of theirs.
    pub conflicts: u64,
    /// Groups given up after a storage error.
    pub poisoned_groups: u64,
    /// Drafts that never became a record.
    pub dead_drafts: u64,
    /// Seqs that the log covers more than once: a defect.
    pub covered_twice: u64,
    /// Records whose files are not known to be in their places.
    pub unfinished_records: u64,
    /// Records that this run deleted from the log.
    pub cleaned_records: u64,
    /// Marks that count for no seal since they are ahead of the clock of the collector that committed them.
    pub marks_ahead: u64,
    /// Committed files of this run that the store refuses to bring to their places, for example by a quota.
    pub stuck_files: u64,
    /// Final names of the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stuck: Vec<String>,
    /// Deliver streams.
    pub streams: u64,
    /// Memory held by groups.
    pub buffered_bytes: u64,
    /// Milliseconds since the last own commit, or the start.
    pub since_commit_ms: u64,
    /// Nothing new is taken.
    pub draining: bool,
    /// Files that are joined before a seal.
    pub compaction: crate::compact::Snapshot,
    /// Other runs that have a directory and show signs of life.
    pub living_runs: u64,
    /// Partitions that are not sealed.
    pub open_partitions: u64,
    /// Those that are over and wait for somebody's word.
    pub waiting_partitions: u64,
    /// Those that are complete, or given up, and not sealed yet.
    pub ready_partitions: u64,
    /// The first of both, with what each waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionStatus>,
    /// How far the clock of this machine is ahead of the destination's; below 0: behind.
    pub clock_ahead_ms: i64,
    /// What keeps the log from going on, or else what is wrong with the clock, or with the inventory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Only what keeps the log from going on: with a wrong clock, or without the inventory, commits go on, and the process
    /// is ready.
    #[serde(skip)]
    pub held_up: Option<String>,
}

impl Snapshot {
    /// Before the log was read.
    pub fn beginning(collector: &str) -> Self {
        Self { collector: collector.to_owned(), ..Self::default() }
    }

    /// As things are.
    pub fn of(coordinator: &Coordinator, now: Now, streams: usize, buffered_bytes: u64) -> Self {
        let Counts {
            commits,
            committed_batches,
            committed_events,
            committed_bytes,
            dead_letters,
            quarantined,
            duplicates,
            conflicts,
            poisoned,
            dead_drafts,
            covered_twice,
            records_read: _,
            marks_ahead,
            cleaned_records,
        } = coordinator.counts().clone();
        let status = coordinator.status(now);
        let partitions = coordinator.partition_sums().clone();
        let groups = |wanted: fn(&GroupState) -> bool| {
            coordinator.staged().groups().filter(|(_, group)| wanted(&group.state)).count() as u64
        };
        Self {
            collector: coordinator.settings().collector.clone(),
            incarnation: coordinator.settings().incarnation.clone(),
            committed_events,
            committed_batches,
            committed_bytes,
            staged_batches: coordinator.staged().len() as u64,
            open_groups: groups(|state| *state == GroupState::Open),
            closing_groups: groups(|state| matches!(state, GroupState::Closing { .. })),
            commits,
            next_record: coordinator.next_record(),
            agents: coordinator.committed().agents() as u64,
            origins: coordinator.committed().origins() as u64,
            dead_letters,
            quarantined_batches: quarantined,
            duplicates,
            conflicts,
            poisoned_groups: poisoned,
            dead_drafts,
            covered_twice,
            unfinished_records: coordinator.unfinished_records() as u64,
            cleaned_records,
            marks_ahead,
            stuck_files: coordinator.stuck_files().count() as u64,
            stuck: coordinator.stuck_files().take(NAMED).map(str::to_owned).collect(),
            streams: streams as u64,
            buffered_bytes,
            since_commit_ms: status.since_commit_ms,
            draining: status.draining,
            compaction: coordinator.settings().progress.snapshot(),
            living_runs: coordinator.living_runs() as u64,
            open_partitions: partitions.open,
            waiting_partitions: partitions.waiting,
            ready_partitions: partitions.ready,
            partitions: partitions.named,
            clock_ahead_ms: coordinator.clock_ahead_ms(),
            trouble: (coordinator.trouble().map(str::to_owned))
                .or_else(|| coordinator.clock_trouble())
                .or_else(|| coordinator.seal_trouble().map(str::to_owned)),
            held_up: coordinator.trouble().map(str::to_owned),
        }
    }
}
