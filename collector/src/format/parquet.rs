//! Parquet files: one row per event, zstd 1, row groups of at most 131,072 rows or 64 MiB.
//!
//! A line that is no record of the dataset's log format, or has no usable time, becomes a dead letter. Invariant: every
//! event of a batch is a row or a dead letter, and a row gives the event's exact bytes back: by its columns, or by
//! `line` where they cannot.

use bytes::Bytes;
use common::event_time::{EpochUnit, EventTime, TimeFormat};
use common::log_format::{LogFormat, Value};
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use super::text::{TextFile, decode_lines};
use super::{Counts, EncodeError, FormatError};
use crate::config::dataset::{DatasetConfig, TimeConfig};
use crate::partition_writer::{Appended, StageBatch};

mod letters;
mod rows;
pub mod schema;

use letters::Letters;
use rows::{Batch, Rows};

/// Most rows of a row group.
pub const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Most bytes of a row group, as encoded.
pub const ROW_GROUP_BYTES: usize = 64 << 20;
const NO_RECORD: &str = "the line is no record of the log format";
const NO_TIME: &str = "no usable time";

/// One Parquet file.
pub struct ParquetFile {
    format: Option<LogFormat>,
    /// For lines whose log format has no time, or none at all.
    time: Option<EventTime>,
    rows: Rows,
    /// Opened with the first row, so that a group of dead letters alone leaves no file without rows.
    writer: Option<ArrowWriter<Vec<u8>>>,
    out: Vec<Bytes>,
    counts: Counts,
    dataset: String,
}

impl std::fmt::Debug for ParquetFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetFile").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl ParquetFile {
    /// Compiles the dataset's log format into columns.
    pub fn new(dataset: &DatasetConfig) -> Result<Self, FormatError> {
        let wrong = |detail: String| FormatError { dataset: dataset.name.clone(), detail };
        let format = dataset.log_format.as_deref().map(LogFormat::compile).transpose();
        let format = format.map_err(|e| wrong(e.to_string()))?;
        let has_time = format.as_ref().is_some_and(|format| format.time_syntax().is_some());
        let time = match &dataset.time {
            Some(time) if !has_time => Some(EventTime::new(&time_format(time)).map_err(|e| wrong(e.to_string()))?),
            _ if has_time => None,
            _ => {
                return Err(wrong(
                    "format = \"parquet\" needs an event time for each row: set `log_format` to a format with a time \
                     field, or `time`"
                        .into(),
                ));
            }
        };
        Ok(Self {
            rows: Rows::new(format.as_ref()),
            format,
            time,
            writer: None,
            out: Vec::new(),
            counts: Counts::default(),
            dataset: dataset.name.clone(),
        })
    }

    /// Appends the rows of a batch; its other events go to the dead letters.
    pub fn append(&mut self, batch: &StageBatch, now: Timestamp, dead: &mut TextFile) -> Result<Appended, EncodeError> {
        let Some(data) = batch.header.data() else {
            return Err(EncodeError::Refused("it is no data batch, so it has no rows".into()));
        };
        let lines = decode_lines(data, &batch.payload)?;
        let mut letters = Letters::new(batch.id.agent.as_str(), data, now);
        let (events, raw_bytes) = self.build(&Batch::new(batch.id.agent.as_str(), data), &lines, &mut letters);
        if events > 0 {
            self.write().map_err(|e| EncodeError::Broken(format!("rows cannot be encoded: {e}")))?;
            self.counts.events += events;
            self.counts.raw_bytes += raw_bytes;
            self.counts.batches += 1;
        }
        let dead_letters = letters.count();
        if dead_letters > 0 {
            dead.append_lines(letters.into_lines(), dead_letters);
        }
        Ok(Appended { events, dead_letters })
    }

    /// Ends the file, if there is one.
    pub fn finish(&mut self) -> Result<(), FormatError> {
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        let dataset = &self.dataset;
        let wrong = |e: ParquetError| FormatError { dataset: dataset.clone(), detail: e.to_string() };
        writer.finish().map_err(wrong)?;
        self.out.push(std::mem::take(writer.inner_mut()).into());
        Ok(())
    }

    /// What is to be appended now.
    pub fn take(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.out)
    }

    /// Memory held for what has not come out yet, the unfinished row group above all.
    pub fn memory_bytes(&self) -> u64 {
        let group = self.writer.as_ref().map_or(0, ArrowWriter::memory_size) as u64;
        group + self.out.iter().map(|part| part.len() as u64).sum::<u64>()
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Splits the lines into rows and dead letters; number and raw size of the rows.
    fn build(&mut self, batch: &Batch<'_>, lines: &[u8], letters: &mut Letters<'_>) -> (u64, u64) {
        let (mut events, mut raw_bytes) = (0, 0);
        let mut values: Vec<Value<'_>> = Vec::new();
        let mut scratch = Vec::new();
        for ended in lines.split_inclusive(|&byte| byte == b'\n') {
            let line = ended.strip_suffix(b"\n").unwrap_or(ended);
            let parsed = match &self.format {
                None => Default::default(),
                Some(format) => match format.parse_into(line, &mut values) {
                    Some(parsed) => parsed,
                    None => {
                        letters.add(NO_RECORD, line);
                        continue;
                    }
                },
            };
            let found = || self.time.as_mut()?.extract(line);
            let Some(time_us) = parsed.event_time_us.or_else(found) else {
                letters.add(NO_TIME, line);
                continue;
            };
            let whole = self.format.as_ref().is_some_and(|format| {
                format.gives_back(line, &values, parsed.event_time_us, parsed.rest, &mut scratch)
            });
            self.rows.push(batch, time_us, parsed.rest, &values, (!whole).then_some(line));
            events += 1;
            raw_bytes += ended.len() as u64;
        }
        (events, raw_bytes)
    }

    fn write(&mut self) -> Result<(), ParquetError> {
        let rows = self.rows.finish()?;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            empty => empty.insert(ArrowWriter::try_new(Vec::new(), self.rows.schema(), Some(writer_properties()?))?),
        };
        writer.write(&rows)?;
        // What was flushed has left the writer's own buffer; its offsets go on counting.
        writer.sync()?;
        let written = std::mem::take(writer.inner_mut());
        if !written.is_empty() {
            self.out.push(written.into());
        }
        Ok(())
    }
}

