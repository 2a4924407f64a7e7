//! What one path does to the others: a file that hangs, and a directory whose quota is used up, over a real stream.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use collector::config::Config;
use collector::run::Collector;
use collector::store::{self, DestinationConfig, Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture};
use common::supervise::Shutdown;
use proto::header::Header;
use proto::ids::Origin;
use proto::wire::answer::Answer as Kinds;
use proto::wire::deliver_request::Message;
use proto::wire::{
    self, DeliverRequest, batch_header, collect_client::CollectClient, deliver_response::Message as Reply,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

const PATIENCE: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// A local store. Writes to the first group's file hang, and renames into dataset `full` find a quota used up, as long
/// as the trouble lasts.
#[derive(Debug)]
struct Troubled {
    inner: Arc<dyn Store>,
    trouble: watch::Receiver<bool>,
    hangs: bool,
}

struct Hanging {
    inner: Box<dyn StagedFile>,
    trouble: watch::Receiver<bool>,
}

impl Store for Troubled {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dirs(path, mode)
    }
    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dir_new(path, mode)
    }
    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        Box::pin(async move {
            let inner = self.inner.create(path).await?;
            if !self.hangs || !path.ends_with("/0.log") {
                return Ok(inner);
            }
            Ok(Box::new(Hanging { inner, trouble: self.trouble.clone() }) as Box<dyn StagedFile>)
        })
    }
    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        Box::pin(async move {
            if to.starts_with("full/") && *self.trouble.borrow() {
                let detail = "The NameSpace quota of directory full is exceeded".into();
                return Err(StoreError::Full { op: "rename", path: to.into(), detail });
            }
            self.inner.rename_new(from, to).await
        })
    }
    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.read(path, max_bytes)
    }
    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        self.inner.read_range(path, offset, len)
    }
    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.inner.list(dir)
    }
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        self.inner.stat(path)
    }
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        self.inner.delete(path, recursive)
    }
    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        self.inner.set_attributes(path, mode, group)
    }
}

impl StagedFile for Hanging {
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            // A test that ends lets it go on.
            let _ = self.trouble.wait_for(|trouble| !trouble).await;
            self.inner.append(bytes).await
        })
    }
    fn close(self: Box<Self>) -> StoreFuture<'static, u64> {
        self.inner.close()
    }
}

/// One collector and one stream to it.
struct Bench {
    dir: tempfile::TempDir,
    collector: Collector,
    shutdown: Shutdown,
    trouble: watch::Sender<bool>,
    out: mpsc::Sender<DeliverRequest>,
    inbound: tonic::Streaming<wire::DeliverResponse>,
    answers: BTreeMap<u64, Kinds>,
}

