//! An aggregator between fakes: what agents append reaches collectors once, whatever breaks in between.

mod fakes;

use std::net::SocketAddr;
use std::time::Duration;

use fakes::{Agent, Collector, Script, batch, config, eventually, origin, start};
use proto::wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_is_committed_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Commit).await;
    let running = start(&config(dir.path(), &[collector.at])).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    for seq in 0..50 {
        agent.append_durable(origin(1), seq, format!("event {seq}\n").as_bytes()).await;
    }
    eventually("all committed", || running.sources.status().held_batches == 0).await;
    {
        let seen = collector.seen.lock().unwrap();
        assert_eq!(seen.delivered.len(), 50, "each once");
        assert!(seen.payloads.iter().all(|(id, p)| id.seq == 0 || p[..] == *format!("event {}\n", id.seq).as_bytes()));
    }
    let progress = agent.progress(origin(1)).await;
    assert_eq!(progress.committed, Some(wire::IntervalSet { bounds: vec![0, 50] }));
    assert_eq!(progress.held, Some(wire::IntervalSet::default()));
    assert_eq!(progress.status.unwrap().declarations.len(), 1);
    // An append of what is committed is answered from the intervals.
    agent.append_durable(origin(1), 7, b"event 7\n").await;
    assert_eq!(running.sources.status().held_batches, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_survives_a_restart_without_ledger_and_without_collector() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Stage).await;
    let config = config(dir.path(), &[collector.at]);
    let running = start(&config).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    for seq in 0..20 {
        agent.append_durable(origin(1), seq, b"event\n").await;
    }
    collector.kill();
    running.stop().await;
    std::fs::remove_dir_all(dir.path().join("ledger")).unwrap();

    // No collector is there: the declarations of the last run let agents go on.
    let running = start(&config).await;
    assert_eq!(running.sources.status().held_batches, 20);
    let mut agent = Agent::connect("web-1", running.listen).await;
    agent.append_durable(origin(1), 20, b"event\n").await;
    agent.append_durable(origin(1), 5, b"event\n").await;
    assert_eq!(running.sources.status().held_batches, 21, "seq 5 was held already");
    let held = agent.progress(origin(1)).await.held;
    assert_eq!(held, Some(wire::IntervalSet { bounds: vec![0, 21] }));

    let again = Collector::start_at(collector.at, Script::Commit, collector.seen.clone()).await;
    eventually("all committed", || running.sources.status().held_batches == 0).await;
    assert_eq!(again.seen.lock().unwrap().committed.len(), 21);
    eventually("segments are gone", || running.sources.status().segment_bytes < 100_000).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unanswered_batches_are_listed_before_any_payload() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Stage).await;
    let running = start(&config(dir.path(), &[collector.at])).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    for seq in 0..10 {
        agent.append_durable(origin(1), seq, b"event\n").await;
    }
    eventually("all staged", || collector.seen.lock().unwrap().staged.len() == 10).await;
    collector.kill();
    // The collector forgot half of them.
    collector.seen.lock().unwrap().staged.retain(|id| id.seq < 5);
    let again = Collector::start_at(collector.at, Script::Commit, collector.seen.clone()).await;
    eventually("the forgotten half is sent again", || again.seen.lock().unwrap().committed.len() == 5).await;
    {
        let seen = again.seen.lock().unwrap();
        assert_eq!(seen.listed.len(), 10);
        assert!(seen.listed.iter().all(|(_, payloads)| *payloads == 0), "listed before any payload");
        let sent = |id| seen.delivered.iter().filter(|other| *other == id).count();
        assert!(seen.delivered.iter().all(|id| sent(id) == 1 || id.seq >= 5), "what is staged is not sent again");
    }
    // The last answers may still be under way.
    eventually("staged releases nothing", || running.sources.status().held_batches == 5).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_collector_takes_over_and_gives_back() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Collector::start(Script::Commit).await, Collector::start(Script::Commit).await);
    let running = start(&config(dir.path(), &[one.at, two.at])).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    agent.append_durable(origin(1), 0, b"").await;
    eventually("committed", || running.sources.status().held_batches == 0).await;
    let (owner, other) = if one.seen.lock().unwrap().delivered.is_empty() { (two, one) } else { (one, two) };
    owner.kill();
    agent.append_durable(origin(1), 1, b"while the owner is away\n").await;
    eventually("the other one has it", || other.seen.lock().unwrap().committed.len() == 1).await;
    let back = Collector::start_at(owner.at, Script::Commit, owner.seen.clone()).await;
    let view = running.sources.collectors.clone();
    eventually("connected again", || view.borrow().iter().all(|view| view.connected)).await;
    agent.append_durable(origin(1), 2, b"after its return\n").await;
    eventually("the owner has it", || back.seen.lock().unwrap().committed.len() == 2).await;
    assert_eq!(other.seen.lock().unwrap().delivered.len(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_partition_waits_alone_and_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Busy).await;
    let running = start(&config(dir.path(), &[collector.at])).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    agent.append_durable(origin(1), 1, b"event\n").await;
    eventually("refused for now", || !collector.seen.lock().unwrap().delivered.is_empty()).await;
    collector.set(Script::Commit);
    agent.append_durable(origin(1), 0, b"").await;
    eventually("both arrived", || running.sources.status().held_batches == 0).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reason_of_a_refused_batch_goes_back_to_its_agent_until_it_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Refuse).await;
    let config = config(dir.path(), &[collector.at]);
    let running = start(&config).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    let mut other = Agent::connect("web-2", running.listen).await;
    agent.append_durable(origin(1), 0, b"").await;
    agent.append_durable(origin(1), 1, b"event\n").await;
    eventually("refused", || running.sources.status().held_batches == 0).await;
    let reason = format!("no [1mgood {}", "x".repeat(256 - "no [1mgood ".len()));
    let told = vec![wire::QuarantinedBatch { seq: 1, dataset: "clickstream".into(), reason }];
    assert_eq!(agent.progress(origin(1)).await.quarantined, told, "cut, without control characters");
    assert_eq!(other.progress(origin(1)).await.quarantined, [], "another agent's batches are not told");
    assert_eq!(agent.progress(origin(2)).await.quarantined, []);
    // Sent again, as after a lost answer: it is covered, and the reason comes with that.
    let (header, payload) = batch(origin(1), 1, b"event\n");
    let answer = agent.append(header.clone(), payload.clone()).await;
    assert!(answer.committed.is_some_and(|set| set.bounds == [0, 2]), "{:?}", answer.answer);
    assert_eq!(answer.quarantined, told);
    running.stop().await;

    // A restart keeps it; an agent that knows it is not told again.
    let running = start(&config).await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    assert_eq!(agent.progress(origin(1)).await.quarantined, told);
    let known = Some(wire::IntervalSet { bounds: vec![1, 2] });
    let mut request = agent.request(header, payload);
    request.get_mut().quarantined_known = known.clone();
    let bytes = prost::Message::encoded_len(request.get_ref()) as u64;
    request.metadata_mut().insert(proto::PAYLOAD_BYTES_HEADER, bytes.into());
    assert_eq!(agent.client.append(request).await.unwrap().into_inner().quarantined, []);
    assert_eq!(agent.progress_knowing(origin(1), known).await.quarantined, []);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_breaks_streams_becomes_a_suspect() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Break).await;
    let running = start(&config(dir.path(), &[collector.at])).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    let mut at = collector;
    agent.append_durable(origin(1), 0, b"").await;
    for streams in 1..=3 {
        let seen = at.seen.clone();
        eventually("a stream broke", || seen.lock().unwrap().delivered.len() == streams).await;
        at = Collector::start_at(at.at, Script::Break, seen).await;
    }
    // From now on it travels alone; others go on.
    at.set(Script::Commit);
    agent.append_durable(origin(1), 1, b"event\n").await;
    eventually("all arrived", || running.sources.status().held_batches == 0).await;
    assert_eq!(running.sources.forward.unclean_breaks.load(std::sync::atomic::Ordering::Relaxed), 3);
    assert!(at.seen.lock().unwrap().suspects.is_empty(), "three breaks are not six");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_of_a_stream_accuses_no_batch() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::End).await;
    let running = start(&config(dir.path(), &[collector.at])).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    agent.append_durable(origin(1), 1, b"event\n").await;
    eventually("sent on four streams", || collector.seen.lock().unwrap().delivered.len() >= 4).await;
    collector.set(Script::Commit);
    eventually("committed", || running.sources.status().held_batches == 0).await;
    assert_eq!(running.sources.forward.unclean_breaks.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(collector.seen.lock().unwrap().suspects.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_answers_what_was_taken_and_refuses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Commit).await;
    let running = start(&config(dir.path(), &[collector.at])).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    agent.append_durable(origin(1), 0, b"").await;
    assert!(admin(running.admin, "POST", "/drain?empty=true").await.starts_with("HTTP/1.1 202"));
    let (header, payload) = batch(origin(1), 1, b"late\n");
    let answer = agent.append(header, payload).await;
    let Some(wire::append_response::Answer::Busy(busy)) = answer.answer else { panic!("{answer:?}") };
    assert_eq!(busy.reason, wire::BusyReason::Draining as i32);
    eventually("drained", || running.sources.status().drained).await;
    let status = admin(running.admin, "GET", "/status").await;
    let body: serde_json::Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        (&body["drained"], &body["held_batches"], &body["accepted_batches"]),
        (&true.into(), &0.into(), &1.into())
    );
    while !admin(running.admin, "GET", "/readyz").await.contains("draining") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let metrics = admin(running.admin, "GET", "/metrics").await;
    for name in ["held_batches", "appends_total", "fsync_seconds", "collector_connected", "committed_batches_total"] {
        assert!(metrics.contains(&format!("catchment_aggregator_{name}")), "{name} is missing in {metrics}");
    }
    assert!(metrics.contains("answer=\"busy\",reason=\"draining\"} 1"), "{metrics}");
    running.stop().await;
}

/// One request to the admin endpoint; head and body of the answer.
async fn admin(at: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
