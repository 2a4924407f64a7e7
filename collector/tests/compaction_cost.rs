//! What compaction costs: `cargo test --release -p collector --test compaction_cost -- --ignored --nocapture` prints CPU
//! seconds and time per GB (10^9 stored bytes that are read) on a local store.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use collector::compact::{Budget, Plan, Progress, plan, run};
use collector::config::compaction::CompactionConfig;
use collector::config::dataset::{Compression, DatasetConfig, Format};
use collector::log::Layout;
use collector::log::view::PartitionKey;
use collector::log::view::partitions::OpenPartition;
use collector::partition_writer::{GroupHandle, GroupKind, GroupSpec, MemoryBudget, StageBatch};
use collector::store::{DestinationConfig, Store, open};
use common::frame::FrameEncoder;
use common::units::Size;
use proto::header::Header;
use proto::ids::{AgentName, BatchId, DatasetName, Origin, Partition};
use proto::wire::{self, Codec, Framing, batch_header};
use tokio_util::sync::CancellationToken;

const RUN: &str = "col-1-run";
const FILES: u64 = 16;
const BATCHES: u64 = 30;
const LINES: u64 = 5000;

/// CPU time of this process, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

/// Lines of an access log, about as compressible as real ones.
fn lines(seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut state = seed | 1;
    for n in 0..LINES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (a, b, c) = (state >> 56, state >> 48 & 255, state >> 40 & 0xffff);
        let line = format!(
            "10.{a}.{b}.7 - - [20/Nov/2026:13:{:02}:{:02} +0000] \"GET /shop/item/{c}?ref={} HTTP/1.1\" {} {} \"https://shop.example/{}\" \
             \"Mozilla/5.0 (X11; Linux x86_64) Browser/{}\"\n",
            n / 90 % 60,
            n % 60,
            state >> 32 & 15,
            200 + state % 3 * 100,
            state >> 20 & 0xffff,
            b,
            a % 12
        );
        out.extend(line.into_bytes());
    }
    out
}

fn batch(seq: u64, codec: Codec, raw: &[u8]) -> StageBatch {
    let mut payload = Vec::new();
    FrameEncoder::new(codec, 1).encode(raw, &mut payload).unwrap();
    let data = wire::Data {
        dataset: "d".into(),
        partition: Some(Partition::new(20_777, None).unwrap().into()),
        codec: codec.into(),
        framing: Framing::Lines.into(),
        events: LINES,
        raw_bytes: raw.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(&payload),
        ..Default::default()
    };
    let origin = Origin::mint(1, 1);
    let header = Header::encode(origin, seq, batch_header::Kind::Data(data)).unwrap();
    StageBatch {
        id: BatchId { agent: AgentName::new("web-1").unwrap(), origin, seq },
        header,
        payload: Bytes::from(payload),
    }
}

/// A partition of files as groups write them.
async fn partition(store: &Arc<dyn Store>, dataset: &Arc<DatasetConfig>) -> OpenPartition {
    let partition = Partition::new(20_777, None).unwrap();
    let mut open = OpenPartition::default();
    for number in 0..FILES {
        let spec = GroupSpec {
            number,
            incarnation: RUN.into(),
            kind: GroupKind::Data,
            dataset: dataset.clone(),
            partition,
            opened_day_utc: 1,
        };
        let group = GroupHandle::spawn(spec, store.clone(), MemoryBudget::new(1 << 30));
        for seq in 1..=BATCHES {
            let batch = batch(seq, dataset.compression.codec(), &lines(number * 1000 + seq));
            group.append(batch).await.unwrap().unwrap();
        }
        for file in group.close().await.unwrap().unwrap().files {
            store.rename_new(&file.staged, &file.r#final).await.unwrap();
            let name = file.r#final.rsplit('/').next().unwrap().to_owned();
            let wire::PublishedFile { bytes, events, crc32c, raw_bytes, .. } = file;
            let entry = wire::FileEntry { name: name.clone(), bytes, events, crc32c, raw_bytes, compacted: false };
            open.files.insert(name, entry);
        }
    }
    open
}

async fn measure(what: &str, format: Format, compression: Compression) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
    let mut dataset = DatasetConfig::named("d");
    (dataset.format, dataset.compression, dataset.log_format) = (format, compression, Some("combined".into()));
    let key =
        PartitionKey { dataset: DatasetName::new("d").unwrap(), partition: Partition::new(20_777, None).unwrap() };
    store.make_dirs(&key.dir(), 0o750).await.unwrap();
    store.make_dirs(&Layout::new(RUN).staging(), 0o700).await.unwrap();
    let open = partition(&store, &Arc::new(dataset.clone())).await;
    let limits = CompactionConfig { bandwidth: Size::gib(64), ..Default::default() };
    let plan: Plan = plan(&dataset, &key, &open, &limits).unwrap();
    let (files, bytes) = (plan.inputs(), plan.bytes());
    let (begun, before) = (Instant::now(), cpu());
    let mut number = 100;
    let numbers = || {
        number += 1;
        number
    };
    let (budget, progress, layout) = (Budget::alone(&limits), Progress::default(), Layout::new(RUN));
    let compact = run(&store, &layout, plan, numbers, &budget, &progress, CancellationToken::new()).await.unwrap();
    let (cpu, wall) = (cpu() - before, begun.elapsed().as_secs_f64());
    let written: u64 = compact.files.iter().map(|file| file.bytes).sum();
    assert_eq!(compact.files.iter().map(|file| file.events).sum::<u64>(), FILES * BATCHES * LINES);
    let gb = bytes as f64 / 1e9;
    report(&format!(
        "{what}: {files} files of {bytes} bytes -> {} of {written}; CPU {:.2} s/GB, time {:.2} s/GB, {} events, peak {}",
        compact.files.len(),
        cpu / gb,
        wall / gb,
        FILES * BATCHES * LINES,
        peak()
    ));
}

/// Most memory this process ever had.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned()
}

#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn report(line: &str) {
    println!("{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures; only a release build makes them worth anything"]
async fn cost() {
    measure("gzip text", Format::Text, Compression::Gzip).await;
    measure("zstd text", Format::Text, Compression::Zstd).await;
    measure("parquet", Format::Parquet, Compression::Zstd).await;
}
