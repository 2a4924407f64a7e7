//! Peers that send what no agent of ours sends, against real processes: each is refused or quarantined with its reason on
//! both sides, nothing else is disturbed, and the owner's batches of the same origin and seq land all the same.

mod scene;

use std::time::{Duration, Instant};

use loadtest::cluster::spec::Tier;
use loadtest::cluster::{Cluster, http};
use loadtest::progress::Progress;
use loadtest::run;
use loadtest::verify::tree::Tree;
use loadtest::verify::{found, quarantine, tally};
use prost::Message;
use proto::header::Header;
use proto::ids::Origin;
use proto::wire::append_response::Answer;
use proto::wire::ingest_client::IngestClient;
use proto::wire::{
    self, AppendRequest, BatchHeader, BusyReason, Close, Codec, Data, Framing, Open, Partition, QuarantinedBatch,
    WrongReason, batch_header,
};
use tonic::transport::Channel;

use scene::{destination, program, small_spec};

/// 2025-11-20.
const DAY: i32 = 20_412;
const LINE: &str = "10.0.0.1 - - [20/Nov/2025:13:55:36 +0000] \"GET /?eid=";

/// A peer that says it is `agent`.
struct Peer {
    client: IngestClient<Channel>,
    agent: &'static str,
}

/// An answer as far as the test looks at it.
#[derive(Debug, PartialEq)]
enum Told {
    Durable,
    Busy(BusyReason),
    Wrong(WrongReason),
    Unsupported,
    Retry(String),
    Error(tonic::Code),
}

impl Peer {
    async fn connect(cluster: &Cluster, agent: &'static str) -> Self {
        let url = format!("http://{}", cluster.addresses(Tier::Aggregator, 0).listen);
        let client = IngestClient::connect(url).await.unwrap().max_encoding_message_size(64 << 20);
        Self { client, agent }
    }

    async fn append(&mut self, header: Vec<u8>, payload: Vec<u8>) -> Told {
        self.append_knowing(header, payload, &[]).await.0
    }

    /// The answer, and the quarantined batches of the origin that it tells of but for those `known`, a list of bounds.
    async fn append_knowing(
        &mut self,
        header: Vec<u8>,
        payload: Vec<u8>,
        known: &[u64],
    ) -> (Told, Vec<QuarantinedBatch>) {
        let request = AppendRequest {
            agent: self.agent.into(),
            header: header.into(),
            payload: payload.into(),
            quarantined_known: Some(wire::IntervalSet { bounds: known.to_vec() }),
            ..Default::default()
        };
        let bytes = request.encoded_len();
        let mut request = tonic::Request::new(request);
        let meta = request.metadata_mut();
        meta.insert(proto::PAYLOAD_BYTES_HEADER, bytes.to_string().parse().unwrap());
        meta.insert(proto::AGENT_HEADER, self.agent.parse().unwrap());
        let response = match self.client.append(request).await {
            Err(status) => return (Told::Error(status.code()), Vec::new()),
            Ok(response) => response.into_inner(),
        };
        let told = match response.answer.unwrap() {
            Answer::Durable(_) => Told::Durable,
            Answer::Busy(busy) => Told::Busy(busy.reason()),
            Answer::Wrong(wrong) => {
                assert!(!wrong.detail.is_empty(), "the reason is given");
                Told::Wrong(wrong.reason())
            }
            Answer::Unsupported(_) => Told::Unsupported,
            Answer::Retry(retry) => Told::Retry(retry.reason),
        };
        (told, response.quarantined)
    }

    async fn progress(&mut self, origin: Origin) -> wire::ProgressResponse {
        let request =
            wire::ProgressRequest { agent: self.agent.into(), origin: origin.to_bytes(), ..Default::default() };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert(proto::AGENT_HEADER, self.agent.parse().unwrap());
        self.client.progress(request).await.unwrap().into_inner()
    }
}

fn origin(number: u64) -> Origin {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Origin::mint(now.as_millis() as u64, u128::from(number))
}

fn data(payload: &[u8], raw_bytes: u64) -> Data {
    Data {
        dataset: "clickstream".into(),
        partition: Some(Partition { date: DAY, hour: None }),
        codec: Codec::Zstd as i32,
        framing: Framing::Lines as i32,
        events: 1,
        raw_bytes,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(payload),
        zone: "UTC".into(),
        source: "logs".into(),
        ..Data::default()
    }
}

