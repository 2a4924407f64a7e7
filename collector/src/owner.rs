//! The owner task: feeds the coordinator and carries out what it says. It never waits for a store, a file or a
//! stream: appends, closes, steps on the log and chores run beside it and come back as events.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::supervise::Shutdown;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use proto::header::Header;
use proto::wire;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::chores::{Chore, Hands};
use crate::commit::Stop;
use crate::commit::driver::Driver;
use crate::compact::{self, Budget, Plan};
use crate::config::dataset::DatasetConfig;
use crate::coordinator::{Action, AppendAnswer, Coordinator, Credit, Delivery, Event, Now, StepGroup};
use crate::ledger::{GroupKey, GroupKind, StreamId, counts};
use crate::log::{Layout, LogFiles};
use crate::metrics::Metrics;
use crate::partition_writer::{AppendError, Appended, GroupHandle, GroupSpec, MemoryBudget, StageBatch};
use crate::publish::DirModes;
use crate::quarantine::QuarantinedBatch;
use crate::receive::{Inbox, Outbound, credit};
use crate::seal::inventory;
use crate::status::Snapshot;
use crate::store::Store;

/// How often an owner looks at what is due, unless it is told otherwise.
pub const TICK: Duration = Duration::from_millis(100);
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Events taken in one go before answers are sent.
const BURST: usize = 256;
/// Answers in one message.
const ANSWERS: usize = 2048;

/// What the owner is given.
pub struct Parts {
    /// The state.
    pub coordinator: Coordinator,
    /// The destination.
    pub store: Arc<dyn Store>,
    /// The log.
    pub log: LogFiles,
    /// Own names.
    pub layout: Layout,
    /// Modes of partition directories.
    pub modes: Arc<DirModes>,
    /// Memory of all groups.
    pub memory: MemoryBudget,
    /// What streams send.
    pub inbox: mpsc::Receiver<Inbox>,
    /// Declarations, and their version.
    pub declarations: (u64, Vec<wire::DatasetDeclaration>),
    /// Bytes for all streams, and for one at most.
    pub credit: (u64, u64),
    /// Instruments.
    pub metrics: Metrics,
    /// For `/status`.
    pub snapshot: watch::Sender<Snapshot>,
    /// Wall clock, milliseconds since the epoch.
    pub unix_ms: Clock,
    /// How often it looks at what is due.
    pub tick: Duration,
    /// Agents that are expected; read again and again.
    pub inventory: Option<PathBuf>,
}

/// Gives the wall clock, milliseconds since the epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

struct Stream {
    out: Outbound,
    stop: CancellationToken,
    answers: Vec<wire::Answer>,
}

/// See the module.
pub struct Owner {
    parts: Parts,
    driver: Arc<Driver>,
    hands: Hands,
    budget: Budget,
    /// Compaction waits while this is true.
    busy: watch::Sender<bool>,
    stop_compaction: CancellationToken,
    next_inventory: std::time::Instant,
    groups: HashMap<u64, GroupHandle>,
    streams: HashMap<StreamId, Stream>,
    work: FuturesUnordered<BoxFuture<'static, Event>>,
    known_checkpoint: u64,
    drained: bool,
    stopped: Option<Stop>,
    announce: bool,
}

enum Woken {
    Inbox(Option<Inbox>),
    Work(Event),
    Tick,
    Status,
    Drain,
}

impl Owner {
    /// Ready to run.
    pub fn new(parts: Parts) -> Self {
        let driver = Arc::new(Driver::new(parts.log.clone(), parts.layout.clone(), Arc::clone(&parts.modes)));
        let (log, layout, modes) = (parts.log.clone(), parts.layout.clone(), Arc::clone(&parts.modes));
        let (busy, is_busy) = watch::channel(false);
        let budget = Budget::new(&parts.coordinator.settings().compaction, is_busy);
        Self {
            parts,
            driver,
            hands: Hands { log, layout, modes },
            budget,
            busy,
            stop_compaction: CancellationToken::new(),
            next_inventory: tokio::time::Instant::now().into_std(),
            groups: HashMap::new(),
            streams: HashMap::new(),
            work: FuturesUnordered::new(),
            known_checkpoint: 0,
            drained: false,
            stopped: None,
            announce: false,
        }
    }

