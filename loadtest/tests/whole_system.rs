//! The three tiers together, as processes of their own on loopback, with a local destination: runs with kills in every
//! format, personal data that may be nowhere, one enormous line.

mod scene;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use loadtest::cluster::spec::{Dataset, Tier};
use loadtest::cluster::{Cluster, http};
use loadtest::demo;
use loadtest::progress::Progress;
use loadtest::run;
use loadtest::verify::masker::Masker;
use loadtest::verify::{self, Outcome};

use scene::{dataset, destination, files_with, program, small_spec};

fn live_run_with_kills(dataset: Dataset) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let options = demo::Options {
        bytes: 10_000_000,
        rate: 1_000_000,
        hosts: 4,
        dataset,
        ..demo::Options::new(dir.path().join("demo"))
    };
    demo::demo(&options, program()).unwrap()
}

fn assert_exact(outcome: &Outcome) {
    assert!(outcome.is_exact(), "{}", verify::report::verdict(outcome));
    assert!(outcome.sums.events_in > 0);
}

#[test]
fn live_logs_and_kills_to_zstd_text() {
    assert_exact(&live_run_with_kills(dataset("text", "zstd")));
}

#[test]
fn live_logs_and_kills_to_gzip_text() {
    assert_exact(&live_run_with_kills(dataset("text", "gzip")));
}

#[test]
fn live_logs_and_kills_to_parquet() {
    assert_exact(&live_run_with_kills(dataset("parquet", "zstd")));
}

/// The given files, once, through `loadtest run`.
fn run_files(dir: &Path, logs: Vec<std::path::PathBuf>, dataset: Dataset) -> run::Finished {
    let options = run::Options {
        logs,
        dest: destination(dir),
        dataset,
        agents: 2,
        aggregators: 2,
        collectors: 1,
        masker: Masker::Replace,
        work: Some(dir.join("work")),
    };
    run::run(&options, program()).unwrap()
}

#[test]
fn an_agent_stays_small_with_a_line_of_100_mb() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("huge.log");
    let mut file = fs::File::create(&log).unwrap();
    let line = "10.0.0.1 - - [20/Nov/2025:13:55:36 +0000] \"GET / HTTP/1.1\" 200 1 \"-\" \"-\"\n";
    file.write_all(line.as_bytes()).unwrap();
    let block = vec![b'x'; 1_000_000];
    (0..100).for_each(|_| file.write_all(&block).unwrap());
    write!(file, "\n{line}").unwrap();
    drop(file);
    let finished = run_files(dir.path(), vec![log], Dataset::default());
    assert_exact(&finished.outcome);
    assert_eq!((finished.outcome.sums.published, finished.outcome.sums.dead_lettered), (2, 1));
    let (tier, usage) = finished.usage[0];
    assert_eq!(tier, Tier::EdgeAgent);
    assert!(usage.peak_rss_bytes < 64 << 20, "{} bytes", usage.peak_rss_bytes);
}

#[test]
fn a_line_without_date_and_a_partial_last_line_are_counted_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("odd.log");
    let mut text = b"no date at all\n\n\r\n10.0.0.1 - - [20/Nov/2025:13:55:36 +0000] \"GET /caf\xe9 HTTP/1.1\" 200 1 \"-\" \"-\"\r\n".to_vec();
    text.extend_from_slice(
        b"10.0.0.1 - - [20/Nov/2025:13:55:37 +0000] \"GET / HTTP/1.1\" 200 1 \"-\" \"jane@example.com\"",
    );
    fs::write(&log, text).unwrap();
    let finished = run_files(dir.path(), vec![log], dataset("parquet", "zstd"));
    assert_exact(&finished.outcome);
    assert_eq!((finished.outcome.sums.published, finished.outcome.sums.dead_lettered), (2, 3));
    assert_eq!(finished.outcome.found.partitions["event_date=2025-11-20"].events, 2);
}

/// Personal data that would be recognised anywhere, also where a line is undated, broken, too long or cut.
const CANARIES: [&str; 4] = ["canary7f3a", "7654321", "canary9b1c", "1122334"];

