//! From batches to the bytes of a group's two files: the data file and the dead-letter file beside it.
//!
//! - [`text`]: frames passed through, small ones joined;
//! - [`parquet`]: rows of columns.
//!
//! Synchronous and without IO: batches go in, bytes to be appended come out. Invariant: a batch is taken whole or
//! refused with nothing of it in either file, and every event of a batch that is taken is in exactly one of the two (I8).

use bytes::Bytes;
use jiff::Timestamp;

use crate::config::dataset::{Compression, DatasetConfig, Format, Verify};
use crate::partition_writer::{Appended, GroupKind, StageBatch};
use crate::quarantine::{self, QuarantinedBatch};

pub mod parquet;
pub mod text;

use parquet::ParquetFile;
use text::TextFile;

/// Why a batch was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It never can be: it goes to quarantine with this sentence. The files are as before.
    #[error("{0}")]
    Refused(String),
    /// The file cannot be trusted any more.
    #[error("{0}")]
    Broken(String),
}

/// What a file holds so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events; in quarantine: batches.
    pub events: u64,
    /// Bytes of the events as they were before compression, LF included.
    pub raw_bytes: u64,
    /// Batches with something in it.
    pub batches: u64,
}

/// A dataset whose files cannot be written as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dataset {dataset}: {detail}")]
pub struct FormatError {
    /// Its name.
    pub dataset: String,
    /// What is wrong, with the way out.
    pub detail: String,
}

/// The encoder of one group.
#[derive(Debug)]
pub struct GroupEncoder {
    data: DataFile,
    dead: TextFile,
}

#[derive(Debug)]
enum DataFile {
    Text(TextFile),
    Parquet(Box<ParquetFile>),
    /// Batches of dead letters from the edge: nothing but the dead-letter file.
    DeadLetters,
    Quarantine {
        out: Vec<Bytes>,
        counts: Counts,
    },
}

/// Bytes to be appended to the two files, in order.
#[derive(Debug, Default)]
pub struct Output {
    /// For the data (or quarantine) file.
    pub data: Vec<Bytes>,
    /// For the dead-letter file.
    pub dead: Vec<Bytes>,
}

impl GroupEncoder {
    /// An encoder for a group of this kind.
    pub fn new(kind: GroupKind, dataset: &DatasetConfig) -> Result<Self, FormatError> {
        let data = match (kind, dataset.format) {
            (GroupKind::Data, Format::Text) => {
                DataFile::Text(TextFile::new(dataset.compression.codec(), dataset.level, dataset.verify))
            }
            (GroupKind::Data, Format::Parquet) => DataFile::Parquet(Box::new(ParquetFile::new(dataset)?)),
            (GroupKind::DeadLetters, _) => DataFile::DeadLetters,
            (GroupKind::Quarantine, _) => DataFile::Quarantine { out: Vec::new(), counts: Counts::default() },
        };
        let dead_codec = match dataset.compression {
            Compression::Gzip => Compression::Gzip.codec(),
            Compression::Zstd | Compression::None => Compression::Zstd.codec(),
        };
        // Zero: the default level of whichever codec it is.
        Ok(Self { data, dead: TextFile::new(dead_codec, 0, dataset.verify) })
    }

    /// Takes a batch whole, or refuses it whole. `now` dates the dead letters that are made of it.
    pub fn append(&mut self, batch: &StageBatch, now: Timestamp) -> Result<Appended, EncodeError> {
        let Some(data) = batch.header.data() else {
            return Err(EncodeError::Refused("it is no data batch, so it has no place in a file".into()));
        };
        match &mut self.data {
            DataFile::Text(file) => file.append(data, &batch.payload)?,
            DataFile::DeadLetters => self.dead.append(data, &batch.payload)?,
            DataFile::Parquet(file) => return file.append(batch, now, &mut self.dead),
            DataFile::Quarantine { .. } => {
                return Err(EncodeError::Refused("a quarantine file takes refused batches only".into()));
            }
        }
        Ok(Appended { events: data.wire.events, dead_letters: 0 })
    }

    /// Takes a refused batch; only a quarantine group can.
    pub fn append_quarantined(&mut self, batch: &QuarantinedBatch) -> Result<Appended, EncodeError> {
        let DataFile::Quarantine { out, counts } = &mut self.data else {
            return Err(EncodeError::Refused("only a quarantine file takes refused batches".into()));
        };
        if counts.batches == 0 {
            out.push(quarantine::file_header());
        }
        out.push(quarantine::encode(batch));
        counts.events += 1;
        counts.batches += 1;
        counts.raw_bytes += batch.payload.len() as u64;
        Ok(Appended { events: 0, dead_letters: 0 })
    }

    /// Is appending this batch so little work that no thread is needed for it?
    pub fn is_light(&self, batch: &StageBatch) -> bool {
        let passes = |file: &TextFile| batch.header.data().is_some_and(|data| file.passes_unread(data));
        match &self.data {
            DataFile::Text(file) => passes(file),
            DataFile::DeadLetters => passes(&self.dead),
            DataFile::Parquet(_) => false,
            DataFile::Quarantine { .. } => true,
        }
    }

    /// Ends both files: what is held back comes out with the next [`GroupEncoder::take`].
    pub fn finish(&mut self) -> Result<(), FormatError> {
        match &mut self.data {
            DataFile::Text(file) => file.finish(),
            DataFile::Parquet(file) => file.finish()?,
            DataFile::DeadLetters | DataFile::Quarantine { .. } => {}
        }
        self.dead.finish();
        Ok(())
    }

    /// What is to be appended to the files now.
    pub fn take(&mut self) -> Output {
        let data = match &mut self.data {
            DataFile::Text(file) => file.take(),
            DataFile::Parquet(file) => file.take(),
            DataFile::DeadLetters => Vec::new(),
            DataFile::Quarantine { out, .. } => std::mem::take(out),
        };
        Output { data, dead: self.dead.take() }
    }

    /// Memory held for what has not come out yet, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let data = match &self.data {
            DataFile::Text(file) => file.memory_bytes(),
            DataFile::Parquet(file) => file.memory_bytes(),
            DataFile::DeadLetters => 0,
            DataFile::Quarantine { out, .. } => out.iter().map(|part| part.len() as u64).sum(),
        };
        data + self.dead.memory_bytes()
    }

    /// Counts of the data and the dead-letter file.
    pub fn counts(&self) -> (Counts, Counts) {
        let data = match &self.data {
            DataFile::Text(file) => file.counts(),
            DataFile::Parquet(file) => file.counts(),
            DataFile::DeadLetters => Counts::default(),
            DataFile::Quarantine { counts, .. } => *counts,
        };
        (data, self.dead.counts())
    }
}

/// Extension of a dataset's data files, without a dot in front.
pub fn data_extension(dataset: &DatasetConfig) -> &'static str {
    match (dataset.format, dataset.compression) {
        (Format::Parquet, _) => "parquet",
        (Format::Text, Compression::Zstd) => "log.zst",
        (Format::Text, Compression::Gzip) => "log.gz",
        (Format::Text, Compression::None) => "log",
    }
}

/// Extension of its dead-letter files.
pub fn dead_letter_extension(dataset: &DatasetConfig) -> &'static str {
    match dataset.compression {
        Compression::Gzip => "jsonl.gz",
        Compression::Zstd | Compression::None => "jsonl.zst",
    }
}

/// Does this dataset have every byte decoded?
fn decodes_all(verify: Verify) -> bool {
    verify == Verify::Decode
}
