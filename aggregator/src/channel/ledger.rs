//! The ledger: sled, holding only what can be rebuilt or done without. Losing it costs redelivery, never an event.
//!
//! sled 0.34.7 by measurement: values stay small, `flush()` alone is not an fsync (so `<dir>/db` is synced here), a
//! half-written snapshot makes it refuse to open (so it is deleted first), and after an IO error it has to be opened again.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use proto::ids::{AgentName, BatchId, Origin};

use super::bitmap::Bitmap;
use super::refusals::Refusal;
use super::rows::{self, OriginRow};
use super::state::OriginKey;

const CACHE_BYTES: u64 = 16 * 1024 * 1024;
const SEGMENT_BYTES: usize = 512 * 1024;
const DB_FILE: &str = "db";

/// Why the ledger could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// sled says so.
    #[error("the ledger cannot be used: {0}")]
    Store(#[from] sled::Error),
    /// The file system says so.
    #[error("the ledger cannot be used: {0}")]
    Io(#[from] io::Error),
    /// sled panicked while it opened.
    #[error("the ledger cannot be opened: the store gave up on its files")]
    Panicked,
}

/// Rows to be written together.
#[derive(Debug, Default)]
pub struct Changes {
    batch: sled::Batch,
    count: usize,
}

impl Changes {
    /// Nothing to write?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sets a row.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.batch.insert(key, value);
        self.count += 1;
    }

    /// Removes a row.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.batch.remove(key);
        self.count += 1;
    }
}

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    /// None only while a reopen failed.
    db: Option<sled::Db>,
    dir: PathBuf,
}

impl Ledger {
    /// Opens `dir`. When that fails the directory is moved aside (the newest such one is kept) and an empty ledger is
    /// opened; the reason is given back.
    pub fn open(dir: &Path) -> Result<(Self, Option<String>), LedgerError> {
        match Self::try_open(dir) {
            Ok(ledger) => Ok((ledger, None)),
            Err(error) => {
                move_aside(dir)?;
                Ok((Self::try_open(dir)?, Some(error.to_string())))
            }
        }
    }

