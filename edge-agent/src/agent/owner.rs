//! The owner thread: tails, pipelines, the outbox and the run. It blocks, and nobody else touches any of them.
//!
//! One step: take messages, read, cut what is due, append, ONE fdatasync, hand the batches over for sending. A step is
//! given the time and never waits; only [`Owner::run`] does.
//! Invariants: a batch is handed over only after the sync (I2); a full outbox stops reading (I7); a mark or close is
//! appended only after everything that was noted is stored.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use common::admin::Health;
use common::reserve::Reserve;
use proto::ids::Origin;
use proto::wire;
use tokio::sync::mpsc::UnboundedSender;

use super::drain::{Drain, Ending};
use super::source::{Batching, Source};
use super::space::Space;
use crate::outbox::room::{FileSystemProbe, Full, Limits, RESERVE_BYTES, Room};
use crate::outbox::state_dir::StateDir;
use crate::outbox::{Outbox, OutboxError, Stored, rejected};
use crate::pipeline::Declarations;
use crate::run::Run;
use crate::run::clock::{AggregatorClock, own_clock_ms};
use crate::run::watch::Watch;
use crate::ship::messages::{FromShip, ToShip};
use crate::status::Gauges;

/// How the owner works.
#[derive(Debug, Clone)]
pub struct OwnerOptions {
    /// When chunks are cut.
    pub batching: Batching,
    /// Limits of the outbox.
    pub limits: Limits,
    /// Read to the end, drain, leave.
    pub once: bool,
    /// Say *left* at a stop.
    pub leave_on_stop: bool,
    /// Longest drain after a stop.
    pub drain_deadline: Duration,
    /// Batches are acked when committed.
    pub until_committed: bool,
    /// How long an aggregator is waited for before an origin is minted by own clocks.
    pub contact_timeout: Duration,
    /// Between marks.
    pub mark_interval: Duration,
    /// Longest sleep while nothing can be read.
    pub idle: Duration,
}

/// How the agent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything asked for was done.
    Clean,
    /// It ended, but not everything was done: what is missing, for people.
    Unfinished(Vec<String>),
}

/// Why the owner stopped.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The outbox failed.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The state directory failed.
    #[error(transparent)]
    StateDir(#[from] crate::outbox::state_dir::StateDirError),
    /// Another process appends to this run's origin.
    #[error(
        "another process sends under this run's own origin {origin}: a snapshot of this machine was started while the \
         agent ran; stop one of the two machines, or give the copy its own `name` and an empty state_dir, then start \
         this agent again"
    )]
    Twin {
        /// The origin.
        origin: Origin,
    },
    /// Bytes to be rejected could not be kept.
    #[error("keeping a rejected batch under {path} failed: {detail}")]
    Rejected {
        /// The directory.
        path: PathBuf,
        /// Why.
        detail: String,
    },
}

/// Everything the owner owns.
pub struct Owner {
    pub(super) options: OwnerOptions,
    pub(super) state_dir: StateDir,
    pub(super) outbox: Outbox,
    pub(super) sources: Vec<Source>,
    pub(super) declarations: Declarations,
    pub(super) clock: AggregatorClock,
    pub(super) to_ship: UnboundedSender<ToShip>,
    pub(super) inbox: Receiver<FromShip>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) health: Health,
    pub(super) probe: FileSystemProbe,
    pub(super) run: Option<Run>,
    pub(super) drain: Drain,
    pub(super) contact: Option<u64>,
    /// Until then an aggregator is waited for.
    pub(super) contact_until: Instant,
    pub(super) origin_bits: u128,
    /// The newest origin of the outbox when this run began.
    pub(super) before: Option<Origin>,
    pub(super) watch: Option<Watch>,
    pub(super) undeclared: bool,
    pub(super) refused: bool,
    /// Batches were released since the last look.
    pub(super) released: bool,
    pub(super) last_answer: Instant,
    pub(super) silent: bool,
    pub(super) full: bool,
    /// The limit that was said last.
    pub(super) full_limit: Option<&'static str>,
    /// Bytes of what became voids, which nobody has looked at yet.
    pub(super) rejected_bytes: u64,
    pub(super) next_upkeep: Instant,
    pub(super) space: Space,
}

