//! Batches that no aggregator can take, or that one says it cannot.

mod bench;
mod support;

use std::time::Duration;

use bench::{Bench, start, start_tuned, tuning};
use bytes::Bytes;
use edge_agent::agent::Tuning;
use edge_agent::agent::owner::End;
use edge_agent::outbox::{ChunkAppend, Options, Outbox};
use proto::ids::Origin;
use proto::wire;
use support::Fake;

/// A chunk of one batch whose payload is not what its header says.
fn unsound() -> ChunkAppend {
    let payload = Bytes::from_static(b"line\n");
    let data = wire::Data {
        dataset: "clickstream".into(),
        partition: Some(wire::Partition { date: 20_000, hour: None }),
        codec: wire::Codec::None as i32,
        framing: wire::Framing::Lines as i32,
        events: 1,
        raw_bytes: payload.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: !crc32c::crc32c(&payload),
        ..Default::default()
    };
    ChunkAppend { batches: vec![(data, payload)], ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_contradicts_its_header_becomes_a_void_at_the_first_retry() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(10);
    let (stop, task) = start(bench.config(&fake, ""), false);
    fake.until("the lines", |state| state.lines().len() == 10).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    let (dir, rejected) = (bench.state().join("outbox"), bench.state().join("rejected"));
    let origin = Origin::mint(1_793_500_000_000, 1);
    {
        let options = Options { dir, rejected: rejected.clone(), segment_bytes: 64 * 1024 };
        let (mut outbox, _) = Outbox::open(options).unwrap();
        outbox.append_open(origin, wire::Open::default()).unwrap();
        outbox.append_chunk(origin, unsound()).unwrap();
        outbox.commit().unwrap();
    }
    let (stop, task) = start(bench.config(&fake, ""), false);
    fake.until("a void in its place", |state| state.kinds(origin) == "ov").await;
    assert_eq!(fake.with(|state| state.unsound), 1);
    assert_eq!(std::fs::read_dir(rejected).unwrap().count(), 1);
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_one_that_can_be_reached_is_believed_in_the_end() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    fake.with(|state| state.all_data_is_wrong = true);
    bench.write(10);
    let mut config = bench.config(&fake, "");
    // Configured, and gone.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    config.aggregators.peers.push(gone.to_string());
    // Patience goes with it: a third of a second, where it is five minutes.
    let (stop, task) = start_tuned(config, false, Tuning { hurry: Duration::from_millis(1), ..tuning() });
    fake.until("a void", |state| state.first_kinds().starts_with("ov")).await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}