/// The columns of a dataset's files.
pub(crate) fn dataset_schema(dataset: &DatasetConfig) -> Result<arrow_schema::Schema, FormatError> {
    let format = dataset.log_format.as_deref().map(LogFormat::compile).transpose();
    let wrong = |detail| FormatError { dataset: dataset.name.clone(), detail };
    Ok(schema::schema(format.map_err(|e| wrong(e.to_string()))?.as_ref()))
}

/// How every Parquet file is written.
pub(crate) fn writer_properties() -> Result<WriterProperties, ParquetError> {
    let event_time = ColumnPath::from(schema::EVENT_TIME);
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_column_dictionary_enabled(event_time.clone(), false)
        .set_column_encoding(event_time, Encoding::DELTA_BINARY_PACKED)
        .set_created_by(concat!("catchment-collector ", env!("CARGO_PKG_VERSION")).to_owned())
        .build())
}

fn time_format(time: &TimeConfig) -> TimeFormat {
    match time {
        TimeConfig::LogFormat { log_format } => TimeFormat::LogFormat { log_format: log_format.clone() },
        TimeConfig::Clf => TimeFormat::Clf {},
        TimeConfig::Iso8601 => TimeFormat::Iso8601 { after: None, zone: None },
        TimeConfig::Epoch { unit } => {
            let unit = match unit.as_deref() {
                Some("ms") => EpochUnit::Ms,
                Some("us") => EpochUnit::Us,
                _ => EpochUnit::S,
            };
            TimeFormat::Epoch { unit, after: None }
        }
        TimeConfig::Pattern { pattern } => TimeFormat::Pattern { pattern: pattern.clone(), after: None, zone: None },
    }
}

#[cfg(test)]
mod tests;
