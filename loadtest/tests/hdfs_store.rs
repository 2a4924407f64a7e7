//! The HDFS store against a real HDFS: the conformance suite, races, faults in mid-write, and what Hadoop's own shell
//! reads of concatenated frames. Needs `java` and `mvn`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use collector::config::dataset::{Compression, DatasetConfig};
use collector::partition_writer::{GroupHandle, GroupKind, GroupSpec, MemoryBudget, StageBatch};
use collector::store::{DestinationConfig, Renamed, StagedFile, Store, StoreError, conformance, open};
use common::frame::FrameEncoder;
use common::units::{Size, Span};
use loadtest::hadoop::{Hdfs, Options};
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin, Partition};
use proto::wire::{Codec, Data, Framing, PublishedFile, batch_header};

/// Time-outs short enough for a test and long enough for a loaded machine.
fn config(hdfs: &Hdfs) -> DestinationConfig {
    let mut config = DestinationConfig::new(format!("{}/logs", hdfs.url()));
    config.hdfs.call_timeout = Span::secs(5);
    config.hdfs.write_timeout = Span::secs(10);
    config.hdfs.close_timeout = Span::secs(20);
    config.hdfs.retry_for = Span::secs(1);
    config
}

async fn start(datanodes: usize, replication: usize) -> Hdfs {
    let options = Options { datanodes, replication, dir: None };
    tokio::task::spawn_blocking(move || Hdfs::start(&options)).await.unwrap().unwrap()
}

/// Hadoop's shell, off the runtime's threads.
async fn blocking<T: Send + 'static>(hdfs: &Arc<Hdfs>, work: impl FnOnce(&Hdfs) -> T + Send + 'static) -> T {
    let hdfs = hdfs.clone();
    tokio::task::spawn_blocking(move || work(&hdfs)).await.unwrap()
}

async fn put(store: &dyn Store, path: &str, bytes: Vec<u8>) {
    let mut file = store.create(path).await.unwrap();
    let length = bytes.len() as u64;
    file.append(bytes.into()).await.unwrap();
    assert_eq!(file.close().await.unwrap(), length);
}

/// Decodes with the command line tool, which is what people pipe `-cat` into.
fn zstd_tool(bytes: Vec<u8>) -> Vec<u8> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let tool = Command::new("zstd").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut tool) = tool else { return zstd::stream::decode_all(bytes.as_slice()).unwrap() };
    let mut stdin = tool.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = tool.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hdfs_conforms_and_hadoop_reads_concatenated_frames() {
    let hdfs = Arc::new(start(1, 1).await);
    let store = open(&config(&hdfs)).unwrap();
    store.make_dirs("", 0o750).await.unwrap();
    conformance::run(store.clone(), "conformance").await.unwrap();

    let parts: Vec<Vec<u8>> = (0..3_u32)
        .map(|part| (0..20_000).flat_map(|n| format!("part {part} line {n}\n").into_bytes()).collect())
        .collect();
    let (mut gzip, mut zstd) = (Vec::new(), Vec::new());
    for part in &parts {
        let mut member = flate2::write::GzEncoder::new(&mut gzip, flate2::Compression::fast());
        std::io::Write::write_all(&mut member, part).unwrap();
        member.finish().unwrap();
        zstd.extend(zstd::bulk::compress(part, 1).unwrap());
    }
    put(&*store, "x.log.gz", gzip).await;
    put(&*store, "x.log.zst", zstd).await;
    let whole = parts.concat();
    assert_eq!(blocking(&hdfs, |h| h.text("/logs/x.log.gz")).await.unwrap(), whole);
    let cat = blocking(&hdfs, |h| h.cat("/logs/x.log.zst")).await.unwrap();
    assert_eq!(zstd_tool(cat), whole);
    let listing = blocking(&hdfs, |h| h.ls("/logs")).await.unwrap();
    assert!(listing.contains("x.log.gz") && listing.contains("-rw-r-----"), "{listing}");

    safe_mode(&hdfs, &store).await;
    race_of_processes(&hdfs).await;
    groups(&hdfs).await;
}

/// Each racer with a client, and so with connections, of its own, as collectors have.
async fn race_of_processes(hdfs: &Hdfs) {
    let stores: Vec<_> = (0..8).map(|_| open(&config(hdfs)).unwrap()).collect();
    stores[0].make_dirs("commits", 0o750).await.unwrap();
    for round in 0..3 {
        for (racer, store) in stores.iter().enumerate() {
            put(&**store, &format!("commits/draft-{round}-{racer}"), format!("{racer}").into_bytes()).await;
        }
        let target = format!("commits/{round:020}");
        let racers = stores.iter().enumerate().map(|(racer, store)| {
            let (store, target) = (store.clone(), target.clone());
            tokio::spawn(async move { store.rename_new(&format!("commits/draft-{round}-{racer}"), &target).await })
        });
        let answers = futures::future::join_all(racers).await;
        let answers: Vec<Renamed> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
        let winners: Vec<usize> = (0..8).filter(|&racer| answers[racer] == Renamed::Done).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|answer| matches!(answer, Renamed::Done | Renamed::TargetExists)));
        let content = stores[0].read(&target, 10).await.unwrap();
        assert_eq!(content, format!("{}", winners[0]));
    }
}

