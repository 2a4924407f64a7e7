//! Hostile agents: each is refused with its reason, nothing else is disturbed, and the owner's batch of the same origin
//! and seq lands all the same.

mod fakes;

use std::time::Duration;

use aggregator::ingest::RetryReason;
use bytes::Bytes;
use fakes::{Agent, Collector, Running, Script, batch, config, data_of, eventually, origin, start};
use prost::Message;
use proto::wire::{self, BusyReason, WrongReason, append_response::Answer};
use tempfile::TempDir;

struct Scene {
    _dir: TempDir,
    collector: Collector,
    running: Running,
    agent: Agent,
}

async fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Commit).await;
    let running = start(&config(dir.path(), &[collector.at])).await;
    running.knows_datasets().await;
    let agent = Agent::connect("web-1", running.listen).await;
    Scene { _dir: dir, collector, running, agent }
}

impl Scene {
    async fn refused(&mut self, header: Bytes, payload: Bytes) -> Answer {
        let answer = self.agent.append(header, payload).await;
        assert!(answer.status.is_some());
        answer.answer.unwrap()
    }

    async fn wrong(&mut self, header: Bytes, payload: Bytes) -> WrongReason {
        match self.refused(header, payload).await {
            Answer::Wrong(wrong) => {
                assert!(!wrong.detail.is_empty());
                wrong.reason()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Damaged or misnamed on its way: *wrong* would make its agent throw a good batch away.
    async fn sent_again(&mut self, request: tonic::Request<wire::AppendRequest>, says: &str) {
        let answer = self.agent.client.append(request).await.unwrap().into_inner().answer.unwrap();
        let Answer::Retry(retry) = answer else { panic!("{answer:?}") };
        assert!(retry.reason.contains(says), "{retry:?}");
        let stats = self.running.sources.node.stats();
        assert_eq!(stats.wrong.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    /// Appends refused for this reason, as the metrics have it.
    fn retried(&self, reason: RetryReason) -> u64 {
        self.running.sources.node.stats().retry[reason as usize].load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The right batch of the same identity is taken and delivered; nothing else was.
    async fn lands_all_the_same(mut self) {
        self.agent.append_durable(origin(1), 1, b"abc").await;
        let status = self.running.sources.clone();
        eventually("committed", || status.status().held_batches == 0).await;
        let seen = self.collector.seen.lock().unwrap();
        assert_eq!(seen.delivered.len(), 1);
        assert_eq!(seen.payloads[&seen.delivered[0]], Bytes::from_static(b"abc"));
    }
}

fn header(change: impl FnOnce(&mut wire::BatchHeader, &mut wire::Data)) -> Bytes {
    let mut data = data_of("clickstream", b"abc");
    let mut header = wire::BatchHeader { format: 1, origin: origin(1).to_bytes(), seq: 1, kind: None };
    change(&mut header, &mut data);
    header.kind = Some(wire::batch_header::Kind::Data(data));
    header.encode_to_vec().into()
}

const PAYLOAD: Bytes = Bytes::from_static(b"abc");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_crc() {
    let mut scene = scene().await;
    let crc = header(|_, data| data.payload_crc32c ^= 1);
    scene.sent_again(scene.agent.request(crc, PAYLOAD), "CRC32C").await;
    assert_eq!(scene.retried(RetryReason::Crc), 1);
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_payload() {
    let mut scene = scene().await;
    let cut = Bytes::from_static(b"ab");
    scene.sent_again(scene.agent.request(header(|_, _| {}), cut), "2 bytes, its header says 3").await;
    assert_eq!(scene.retried(RetryReason::Length), 1);
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_claims_ten_gigabytes() {
    let mut scene = scene().await;
    let raw = header(|_, data| data.raw_bytes = 10_000_000_000);
    assert_eq!(scene.wrong(raw, PAYLOAD).await, WrongReason::TooLarge);
    let payload = header(|_, data| data.payload_bytes = 10_000_000_000);
    assert_eq!(scene.wrong(payload, PAYLOAD).await, WrongReason::TooLarge);
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_year_9999_and_a_dataset_that_is_a_path() {
    let mut scene = scene().await;
    let date = header(|_, data| data.partition = Some(wire::Partition { date: 2_932_896, hour: None }));
    assert_eq!(scene.wrong(date, PAYLOAD).await, WrongReason::Header);
    assert_eq!(scene.wrong(header(|_, data| data.dataset = "../etc".into()), PAYLOAD).await, WrongReason::Header);
    assert_eq!(scene.wrong(Bytes::from_static(b"\xff\xff"), PAYLOAD).await, WrongReason::Header);
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_format_is_unsupported() {
    let mut scene = scene().await;
    let answer = scene.refused(header(|header, _| header.format = 2), PAYLOAD).await;
    assert_eq!(answer, Answer::Unsupported(wire::Unsupported { newest_format: 1 }));
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undeclared_dataset_and_a_stranger_are_told_to_wait() {
    let mut scene = scene().await;
    for (name, dataset) in [("web-1", "nowhere"), ("db-1", "clickstream")] {
        let mut agent = Agent::connect(name, scene.running.listen).await;
        let answer = agent.append(header(|_, data| data.dataset = dataset.into()), PAYLOAD).await.answer.unwrap();
        let Answer::Busy(busy) = answer else { panic!("{answer:?}") };
        assert_eq!(busy.reason(), BusyReason::Undeclared);
        assert!(busy.delay_ms > 0 && busy.detail.contains(dataset));
    }
    scene.agent = Agent::connect("web-1", scene.running.listen).await;
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_agents_origin_is_another_identity() {
    let mut scene = scene().await;
    let mut thief = Agent::connect("web-2", scene.running.listen).await;
    thief.append_durable(origin(1), 1, b"not the owner's").await;
    scene.agent.append_durable(origin(1), 1, b"abc").await;
    let sources = scene.running.sources.clone();
    eventually("both committed", || sources.status().held_batches == 0).await;
    let seen = scene.collector.seen.lock().unwrap();
    let bytes = |name: &str| seen.payloads.iter().find(|(id, _)| id.agent.as_str() == name).unwrap().1.clone();
    assert_eq!(bytes("web-1"), PAYLOAD);
    assert_eq!(bytes("web-2"), Bytes::from_static(b"not the owner's"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_has_to_name_the_agent_of_the_transport() {
    let mut scene = scene().await;
    let mut request = scene.agent.request(header(|_, _| {}), PAYLOAD);
    request.metadata_mut().insert(proto::AGENT_HEADER, "web-2".parse().unwrap());
    scene.sent_again(request, "the transport names agent \"web-2\"").await;
    let mut request = scene.agent.request(header(|_, _| {}), PAYLOAD);
    request.metadata_mut().remove(proto::AGENT_HEADER);
    scene.sent_again(request, proto::AGENT_HEADER).await;
    assert_eq!(scene.retried(RetryReason::Identity), 2);
    let asked = wire::ProgressRequest { agent: "web-2".into(), origin: origin(1).to_bytes(), ..Default::default() };
    let mut request = tonic::Request::new(asked);
    request.metadata_mut().insert(proto::AGENT_HEADER, "web-1".parse().unwrap());
    assert_eq!(scene.agent.client.progress(request).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let mut scene = scene().await;
    let mut request = scene.agent.request(header(|_, _| {}), PAYLOAD);
    request.metadata_mut().insert(proto::PAYLOAD_BYTES_HEADER, 10_000_000_000u64.into());
    let answer = scene.agent.client.append(request).await.unwrap().into_inner().answer.unwrap();
    let Answer::Wrong(wrong) = answer else { panic!("{answer:?}") };
    assert_eq!(wrong.reason(), WrongReason::TooLarge);
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_longer_than_claimed_or_without_a_claim_is_refused() {
    let mut scene = scene().await;
    let long = Bytes::from(vec![7; 300_000]);
    let mut request = scene.agent.request(header(|_, _| {}), long.clone());
    request.metadata_mut().insert(proto::PAYLOAD_BYTES_HEADER, 1000u64.into());
    let error = scene.agent.client.append(request).await.unwrap_err();
    assert!(error.message().contains("longer than its metadata says"), "{error:?}");
    let mut request = scene.agent.request(header(|_, _| {}), PAYLOAD);
    request.metadata_mut().remove(proto::PAYLOAD_BYTES_HEADER);
    let error = scene.agent.client.append(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    scene.lands_all_the_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_an_agent_is_told_at_once_and_memory_comes_back() {
    let mut scene = scene().await;
    // Two of these do not fit into the pool of 18 MiB; the body of the first never comes to its end.
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", scene.running.listen)).unwrap();
    let mut raw = tonic::client::Grpc::new(channel.connect().await.unwrap());
    let hold = tokio::spawn(async move {
        raw.ready().await.unwrap();
        let mut request = tonic::Request::new(tokio_stream::pending::<wire::AppendRequest>());
        request.metadata_mut().insert(proto::PAYLOAD_BYTES_HEADER, (16u64 << 20).into());
        let codec = tonic_prost::ProstCodec::<wire::AppendRequest, wire::AppendResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/catchment.v1.Ingest/Append");
        let _ = raw.client_streaming(request, path, codec).await;
    });
    let payload = Bytes::from(vec![b'a'; 8 << 20]);
    let mut told = None;
    for _ in 0..200 {
        let (header, payload) = batch(origin(2), 1, &payload);
        match scene.agent.append(header, payload).await.answer.unwrap() {
            Answer::Busy(busy) => {
                told = Some(busy);
                break;
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    assert_eq!(told.expect("told to wait").reason(), BusyReason::NoPermit);
    hold.abort();
    let mut taken = false;
    for _ in 0..200 {
        let (header, payload) = batch(origin(3), 1, &payload);
        taken = matches!(scene.agent.append(header, payload).await.answer.unwrap(), Answer::Durable(_));
        if taken {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(taken, "the memory of a request that was given up is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_up_in_the_middle_gets_its_batch_once() {
    let scene = scene().await;
    let (header, payload) = batch(origin(1), 1, b"abc");
    for _ in 0..5 {
        let request = scene.agent.request(header.clone(), payload.clone());
        let mut client = scene.agent.client.clone();
        // Dropped at once: whatever became of it, the same batch comes again.
        let _ = tokio::time::timeout(Duration::from_micros(200), client.append(request)).await;
    }
    scene.lands_all_the_same().await;
}
