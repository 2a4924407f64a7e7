//! Reads stored batches back for sending. Payloads are not kept in memory: only the last record read is, because the
//! batches of one chunk lie in one record and are sent one after the other.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use common::record_log::{ReadError, RecordAt, RecordReader, is_of_medium};
use prost::Message;

use super::entry::Entry;
use super::index::Place;

/// Exactly what is sent: the header and the payload as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchBytes {
    /// The encoded header.
    pub header: Bytes,
    /// The payload.
    pub payload: Bytes,
}

/// Why a stored batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BatchReadError {
    /// Its segment is gone: it was released in the meantime.
    #[error("the batch is not stored any more")]
    Gone,
    /// The stored copy is damaged.
    #[error("the stored copy is damaged: {0}")]
    Damaged(String),
    /// The disk, or its file system, does not give the bytes back.
    #[error("the disk does not give the stored copy back: {0}")]
    Medium(String),
    /// Reading failed for now.
    #[error("reading the outbox failed: {0}")]
    Io(String),
}

/// Reads batches; cheap to clone.
#[derive(Debug, Clone)]
pub struct BatchReader {
    log: RecordReader,
    last: Arc<Mutex<Last>>,
}

type Last = Option<(RecordAt, Arc<Opened>)>;

#[derive(Debug)]
struct Opened {
    entry: Entry,
    body: Bytes,
}

/// Records above this size are not kept.
const CACHED_BYTES: usize = 4 * 1024 * 1024;

impl BatchReader {
    /// Reads batches of the outbox in `dir`, whoever owns it.
    pub fn of_dir(dir: std::path::PathBuf) -> Self {
        Self::new(RecordReader::new(dir))
    }

    pub(super) fn new(log: RecordReader) -> Self {
        Self { log, last: Arc::default() }
    }

    /// Reads one batch; blocks on the disk.
    pub fn read(&self, place: Place) -> Result<BatchBytes, BatchReadError> {
        let opened = self.open(place.at)?;
        let part = place.part as usize;
        let before: u64 = opened.entry.batches.iter().take(part).map(|batch| batch.payload_bytes).sum();
        let Some(batch) = opened.entry.batches.get(part) else {
            return Err(BatchReadError::Damaged(format!("its record holds no batch {part}")));
        };
        let (start, end) = (before as usize, (before + batch.payload_bytes) as usize);
        if end > opened.body.len() {
            return Err(BatchReadError::Damaged("its record is shorter than its parts".into()));
        }
        Ok(BatchBytes { header: batch.header.clone(), payload: opened.body.slice(start..end) })
    }

    fn open(&self, at: RecordAt) -> Result<Arc<Opened>, BatchReadError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, opened)) = last.as_ref().filter(|(cached, _)| *cached == at) {
            return Ok(opened.clone());
        }
        let record = self.log.read(at).map_err(|error| match &error {
            ReadError::NotFound { .. } => BatchReadError::Gone,
            ReadError::Corrupt { .. } => BatchReadError::Damaged(error.to_string()),
            ReadError::Io { reason, .. } if is_of_medium(reason) => BatchReadError::Medium(error.to_string()),
            ReadError::Io { .. } => BatchReadError::Io(error.to_string()),
        })?;
        let entry = Entry::decode(record.meta.clone()).map_err(|e| BatchReadError::Damaged(e.to_string()))?;
        let opened = Arc::new(Opened { entry, body: record.body });
        let worth = opened.entry.batches.len() > 1 && opened.body.len() <= CACHED_BYTES;
        *last = worth.then(|| (at, opened.clone()));
        Ok(opened)
    }
}