/// Files as groups write them, over several blocks, read whole by Hadoop.
async fn groups(hdfs: &Arc<Hdfs>) {
    let mut config = config(hdfs);
    config.hdfs.block_bytes = Some(Size::mib(1));
    let store = open(&config).unwrap();
    store.make_dirs("_catchment/staging/col-1-run", 0o700).await.unwrap();
    for (number, compression) in [Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let group = open_group(&store, number as u64, compression);
        let mut sent = Vec::new();
        for seq in 1..=20 {
            let raw = random_lines(seq, 1_500_000);
            group.append(batch(seq, compression.codec(), &raw)).await.unwrap().unwrap();
            sent.extend(raw);
        }
        assert!(group.written_bytes() > 0, "over 8 MiB the file is open before the close");
        let closed = group.close().await.unwrap().unwrap();
        let file = &closed.files[0];
        assert_eq!(store.stat(&file.staged).await.unwrap().unwrap().bytes, file.bytes);
        let path = format!("/logs/{}", file.staged);
        let read = match compression {
            Compression::Gzip => blocking(hdfs, move |h| h.text(&path)).await.unwrap(),
            _ => zstd_tool(blocking(hdfs, move |h| h.cat(&path)).await.unwrap()),
        };
        assert!(read == sent, "{} bytes read, {} sent", read.len(), sent.len());
    }
}

fn open_group(store: &Arc<dyn Store>, number: u64, compression: Compression) -> GroupHandle {
    let mut dataset = DatasetConfig::named("clickstream");
    dataset.compression = compression;
    let spec = GroupSpec {
        number,
        incarnation: "col-1-run".into(),
        kind: GroupKind::Data,
        dataset: Arc::new(dataset),
        partition: Partition::new(20_000, None).unwrap(),
        opened_day_utc: 20_001,
    };
    GroupHandle::spawn(spec, store.clone(), MemoryBudget::new(256 << 20))
}

fn random_lines(seq: u64, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 40);
    let mut state = seq | 1;
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(format!("{seq} {state:016x}\n").as_bytes());
    }
    out
}

fn batch(seq: u64, codec: Codec, raw: &[u8]) -> StageBatch {
    let mut payload = Vec::new();
    FrameEncoder::new(codec, 1).encode(raw, &mut payload).unwrap();
    let data = Data {
        dataset: "clickstream".into(),
        partition: Some(Partition::new(20_000, None).unwrap().into()),
        codec: codec.into(),
        framing: Framing::Lines.into(),
        events: raw.iter().filter(|&&byte| byte == b'\n').count() as u64,
        raw_bytes: raw.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(&payload),
        ..Default::default()
    };
    let origin = Origin::mint(1, 1);
    let header = Header::encode(origin, seq, batch_header::Kind::Data(data)).unwrap();
    StageBatch { id: BatchId { agent: AgentName::new("web-1").unwrap(), origin, seq }, header, payload: payload.into() }
}