/// How often numbers and space are looked after.
const UPKEEP: Duration = Duration::from_secs(1);

/// Without any answer for this long the agent says that it is not ready.
const SILENCE: Duration = Duration::from_secs(90);

/// What the owner is made of.
pub struct Parts {
    /// How it works.
    pub options: OwnerOptions,
    /// Locked.
    pub state_dir: StateDir,
    /// Recovered.
    pub outbox: Outbox,
    /// Opened with their saved positions.
    pub sources: Vec<Source>,
    /// As received last.
    pub declarations: Declarations,
    /// To the shipping task.
    pub to_ship: UnboundedSender<ToShip>,
    /// From it, and the stop.
    pub inbox: Receiver<FromShip>,
    /// Numbers.
    pub gauges: Arc<Gauges>,
    /// Readiness.
    pub health: Health,
    /// Random bits of this run's origin.
    pub origin_bits: u128,
}

/// What a step leaves to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The next step: when a message comes, or after this long.
    Wait(Duration),
    /// None: the drain is over.
    Over(End),
}

impl Owner {
    /// Puts the parts together.
    pub fn new(parts: Parts, now: Instant) -> Self {
        let Parts { options, state_dir, outbox, sources, declarations, to_ship, inbox, gauges, health, origin_bits } =
            parts;
        Self {
            drain: Drain::new(options.once),
            contact_until: now + options.contact_timeout,
            origin_bits,
            options,
            space: Space::new(Reserve::at(state_dir.reserve(), RESERVE_BYTES)),
            state_dir,
            outbox,
            sources,
            declarations,
            clock: AggregatorClock::default(),
            to_ship,
            inbox,
            gauges,
            health,
            probe: FileSystemProbe::default(),
            run: None,
            contact: None,
            before: None,
            watch: None,
            undeclared: false,
            refused: false,
            released: false,
            last_answer: now,
            silent: false,
            full: false,
            full_limit: None,
            rejected_bytes: 0,
            next_upkeep: now,
        }
    }

    /// Works until the drain is over.
    pub fn run(mut self) -> Result<End, OwnerError> {
        loop {
            match self.step(Instant::now())? {
                Step::Over(end) => return Ok(end),
                Step::Wait(longest) => self.wait(longest)?,
            }
        }
    }

    /// One step at `now`. The run begins once an aggregator was heard, or was waited for long enough.
    pub fn step(&mut self, now: Instant) -> Result<Step, OwnerError> {
        self.receive(now)?;
        self.look_for_space()?;
        if self.run.is_none() {
            if let Some(wait) = self.awaits_contact(now) {
                return Ok(Step::Wait(wait));
            }
            if !self.has_space()? {
                let nothing =
                    || End::Unfinished(vec!["the file system of state_dir is full: nothing was begun".into()]);
                let stops = self.drain.is_stopping();
                return Ok(if stops { Step::Over(nothing()) } else { Step::Wait(self.options.idle) });
            }
            self.begin(now)?;
        }
        let progressed = self.turn(now)?;
        self.marks(now)?;
        self.upkeep(now)?;
        if let Ending::Over(end) = self.drain_step(now)? {
            self.tidy(now)?;
            self.refresh_gauges(now);
            return Ok(Step::Over(end));
        }
        Ok(Step::Wait(if progressed { Duration::ZERO } else { self.sleep(now) }))
    }

    /// One round of reading and appending. True if something was read. What is written behind the close is the next
    /// run's.
    fn turn(&mut self, now: Instant) -> Result<bool, OwnerError> {
        if self.drain.is_closed() {
            return Ok(false);
        }
        let mut progressed = false;
        let (batching, flush) = (self.options.batching, self.drain.is_flushing());
        let now_us = self.clock.now_or_own_ms(now) * 1000;
        let mut undeclared = false;
        let mut full = None;
        for at in 0..self.sources.len() {
            let due = self.sources[at].is_due(batching, flush, now);
            progressed |= self.sources[at].poll(batching, due, now) && self.drain.is_reading();
            if !self.sources[at].is_due(batching, flush, now) {
                continue;
            }
            let wanted = self.sources[at].raw_bytes() as u64;
            let room = if self.has_space()? { self.room(wanted, now) } else { Room::Full(Full::NoSpace) };
            if let Room::Full(limit) = room {
                full = Some(limit);
                continue;
            }
            match self.sources[at].cut(now_us, &self.declarations) {
                Ok(chunk) => {
                    self.count(&chunk);
                    self.outbox.append_chunk(self.origin(), chunk)?;
                    progressed = true;
                }
                Err(error) => {
                    undeclared = true;
                    self.say_undeclared(at, &error.to_string());
                }
            }
        }
        self.set_full(full);
        self.set_undeclared(undeclared);
        self.commit()?;
        Ok(progressed)
    }