    /// Runs until everything is committed after the drain began, or this run cannot go on.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), Stop> {
        let mut tick = tokio::time::interval(self.parts.tick);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut status = tokio::time::interval(STATUS_EVERY.max(self.parts.tick));
        status.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut draining, mut open) = (false, true);
        while !self.drained && self.stopped.is_none() {
            let woken = tokio::select! {
                inbox = self.parts.inbox.recv(), if open => Woken::Inbox(inbox),
                Some(event) = self.work.next(), if !self.work.is_empty() => Woken::Work(event),
                _ = tick.tick() => Woken::Tick,
                _ = status.tick() => Woken::Status,
                () = shutdown.draining(), if !draining => Woken::Drain,
            };
            match woken {
                Woken::Inbox(Some(inbox)) => self.take(inbox),
                Woken::Inbox(None) => open = false,
                Woken::Work(event) => self.feed(event),
                Woken::Tick => self.tick(),
                Woken::Status => self.announce = true,
                Woken::Drain => {
                    draining = true;
                    self.announce = true;
                    self.stop_compaction.cancel();
                    self.feed(Event::Drain);
                }
            }
            self.burst();
            self.flush();
        }
        self.publish_snapshot();
        // What was answered is still sent; then the streams end.
        self.streams.values().for_each(|stream| stream.stop.cancel());
        match self.stopped {
            Some(stop) => Err(stop),
            None => Ok(()),
        }
    }

    /// Takes what else is there, so that answers go out in few messages.
    fn burst(&mut self) {
        for _ in 0..BURST {
            let event = self.work.next().now_or_never().flatten();
            let inbox = self.parts.inbox.try_recv().ok();
            if event.is_none() && inbox.is_none() {
                return;
            }
            event.into_iter().for_each(|event| self.feed(event));
            inbox.into_iter().for_each(|inbox| self.take(inbox));
        }
    }

    fn take(&mut self, inbox: Inbox) {
        match inbox {
            Inbox::Connected { stream, aggregator, out, stop } => self.connected(stream, &aggregator, out, stop),
            Inbox::Disconnected { stream } => {
                self.streams.remove(&stream);
                self.feed(Event::Gone { stream });
                self.announce = true;
            }
            Inbox::Event(event) => self.feed(event),
        }
    }

    fn connected(&mut self, stream: StreamId, aggregator: &str, out: Outbound, stop: CancellationToken) {
        self.streams.insert(stream, Stream { out, stop, answers: Vec::new() });
        let mut status = self.status();
        status.declarations = self.parts.declarations.1.clone();
        let settings = self.parts.coordinator.settings();
        tracing::info!(stream, aggregator, credit = status.credit_bytes, "stream taken");
        let hello = wire::CollectorHello {
            collector: settings.collector.clone(),
            incarnation: settings.incarnation.clone(),
            newest_format: proto::FORMAT,
            credit_bytes: status.credit_bytes,
            status: Some(status),
        };
        self.send(stream, wire::deliver_response::Message::Hello(hello));
        self.announce = true;
    }

    fn now(&self) -> Now {
        Now { instant: tokio::time::Instant::now().into_std(), unix_ms: (self.parts.unix_ms)() }
    }

    fn tick(&mut self) {
        let groups = self.groups.iter().map(|(number, handle)| weigh(*number, handle)).collect();
        let over = self.parts.memory.is_over();
        let (all, one) = self.parts.credit;
        let credit = Credit { all, stream: credit(all, one, self.streams.len()) };
        self.busy.send_if_modified(|busy| std::mem::replace(busy, over) != over);
        self.read_inventory(self.now());
        self.feed(Event::Measured { groups, over, credit });
        self.publish_snapshot();
    }

    fn publish_snapshot(&mut self) {
        let snapshot = Snapshot::of(&self.parts.coordinator, self.now(), self.streams.len(), self.parts.memory.used());
        self.parts.metrics.observe(&snapshot);
        self.parts.snapshot.send_replace(snapshot);
    }

    fn feed(&mut self, event: Event) {
        let now = self.now();
        for action in self.parts.coordinator.handle(event, now) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Answer { stream, answer } => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.answers.push(answer);
                }
            }
            Action::Open { group, key, dataset, day } => self.open(group, key, dataset, day),
            Action::Append { group, delivery, refused } => self.append(group, *delivery, refused),
            Action::Close { group, reason } => {
                self.parts.metrics.rolled(reason);
                self.close(group);
            }
            Action::Abandon { group } => {
                if let Some(handle) = self.groups.remove(&group) {
                    handle.abandon();
                }
            }
            Action::Forget { group } => drop(self.groups.remove(&group)),
            Action::Step(step) => {
                let driver = Arc::clone(&self.driver);
                self.work.push(async move { Event::Stepped(Box::new(driver.perform(step).await)) }.boxed());
            }
            Action::Chore(chore) => self.chore(*chore),
            Action::Compact { plan, numbers } => self.compact(*plan, numbers),
            Action::AbandonCompaction(compact) => {
                let store = Arc::clone(&self.parts.store);
                let work = async move {
                    compact::abandon(&*store, &compact).await;
                    Event::Tick
                };
                self.work.push(work.boxed());
            }
            Action::Show { mut seen, read } => {
                let (store, layout) = (Arc::clone(&self.parts.store), self.parts.layout.clone());
                let work = async move {
                    let shown = seen.show(&*store, &layout, read).await;
                    Event::Shown { seen, shown }
                };
                self.work.push(work.boxed());
            }
            Action::ReadClock { asked } => self.read_clock(asked),
            Action::Committed { n, files, since } => self.parts.metrics.committed(n, &files, since),
            Action::Announce => self.announce = true,
            Action::Drained => self.drained = true,
            Action::Stop(stop) => self.stopped = Some(stop),
        }
    }

    fn read_clock(&mut self, asked: Now) {
        let (store, staging) = (Arc::clone(&self.parts.store), self.parts.layout.staging());
        let work = async move {
            match store.stat(&staging).await {
                Ok(Some(stat)) => return Event::StoreClock { asked, unix_ms: stat.modified_unix_ms },
                Ok(None) => tracing::warn!(dir = %staging, "own directory is gone, there is no clock to compare with"),
                Err(error) => tracing::warn!(%error, "the destination's clock cannot be read, it is tried again"),
            }
            Event::Tick
        };
        self.work.push(work.boxed());
    }

    fn chore(&mut self, chore: Chore) {
        let hands = self.hands.clone();
        let known = self.known_checkpoint;
        if let Chore::Checkpoint { next, .. } = chore {
            self.known_checkpoint = next;
        }
        let work = async move { Event::Chored(Box::new(hands.perform(chore, known).await)) };
        self.work.push(work.boxed());
    }

    fn compact(&mut self, plan: Plan, mut numbers: u64) {
        let (store, layout, key) = (Arc::clone(&self.parts.store), self.parts.layout.clone(), plan.key.clone());
        let (budget, progress) = (self.budget.clone(), self.parts.coordinator.settings().progress.clone());
        let stop = self.stop_compaction.clone();
        let next = move || {
            numbers += 1;
            numbers - 1
        };
        let work = async move {
            let result = compact::run(&store, &layout, plan, next, &budget, &progress, stop).await;
            Event::Compacted { key, result }
        };
        self.work.push(work.boxed());
    }

    /// Reads the inventory, every heartbeat.
    fn read_inventory(&mut self, now: Now) {
        let Some(path) = self.parts.inventory.clone().filter(|_| now.instant >= self.next_inventory) else { return };
        self.next_inventory = now.instant + self.parts.coordinator.settings().housekeeping.heartbeat;
        let work = async move {
            let read = tokio::fs::read_to_string(&path).await.map_err(|error| error.to_string());
            match read.and_then(|text| inventory::parse(&text).map_err(|error| error.to_string())) {
                Ok(names) => Event::Inventory(names),
                Err(error) => {
                    tracing::warn!(file = %path.display(), error, "inventory cannot be read, what it said before stays");
                    Event::Tick
                }
            }
        };
        self.work.push(work.boxed());
    }

    fn open(&mut self, group: u64, key: GroupKey, dataset: Option<Arc<DatasetConfig>>, day: i32) {
        let spec = GroupSpec {
            number: group,
            incarnation: self.parts.layout.incarnation().to_owned(),
            kind: key.kind,
            // Quarantine looks at none of it.
            dataset: dataset.unwrap_or_else(|| Arc::new(DatasetConfig::named("quarantine"))),
            partition: key.partition,
            opened_day_utc: day,
        };
        debug_assert!(key.kind == GroupKind::Quarantine || key.dataset.is_some());
        let handle = GroupHandle::spawn(spec, Arc::clone(&self.parts.store), self.parts.memory.clone());
        self.groups.insert(group, handle);
    }

    fn append(&mut self, group: u64, delivery: Delivery, refused: Option<Arc<str>>) {
        let id = delivery.id.clone();
        let Some(handle) = self.groups.get(&group) else {
            // Every append is answered, else its bytes would count as under way for ever.
            let answer = AppendAnswer::Poisoned("its group is gone".into());
            return self.work.push(async move { Event::Appended { group, id, answer } }.boxed());
        };
        let answer = match (&refused, &delivery.content) {
            (None, Ok(header)) => {
                let (header, payload) = (Header::clone(header), delivery.payload.clone());
                handle.append(StageBatch { id: id.clone(), header, payload })
            }
            (reason, content) => {
                let reason = reason.as_deref().or(content.as_ref().err().map(|reason| &**reason)).unwrap_or_default();
                handle.append_quarantined(QuarantinedBatch {
                    id: id.clone(),
                    header: delivery.header.clone(),
                    payload: delivery.payload.clone(),
                    reason: reason.to_owned(),
                })
            }
        };
        let work = async move {
            let answer = match answer.await {
                Ok(Ok(appended)) => AppendAnswer::Appended(counts_of(&delivery, refused.is_some(), appended)),
                Ok(Err(AppendError::Refused(reason))) => AppendAnswer::Refused(reason, Box::new(delivery)),
                Ok(Err(AppendError::Poisoned(reason))) => AppendAnswer::Poisoned(reason),
                Err(_) => AppendAnswer::Poisoned("its task has ended".into()),
            };
            Event::Appended { group, id, answer }
        };
        self.work.push(work.boxed());
    }

    fn close(&mut self, group: u64) {
        let Some(handle) = self.groups.get(&group) else { return };
        let closed = handle.close();
        let work = async move {
            let result = match closed.await {
                Ok(Ok(closed)) => Ok(closed.files),
                Ok(Err(poisoned)) => Err(poisoned.to_string()),
                Err(_) => Err("its task has ended".into()),
            };
            Event::Closed { group, result }
        };
        self.work.push(work.boxed());
    }

    fn status(&self) -> wire::CollectorStatus {
        let mut status = self.parts.coordinator.status(self.now());
        status.declarations_version = self.parts.declarations.0;
        let (all, one) = self.parts.credit;
        status.credit_bytes = credit(all, one, self.streams.len());
        status
    }

    fn flush(&mut self) {
        let ids: Vec<StreamId> =
            self.streams.iter().filter(|(_, stream)| !stream.answers.is_empty()).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let mut answers = std::mem::take(&mut stream.answers);
            while !answers.is_empty() {
                let rest = answers.split_off(answers.len().min(ANSWERS));
                self.send(id, wire::deliver_response::Message::Answers(wire::Answers { answers }));
                answers = rest;
            }
        }
        if std::mem::take(&mut self.announce) {
            let status = self.status();
            for id in self.streams.keys().copied().collect::<Vec<_>>() {
                self.send(id, wire::deliver_response::Message::Status(status.clone()));
            }
        }
    }

    /// To one stream. One that does not read is broken off: it comes back and lists what it was not answered for.
    fn send(&mut self, stream: StreamId, message: wire::deliver_response::Message) {
        let Some(to) = self.streams.get(&stream) else { return };
        if to.out.try_send(Ok(wire::DeliverResponse { message: Some(message) })).is_err() {
            tracing::warn!(stream, "stream does not take its answers, broken off");
            to.stop.cancel();
            self.streams.remove(&stream);
        }
    }
}

fn weigh(number: u64, handle: &GroupHandle) -> StepGroup {
    StepGroup { number, bytes: handle.file_bytes(), buffered: handle.buffered_bytes() }
}

/// What became of the events of a batch that is in its group. A header that came with damage is looked at again: what
/// it says was cut.
fn counts_of(delivery: &Delivery, refused: bool, appended: Appended) -> Vec<wire::EventCount> {
    match &delivery.content {
        Ok(header) if !refused => counts::of_batch(header, appended),
        Ok(header) => counts::of_quarantined(header),
        Err(_) => {
            Header::decode(delivery.header.clone()).map(|header| counts::of_quarantined(&header)).unwrap_or_default()
        }
    }
}