fn canary_lines() -> Vec<u8> {
    let dated =
        |path: &str| format!("10.0.0.1 - - [20/Nov/2025:13:55:36 +0000] \"GET {path} HTTP/1.1\" 200 1 \"-\" \"-\"\n");
    let mut lines = Vec::new();
    for round in 0..2_000 {
        let lines_of_round = [
            dated(&format!("/n{round}?to=canary7f3a@leak.example.org&phone=%2B49%20170%207654321")),
            format!("undated {round} canary7f3a%40leak.example.org tel:+491707654321\n"),
            format!(
                "broken {round} [99/Xyz/2025:99:99:99 +0000] \"GET /?user=canary9b1c@leak.example.org\" phone=030/1122334\n"
            ),
        ];
        lines.extend(lines_of_round.concat().into_bytes());
    }
    // Too long: personal data at the head, around the 64 KiB at which dead letters are cut, and at the end.
    for shift in 0..40 {
        let mut line = b"canary7f3a@leak.example.org ".to_vec();
        line.resize(65_536 - shift, b' ');
        line.extend_from_slice(b"canary9b1c@leak.example.org +49 170 7654321 ");
        line.resize(2_200_000, b'z');
        line.extend_from_slice(b" canary7f3a@leak.example.org\n");
        if shift % 8 == 0 {
            lines.extend(line);
        }
    }
    lines.extend_from_slice(b"cut in the middle canary7f3a@leak.example.org +49 170 7654321");
    lines
}

#[test]
fn personal_data_is_found_nowhere_even_after_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, nodes) = (dir.path().join("logs"), dir.path().join("nodes"));
    fs::create_dir_all(&logs).unwrap();
    fs::write(logs.join("access.log"), canary_lines()).unwrap();
    assert_eq!(files_with(&logs, &CANARIES).len(), 1, "the search finds what is there");
    let spec = small_spec(dir.path(), vec![format!("{}/*.log", logs.display())]);
    let mut cluster = Cluster::create(spec, program(), &nodes).unwrap();
    cluster.start_servers().unwrap();
    cluster.start_agents(true).unwrap();
    let nothing = |what: &str| {
        let found = files_with(&nodes, &CANARIES);
        assert!(found.is_empty(), "{what}: personal data in {found:?}");
        let found = files_with(&dir.path().join("data"), &CANARIES);
        assert!(found.is_empty(), "{what}: personal data in {found:?}");
    };
    // What lies in the outbox, the channel and the staging directory while batches are on their way.
    wait_until(|| cluster.sum(Tier::EdgeAgent, "cut_batches") > 3);
    no_canary_in_metrics(&cluster, Tier::EdgeAgent);
    cluster.kill(Tier::EdgeAgent, 0).unwrap();
    cluster.kill(Tier::Aggregator, 0).unwrap();
    cluster.kill(Tier::Collector, 0).unwrap();
    nothing("after the kills");
    cluster.start_servers().unwrap();
    cluster.start_agents(true).unwrap();
    no_canary_in_metrics(&cluster, Tier::Aggregator);
    no_canary_in_metrics(&cluster, Tier::Collector);
    let mut progress = Progress::new("canaries");
    run::wait_for_agents(&mut cluster, &mut progress).unwrap();
    run::drain_servers(&mut cluster, &mut progress).unwrap();
    nothing("at the end");
    let outcome = verify::verify(&verify::Options {
        logs: vec![logs.join("access.log")],
        dest: destination(dir.path()),
        dataset: None,
        masker: Masker::Replace,
        log_format: None,
        known: Default::default(),
    });
    assert_exact(&outcome.unwrap());
}

fn no_canary_in_metrics(cluster: &Cluster, tier: Tier) {
    let metrics = http::get(cluster.addresses(tier, 0).admin, "/metrics").unwrap().body;
    assert!(!metrics.is_empty() && CANARIES.iter().all(|canary| !metrics.contains(canary)), "{metrics}");
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to pass within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}