    /// This run's origin; only asked for after [`begin`](Self::begin).
    pub(super) fn origin(&self) -> Origin {
        self.run.as_ref().map_or(Origin([0; 16]), Run::origin)
    }

    pub(super) fn send(&self, stored: Vec<Stored>) {
        if !stored.is_empty() {
            self.tell(ToShip::Send(stored));
        }
    }

    pub(super) fn tell(&self, message: ToShip) {
        // The shipping task ends only after this thread; if it died, the process is on its way down already.
        let _ = self.to_ship.send(message);
    }

    fn set_undeclared(&mut self, undeclared: bool) {
        if undeclared != self.undeclared {
            self.undeclared = undeclared;
            self.tell(ToShip::Hurry(undeclared));
            if !undeclared {
                self.health.set_part("dataset", true, "");
                self.gauges.say("undeclared", None);
            }
        }
    }

    fn say_undeclared(&self, at: usize, error: &str) {
        if !self.undeclared {
            tracing::warn!(source = self.sources[at].name(), error, "reading waits for a declaration");
        }
        let text = format!("source {}: {error}: declare the dataset at the collectors", self.sources[at].name());
        self.gauges.say("undeclared", Some(text.clone()));
        self.health.set_part("dataset", false, text);
    }

    fn count(&self, chunk: &crate::outbox::ChunkAppend) {
        let gauges = &self.gauges;
        for count in &chunk.audit {
            gauges.read_events.add(count.read);
            gauges.filtered_events.add(count.filtered);
            gauges.published_events.add(count.published);
            gauges.dead_lettered_events.add(count.dead_lettered);
        }
        for (data, payload) in &chunk.batches {
            gauges.cut_batches.add(1);
            gauges.cut_bytes.add(payload.len() as u64);
            gauges.read_bytes.add(data.raw_bytes);
        }
        gauges.destroyed_bytes.add(chunk.destroyed.iter().map(|gone| gone.bytes).sum());
    }

    /// Gate time-out, space, numbers: about once per second.
    fn upkeep(&mut self, now: Instant) -> Result<(), OwnerError> {
        if self.run.as_mut().is_some_and(|run| run.gate_timed_out(now)) {
            tracing::warn!("the open of this run was not seen committed in time, sending all the same");
            self.tell(ToShip::OpenGate);
        }
        if self.full && std::mem::take(&mut self.released) {
            // Somebody waits for the space.
            self.tidy(now)?;
        }
        if now < self.next_upkeep {
            return Ok(());
        }
        self.next_upkeep = now + UPKEEP;
        self.outbox.saw_time(self.clock.now_ms(now).unwrap_or(0));
        if self.options.until_committed {
            self.let_go(now);
        }
        let silent = now.saturating_duration_since(self.last_answer) > SILENCE;
        if std::mem::replace(&mut self.silent, silent) != silent {
            let reason = "no aggregator has answered for more than 90 s: check [aggregators] and the network; what is \
                          read stays in the outbox";
            self.health.set_part("aggregators", !silent, reason);
        }
        self.tidy(now)?;
        self.upkeep_space(now)?;
        if self.full {
            self.count_rejected();
        }
        self.refresh_gauges(now);
        Ok(())
    }

    pub(super) fn count_rejected(&mut self) {
        self.rejected_bytes = rejected::bytes(self.outbox.rejected_dir());
    }

