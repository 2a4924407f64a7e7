//! Groups against a local store behind a wrapper that fails where a test says so.

use std::sync::atomic::AtomicU64;

use common::frame::FrameEncoder;
use proto::ids::{AgentName, Origin};
use proto::wire::{Codec, FileKind, Framing, batch_header};
use tokio::sync::Semaphore;

use super::*;
use crate::config::dataset::{Compression, Verify};
use crate::store::{DestinationConfig, Entry, Renamed, StagedFile, Stat, StoreError, StoreFuture, open};

const STAGING: &str = "_catchment/staging/col-1-run";

/// Passes calls on; may refuse writes, and may hold closes back.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn Store>,
    /// Appends that still succeed.
    appends: AtomicU64,
    /// Permits for closes.
    closes: Semaphore,
    /// Creates that are answered "not now" before one succeeds.
    refusals: AtomicU64,
    /// Creates that are carried out and not answered.
    silent: AtomicU64,
    lose_byte: AtomicBool,
}

struct FaultyFile {
    store: Arc<Faulty>,
    inner: Box<dyn StagedFile>,
}

#[derive(Debug, Clone)]
struct FaultyStore(Arc<Faulty>);

impl Store for FaultyStore {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.0.inner.make_dirs(path, mode)
    }
    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.0.inner.make_dir_new(path, mode)
    }
    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        Box::pin(async move {
            let refused = self.0.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if refused.is_ok() {
                let detail = "safe mode".into();
                return Err(StoreError::Unavailable { op: "create", path: path.into(), detail });
            }
            let inner = self.0.inner.create(path).await?;
            let silent = self.0.silent.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if silent.is_ok() {
                let detail = "time-out".into();
                return Err(StoreError::Unanswered { op: "create", path: path.into(), detail });
            }
            Ok(Box::new(FaultyFile { store: self.0.clone(), inner }) as Box<dyn StagedFile>)
        })
    }
    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        self.0.inner.rename_new(from, to)
    }
    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.0.inner.read(path, max_bytes)
    }
    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        self.0.inner.read_range(path, offset, len)
    }
    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.0.inner.list(dir)
    }
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        self.0.inner.stat(path)
    }
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        self.0.inner.delete(path, recursive)
    }
    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        self.0.inner.set_attributes(path, mode, group)
    }
}

impl StagedFile for FaultyFile {
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let left = self.store.appends.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if left.is_err() {
                return Err(StoreError::Unanswered {
                    op: "write",
                    path: "x".into(),
                    detail: "as the test says".into(),
                });
            }
            let lose = usize::from(self.store.lose_byte.load(Ordering::SeqCst));
            self.inner.append(bytes.slice(..bytes.len() - lose)).await
        })
    }
    fn close(self: Box<Self>) -> StoreFuture<'static, u64> {
        Box::pin(async move {
            let permit = self.store.closes.acquire().await;
            permit.map_err(|e| StoreError::Other { op: "close", path: "x".into(), detail: e.to_string() })?.forget();
            self.inner.close().await
        })
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    faults: Arc<Faulty>,
    memory: MemoryBudget,
    dataset: DatasetConfig,
    next: u64,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        inner.make_dirs(STAGING, 0o700).await.unwrap();
        let faults = Faulty {
            inner,
            appends: AtomicU64::new(u64::MAX),
            closes: Semaphore::new(100),
            refusals: AtomicU64::new(0),
            silent: AtomicU64::new(0),
            lose_byte: AtomicBool::new(false),
        };
        let memory = MemoryBudget::new(256 << 20);
        let dataset = DatasetConfig::named("clickstream");
        Self { _dir: dir, faults: Arc::new(faults), memory, dataset, next: 0 }
    }

    fn group(&mut self, kind: GroupKind) -> GroupHandle {
        self.next += 1;
        let spec = GroupSpec {
            number: self.next,
            incarnation: "col-1-run".into(),
            kind,
            dataset: Arc::new(self.dataset.clone()),
            partition: Partition::new(20_000, None).unwrap(),
            opened_day_utc: 20_001,
        };
        GroupHandle::spawn(spec, Arc::new(FaultyStore(self.faults.clone())), self.memory.clone())
    }

    async fn staged(&self) -> Vec<String> {
        self.faults.inner.list(STAGING).await.unwrap().into_iter().map(|e| e.name).collect()
    }

    async fn content(&self, file: &wire::PublishedFile) -> Vec<u8> {
        let bytes = self.faults.inner.read(&file.staged, 1 << 30).await.unwrap();
        assert_eq!(bytes.len() as u64, file.bytes);
        assert_eq!(crc32c::crc32c(&bytes), file.crc32c);
        bytes.to_vec()
    }
}

/// Lines that do not compress well, so that sizes are what they seem.
fn lines(seq: u64, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 64);
    let mut state = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(format!("{seq} {state:016x}\n").as_bytes());
    }
    out
}

