//! From the channel to the collectors: one task owns the state machine ([`state`], [`answers`]) and tells the streams
//! ([`lane`]) what to send; what collectors answer for good goes back to the channel.
//!
//! It connects again for ever; nothing here needs a person.

mod answers;
mod backlog;
mod lane;
#[cfg(test)]
mod model_tests;
mod peer;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::peers::PeerList;
use common::record_log::RecordReader;
use common::ring::Ring;
use proto::ids::{AgentName, BatchId};
use proto::intervals::IntervalSet;
use proto::wire::{self, answer};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::channel::{ChannelEvent, ChannelHandle, Released};
use crate::declarations::Keeper;
use lane::{Command, Event, LaneTask};
use peer::{Lane, PeerName, Standing};
use state::{Forward, Verdict};

pub use state::Limits;

const TICK: Duration = Duration::from_millis(200);
/// Orders given to a stream in one go.
const ORDERS_AT_ONCE: usize = 256;
/// Delay taken when a collector says busy without one.
const LEAST_BUSY: Duration = Duration::from_millis(50);

/// Counters of the forward side.
#[derive(Debug, Default)]
pub struct ForwardStats {
    /// Batches sent, also again.
    pub sent_batches: AtomicU64,
    /// Batches sent of which an earlier send was not answered for good.
    pub resent_batches: AtomicU64,
    /// Batches committed.
    pub committed_batches: AtomicU64,
    /// Batches refused for good (quarantined).
    pub refused_batches: AtomicU64,
    /// Answers *again*.
    pub again_answers: AtomicU64,
    /// Answers *busy*.
    pub busy_answers: AtomicU64,
    /// Streams that broke uncleanly.
    pub unclean_breaks: AtomicU64,
}

/// How one collector looks from here.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct CollectorView {
    /// Its address.
    pub address: String,
    /// Its main stream is up.
    pub connected: bool,
    /// It drains.
    pub draining: bool,
    /// It commits nothing while another one does: its batches go elsewhere.
    pub stalled: bool,
    /// Batches sent and not yet staged.
    pub sent_batches: usize,
    /// Batches staged there and not yet committed.
    pub staged_batches: usize,
    /// Bytes of credit in use.
    pub credit_used_bytes: u64,
}

/// The forward side; owner of its state.
pub struct Forwarder {
    name: String,
    state: Forward,
    channel: ChannelHandle,
    declarations: Arc<Keeper>,
    reader: Option<RecordReader>,
    lanes: HashMap<Lane, LaneHandle>,
    reports: mpsc::Sender<(Lane, Event)>,
    reported: mpsc::Receiver<(Lane, Event)>,
    stats: Arc<ForwardStats>,
    views: watch::Sender<Vec<CollectorView>>,
}

