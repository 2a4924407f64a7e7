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

    /// Lines that do not compress.
    fn write_noise(&mut self, lines: u64) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..lines {
            let noise: String = (0..100)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    format!("{:08x}", seed >> 32)
                })
                .collect();
            writeln!(file, "2026-11-20T10:00:00Z {noise} {}", self.next).unwrap();
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
    Tuning { contact_timeout: Duration::from_secs(10), hurry: Duration::from_millis(20), segment_bytes: 64 * 1024 }
}

fn start(config: AgentConfig, once: bool) -> (Shutdown, tokio::task::JoinHandle<anyhow::Result<End>>) {
    start_tuned(config, once, tuning())
}

fn start_tuned(
    config: AgentConfig,
    once: bool,
    tuning: Tuning,
) -> (Shutdown, tokio::task::JoinHandle<anyhow::Result<End>>) {
    let shutdown = Shutdown::new(Duration::from_secs(20));
    let task = tokio::spawn(agent::run(config, once, tuning, shutdown.clone()));
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

/// Bytes of the outbox; segments come and go meanwhile.
fn segments(state: &Path) -> u64 {
    let entries = std::fs::read_dir(state.join("outbox")).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
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

/// The seq of the first data batch of the first origin.
fn first_data(state: &State) -> Option<(proto::ids::Origin, u64)> {
    let data = |stored: &support::Stored| matches!(stored.header.kind, proto::header::Kind::Data(_));
    state.stored.iter().find(|(_, stored)| data(stored)).map(|(id, _)| *id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantined_batch_is_told_once() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let (stop, task) = start(bench.config(&[&fake], ""), false);
    bench.write(10);
    fake.until("the first lines", |state| state.lines().len() == 10).await;
    fake.with(|state| {
        let id = first_data(state).unwrap();
        state.quarantined.insert(id, "two frames".into());
    });
    for lines in [20, 30, 40] {
        bench.write(10);
        fake.until("more lines", |state| state.lines().len() == lines).await;
    }
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    // Sends that were under way together may each be told; afterwards every request says that it is known.
    let told = fake.with(|state| state.told_quarantined);
    assert!((1..=2).contains(&told), "told {told} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stored_a_batch_is_asked_for_its_reason() {
    let (one, two, mut bench) = (Fake::start().await, Fake::start().await, Bench::new());
    for fake in [&one, &two] {
        fake.with(|state| (state.commit_at_once, state.commit_opens_only) = (false, true));
    }
    let (stop, task) = start(bench.config(&[&one, &two], ""), false);
    bench.write(10);
    eventually("stored somewhere", || [&one, &two].iter().any(|fake| fake.with(|state| first_data(state)).is_some()))
        .await;
    let (holder, other) = if one.with(|state| first_data(state)).is_some() { (&one, &two) } else { (&two, &one) };
    let (origin, seq) = holder.with(|state| first_data(state)).unwrap();
    // The other one is the first to say that it is covered; the holder takes nothing more, and knows it only later.
    holder.with(|state| state.script.extend(std::iter::repeat_n(Script::Fail, 10_000)));
    let stored: Vec<_> = holder.with(|state| state.stored.keys().copied().collect());
    other.with(|state| {
        for (origin, seq) in &stored {
            state.committed.entry(*origin).or_default().insert(*seq);
        }
        (state.commit_at_once, state.commit_opens_only) = (true, false);
    });
    for lines in [10, 20, 30] {
        bench.write(10);
        other.until("lines go to the other one", |state| state.lines().len() == lines).await;
    }
    holder.with(|state| {
        state.commit_all();
        state.quarantined.insert((origin, seq), "two frames".into());
    });
    holder.until("the holder was asked, and told", |state| state.told_quarantined > 0).await;
    holder.with(|state| state.script.clear());
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_batch_becomes_a_void_and_its_bytes_are_kept() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(100);
    let (stop, task) = start(bench.config(&[&fake], "ack = \"durable\""), false);
    fake.until("the first lines", |state| state.lines().len() == 100).await;
    fake.with(|state| state.script.push_back(Script::Wrong));
    bench.write(10);
    fake.until("a void", |state| state.first_kinds().contains('v')).await;
    bench.write(5);
    fake.until("lines after it", |state| state.lines().len() == 105).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let kinds = state.first_kinds();
        assert!(kinds.ends_with("mc"), "a stop marks and closes: {kinds}");
    });
    let kept: Vec<_> = std::fs::read_dir(bench.state().join("rejected")).unwrap().collect();
    assert_eq!(kept.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_aggregator_makes_no_void_of_a_good_batch() {
    let (faulty, good, mut bench) = (Fake::start().await, Fake::start().await, Bench::new());
    faulty.with(|state| state.all_data_is_wrong = true);
    bench.write(300);
    // The faulty one is preferred, so that every batch that can go there does.
    let mut config = bench.config(&[&faulty, &good], "ack = \"durable\"");
    config.aggregators.policy = edge_agent::ship::balance::Policy::Priority;
    let (stop, task) = start(config, false);
    good.until("all lines elsewhere", |state| state.lines().len() == 300).await;
    assert!(faulty.with(|state| !state.wrong.is_empty()), "the faulty aggregator was never asked");
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&faulty, &good], 300);
    let kinds = [&faulty, &good].map(|fake| fake.with(|state| state.first_kinds())).concat();
    assert!(!kinds.contains('v'), "a good batch became a void: {kinds}");
    assert!(!bench.state().join("rejected").exists(), "bytes of good batches were given up");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_aggregator_is_left_whatever_the_policy() {
    for policy in ["home", "spread", "priority"] {
        let (live, mut bench) = (Fake::start().await, Bench::new());
        let dead = Fake { at: "127.0.0.1:1".parse().unwrap(), ..live.clone() };
        bench.write(2_000);
        let mut config = bench.config(&[&dead, &live], "");
        config.aggregators.policy = serde_json::from_value(policy.into()).unwrap();
        let (_stop, task) = start(config, true);
        assert_eq!(task.await.unwrap().unwrap(), End::Clean);
        check_lines(&[&live], 2_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_aggregator_holds_is_not_sent_again_by_the_next_run() {
    let (one, two, mut bench) = (Fake::start().await, Fake::start().await, Bench::new());
    for fake in [&one, &two] {
        fake.with(|state| state.commit_opens_only = true);
    }
    bench.write(3_000);
    let (stop, task) = start(bench.config(&[&one, &two], ""), false);
    let lines = || one.with(|s| s.lines().len()) + two.with(|s| s.lines().len());
    eventually("all lines", || lines() == 3_000).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    let (stop, task) = start(bench.config(&[&one, &two], ""), false);
    bench.write(10);
    eventually("new lines", || lines() == 3_010).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    for fake in [&one, &two] {
        fake.with(|state| assert!(state.stored.values().all(|stored| stored.times == 1), "sent again"));
    }
    check_lines(&[&one, &two], 3_010);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undeclared_dataset_waits_in_the_log() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let declarations = fake.with(|state| {
        state.version = 7;
        std::mem::take(&mut state.declarations)
    });
    bench.write(500);
    let (stop, task) = start(bench.config(&[&fake], ""), false);
    fake.until("the open", |state| !state.stored.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    fake.with(|state| assert_eq!(state.stored.len(), 1, "nothing is cut"));
    fake.with(|state| (state.version, state.declarations) = (8, declarations));
    fake.until("all lines", |state| state.lines().len() == 500).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    // The declarations are kept: the next run cuts although nobody answers.
    bench.write(5);
    let silent = Fake { at: "127.0.0.1:1".parse().unwrap(), ..fake.clone() };
    let fast = Tuning { contact_timeout: Duration::from_millis(50), ..tuning() };
    let (stop, task) = start_tuned(bench.config(&[&silent], "drain_deadline = \"500ms\""), false, fast);
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    let (_stop, task) = start(bench.config(&[&fake], ""), true);
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&fake], 505);
    fake.with(|state| assert_eq!(state.kinds(state.origins()[1]), "odc", "cut by the silent run"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outbox_stops_reading_and_goes_on() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write_noise(12_000);
    fake.with(|state| state.commit_opens_only = true);
    fake.with(|state| state.script.extend(std::iter::repeat_n(Script::Busy(10), 150)));
    let more = "ack = \"durable\"";
    let mut config = bench.config(&[&fake], more);
    config.outbox.max_bytes = common::units::Size::mib(4);
    let (stop, task) = start(config, false);
    let mut most = 0;
    fake.until("all lines", |state| {
        most = most.max(segments(&bench.state()));
        state.lines().len() == 12_000
    })
    .await;
    assert!(most > 2_000_000 && most < 4_200_000, "{most}");
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&fake], 12_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uncommitted_batches_are_let_go_at_80_per_cent() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write_noise(12_000);
    fake.with(|state| (state.commit_opens_only, state.roll_age_ms) = (true, 600_000));
    let mut config = bench.config(&[&fake], "");
    config.outbox.max_bytes = common::units::Size::mib(4);
    let (stop, task) = start(config, false);
    let mut most = 0;
    fake.until("all lines", |state| {
        most = most.max(segments(&bench.state()));
        state.lines().len() == 12_000
    })
    .await;
    assert!(most > 2_000_000 && most < 4_200_000, "{most}");
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&fake], 12_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_say_what_was_read_and_a_copied_state_says_restored() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(300);
    let mut config = bench.config(&[&fake], "");
    config.mark_every = common::units::Span::millis(100);
    let (stop, task) = start(config, false);
    fake.until("a mark", |state| state.first_kinds().contains('m')).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let mut read = 0;
        for stored in state.stored.values() {
            let audit = match &stored.header.kind {
                proto::header::Kind::Mark(mark) => {
                    assert!(mark.at_unix_ms > 1_700_000_000_000);
                    mark.audit.clone()
                }
                proto::header::Kind::Close(close) => close.audit.clone(),
                _ => None,
            };
            read += audit.unwrap_or_default().counts.iter().map(|count| count.read).sum::<u64>();
        }
        assert_eq!(read, 300, "every event is counted in one mark or close");
    });
    // A copy of the directory has other inodes.
    let (from, to) = (bench.state().join("outbox"), bench.state().join("copy"));
    std::fs::create_dir(&to).unwrap();
    for file in std::fs::read_dir(&from).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    std::fs::rename(&from, bench.state().join("old")).unwrap();
    std::fs::rename(&to, &from).unwrap();
    let (_stop, task) = start(bench.config(&[&fake], ""), true);
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let origins = state.origins();
        let proto::header::Kind::Open(open) = &state.stored[&(origins[1], 0)].header.kind else { panic!("no open") };
        assert!(open.restored && open.previous.is_none());
        assert_eq!(open.restored_from, origins[0].to_bytes());
    });
    check_lines(&[&fake], 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_file_is_named_after_the_rest_was_read() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(50);
    std::os::unix::fs::symlink("/proc/1/mem-that-is-not-there/x", bench.dir.path().join("logs/gone.log")).unwrap();
    std::fs::create_dir(bench.dir.path().join("logs/dir.log")).unwrap();
    let (_stop, task) = start(bench.config(&[&fake], ""), true);
    assert_eq!(task.await.unwrap().unwrap(), End::Clean, "a dangling link and a directory are no files");
    check_lines(&[&fake], 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_none_holds_nothing_up() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(50);
    let mut config = bench.config(&[&fake], "");
    config.aggregators.peers.insert(0, "not|a|host:7070".to_owned());
    config.aggregators.policy = edge_agent::ship::balance::Policy::Priority;
    let (_stop, task) = start(config, true);
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap().unwrap(), End::Clean);
    check_lines(&[&fake], 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_void_that_is_refused_is_kept_and_no_other_is_made() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(100);
    let (stop, task) = start(bench.config(&[&fake], ""), false);
    fake.until("the first lines", |state| state.lines().len() == 100).await;
    fake.with(|state| state.script.extend([Script::Wrong, Script::Wrong]));
    bench.write(10);
    fake.until("the void", |state| state.first_kinds().contains('v')).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let voids = state.stored.values().filter_map(|stored| match &stored.header.kind {
            proto::header::Kind::Void(void) => Some(void.events),
            _ => None,
        });
        assert_eq!(voids.collect::<Vec<_>>(), [10], "the void that was made first");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_bytes_are_bounded() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(50);
    let mut config = bench.config(&[&fake], "");
    config.outbox.max_bytes = common::units::Size::mib(4);
    std::fs::create_dir_all(bench.state().join("rejected")).unwrap();
    let file = bench.state().join("rejected/old.batch");
    std::fs::write(&file, vec![0; 4 << 20]).unwrap();
    let (stop, task) = start(config, false);
    fake.until("the open", |state| !state.stored.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    fake.with(|state| assert!(state.lines().is_empty(), "reading went on"));
    std::fs::remove_file(&file).unwrap();
    fake.until("the lines", |state| state.lines().len() == 50).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_appended_behind_the_close() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(100);
    let (stop, task) = start(bench.config(&[&fake], ""), false);
    fake.until("the first lines", |state| state.lines().len() == 100).await;
    // The drain takes a while, and the log goes on growing.
    fake.with(|state| state.script.extend((0..4).map(|_| Script::Busy(200))));
    stop.drain();
    while !task.is_finished() {
        bench.write(1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let kinds = state.first_kinds();
        assert_eq!(kinds.find('c'), Some(kinds.len() - 1), "{kinds}");
    });
    let (_stop, task) = start(bench.config(&[&fake], ""), true);
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    check_lines(&[&fake], bench.next);
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
