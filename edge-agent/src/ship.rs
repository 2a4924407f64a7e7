//! Sends what the outbox keeps to aggregators, and asks what became of it. One task owns the queue, the balance and all
//! connections; requests run beside it and come back as events.
//!
//! Invariants: only bytes read back from the outbox are sent; bytes in flight are bounded; nothing is acked here that no
//! aggregator has answered for; retrying elsewhere is always safe, because identity decides.

pub mod balance;
pub mod client;
mod contact;
pub mod messages;
mod nodes;
mod quarantined;
pub mod queue;
mod report;
mod retry;
mod unreadable;
mod wrong;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire::append_response::Answer;
use proto::wire::{self, AppendResponse, BusyReason};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::balance::{Balance, Node, Outcome, Policy};
use self::client::{Asked, Client, Dial, SendError, Sent, intervals, now};
use self::contact::Contact;
use self::messages::{DrainUntil, FromShip, Talk, ToShip};
use self::quarantined::Quarantined;
use self::queue::{Queue, Take};
use self::retry::Retry;
use crate::outbox::Stored;
use crate::outbox::read::BatchReader;
use crate::status::Gauges;

/// Aggregators an agent talks to.
const FAN_OUT: usize = 3;
/// Requests in flight; bytes are bounded besides.
const MOST_REQUESTS: usize = 64;
/// Questions about origins in one round.
const QUESTIONS: usize = 16;
/// Before an aggregator has told its roll age.
const DEFAULT_ROLL_AGE: Duration = Duration::from_secs(300);
/// An aggregator that does not answer for this many roll ages is given up.
const GIVE_UP_ROLL_AGES: u32 = 3;
/// Status is asked for this often when nothing else is sent.
const STATUS_EVERY: Duration = Duration::from_secs(30);
/// The same while something waits for news.
const STATUS_HURRY: Duration = Duration::from_secs(2);

/// How to ship.
#[derive(Debug, Clone)]
pub struct ShipOptions {
    /// This agent.
    pub agent: AgentName,
    /// Batches are acked when committed (else when durable).
    pub until_committed: bool,
    /// How batches are spread.
    pub policy: Policy,
    /// The order of preference for [`Policy::Priority`].
    pub order: Vec<String>,
    /// Time-out of one request.
    pub timeout: Duration,
    /// Bytes in flight at most.
    pub in_flight_bytes: u64,
    /// Questions at most this far apart while a gate or a drain waits for commits.
    pub hurry: Duration,
    /// How long answers *wrong* for a sound batch are doubted.
    pub wrong_patience: Duration,
    /// The origins of the outbox at start, newest first: aggregators are asked what they know of them.
    pub origins: Vec<Origin>,
    /// Spreads retries and choices.
    pub seed: u64,
}

/// The shipping task.
pub struct Ship {
    options: ShipOptions,
    reader: BatchReader,
    rng: SmallRng,
    dial: Dial,
    peers: watch::Receiver<Arc<Vec<String>>>,
    commands: mpsc::UnboundedReceiver<ToShip>,
    owner: Sender<FromShip>,
    gauges: Arc<Gauges>,
    queue: Queue,
    balance: Balance,
    retry: Retry,
    clients: HashMap<Node, Client>,
    sends: JoinSet<Sent>,
    asks: JoinSet<Asked>,
    gated: bool,
    hurry_status: bool,
    drain: Option<DrainUntil>,
    declarations_version: u64,
    roll_age: Duration,
    next_ask: Instant,
    next_status: Instant,
    next_stored: Instant,
    /// Something happened since the last report of who holds what.
    news: bool,
    /// Nodes that hold batches of ours and do not answer, since when.
    silent: HashMap<Node, Instant>,
    contact: Contact,
    quarantined: Quarantined,
}

enum Event {
    Command(Option<ToShip>),
    Sent(Box<Sent>),
    Asked(Box<Asked>),
    Peers,
    Timer,
}