/// Safe mode is an answer: nothing was done, and the same call works later.
async fn safe_mode(hdfs: &Arc<Hdfs>, store: &Arc<dyn Store>) {
    put(&**store, "draft", b"x".to_vec()).await;
    blocking(hdfs, |h| h.safe_mode(true)).await.unwrap();
    let refused = store.rename_new("draft", "record").await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(matches!(store.create("other").await.err(), Some(StoreError::Unavailable { .. })));
    assert!(store.stat("draft").await.unwrap().is_some(), "reads go on");
    blocking(hdfs, |h| h.safe_mode(false)).await.unwrap();
    assert_eq!(store.rename_new("draft", "record").await.unwrap(), Renamed::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_or_killed_namenode_is_told_and_never_hangs() {
    let mut hdfs = start(1, 1).await;
    let store = open(&config(&hdfs)).unwrap();
    store.make_dirs("", 0o750).await.unwrap();
    put(&*store, "draft", b"x".to_vec()).await;

    store.make_dirs("_catchment/staging/col-1-run", 0o700).await.unwrap();
    let waiting = [open_group(&store, 1, Compression::Zstd), open_group(&store, 2, Compression::Zstd)];
    let raw = random_lines(1, 100_000);
    for group in &waiting {
        group.append(batch(1, Codec::Zstd, &raw)).await.unwrap().unwrap();
    }

    hdfs.freeze_namenode().unwrap();
    let closing = waiting[0].close();
    let asked = Instant::now();
    let unanswered = store.rename_new("draft", "record").await;
    assert!(matches!(unanswered, Err(StoreError::Unanswered { .. })), "{unanswered:?}");
    assert!(matches!(store.stat("draft").await, Err(StoreError::Unavailable { .. })));
    assert!(asked.elapsed() < Duration::from_secs(60));
    hdfs.thaw_namenode().unwrap();
    settle(&*store).await;
    holds_whole(&*store, &closing.await.unwrap().unwrap().files[0], &raw).await;

    let mut open_file = store.create("in-block").await.unwrap();
    open_file.append(Bytes::from_static(b"begun")).await.unwrap();
    hdfs.stop_namenode();
    // First a connection breaks, each of those that were open; then nobody listens.
    let mut broken = 0;
    let refused = loop {
        match store.rename_new("void", "again").await {
            Err(StoreError::Unanswered { .. }) if broken < 20 => broken += 1,
            refused => break refused,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "nobody listens: {refused:?}");
    let closed = open_file.close().await;
    assert!(closed.is_err(), "{closed:?}");
    let closing = waiting[1].close();

    let hdfs = tokio::task::spawn_blocking(move || {
        hdfs.start_namenode().unwrap();
        hdfs
    });
    let _hdfs = hdfs.await.unwrap();
    let after = eventually(&*store, "void-2").await;
    assert_eq!(after, Renamed::SourceMissing);
    holds_whole(&*store, &closing.await.unwrap().unwrap().files[0], &raw).await;
}

/// A group that had no file yet outlives the outage.
async fn holds_whole(store: &dyn Store, file: &PublishedFile, raw: &[u8]) {
    let bytes = store.read(&file.staged, 10 << 20).await.unwrap();
    assert_eq!(bytes.len() as u64, file.bytes);
    assert_eq!(zstd::stream::decode_all(&*bytes).unwrap(), raw);
}

/// The rename that was not answered may be carried out at any moment: the draft is renamed away, or is found gone.
async fn settle(store: &dyn Store) {
    let voided = loop {
        match store.rename_new("draft", "void").await {
            Ok(answer) => break answer,
            Err(StoreError::Unavailable { .. } | StoreError::Unanswered { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    };
    let (draft, record, void) =
        (store.stat("draft").await.unwrap(), store.stat("record").await.unwrap(), store.stat("void").await.unwrap());
    assert!(draft.is_none());
    assert_ne!(record.is_some(), void.is_some(), "exactly one of the two happened");
    match voided {
        Renamed::Done | Renamed::TargetExists => assert!(void.is_some()),
        Renamed::SourceMissing => {}
        Renamed::ParentMissing => panic!("the parent was never gone"),
    }
}

async fn eventually(store: &dyn Store, to: &str) -> Renamed {
    loop {
        match store.rename_new("no-such-draft", to).await {
            Ok(answer) => return answer,
            Err(StoreError::Unavailable { .. } | StoreError::Unanswered { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datanodes_that_die_or_freeze_poison_the_file_and_nothing_else() {
    let mut hdfs = start(2, 2).await;
    let store = open(&config(&hdfs)).unwrap();
    store.make_dirs("", 0o750).await.unwrap();

    // One of two dies: the pipeline goes on with the other.
    let mut file = store.create("one-dies").await.unwrap();
    write_some(&mut *file, 4).await.unwrap();
    hdfs.stop_datanode(0);
    let rest = write_some(&mut *file, 4).await;
    let closed = file.close().await;
    if rest.is_ok()
        && let Ok(length) = closed
    {
        assert_eq!(length, 8 << 20);
        assert_eq!(store.stat("one-dies").await.unwrap().unwrap().bytes, 8 << 20);
    }

    // The last one freezes: a write that waits for it does not return by itself, so the time-out must end it.
    let mut file = open_until_it_writes(&*store).await;
    hdfs.freeze_datanode(1).unwrap();
    let begun = Instant::now();
    let error = write_some(&mut *file, 64).await.unwrap_err();
    assert!(matches!(error, StoreError::Unanswered { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(120));
    hdfs.thaw_datanode(1).unwrap();
    let after = file.append(Bytes::from_static(b"x")).await;
    assert!(matches!(after, Err(StoreError::Other { .. })), "a writer is dead after its first error: {after:?}");
    assert!(file.close().await.is_err());
    assert!(store.stat("").await.unwrap().is_some(), "the client goes on");
}

async fn write_some(file: &mut dyn StagedFile, mebibytes: usize) -> Result<(), StoreError> {
    for n in 0..mebibytes {
        file.append(Bytes::from(vec![n as u8; 1 << 20])).await?;
    }
    Ok(())
}

/// Until the dead DataNode is noticed a new block may be placed on it; such a file is given up, as in a collector.
async fn open_until_it_writes(store: &dyn Store) -> Box<dyn StagedFile> {
    for attempt in 0..60 {
        let mut file = store.create(&format!("attempt-{attempt}")).await.unwrap();
        if write_some(&mut *file, 1).await.is_ok() {
            return file;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("no file could be written with one of two DataNodes alive");
}
