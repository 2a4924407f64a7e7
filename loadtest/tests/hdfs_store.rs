//! The HDFS store against a real HDFS: the conformance suite, races, faults in mid-write, and what Hadoop's own shell
//! reads of concatenated frames. Needs `java` and `mvn`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use collector::store::{DestinationConfig, Renamed, StagedFile, Store, StoreError, conformance, open};
use common::units::Span;
use loadtest::hadoop::{Hdfs, Options};

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

    hdfs.freeze_namenode().unwrap();
    let asked = Instant::now();
    let unanswered = store.rename_new("draft", "record").await;
    assert!(matches!(unanswered, Err(StoreError::Unanswered { .. })), "{unanswered:?}");
    assert!(matches!(store.stat("draft").await, Err(StoreError::Unavailable { .. })));
    assert!(asked.elapsed() < Duration::from_secs(60));
    hdfs.thaw_namenode().unwrap();
    settle(&*store).await;

    let mut open_file = store.create("in-block").await.unwrap();
    open_file.append(Bytes::from_static(b"begun")).await.unwrap();
    hdfs.stop_namenode();
    let refused = store.rename_new("void", "again").await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable { .. } | StoreError::Unanswered { .. })),
        "the connection broke, or nobody listens: {refused:?}"
    );
    let refused = store.rename_new("void", "again").await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "nobody listens: {refused:?}");
    let closed = open_file.close().await;
    assert!(closed.is_err(), "{closed:?}");

    let hdfs = tokio::task::spawn_blocking(move || {
        hdfs.start_namenode().unwrap();
        hdfs
    });
    let _hdfs = hdfs.await.unwrap();
    let after = eventually(&*store, "void-2").await;
    assert_eq!(after, Renamed::SourceMissing);
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

    // The last one freezes: no write returns by itself, so the time-out must.
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
