//! Frees old numbers of the commit log. Thin IO around one rule.
//!
//! The rule ([`free_below`]): a record goes when a checkpoint covers it, and every staging directory that exists shows
//! that its run has read past it; the last one that both have is kept, since a missing number is the end of the log
//! only if the one before it is there. So no draft is left anywhere that could land on a number that was freed.
//! The order matters: the highest checkpoint is read first and the directories are listed after, so a run that began
//! from an older checkpoint is seen.

use std::collections::BTreeMap;

use proto::record::{decode_checkpoint, parse_number};

use super::life::Dir;
use super::look::look;
use crate::log::files::{LogError, LogFiles, MAX_BYTES, ReadRecord};
use crate::log::layout;
use crate::store::Store;

/// Records deleted in one go, so that other work comes in between.
const AT_ONCE: usize = 500;
/// Checkpoints that are kept.
const KEEP_CHECKPOINTS: usize = 2;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Records that were deleted.
    pub records: u64,
    /// Checkpoints that were deleted.
    pub checkpoints: u64,
    /// There is more to delete now.
    pub more: bool,
}

/// Records below this number may go, as far as drafts are concerned; none if a directory shows nothing.
pub fn free_below(checkpoint_next: u64, dirs: &BTreeMap<String, Dir>) -> Option<u64> {
    let mut below = checkpoint_next;
    for dir in dirs.values() {
        let Dir::Shows(Some(sign)) = dir else { return None };
        below = below.min(sign.read);
    }
    below.checked_sub(1)
}

/// Deletes what is covered, read by all, and older than `older_than_unix_ms` by its own time; oldest first.
pub async fn clean(log: &LogFiles, own: &str, older_than_unix_ms: i64) -> Result<Cleaned, LogError> {
    let store = &**log.store();
    let mut checkpoints = numbers(store, layout::CHECKPOINTS).await?;
    let Some(highest) = checkpoints.pop() else { return Ok(Cleaned::default()) };
    let path = layout::checkpoint(highest);
    // What lets records go must be readable itself.
    let bytes = store.read(&path, MAX_BYTES).await.map_err(LogError::Unavailable)?;
    let covers = decode_checkpoint(&bytes).map_err(|error| LogError::Broken(format!("{path}: {error}")))?.next;
    let looked = look(store, own).await.map_err(LogError::Unavailable)?;
    let mut cleaned = Cleaned::default();
    let Some(below) = free_below(covers, &looked.dirs) else { return Ok(cleaned) };
    for n in numbers(store, layout::COMMITS).await? {
        if n >= below {
            break;
        }
        if cleaned.records as usize >= AT_ONCE {
            cleaned.more = true;
            break;
        }
        let Some(time_unix_ms) = time(log, n).await? else { break };
        if time_unix_ms >= older_than_unix_ms {
            break;
        }
        // One that is not answered is asked for again before any later one goes: the log has no holes.
        store.delete(&layout::commit(n), false).await.map_err(LogError::Unavailable)?;
        cleaned.records += 1;
    }
    let old = checkpoints.len().saturating_sub(KEEP_CHECKPOINTS - 1);
    for n in checkpoints.into_iter().take(old) {
        store.delete(&layout::checkpoint(n), false).await.map_err(LogError::Unavailable)?;
        cleaned.checkpoints += 1;
    }
    Ok(cleaned)
}

/// When a record was written, that a checkpoint covers; none if there is none. Nobody needs what it says any more: one
/// that cannot be read must not keep all later ones for ever.
async fn time(log: &LogFiles, n: u64) -> Result<Option<i64>, LogError> {
    let error = match log.from(n).record(n).await {
        Ok(ReadRecord::Record(record)) => return Ok(Some(record.time_unix_ms)),
        Ok(ReadRecord::End) => return Ok(None),
        Err(error @ LogError::Broken(_)) => error,
        Err(error) => return Err(error),
    };
    let stat = log.store().stat(&layout::commit(n)).await.map_err(LogError::Unavailable)?;
    if stat.is_some() {
        tracing::warn!(n, %error, "record is damaged, a checkpoint covers it: it is deleted when its file is old enough");
    }
    Ok(stat.map(|stat| stat.modified_unix_ms))
}

async fn numbers(store: &dyn Store, dir: &str) -> Result<Vec<u64>, LogError> {
    let entries = store.list(dir).await.map_err(LogError::Unavailable)?;
    let mut numbers: Vec<u64> = entries.iter().filter_map(|entry| parse_number(&entry.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::wire;

    use super::*;
    use crate::housekeeping::seen::Sign;
    use crate::log::files::write_once;
    use crate::store::{DestinationConfig, open};

    fn dirs(read: &[Option<u64>]) -> BTreeMap<String, Dir> {
        let dir = |read: &Option<u64>| Dir::Shows(read.map(|read| Sign { read, counter: 1 }));
        read.iter().enumerate().map(|(at, read)| (at.to_string(), dir(read))).collect()
    }

    #[test]
    fn a_number_is_freed_when_all_have_read_past_it() {
        assert_eq!(free_below(10, &dirs(&[Some(12), Some(20)])), Some(9), "the last covered one stays");
        assert_eq!(free_below(10, &dirs(&[Some(7), Some(20)])), Some(6));
        assert_eq!(
            free_below(10, &dirs(&[Some(12), None])),
            None,
            "a run that began and shows nothing may be anywhere"
        );
        assert_eq!(free_below(0, &dirs(&[Some(12)])), None);
        let mut unknown = dirs(&[Some(12)]);
        unknown.insert("x".into(), Dir::Unknown);
        assert_eq!(free_below(10, &unknown), None);
    }

    #[tokio::test]
    async fn a_damaged_record_that_a_checkpoint_covers_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        for path in [layout::COMMITS, layout::CHECKPOINTS, layout::STAGING] {
            store.make_dirs(path, 0o750).await.unwrap();
        }
        for n in 0..4 {
            let action = Some(wire::commit_record::Action::Retire(wire::Retire::default()));
            let record = wire::CommitRecord { time_unix_ms: 1, action, ..Default::default() };
            let mut bytes = proto::record::encode_record(&record);
            *bytes.last_mut().unwrap() ^= u8::from(n == 1);
            write_once(&*store, &layout::commit(n), bytes.into()).await.unwrap();
        }
        let checkpoint = wire::Checkpoint { next: 4, ..Default::default() };
        let bytes = proto::record::encode_checkpoint(&checkpoint);
        write_once(&*store, &layout::checkpoint(4), bytes.into()).await.unwrap();
        let log = LogFiles::new(Arc::clone(&store), 4);
        let young = clean(&log, "own", 1000).await.unwrap();
        assert_eq!(young.records, 1, "its file is from now: it is kept as long as any other");
        let old = clean(&log, "own", i64::MAX).await.unwrap();
        assert_eq!(old.records, 2, "it and the one behind it; the last covered one stays");
    }
}
