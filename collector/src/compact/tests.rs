//! Whole compactions on a local store: what was written with one set of libraries is read back with another, before and
//! after, and nothing may be missing, added or damaged.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, TimestampMicrosecondType};
use bytes::Bytes;
use common::frame::FrameEncoder;
use common::units::Size;
use jiff::Timestamp;
use proptest::prelude::*;
use proto::header::Header;
use proto::ids::{AgentName, BatchId, DatasetName, Origin, Partition};
use proto::wire::{self, Codec, Framing, batch_header};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::compaction::CompactionConfig;
use crate::config::dataset::{DatasetConfig, Format, Verify};
use crate::format::parquet::ParquetFile;
use crate::format::text::TextFile;
use crate::log::Layout;
use crate::log::view::PartitionKey;
use crate::log::view::partitions::OpenPartition;
use crate::partition_writer::StageBatch;
use crate::publish::{DirModes, bring_all};
use crate::store::{DestinationConfig, Store, open};

mod faults;
mod stores;

use stores::{Faulty, Way};

const DIR: &str = "clickstream/event_date=2024-10-04";
const RUN: &str = "col-1-20261121T090000Z-0badcafe";
const OLD: &str = "$remote_addr [$time_local] $status";
const NEW: &str = "$remote_addr [$time_local] $status $request_time";

/// A partition as the log has it, and the store that holds it.
struct Bed {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    dataset: DatasetConfig,
    open: OpenPartition,
    limits: CompactionConfig,
    progress: Progress,
    next: Arc<AtomicU64>,
}

impl Bed {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        store.make_dirs(DIR, 0o750).await.unwrap();
        store.make_dirs(&Layout::new(RUN).staging(), 0o700).await.unwrap();
        let mut dataset = DatasetConfig::named("clickstream");
        dataset.format = Format::Parquet;
        dataset.log_format = Some(NEW.into());
        dataset.prefix = Some("web".into());
        let limits = CompactionConfig { bandwidth: Size::gib(64), ..Default::default() };
        Self {
            dir,
            store,
            dataset,
            open: OpenPartition::default(),
            limits,
            progress: Progress::default(),
            next: Arc::new(AtomicU64::new(100)),
        }
    }

    fn key() -> PartitionKey {
        let partition = Partition::new(20_000, None).unwrap();
        PartitionKey { dataset: DatasetName::new("clickstream").unwrap(), partition }
    }

    async fn put(&mut self, name: &str, bytes: Vec<u8>, events: u64) {
        let mut file = self.store.create(&format!("{DIR}/{name}")).await.unwrap();
        let entry = wire::FileEntry {
            name: name.into(),
            bytes: bytes.len() as u64,
            events,
            crc32c: crc32c::crc32c(&bytes),
            raw_bytes: events * 10,
            compacted: false,
        };
        file.append(bytes.into()).await.unwrap();
        file.close().await.unwrap();
        self.open.files.insert(name.into(), entry);
    }

    /// A file of so many events, each of which stands nowhere else.
    async fn add(&mut self, at: usize, kind: &str, events: u64) {
        let name = format!("web-col-{at:02}.{kind}");
        let bytes = file(kind, at as u64, events);
        self.put(&name, bytes, events).await;
    }

    fn plan(&self) -> Option<Plan> {
        plan(&self.dataset, &Self::key(), &self.open, &self.limits)
    }

    async fn run_on(&self, store: &Arc<dyn Store>, plan: Plan) -> Result<wire::Compact, CompactError> {
        let (next, layout) = (self.next.clone(), Layout::new(RUN));
        let budget = Budget::alone(&self.limits);
        let numbers = move || next.fetch_add(1, Ordering::SeqCst);
        run(store, &layout, plan, numbers, &budget, &self.progress, CancellationToken::new()).await
    }

    async fn run(&self) -> Result<wire::Compact, CompactError> {
        self.run_on(&self.store, self.plan().unwrap()).await
    }

    /// What happens once the record is in the log.
    async fn commit(&mut self, compact: &wire::Compact) {
        let brought = bring_all(&*self.store, &DirModes::default(), compact.files.clone()).await;
        assert!(brought.again.is_empty() && brought.stuck.is_empty(), "{brought:?}");
        for path in &compact.replaced {
            assert!(self.store.delete(path, false).await.unwrap(), "{path} was there");
        }
        for path in compact.replaced.iter().chain(&compact.missing) {
            assert!(self.open.files.remove(path.strip_prefix(DIR).unwrap().trim_start_matches('/')).is_some());
        }
        for file in &compact.files {
            let name = file.r#final.rsplit('/').next().unwrap().to_owned();
            let entry = wire::FileEntry {
                name: name.clone(),
                bytes: file.bytes,
                events: file.events,
                crc32c: file.crc32c,
                raw_bytes: file.raw_bytes,
                compacted: true,
            };
            self.open.files.insert(name, entry);
        }
    }

    /// Every event of the published files, with how often it is there, and a check of every file against the log.
    async fn events(&self) -> BTreeMap<String, u64> {
        let mut events = BTreeMap::new();
        for entry in self.open.files.values() {
            let bytes = self.store.read(&format!("{DIR}/{}", entry.name), 1 << 30).await.unwrap();
            assert_eq!((bytes.len() as u64, crc32c::crc32c(&bytes)), (entry.bytes, entry.crc32c));
            let found = decode(&entry.name, bytes);
            assert_eq!(found.len() as u64, entry.events, "{}", entry.name);
            for event in found {
                *events.entry(event).or_default() += 1;
            }
        }
        events
    }

    async fn staged(&self) -> Vec<String> {
        let entries = self.store.list(&Layout::new(RUN).staging()).await.unwrap();
        entries.into_iter().map(|entry| entry.name).collect()
    }

    fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.dir.path().join(DIR).join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    }
}

