//! One collector in this process, over a real connection, on a local directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use collector::config::Config;
use collector::run::Collector;
use common::supervise::Shutdown;
use proto::header::Header;
use proto::ids::Origin;
use proto::wire::answer::Answer as Kinds;
use proto::wire::batch_header::Kind;
use proto::wire::collect_client::CollectClient;
use proto::wire::deliver_request::Message;
use proto::wire::deliver_response::Message as Reply;
use proto::wire::{self, DeliverRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const PATIENCE: Duration = Duration::from_secs(30);

fn config(root: &Path) -> Config {
    let text = format!(
        "name = \"col-1\"\nlisten = \"127.0.0.1:0\"\n[destination]\nurl = \"file://{}\"\n[roll]\nage = \"1s\"\nidle = \"1s\"\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n[[datasets]]\nname = \"d\"\ncompression = \"none\"\nwriters = [\"web-*\"]\n\
         [[datasets]]\nname = \"hours\"\npartition = \"hour\"\ncompression = \"none\"\n",
        root.display()
    );
    common::config::parse(&text).unwrap()
}

async fn start(root: &Path) -> (Collector, Shutdown) {
    let shutdown = Shutdown::new(Duration::from_secs(20));
    (Collector::start(config(root), shutdown.clone()).await.unwrap(), shutdown)
}

/// An aggregator's end of one stream.
struct Stream {
    out: mpsc::Sender<DeliverRequest>,
    inbound: tonic::Streaming<wire::DeliverResponse>,
    hello: wire::CollectorHello,
    status: wire::CollectorStatus,
}

impl Stream {
    async fn open(collector: &Collector) -> Self {
        let url = format!("http://{}", collector.address);
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Ok(stream) = Self::try_open(url.clone()).await {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the collector takes streams")
    }

    async fn try_open(url: String) -> Result<Self, tonic::Status> {
        let mut client = CollectClient::connect(url).await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let (out, requests) = mpsc::channel(64);
        let hello = wire::AggregatorHello { aggregator: "agg-1".into(), newest_format: 1 };
        out.send(DeliverRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
        let mut inbound = client.deliver(ReceiverStream::new(requests)).await?.into_inner();
        match inbound.message().await? {
            Some(wire::DeliverResponse { message: Some(Reply::Hello(hello)) }) => {
                Ok(Self { out, inbound, status: hello.status.clone().unwrap_or_default(), hello })
            }
            other => panic!("no hello: {other:?}"),
        }
    }

    async fn send(&self, message: Message) {
        self.out.send(DeliverRequest { message: Some(message) }).await.unwrap();
    }

    async fn deliver(&self, agent: &str, header: &Header, payload: &'static str) {
        let (header, payload) = (header.bytes.clone(), Bytes::from_static(payload.as_bytes()));
        self.send(Message::Delivery(wire::Delivery { agent: agent.into(), header, payload, suspect: false })).await;
    }

    async fn next(&mut self) -> Option<Result<Vec<wire::Answer>, tonic::Status>> {
        let message = tokio::time::timeout(PATIENCE, self.inbound.message()).await.expect("an answer in time");
        match message {
            Err(status) => Some(Err(status)),
            Ok(None) => None,
            Ok(Some(response)) => match response.message {
                Some(Reply::Answers(answers)) => Some(Ok(answers.answers)),
                Some(Reply::Status(status)) => {
                    self.status = status;
                    Some(Ok(Vec::new()))
                }
                _ => Some(Ok(Vec::new())),
            },
        }
    }

    /// Answers until every one of `seqs` has a final one; the last answer of each, and the order of kinds.
    async fn finals(&mut self, seqs: &[u64]) -> BTreeMap<u64, (Kinds, Vec<&'static str>, Option<wire::IntervalSet>)> {
        let mut seen: BTreeMap<u64, (Kinds, Vec<&'static str>, Option<wire::IntervalSet>)> = BTreeMap::new();
        let finished = |kind: &Kinds| !matches!(kind, Kinds::Staged(_));
        while seqs.iter().any(|seq| seen.get(seq).is_none_or(|(kind, _, _)| !finished(kind))) {
            for answer in self.next().await.expect("the stream goes on").expect("without an error") {
                let (key, kind) = (answer.key.unwrap(), answer.answer.unwrap());
                let entry = seen.entry(key.seq).or_insert_with(|| (kind.clone(), Vec::new(), None));
                entry.1.push(name(&kind));
                (entry.0, entry.2) = (kind, answer.intervals);
            }
        }
        seen
    }
}

fn name(kind: &Kinds) -> &'static str {
    match kind {
        Kinds::Staged(_) => "staged",
        Kinds::Committed(_) => "committed",
        Kinds::Refused(_) => "refused",
        Kinds::Again(_) => "again",
        Kinds::Busy(_) => "busy",
        Kinds::Unsupported(_) => "unsupported",
    }
}

fn origin() -> Origin {
    Origin::mint(1_763_700_000_000, 77)
}

fn data(dataset: &str, payload: &str, hour: Option<u32>) -> Kind {
    Kind::Data(wire::Data {
        dataset: dataset.into(),
        partition: Some(wire::Partition { date: 20_000, hour }),
        codec: wire::Codec::None as i32,
        framing: wire::Framing::Lines as i32,
        events: payload.lines().count() as u64,
        raw_bytes: payload.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(payload.as_bytes()),
        zone: "UTC".into(),
        source: "nginx".into(),
        ..Default::default()
    })
}

fn batch(seq: u64, kind: Kind) -> Header {
    Header::encode(origin(), seq, kind).unwrap()
}

fn key(agent: &str, seq: u64) -> wire::BatchKey {
    wire::BatchKey { agent: agent.into(), origin: origin().to_bytes(), seq }
}

async fn metrics(collector: &Collector) -> String {
    let mut http = tokio::net::TcpStream::connect(collector.admin).await.unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, http.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    answer
}

fn published(root: &Path, dir: &str) -> String {
    let mut text = String::new();
    let Ok(entries) = std::fs::read_dir(root.join(dir)) else { return text };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        text += &std::fs::read_to_string(path).unwrap();
    }
    text
}

#[tokio::test]
async fn batches_are_staged_committed_and_recognised_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (collector, shutdown) = start(dir.path()).await;
    let mut stream = Stream::open(&collector).await;
    assert_eq!(stream.hello.collector, "col-1");
    assert_eq!(stream.status.declarations.len(), 2);
    assert!(stream.hello.credit_bytes > 0 && stream.status.declarations_version > 0);
    stream.deliver("web-1", &batch(0, Kind::Open(wire::Open::default())), "").await;
    stream.deliver("web-1", &batch(1, data("d", "a\nb\n", None)), "a\nb\n").await;
    stream.deliver("web-1", &batch(2, data("hours", "c\n", Some(7))), "c\n").await;
    stream.deliver("web-1", &batch(3, Kind::Mark(wire::Mark::default())), "").await;
    let answers = stream.finals(&[0, 1, 2, 3]).await;
    for seq in 0..4 {
        let (_, order, intervals) = &answers[&seq];
        assert_eq!(order, &["staged", "committed"], "seq {seq}");
        assert!(intervals.is_some());
    }
    assert_eq!(published(dir.path(), "d/event_date=2024-10-04"), "a\nb\n");
    assert_eq!(published(dir.path(), "hours/event_date=2024-10-04/event_hour=07"), "c\n");
    // The same again, at once and without another file.
    stream.deliver("web-1", &batch(1, data("d", "a\nb\n", None)), "a\nb\n").await;
    let again = stream.finals(&[1]).await;
    assert_eq!(again[&1].1, ["committed"]);
    assert_eq!(again[&1].2, Some(wire::IntervalSet { bounds: vec![0, 4] }));
    shutdown.drain();
    collector.join().await.unwrap();

    let (collector, shutdown) = start(dir.path()).await;
    let mut stream = Stream::open(&collector).await;
    stream.send(Message::Unanswered(wire::Unanswered { keys: vec![key("web-1", 2), key("web-1", 9)] })).await;
    let answers = stream.finals(&[2, 9]).await;
    assert_eq!((answers[&2].1.as_slice(), answers[&9].1.as_slice()), (&["committed"][..], &["again"][..]));
    shutdown.drain();
    collector.join().await.unwrap();
    assert_eq!(published(dir.path(), "d/event_date=2024-10-04"), "a\nb\n");
}

#[tokio::test]
async fn what_cannot_be_placed_is_quarantined_and_the_owner_is_not_disturbed() {
    let dir = tempfile::tempdir().unwrap();
    let (collector, shutdown) = start(dir.path()).await;
    let mut stream = Stream::open(&collector).await;
    stream.deliver("web-1", &batch(1, data("nowhere", "x\n", None)), "x\n").await;
    stream.deliver("web-1", &batch(2, data("d", "x\n", Some(3))), "x\n").await;
    stream.deliver("web-1", &batch(3, data("d", "x\n", None)), "y\n").await;
    stream.deliver("mail-1", &batch(4, data("d", "x\n", None)), "x\n").await;
    stream.deliver("web-1", &batch(4, data("d", "mine\n", None)), "mine\n").await;
    let suspect = batch(5, data("d", "x\n", None)).bytes;
    let payload = Bytes::from_static(b"x\n");
    stream
        .send(Message::Delivery(wire::Delivery { agent: "web-1".into(), header: suspect, payload, suspect: true }))
        .await;
    let answers = stream.finals(&[1, 2, 3, 5]).await;
    let reason = |seq: u64| match &answers[&seq].0 {
        Kinds::Refused(refused) => refused.reason.clone(),
        other => panic!("{other:?}"),
    };
    assert!(reason(1).contains("nowhere"), "{}", reason(1));
    assert!(reason(2).contains("partitioned"), "{}", reason(2));
    assert!(reason(3).contains("CRC32C"), "{}", reason(3));
    assert!(reason(5).contains("alone"), "{}", reason(5));
    shutdown.drain();
    while stream.next().await.is_some_and(|message| message.is_ok()) {}
    collector.join().await.unwrap();
    assert_eq!(published(dir.path(), "d/event_date=2024-10-04"), "mine\n");
    let mut batches = Vec::new();
    for day in std::fs::read_dir(dir.path().join("_catchment/quarantine")).unwrap() {
        for file in std::fs::read_dir(day.unwrap().path()).unwrap() {
            let bytes = Bytes::from(std::fs::read(file.unwrap().path()).unwrap());
            batches.extend(collector::quarantine::read(bytes).map(|batch| batch.unwrap()));
        }
    }
    let mut found: Vec<_> = batches.iter().map(|batch| (batch.id.agent.to_string(), batch.id.seq)).collect();
    found.sort();
    let web = |seq| ("web-1".to_owned(), seq);
    assert_eq!(found, [("mail-1".to_owned(), 4), web(1), web(2), web(3), web(5)]);
}

#[tokio::test]
async fn a_newer_format_is_not_kept_and_an_unreadable_identity_breaks_the_stream() {
    use prost::Message as _;
    let dir = tempfile::tempdir().unwrap();
    let (collector, shutdown) = start(dir.path()).await;
    let mut stream = Stream::open(&collector).await;
    let newer = wire::BatchHeader { format: 2, origin: origin().to_bytes(), seq: 8, kind: None };
    let newer = wire::Delivery { agent: "web-1".into(), header: newer.encode_to_vec().into(), ..Default::default() };
    stream.send(Message::Delivery(newer)).await;
    let answers = stream.finals(&[8]).await;
    assert_eq!(answers[&8].0, Kinds::Unsupported(wire::NotSupported { newest_format: 1 }));
    let garbage =
        wire::Delivery { agent: "web-1".into(), header: Bytes::from_static(b"\xff\xff"), ..Default::default() };
    stream.send(Message::Delivery(garbage)).await;
    let status = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(status)) => break status,
            None => panic!("the stream ended without a reason"),
        }
    };
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let metrics = metrics(&collector).await;
    let counted = |line: &str| line.contains("collector_unidentified_batches_total") && line.ends_with(" 1");
    assert!(metrics.lines().any(counted), "{metrics}");
    shutdown.drain();
    collector.join().await.unwrap();
}

