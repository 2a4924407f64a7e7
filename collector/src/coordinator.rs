//! The one owner of what is committed and staged. Pure: events and the time go in, actions come out; it never waits.
//!
//! - [`in_flight`]: what files hold of the byte credit,
//! - [`intake`]: what streams bring, and what they are answered,
//! - [`commits`]: rolling, drafting, merging records, and what follows from a commit,
//! - [`keeping`]: housekeeping: signs of life, retiring, checkpoints, cleaning, the end of a drain,
//! - [`sealing`]: compaction and seal of partitions that are complete,
//! - [`upkeep`]: finishing the records of others, status.
//!
//! Keeps I1 (*committed* and *refused* leave only after the commit) and I4 (a batch is in one place here, and leaves
//! with its group when a record of somebody else covers it).

pub mod commits;
pub mod event;
pub mod in_flight;
pub mod intake;
pub mod keeping;
pub mod sealing;
pub mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::ids::{AgentName, BatchId, DatasetName};

pub use event::{Action, AppendAnswer, Delivery, Event, Now, StepGroup};
pub use in_flight::{Credit, InFlight};

use crate::commit::Planner;
use crate::compact::Progress;
use crate::config::compaction::CompactionConfig;
use crate::config::dataset::DatasetConfig;
use crate::housekeeping::clock::ClockWatch;
use crate::housekeeping::keeper::{self, Keeper};
use crate::housekeeping::seen::Seen;
use crate::ledger::{Committed, GroupKey, Staged, StreamId};
use crate::log::View;
use crate::log::view::{Finish, PartitionKey};
use crate::roll::{GroupLimits, TotalLimits};
use sealing::Sealing;

/// What does not change while it runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configured name.
    pub collector: String,
    /// This run.
    pub incarnation: String,
    /// Declared datasets.
    pub datasets: HashMap<DatasetName, Arc<DatasetConfig>>,
    /// Limits of a group, unless its dataset says otherwise.
    pub roll: GroupLimits,
    /// Limits of all groups together.
    pub total: TotalLimits,
    /// Groups that exist at once, open or not: past that, new partitions are answered busy.
    pub max_groups: usize,
    /// How long a commit waits for a close.
    pub close_wait: Duration,
    /// How long an open that somebody waits for may lie here before a record is written for it.
    pub opens_within: Duration,
    /// How often the log is read while something is staged.
    pub tail_every: Duration,
    /// Records between two checkpoints.
    pub checkpoint_every: u64,
    /// How long a record of somebody else is left to its owner before its files are looked after.
    pub finish_after: Duration,
    /// Longest drain; past half of it no last record is written.
    pub drain_deadline: Duration,
    /// What is kept how long.
    pub housekeeping: keeper::Limits,
    /// How far the wall clock may be from the store's; none for a clock that is not the system's.
    pub clock_within: Option<Duration>,
    /// How often open partitions are looked at.
    pub seal_every: Duration,
    /// An inventory is configured; does it name all agents?
    pub inventory: Option<bool>,
    /// What is joined before a seal.
    pub compaction: CompactionConfig,
    /// How far compactions are.
    pub progress: Progress,
}

/// Gives 16 random bytes, other ones each time.
pub type IdSource = Box<dyn FnMut() -> [u8; 16] + Send>;

/// Counters since the start; gauges are read from the coordinator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Own records.
    pub commits: u64,
    /// Batches in own records, seqs without a file among them.
    pub committed_batches: u64,
    /// Events in published data files of own records.
    pub committed_events: u64,
    /// Bytes of published data files.
    pub committed_bytes: u64,
    /// Events in dead-letter files of own records.
    pub dead_letters: u64,
    /// Batches in own quarantine files.
    pub quarantined: u64,
    /// Batches answered committed without being staged.
    pub duplicates: u64,
    /// Groups deleted because a record of somebody else covers a batch of theirs.
    pub conflicts: u64,
    /// Groups given up after a storage error.
    pub poisoned: u64,
    /// Drafts that never became a record.
    pub dead_drafts: u64,
    /// Seqs that the log covers more than once: anything but 0 is a defect.
    pub covered_twice: u64,
    /// Records of others that were read.
    pub records_read: u64,
    /// Marks in records that this run read or wrote that count for no seal, since a clock is ahead.
    pub marks_ahead: u64,
    /// Records that this run deleted from the log.
    pub cleaned_records: u64,
}

/// A record of which not every file is known to be in its place.
#[derive(Debug, Clone)]
struct Unfinished {
    finish: Finish,
    not_before: Instant,
}

/// An answer that leaves when the files of the record are in their places.
#[derive(Debug)]
struct Answered {
    id: BatchId,
    waiters: Vec<StreamId>,
    refused: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy)]
struct Retreat {
    failures: u32,
    until: Instant,
}

/// What the log said when this run began.
#[derive(Debug, Default)]
pub struct Replayed {
    /// All of it.
    pub view: View,
    /// End of the checkpoint.
    pub checkpoint: u64,
    /// Records behind the checkpoint, with what may be left to do for each.
    pub records: Vec<(u64, Finish)>,
    /// The sign of life that was shown meanwhile.
    pub seen: Seen,
}

