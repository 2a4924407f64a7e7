//! Several incarnations race on one store that fails as HDFS does, are killed at any step and come back, while every
//! batch is delivered to any of them at any time, also after it was answered.
//!
//! Held: I1, I4, I5, I8 for every seed, and that everything is committed in the end. A failure names its seed:
//! `CATCHMENT_SEED=<n> cargo test -p collector --test races` plays it again; `CATCHMENT_SEEDS=<n>` runs more of them.

mod check;
mod store;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use collector::commit::Stop;
use collector::config::Config;
use collector::coordinator::{Coordinator, Delivery, Event};
use collector::metrics::Metrics;
use collector::owner::{Owner, Parts, TICK};
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
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use store::{Faults, MemStore};

const SLOTS: usize = 3;
const LONGEST: Duration = Duration::from_secs(4 * 3600);
/// Longer than any change can be late.
const QUIET: Duration = Duration::from_secs(200);

fn config(slot: usize) -> Config {
    // One collector does not declare `sometimes`: what is data for the others goes into its quarantine.
    let sometimes = if slot == 0 { "" } else { "[[datasets]]\nname = \"sometimes\"\ncompression = \"none\"\n" };
    let text = format!(
        "name = \"col-{slot}\"\n[destination]\nurl = \"file:///unused\"\n[roll]\nage = \"6s\"\nidle = \"2s\"\nevents = 8\n\
         [commit]\nclose_wait = \"3s\"\ncheckpoint_every = 4\nfinish_after = \"5s\"\n\
         [[datasets]]\nname = \"d\"\ncompression = \"none\"\n{sometimes}"
    );
    common::config::parse(&text).unwrap()
}

struct Batch {
    id: BatchId,
    header: Header,
    payload: Bytes,
}

fn batch(agent: &str, origin: u64, seq: u64, kind: impl FnOnce(&str) -> (Kind, String)) -> Batch {
    let origin = Origin::mint(1_763_700_000_000 + origin, u128::from(origin));
    let id = BatchId { agent: AgentName::new(agent).unwrap(), origin, seq };
    let (kind, payload) = kind(&id.to_string());
    let header = Header::encode(origin, seq, kind).unwrap();
    Batch { id, header, payload: payload.into() }
}

