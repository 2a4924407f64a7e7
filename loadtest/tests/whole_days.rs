//! Whole days, by real processes that live by a fast clock: a day in minutes. On a real HDFS: every hour is sealed with the
//! counts that were written, small files become few, an agent that is down is named and given up, what comes late goes
//! where the policy says. On a local directory: what an aggregator's lost disk means for the seal.

mod scene;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::clock::Fast;
use loadtest::cluster::Cluster;
use loadtest::cluster::spec::{Ack, Dataset, Roll, Spec, Tier};
use loadtest::hadoop::{Hdfs, Options};
use serde_json::Value;

use scene::day::{Counts, DAY, HOUR_MS, MIDNIGHT, PATIENCE, Writer, clock, line, now, sleep_until, wait_for};
use scene::python::{python, said};
use scene::{destination, program, small_spec};

/// When the agent that goes down at half past eight comes back. The hours that it misses at first are given up four hours
/// after they begin; a collector looks every ten seconds, and joins small files first: three hours and more by this clock.
const RETURN: f64 = 17.0;

/// Hours as partitions, an hour of lateness, two more for those who are silent.
fn hourly(late: &str) -> String {
    format!("partition = \"hour\"\nallowed_lateness = \"1h\"\nincomplete_after = \"2h\"\nlate = \"{late}\"\n")
}

fn day_spec(dest: String, logs: &Path, agents: usize, clock: Fast) -> Spec {
    let paths = |log: &str| (0..agents).map(|agent| vec![format!("{}/{agent}/{log}", logs.display())]).collect();
    let dataset =
        Dataset { name: "clicks".into(), compression: "gzip".into(), extra: hourly("append"), ..Dataset::default() };
    let second_dataset = format!(
        "[[datasets]]\nname = \"second\"\nzone = \"UTC\"\nformat = \"text\"\ncompression = \"gzip\"\n{}",
        hourly("late")
    );
    Spec {
        agents: paths("clicks"),
        aggregators: 2,
        collectors: 2,
        dest,
        dataset,
        roll: Roll { bytes: 64 << 20, age: Duration::from_millis(800), idle: Duration::from_millis(600) },
        linger: Duration::from_millis(200),
        clock: Some(clock),
        top: vec![(Tier::EdgeAgent, "mark_every = \"1s\"".into())],
        extra: vec![
            (
                Tier::EdgeAgent,
                format!(
                    "[[sources]]\nname = \"second\"\ntype = \"tail\"\npaths = [\"{}/*/second\"]\ndataset = \"second\"\n\
                     time = {{ format = \"log_format\", log_format = \"combined\" }}\n",
                    logs.display()
                ),
            ),
            (Tier::Collector, second_dataset),
        ],
        ..small_spec(logs, Vec::new())
    }
}

/// What a tool printed as JSON.
fn tool_json(cluster: &Cluster, args: &[&str]) -> Value {
    let output = cluster.tool(Tier::Collector, 0, args).unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{args:?} printed no JSON ({error}): {}", String::from_utf8_lossy(&output.stdout))
    })
}

/// Data files that all collectors committed, from their own logs.
fn committed_files(cluster: &Cluster) -> u64 {
    let count = |index| {
        let log = fs::read_to_string(cluster.node_dir(Tier::Collector, index).join("log.jsonl")).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == "committed").filter_map(|line| line["files"].as_u64()).sum::<u64>()
    };
    (0..cluster.count(Tier::Collector)).map(count).sum()
}

/// A destination on HDFS, read by Hadoop's own shell.
struct Remote<'a> {
    hdfs: &'a Hdfs,
    root: String,
}

impl Remote<'_> {
    /// Markers by hour, with their names.
    fn markers(&self, dataset: &str) -> BTreeMap<i64, (String, Value)> {
        let mut markers = BTreeMap::new();
        for name in ["_SUCCESS", "_INCOMPLETE"] {
            let all = self.hdfs.cat(&format!("{}/{dataset}/{DAY}/*/{name}", self.root)).unwrap_or_default();
            for marker in serde_json::Deserializer::from_slice(&all).into_iter::<Value>() {
                let marker = marker.unwrap();
                let (_, hour) = marker["partition"].as_str().unwrap().rsplit_once('=').unwrap();
                markers.insert(hour.parse().unwrap(), (name.to_owned(), marker));
            }
        }
        markers
    }

    /// Lines of each hour as DuckDB counts them, in the files that Hadoop's shell copies out.
    fn lines(&self, dataset: &str) -> BTreeMap<i64, u64> {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("day");
        self.hdfs.shell(&["-get", &format!("{}/{dataset}/{DAY}", self.root), to.to_str().unwrap()]).unwrap();
        let output = Command::new(python()).args(["-c", COUNT]).arg(&to).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let hours: BTreeMap<String, u64> = serde_json::from_slice(&output.stdout).unwrap();
        hours.into_iter().map(|(hour, lines)| (hour.parse().unwrap(), lines)).collect()
    }
}

