//! Three collectors that die and come back, and an aggregator that holds every batch until it is answered for good.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use collector::commit::Stop;
use collector::commit::solo::Solo;
use collector::config::Config;
use collector::coordinator::{Coordinator, Delivery, Event};
use collector::metrics::Metrics;
use collector::owner::{Owner, Parts};
use collector::partition_writer::MemoryBudget;
use collector::publish::DirModes;
use collector::receive::Inbox;
use collector::replay::{self, Source};
use collector::run::settings;
use collector::status::Snapshot;
use collector::store::{self, Store};
use common::supervise::Shutdown;
use proto::ids::BatchId;
use proto::wire::answer::Answer as Kinds;
use proto::wire::commit_record::Action;
use proto::wire::{self, deliver_response::Message as Reply};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::aggregator::{Aggregator, Batch};
use crate::oracle::Oracle;
use crate::part::{HOUR, MINUTE};
use crate::store::{Cut, CutStore};

pub const SLOTS: usize = 3;
/// 2026-10-10T00:00:00Z: the clocks change on the 25th in one of the two zones.
pub const BEGIN: i64 = 1_791_590_400_000;
const ANSWERS: usize = 1 << 16;

pub fn config(slot: usize, root: &Path) -> Config {
    let text = format!(
        "name = \"col-{slot}\"\n[destination]\nurl = \"file://{}\"\n\
         [roll]\nage = \"20m\"\nidle = \"20m\"\n[commit]\ncheckpoint_every = 64\nfinish_after = \"5m\"\n\
         [housekeeping]\nheartbeat = \"10m\"\nretire_after = \"40m\"\nlog_retention = \"24h\"\nhorizon = \"6d\"\n\
         [[datasets]]\nname = \"daily\"\nzone = \"Europe/Berlin\"\ncompression = \"none\"\n\
         [[datasets]]\nname = \"hourly\"\npartition = \"hour\"\ncompression = \"none\"\nlate = \"late\"\n",
        root.display()
    );
    common::config::parse(&text).unwrap()
}

#[derive(Clone)]
pub struct Clock(tokio::time::Instant);