#[derive(Debug)]
struct LaneHandle {
    cancel: CancellationToken,
    commands: Option<mpsc::UnboundedSender<Command>>,
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

enum Woken {
    Channel(Option<ChannelEvent>),
    Lane(Lane, Event),
    Peers,
    Tick,
    Stop,
}

impl Forwarder {
    /// Forwards under this aggregator's `name`.
    pub fn new(name: String, limits: Limits, channel: ChannelHandle, declarations: Arc<Keeper>) -> Self {
        let (reports, reported) = mpsc::channel(1024);
        Self {
            name,
            state: Forward::new(limits),
            channel,
            declarations,
            reader: None,
            lanes: HashMap::new(),
            reports,
            reported,
            stats: Arc::default(),
            views: watch::Sender::new(Vec::new()),
        }
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<ForwardStats> {
        self.stats.clone()
    }

    /// How the collectors look, as of the last tick.
    pub fn views(&self) -> watch::Receiver<Vec<CollectorView>> {
        self.views.subscribe()
    }

    /// Runs until `stop`, or until the channel's owner has ended.
    pub async fn run(
        mut self,
        mut channel: mpsc::UnboundedReceiver<ChannelEvent>,
        mut peers: PeerList,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        peers.mark_changed();
        let mut watching = true;
        loop {
            let woken = tokio::select! {
                () = stop.cancelled() => Woken::Stop,
                event = channel.recv() => Woken::Channel(event),
                Some((lane, event)) = self.reported.recv() => Woken::Lane(lane, event),
                changed = peers.changed(), if watching => { watching = changed.is_ok(); Woken::Peers }
                _ = tick.tick() => Woken::Tick,
            };
            match woken {
                Woken::Stop | Woken::Channel(None) => return,
                Woken::Channel(Some(event)) => {
                    self.on_channel(event);
                    while let Ok(event) = channel.try_recv() {
                        self.on_channel(event);
                    }
                }
                Woken::Lane(lane, event) => {
                    self.on_lane(lane, event);
                    while let Ok((lane, event)) = self.reported.try_recv() {
                        self.on_lane(lane, event);
                    }
                }
                Woken::Peers => {
                    let list = peers.borrow_and_update().clone();
                    self.on_peers(&list);
                }
                Woken::Tick => self.on_tick(),
            }
            self.pump();
        }
    }

    fn on_channel(&mut self, event: ChannelEvent) {
        match event {
            ChannelEvent::Reset(snapshot) => {
                self.reader = Some(snapshot.reader);
                self.state.reset(snapshot.segments, snapshot.broken);
            }
            ChannelEvent::Appended { segment, entries } => {
                entries.iter().for_each(|(entry, from)| self.state.stored(segment, entry, *from));
            }
            ChannelEvent::Sealed { segment, index } => self.state.sealed(segment, index),
            ChannelEvent::Removed { segment } => self.state.removed(segment),
        }
    }

    fn on_peers(&mut self, list: &[String]) {
        let names: Vec<PeerName> = list.iter().map(|name| PeerName::from(name.as_str())).collect();
        let ring = Ring::new(list);
        let ranking = move |agent: &AgentName| -> Vec<PeerName> {
            ring.successors(agent.as_str().as_bytes()).map(PeerName::from).collect()
        };
        self.state.set_peers(&names, Arc::new(ranking), Instant::now());
        self.lanes.retain(|lane, _| names.contains(&lane.peer));
        for peer in names {
            self.open_lane(Lane { peer, alone: false });
        }
    }

    fn open_lane(&mut self, lane: Lane) {
        if self.lanes.contains_key(&lane) {
            return;
        }
        let cancel = CancellationToken::new();
        let task = LaneTask {
            lane: lane.clone(),
            name: self.name.clone(),
            events: self.reports.clone(),
            cancel: cancel.clone(),
        };
        tokio::spawn(task.run());
        self.lanes.insert(lane, LaneHandle { cancel, commands: None });
    }

    fn on_lane(&mut self, lane: Lane, event: Event) {
        let now = Instant::now();
        match event {
            Event::Connected(hello, commands) => self.on_hello(&lane, &hello, commands, now),
            Event::Answers(answers) => self.on_answers(&lane, answers, now),
            Event::Status(status) => {
                self.declarations.heard(&status);
                self.state.status(&lane, &status, now);
            }
            Event::Unreadable { order, fault } => {
                self.state.read_well(self.reader.as_ref().map_or(0, RecordReader::read_well));
                if let Some(at) = self.state.unreadable(&lane, &order.id, order.at, fault, now) {
                    self.channel.give_up(at, order.id);
                }
            }
            Event::Broken { unclean } => {
                if let Some(handle) = self.lanes.get_mut(&lane) {
                    handle.commands = None;
                }
                self.stats.unclean_breaks.fetch_add(u64::from(unclean), Ordering::Relaxed);
                let counts = self.state.broken(&lane, unclean, now);
                if !counts.is_empty() {
                    tracing::warn!(collector = %lane.peer, batches = counts.len(), "a stream broke while batches were sent");
                    self.channel.set_broken(counts);
                }
            }
        }
    }

    fn on_hello(
        &mut self,
        lane: &Lane,
        hello: &wire::CollectorHello,
        commands: mpsc::UnboundedSender<Command>,
        now: Instant,
    ) {
        let status = hello.status.clone().unwrap_or_default();
        self.declarations.heard(&status);
        // A lane that was given up in between: dropping the sender ends its stream.
        let Some(handle) = self.lanes.get_mut(lane) else { return };
        let listed = self.state.connected(lane, hello.credit_bytes, &status, now);
        if !listed.is_empty() {
            tracing::info!(collector = %lane.peer, batches = listed.len(), "batches left unanswered are listed");
            // A stream that is gone again says so itself.
            let _ = commands.send(Command::List(listed));
        }
        handle.commands = Some(commands);
    }

    fn on_answers(&mut self, lane: &Lane, answers: Vec<wire::Answer>, now: Instant) {
        let mut released: Vec<Released> = Vec::new();
        for answer in answers {
            let Some((id, verdict)) = read_answer(answer) else {
                tracing::warn!(collector = %lane.peer, "an answer of a collector cannot be read");
                continue;
            };
            self.count_answer(&id, &verdict);
            released.extend(self.state.answered(lane, &id, verdict, now));
        }
        if !released.is_empty() {
            self.channel.release(released);
        }
        for (lane, id) in self.state.take_listings() {
            self.command(&lane, Command::List(vec![id]));
        }
    }

    fn count_answer(&self, id: &BatchId, verdict: &Verdict) {
        let counter = match verdict {
            Verdict::Staged | Verdict::Unsupported => return,
            Verdict::Committed(_) => &self.stats.committed_batches,
            Verdict::Refused(_, reason) => {
                let reason = proto::reason::clean(reason);
                tracing::warn!(batch = %id, reason, "a batch was refused for good and lies in quarantine");
                &self.stats.refused_batches
            }
            Verdict::Again => &self.stats.again_answers,
            Verdict::Busy(_) => &self.stats.busy_answers,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.state.tick(now);
        for lane in self.state.rolls(now) {
            self.command(&lane, Command::Roll);
        }
        let state = &self.state;
        self.lanes.retain(|lane, _| state.is_wanted(lane));
        for lane in self.state.alone_wanted() {
            self.open_lane(lane);
        }
        let views = self.views_now();
        self.views.send_if_modified(|last| {
            let changed = *last != views;
            *last = views;
            changed
        });
    }

    /// Gives every stream what it may send.
    fn pump(&mut self) {
        let Some(reader) = self.reader.clone() else { return };
        let now = Instant::now();
        let open: Vec<Lane> =
            self.lanes.iter().filter(|(_, handle)| handle.commands.is_some()).map(|(lane, _)| lane.clone()).collect();
        for lane in open {
            loop {
                let orders: Vec<_> = std::iter::from_fn(|| self.state.next(&lane, now)).take(ORDERS_AT_ONCE).collect();
                if orders.is_empty() {
                    break;
                }
                let again = orders.iter().filter(|order| order.again).count() as u64;
                self.stats.sent_batches.fetch_add(orders.len() as u64, Ordering::Relaxed);
                self.stats.resent_batches.fetch_add(again, Ordering::Relaxed);
                self.command(&lane, Command::Send(orders, reader.clone()));
            }
        }
    }

    fn command(&self, lane: &Lane, command: Command) {
        if let Some(commands) = self.lanes.get(lane).and_then(|handle| handle.commands.as_ref())
            && commands.send(command).is_err()
        {
            // Its end is on the way as an event of its own; what was ordered is left unanswered then.
            tracing::debug!(collector = %lane.peer, "the stream has just ended");
        }
    }

    fn views_now(&self) -> Vec<CollectorView> {
        let view = |(name, peer): (&PeerName, &peer::Peer)| {
            let count = |wanted: Standing| peer.main.out.values().filter(|out| out.standing == wanted).count();
            CollectorView {
                address: name.to_string(),
                connected: peer.main.connected,
                draining: peer.health.draining,
                stalled: peer.stalled,
                sent_batches: count(Standing::Sent),
                staged_batches: count(Standing::Staged),
                credit_used_bytes: peer.main.used,
            }
        };
        self.state.peers.iter().map(view).collect()
    }
}

/// Identity and verdict of an answer; none when it makes no sense.
fn read_answer(message: wire::Answer) -> Option<(BatchId, Verdict)> {
    let id = BatchId::try_from(message.key.as_ref()?).ok()?;
    let intervals = message.intervals.as_ref().and_then(|set| IntervalSet::try_from(set).ok()).unwrap_or_default();
    let verdict = match message.answer? {
        answer::Answer::Staged(_) => Verdict::Staged,
        answer::Answer::Committed(_) => Verdict::Committed(intervals),
        answer::Answer::Refused(refused) => Verdict::Refused(intervals, refused.reason),
        answer::Answer::Again(_) => Verdict::Again,
        answer::Answer::Busy(busy) => Verdict::Busy(Duration::from_millis(busy.delay_ms).max(LEAST_BUSY)),
        answer::Answer::Unsupported(_) => Verdict::Unsupported,
    };
    Some((id, verdict))
}