fn header(origin: Origin, seq: u64, kind: batch_header::Kind) -> Vec<u8> {
    BatchHeader { format: proto::FORMAT, origin: origin.to_bytes(), seq, kind: Some(kind) }.encode_to_vec()
}

fn data_header(origin: Origin, seq: u64, data: Data) -> Vec<u8> {
    header(origin, seq, batch_header::Kind::Data(data))
}

fn line(id: &str) -> Vec<u8> {
    format!("{LINE}{id} HTTP/1.1\" 200 1 \"-\" \"-\"\n").into_bytes()
}

fn frame(raw: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(raw, 1).unwrap()
}

/// A frame whose own header claims 10 GB: magic, descriptor for an 8-byte size, window, size, one empty last block.
fn frame_of_10_gb() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    frame.extend_from_slice(&10_000_000_000u64.to_le_bytes());
    frame.extend_from_slice(&[1, 0, 0]);
    frame
}

#[test]
fn each_is_refused_with_its_reason_and_nothing_else_is_disturbed() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = small_spec(dir.path(), Vec::new());
    spec.agents.clear();
    let mut cluster = Cluster::create(spec, program(), &dir.path().join("nodes")).unwrap();
    cluster.start_servers().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = runtime.block_on(attack(&cluster));
    for tier in [Tier::Aggregator, Tier::Collector] {
        cluster.check_alive(tier, 0).unwrap();
        assert_eq!(http::get(cluster.addresses(tier, 0).admin, "/healthz").unwrap().status, 200);
    }
    let mut progress = Progress::new("hostile");
    run::drain_servers(&mut cluster, &mut progress).unwrap();

    let tree = Tree::open(&destination(dir.path())).unwrap();
    let mut tally = tally::Tally::default();
    let found = found::count(&tree, None, &Default::default(), None, &mut tally).unwrap();
    // The owner's line, and the one under another agent's name with the same origin: two identities.
    assert_eq!(found.partitions["event_date=2025-11-20"].events, 2, "{found:?}");
    assert_eq!(found.partitions.len(), 1);
    let files = tree.files().unwrap();
    let quarantined: Vec<quarantine::Batch> = files
        .iter()
        .filter(|file| file.path.starts_with("_catchment/quarantine/"))
        .flat_map(|file| quarantine::batches(&tree.read_all(file).unwrap()).unwrap())
        .collect();
    let mut seqs: Vec<u64> = quarantined.iter().map(|batch| batch.seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [1, 2, 3], "{quarantined:?}");
    assert!(quarantined.iter().all(|batch| batch.agent == "mallory" && !batch.reason.is_empty()), "{quarantined:?}");
    // What its sender was told is what lies there.
    for batch in &quarantined {
        let told = told.iter().find(|told| told.seq == batch.seq).unwrap();
        assert_eq!(told.dataset, "clickstream");
        assert_eq!(told.reason, proto::reason::clean(&batch.reason));
    }
}

