//! The whole agent in-process against scripted aggregators: every line exactly once by batch identity, whatever is
//! killed.

mod support;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::supervise::Shutdown;
use edge_agent::agent::owner::End;
use edge_agent::agent::{self, Tuning};
use edge_agent::config::AgentConfig;
use support::{Fake, Script, State, eventually};

struct Bench {
    dir: tempfile::TempDir,
    next: u64,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        Self { dir, next: 0 }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("logs/access.log")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn write(&mut self, lines: u64) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        for _ in 0..lines {
            writeln!(file, "2026-11-20T10:{:02}:{:02}Z line {}", self.next / 60 % 60, self.next % 60, self.next)
                .unwrap();
            self.next += 1;
        }
    }

    fn config(&self, peers: &[&Fake], more: &str) -> AgentConfig {
        let peers: Vec<String> = peers.iter().map(|fake| fake.at.to_string()).collect();
        let text = format!(
            "name = \"web-1\"\nstate_dir = {:?}\n{more}\n[aggregators]\npeers = {peers:?}\ntimeout = \"2s\"\n\
             [outbox]\nmin_free = \"1MiB\"\nmin_free_percent = 0\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [batch]\nlinger = \"50ms\"\nmax_raw_bytes = \"16KiB\"\n\
             [[sources]]\nname = \"nginx\"\ntype = \"tail\"\npaths = [\"{}/logs/*.log\"]\npoll = \"10ms\"\n\
             dataset = \"clickstream\"\ntime = {{ format = \"iso8601\" }}\n",
            self.state(),
            self.dir.path().display()
        );
        common::config::parse(&text).unwrap()
    }
}

fn tuning() -> Tuning {
    Tuning {
        contact_timeout: Duration::from_secs(10),
        hurry: Duration::from_millis(20),
        segment_bytes: 64 * 1024,
        ..Default::default()
    }
}

fn start(config: AgentConfig, once: bool) -> (Shutdown, tokio::task::JoinHandle<anyhow::Result<End>>) {
    let shutdown = Shutdown::new(Duration::from_secs(20));
    let task = tokio::spawn(agent::run(config, once, tuning(), shutdown.clone()));
    (shutdown, task)
}

/// Every line once, over all aggregators by identity.
fn check_lines(fakes: &[&Fake], expected: u64) {
    let mut batches = BTreeMap::new();
    for fake in fakes {
        fake.with(|state| batches.extend(state.stored.iter().map(|(id, stored)| (*id, stored.clone()))));
    }
    let all = support::State { stored: batches, ..Default::default() };
    let mut numbers: Vec<u64> =
        all.lines().iter().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers.len() as u64, expected, "lines lost or doubled");
    assert!(numbers.iter().copied().eq(0..expected), "other lines");
}

fn segments(state: &Path) -> u64 {
    std::fs::read_dir(state.join("outbox")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_reads_everything_leaves_and_is_acked() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(5_000);
    write!(OpenOptions::new().append(true).open(bench.log()).unwrap(), "2026-11-20T11:00:00Z partial 5000").unwrap();
    let (_stop, task) = start(bench.config(&[&fake], ""), true);
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&fake], 5_001);
    fake.with(|state| {
        let origin = state.origins()[0];
        let kinds = state.kinds(origin);
        assert!(kinds.starts_with("od") && kinds.ends_with("dc"), "{kinds}");
        let (_, last) = state.stored.iter().next_back().unwrap();
        assert!(matches!(&last.header.kind, proto::header::Kind::Close(close) if close.left));
        assert_eq!(state.lengths_wrong, 0);
    });
    assert!(segments(&bench.state()) < 100_000, "an empty outbox takes little space");
    // A second run finds nothing new, and its open follows the left one.
    let (_stop, task) = start(bench.config(&[&fake], ""), true);
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&fake], 5_001);
    fake.with(|state| {
        let origins = state.origins();
        assert_eq!(state.kinds(origins[1]), "oc");
        let open = &state.stored[&(origins[1], 0)].header.kind;
        let proto::header::Kind::Open(open) = open else { panic!("no open") };
        let previous = open.previous.as_ref().unwrap();
        assert_eq!(previous.origin, origins[0].to_bytes());
        assert!(open.after_left && !open.restored);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_started_again_every_line_is_there_once() {
    let (one, two, mut bench) = (Fake::start().await, Fake::start().await, Bench::new());
    for fake in [&one, &two] {
        fake.with(|state| state.commit_at_once = false);
    }
    for round in 0..5u64 {
        bench.write(700);
        let (stop, task) = start(bench.config(&[&one, &two], ""), false);
        for fake in [&one, &two] {
            fake.with(|state| {
                state.script.extend([Script::StoredNoAnswer, Script::Fail, Script::Retry, Script::Busy(20)])
            });
        }
        bench.write(300);
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        stop.stop_now();
        task.await.unwrap().unwrap();
    }
    for fake in [&one, &two] {
        fake.with(|state| {
            state.commit_at_once = true;
            state.commit_all();
        });
    }
    let (_stop, task) = start(bench.config(&[&one, &two], ""), true);
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&one, &two], 5_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_batch_becomes_a_void_and_its_bytes_are_kept() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(100);
    let (stop, task) = start(bench.config(&[&fake], "ack = \"durable\""), false);
    fake.until("the first lines", |state| state.lines().len() == 100).await;
    fake.with(|state| state.script.push_back(Script::Wrong));
    bench.write(10);
    fake.until("a void", |state| state.kinds(state.origins()[0]).contains('v')).await;
    bench.write(5);
    fake.until("lines after it", |state| state.lines().len() == 105).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let kinds = state.kinds(state.origins()[0]);
        assert!(kinds.ends_with("mc"), "a stop marks and closes: {kinds}");
    });
    let kept: Vec<_> = std::fs::read_dir(bench.state().join("rejected")).unwrap().collect();
    assert_eq!(kept.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_aggregator_lost_is_sent_elsewhere() {
    let (one, two, mut bench) = (Fake::start().await, Fake::start().await, Bench::new());
    for fake in [&one, &two] {
        fake.with(|state| (state.commit_at_once, state.roll_age_ms) = (false, 100));
    }
    bench.write(2_000);
    let (stop, task) = start(bench.config(&[&one, &two], ""), false);
    let both = || one.with(|s| s.arrived.len()) + two.with(|s| s.arrived.len());
    // The open goes alone until it is committed.
    eventually("the open", || both() > 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(both(), 1, "only the open was sent");
    for fake in [&one, &two] {
        fake.with(State::commit_open);
    }
    let lines = || one.with(|s| s.lines().len()) + two.with(|s| s.lines().len());
    eventually("all lines", || lines() == 2_000).await;
    // A disk is lost before anything is committed.
    for fake in [&one, &two] {
        fake.with(|state| state.stored.retain(|(_, seq), _| *seq == 0));
    }
    eventually("all lines again", || lines() == 2_000).await;
    for fake in [&one, &two] {
        fake.with(|state| {
            state.commit_at_once = true;
            state.commit_all();
        });
    }
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&one, &two], 2_000);
}

trait CommitOpen {
    fn commit_open(&mut self);
}

impl CommitOpen for State {
    fn commit_open(&mut self) {
        for (origin, seq) in self.stored.keys().filter(|(_, seq)| *seq == 0) {
            self.committed.entry(*origin).or_default().insert(*seq);
        }
    }
}