    /// Opens `dir` as it is, or not at all.
    pub(super) fn try_open(dir: &Path) -> Result<Self, LedgerError> {
        delete_half_written_snapshots(dir)?;
        let config =
            sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).segment_size(SEGMENT_BYTES).flush_every_ms(None);
        let db = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| LedgerError::Panicked)??;
        Ok(Self { db: Some(db), dir: dir.to_owned() })
    }

    /// Writes the changes and makes them durable.
    pub fn apply(&self, changes: Changes) -> Result<(), LedgerError> {
        let db = self.db.as_ref().ok_or_else(|| io::Error::other("it could not be opened again"))?;
        db.apply_batch(changes.batch)?;
        db.flush()?;
        File::open(self.dir.join(DB_FILE))?.sync_data()?;
        Ok(())
    }

    /// Opens the same directory again after an error: the store latches its errors.
    pub fn reopen(&mut self) -> Result<(), LedgerError> {
        self.db = None;
        self.db = Self::open(&self.dir)?.0.db;
        Ok(())
    }

    /// Bits of answered batches of a segment that has `len` of them; none when nothing usable is known.
    pub fn bitmap(&self, segment: u64, len: u32) -> Option<Bitmap> {
        rows::read_bitmap(&self.get(&rows::segment_key(segment))?, len)
    }

    /// What is known of an origin.
    pub fn origin(&self, agent: &AgentName, origin: Origin) -> Option<OriginRow> {
        rows::read_origin(&self.get(&rows::origin_key(agent, origin))?)
    }

    /// Broken sends of every batch that has any.
    pub fn broken_sends(&self) -> Vec<(BatchId, u32)> {
        self.batches(rows::BROKEN, |value| u32::try_from(rows::read_number(value)?).ok())
    }

    /// Batches that collectors refused for good.
    pub fn refusals(&self) -> Vec<(BatchId, Refusal)> {
        self.batches(rows::REFUSED, rows::read_refused)
    }

    fn batches<T>(&self, tag: u8, read: impl Fn(&[u8]) -> Option<T>) -> Vec<(BatchId, T)> {
        let rows = self.db.iter().flat_map(|db| db.scan_prefix([tag])).filter_map(Result::ok);
        rows.filter_map(|(key, value)| Some((rows::batch_of(tag, &key)?, read(&value)?))).collect()
    }

    /// Every row.
    pub(super) fn rows(&self) -> impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>> {
        self.db.iter().flat_map(|db| db.iter())
    }

    /// Removes bitmaps of segments that are not `live`, origins and refusals not changed since `oldest_unix_ms`, and all held bytes
    /// (which are counted anew at the start).
    pub fn sweep(&self, live: impl Fn(u64) -> bool, oldest_unix_ms: u64) -> Result<(), LedgerError> {
        let mut changes = Changes::default();
        for (key, value) in self.db.iter().flat_map(|db| db.iter()).filter_map(Result::ok) {
            let stale = match key.first() {
                Some(&rows::SEGMENT) => !rows::segment_of(&key).is_some_and(&live),
                Some(&rows::ORIGIN) => rows::read_origin(&value).is_none_or(|row| row.updated_unix_ms < oldest_unix_ms),
                Some(&rows::AGENT) => true,
                Some(&rows::BROKEN) => false,
                Some(&rows::REFUSED) => rows::read_refused(&value).is_none_or(|row| row.unix_ms < oldest_unix_ms),
                _ => true,
            };
            if stale {
                changes.remove(key.to_vec());
            }
        }
        if changes.is_empty() { Ok(()) } else { self.apply(changes) }
    }

    /// Removes origins and refusals not changed since `oldest_unix_ms`, but for origins that are `held`. How many rows.
    pub fn sweep_old(&self, held: impl Fn(&OriginKey) -> bool, oldest_unix_ms: u64) -> Result<usize, LedgerError> {
        let mut changes = Changes::default();
        for tag in [rows::ORIGIN, rows::REFUSED] {
            let found = self.db.iter().flat_map(|db| db.scan_prefix([tag])).filter_map(Result::ok);
            for (key, value) in found {
                let changed = match tag {
                    rows::ORIGIN => rows::read_origin(&value).map(|row| row.updated_unix_ms),
                    _ => rows::read_refused(&value).map(|row| row.unix_ms),
                };
                let kept = changed.is_some_and(|at| at >= oldest_unix_ms)
                    || rows::origin_of(&key).is_some_and(|key| held(&key));
                if !kept {
                    changes.remove(key.to_vec());
                }
            }
        }
        let count = changes.count;
        if count > 0 {
            self.apply(changes)?;
        }
        Ok(count)
    }

    /// A read error counts as a missing row.
    fn get(&self, key: &[u8]) -> Option<sled::IVec> {
        self.db.as_ref()?.get(key).ok().flatten()
    }
}

fn delete_half_written_snapshots(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn move_aside(dir: &Path) -> io::Result<()> {
    let aside = dir.with_extension("damaged");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::rename(dir, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(pairs: &[(Vec<u8>, Vec<u8>)]) -> Changes {
        let mut changes = Changes::default();
        for (key, value) in pairs {
            changes.put(key.clone(), value.clone());
        }
        changes
    }

    #[test]
    fn rows_survive_a_reopen_and_a_half_written_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut map = Bitmap::new(9);
        map.set(4);
        {
            let (ledger, aside) = Ledger::open(&path).unwrap();
            assert_eq!(aside, None);
            ledger.apply(changes(&[(rows::segment_key(3), rows::bitmap_value(&map))])).unwrap();
        }
        fs::write(path.join("snap.ffffffffffffffff.generating"), b"half").unwrap();
        let (ledger, aside) = Ledger::open(&path).unwrap();
        assert_eq!(aside, None);
        assert_eq!(ledger.bitmap(3, 9), Some(map));
        ledger.sweep(|_| false, 0).unwrap();
        assert_eq!(ledger.bitmap(3, 9), None);
    }

    #[test]
    fn a_damaged_ledger_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        fs::create_dir_all(path.join("db")).unwrap();
        let (ledger, aside) = Ledger::open(&path).unwrap();
        assert!(aside.is_some());
        assert!(path.with_extension("damaged").is_dir());
        ledger.apply(changes(&[(rows::segment_key(1), rows::number_value(1))])).unwrap();
    }
}