const COUNT: &str = r#"
import duckdb, json, sys
query = f"""select event_hour, count(*) from read_csv('{sys.argv[1]}/*/*.gz', columns = {{'line': 'VARCHAR'}},
    delim = '\x01', quote = '', escape = '', header = false, hive_partitioning = true) group by event_hour"""
print(json.dumps({str(hour): lines for hour, lines in duckdb.sql(query).fetchall()}))
"#;

/// Every agent reads the second log of all of them, and its own clicks.
fn written(counts: &Counts, log: &str, hour: i64) -> u64 {
    let readers = if log == "second" { 3 } else { 1 };
    readers * counts.iter().filter(|((_, of, at), _)| *of == log && *at == hour).map(|(_, lines)| lines).sum::<u64>()
}

#[test]
#[ignore = "takes five minutes; run it by name"]
fn a_day_on_hdfs() {
    let hdfs = Hdfs::start(&Options { datanodes: 2, replication: 2, ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let clock = clock();
    let root = format!("{}/day", hdfs.url());
    let mut cluster =
        Cluster::create(day_spec(root.clone(), &logs, 3, clock), program(), &dir.path().join("cluster")).unwrap();
    let writer = Writer::start(&logs, 3, clock);
    cluster.start_servers().unwrap();
    cluster.start_agents(false).unwrap();
    assert!(now(clock) < MIDNIGHT + 2 * HOUR_MS, "this machine is too slow for a day in minutes");

    // One agent goes down; the hours behind it wait for it, by name, then are given up.
    sleep_until(clock, 8.5);
    cluster.kill(Tier::EdgeAgent, 2).unwrap();
    sleep_until(clock, 10.5);
    let status = tool_json(&cluster, &["seal", "status", "--json"]).to_string();
    assert!(status.contains("edge-agent-3") && status.contains("event_hour=08"), "{status}");
    sleep_until(clock, RETURN);
    cluster.start_agent(2, false).unwrap();
    sleep_until(clock, 24.1);
    let counts = writer.stop();
    for agent in 0..3 {
        let left = cluster.tool(Tier::EdgeAgent, agent, &["leave"]).unwrap();
        assert!(left.status.success(), "{}", String::from_utf8_lossy(&left.stderr));
    }
    cluster.join_all(Tier::EdgeAgent, PATIENCE).unwrap();

    let remote = Remote { hdfs: &hdfs, root };
    for dataset in ["clicks", "second"] {
        let markers = wait_for("the seal of every hour", || {
            let markers = remote.markers(dataset);
            (0..24).all(|hour| markers.contains_key(&hour)).then_some(markers)
        });
        check_hours(&remote, dataset, &counts, &markers);
    }
    late_line(&mut cluster, &remote, &logs, clock);
    let published = committed_files(&cluster);
    let left: u64 = ["clicks", "second"]
        .iter()
        .flat_map(|d| remote.markers(d))
        .map(|(_, (_, m))| m["files"].as_u64().unwrap())
        .sum();
    assert!(published > 3 * left, "{published} files were published, {left} are left");
    cluster.drain_aggregators(PATIENCE).unwrap();
    cluster.stop_all(Tier::Aggregator, PATIENCE).unwrap();
    cluster.stop_all(Tier::Collector, PATIENCE).unwrap();
}

/// Markers, files and what was written agree; only the hours that the dead agent missed are incomplete, and name it.
fn check_hours(remote: &Remote<'_>, dataset: &str, counts: &Counts, markers: &BTreeMap<i64, (String, Value)>) {
    let lines = remote.lines(dataset);
    for hour in 0..24 {
        let (name, marker) = &markers[&hour];
        let (events, late) = (marker["events"].as_u64().unwrap(), marker["late_events"].as_u64().unwrap());
        let aside = if dataset == "second" { late } else { 0 };
        assert_eq!(events + aside, written(counts, dataset, hour), "{dataset} hour {hour}: {marker}");
        assert_eq!(lines[&hour], events, "{dataset} hour {hour}");
        match hour {
            // Its marks end at half past eight: hour 7 may be whole, but nobody says so.
            7..=9 => {
                assert_eq!(name, "_INCOMPLETE", "hour {hour}: {marker}");
                assert!(marker["gaps"].to_string().contains("edge-agent-3"), "{marker}");
                assert!(hour == 7 || late > 0, "{marker}");
            }
            // Given up while the agent comes back, or not.
            10..=16 => assert!(name == "_SUCCESS" || marker["gaps"].to_string().contains("edge-agent-3"), "{marker}"),
            _ => {
                assert_eq!((name.as_str(), late), ("_SUCCESS", 0), "hour {hour}: {marker}");
                assert!(marker["files"].as_u64().unwrap() <= 2, "{marker}");
            }
        }
    }
    if dataset == "second" {
        assert_eq!(remote.lines("second_late")[&8], markers[&8].1["late_events"].as_u64().unwrap());
    }
}

/// A line of an hour that was sealed long ago goes where the policy says.
fn late_line(cluster: &mut Cluster, remote: &Remote<'_>, logs: &Path, clock: Fast) {
    let before = remote.markers("clicks")[&3].1.clone();
    for log in ["clicks", "second"] {
        let mut file = OpenOptions::new().append(true).open(logs.join("0").join(log)).unwrap();
        file.write_all(line(0, 1 << 40, MIDNIGHT + 3 * HOUR_MS + 1).as_bytes()).unwrap();
    }
    assert!(now(clock) > MIDNIGHT + 24 * HOUR_MS);
    cluster.start_agent(0, true).unwrap();
    cluster.join_all(Tier::EdgeAgent, PATIENCE).unwrap();
    let marker = wait_for("the late line in the marker", || {
        let (_, marker) = remote.markers("clicks").remove(&3)?;
        (marker["late_events"] == 1).then_some(marker)
    });
    assert!(marker["seal"].as_u64() > before["seal"].as_u64(), "{marker}");
    assert_eq!(marker["events"].as_u64().unwrap(), before["events"].as_u64().unwrap() + 1);
    assert_eq!(remote.lines("clicks")[&3], marker["events"].as_u64().unwrap());
    wait_for("the late line of the other policy", || (remote.lines("second_late").get(&3) == Some(&1)).then_some(()));
    assert_eq!(remote.markers("second")[&3].1["late_events"], 1);
}

/// An aggregator loses its disk with batches that no collector has taken. Returns the marker of the hour.
fn lost_disk(ack: Ack) -> (String, Value, u64) {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let clock = clock();
    let mut spec = day_spec(destination(dir.path()), &logs, 1, clock);
    (spec.ack, spec.aggregators, spec.collectors) = (ack, 1, 1);
    // The next run of the killed collector takes over its share of the partitions when that is retired.
    let housekeeping = "[housekeeping]\nheartbeat = \"1s\"\nretire_after = \"4s\"\nlog_retention = \"1h\"\n";
    spec.extra.push((Tier::Collector, housekeeping.into()));
    let mut cluster = Cluster::create(spec, program(), &dir.path().join("cluster")).unwrap();
    fs::create_dir_all(logs.join("0")).unwrap();
    cluster.start_servers().unwrap();
    cluster.start_agents(false).unwrap();
    wait_for("the agent's first record", || (cluster.sum(Tier::Collector, "agents") == 1).then_some(()));
    // The collector is away: what comes now lies in the channel alone (and, by the policy, in the outbox).
    cluster.kill(Tier::Collector, 0).unwrap();
    let mut lines = 0;
    for log in ["clicks", "second"] {
        let mut file = File::create(logs.join("0").join(log)).unwrap();
        for number in 0..50 {
            file.write_all(line(0, number, MIDNIGHT - HOUR_MS + 60_000 * number as i64).as_bytes()).unwrap();
            lines += u64::from(log == "clicks");
        }
    }
    wait_for("everything to lie in the channel", || {
        let status = cluster.status(Tier::EdgeAgent, 0)?;
        (status["read_events"] == 100 && status["undelivered_batches"] == 0).then_some(())
    });
    cluster.kill(Tier::Aggregator, 0).unwrap();
    fs::remove_dir_all(cluster.node_dir(Tier::Aggregator, 0).join("data")).unwrap();
    cluster.start_servers().unwrap();
    let mut file = OpenOptions::new().append(true).open(logs.join("0/clicks")).unwrap();
    file.write_all(line(0, 50, MIDNIGHT - 1000).as_bytes()).unwrap();
    let hour: PathBuf = dir.path().join("data/clicks/event_date=2026-03-09/event_hour=23");
    let found = wait_for("the seal", || {
        ["_SUCCESS", "_INCOMPLETE"]
            .into_iter()
            .find_map(|name| Some((name.to_owned(), fs::read(hour.join(name)).ok()?)))
    });
    let marker = serde_json::from_slice(&found.1).unwrap();
    cluster.stop_all(Tier::EdgeAgent, PATIENCE).unwrap();
    (found.0, marker, lines + 1)
}

#[test]
fn a_lost_disk_is_named_by_the_seal_where_the_ack_was_durable() {
    let (name, marker, _) = lost_disk(Ack::Durable);
    assert_eq!((name.as_str(), marker["events"].as_u64()), ("_INCOMPLETE", Some(1)), "{marker}");
    let gap = &marker["gaps"][0];
    assert_eq!((gap["agent"].as_str(), gap["reason"].as_str()), (Some("edge-agent-1"), Some("missing_batches")));
    assert!(gap["missing"].as_str().is_some_and(|seqs| !seqs.is_empty()), "{marker}");
    let (name, marker, lines) = lost_disk(Ack::Committed);
    assert_eq!((name.as_str(), marker["events"].as_u64()), ("_SUCCESS", Some(lines)), "{marker}");
}