impl Bench {
    async fn new(roll: &str, hangs: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let text = format!(
            "name = \"col-1\"\nlisten = \"127.0.0.1:0\"\n[destination]\nurl = \"{url}\"\n[roll]\n{roll}\n\
             [commit]\nfinish_after = \"1s\"\n[receive]\nmemory = \"64MiB\"\nstream_memory = \"4MiB\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[[datasets]]\nname = \"d\"\ncompression = \"none\"\n\
             [[datasets]]\nname = \"full\"\ncompression = \"none\"\n"
        );
        let config: Config = common::config::parse(&text).unwrap();
        let (trouble, watched) = watch::channel(true);
        let inner = store::open(&DestinationConfig::new(url)).unwrap();
        let shutdown = Shutdown::new(Duration::from_secs(20));
        let store = Arc::new(Troubled { inner, trouble: watched, hangs });
        let mut collector = Collector::start_on(config, store, shutdown.clone()).await.unwrap();
        collector.status.wait_for(|snapshot| !snapshot.incarnation.is_empty()).await.unwrap();
        let (out, requests) = mpsc::channel(4);
        let mut client = CollectClient::connect(format!("http://{}", collector.address)).await.unwrap();
        let hello = Message::Hello(wire::AggregatorHello { aggregator: "agg-1".into(), newest_format: 1 });
        out.send(DeliverRequest { message: Some(hello) }).await.unwrap();
        let inbound = client.deliver(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Self { dir, collector, shutdown, trouble, out, inbound, answers: BTreeMap::new() }
    }

    async fn deliver(&self, seq: u64, dataset: &str, date: i32, payload: &[u8]) {
        let data = wire::Data {
            dataset: dataset.into(),
            partition: Some(wire::Partition { date, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: payload.iter().filter(|byte| **byte == b'\n').count() as u64,
            raw_bytes: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(payload),
            ..Default::default()
        };
        let origin = Origin::mint(1_763_700_000_000, 77);
        let header = Header::encode(origin, seq, batch_header::Kind::Data(data)).unwrap().bytes;
        let payload = Bytes::copy_from_slice(payload);
        let delivery = wire::Delivery { agent: "web-1".into(), header, payload, suspect: false };
        let message = DeliverRequest { message: Some(Message::Delivery(delivery)) };
        let sent = tokio::time::timeout(PATIENCE, self.out.send(message)).await;
        sent.expect("the collector goes on reading").unwrap();
    }

    /// Reads answers until these are as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&BTreeMap<u64, Kinds>) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !wanted(&self.answers) {
            let message = tokio::time::timeout_at(end, self.inbound.message()).await;
            let message = message.unwrap_or_else(|_| panic!("{what}: {:?}", self.answers)).unwrap().unwrap();
            if let Some(Reply::Answers(answers)) = message.message {
                let answers = answers.answers.into_iter();
                self.answers.extend(answers.map(|answer| (answer.key.unwrap().seq, answer.answer.unwrap())));
            }
        }
    }

    fn count(&self, wanted: fn(&Kinds) -> bool) -> usize {
        self.answers.values().filter(|kind| wanted(kind)).count()
    }
}

fn is_staged(kind: &Kinds) -> bool {
    matches!(kind, Kinds::Staged(_))
}

fn is_committed(kind: &Kinds) -> bool {
    matches!(kind, Kinds::Committed(_))
}

fn published(root: &Path, dir: &str) -> Vec<u8> {
    let Ok(entries) = std::fs::read_dir(root.join(dir)) else { return Vec::new() };
    entries.flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[tokio::test]
async fn a_file_that_hangs_holds_back_its_own_partition_only() {
    let mut bench = Bench::new("age = \"1h\"\nidle = \"1h\"", true).await;
    let line = |byte: u8, bytes: usize| [vec![byte; bytes - 1], vec![b'\n']].concat();
    // Its file is opened past 8 MiB, and hangs. Then much more comes than one stream may hold.
    let slow: Vec<u64> = (1..41).collect();
    for seq in &slow {
        bench.deliver(*seq, "d", 20_000, &line(b'a', MIB)).await;
        if *seq <= 8 {
            bench.until("it is staged in memory", |seen| seen.contains_key(seq)).await;
        }
    }
    for seq in 100..110 {
        bench.deliver(seq, "d", 20_001, &line(b'b', 1000)).await;
    }
    bench
        .until("the other partition is staged", |seen| (100..110).all(|seq| seen.get(&seq).is_some_and(is_staged)))
        .await;
    let busy = |kind: &Kinds| matches!(kind, Kinds::Busy(_));
    bench.until("the rest waits at the aggregator", |seen| seen.values().filter(|kind| busy(kind)).count() >= 24).await;
    let unanswered = slow.len() - slow.iter().filter(|seq| bench.answers.contains_key(seq)).count();
    assert!((1..=2).contains(&unanswered), "{unanswered} MiB of 4 are held by the file that hangs");

    bench.trouble.send(false).unwrap();
    while bench.count(is_staged) < slow.len() + 10 {
        bench.until("all of them are answered", |seen| slow.iter().all(|seq| seen.contains_key(seq))).await;
        for seq in &slow {
            if bench.answers.get(seq).is_some_and(busy) {
                bench.answers.remove(seq);
                bench.deliver(*seq, "d", 20_000, &line(b'a', MIB)).await;
            }
        }
    }
    bench.shutdown.drain();
    bench.until("everything is committed", |seen| seen.values().all(is_committed)).await;
    bench.collector.join().await.unwrap();
    assert_eq!(published(bench.dir.path(), "d/event_date=2024-10-04").len(), slow.len() * MIB, "each once");
    assert_eq!(published(bench.dir.path(), "d/event_date=2024-10-05").len(), 10 * 1000);
}

#[tokio::test]
async fn a_quota_that_is_used_up_holds_back_its_own_dataset_only() {
    let mut bench = Bench::new("age = \"100ms\"\nidle = \"100ms\"", false).await;
    bench.deliver(1, "full", 20_000, b"one\n").await;
    bench.until("it is in a record", |seen| seen.get(&1).is_some_and(is_committed)).await;
    bench.deliver(2, "d", 20_000, b"two\n").await;
    bench.until("commits go on", |seen| seen.get(&2).is_some_and(is_committed)).await;
    assert_eq!(published(bench.dir.path(), "d/event_date=2024-10-04"), b"two\n");
    assert_eq!(published(bench.dir.path(), "full/event_date=2024-10-04"), b"");
    let named = bench.collector.status.wait_for(|snapshot| snapshot.stuck_files == 1);
    let stuck = tokio::time::timeout(PATIENCE, named).await.expect("the status says so").unwrap().stuck.clone();
    assert!(stuck[0].starts_with("full/event_date=2024-10-04/"), "{stuck:?}");

    bench.trouble.send(false).unwrap();
    let gone = bench.collector.status.wait_for(|snapshot| snapshot.stuck_files == 0);
    tokio::time::timeout(2 * PATIENCE, gone).await.expect("it is tried again").unwrap();
    assert_eq!(published(bench.dir.path(), "full/event_date=2024-10-04"), b"one\n");
    bench.shutdown.drain();
    bench.collector.join().await.unwrap();
}