/// What the hostile peer was told of its quarantined batches.
async fn attack(cluster: &Cluster) -> Vec<QuarantinedBatch> {
    let (shared, own) = (origin(1), origin(2));
    let mut owner = Peer::connect(cluster, "web-01").await;
    let mut mallory = Peer::connect(cluster, "mallory").await;
    let open = |origin| header(origin, 0, batch_header::Kind::Open(Open::default()));

    // Another agent's origin, first: it is another identity, and takes nothing from the owner.
    let stolen = frame(&line("web-02.b"));
    assert_eq!(mallory.append(open(shared), Vec::new()).await, Told::Durable);
    assert_eq!(
        mallory.append(data_header(shared, 1, data(&stolen, line("web-02.b").len() as u64)), stolen).await,
        Told::Durable
    );

    let raw = line("web-03.b");
    let good = frame(&raw);
    let length = raw.len() as u64;
    assert_eq!(mallory.append(open(own), Vec::new()).await, Told::Durable);
    // Undeclared: the log is the buffer.
    let undeclared = Data { dataset: "secrets".into(), ..data(&good, length) };
    assert_eq!(mallory.append(data_header(own, 1, undeclared), good.clone()).await, Told::Busy(BusyReason::Undeclared));
    // A payload that is not what its header says may have been damaged on its way: it is to be sent again.
    let wrong_crc = Data { payload_crc32c: 1, ..data(&good, length) };
    let told = mallory.append(data_header(own, 1, wrong_crc), good.clone()).await;
    assert!(matches!(&told, Told::Retry(reason) if reason.contains("CRC32C")), "{told:?}");
    // 10 GB claimed in the header, no header, a body over the limit, the year 9999.
    let claimed = data(&good, 10_000_000_000);
    assert!(matches!(mallory.append(data_header(own, 1, claimed), good.clone()).await, Told::Wrong(_)));
    assert_eq!(mallory.append(vec![0xff; 40], good.clone()).await, Told::Wrong(WrongReason::Header));
    let large = vec![0u8; 40 << 20];
    let told = mallory.append(data_header(own, 1, data(&good, length)), large).await;
    assert!(
        matches!(told, Told::Error(_) | Told::Wrong(WrongReason::TooLarge) | Told::Busy(BusyReason::NoPermit)),
        "{told:?}"
    );
    let year_9999 = Data { partition: Some(Partition { date: 2_932_896, hour: None }), ..data(&good, length) };
    assert_eq!(mallory.append(data_header(own, 1, year_9999), good.clone()).await, Told::Wrong(WrongReason::Header));
    // A newer format.
    let newer = BatchHeader {
        format: proto::FORMAT + 1,
        origin: own.to_bytes(),
        seq: 1,
        kind: Some(batch_header::Kind::Data(data(&good, length))),
    };
    assert_eq!(mallory.append(newer.encode_to_vec(), good.clone()).await, Told::Unsupported);

    send_frames_that_lie(&mut mallory, own, &good, length).await;
    // The owner's own batches, after all that.
    assert_eq!(owner.append(open(shared), Vec::new()).await, Told::Durable);
    let raw = line("web-01.b");
    let payload = frame(&raw);
    let batch = data_header(shared, 1, data(&payload, raw.len() as u64));
    assert!(Header::decode(batch.clone().into()).is_ok());
    assert_eq!(owner.append(batch.clone(), payload.clone()).await, Told::Durable);
    // Sent again, as after a lost answer: it is known, and lands once.
    assert_eq!(owner.append(batch, payload).await, Told::Durable);
    let close = header(shared, 2, batch_header::Kind::Close(Close { left: true, ..Close::default() }));
    assert_eq!(owner.append(close, Vec::new()).await, Told::Durable);
    assert_eq!(wait_committed(&mut owner, shared, 3).await, [], "nothing of the owner's is quarantined");
    assert_eq!(wait_committed(&mut mallory, shared, 2).await, []);
    let told = wait_committed(&mut mallory, own, 4).await;
    assert_eq!(told.iter().map(|told| told.seq).collect::<Vec<_>>(), [1, 2, 3], "{told:?}");
    assert!(told.iter().all(|told| !told.reason.is_empty() && told.reason.len() <= 256), "{told:?}");
    // An append of the same origin brings them too, but for those that are known.
    let (answer, rest) = mallory.append_knowing(open(own), Vec::new(), &[1, 3]).await;
    assert_eq!((answer, &rest[..]), (Told::Durable, &told[2..]));
    assert_eq!(owner.progress(own).await.quarantined, [], "another agent's reasons are not told");
    told
}

/// Frames that only who decodes them can see through: taken by the aggregator, quarantined by the collector.
async fn send_frames_that_lie(mallory: &mut Peer, own: Origin, good: &[u8], length: u64) {
    let two = [good, good].concat();
    let huge = frame_of_10_gb();
    let cut = good[..good.len() - 3].to_vec();
    assert_eq!(mallory.append(data_header(own, 1, data(&two, 2 * length)), two).await, Told::Durable);
    assert_eq!(mallory.append(data_header(own, 2, data(&huge, length)), huge).await, Told::Durable);
    assert_eq!(mallory.append(data_header(own, 3, data(&cut, length)), cut).await, Told::Durable);
}

/// Until the origin's seqs below `end` are committed; what is told of quarantined ones then.
async fn wait_committed(peer: &mut Peer, origin: Origin, end: u64) -> Vec<QuarantinedBatch> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let progress = peer.progress(origin).await;
        if progress.committed.as_ref().is_some_and(|set| set.bounds == [0, end]) {
            return progress.quarantined;
        }
        assert!(Instant::now() < deadline, "not committed within a minute: {progress:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
