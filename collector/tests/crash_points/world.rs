//! A destination, the agents that write to it, and runs of collectors that come one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use collector::commit::Stop;
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
use collector::store::Store;
use common::supervise::Shutdown;
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin};
use proto::wire::answer::Answer as Kinds;
use proto::wire::batch_header::Kind;
use proto::wire::{self, deliver_response::Message as Reply};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::Base;
use crate::faulty::{Archive, FaultyStore, Switch};

/// The wall clock at the beginning.
pub const BASE_UNIX_MS: i64 = 1_763_700_000_000;
/// The partition that is written, sealed, and written late: three days before.
const DAY: i32 = 20_410;

/// A batch and when it comes, seconds after the beginning.
pub struct Batch {
    pub id: BatchId,
    header: Header,
    payload: Bytes,
    at: u64,
    /// When it comes once more, though it was answered.
    again_at: Option<u64>,
}

fn batch(agent: &str, seq: u64, at: u64, kind: impl FnOnce(&str) -> (Kind, String)) -> Batch {
    let origin = Origin::mint(BASE_UNIX_MS as u64 - 1000, 7);
    let id = BatchId { agent: AgentName::new(agent).unwrap(), origin, seq };
    let (kind, payload) = kind(&id.to_string());
    let header = Header::encode(origin, seq, kind).unwrap();
    Batch { id, header, payload: payload.into(), at, again_at: None }
}