/// Frames of a few events each.
fn file(kind: &str, seed: u64, events: u64) -> Vec<u8> {
    let lines: Vec<String> = (0..events).map(|n| line(seed, n, kind == "new.parquet")).collect();
    if kind.ends_with("parquet") {
        return parquet_file(seed, if kind.starts_with("new") { NEW } else { OLD }, &lines);
    }
    let mut out = Vec::new();
    for frame in lines.chunks(7) {
        let text: String = frame.iter().map(|line| format!("{line}\n")).collect();
        match kind {
            "log.gz" => {
                let mut member = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
                member.write_all(text.as_bytes()).unwrap();
                member.finish().unwrap();
            }
            "log.zst" => out.extend(zstd::bulk::compress(text.as_bytes(), 1).unwrap()),
            _ => out.extend(text.into_bytes()),
        }
    }
    out
}

fn line(seed: u64, n: u64, timed: bool) -> String {
    let status = 200 + (seed * 31 + n) % 300;
    let time = if timed { format!(" {}.{:03}", n % 7, n % 1000) } else { String::new() };
    format!("10.{}.{}.{} [10/Oct/2024:13:55:36 +0000] {status}{time}", seed % 250, n / 250 % 250, n % 250)
}

fn parquet_file(seed: u64, format: &str, lines: &[String]) -> Vec<u8> {
    let mut dataset = DatasetConfig::named("clickstream");
    dataset.format = Format::Parquet;
    dataset.log_format = Some(format.into());
    let mut file = ParquetFile::new(&dataset).unwrap();
    let mut dead = TextFile::new(Codec::Zstd, 1, Verify::Headers);
    for (seq, lines) in (1..).zip(lines.chunks(5000)) {
        let raw: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let mut payload = Vec::new();
        FrameEncoder::new(Codec::Zstd, 1).encode(raw.as_bytes(), &mut payload).unwrap();
        let data = wire::Data {
            dataset: "clickstream".into(),
            partition: Some(wire::Partition { date: 20_000, hour: None }),
            codec: Codec::Zstd.into(),
            framing: Framing::Lines.into(),
            events: lines.len() as u64,
            raw_bytes: raw.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(&payload),
            source: format!("nginx-{seed}"),
            headers: BTreeMap::from([("host".into(), "web-1.example".into()), ("env".into(), format!("e{seed}"))]),
            ..Default::default()
        };
        let origin = Origin::mint(1, 1);
        let header = Header::encode(origin, seq, batch_header::Kind::Data(data)).unwrap();
        let id = BatchId { agent: AgentName::new("web-1").unwrap(), origin, seq };
        let appended =
            file.append(&StageBatch { id, header, payload: payload.into() }, Timestamp::UNIX_EPOCH, &mut dead);
        assert_eq!(appended.unwrap().events, lines.len() as u64);
    }
    file.finish().unwrap();
    file.take().concat()
}

/// The events of a file, as text with everything a reader can see of them.
fn decode(name: &str, bytes: Bytes) -> Vec<String> {
    let lines = |text: Vec<u8>| String::from_utf8(text).unwrap().lines().map(str::to_owned).collect();
    match Kind::of(name).unwrap() {
        Kind::Plain => lines(bytes.to_vec()),
        Kind::Zstd => lines(zstd::stream::decode_all(&*bytes).unwrap()),
        Kind::Gzip => {
            let mut text = Vec::new();
            flate2::read::MultiGzDecoder::new(&*bytes).read_to_end(&mut text).unwrap();
            lines(text)
        }
        Kind::Parquet => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
            reader.flat_map(|rows| rows_text(&rows.unwrap())).collect()
        }
    }
}

