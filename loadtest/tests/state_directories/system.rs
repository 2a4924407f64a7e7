//! All tiers as processes, with agents whose state directory can be somewhere else, and everything that can be asked about
//! them afterwards: lines at the destination, events by run, who is named for what.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use common::clock::{Fast, system_unix_ms};
use edge_agent::outbox::{look, view};
use loadtest::cluster::spec::{Dataset, Roll, Spec, Tier};
use loadtest::cluster::{Cluster, http};
use serde_json::Value;

use crate::scene::day::{HOUR_MS, MIDNIGHT, START, line, wait_for};
use crate::scene::{program, small_spec};

/// The agent.
pub const NAME: &str = "edge-agent-1";
const DAY: &str = "clicks/event_date=2026-03-08";
/// Listed in the inventory and never there: no day is sealed before a test takes it out.
const NEVER_SEEN: &str = "blocker";

/// Half an hour, which a historical load has to settle, takes a second.
fn fast_clock() -> Fast {
    Fast { start_unix_ms: START, real_start_unix_ms: system_unix_ms(), rate: 1800 }
}

/// A log whose lines are numbered, dated two days before the clock's midnight: due, and loaded late.
pub struct Log {
    pub path: PathBuf,
    pub id: usize,
    pub next: u64,
}

impl Log {
    pub fn new(path: impl Into<PathBuf>, id: usize) -> Self {
        Self { path: path.into(), id, next: 0 }
    }

    pub fn text(&mut self, lines: u64) -> String {
        let numbers = self.next..self.next + lines;
        self.next = numbers.end;
        numbers.map(|number| line(self.id, number, MIDNIGHT - 48 * HOUR_MS + 1000 * number as i64)).collect()
    }

    pub fn write(&mut self, lines: u64) {
        let text = self.text(lines);
        self.append(&text);
    }

