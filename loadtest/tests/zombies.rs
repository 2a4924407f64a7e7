//! Collectors that stand still before their rename, are retired, and go on: each stops by itself and says why, nothing is
//! twice and nothing is lost. Real processes (SIGSTOP, SIGCONT) on a real HDFS. A zombie wakes
//!
//! - after its directory was cleaned up,
//! - while only the record in the log says that it is retired,
//! - after the log was cleaned past that record.
//!
//! `CATCHMENT_ZOMBIES=20 cargo test -p loadtest --test zombies` plays more rounds of each; the seed is printed,
//! `CATCHMENT_SEED` plays it again.

#![allow(clippy::print_stderr, reason = "the seed, and what each zombie said, are read by people")]

mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use collector::commit::solo::Solo;
use collector::publish::DirModes;
use collector::replay::Source;
use collector::store::{self, DestinationConfig};
use common::clock::Fast;
use loadtest::cluster::Cluster;
use loadtest::cluster::spec::{Roll, Spec, Tier};
use loadtest::hadoop::{Hdfs, Options};
use proto::wire;
use proto::wire::commit_record::Action;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use scene::day::{PATIENCE, Writer, clock, now, wait_for};
use scene::{program, small_spec};

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

const HOUSEKEEPING: &str = "[housekeeping]\nheartbeat = \"1s\"\nretire_after = \"4s\"\nlog_retention = \"1h\"\n\
                            [commit]\ncheckpoint_every = 3\nfinish_after = \"1s\"\n";

/// One at a time: each has an HDFS and a cluster of its own.
static ALONE: Mutex<()> = Mutex::new(());

/// Two agents that write all the time, an aggregator, collectors.
struct Farm {
    seed: u64,
    rng: SmallRng,
    root: String,
    clock: Fast,
    writer: Writer,
    cluster: Cluster,
    hdfs: Hdfs,
    _dir: tempfile::TempDir,
}

impl Farm {
    fn start(collectors: usize) -> Self {
        let seed = from_env("CATCHMENT_SEED", rand::random::<u32>().into());
        eprintln!("CATCHMENT_SEED={seed}");
        let hdfs = Hdfs::start(&Options { datanodes: 2, replication: 2, ..Options::default() }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let clock = clock();
        let root = format!("{}/zombies", hdfs.url());
        let spec = Spec {
            agents: (0..2).map(|agent| vec![format!("{}/{agent}/clicks", logs.display())]).collect(),
            collectors,
            dest: root.clone(),
            roll: Roll { bytes: 64 << 20, age: Duration::from_millis(700), idle: Duration::from_millis(500) },
            clock: Some(clock),
            extra: vec![(Tier::Collector, HOUSEKEEPING.into())],
            ..small_spec(&logs, Vec::new())
        };
        let mut cluster = Cluster::create(spec, program(), &dir.path().join("cluster")).unwrap();
        let writer = Writer::start(&logs, 2, clock);
        cluster.start_servers().unwrap();
        cluster.start_agents(false).unwrap();
        Self { seed, rng: SmallRng::seed_from_u64(seed), root, clock, writer, cluster, hdfs, _dir: dir }
    }

    fn staged(&self, index: usize) -> u64 {
        let status = self.cluster.status(Tier::Collector, index);
        status.and_then(|status| status["staged_batches"].as_u64()).unwrap_or(0)
    }

    /// Names below `_catchment/<dir>`.
    fn names(&self, dir: &str) -> String {
        self.hdfs.ls(&format!("{}/_catchment/{dir}", self.root)).unwrap_or_default()
    }

    /// Freezes a collector; its run.
    fn freeze(&self, zombie: usize) -> String {
        let status = self.cluster.status(Tier::Collector, zombie).unwrap();
        self.cluster.freeze(Tier::Collector, zombie, true).unwrap();
        status["incarnation"].as_str().unwrap().to_owned()
    }

    /// Lets it go on; it ends. Why, in its own words; then it is started again.
    fn wake(&mut self, zombie: usize) -> String {
        self.cluster.freeze(Tier::Collector, zombie, false).unwrap();
        let began = Instant::now();
        let tail = self.cluster.join(Tier::Collector, zombie, PATIENCE).unwrap();
        let took = began.elapsed();
        let why = tail.lines().last().unwrap_or_default().to_owned();
        eprintln!("collector-{} ended {took:?} later: {why}", zombie + 1);
        self.cluster.start(Tier::Collector, zombie).unwrap();
        self.cluster.wait_ready(Tier::Collector, zombie).unwrap();
        let log = fs::read_to_string(self.cluster.node_dir(Tier::Collector, zombie).join("log.jsonl")).unwrap();
        assert!(!log.contains("panicked"), "{tail}");
        why
    }

    /// The record that retired a run, if it is in the log.
    fn retire_record(&self, asked: usize, incarnation: &str) -> Option<u64> {
        let output = self.cluster.tool(Tier::Collector, asked, &["log", "show", "--json", "0.."]).unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
        let says = format!("retire {incarnation}");
        let mut records = shown["records"].as_array()?.iter();
        records.find(|record| record["says"].as_str().is_some_and(|text| text.starts_with(&says)))?["n"].as_u64()
    }

    /// Ends everything in order; each line that was written is there once.
    fn end(mut self) {
        let counts = self.writer.stop();
        let cluster = &mut self.cluster;
        cluster.stop_all(Tier::EdgeAgent, PATIENCE).unwrap();
        cluster.start_agents(true).unwrap();
        cluster.join_all(Tier::EdgeAgent, PATIENCE).unwrap();
        cluster.drain_aggregators(PATIENCE).unwrap();
        cluster.stop_all(Tier::Aggregator, PATIENCE).unwrap();
        cluster.stop_all(Tier::Collector, PATIENCE).unwrap();
        let files = self.hdfs.cat(&format!("{}/clickstream/*/*.log.zst", self.root)).unwrap();
        let text = zstd::stream::decode_all(&files[..]).unwrap();
        let mut found: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for line in String::from_utf8(text).unwrap().lines() {
            let (_, id) = line.split_once("GET /a").unwrap();
            let (agent, rest) = id.split_once('/').unwrap();
            let number = rest.split(' ').next().unwrap();
            *found.entry((agent.parse().unwrap(), number.parse().unwrap())).or_default() += 1;
        }
        let written: u64 = counts.iter().filter(|((_, log, _), _)| *log == "clicks").map(|(_, lines)| lines).sum();
        assert!(found.values().all(|times| *times == 1), "seed {}: an event is there twice", self.seed);
        assert_eq!(found.len() as u64, written, "seed {}", self.seed);
        eprintln!("{written} lines, each once");
    }
}

#[test]
fn zombies_stop_by_themselves() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut farm = Farm::start(2);
    for _ in 0..from_env("CATCHMENT_ZOMBIES", 2) {
        let zombie = wait_for("a collector with something staged", || (0..2).find(|index| farm.staged(*index) > 0));
        std::thread::sleep(Duration::from_millis(farm.rng.random_range(0..900)));
        let incarnation = farm.freeze(zombie);
        wait_for("the retirement", || (!farm.names("staging").contains(&incarnation)).then_some(()));
        let why = farm.wake(zombie);
        assert!(why.contains("retired") || why.contains("view"), "it does not say why: {why}");
    }
    farm.end();
}

