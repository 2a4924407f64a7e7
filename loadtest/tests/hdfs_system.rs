//! The three tiers as processes against a real HDFS: live logs with kills, what Hadoop's own shell reads, and an outage of
//! the NameNode under load. Needs `java` and `mvn`.

mod scene;

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use loadtest::cluster::Cluster;
use loadtest::cluster::spec::{Ack, Roll, Tier};
use loadtest::generate::{self, Rotate};
use loadtest::hadoop::{Hdfs, Options};
use loadtest::progress::Progress;
use loadtest::verify::masker::Masker;
use loadtest::verify::{self, input};
use loadtest::{demo, run};

use scene::{dataset, program, small_spec};

fn hdfs() -> Hdfs {
    Hdfs::start(&Options::default()).unwrap()
}

fn generation(dir: &std::path::Path, bytes: u64, rate: Option<u64>) -> generate::Options {
    generate::Options {
        bytes,
        hosts: 2,
        first_host: 0,
        out: dir.to_owned(),
        seed: 21,
        rate,
        rotate: Rotate::None,
        rotate_bytes: u64::MAX,
        odd_per_million: generate::ODD_PER_MILLION,
        end: generate::yesterday(),
    }
}

fn logs(dir: &std::path::Path, bytes: u64) -> Vec<std::path::PathBuf> {
    generate::generate(&generation(dir, bytes, None), &AtomicU64::new(0)).unwrap();
    input::matched_files(&[format!("{}/*/access.log", dir.display())]).unwrap()
}

#[test]
fn live_logs_kills_and_hadoops_own_shell() {
    let hdfs = hdfs();
    let dir = tempfile::tempdir().unwrap();
    let options = demo::Options {
        bytes: 18_000_000,
        rate: 1_000_000,
        hosts: 4,
        dataset: dataset("text", "zstd"),
        dest: Some(format!("{}/live", hdfs.url())),
        ..demo::Options::new(dir.path().join("live"))
    };
    let outcome = demo::demo(&options, program()).unwrap();
    assert!(outcome.is_exact(), "{}", verify::report::verdict(&outcome));

    // Gzip text as Hadoop decodes it: as many lines as were published.
    let files = logs(&dir.path().join("logs"), 4_000_000);
    let finished = run::run(
        &run::Options {
            logs: files,
            dest: format!("{}/gzip", hdfs.url()),
            dataset: dataset("text", "gzip"),
            agents: 2,
            aggregators: 1,
            collectors: 2,
            masker: Masker::Replace,
            work: None,
        },
        program(),
    )
    .unwrap();
    assert!(finished.outcome.is_exact(), "{}", verify::report::verdict(&finished.outcome));
    let text = hdfs.text("/gzip/clickstream/*/*.log.gz").unwrap();
    assert_eq!(memchr::memchr_iter(b'\n', &text).count() as u64, finished.outcome.sums.published);
    // Zstd, byte for byte as the reader's own tool gets it.
    let frames = hdfs.cat("/live/clickstream/*/*.log.zst").unwrap();
    let lines = zstd::stream::decode_all(&frames[..]).unwrap();
    assert_eq!(memchr::memchr_iter(b'\n', &lines).count() as u64, outcome.sums.published);
}

/// Writes logs all the time; roll age 2 s, or `CATCHMENT_OUTAGE_ROLL_SECONDS`, and an outage of 12 of them.
fn outage(ack: Ack) {
    let age = std::env::var("CATCHMENT_OUTAGE_ROLL_SECONDS").map_or(2, |text| text.parse().expect("a number"));
    let age = Duration::from_secs(age);
    let mut hdfs = hdfs();
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let mut spec = small_spec(dir.path(), Vec::new());
    spec.agents = (0..2).map(|host| vec![format!("{}/{}/*.log", logs.display(), generate::host_name(host))]).collect();
    spec.aggregators = 2;
    spec.ack = ack;
    spec.dest = format!("{}/outage", hdfs.url());
    spec.roll = Roll { age, ..spec.roll };
    let dest = spec.dest.clone();
    let mut cluster = Cluster::create(spec, program(), &dir.path().join("nodes")).unwrap();
    cluster.start(Tier::Collector, 0).unwrap();
    cluster.wait_ready(Tier::Collector, 0).unwrap();
    cluster.start(Tier::Aggregator, 0).unwrap();
    cluster.wait_ready(Tier::Aggregator, 0).unwrap();
    let writer = write_live(&logs, 300_000 * (12 * age.as_secs() + 8));
    cluster.start_agent(0, false).unwrap();
    wait_until(|| cluster.sum(Tier::Collector, "committed_events") > 0);
    hdfs.stop_namenode();
    // An aggregator and an agent that are started while nothing can be committed.
    cluster.start(Tier::Aggregator, 1).unwrap();
    cluster.start_agent(1, false).unwrap();
    let before = cluster.sum(Tier::Aggregator, "accepted_batches");
    std::thread::sleep(12 * age);
    cluster.check_all_alive(&Tier::ALL).unwrap();
    assert!(cluster.sum(Tier::Aggregator, "accepted_batches") > before, "batches are taken while HDFS is away");
    let committed = cluster.sum(Tier::Collector, "committed_events");
    hdfs.start_namenode().unwrap();
    wait_until(|| cluster.sum(Tier::Collector, "committed_events") > committed);
    writer.join().unwrap();
    let mut progress = Progress::new("outage");
    cluster.stop_all(Tier::EdgeAgent, Duration::from_secs(90)).unwrap();
    cluster.start_agents(true).unwrap();
    run::wait_for_agents(&mut cluster, &mut progress).unwrap();
    let held = |index| cluster.status(Tier::Aggregator, index)?.get("held_batches")?.as_u64();
    wait_until(|| held(0) == Some(0) && held(1) == Some(0));
    // Each batch lies in one channel only: else more were stored than are ever committed.
    let stored = cluster.sum(Tier::Aggregator, "accepted_batches");
    wait_until(|| cluster.sum(Tier::Collector, "committed_batches") == stored);
    run::drain_servers(&mut cluster, &mut progress).unwrap();
    let options = verify::Options {
        logs: input::matched_files(&[format!("{}/*/access.log", logs.display())]).unwrap(),
        dest,
        dataset: None,
        masker: Masker::Replace,
        log_format: None,
        known: Default::default(),
    };
    let outcome = verify::verify(&options).unwrap();
    assert!(outcome.is_exact(), "{}", verify::report::verdict(&outcome));
    assert!(outcome.found.quarantined_batches.is_empty());
}

fn write_live(logs: &std::path::Path, bytes: u64) -> std::thread::JoinHandle<generate::Written> {
    let options = generation(logs, bytes, Some(300_000));
    std::thread::spawn(move || generate::generate(&options, &AtomicU64::new(0)).unwrap())
}

#[test]
fn an_outage_under_load_with_ack_committed() {
    outage(Ack::Committed);
}

#[test]
fn an_outage_under_load_with_ack_durable() {
    outage(Ack::Durable);
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to pass within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}