    /// Over 80 % full, the oldest batches that an aggregator has stored are let go: `committed` never holds back more
    /// than `durable` would.
    fn let_go(&mut self, now: Instant) {
        let Ok(fs) = self.probe.get(&self.state_dir.outbox(), now) else { return };
        let (used, most) = (self.outbox.total_bytes(), self.options.limits.capacity(fs) / 5 * 4);
        if used <= most {
            return;
        }
        let batches = self.outbox.index().oldest_durable(used - most);
        if batches.is_empty() {
            return;
        }
        for (origin, seq) in &batches {
            self.outbox.release(*origin, &[*seq].into_iter().collect());
        }
        self.gauges.let_go_batches.add(batches.len() as u64);
        tracing::warn!(
            batches = batches.len(),
            used_bytes = used,
            "outbox is over 80 % full: stored batches are let go before they are committed"
        );
        self.tell(ToShip::LetGo(batches));
    }

    fn refresh_gauges(&mut self, now: Instant) {
        let gauges = self.gauges.clone();
        gauges.outbox_bytes.set(self.outbox.total_bytes());
        gauges.rejected_bytes.set(self.rejected_bytes);
        if let Ok(fs) = self.probe.get(&self.state_dir.outbox(), now) {
            gauges.outbox_capacity_bytes.set(self.options.limits.capacity(fs));
        }
        let (mut unread, mut held, mut files, mut problems) = (0, 0, 0, Vec::new());
        let (mut oldest, mut to_loss) = (None, u64::MAX);
        for source in &self.sources {
            let stats = source.stats();
            unread += stats.unread_bytes + source.raw_bytes() as u64;
            held += stats.held_bytes;
            files += stats.files as u64;
            oldest = oldest.max(stats.oldest_held);
            if let Some(age) = stats.oldest_held {
                to_loss = to_loss.min(source.hold_age().saturating_sub(age).as_secs());
            }
            problems.extend(stats.problems.iter().map(|problem| format!("source {}: {problem}", source.name())));
        }
        gauges.unread_bytes.set(unread);
        gauges.held_bytes.set(held);
        gauges.files.set(files);
        gauges.seconds_to_loss.set(to_loss);
        gauges.oldest_held_seconds.set(oldest.map_or(0, |age| age.as_secs()));
        if gauges.problems() != problems {
            for problem in &problems {
                tracing::error!(problem, "a matched file cannot be read");
            }
            self.health.set_part("tail", problems.is_empty(), problems.join("; "));
            gauges.set_problems(problems);
        }
    }

    /// Takes all messages that are there.
    fn receive(&mut self, now: Instant) -> Result<(), OwnerError> {
        loop {
            match self.inbox.try_recv() {
                Ok(message) => self.message(message, now)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    // Nobody ships any more: the process is ending.
                    self.drain.abandon();
                    return Ok(());
                }
            }
        }
    }

    /// Sleeps until a message comes, `longest` at most.
    fn wait(&mut self, longest: Duration) -> Result<(), OwnerError> {
        match self.inbox.recv_timeout(longest) {
            Ok(message) => self.message(message, Instant::now()),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(longest.min(self.options.idle));
                Ok(())
            }
        }
    }

    fn sleep(&self, now: Instant) -> Duration {
        let dues = self.sources.iter().filter_map(|source| source.due_at(self.options.batching));
        let due = dues.min().map_or(self.options.idle, |at| at.saturating_duration_since(now));
        // A chunk that is due and waits for room or a declaration is tried again at the idle pace.
        let due = if due.is_zero() { self.options.idle } else { due };
        due.min(self.options.idle)
    }

    pub(super) fn own_clock_or_newest(&self) -> (i64, i64) {
        (own_clock_ms(), self.outbox.index().newest_unix_ms)
    }

    pub(super) fn take_declarations(&mut self, status: &wire::NodeStatus) {
        if status.declarations.is_empty() || status.declarations_version == self.declarations.version {
            return;
        }
        self.declarations = super::declarations::from_status(status);
        let path = self.state_dir.declarations();
        if let Err(error) = super::declarations::save(&path, status) {
            tracing::warn!(error = %error, "dataset declarations could not be kept for a start without aggregators");
        }
        tracing::info!(
            version = status.declarations_version,
            datasets = status.declarations.len(),
            "dataset declarations"
        );
    }
}
