//! Parquet files written here, read back with the crate's reader.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use common::frame::FrameEncoder;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proto::dead_letter::DeadLetter;
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin};
use proto::wire::{self, Codec, Framing, batch_header};

use super::*;
use crate::config::dataset::{Format, Verify};

fn dataset(log_format: Option<&str>, time: Option<TimeConfig>) -> DatasetConfig {
    let mut dataset = DatasetConfig::named("clickstream");
    dataset.format = Format::Parquet;
    dataset.log_format = log_format.map(str::to_owned);
    dataset.time = time;
    dataset
}

fn batch(seq: u64, lines: &[&[u8]]) -> StageBatch {
    let raw: Vec<u8> = lines.iter().flat_map(|line| [line, b"\n".as_slice()].concat()).collect();
    let mut payload = Vec::new();
    FrameEncoder::new(Codec::Zstd, 1).encode(&raw, &mut payload).unwrap();
    let data = wire::Data {
        dataset: "clickstream".into(),
        partition: Some(wire::Partition { date: 20_000, hour: None }),
        codec: Codec::Zstd.into(),
        framing: Framing::Lines.into(),
        events: lines.len() as u64,
        raw_bytes: raw.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(&payload),
        zone: "UTC".into(),
        source: "nginx".into(),
        headers: BTreeMap::from([("host".into(), "web-1.example".into()), ("env".into(), "prod".into())]),
        ..Default::default()
    };
    let origin = Origin::mint(1, 1);
    let header = Header::encode(origin, seq, batch_header::Kind::Data(data)).unwrap();
    StageBatch { id: BatchId { agent: AgentName::new("web-1").unwrap(), origin, seq }, header, payload: payload.into() }
}

struct Written {
    bytes: Bytes,
    rows: Vec<RecordBatch>,
    letters: Vec<DeadLetter>,
    counts: Counts,
    appended: Vec<Appended>,
}

fn write(dataset: &DatasetConfig, batches: &[StageBatch]) -> Written {
    let mut file = ParquetFile::new(dataset).unwrap();
    let mut dead = TextFile::new(Codec::Zstd, 1, Verify::Headers);
    let now = Timestamp::from_second(1_763_700_000).unwrap();
    let appended = batches.iter().map(|batch| file.append(batch, now, &mut dead).unwrap()).collect();
    file.finish().unwrap();
    dead.finish();
    let bytes = Bytes::from(file.take().concat());
    let rows = if bytes.is_empty() {
        Vec::new()
    } else {
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap();
        reader.build().unwrap().map(Result::unwrap).collect()
    };
    let letters = dead.take().concat();
    let letters = if letters.is_empty() { letters } else { zstd::stream::decode_all(letters.as_slice()).unwrap() };
    let letters = letters.split_inclusive(|&b| b == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
    Written { bytes, rows, letters, counts: file.counts(), appended }
}

fn text<'a>(rows: &'a RecordBatch, column: &str, row: usize) -> Option<&'a str> {
    let array = rows.column_by_name(column).unwrap().as_string::<i32>();
    (!array.is_null(row)).then(|| array.value(row))
}

fn line(rows: &RecordBatch, row: usize) -> Option<&[u8]> {
    let array = rows.column_by_name(schema::LINE).unwrap().as_binary::<i32>();
    (!array.is_null(row)).then(|| array.value(row))
}

const PLAIN: &[u8] = b"203.0.113.7 - ann [10/Oct/2024:13:55:36 +0200] \"GET /a?b=c HTTP/1.1\" 200 12 \"-\" \"curl/8\"";
const NOT_UTF8: &[u8] = b"203.0.113.7 - - [10/Oct/2024:13:55:37 +0000] \"GET /\xff HTTP/1.1\" 404 - \"-\" \"curl/8\"";
const ZEROS: &[u8] = b"203.0.113.7 - - [10/Oct/2024:13:55:38 +0000] \"GET / HTTP/1.1\" 200 007 \"-\" \"curl/8\"";
const BROKEN: &[u8] = b"203.0.113.7 - - [10/Oct/2024:13:55:38 +0000] \"GET / HTTP/1.1\" 200 7 \"-\" \"curl/8";

#[test]
fn columns_have_their_types_and_line_stands_only_where_it_must() {
    let written = write(&dataset(Some("combined"), None), &[batch(1, &[PLAIN, NOT_UTF8, BROKEN, ZEROS])]);
    assert_eq!(written.appended, [Appended { events: 3, dead_letters: 1 }]);
    assert_eq!((written.counts.events, written.counts.batches), (3, 1));
    assert_eq!(written.counts.raw_bytes as usize, PLAIN.len() + NOT_UTF8.len() + ZEROS.len() + 3);
    let rows = &written.rows[0];
    let time = rows.column_by_name("event_time").unwrap().as_primitive::<TimestampMicrosecondType>();
    assert_eq!(time.value(0), 1_728_561_336_000_000);
    assert_eq!(rows.schema().field_with_name("event_time").unwrap().data_type().to_string(), "Timestamp(µs, \"UTC\")");
    assert_eq!(rows.column_by_name("status").unwrap().as_primitive::<Int32Type>().value(1), 404);
    let bytes = rows.column_by_name("bytes").unwrap().as_primitive::<Int64Type>();
    assert_eq!((bytes.value(0), bytes.is_null(1)), (12, true));
    assert_eq!(text(rows, "path", 0), Some("/a?b=c"));
    assert_eq!(text(rows, "referer", 0), None);
    assert_eq!((text(rows, "agent", 0), text(rows, "host", 0)), (Some("web-1"), Some("web-1.example")));
    assert_eq!(text(rows, "source", 2), Some("nginx"));
    assert_eq!(line(rows, 0), None);
    assert_eq!(line(rows, 1), Some(NOT_UTF8), "text columns cannot hold these bytes");
    assert_eq!(line(rows, 2), Some(ZEROS), "a number does not keep its zeros");
    let headers = rows.column_by_name("headers").unwrap().as_map();
    assert_eq!(headers.keys().as_string::<i32>().value(0), "env");
    assert_eq!(headers.value(0).len(), 1, "host has a column of its own");
}