impl Clock {
    pub fn now(&self) -> i64 {
        BEGIN + i64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

struct Seeded(SmallRng, Clock);

impl Source for Seeded {
    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
    fn unix_ms(&mut self) -> i64 {
        self.1.now()
    }
}

struct Slot {
    life: u64,
    cut: Cut,
    task: Option<JoinHandle<Result<(), Stop>>>,
    to_owner: mpsc::Sender<Inbox>,
    answers: mpsc::Receiver<Result<wire::DeliverResponse, tonic::Status>>,
    dead_since: i64,
    back_at: i64,
}

struct Held {
    batch: Arc<Batch>,
    due: i64,
    /// Slot and life of the stream that has it.
    at: Option<(usize, u64)>,
}

pub struct World {
    pub clock: Clock,
    pub root: PathBuf,
    pub rng: SmallRng,
    pub oracle: Oracle,
    pub store: Arc<dyn Store>,
    metrics: Metrics,
    slots: Vec<Slot>,
    held: BTreeMap<BatchId, Held>,
    pub aggregator: Aggregator,
    pub deaths: u64,
    pub resent: u64,
}

impl World {
    pub fn new(root: &Path, seed: u64, patience: i64) -> Self {
        let clock = Clock(tokio::time::Instant::now());
        let mut world = Self {
            aggregator: Aggregator::new(clock.clone(), &config(0, root), seed ^ 0x77),
            clock,
            root: root.to_owned(),
            rng: SmallRng::seed_from_u64(seed),
            oracle: Oracle::new(root.to_owned(), patience),
            store: store::open(&config(0, root).destination).unwrap(),
            metrics: Metrics::new(&common::telemetry::Telemetry::new("test").unwrap().meter()),
            slots: Vec::new(),
            held: BTreeMap::new(),
            deaths: 0,
            resent: 0,
        };
        world.slots = (0..SLOTS).map(|slot| world.begin(slot, 1)).collect();
        world
    }

    fn begin(&mut self, slot: usize, life: u64) -> Slot {
        let cut = Cut::default();
        let store: Arc<dyn Store> = Arc::new(CutStore { inner: Arc::clone(&self.store), cut: cut.clone() });
        let (to_owner, inbox) = mpsc::channel(ANSWERS);
        let (out, answers) = mpsc::channel(ANSWERS);
        let stop = CancellationToken::new();
        to_owner.try_send(Inbox::Connected { stream: life, aggregator: "agg".into(), out, stop }).unwrap();
        let (config, clock) = (config(slot, &self.root), self.clock.clone());
        let source = Seeded(SmallRng::seed_from_u64(self.rng.random()), clock.clone());
        let task = tokio::spawn(live(config, store, inbox, source, clock, self.metrics.clone()));
        Slot { life, cut, task: Some(task), to_owner, answers, dead_since: 0, back_at: 0 }
    }

    /// One collector is about to die, in the midst of what it does next; it comes back later.
    pub fn kill(&mut self, slot: usize) {
        let calls = self.rng.random_range(0..120);
        self.slots[slot].cut.after(calls);
        let long = self.rng.random_bool(0.3);
        let pause = if long { self.rng.random_range(60..240) } else { self.rng.random_range(1..20) };
        self.slots[slot].back_at = self.clock.now() + pause * MINUTE;
    }

    fn arrived(&mut self, batch: Batch) {
        let batch = Arc::new(batch);
        self.oracle.sent(&batch);
        let delay = match self.rng.random_range(0..40_000) {
            // An open that goes alone is waited for.
            80..30_000 if batch.id.seq == 0 => 0,
            0 => self.rng.random_range(9 * HOUR..11 * HOUR),
            1..80 => self.rng.random_range(HOUR..3 * HOUR),
            _ => self.rng.random_range(0..90_000),
        };
        let due = self.clock.now() + delay;
        self.held.insert(batch.id.clone(), Held { batch, due, at: None });
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// A tick of the aggregator and of those who watch the collectors.
    pub async fn step(&mut self) {
        for batch in self.aggregator.take() {
            self.arrived(batch);
        }
        for slot in 0..SLOTS {
            self.take_answers(slot);
        }
        self.oracle.read();
        self.watch().await;
        self.deliver();
    }

    async fn watch(&mut self) {
        let now = self.clock.now();
        for at in 0..SLOTS {
            let slot = &mut self.slots[at];
            let ended = slot.task.as_ref().is_some_and(JoinHandle::is_finished);
            if slot.cut.is_cut() || ended {
                let Some(task) = slot.task.take() else {
                    if now >= slot.back_at {
                        let life = slot.life + 1;
                        self.slots[at] = self.begin(at, life);
                    }
                    continue;
                };
                task.abort();
                match task.await {
                    Ok(ended) => panic!("nothing here ends a run: {ended:?}"),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                }
                slot.cut.bury();
                slot.dead_since = now;
                self.deaths += 1;
            }
        }
    }

    /// The collector of an agent: its own while that one lives.
    fn route(&self, agent: &str) -> Option<usize> {
        let hash = agent.bytes().fold(7usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        (0..SLOTS).map(|more| (hash + more) % SLOTS).find(|slot| self.slots[*slot].task.is_some())
    }

    fn deliver(&mut self) {
        let now = self.clock.now();
        let lives = |(slot, life): (usize, u64)| self.slots[slot].life == life && self.slots[slot].task.is_some();
        let due: Vec<BatchId> = self
            .held
            .iter()
            .filter(|(_, held)| held.due <= now && !held.at.is_some_and(lives))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let Some(slot) = self.route(id.agent.as_str()) else { return };
            let held = self.held.get_mut(&id).unwrap();
            let stream = self.slots[slot].life;
            // What a broken stream left unanswered is listed before any payload.
            let event = if held.at.is_some() {
                Event::Unanswered { stream, keys: vec![id] }
            } else {
                Event::Arrived { stream, delivery: Box::new(delivery(&held.batch)) }
            };
            held.at = Some((slot, stream));
            // A full or closed queue: it is tried again.
            if self.slots[slot].to_owner.try_send(Inbox::Event(event)).is_err() {
                held.at = None;
            }
        }
    }

    fn take_answers(&mut self, slot: usize) {
        let stream = self.slots[slot].life;
        while let Ok(Ok(response)) = self.slots[slot].answers.try_recv() {
            let Some(Reply::Answers(answers)) = response.message else { continue };
            for answer in answers.answers {
                let id = BatchId::try_from(answer.key.as_ref().unwrap()).unwrap();
                let Some(held) = self.held.get_mut(&id) else { continue };
                match answer.answer.unwrap() {
                    Kinds::Committed(_) => {
                        self.held.remove(&id);
                        self.aggregator.committed(&id);
                    }
                    Kinds::Staged(_) => {}
                    Kinds::Again(_) => {
                        self.resent += 1;
                        let event = Event::Arrived { stream, delivery: Box::new(delivery(&held.batch)) };
                        if self.slots[slot].to_owner.try_send(Inbox::Event(event)).is_err() {
                            held.at = None;
                        }
                    }
                    Kinds::Busy(_) => held.at = None,
                    other => panic!("{id} is answered {other:?}"),
                }
            }
        }
    }

    /// All collectors are gone.
    pub async fn end(&mut self) {
        for mut slot in self.slots.drain(..) {
            if let Some(task) = slot.task.take() {
                task.abort();
                let _ = task.await;
            }
            slot.cut.bury();
        }
    }

    /// An operator's word.
    pub async fn operator(&mut self, action: Action) {
        let source = Box::new(Seeded(SmallRng::seed_from_u64(self.rng.random()), self.clock.clone()));
        let store = Arc::clone(&self.store);
        let mut solo = Solo::begin(store, "seal-tool", DirModes::default(), source, |_| ()).await.unwrap();
        solo.commit(|_, _| Ok(action.clone())).await.unwrap();
        solo.end().await.unwrap();
    }
}

async fn live(
    config: Config,
    store: Arc<dyn Store>,
    inbox: mpsc::Receiver<Inbox>,
    mut source: Seeded,
    clock: Clock,
    metrics: Metrics,
) -> Result<(), Stop> {
    let begun = replay::begin(store.clone(), &config.name, &mut source, |_| ()).await?;
    let mut settings = settings(&config, begun.layout.incarnation()).unwrap();
    settings.tail_every = Duration::from_secs(60);
    settings.seal_every = Duration::from_secs(120);
    let now = tokio::time::Instant::now().into_std();
    let ids: collector::coordinator::IdSource = Box::new(move || source.random());
    let coordinator = Coordinator::new(settings, begun.replayed, begun.layout.staging(), ids, now);
    let owner = Owner::new(Parts {
        coordinator,
        store,
        log: begun.log,
        layout: begun.layout,
        modes: Arc::new(DirModes::default()),
        memory: MemoryBudget::new(64 << 20),
        inbox,
        declarations: (1, Vec::new()),
        credit: (256 << 20, 32 << 20),
        metrics,
        snapshot: watch::channel(Snapshot::default()).0,
        unix_ms: Arc::new(move || clock.now()),
        tick: Duration::from_secs(15),
        inventory: None,
    });
    owner.run(Shutdown::new(Duration::from_secs(600))).await
}

fn delivery(batch: &Batch) -> Delivery {
    Delivery {
        id: batch.id.clone(),
        header: batch.header.bytes.clone(),
        payload: batch.payload.clone(),
        content: Ok(Box::new(batch.header.clone())),
        hold: Vec::new(),
    }
}