fn batch(seq: u64, codec: Codec, raw: &[u8]) -> StageBatch {
    let mut payload = Vec::new();
    FrameEncoder::new(codec, 1).encode(raw, &mut payload).unwrap();
    staged(seq, codec, raw, payload)
}

fn staged(seq: u64, codec: Codec, raw: &[u8], payload: Vec<u8>) -> StageBatch {
    let data = wire::Data {
        dataset: "clickstream".into(),
        partition: Some(wire::Partition { date: 20_000, hour: None }),
        codec: codec.into(),
        framing: Framing::Lines.into(),
        events: raw.iter().filter(|&&b| b == b'\n').count() as u64,
        raw_bytes: raw.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(&payload),
        zone: "UTC".into(),
        source: "nginx".into(),
        ..Default::default()
    };
    let origin = Origin::mint(1, 1);
    let header = Header::encode(origin, seq, batch_header::Kind::Data(data)).unwrap();
    let id = BatchId { agent: AgentName::new("web-1").unwrap(), origin, seq };
    StageBatch { id, header, payload: payload.into() }
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes), &mut out).unwrap();
    out
}

fn sorted(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = text.split_inclusive(|&b| b == b'\n').collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn text_comes_back_whole_in_every_codec() {
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let mut bench = Bench::new().await;
        bench.dataset.compression = compression;
        let group = bench.group(GroupKind::Data);
        let mut sent = Vec::new();
        // Large and small frames of each codec: some pass, some are joined.
        for (seq, codec) in [Codec::Zstd, Codec::Gzip, Codec::None].into_iter().cycle().take(12).enumerate() {
            let raw = lines(seq as u64 + 1, if seq % 4 == 0 { 300_000 } else { 900 });
            group.append(batch(seq as u64 + 1, codec, &raw)).await.unwrap().unwrap();
            sent.extend_from_slice(&raw);
        }
        assert!(bench.staged().await.is_empty(), "under 8 MiB nothing is opened before the close");
        let closed = group.close().await.unwrap().unwrap();
        let [file] = closed.files.as_slice() else { panic!("{closed:?}") };
        let bytes = bench.content(file).await;
        let read = match compression {
            Compression::Zstd => zstd::stream::decode_all(bytes.as_slice()).unwrap(),
            Compression::Gzip => gunzip(&bytes),
            Compression::None => bytes,
        };
        assert_eq!(sorted(&read), sorted(&sent));
        assert_eq!((file.raw_bytes, file.batches), (sent.len() as u64, 12));
        assert_eq!(file.events as usize, sorted(&sent).len());
        drop(group);
    }
}

#[tokio::test]
async fn a_file_is_opened_past_eight_mebibytes_and_memory_is_given_back() {
    let mut bench = Bench::new().await;
    bench.dataset.compression = Compression::None;
    let group = bench.group(GroupKind::Data);
    for seq in 1..=8 {
        group.append(batch(seq, Codec::None, &lines(seq, 1_000_000))).await.unwrap().unwrap();
    }
    assert!(bench.memory.used() >= 8_000_000);
    group.append(batch(9, Codec::None, &lines(9, 1_000_000))).await.unwrap().unwrap();
    assert_eq!(bench.staged().await, ["1.log"]);
    let closed = group.close().await.unwrap().unwrap();
    assert_eq!(closed.files[0].bytes, closed.files[0].raw_bytes);
    assert_eq!((bench.memory.used(), group.buffered_bytes()), (0, 0));
    assert_eq!(group.file_bytes(), closed.files[0].bytes);
    assert!(group.close().await.unwrap().is_err(), "a group is closed once");
    let late = group.append(batch(10, Codec::None, b"x\n")).await.unwrap();
    assert!(matches!(late, Err(AppendError::Poisoned(_))));
}