fn data(dataset: &'static str, date: i32) -> impl FnOnce(&str) -> (Kind, String) {
    move |name| {
        let payload = format!("{name} one\n{name} two\n");
        let data = wire::Data {
            dataset: dataset.into(),
            partition: Some(wire::Partition { date, hour: None }),
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

fn batches(rng: &mut SmallRng) -> Vec<Batch> {
    let mut all = Vec::new();
    for (agent, origin) in [("web-1", 1), ("web-2", 2), ("web-2", 3)] {
        let end = rng.random_range(6..14);
        for seq in 0..end {
            all.push(batch(agent, origin, seq, |name| match (seq, rng.random_range(0..10)) {
                (0, _) => (Kind::Open(wire::Open::default()), String::new()),
                (_, _) if seq == end - 1 => (Kind::Close(wire::Close::default()), String::new()),
                (_, 0) => (Kind::Mark(wire::Mark::default()), String::new()),
                (_, 1) => (Kind::Void(wire::Void::default()), String::new()),
                (_, 2) => data("undeclared", 1)(name),
                (_, 3 | 4) => data("sometimes", 1)(name),
                (_, n) => data("d", n % 3)(name),
            }));
        }
    }
    all
}

struct Seeded(SmallRng);

impl Source for Seeded {
    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
    fn unix_ms(&mut self) -> i64 {
        unix_ms()
    }
}

fn unix_ms() -> i64 {
    1_763_700_000_000
}

/// What all parts of one round share.
struct Round {
    store: MemStore,
    batches: Vec<Batch>,
    answered: Mutex<BTreeSet<BatchId>>,
    metrics: Metrics,
    stops: Mutex<Vec<Stop>>,
    broken: Mutex<Vec<String>>,
}

/// One incarnation: begins, runs, is fed.
async fn live(round: Arc<Round>, slot: usize, seed: u64, shutdown: Shutdown) {
    let mut source = Seeded(SmallRng::seed_from_u64(seed));
    let config = config(slot);
    let dyn_store: Arc<dyn Store> = Arc::new(round.store.clone());
    let begun = replay::begin(dyn_store.clone(), &config.name, &mut source, |_| ()).await.unwrap();
    let (to_owner, inbox) = mpsc::channel(64);
    let feeder = tokio::spawn(feed(round.clone(), to_owner, seed));
    let settings = settings(&config, begun.layout.incarnation()).unwrap();
    let mut ids = Seeded(SmallRng::seed_from_u64(seed ^ 0x55));
    let now = tokio::time::Instant::now().into_std();
    let ids: collector::coordinator::IdSource = Box::new(move || ids.random());
    let coordinator = Coordinator::new(settings, begun.replayed, begun.layout.staging(), ids, now);
    let owner = Owner::new(Parts {
        coordinator,
        store: dyn_store,
        log: begun.log,
        layout: begun.layout,
        modes: Arc::new(DirModes::default()),
        memory: MemoryBudget::new(64 << 20),
        inbox,
        declarations: (1, Vec::new()),
        credit: (1 << 20, 1 << 20),
        metrics: round.metrics.clone(),
        snapshot: watch::channel(Snapshot::default()).0,
        unix_ms: Arc::new(unix_ms),
        tick: TICK,
        inventory: None,
    });
    if let Err(stop) = owner.run(shutdown).await {
        round.stops.lock().unwrap().push(stop);
    }
    feeder.abort();
}

/// An adversary for an aggregator: any batch, at any time, again and again; half of them what was not answered yet.
async fn feed(round: Arc<Round>, to_owner: mpsc::Sender<Inbox>, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x77);
    let (out, mut answers) = mpsc::channel(4096);
    let stop = CancellationToken::new();
    let connected = Inbox::Connected { stream: 1, aggregator: "agg".into(), out, stop };
    if to_owner.send(connected).await.is_err() {
        return;
    }
    let pause = |rng: &mut SmallRng| Duration::from_millis(rng.random_range(1..1500));
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {
                next += pause(&mut rng);
                let open: Vec<_> = {
                    let answered = round.answered.lock().unwrap();
                    round.batches.iter().filter(|batch| !answered.contains(&batch.id)).collect()
                };
                let all = round.batches.iter().collect();
                let from = if open.is_empty() || rng.random_bool(0.5) { all } else { open };
                let batch = from[rng.random_range(0..from.len())];
                let event = if rng.random_bool(0.1) {
                    Event::Unanswered { stream: 1, keys: vec![batch.id.clone()] }
                } else {
                    Event::Arrived { stream: 1, delivery: Box::new(delivery(batch)) }
                };
                if to_owner.send(Inbox::Event(event)).await.is_err() {
                    return;
                }
            }
            answer = answers.recv() => {
                let Some(Ok(answer)) = answer else { return };
                take_answers(&round, answer);
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

/// I1: what is answered for good is in the log by then.
fn take_answers(round: &Round, response: wire::DeliverResponse) {
    let Some(Reply::Answers(answers)) = response.message else { return };
    let covered = check::covered(&check::records(&round.store));
    for answer in answers.answers {
        if let (Some(Kinds::Committed(_) | Kinds::Refused(_)), Some(key)) = (&answer.answer, &answer.key) {
            let id = BatchId::try_from(key).unwrap();
            if !covered.contains_key(&id.to_string()) {
                round.broken.lock().unwrap().push(format!("I1: {id} is answered and not in the log"));
            }
            round.answered.lock().unwrap().insert(id);
        }
    }
}

struct Slot {
    task: JoinHandle<()>,
    shutdown: Shutdown,
}

fn begin(round: &Arc<Round>, slot: usize, seed: u64) -> Slot {
    let shutdown = Shutdown::new(Duration::from_secs(600));
    Slot { task: tokio::spawn(live(round.clone(), slot, seed, shutdown.clone())), shutdown }
}

async fn play(seed: u64) -> u64 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let faults = Faults {
        reply_lost: rng.random_range(0..60),
        late: rng.random_range(0..60),
        lost: rng.random_range(0..60),
        unavailable: rng.random_range(0..60),
        slow_close: rng.random_range(0..200),
    };
    let metrics = Metrics::new(&common::telemetry::Telemetry::new("test").unwrap().meter());
    let batches = batches(&mut rng);
    let round = Arc::new(Round {
        store: MemStore::new(rng.random(), faults),
        batches,
        answered: Mutex::default(),
        metrics,
        stops: Mutex::default(),
        broken: Mutex::default(),
    });
    let begun = tokio::time::Instant::now();
    let mut slots: Vec<Slot> = (0..SLOTS).map(|slot| begin(&round, slot, rng.random())).collect();
    while round.answered.lock().unwrap().len() < round.batches.len() {
        assert!(
            begun.elapsed() < LONGEST,
            "L: not everything is committed: {:?}",
            check::covered(&check::records(&round.store))
        );
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..20_000))).await;
        let at = rng.random_range(0..SLOTS);
        match rng.random_range(0..10) {
            0..4 => slots[at].task.abort(),
            4 => slots[at].shutdown.drain(),
            5 => round.store.set_down(true),
            _ => round.store.set_down(false),
        }
        for (at, slot) in slots.iter_mut().enumerate() {
            if slot.task.is_finished() {
                surface(slot).await;
                *slot = begin(&round, at, rng.random());
            }
        }
    }
    settle(&round, slots, rng.random()).await;
    check::files_match_the_log(&round.store, &check::records(&round.store));
    let stops = round.stops.lock().unwrap();
    assert!(stops.is_empty(), "nothing here ends a run: {stops:?}");
    let broken = round.broken.lock().unwrap();
    assert!(broken.is_empty(), "{broken:?}");
    round.store.silent()
}

/// A panic in an incarnation is a failure of the round; a kill is not.
async fn surface(slot: &mut Slot) {
    if let Err(error) = (&mut slot.task).await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Kills all, lets whatever is late happen, and lets one run finish the work of all.
async fn settle(round: &Arc<Round>, mut slots: Vec<Slot>, seed: u64) {
    for slot in &mut slots {
        slot.task.abort();
        surface(slot).await;
    }
    round.store.set_down(false);
    round.store.set_faults(Faults::default());
    let mut last = begin(round, 1, seed);
    tokio::time::sleep(QUIET).await;
    last.shutdown.drain();
    surface(&mut last).await;
}

#[test]
fn each_batch_is_committed_once_whatever_fails() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("CATCHMENT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CATCHMENT_SEEDS").unwrap_or(40),
    };
    let mut silent = 0;
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let round = std::panic::AssertUnwindSafe(|| runtime.block_on(play(seed)));
        match std::panic::catch_unwind(round) {
            Ok(more) => silent += more,
            Err(panic) => {
                let text = format!("seed {seed} failed: play it again with CATCHMENT_SEED={seed}");
                std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
                std::panic::resume_unwind(panic);
            }
        }
        runtime.shutdown_background();
    }
    assert!(silent > 0, "no change was carried out unanswered: this test tests nothing");
}