    pub fn append(&self, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// All tiers; agents read what they are told to, and the state directory of each can be somewhere else.
pub struct System {
    pub cluster: Cluster,
    pub data: PathBuf,
    pub inventory: PathBuf,
}

impl System {
    /// Nothing runs yet.
    pub fn new(dir: &Path, agents: Vec<Vec<String>>, servers: usize) -> Self {
        let inventory = dir.join("inventory");
        fs::write(&inventory, format!("{NAME}\n{NEVER_SEEN}\n")).unwrap();
        let dataset = Dataset {
            name: "clicks".into(),
            compression: "gzip".into(),
            extra: "allowed_lateness = \"1h\"\nincomplete_after = \"365d\"\n".into(),
            ..Dataset::default()
        };
        let spec = Spec {
            agents,
            aggregators: servers,
            collectors: servers,
            dataset,
            roll: Roll { bytes: 64 << 20, age: Duration::from_millis(400), idle: Duration::from_millis(200) },
            linger: Duration::from_millis(100),
            clock: Some(fast_clock()),
            top: vec![(Tier::EdgeAgent, "mark_every = \"1s\"\ndrain_deadline = \"1s\"".into())],
            extra: vec![(
                Tier::Collector,
                format!("[housekeeping]\ninventory = \"{}\"\nheartbeat = \"1s\"\n", inventory.display()),
            )],
            ..small_spec(dir, Vec::new())
        };
        let cluster = Cluster::create(spec, program(), &dir.join("cluster")).unwrap();
        let system = Self { cluster, data: dir.join("data"), inventory };
        for index in 0..system.cluster.count(Tier::EdgeAgent) {
            // Small disks; two equal files are known for two soon.
            system.configure(index, "min_free = ", "\"1MiB\"");
            system.configure(index, "type = ", "\"tail\"\ncopy_wait = \"300ms\"");
        }
        system
    }

    /// Sets one line of an agent's configuration.
    pub fn configure(&self, index: usize, key: &str, value: &str) {
        let path = self.cluster.node_dir(Tier::EdgeAgent, index).join("config.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (old, new) = (text.lines().find(|line| line.starts_with(key)).unwrap(), format!("{key}{value}"));
        fs::write(&path, text.replacen(old, &new, 1)).unwrap();
    }

    pub fn keep_state_in(&self, index: usize, state: &Path) {
        self.configure(index, "state_dir = ", &format!("\"{}\"", state.display()));
    }

    pub fn first_state(&self) -> PathBuf {
        self.cluster.node_dir(Tier::EdgeAgent, 0).join("state")
    }

    /// Starts those collectors and aggregators that do not run.
    pub fn start_servers(&mut self) {
        for tier in [Tier::Collector, Tier::Aggregator] {
            for index in 0..self.cluster.count(tier) {
                if !self.cluster.is_running(tier, index) {
                    self.cluster.start(tier, index).unwrap();
                }
                self.cluster.wait_ready(tier, index).unwrap();
            }
        }
    }

    pub fn kill_all(&mut self, tier: Tier) {
        (0..self.cluster.count(tier)).for_each(|index| self.cluster.kill(tier, index).unwrap());
    }

    /// `/status` of an agent, once it says so.
    pub fn agent(&self, index: usize, what: &str, says: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || {
            self.cluster.check_alive(Tier::EdgeAgent, index).unwrap();
            self.cluster.status(Tier::EdgeAgent, index).filter(&says)
        })
    }

    /// Waits until the running agent has cut so many events.
    pub fn cut(&self, index: usize, events: u64) {
        self.agent(index, "cutting", |status| status["published_events"].as_u64() >= Some(events));
    }

    /// Waits until so many different lines lie at the destination.
    pub fn arrived(&self, lines: usize) {
        wait_for("the arrival of the lines", || (self.lines().len() >= lines).then_some(()));
    }

    pub fn tool(&self, tier: Tier, index: usize, args: &[&str]) -> (Output, String) {
        let output = self.cluster.tool(tier, index, args).unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output, String::from_utf8(text).unwrap())
    }

    pub fn tool_well(&self, tier: Tier, index: usize, args: &[&str]) -> String {
        let (output, text) = self.tool(tier, index, args);
        assert!(output.status.success(), "{args:?}: {text}");
        text
    }

    pub fn collector_json(&self, args: &[&str]) -> Value {
        let output = self.cluster.tool(Tier::Collector, 0, args).unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What `collector seal status` says the day waits for: agent, reason, what to do. Not who was never seen.
    pub fn waits_for(&self) -> Vec<(String, String, String)> {
        let report = self.collector_json(&["seal", "status", "--dataset", "clicks", "--json"]);
        let waits = report["open"].as_array().unwrap().iter().flat_map(|open| open["waits_for"].as_array().unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let waits = waits.filter(|wait| wait["agent"] != NEVER_SEEN);
        waits.map(|wait| (text(&wait["agent"]), text(&wait["reason"]), text(&wait["what_to_do"]))).collect()
    }

    /// From now on the day may be sealed.
    pub fn allow_seals(&self) {
        fs::write(&self.inventory, format!("{NAME}\n")).unwrap();
    }

    /// Name and text of the day's marker, once it is there.
    pub fn marker(&self) -> (&'static str, Value) {
        wait_for("the seal", || {
            ["_SUCCESS", "_INCOMPLETE"].into_iter().find_map(|name| {
                let text = fs::read(self.data.join(DAY).join(name)).ok()?;
                Some((name, serde_json::from_slice(&text).unwrap()))
            })
        })
    }

    /// How often each line lies at the destination, by log and number.
    pub fn lines(&self) -> BTreeMap<(usize, u64), u32> {
        let mut lines = BTreeMap::new();
        let files = files_below(&self.data.join("clicks"));
        for file in files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "gz")) {
            // One that is there no more was joined with others.
            let Ok(file) = File::open(file) else { continue };
            let mut text = String::new();
            flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
            for line in text.lines() {
                let path = line.split_once("\"GET /a").unwrap_or_else(|| panic!("not written by this test: {line}")).1;
                let (id, rest) = path.split_once('/').unwrap();
                let number = rest.split_once(' ').unwrap().0;
                *lines.entry((id.parse().unwrap(), number.parse().unwrap())).or_default() += 1;
            }
        }
        lines
    }

    /// The day is sealed; every line of it lies there exactly as often as is said, and nothing else anywhere.
    pub fn check_lines(&self, expected: &[(usize, Range<u64>, u32)]) {
        let times = expected.iter().flat_map(|(id, numbers, times)| numbers.clone().map(|n| ((*id, n), *times)));
        let (expected, found): (BTreeMap<_, _>, _) = (times.collect(), self.lines());
        let none = 0;
        let of = |lines: &BTreeMap<(usize, u64), u32>, key| *lines.get(key).unwrap_or(&none);
        let differ = expected.keys().chain(found.keys()).filter(|key| of(&expected, key) != of(&found, key));
        let differ: BTreeMap<_, _> = differ.map(|key| (key, (of(&expected, key), of(&found, key)))).collect();
        assert!(differ.is_empty(), "(log, line): (expected, found) {differ:?}");
        for aside in ["dead-letter", "quarantine"] {
            let files = files_below(&self.data.join("_catchment").join(aside));
            assert!(files.is_empty(), "{files:?}");
        }
        let (_, marker) = self.marker();
        assert_eq!(marker["events"], expected.values().map(|times| u64::from(*times)).sum::<u64>(), "{marker}");
        let total = self.published_by_run().values().sum::<u64>();
        assert_eq!(marker["events"], total, "{marker}");
    }

    /// Events by run, as the commit log has them.
    pub fn published_by_run(&self) -> BTreeMap<String, u64> {
        let mut runs = BTreeMap::new();
        let log = self.collector_json(&["log", "show", "0..", "--json"]);
        for cover in log["records"].as_array().unwrap().iter().flat_map(|record| record["covers"].as_array().unwrap()) {
            assert_eq!(cover["agent"], NAME, "{cover}");
            let counts = cover["counts"].as_array().unwrap();
            let events: u64 = counts.iter().map(|count| count["published"].as_u64().unwrap()).sum();
            *runs.entry(cover["origin"].as_str().unwrap().to_owned()).or_default() += events;
        }
        runs
    }

    /// An agent that has nothing to complain about: no word in its status, and no error in its log.
    pub fn check_content(&self, index: usize) {
        let status = self.cluster.status(Tier::EdgeAgent, index).unwrap();
        assert!(status["restored_or_copied"].is_null(), "{status}");
        let errors = self.errors(index);
        assert!(errors.is_empty(), "{errors:?}");
    }

    pub fn errors(&self, index: usize) -> Vec<String> {
        let log = fs::read_to_string(self.cluster.node_dir(Tier::EdgeAgent, index).join("log.jsonl")).unwrap();
        log.lines().filter(|line| line.contains("\"ERROR\"")).map(str::to_owned).collect()
    }

    /// The agent says everywhere it can that its directory is a copy of one that ran as `origin`.
    pub fn check_named(&self, index: usize, message: &str, origin: &str) {
        let status = self.agent(index, "the agent says so", |status| status["restored_or_copied"].is_string());
        let told = status["restored_or_copied"].as_str().unwrap();
        assert!(told.contains(origin) && told.contains("collector seal abandon"), "{told}");
        let shown = self.tool_well(Tier::EdgeAgent, index, &["status"]);
        assert!(shown.contains("restored_or_copied: ") && shown.contains(origin), "{shown}");
        let errors = self.errors(index);
        assert!(errors.iter().any(|error| error.contains(message) && error.contains(origin)), "{errors:?}");
        let metrics = http::get(self.cluster.addresses(Tier::EdgeAgent, index).admin, "/metrics").unwrap().body;
        let metric = metrics.lines().find(|line| line.starts_with("catchment_agent_restored_or_copied")).unwrap();
        assert!(metric.ends_with(" 1"), "{metric}");
    }

    /// The seal waits and names the agent for that reason; once `origin` is abandoned it waits no more.
    pub fn abandon(&self, reason: &str, named: &str, origin: &str) {
        self.allow_seals();
        let waits = wait_for("the seal names the agent", || {
            let waits = self.waits_for();
            waits.iter().any(|(_, why, _)| why == reason).then_some(waits)
        });
        for (agent, why, what_to_do) in &waits {
            // A run of which nothing comes any more is silent, besides.
            assert!(agent == NAME && (why == reason || why == "silent"), "{waits:?}");
            let says = what_to_do.contains("seal abandon") && what_to_do.contains(named);
            assert!(why == "silent" || says, "{waits:?}");
        }
        let command = ["seal", "abandon", "--agent", NAME, "--origin", origin, "--reason", "a copy"];
        self.tool_well(Tier::Collector, 0, &command);
    }

    /// Seals the day by hand as soon as it waits for nobody; the marker's name and text.
    pub fn seal(&self) -> (&'static str, Value) {
        self.allow_seals();
        let status = ["seal", "status", "--dataset", "clicks", "--json"];
        wait_for("a day that waits for nobody", || {
            let report = self.collector_json(&status);
            report["open"].as_array().unwrap().iter().all(|open| open["state"] == "ready").then_some(())
        });
        // Fails where a collector has just done it.
        let command = ["seal", "now", "--dataset", "clicks", "--partition", "event_date=2026-03-08", "--incomplete"];
        self.tool(Tier::Collector, 0, &command);
        self.marker()
    }

    /// The day is sealed, and only what was abandoned makes it incomplete.
    pub fn seal_names(&self, origin: &str) {
        let (name, marker) = self.seal();
        assert_eq!(name, "_INCOMPLETE", "{marker}");
        let gaps = marker["gaps"].as_array().unwrap();
        assert!(!gaps.is_empty(), "{marker}");
        for gap in gaps {
            let named = (gap["agent"].as_str(), gap["reason"].as_str(), gap["origin"].as_str());
            assert_eq!(named, (Some(NAME), Some("abandoned"), Some(origin)), "{marker}");
        }
    }

    /// The day is sealed and nothing is missing.
    pub fn success(&self) {
        let (name, marker) = self.seal();
        assert_eq!(name, "_SUCCESS", "{marker}");
        assert_eq!(marker["gaps"].as_array().map(Vec::len), Some(0), "{marker}");
    }
}

pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

/// Events of batches that the outbox keeps since they are not acked.
pub fn unacked_events(state: &Path) -> u64 {
    let Ok(look) = look::look(&state.join("outbox"), true) else { return u64::MAX };
    view::batches(&look, NAME, None).iter().map(|batch| batch.events).sum()
}