#[tokio::test]
async fn hostile_payloads_are_refused_and_disturb_nothing() {
    for (compression, codec) in [(Compression::Zstd, Codec::Zstd), (Compression::Gzip, Codec::Gzip)] {
        for verify in [Verify::Headers, Verify::Decode] {
            let mut bench = Bench::new().await;
            (bench.dataset.compression, bench.dataset.verify) = (compression, verify);
            let group = bench.group(GroupKind::Data);
            for size in [900, 200_000] {
                let raw = lines(1, size);
                let good = batch(1, codec, &raw);
                group.append(good.clone()).await.unwrap().unwrap();
                let frame = good.payload.to_vec();
                let two = [frame.as_slice(), &frame].concat();
                let twice = [raw.as_slice(), &raw].concat();
                let cut = frame[..frame.len() - 3].to_vec();
                let longer = [raw.as_slice(), b"x\n"].concat();
                // Magic, a content size of 8 bytes, a window, 10 GB, one empty last block.
                let mut huge = vec![0x28, 0xb5, 0x2f, 0xfd, 0xc0, 0x58];
                huge.extend_from_slice(&10_000_000_000_u64.to_le_bytes());
                huge.extend_from_slice(&[1, 0, 0]);
                for (what, payload, claimed) in [
                    ("two frames", two.clone(), &raw),
                    ("two frames, size of both", two, &twice),
                    ("truncated", cut, &raw),
                    ("wrong raw size", frame.clone(), &longer),
                    ("claims 10 GB", huge, &raw),
                    ("empty", Vec::new(), &raw),
                    ("garbage", vec![b'x'; 5000], &raw),
                ] {
                    let refused = group.append(staged(2, codec, claimed, payload)).await.unwrap();
                    assert!(matches!(refused, Err(AppendError::Refused(_))), "{what}: {refused:?}");
                }
            }
            let closed = group.close().await.unwrap().unwrap();
            assert_eq!(closed.files[0].batches, 2);
            let bytes = bench.content(&closed.files[0]).await;
            let read = if codec == Codec::Gzip { gunzip(&bytes) } else { zstd::stream::decode_all(&*bytes).unwrap() };
            assert_eq!(read.len() as u64, closed.files[0].raw_bytes);
        }
    }
}

#[tokio::test]
async fn a_wrong_count_or_an_open_end_is_refused_where_it_is_decoded() {
    let mut bench = Bench::new().await;
    bench.dataset.verify = Verify::Decode;
    let group = bench.group(GroupKind::Data);
    let raw = lines(1, 100_000);
    let frame = batch(1, Codec::Zstd, &raw).payload;
    let fewer = raw.iter().map(|&b| if b == b'7' { b'\n' } else { b }).collect::<Vec<_>>();
    let refused = group.append(staged(1, Codec::Zstd, &fewer, frame.to_vec())).await.unwrap();
    assert!(matches!(refused, Err(AppendError::Refused(reason)) if reason.contains("events")));
    let open = [b"a\n".as_slice(), b"b"].concat();
    let refused = group.append(batch(2, Codec::Zstd, &open)).await.unwrap();
    assert!(matches!(refused, Err(AppendError::Refused(reason)) if reason.contains("LF")));
    assert_eq!(group.close().await.unwrap().unwrap(), ClosedGroup::default(), "nothing appended, no file");
    assert!(bench.staged().await.is_empty());
}

#[tokio::test]
async fn a_framing_of_a_later_release_is_refused() {
    let mut bench = Bench::new().await;
    let group = bench.group(GroupKind::Data);
    for size in [900, 200_000] {
        let mut unknown = batch(1, Codec::Zstd, &lines(1, size));
        let Header { kind: proto::header::Kind::Data(data), .. } = &mut unknown.header else { panic!("data") };
        data.framing = Framing::Records;
        let refused = group.append(unknown).await.unwrap();
        assert!(matches!(refused, Err(AppendError::Refused(reason)) if reason.contains("FRAMING_RECORDS")));
    }
}

