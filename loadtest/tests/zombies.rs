//! Collectors that stand still before their rename, are retired and cleaned up after, and go on: each stops by itself and
//! says why, nothing is twice and nothing is lost. Real processes (SIGSTOP, SIGCONT) on a real HDFS.
//!
//! `CATCHMENT_ZOMBIES=20 cargo test -p loadtest --test zombies` plays more rounds; the seed is printed, `CATCHMENT_SEED`
//! plays it again.

#![allow(clippy::print_stderr, reason = "the seed, and what each zombie said, are read by people")]

mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use loadtest::cluster::Cluster;
use loadtest::cluster::spec::{Roll, Spec, Tier};
use loadtest::hadoop::{Hdfs, Options};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use scene::day::{PATIENCE, Writer, clock, wait_for};
use scene::{program, small_spec};

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

const HOUSEKEEPING: &str = "[housekeeping]\nheartbeat = \"1s\"\nretire_after = \"4s\"\nlog_retention = \"1h\"\n\
                            [commit]\ncheckpoint_every = 3\nfinish_after = \"1s\"\n";

#[test]
fn zombies_stop_by_themselves() {
    let seed = from_env("CATCHMENT_SEED", rand::random::<u32>().into());
    eprintln!("CATCHMENT_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let hdfs = Hdfs::start(&Options { datanodes: 2, replication: 2, ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let clock = clock();
    let root = format!("{}/zombies", hdfs.url());
    let spec = Spec {
        agents: (0..2).map(|agent| vec![format!("{}/{agent}/clicks", logs.display())]).collect(),
        collectors: 2,
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
    for round in 0..from_env("CATCHMENT_ZOMBIES", 2) {
        let zombie =
            wait_for("a collector with something staged", || (0..2).find(|index| staged(&cluster, *index) > 0));
        std::thread::sleep(Duration::from_millis(rng.random_range(0..900)));
        let said = one_zombie(&mut cluster, &hdfs, &root, zombie);
        eprintln!("round {round}: collector-{} says: {said}", zombie + 1);
    }
    let counts = writer.stop();
    cluster.stop_all(Tier::EdgeAgent, PATIENCE).unwrap();
    cluster.start_agents(true).unwrap();
    cluster.join_all(Tier::EdgeAgent, PATIENCE).unwrap();
    cluster.drain_aggregators(PATIENCE).unwrap();
    cluster.stop_all(Tier::Aggregator, PATIENCE).unwrap();
    cluster.stop_all(Tier::Collector, PATIENCE).unwrap();

    let files = hdfs.cat(&format!("{root}/clickstream/*/*.log.zst")).unwrap();
    let text = zstd::stream::decode_all(&files[..]).unwrap();
    let mut found: BTreeMap<(usize, u64), u64> = BTreeMap::new();
    for line in String::from_utf8(text).unwrap().lines() {
        let (_, id) = line.split_once("GET /a").unwrap();
        let (agent, rest) = id.split_once('/').unwrap();
        let number = rest.split(' ').next().unwrap();
        *found.entry((agent.parse().unwrap(), number.parse().unwrap())).or_default() += 1;
    }
    let written: u64 = counts.iter().filter(|((_, log, _), _)| *log == "clicks").map(|(_, lines)| lines).sum();
    assert!(found.values().all(|times| *times == 1), "seed {seed}: an event is there twice");
    assert_eq!(found.len() as u64, written, "seed {seed}");
}

fn staged(cluster: &Cluster, index: usize) -> u64 {
    cluster.status(Tier::Collector, index).and_then(|status| status["staged_batches"].as_u64()).unwrap_or(0)
}

/// Freezes a collector until it is retired and its directory is gone; lets it go on; it ends.
/// Returns why, in its own words.
fn one_zombie(cluster: &mut Cluster, hdfs: &Hdfs, root: &str, zombie: usize) -> String {
    let incarnation = cluster.status(Tier::Collector, zombie).unwrap()["incarnation"].as_str().unwrap().to_owned();
    cluster.freeze(Tier::Collector, zombie, true).unwrap();
    let names = || hdfs.ls(&format!("{root}/_catchment/staging")).unwrap_or_default();
    wait_for("the retirement", || (!names().contains(&incarnation)).then_some(()));
    cluster.freeze(Tier::Collector, zombie, false).unwrap();
    let began = Instant::now();
    let tail = cluster.join(Tier::Collector, zombie, PATIENCE).unwrap();
    assert!(began.elapsed() < PATIENCE);
    let why = tail.lines().last().unwrap_or_default().to_owned();
    assert!(tail.contains("retired") || tail.contains("view"), "it does not say why: {tail}");
    cluster.start(Tier::Collector, zombie).unwrap();
    cluster.wait_ready(Tier::Collector, zombie).unwrap();
    let log = fs::read_to_string(cluster.node_dir(Tier::Collector, zombie).join("log.jsonl")).unwrap();
    assert!(!log.contains("panicked"), "{tail}");
    why
}
