//! The edge's half of "when is a day complete" (design section 4), on whole agents: marks, *left*, the gate, restored
//! and copied state, counts.

mod bench;
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use bench::{Bench, close_of, copy_dir, marks, once, open_of, start, start_tuned, tuning};
use common::units::Span;
use edge_agent::agent::Tuning;
use edge_agent::agent::owner::End;
use edge_agent::cli::admin_client::ask;
use edge_agent::cli::leave::{self, Way};
use proto::header::Kind;
use proto::intervals::IntervalSet;
use support::{Fake, Script, State, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_come_also_while_nothing_is_written_and_never_claim_what_is_not_cut() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    // A dataset that nobody declares yet: lines are noted and cannot be cut.
    let declarations = fake.with(|state| {
        state.version = 7;
        std::mem::take(&mut state.declarations)
    });
    bench.write(40);
    bench.write_to("other.log", 1);
    let mut config = bench.config(&fake, "");
    config.mark_every = Span::millis(50);
    let (stop, task) = start(config, false);
    fake.until("the open", |state| !state.stored.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.with(|state| marks(state).len()), 0, "a mark although noted lines are not cut");
    fake.with(|state| (state.version, state.declarations) = (8, declarations));
    fake.until("marks of an agent that has nothing to read", |state| marks(state).len() > 3).await;
    fake.with(|state| {
        let first = state.stored.iter().find(|(_, stored)| matches!(stored.header.kind, Kind::Mark(_))).unwrap().0.1;
        let before = state.stored.iter().filter(|((_, seq), _)| *seq < first);
        let events: u64 = before.map(|(_, stored)| stored.header.events()).sum();
        assert_eq!(events, 41, "both files are cut below the first mark");
    });
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let times: Vec<i64> = marks(state).iter().map(|mark| mark.at_unix_ms).collect();
        assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{times:?}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_time_of_an_aggregator_there_is_no_mark() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(10);
    let mut config = bench.config(&fake, "drain_deadline = \"200ms\"");
    config.aggregators.peers = vec!["127.0.0.1:1".into()];
    config.mark_every = Span::millis(20);
    let silent = Tuning { contact_timeout: Duration::ZERO, ..tuning() };
    let (stop, task) = start_tuned(config, false, silent);
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    let look = edge_agent::outbox::look::look(&bench.state().join("outbox"), true).unwrap();
    let kinds: Vec<&str> = edge_agent::outbox::view::batches(&look, "web-1", None).iter().map(|b| b.kind).collect();
    assert_eq!(kinds, ["open", "close"], "nothing to claim without a time, not even at the drain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_read_stops_the_marks() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(10);
    // A loop of links: matched, and an error for root too.
    let bad = bench.dir.path().join("logs/bad");
    std::fs::create_dir(&bad).unwrap();
    let link = bench.dir.path().join("logs/loop.log");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    let mut config = bench.config(&fake, "");
    config.mark_every = Span::millis(50);
    let (stop, task) = start(config, false);
    fake.until("the lines", |state| state.lines().len() == 10).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.with(|state| marks(state).len()), 0);
    let status = ask(bench.admin, "GET", "/status").unwrap();
    assert!(status["problems"][0].as_str().unwrap().contains("loop.log"), "{status}");
    std::fs::remove_file(&link).unwrap();
    fake.until("a mark once it is gone", |state| !marks(state).is_empty()).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_agent_that_is_asked_to_leave_reads_to_the_end_and_says_left() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(500);
    let config = bench.config(&fake, "");
    let (_stop, task) = start(config.clone(), false);
    fake.until("the open", |state| !state.stored.is_empty()).await;
    eventually("the admin endpoint", || ask(bench.admin, "GET", "/status").is_ok()).await;
    bench.write(200);
    write!(std::fs::OpenOptions::new().append(true).open(bench.log()).unwrap(), "2026-11-20T11:00:00Z line 700")
        .unwrap();
    let asked = config.clone();
    let told = tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        assert_eq!(leave::ask_running(&asked).unwrap(), Way::Asked);
        let code = leave::wait(&asked, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    });
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    let (code, told) = told.await.unwrap();
    assert_eq!(code, std::process::ExitCode::SUCCESS, "{told}");
    assert!(told.contains("web-1 has left"), "{told}");
    fake.with(|state| {
        assert_eq!(state.lines().len(), 701, "also the last line, which has no end");
        assert!(close_of(state, state.origins()[0]).unwrap().left);
    });
    assert_eq!(leave::ask_running(&config).unwrap(), Way::Here, "nobody runs any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_started_again_at_once_has_not_left() {
    let (fake, bench) = (Fake::start().await, Bench::new());
    let config = bench.config(&fake, "");
    // Three answers of one run, then those of the next.
    let endpoint = std::net::TcpListener::bind(bench.admin).unwrap();
    std::thread::spawn(move || {
        for (at, stream) in endpoint.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let origin = if at < 3 { "first" } else { "second" };
            let answer = format!("HTTP/1.1 200 OK\r\n\r\n{{\"agent\":\"web-1\",\"origin\":\"{origin}\"}}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let error = tokio::task::spawn_blocking(move || {
        assert_eq!(leave::ask_running(&config).unwrap(), Way::Asked);
        leave::wait(&config, &mut Vec::new()).unwrap_err().to_string()
    });
    let error = error.await.unwrap();
    assert!(error.contains("started again"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn left_is_not_said_over_a_file_that_cannot_be_read() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(10);
    let link = bench.dir.path().join("logs/loop.log");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    let End::Unfinished(problems) = once(bench.config(&fake, "")).await else { panic!("nothing is said to be wrong") };
    assert!(problems.iter().any(|problem| problem.contains("loop.log")), "{problems:?}");
    fake.with(|state| {
        assert_eq!(state.lines().len(), 10, "the rest is read");
        assert!(!close_of(state, state.origins()[0]).unwrap().left);
        assert!(marks(state).is_empty());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leave_names_the_agent_that_answers_in_its_place() {
    let (fake, bench) = (Fake::start().await, Bench::new());
    let mut config = bench.config(&fake, "");
    let (stop, task) = start(config.clone(), false);
    fake.until("the open", |state| !state.stored.is_empty()).await;
    config.name = Some("web-2".into());
    let error = leave::ask_running(&config).unwrap_err().to_string();
    assert!(error.contains("web-1") && error.contains("admin.listen"), "{error}");
    config.name = Some("web-1".into());
    config.admin.listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = leave::ask_running(&config).unwrap_err().to_string();
    assert!(error.contains("an agent runs on") && error.contains("admin.listen"), "{error}");
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_with_leave_on_stop_says_left_and_without_it_does_not() {
    for (more, left) in [("leave_on_stop = true", true), ("", false)] {
        let (fake, mut bench) = (Fake::start().await, Bench::new());
        bench.write(20);
        let (stop, task) = start(bench.config(&fake, more), false);
        fake.until("the lines", |state| state.lines().len() == 20).await;
        stop.drain();
        assert_eq!(task.await.unwrap().unwrap(), End::Clean);
        fake.with(|state| {
            let close = close_of(state, state.origins()[0]).unwrap();
            assert_eq!(close.left, left);
            assert!(close.at_unix_ms > 0);
            assert_eq!(marks(state).len(), usize::from(!left), "left is made like a mark and needs none");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_left_the_same_directory_chains_on_and_its_open_goes_alone() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(30);
    assert_eq!(once(bench.config(&fake, "")).await, End::Clean);
    bench.write(30);
    fake.with(|state| state.commit_at_once = false);
    let (stop, task) = start(bench.config(&fake, ""), false);
    fake.until("the second open", |state| state.origins().len() == 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    fake.with(|state| {
        let (first, second) = (state.origins()[0], state.origins()[1]);
        assert_eq!(state.kinds(second), "o", "nothing else before the open is committed");
        let open = open_of(state, second);
        assert!(open.after_left && !open.restored);
        assert_eq!(open.previous.unwrap().origin, first.to_bytes());
        state.commit_all();
        state.commit_at_once = true;
    });
    fake.until("the rest", |state| state.lines().len() == 60).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_directory_goes_on_once_it_is_adopted() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(30);
    let (stop, task) = start(bench.config(&fake, ""), false);
    fake.until("the lines", |state| state.lines().len() == 30).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    let disk = bench.dir.path().join("new-disk");
    copy_dir(&bench.state(), &disk);
    let config = bench.config_at(&disk, &fake, "");
    edge_agent::outbox::state_dir::adopt::adopt(&disk, &config.agent_name().unwrap(), false).unwrap();
    bench.write(10);
    assert_eq!(once(config).await, End::Clean);
    fake.with(|state| {
        let (first, second) = (state.origins()[0], state.origins()[1]);
        let open = open_of(state, second);
        assert!(!open.restored);
        let end = state.kinds(first).len() as u64;
        assert_eq!(open.previous.map(|p| (p.origin, p.end)), Some((first.to_bytes(), end)));
        assert_eq!(state.lines().len(), 40, "the positions went along");
        assert!(close_of(state, second).unwrap().left);
    });
}

/// A copy whose difference the start cannot see: the identity file lies (as on a disk that was cloned block by block).
async fn cloned(fake: &Fake, bench: &mut Bench) -> std::path::PathBuf {
    bench.write(30);
    let (stop, task) = start(bench.config(fake, ""), false);
    fake.until("the lines", |state| state.lines().len() == 30).await;
    let clone = bench.dir.path().join("clone");
    eventually("an outbox that holds still", || {
        std::fs::remove_dir_all(&clone).ok();
        copy_dir(&bench.state(), &clone);
        edge_agent::outbox::look::look(&clone.join("outbox"), true).is_ok_and(|look| look.findings.is_empty())
    })
    .await;
    stop.stop_now();
    task.await.unwrap().unwrap();
    let config = bench.config_at(&clone, fake, "");
    edge_agent::outbox::state_dir::adopt::adopt(&clone, &config.agent_name().unwrap(), false).unwrap();
    clone
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_original_appended_is_known_at_the_start_of_a_copy() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let clone = cloned(&fake, &mut bench).await;
    let first = fake.with(|state| {
        let first = state.origins()[0];
        state.committed.entry(first).or_default().insert_range(0, 99);
        first
    });
    assert_eq!(once(bench.config_at(&clone, &fake, "")).await, End::Clean);
    fake.with(|state| {
        let open = open_of(state, state.origins()[1]);
        assert!(open.restored && open.previous.is_none());
        assert_eq!(open.restored_from, first.to_bytes());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_original_appends_later_stops_the_marks_of_a_running_copy() {
    for held_only in [false, true] {
        let (fake, mut bench) = (Fake::start().await, Bench::new());
        let clone = cloned(&fake, &mut bench).await;
        fake.with(|state| state.roll_age_ms = 50);
        let mut config = bench.config_at(&clone, &fake, "");
        config.mark_every = Span::millis(50);
        let (stop, task) = start(config, false);
        fake.until("marks of the copy", |state| state.origins().len() == 2 && !marks(state).is_empty()).await;
        // The original goes on with its origin.
        fake.with(|state| {
            let first = state.origins()[0];
            let next = state.stored.range((first, 0)..=(first, u64::MAX)).next_back().unwrap().0.1 + 5;
            if held_only {
                let some = state.stored[&(first, 0)].clone();
                state.stored.insert((first, next), some);
            } else {
                state.committed.entry(first).or_default().insert(next);
            }
        });
        eventually("the copy notices", || {
            ask(bench.admin, "GET", "/status").is_ok_and(|status| status["restored_or_copied"].is_string())
        })
        .await;
        let before = fake.with(|state| marks(state).len());
        bench.write(5);
        fake.until("it goes on reading", |state| state.lines().iter().any(|line| line.ends_with("line 34"))).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(fake.with(|state| marks(state).len()), before, "a mark of a copy");
        stop.drain();
        assert_eq!(task.await.unwrap().unwrap(), End::Clean);
        fake.with(|state| {
            let second = state.origins()[1];
            let close = close_of(state, second).unwrap();
            assert!(!close.left && close.at_unix_ms == 0);
            assert_eq!(marks(state).len(), before, "also none at the drain");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_outbox_begins_anew_and_says_what_is_true() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(10);
    let config = bench.config(&fake, "mark_every = \"1s\"");
    assert_eq!(once(config.clone()).await, End::Clean);
    std::fs::remove_dir_all(bench.state().join("outbox")).unwrap();
    let before = fake.with(|state| marks(state).len());
    let (stop, task) = start(config, false);
    fake.until("its marks", |state| marks(state).len() > before).await;
    let status = ask(bench.admin, "GET", "/status").unwrap();
    let said = status["restored_or_copied"].as_str().unwrap();
    assert!(said.contains("begins anew") && !said.contains("no mark of this agent counts"), "{said}");
    fake.with(|state| {
        let second = state.origins()[1];
        let open = open_of(state, second);
        assert!(open.restored && open.restored_from.is_empty() && open.previous.is_none(), "{open:?}");
    });
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_noticed_also_when_the_start_did_not_wait_for_all_answers() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let clone = cloned(&fake, &mut bench).await;
    let first = fake.with(|state| {
        // Nobody asks again for a long time.
        state.roll_age_ms = 600_000;
        state.origins()[0]
    });
    fake.with(|state| assert!(state.committed.entry(first).or_default().insert(77)));
    let mut config = bench.config_at(&clone, &fake, "");
    // One aggregator takes connections and says nothing: the round of questions outlasts the start.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.aggregators.peers.push(mute.local_addr().unwrap().to_string());
    let hasty = Tuning { contact_timeout: Duration::from_millis(300), ..tuning() };
    let (stop, task) = start_tuned(config, false, hasty);
    eventually("the copy notices", || {
        ask(bench.admin, "GET", "/status").is_ok_and(|status| status["restored_or_copied"].is_string())
    })
    .await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_another_process_uses_too_is_given_up() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(10);
    fake.with(|state| state.roll_age_ms = 50);
    let (_stop, task) = start(bench.config(&fake, ""), false);
    fake.until("the lines", |state| state.lines().len() == 10).await;
    let first = fake.with(|state| {
        let first = state.origins()[0];
        state.committed.entry(first).or_default().insert(50);
        first
    });
    bench.write(1);
    let ended = tokio::time::timeout(Duration::from_secs(30), task).await.expect("it goes on with the origin");
    let error = ended.unwrap().unwrap_err().to_string();
    assert!(error.contains("own origin"), "{error}");
    assert_eq!(once(bench.config(&fake, "")).await, End::Clean);
    fake.with(|state| {
        let second = state.origins()[1];
        assert!(open_of(state, second).restored);
        assert_ne!(second, first);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_close_by_dataset_and_hour() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(150);
    writeln!(std::fs::OpenOptions::new().append(true).open(bench.log()).unwrap(), "no time at all").unwrap();
    let config = bench.config(&fake, "");
    let (stop, task) = start(config.clone(), false);
    fake.until("the lines", |state| state.lines().len() == 151).await;
    // One batch is answered wrong and becomes a void.
    fake.with(|state| state.script.push_back(Script::Wrong));
    bench.write(20);
    fake.until("a void", |state| state.first_kinds().contains('v')).await;
    stop.stop_now();
    task.await.unwrap().unwrap();
    assert_eq!(once(config).await, End::Clean);
    fake.with(|state| {
        let audit = audit_of(state);
        let batches = batches_of(state);
        let read: u64 = audit.values().map(|row| row[0]).sum();
        assert_eq!(read, 171);
        for ((dataset, hour), [read, filtered, published, dead, voided]) in &audit {
            assert_eq!(*read, filtered + published + dead, "{dataset} {hour:?}");
            let found = batches.get(&(dataset.clone(), *hour)).copied().unwrap_or_default();
            assert_eq!(found, [*published, *dead, *voided], "{dataset} {hour:?}: cut and what the batches say");
        }
        assert_eq!(audit.len(), batches.len());
        assert_eq!(audit.values().map(|row| row[4]).sum::<u64>(), 20);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_a_mark_that_becomes_a_void_are_in_the_next_one() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(25);
    let config = bench.config(&fake, "");
    let (stop, task) = start(config.clone(), false);
    fake.until("the lines", |state| state.lines().len() == 25).await;
    // The next two batches are the mark and the close of the drain.
    fake.with(|state| state.script.extend([Script::Wrong, Script::Wrong]));
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        assert!(state.first_kinds().ends_with("dvv"), "{}", state.first_kinds());
        assert_eq!(audit_of(state).values().map(|row| row[0]).sum::<u64>(), 0);
    });
    assert_eq!(once(config).await, End::Clean);
    fake.with(|state| assert_eq!(audit_of(state).values().map(|row| row[0]).sum::<u64>(), 25));
}

type Rows<const N: usize> = BTreeMap<(String, Option<i64>), [u64; N]>;

/// What all marks and closes say: read, filtered, published, dead-lettered, voided.
fn audit_of(state: &State) -> Rows<5> {
    let mut rows = Rows::new();
    for stored in state.stored.values() {
        let audit = match &stored.header.kind {
            Kind::Mark(mark) => mark.audit.clone(),
            Kind::Close(close) => close.audit.clone(),
            _ => None,
        };
        for count in audit.unwrap_or_default().counts {
            let row: &mut [u64; 5] = rows.entry((count.dataset, count.event_hour)).or_default();
            let numbers = [count.read, count.filtered, count.published, count.dead_lettered, count.voided];
            row.iter_mut().zip(numbers).for_each(|(sum, n)| *sum += n);
        }
    }
    rows
}

/// What data batches and voids say: data, dead letters, and of both those in voids.
fn batches_of(state: &State) -> Rows<3> {
    let mut rows = Rows::<3>::new();
    for stored in state.stored.values() {
        let (dataset, hours, dead, void) = match &stored.header.kind {
            Kind::Data(data) => {
                (data.dataset.to_string(), edge_agent::run::audit::hours_of(&data.wire), data.wire.dead_letters, false)
            }
            Kind::Void(void) => (void.dataset.clone(), void.hours.clone(), void.dead_letters, true),
            _ => continue,
        };
        for count in hours {
            let row = rows.entry((dataset.clone(), count.hour)).or_default();
            row[usize::from(dead)] += count.events;
            row[2] += if void { count.events } else { 0 };
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destroyed_bytes_are_in_the_mark_that_does_not_wait_for_them() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(10);
    fake.with(|state| state.declarations.clear());
    fake.with(|state| state.version = 9);
    let mut config = bench.config(&fake, "");
    config.sources[0].tail.copy_wait = Span::millis(100);
    config.mark_every = Span::millis(100);
    let (stop, task) = start(config, false);
    fake.until("the open", |state| !state.stored.is_empty()).await;
    bench.write_to("other.log", 3000);
    tokio::time::sleep(Duration::from_millis(300)).await;
    eventually("both files to be seen", || {
        ask(bench.admin, "GET", "/status").is_ok_and(|status| status["unread_bytes"].as_u64() > Some(50_000))
    })
    .await;
    std::fs::OpenOptions::new().write(true).open(bench.dir.path().join("logs/other.log")).unwrap().set_len(0).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    fake.with(|state| {
        state.version = 10;
        state.declarations.push(proto::wire::DatasetDeclaration {
            name: "clickstream".into(),
            zone: "UTC".into(),
            codec: proto::wire::Codec::Zstd as i32,
            ..Default::default()
        });
    });
    let gone_ms = edge_agent::run::clock::own_clock_ms();
    let later = |mark: &proto::wire::Mark| mark.at_unix_ms > gone_ms;
    fake.until("a mark noted after it", |state| marks(state).iter().any(later)).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| {
        let marks = marks(state);
        let first = marks.iter().position(later).unwrap();
        let bytes: u64 = marks[..=first].iter().flat_map(|mark| &mark.destroyed).map(|gone| gone.bytes).sum();
        assert!(bytes > 0, "that mark does not wait for those bytes, so it names them: {marks:?}");
        let committed: IntervalSet = state.committed[&state.origins()[0]].clone();
        assert!(committed.spans() == 1);
    });
}