#[tokio::test]
async fn the_first_store_error_poisons_for_good() {
    let mut bench = Bench::new().await;
    bench.dataset.compression = Compression::None;
    bench.faults.appends.store(3, Ordering::SeqCst);
    let group = bench.group(GroupKind::Data);
    let mut answers = Vec::new();
    for seq in 1..=12 {
        answers.push(group.append(batch(seq, Codec::None, &lines(seq, 1_000_000))).await.unwrap());
    }
    let first = answers.iter().position(Result::is_err).unwrap();
    assert_eq!(first, 8, "the ninth opens the file and writes");
    assert!(answers[first..].iter().all(|a| matches!(a, Err(AppendError::Poisoned(_)))));
    bench.faults.appends.store(u64::MAX, Ordering::SeqCst);
    assert!(group.close().await.unwrap().is_err(), "a store that has recovered changes nothing");
    assert_eq!(bench.memory.used(), 0, "a dead group holds no memory");
    assert_eq!(bench.staged().await, ["1.log"]);
    group.abandon();
    wait_until_empty(&bench).await;
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for_until_the_group_is_given_up() {
    let mut bench = Bench::new().await;
    bench.faults.refusals.store(2, Ordering::SeqCst);
    let group = bench.group(GroupKind::Data);
    group.append(batch(1, Codec::Zstd, &lines(1, 900))).await.unwrap().unwrap();
    assert_eq!(group.close().await.unwrap().unwrap().files.len(), 1);
    assert_eq!(bench.staged().await.len(), 1);

    bench.faults.refusals.store(u64::MAX, Ordering::SeqCst);
    let group = bench.group(GroupKind::Data);
    group.append(batch(2, Codec::Zstd, &lines(2, 900))).await.unwrap().unwrap();
    let closing = group.close();
    group.abandon();
    assert!(closing.await.unwrap().is_err());
    while bench.memory.used() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_create_that_was_not_answered_is_followed_by_another_name() {
    let mut bench = Bench::new().await;
    bench.faults.silent.store(1, Ordering::SeqCst);
    let group = bench.group(GroupKind::Data);
    let raw = lines(1, 900);
    group.append(batch(1, Codec::Zstd, &raw)).await.unwrap().unwrap();
    let closed = group.close().await.unwrap().unwrap();
    assert!(closed.files[0].staged.ends_with("/1-1.log.zst"), "{closed:?}");
    assert!(closed.files[0].r#final.ends_with("-1.log.zst"), "{closed:?}");
    assert_eq!(zstd::stream::decode_all(bench.content(&closed.files[0]).await.as_slice()).unwrap(), raw);
    assert_eq!(bench.staged().await, ["1-1.log.zst", "1.log.zst"]);
    group.abandon();
    wait_until_empty(&bench).await;
}

#[tokio::test]
async fn a_close_with_another_length_poisons() {
    let mut bench = Bench::new().await;
    bench.faults.lose_byte.store(true, Ordering::SeqCst);
    let group = bench.group(GroupKind::Data);
    group.append(batch(1, Codec::Zstd, &lines(1, 900))).await.unwrap().unwrap();
    let poisoned = group.close().await.unwrap().unwrap_err();
    assert!(poisoned.0.contains("were written"), "{poisoned}");
}

#[tokio::test]
async fn a_late_close_is_answered_late_and_holds_nobody_else_back() {
    let mut bench = Bench::new().await;
    let closes = bench.faults.closes.forget_permits(100);
    assert_eq!(closes, 100);
    let slow = bench.group(GroupKind::Data);
    let other = bench.group(GroupKind::Data);
    slow.append(batch(1, Codec::Zstd, &lines(1, 900))).await.unwrap().unwrap();
    let mut closing = slow.close();
    other.append(batch(2, Codec::Zstd, &lines(2, 900))).await.unwrap().unwrap();
    assert!(closing.try_recv().is_err());
    bench.faults.closes.add_permits(1);
    assert_eq!(closing.await.unwrap().unwrap().files.len(), 1);
}

#[tokio::test]
async fn an_abandoned_group_leaves_nothing_and_answers_what_waits() {
    let mut bench = Bench::new().await;
    bench.dataset.compression = Compression::None;
    let group = bench.group(GroupKind::Data);
    for seq in 1..=9 {
        group.append(batch(seq, Codec::None, &lines(seq, 1_000_000))).await.unwrap().unwrap();
    }
    assert_eq!(bench.staged().await, ["1.log"]);
    let waiting: Vec<_> = (10..13).map(|seq| group.append(batch(seq, Codec::None, b"x\n"))).collect();
    group.abandon();
    for answer in waiting {
        answer.await.unwrap().ok();
    }
    wait_until_empty(&bench).await;
    assert_eq!(bench.memory.used(), 0);
}

#[tokio::test]
async fn dead_letters_and_quarantine_have_files_of_their_own() {
    let mut bench = Bench::new().await;
    let letters = bench.group(GroupKind::DeadLetters);
    letters.append(batch(1, Codec::Zstd, b"{\"reason\":\"x\"}\n")).await.unwrap().unwrap();
    let closed = letters.close().await.unwrap().unwrap();
    let [file] = closed.files.as_slice() else { panic!("{closed:?}") };
    assert_eq!((file.kind(), file.events), (FileKind::DeadLetter, 1));
    let read = zstd::stream::decode_all(bench.content(file).await.as_slice()).unwrap();
    assert_eq!(read, b"{\"reason\":\"x\"}\n");

    let quarantine = bench.group(GroupKind::Quarantine);
    let refused = batch(2, Codec::Zstd, b"y\n");
    assert!(matches!(quarantine.append(refused.clone()).await.unwrap(), Err(AppendError::Refused(_))));
    let entry = QuarantinedBatch {
        id: refused.id,
        header: refused.header.bytes,
        payload: refused.payload,
        reason: "the frame is truncated".into(),
    };
    for _ in 0..2 {
        quarantine.append_quarantined(entry.clone()).await.unwrap().unwrap();
    }
    let closed = quarantine.close().await.unwrap().unwrap();
    assert_eq!((closed.files[0].kind(), closed.files[0].events), (FileKind::Quarantine, 2));
    let bytes = bench.content(&closed.files[0]).await;
    let read: Vec<_> = crate::quarantine::read(bytes.into()).collect();
    assert_eq!(read, [Ok(entry.clone()), Ok(entry)]);
}

async fn wait_until_empty(bench: &Bench) {
    while !bench.staged().await.is_empty() {
        tokio::task::yield_now().await;
    }
}