#[test]
fn what_is_no_row_is_a_dead_letter_with_its_bytes() {
    let odd = b"\xff\xfe no log line";
    let written = write(&dataset(Some("combined"), None), &[batch(1, &[BROKEN, odd])]);
    assert!(written.bytes.is_empty(), "no row, no file");
    let [broken, binary] = written.letters.as_slice() else { panic!("{:?}", written.letters) };
    assert_eq!(broken.body.as_deref().unwrap().as_bytes(), BROKEN);
    assert_eq!((broken.reason.as_str(), broken.agent.as_str()), (NO_RECORD, "web-1"));
    assert_eq!(broken.time, "2025-11-21T04:40:00Z");
    assert_eq!((binary.body.as_deref(), binary.body_bytes), (None, odd.len() as u64));
    assert!(binary.body_base64.is_some());
}

#[test]
fn lines_without_a_log_format_keep_their_bytes() {
    let dataset = dataset(None, Some(TimeConfig::Iso8601));
    let written = write(&dataset, &[batch(1, &[b"2024-10-10T13:55:36Z hello", b"no time here"])]);
    assert_eq!(written.appended, [Appended { events: 1, dead_letters: 1 }]);
    assert_eq!(line(&written.rows[0], 0), Some(b"2024-10-10T13:55:36Z hello".as_slice()));
    assert_eq!(written.letters[0].reason, NO_TIME);
}

#[test]
fn row_groups_leave_as_they_are_full_and_the_file_is_whole() {
    let dataset = dataset(Some("combined"), None);
    let mut file = ParquetFile::new(&dataset).unwrap();
    let mut dead = TextFile::new(Codec::Zstd, 1, Verify::Headers);
    let lines: Vec<&[u8]> = vec![PLAIN; 10_000];
    let mut parts = Vec::new();
    for seq in 1..=30 {
        file.append(&batch(seq, &lines), Timestamp::UNIX_EPOCH, &mut dead).unwrap();
        parts.push(file.take().concat());
        assert!(file.memory_bytes() < 200 << 20);
    }
    let flushes = parts.iter().filter(|part| !part.is_empty()).count();
    assert!(flushes >= 2, "full row groups are handed out before the end: {flushes}");
    file.finish().unwrap();
    parts.push(file.take().concat());
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(parts.concat())).unwrap();
    let groups: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [131_072, 131_072, 300_000 - 2 * 131_072]);
    let rows: usize = reader.build().unwrap().map(|rows| rows.unwrap().num_rows()).sum();
    assert_eq!(rows, 300_000);
}

#[test]
fn a_bad_frame_is_refused_before_any_row_of_it() {
    let dataset = dataset(Some("combined"), None);
    let mut file = ParquetFile::new(&dataset).unwrap();
    let mut dead = TextFile::new(Codec::Zstd, 1, Verify::Headers);
    let mut damaged = batch(1, &[PLAIN, PLAIN]);
    damaged.payload = damaged.payload.slice(..damaged.payload.len() - 1);
    let refused = file.append(&damaged, Timestamp::UNIX_EPOCH, &mut dead);
    assert!(matches!(refused, Err(EncodeError::Refused(_))));
    file.finish().unwrap();
    assert!(file.take().is_empty());
    assert_eq!((file.counts(), dead.counts()), (Counts::default(), Counts::default()));
}

#[test]
fn a_dataset_without_any_time_is_refused_with_the_way_out() {
    let error = ParquetFile::new(&dataset(Some("$remote_addr $status"), None)).unwrap_err();
    assert!(error.to_string().contains("`time`"), "{error}");
    let error = ParquetFile::new(&dataset(Some("$"), None)).unwrap_err();
    assert!(error.to_string().contains("clickstream"), "{error}");
}

/// `PARQUET_SAMPLE=FILE cargo test -p collector sample` writes a file for looking at with other readers.
#[test]
fn sample_for_other_readers() {
    let Some(path) = std::env::var_os("PARQUET_SAMPLE") else { return };
    let written = write(&dataset(Some("combined"), None), &[batch(1, &[PLAIN, NOT_UTF8, BROKEN, ZEROS])]);
    std::fs::write(path, written.bytes).unwrap();
}