impl Ship {
    /// A task to [`run`](Self::run).
    pub fn new(
        options: ShipOptions,
        reader: BatchReader,
        (peers, dial): (watch::Receiver<Arc<Vec<String>>>, Dial),
        talk: Talk,
        gauges: Arc<Gauges>,
        now: Instant,
    ) -> Self {
        let Talk { commands, owner, declarations_version } = talk;
        Self {
            queue: Queue::new(options.until_committed),
            contact: Contact::new(options.origins.clone()),
            quarantined: Quarantined::default(),
            balance: Balance::new(options.policy),
            retry: Retry::new(),
            rng: SmallRng::seed_from_u64(options.seed),
            dial,
            options,
            reader,
            peers,
            commands,
            owner,
            gauges,
            clients: HashMap::new(),
            sends: JoinSet::new(),
            asks: JoinSet::new(),
            gated: false,
            hurry_status: false,
            drain: None,
            declarations_version,
            roll_age: DEFAULT_ROLL_AGE,
            next_ask: now + DEFAULT_ROLL_AGE,
            next_status: now,
            next_stored: now,
            news: true,
            silent: HashMap::new(),
        }
    }

    /// Runs until the owner hangs up.
    pub async fn run(mut self) {
        self.use_peers();
        loop {
            let now = now();
            self.fill(now);
            self.ask_if_due(now);
            self.report();
            let event = self.next_event().await;
            self.news |= !matches!(event, Event::Timer);
            match event {
                Event::Command(Some(command)) => self.command(command),
                Event::Command(None) => return,
                Event::Sent(sent) => self.sent(*sent),
                Event::Asked(asked) => self.asked(*asked),
                Event::Peers => self.use_peers(),
                Event::Timer => {}
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let wake = tokio::time::Instant::from_std(self.next_wake());
        tokio::select! {
            biased;
            command = self.commands.recv() => Event::Command(command),
            Some(Ok(sent)) = self.sends.join_next(), if !self.sends.is_empty() => Event::Sent(Box::new(sent)),
            Some(Ok(asked)) = self.asks.join_next(), if !self.asks.is_empty() => Event::Asked(Box::new(asked)),
            Ok(()) = self.peers.changed() => Event::Peers,
            () = tokio::time::sleep_until(wake) => Event::Timer,
        }
    }

    fn next_wake(&self) -> Instant {
        let now = now();
        let mut wake = self.next_ask.min(self.next_status);
        if self.news {
            wake = wake.min(self.next_stored);
        }
        wake = self.queue.next_due().map_or(wake, |at| wake.min(at));
        if self.queue.has_ready() {
            wake = self.balance.next_available(now).map_or(wake, |at| wake.min(at));
        }
        wake.max(now + Duration::from_millis(1))
    }

    fn command(&mut self, command: ToShip) {
        match command {
            ToShip::Send(batches) => self.take_in(batches),
            ToShip::CloseGate(origin) => {
                self.gated = true;
                self.queue.close_gate(origin);
            }
            ToShip::OpenGate => {
                self.gated = false;
                self.queue.open_gate();
            }
            ToShip::LetGo(batches) => {
                for (origin, seq) in batches {
                    self.queue.release(origin, &[seq].into_iter().collect());
                }
            }
            ToShip::Hurry(hurry) => self.hurry_status = hurry,
            ToShip::Drain(until) => self.drain = Some(until),
        }
        self.pull_ask();
    }

    /// Batches that an aggregator holds already, left over from an earlier run, are not sent again.
    fn take_in(&mut self, batches: Vec<Stored>) {
        for stored in batches {
            self.queue.add(stored);
            if let Some(node) = self.contact.holder(stored.origin, stored.seq) {
                let released = self.queue.held_already(stored, node, now());
                self.tell(FromShip::Durable { origin: stored.origin, seq: stored.seq, released });
            }
        }
        self.contact.forget_held();
    }

    fn fill(&mut self, now: Instant) {
        while self.sends.len() < MOST_REQUESTS
            && let Some(take) = self.queue.take(now, self.options.in_flight_bytes)
        {
            if take.attempts > 0 && !self.retry.may_retry() {
                self.queue.landed(&take);
                self.queue.again(&take, now + retry::BUDGET_PAUSE, take.avoid.first().cloned());
                continue;
            }
            let node = self.balance.pick(now, self.rng.random(), &take.avoid);
            let Some(node) = node else {
                self.queue.landed(&take);
                self.queue.put_back(&take);
                return;
            };
            let Some(client) = self.client(&node) else {
                // An address that is none is left like an aggregator that does not answer.
                self.balance.report(&node, Outcome::Failed, true, now, self.rng.random());
                self.queue.landed(&take);
                self.queue.put_back(&take);
                continue;
            };
            tracing::trace!(%node, seq = take.stored.seq, "sending batch");
            let known = self.quarantined.known(take.stored.origin);
            let send = client.send(take, self.reader.clone(), self.declarations_version, known);
            self.sends.spawn(send);
        }
    }

    fn sent(&mut self, sent: Sent) {
        let now = now();
        let Sent { take, node, started, sound, result } = sent;
        self.queue.landed(&take);
        let random = self.rng.random();
        if !matches!(result, Err(SendError::Read(_))) {
            self.queue.was_read(&take);
        }
        match result {
            Ok(response) => self.answered((&take, sound), &node, response, now - started, now),
            Err(SendError::Read(error)) => {
                // Nothing was sent: the node has neither answered nor failed.
                self.balance.report(&node, Outcome::Answered(Duration::from_millis(1)), true, now, random);
                self.unreadable(&take, error, now);
            }
            Err(SendError::Transport(error)) => {
                self.gauges.sends.failed.add(1);
                tracing::debug!(%node, error, "aggregator did not answer");
                self.balance.report(&node, Outcome::Failed, true, now, random);
                self.queue.again(&take, now + self.retry.delay(take.attempts, random), Some(node));
            }
        }
    }

    fn answered(
        &mut self,
        (take, sound): (&Take, bool),
        node: &Node,
        response: AppendResponse,
        latency: Duration,
        now: Instant,
    ) {
        self.status(response.status, now);
        self.quarantined(node, take.stored.origin, response.quarantined);
        self.committed(node, take.stored.origin, response.committed.as_ref());
        let (random, counts) = (self.rng.random::<u64>(), self.gauges.clone());
        let mut outcome = Outcome::Answered(latency);
        let mut again = None;
        match response.answer {
            Some(Answer::Durable(_)) => {
                counts.sends.durable.add(1);
                self.retry.succeeded();
                self.silent.remove(node);
                let released = self.queue.stored_by(take, node.clone(), now);
                self.tell(FromShip::Durable { origin: take.stored.origin, seq: take.stored.seq, released });
                self.pull_ask();
            }
            Some(Answer::Busy(busy)) => {
                counts.sends.busy.add(1);
                self.queue.not_counted(take);
                let delay = Duration::from_millis(busy.delay_ms.clamp(10, 60_000));
                if busy.reason() == BusyReason::Undeclared {
                    // The batch waits, not the node.
                    self.tell(FromShip::Refused { detail: busy.detail });
                    again = Some((delay, None));
                } else {
                    outcome = Outcome::Busy(delay);
                    again = Some((Duration::ZERO, Some(node.clone())));
                }
            }
            Some(Answer::Wrong(wrong)) => outcome = self.wrong(take, node, &wrong, sound, now),
            Some(Answer::Unsupported(newest)) => {
                counts.sends.unsupported.add(1);
                tracing::warn!(%node, newest = newest.newest_format, "aggregator reads only older formats: upgrade it");
                again = Some((self.retry.delay(take.attempts + 4, random), Some(node.clone())));
            }
            Some(Answer::Retry(retry)) => {
                counts.sends.retry.add(1);
                outcome = Outcome::Refused;
                if sound || !self.unsound(take, &retry.reason) {
                    tracing::debug!(%node, reason = retry.reason, "aggregator sends elsewhere");
                    again = Some((self.retry.delay(take.attempts, random), Some(node.clone())));
                }
            }
            None => {
                counts.sends.failed.add(1);
                outcome = Outcome::Failed;
                again = Some((self.retry.delay(take.attempts, random), Some(node.clone())));
            }
        }
        self.balance.report(node, outcome, true, now, random);
        if let Some((delay, avoid)) = again {
            self.queue.again(take, now + delay, avoid);
        }
    }

    fn status(&mut self, status: Option<wire::NodeStatus>, received: Instant) {
        let Some(status) = status else { return };
        if status.roll_age_ms > 0 {
            self.roll_age = Duration::from_millis(status.roll_age_ms);
            self.pull_ask();
        }
        if status.declarations_version > 0 && !status.declarations.is_empty() {
            self.declarations_version = status.declarations_version;
        }
        self.tell(FromShip::Status { status, received });
    }

    fn committed(&mut self, node: &Node, origin: Origin, seqs: Option<&wire::IntervalSet>) {
        let seqs = intervals(seqs);
        if !seqs.is_empty() {
            for (holder, seq) in self.queue.held_elsewhere(origin, &seqs, node) {
                self.quarantined.owe(holder, origin, seq);
            }
            self.queue.release(origin, &seqs);
            self.tell(FromShip::Committed { origin, seqs });
        }
    }

    fn tell(&self, message: FromShip) {
        // The owner that is gone has stopped for a reason of its own, which is reported there.
        let _ = self.owner.send(message);
    }

    /// How far apart questions about commits are.
    fn ask_interval(&self) -> Duration {
        let hurry = self.gated || self.drain == Some(DrainUntil::Acked);
        if hurry { self.roll_age.min(self.options.hurry) } else { self.roll_age }
    }

    /// Questions are never further away than the interval that counts now.
    fn pull_ask(&mut self) {
        self.next_ask = self.next_ask.min(now() + self.ask_interval());
    }

    fn ask_if_due(&mut self, now: Instant) {
        if now >= self.next_ask {
            self.next_ask = now + self.ask_interval();
            let mut questions = self.queue.questions(QUESTIONS);
            let owed = self.quarantined.questions(QUESTIONS);
            questions.extend(owed.into_iter().filter(|owed| !questions.contains(owed)).collect::<Vec<_>>());
            for (node, origin) in questions {
                self.ask(&node, Some(origin));
            }
            self.ask_about_previous();
        }
        if now >= self.next_status {
            let soon = self.contact.is_asking() || self.hurry_status || self.declarations_version == 0;
            self.next_status = now + if soon { STATUS_HURRY } else { STATUS_EVERY };
            let nodes: Vec<Node> = self.balance.nodes().cloned().collect();
            if self.contact.is_asking() {
                for (node, origin) in self.contact.round(&nodes) {
                    self.ask(&node, origin);
                }
            } else if let Some(node) = nodes.get(self.rng.random::<u64>() as usize % nodes.len().max(1)) {
                self.ask(node, None);
            }
        }
    }

    fn ask(&mut self, node: &Node, origin: Option<Origin>) {
        match self.client(node) {
            Some(client) => {
                let known = origin.and_then(|origin| self.quarantined.known(origin));
                self.asks.spawn(client.ask(origin, self.declarations_version, known));
            }
            None => self.contacted(node, origin, None),
        }
    }

    fn asked(&mut self, asked: Asked) {
        let now = now();
        self.balance.report(&asked.node, asked.outcome(now), false, now, self.rng.random());
        let Asked { node, origin, started, result } = asked;
        match result {
            Ok(answer) => {
                self.silent.remove(&node);
                let (committed, held) = (intervals(answer.committed.as_ref()), intervals(answer.held.as_ref()));
                self.status(answer.status, now);
                if let Some(origin) = origin {
                    if let Some((_, end)) = held.iter().last() {
                        self.tell(FromShip::Known { origin, end });
                    }
                    self.quarantined(&node, origin, answer.quarantined);
                    self.quarantined.asked(&node, origin, Some(&held));
                    self.committed(&node, origin, answer.committed.as_ref());
                    let batches = self.queue.held(&node, origin, started, &held);
                    self.sent_again(batches, &node);
                }
                self.contacted(&node, origin, Some((&committed, &held)));
            }
            Err(error) => {
                tracing::debug!(%node, error, "aggregator did not answer a question");
                if let Some(origin) = origin {
                    self.quarantined.asked(&node, origin, None);
                }
                self.contacted(&node, origin, None);
                let since = *self.silent.entry(node.clone()).or_insert(started);
                if now - since >= self.roll_age * GIVE_UP_ROLL_AGES {
                    let batches = self.queue.give_up(&node);
                    self.sent_again(batches, &node);
                }
            }
        }
    }

    fn sent_again(&mut self, batches: Vec<Stored>, node: &Node) {
        if !batches.is_empty() {
            tracing::warn!(%node, batches = batches.len(), "stored batches are sent elsewhere, the aggregator lost them");
            self.tell(FromShip::SentAgain { batches, node: node.clone() });
        }
    }

    fn contacted(&mut self, node: &Node, origin: Option<Origin>, answer: Option<(&IntervalSet, &IntervalSet)>) {
        if let Some(known_end) = self.contact.ended(node, origin, answer) {
            self.tell(FromShip::Contact { known_end });
        }
    }
}