fn rows_text(rows: &arrow_array::RecordBatch) -> Vec<String> {
    let column = |name: &str| rows.column_by_name(name).unwrap();
    let text = |name: &str, row: usize| column(name).as_string::<i32>().value(row).to_owned();
    let time = column("event_time").as_primitive::<TimestampMicrosecondType>();
    let status = column("status").as_primitive::<Int32Type>();
    let taken = rows.column_by_name("request_time").map(|column| column.as_primitive::<Float64Type>());
    let headers = column("headers").as_map();
    let row = |row: usize| {
        let taken = taken.filter(|taken| !taken.is_null(row)).map(|taken| taken.value(row));
        let pair = headers.value(row);
        let (key, value) = (pair.column(0).as_string::<i32>().value(0), pair.column(1).as_string::<i32>().value(0));
        let (agent, host, source) = (text("agent", row), text("host", row), text("source", row));
        let address = text("remote_addr", row);
        let (at, status, line) = (time.value(row), status.value(row), column("line").is_null(row));
        format!("{at} {agent} {host} {source} {key}={value} {address} {status} {taken:?} {line}")
    };
    (0..rows.num_rows()).map(row).collect()
}

const KINDS: [&str; 5] = ["log.gz", "log.zst", "log", "old.parquet", "new.parquet"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_event_is_there_once_after_any_number_of_rounds(
        files in proptest::collection::vec((0_usize..5, 1_u64..60), 0..14),
        target in 1_u64..30_000, round_files in 2_usize..10, round_bytes in 1_u64..60_000, parallel in 1_usize..4,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut bed = Bed::new().await;
            for (at, (kind, events)) in files.iter().enumerate() {
                bed.add(at, KINDS[*kind], *events).await;
            }
            bed.limits.target_bytes = Size::new(target);
            bed.limits.round_bytes = Size::new(round_bytes);
            bed.limits.round_files = round_files;
            bed.limits.parallel = parallel;
            let before = bed.events().await;
            let mut count = bed.open.files.len();
            while let Some(plan) = bed.plan() {
                let outputs = plan.outputs.len();
                let compact = bed.run().await.unwrap();
                assert_eq!((compact.files.len(), compact.replaced.len()), (outputs, plan.inputs()));
                bed.commit(&compact).await;
                assert_eq!(bed.events().await, before);
                assert!(bed.open.files.len() < count);
                count = bed.open.files.len();
            }
            assert_eq!(bed.staged().await, [""; 0]);
        });
    }
}

#[tokio::test]
async fn the_new_file_has_the_names_modes_and_counts_of_any_other() {
    let mut bed = Bed::new().await;
    bed.dataset.group = Some("analysts".into());
    bed.dataset.file_mode = 0o644;
    for at in 0..3 {
        bed.add(at, "log.gz", 10).await;
    }
    // Proves as well that it can run as a task of its own.
    let (store, plan, progress) = (bed.store.clone(), bed.plan().unwrap(), bed.progress.clone());
    let task = tokio::spawn(async move {
        let (mut number, budget) = (6, Budget::alone(&CompactionConfig::default()));
        let numbers = move || {
            number += 1;
            number
        };
        run(&store, &Layout::new(RUN), plan, numbers, &budget, &progress, CancellationToken::new()).await
    });
    let compact = task.await.unwrap().unwrap();
    let [file] = compact.files.as_slice() else { panic!("{compact:?}") };
    assert_eq!(file.staged, format!("_catchment/staging/{RUN}/7.log.gz"));
    assert_eq!(file.r#final, format!("{DIR}/web-{RUN}-7.log.gz"));
    assert_eq!((file.mode, file.group.as_str(), file.kind()), (0o644, "analysts", wire::FileKind::Data));
    assert_eq!((file.events, file.raw_bytes, file.dataset.as_str()), (30, 300, "clickstream"));
    assert_eq!(compact.partition, file.partition);
    assert_eq!(compact.replaced, [0, 1, 2].map(|at| format!("{DIR}/web-col-0{at}.log.gz")));
    let Snapshot { running, totals, refused } = bed.progress.snapshot();
    assert!(running.is_empty() && refused.is_empty());
    assert_eq!((totals.done, totals.replaced_files, totals.new_files), (1, 3, 1));
    assert_eq!((totals.read_bytes, totals.written_bytes), (file.bytes, file.bytes));
    abandon(&*bed.store, &compact).await;
    assert_eq!(bed.staged().await, [""; 0]);
}

#[tokio::test]
async fn rows_of_an_older_schema_have_nulls_in_newer_columns() {
    for own in [OLD, NEW] {
        let mut bed = Bed::new().await;
        bed.dataset.log_format = Some(own.into());
        bed.add(0, "new.parquet", 140_000).await;
        bed.add(1, "old.parquet", 3).await;
        let before = bed.events().await;
        let compact = bed.run().await.unwrap();
        bed.commit(&compact).await;
        assert_eq!(bed.events().await, before);
        let bytes = bed.store.read(&compact.files[0].r#final, 1 << 30).await.unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let mut dataset = bed.dataset.clone();
        dataset.log_format = Some(NEW.into());
        assert_eq!(**reader.schema(), crate::format::parquet::dataset_schema(&dataset).unwrap());
        let groups: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(groups, [131_072, 140_003 - 131_072], "row groups of the usual size");
    }
}