#[tokio::test]
async fn a_drain_takes_nothing_more_and_commits_what_is_staged() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.roll.age = common::units::Span::secs(3600);
    config.roll.idle = common::units::Span::secs(3600);
    let shutdown = Shutdown::new(Duration::from_secs(20));
    let collector = Collector::start(config, shutdown.clone()).await.unwrap();
    let mut stream = Stream::open(&collector).await;
    stream.deliver("web-1", &batch(1, data("d", "a\n", None)), "a\n").await;
    stream.deliver("web-1", &batch(2, Kind::Mark(wire::Mark::default())), "").await;
    loop {
        if stream.next().await.unwrap().unwrap().iter().any(|answer| answer.key.as_ref().unwrap().seq == 2) {
            break;
        }
    }
    assert_eq!(published(dir.path(), "d/event_date=2024-10-04"), "");
    shutdown.drain();
    let answers = stream.finals(&[1, 2]).await;
    assert!(answers.values().all(|(kind, _, _)| matches!(kind, Kinds::Committed(_))));
    assert!(stream.status.draining);
    collector.join().await.unwrap();
    assert_eq!(published(dir.path(), "d/event_date=2024-10-04"), "a\n");
}

#[tokio::test]
async fn an_early_roll_is_made_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.roll.age = common::units::Span::secs(3600);
    config.roll.idle = common::units::Span::secs(3600);
    let shutdown = Shutdown::new(Duration::from_secs(20));
    let collector = Collector::start(config, shutdown.clone()).await.unwrap();
    let mut stream = Stream::open(&collector).await;
    stream.deliver("web-1", &batch(1, data("d", "a\n", None)), "a\n").await;
    stream.send(Message::Roll(wire::RollRequest {})).await;
    let answers = stream.finals(&[1]).await;
    assert_eq!(answers[&1].1, ["staged", "committed"]);
    shutdown.drain();
    collector.join().await.unwrap();
}
