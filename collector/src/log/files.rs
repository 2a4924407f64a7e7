//! Reading records and checkpoints; writing small files, each under a name that is used once.

use std::sync::Arc;

use bytes::Bytes;
use proto::record::{RecordError, decode_checkpoint, decode_record, parse_number};
use proto::wire;

use super::layout;
use crate::store::{Store, StoreError};

/// Largest record or checkpoint that is read, in bytes: a longer checkpoint is never written.
pub const MAX_BYTES: u64 = 1 << 30;

/// Why the log cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The store does not answer, or not now.
    #[error("{0}")]
    Unavailable(StoreError),
    /// A newer release wrote it.
    #[error("{0}")]
    Newer(String),
    /// Damaged, missing, or not allowed.
    #[error("{0}")]
    Broken(String),
}

/// Record `n`, or the end.
#[derive(Debug, Clone, PartialEq)]
pub enum ReadRecord {
    /// It is there.
    Record(Box<wire::CommitRecord>),
    /// It is missing, and the one before it is there (or the checkpoint ends here): the end of the log.
    End,
}

/// The log's files on a store.
#[derive(Debug, Clone)]
pub struct LogFiles {
    store: Arc<dyn Store>,
    /// Where the checkpoint ends that this run began with: the number before it may be missing.
    begin: u64,
}

impl LogFiles {
    /// Reads begin at `begin`: the end of the checkpoint, 0 without one.
    pub fn new(store: Arc<dyn Store>, begin: u64) -> Self {
        Self { store, begin }
    }

    /// The same files, read from `begin` on.
    pub fn from(&self, begin: u64) -> Self {
        Self { store: Arc::clone(&self.store), begin }
    }

    /// Reads record `n`. A missing one is the end only if the one before it is there. One that is not read says nothing
    /// about the log: whatever else a store in trouble answers, it is asked again.
    pub async fn record(&self, n: u64) -> Result<ReadRecord, LogError> {
        match self.store.read(&layout::commit(n), MAX_BYTES).await {
            Ok(bytes) => match decode_record(&bytes) {
                Ok(record) if record.action.is_none() => {
                    Err(LogError::Newer(format!("record {n} with an action that this release does not know")))
                }
                Ok(record) => Ok(ReadRecord::Record(Box::new(record))),
                Err(error) => Err(broken(&layout::commit(n), error)),
            },
            Err(StoreError::NotFound { .. }) if n == self.begin => Ok(ReadRecord::End),
            Err(StoreError::NotFound { .. }) => match self.store.stat(&layout::commit(n - 1)).await {
                Ok(Some(_)) => Ok(ReadRecord::End),
                Ok(None) => Err(LogError::Broken(format!(
                    "record {n} and the one before it are missing: this run's view is older than what is kept; start it again"
                ))),
                Err(error) => Err(LogError::Unavailable(error)),
            },
            Err(error) => Err(LogError::Unavailable(error)),
        }
    }

    /// Is `n`, which was missing, the end of the log? Not if a record behind it is there: whoever took it for the end would
    /// not know what the later ones cover, and commit batches again.
    pub async fn check_end(&self, n: u64) -> Result<(), LogError> {
        let entries = match self.store.list(layout::COMMITS).await {
            Ok(entries) => entries,
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(LogError::Unavailable(error)),
        };
        let behind = entries.iter().filter_map(|entry| parse_number(&entry.name)).filter(|there| *there > n).min();
        let Some(behind) = behind else { return Ok(()) };
        let path = layout::commit(n);
        match self.store.stat(&path).await {
            // Written since.
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(LogError::Broken(format!(
                "{path} is missing, and record {behind} is there: restore this file from a snapshot or the trash, byte for \
                 byte; `log verify` says more"
            ))),
            Err(error) => Err(LogError::Unavailable(error)),
        }
    }

    /// The highest checkpoint, if there is one.
    pub async fn highest_checkpoint(&self) -> Result<Option<(u64, wire::Checkpoint)>, LogError> {
        let mut last = None;
        loop {
            let Some(n) = self.highest_checkpoint_number().await? else { return Ok(None) };
            let path = layout::checkpoint(n);
            let bytes = match self.store.read(&path, MAX_BYTES).await {
                Ok(bytes) => bytes,
                // Another run wrote higher ones and deleted this one since it was listed.
                Err(StoreError::NotFound { .. }) if last != Some(n) => {
                    last = Some(n);
                    continue;
                }
                Err(error) => return Err(store_error(error)),
            };
            let checkpoint = decode_checkpoint(&bytes).map_err(|error| broken(&path, error))?;
            if checkpoint.next != n {
                return Err(LogError::Broken(format!("{path} ends at {}", checkpoint.next)));
            }
            return Ok(Some((n, checkpoint)));
        }
    }

    /// The number of the highest checkpoint.
    pub async fn highest_checkpoint_number(&self) -> Result<Option<u64>, LogError> {
        let entries = self.store.list(layout::CHECKPOINTS).await.map_err(store_error)?;
        Ok(entries.iter().filter_map(|entry| parse_number(&entry.name)).max())
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

/// Writes a file under a name that nobody used before. After an error the name must not be used again.
pub async fn write_once(store: &dyn Store, path: &str, bytes: Bytes) -> Result<(), StoreError> {
    let expected = bytes.len() as u64;
    let mut file = store.create(path).await?;
    file.append(bytes).await?;
    let stored = file.close().await?;
    if stored == expected {
        Ok(())
    } else {
        let detail = format!("{stored} bytes are stored, {expected} were written");
        Err(StoreError::Other { op: "close", path: path.to_owned(), detail })
    }
}

/// Later, or never? For what is done before a run begins, where a wrong destination has to be told at once.
pub fn store_error(error: StoreError) -> LogError {
    match error {
        StoreError::Unanswered { .. } | StoreError::Unavailable { .. } => LogError::Unavailable(error),
        StoreError::Full { .. } | StoreError::Permission { .. } => LogError::Unavailable(error),
        other => LogError::Broken(other.to_string()),
    }
}

fn broken(path: &str, error: RecordError) -> LogError {
    match error {
        RecordError::Unsupported { .. } => LogError::Newer(format!("{path}: {error}")),
        other => LogError::Broken(format!("{path}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DestinationConfig, open};

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_asked_for_again_and_ends_no_run() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        // Stands for any answer of a store that is neither "missing" nor "not now".
        store.make_dirs(&layout::commit(0), 0o700).await.unwrap();
        let error = store.read(&layout::commit(0), MAX_BYTES).await.unwrap_err();
        assert!(matches!(error, StoreError::Other { .. }), "{error}");
        let log = LogFiles::new(store, 0);
        assert!(matches!(log.record(0).await, Err(LogError::Unavailable(_))));
    }

    #[tokio::test]
    async fn a_missing_record_with_one_behind_it_is_not_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        let log = LogFiles::new(Arc::clone(&store), 0);
        assert_eq!(log.check_end(0).await, Ok(()), "nothing was ever written");
        store.make_dirs(layout::COMMITS, 0o700).await.unwrap();
        for n in [0, 1, 3] {
            write_once(&*store, &layout::commit(n), Bytes::new()).await.unwrap();
        }
        assert_eq!(log.check_end(4).await, Ok(()));
        assert_eq!(log.check_end(1).await, Ok(()), "it was written since");
        let Err(LogError::Broken(what)) = log.check_end(2).await else { panic!("record 3 is there") };
        assert!(what.contains(&layout::commit(2)) && what.contains("record 3 is there"), "{what}");
    }
}