/// See the module.
pub struct Coordinator {
    settings: Settings,
    view: View,
    staged: Staged,
    in_flight: InFlight,
    planner: Planner,
    counts: Counts,
    ids: IdSource,
    next_group: u64,
    answers: Vec<Answered>,
    retreats: HashMap<GroupKey, Retreat>,
    unfinished: BTreeMap<u64, Unfinished>,
    keeper: Keeper,
    clock: ClockWatch,
    /// Agents of which a mark was too far ahead, and when that was last said.
    ahead_told: HashMap<AgentName, Instant>,
    sealing: Sealing,
    /// What the own record asks for besides its files: done when those are in their places.
    publishing: Finish,
    /// A retired directory that nobody can rename out of any more, with the markers that lay in it.
    fenced: Option<(String, Vec<PartitionKey>)>,
    /// When the end of the log was last seen.
    end_seen: Instant,
    /// When the step under way was sent.
    step_sent: Instant,
    chore: bool,
    /// What the sweep under way was given.
    sweeping: BTreeMap<u64, Finish>,
    next_sweep: Instant,
    last_checkpoint: u64,
    last_tail: Instant,
    last_commit: Instant,
    draft_begun: Instant,
    /// Since when the planner could commit a closed group.
    closed_since: Option<Instant>,
    over: bool,
    draining: bool,
    drain_begun: Instant,
    /// Since when everything is committed after the drain began.
    leaving: Option<Instant>,
    /// The record that says so is in the log.
    left: bool,
    drained: bool,
    stopped: bool,
    actions: Vec<Action>,
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("incarnation", &self.settings.incarnation)
            .field("staged", &self.staged.len())
            .field("planner", &self.planner)
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    /// Begins behind what was replayed. `staging` is the own directory, for messages.
    pub fn new(settings: Settings, replayed: Replayed, staging: String, ids: IdSource, now: Instant) -> Self {
        let next = replayed.view.next();
        let keeper = Keeper::new(&settings.incarnation, settings.housekeeping, replayed.seen, now);
        let sealing = Sealing::new(settings.inventory, now);
        let clock = ClockWatch::new(settings.clock_within);
        let mut coordinator = Self {
            settings,
            view: replayed.view,
            staged: Staged::default(),
            in_flight: InFlight::default(),
            planner: Planner::new(next, staging),
            counts: Counts::default(),
            ids,
            next_group: 0,
            answers: Vec::new(),
            retreats: HashMap::new(),
            unfinished: BTreeMap::new(),
            keeper,
            clock,
            ahead_told: HashMap::new(),
            sealing,
            publishing: Finish::default(),
            fenced: None,
            end_seen: now,
            step_sent: now,
            chore: false,
            sweeping: BTreeMap::new(),
            next_sweep: now,
            last_checkpoint: replayed.checkpoint,
            last_tail: now,
            last_commit: now,
            draft_begun: now,
            closed_since: None,
            over: false,
            draining: false,
            drain_begun: now,
            leaving: None,
            left: false,
            drained: false,
            stopped: false,
            actions: Vec::new(),
        };
        for (n, finish) in replayed.records {
            coordinator.add_unfinished(n, finish, now);
        }
        coordinator
    }

    /// Takes one event; what is to be done comes back in order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        if self.stopped || self.drained {
            return Vec::new();
        }
        if !self.check_age(now.instant) {
            return std::mem::take(&mut self.actions);
        }
        let only_intake = matches!(event, Event::Arrived { .. } | Event::Unanswered { .. } | Event::Appended { .. });
        match event {
            Event::Arrived { stream, delivery } => self.arrived(stream, *delivery, now),
            Event::Unanswered { stream, keys } => self.unanswered(stream, &keys),
            Event::Roll { stream } => self.staged.request_roll(stream),
            Event::Gone { stream } => self.staged.forget_stream(stream),
            Event::Appended { group, id, answer } => self.appended(group, &id, answer, now),
            Event::Closed { group, result } => self.closed(group, result, now.instant),
            Event::Stepped(outcome) => self.stepped(*outcome, now),
            Event::Chored(done) => self.chored(*done, now.instant),
            Event::Compacted { key, result } => self.compacted(&key, result, now),
            Event::Inventory(names) => self.inventory(names, now),
            Event::Shown { seen, shown } => self.shown(seen, &shown, now.instant),
            Event::StoreClock { asked, unix_ms } => self.clock.compare(asked, unix_ms, now),
            Event::Measured { groups, over, credit } => {
                self.over = over;
                self.in_flight.set_credit(credit);
                for StepGroup { number, bytes, buffered } in groups {
                    self.staged.measured(number, bytes, buffered);
                }
            }
            Event::Tick => {}
            Event::Drain => (self.draining, self.drain_begun) = (true, now.instant),
        }
        // What is due is found at the next tick; a burst of batches does not look for it each time.
        if !only_intake {
            self.advance(now);
        }
        std::mem::take(&mut self.actions)
    }

    fn advance(&mut self, now: Now) {
        if self.stopped {
            return;
        }
        self.roll(now.instant);
        self.plan(now);
        self.end_drain(now);
        // A draft of the last record may be under way still: whoever was retired by another one renames it no more.
        if self.drained {
            return;
        }
        if let Some(step) = self.planner.poll(now.instant) {
            self.step_sent = now.instant;
            self.actions.push(Action::Step(step));
        }
        self.show(now);
        self.next_chore(now);
    }

    /// What is staged.
    pub fn staged(&self) -> &Staged {
        &self.staged
    }

    /// What the log says, as far as it was read.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What is committed.
    pub fn committed(&self) -> &Committed {
        self.view.committed()
    }

    /// Counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What is configured.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