fn data(dataset: &'static str) -> impl FnOnce(&str) -> (Kind, String) {
    move |name| {
        let payload = format!("{name} one\n{name} two\n");
        let data = wire::Data {
            dataset: dataset.into(),
            partition: Some(wire::Partition { date: DAY, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 2,
            raw_bytes: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(payload.as_bytes()),
            zone: "UTC".into(),
            source: "s".into(),
            ..Default::default()
        };
        (Kind::Data(data), payload)
    }
}

fn open(_: &str) -> (Kind, String) {
    (Kind::Open(wire::Open::default()), String::new())
}

fn left(_: &str) -> (Kind, String) {
    (Kind::Close(wire::Close { left: true, ..Default::default() }), String::new())
}

/// One agent writes three files and leaves: the partition is compacted and sealed. Another one comes late. When both
/// have expired, a batch of the first comes once more.
fn batches() -> Vec<Batch> {
    let mut all = vec![
        batch("web-1", 0, 0, open),
        batch("web-1", 1, 0, data("d")),
        batch("web-1", 2, 8, data("d")),
        batch("web-1", 3, 8, data("undeclared")),
        batch("web-1", 4, 16, data("d")),
        batch("web-1", 5, 24, left),
        batch("web-2", 0, 90, open),
        batch("web-2", 1, 90, data("d")),
        batch("web-2", 2, 92, left),
    ];
    all[2].again_at = Some(270);
    all
}

fn config(collector: &str) -> Config {
    let text = format!(
        "name = \"{collector}\"\n[destination]\nurl = \"file:///unused\"\n[roll]\nage = \"4s\"\nidle = \"2s\"\n\
         [commit]\nclose_wait = \"3s\"\ncheckpoint_every = 3\nfinish_after = \"5s\"\n\
         [[datasets]]\nname = \"d\"\ncompression = \"none\"\nallowed_lateness = \"0s\"\nincomplete_after = \"10d\"\n"
    );
    common::config::parse(&text).unwrap()
}

struct Seeded(SmallRng);

impl Source for Seeded {
    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
    fn unix_ms(&mut self) -> i64 {
        BASE_UNIX_MS
    }
}

/// How a run ended.
pub type End = Result<(), Stop>;

pub struct World {
    pub store: Arc<dyn Store>,
    pub kept: Base,
    pub archive: Archive,
    pub batches: Vec<Batch>,
    pub answered: Mutex<BTreeSet<BatchId>>,
    repeated: Mutex<BTreeSet<BatchId>>,
    metrics: Metrics,
    begun: Instant,
    retire_after: u64,
}

/// A run under way.
pub struct Run {
    pub task: JoinHandle<End>,
    pub shutdown: Shutdown,
    pub switch: Arc<Switch>,
    pub snapshot: watch::Receiver<Snapshot>,
}

impl World {
    pub fn new(kept: Base, retire_after: u64) -> Arc<Self> {
        Arc::new(Self {
            store: kept.store(),
            kept,
            archive: Archive::default(),
            batches: batches(),
            answered: Mutex::default(),
            repeated: Mutex::default(),
            metrics: Metrics::new(&common::telemetry::Telemetry::new("test").unwrap().meter()),
            begun: Instant::now(),
            retire_after,
        })
    }

    /// Seconds since the beginning.
    pub fn now(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    pub async fn sleep_until(&self, second: u64) {
        tokio::time::sleep_until(self.begun + Duration::from_secs(second)).await;
    }

    /// Starts a run; `seed` makes its names.
    pub fn start(self: &Arc<Self>, collector: &'static str, seed: u64, log_retention: u64, switch: Arc<Switch>) -> Run {
        let shutdown = Shutdown::new(Duration::from_secs(60));
        let (snapshot, watched) = watch::channel(Snapshot::default());
        let live =
            live(Arc::clone(self), collector, seed, log_retention, Arc::clone(&switch), shutdown.clone(), snapshot);
        let task = tokio::spawn(freezable(Arc::clone(&switch), live));
        Run { task, shutdown, switch, snapshot: watched }
    }

    /// Every record there ever was, in order.
    pub fn records(&self) -> Vec<wire::CommitRecord> {
        crate::check::decode(self.archive.lock().unwrap().clone().into_iter().collect())
    }

    fn due(&self) -> Vec<&Batch> {
        let now = self.now();
        let mut answered = self.answered.lock().unwrap();
        let mut repeated = self.repeated.lock().unwrap();
        for batch in self.batches.iter().filter(|batch| batch.again_at.is_some_and(|at| now >= at)) {
            if repeated.insert(batch.id.clone()) {
                answered.remove(&batch.id);
            }
        }
        self.batches.iter().filter(|batch| batch.at <= now && !answered.contains(&batch.id)).collect()
    }
}

/// A process that is stopped does nothing at all.
async fn freezable<T>(switch: Arc<Switch>, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        switch.thawed().await;
        let mut frozen = switch.frozen.subscribe();
        tokio::select! {
            biased;
            _ = frozen.wait_for(|frozen| *frozen) => {}
            done = &mut work => return done,
        }
    }
}

async fn live(
    world: Arc<World>,
    collector: &'static str,
    seed: u64,
    log_retention: u64,
    switch: Arc<Switch>,
    shutdown: Shutdown,
    snapshot: watch::Sender<Snapshot>,
) -> End {
    let mut source = Seeded(SmallRng::seed_from_u64(seed));
    let store = FaultyStore {
        inner: world.store.clone(),
        kept: world.kept.clone(),
        archive: Arc::clone(&world.archive),
        switch,
    };
    let store: Arc<dyn Store> = Arc::new(store);
    let config = config(collector);
    let begun = replay::begin(Arc::clone(&store), collector, &mut source, |_| ()).await?;
    let (to_owner, inbox) = mpsc::channel(64);
    let _feeder = AbortOnDrop(tokio::spawn(feed(Arc::clone(&world), to_owner)));
    let mut settings = settings(&config, begun.layout.incarnation()).unwrap();
    let seconds = Duration::from_secs;
    settings.seal_every = seconds(2);
    let keep = &mut settings.housekeeping;
    (keep.heartbeat, keep.retire_after) = (seconds(10), seconds(world.retire_after));
    (keep.log_retention, keep.horizon, keep.every) = (seconds(log_retention), seconds(120), seconds(10));
    let mut ids = Seeded(SmallRng::seed_from_u64(seed ^ 0x55));
    let ids: collector::coordinator::IdSource = Box::new(move || ids.random());
    let now = Instant::now().into_std();
    let coordinator = Coordinator::new(settings, begun.replayed, begun.layout.staging(), ids, now);
    let start = world.begun;
    let owner = Owner::new(Parts {
        coordinator,
        store,
        log: begun.log,
        layout: begun.layout,
        modes: Arc::new(DirModes::default()),
        memory: MemoryBudget::new(64 << 20),
        inbox,
        declarations: (1, Vec::new()),
        credit: (1 << 20, 1 << 20),
        metrics: world.metrics.clone(),
        snapshot,
        unix_ms: Arc::new(move || BASE_UNIX_MS + start.elapsed().as_millis() as i64),
        tick: Duration::from_millis(500),
        inventory: None,
    });
    owner.run(shutdown).await
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An aggregator: sends what is due and not answered for good, again and again.
async fn feed(world: Arc<World>, to_owner: mpsc::Sender<Inbox>) {
    let (out, mut answers) = mpsc::channel(4096);
    let connected = Inbox::Connected { stream: 1, aggregator: "agg".into(), out, stop: CancellationToken::new() };
    if to_owner.send(connected).await.is_err() {
        return;
    }
    let mut next = tokio::time::interval(Duration::from_secs(2));
    loop {
        tokio::select! {
            _ = next.tick() => {
                for batch in world.due() {
                    let event = Event::Arrived { stream: 1, delivery: Box::new(delivery(batch)) };
                    if to_owner.send(Inbox::Event(event)).await.is_err() {
                        return;
                    }
                }
            }
            answer = answers.recv() => {
                let Some(Ok(answer)) = answer else { return };
                let Some(Reply::Answers(answers)) = answer.message else { continue };
                for answer in answers.answers {
                    if let (Some(Kinds::Committed(_) | Kinds::Refused(_)), Some(key)) = (&answer.answer, &answer.key) {
                        world.answered.lock().unwrap().insert(BatchId::try_from(key).unwrap());
                    }
                }
            }
        }
    }
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

/// What lies below `staging/`: names by run.
pub fn staging(store: &Base) -> BTreeMap<String, Vec<String>> {
    let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in store.all_below("_catchment/staging") {
        let mut parts = path.trim_start_matches("_catchment/staging/").splitn(2, '/');
        let names = runs.entry(parts.next().unwrap().to_owned()).or_default();
        names.extend(parts.next().map(str::to_owned));
    }
    runs
}