/// The wall clock of the farm, and chance.
struct Clockwork(Fast);

impl Source for Clockwork {
    fn random(&mut self) -> [u8; 16] {
        rand::random()
    }
    fn unix_ms(&mut self) -> i64 {
        now(self.0)
    }
}

/// Writes the record and nothing more, as a run that ends before it comes to the directory.
fn retire(root: &str, clock: Fast, incarnation: &str) -> u64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = store::open(&DestinationConfig::new(root.to_owned())).unwrap();
        let source = Box::new(Clockwork(clock));
        let mut solo = Solo::begin(store, "other", DirModes::default(), source, |_| ()).await.unwrap();
        let reason = "as the test says".to_owned();
        let record = wire::Retire { incarnation: incarnation.to_owned(), reason };
        let n = solo.commit(|_, _| Ok(Action::Retire(record.clone()))).await.unwrap();
        solo.end().await.unwrap();
        n
    })
}

#[test]
fn a_zombie_is_stopped_by_the_record_alone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Nobody else is there who would come to its directory.
    let mut farm = Farm::start(1);
    for round in 0..from_env("CATCHMENT_ZOMBIES", 4) {
        let busy = round % 2 == 0;
        wait_for("the moment", || ((farm.staged(0) > 0) == busy).then_some(()));
        if busy {
            std::thread::sleep(Duration::from_millis(farm.rng.random_range(0..900)));
        }
        let incarnation = farm.freeze(0);
        let n = retire(&farm.root, farm.clock, &incarnation);
        let its = format!("/staging/{incarnation}/seen-");
        assert!(farm.names("staging").contains(&its), "its directory is there, under its name");
        let why = farm.wake(0);
        assert!(why.contains(&format!("this run is retired by record {n}, written by other-")), "{why}");
        assert!(why.contains("start the collector again"), "{why}");
        wait_for("the end of its directory", || (!farm.names("staging").contains(&incarnation)).then_some(()));
    }
    farm.end();
}

#[test]
fn a_zombie_finds_the_log_cleaned_past_its_end() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut farm = Farm::start(2);
    for _ in 0..from_env("CATCHMENT_ZOMBIES", 2) {
        let zombie = wait_for("a collector with something staged", || (0..2).find(|index| farm.staged(*index) > 0));
        let other = 1 - zombie;
        std::thread::sleep(Duration::from_millis(farm.rng.random_range(0..900)));
        let incarnation = farm.freeze(zombie);
        let n = wait_for("the retirement", || farm.retire_record(other, &incarnation));
        wait_for("the end of its directory", || (!farm.names("staging").contains(&incarnation)).then_some(()));
        // A run cleans when it has begun and once an hour: so it begins again, until an hour of the fast clock is over.
        wait_for("the log to be cleaned", || {
            farm.cluster.stop(Tier::Collector, other, PATIENCE).unwrap();
            farm.cluster.start(Tier::Collector, other).unwrap();
            farm.cluster.wait_ready(Tier::Collector, other).unwrap();
            std::thread::sleep(Duration::from_secs(3));
            let there = farm.names("commits");
            (!there.contains(&proto::record::number_name(n))).then_some(())
        });
        let why = farm.wake(zombie);
        let says = ["this run is retired", "view is older than what is kept"];
        assert!(says.iter().any(|text| why.contains(text)) && why.contains("start"), "{why}");
    }
    farm.end();
}
