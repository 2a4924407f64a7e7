//! Deletes quarantined batches and dead letters of days that ended long ago, if the operator asked for it. Thin IO;
//! whole day directories at a time, each named in the log with what it held.

use jiff::civil::Date;

use crate::log::layout;
use crate::store::{Store, StoreError};

const DAY_MS: i64 = 86_400_000;
const CUT_DATE: &str = "cut_date=";

/// Days that ended before these, milliseconds since the epoch, are deleted; none: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// For quarantine.
    pub quarantine: Option<i64>,
    /// For dead letters.
    pub dead_letters: Option<i64>,
}

impl Limits {
    /// Is there anything to do at all?
    pub fn is_empty(&self) -> bool {
        self.quarantine.is_none() && self.dead_letters.is_none()
    }
}

/// Deletes what is older. Returns the number of days.
pub async fn delete_old(store: &dyn Store, limits: Limits) -> Result<u64, StoreError> {
    let mut days = 0;
    if let Some(ended_before) = limits.quarantine {
        days += delete_days(store, layout::QUARANTINE, "", ended_before).await?;
    }
    if let Some(ended_before) = limits.dead_letters {
        for dataset in list(store, layout::DEAD_LETTER).await? {
            days += delete_days(store, &format!("{}/{dataset}", layout::DEAD_LETTER), CUT_DATE, ended_before).await?;
        }
    }
    Ok(days)
}

async fn delete_days(store: &dyn Store, dir: &str, prefix: &str, ended_before: i64) -> Result<u64, StoreError> {
    let mut days = 0;
    for name in list(store, dir).await? {
        let ended = name.strip_prefix(prefix).and_then(end_unix_ms);
        if ended.is_none_or(|ended| ended > ended_before) {
            continue;
        }
        let day = format!("{dir}/{name}");
        let files = store.list(&day).await?;
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        store.delete(&day, true).await?;
        tracing::info!(day, files = files.len(), bytes, "deleted, it is older than the configured retention");
        days += 1;
    }
    Ok(days)
}

/// Names of directories in a directory; none if it is missing.
async fn list(store: &dyn Store, dir: &str) -> Result<Vec<String>, StoreError> {
    match store.list(dir).await {
        Ok(entries) => Ok(entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name).collect()),
        Err(StoreError::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// When a UTC day `YYYY-MM-DD` ended.
fn end_unix_ms(day: &str) -> Option<i64> {
    let date: Date = day.parse().ok()?;
    let since = date.since((jiff::Unit::Day, jiff::civil::date(1970, 1, 1))).ok()?;
    Some((i64::from(since.get_days()) + 1) * DAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DestinationConfig, open};

    #[tokio::test]
    async fn only_days_that_ended_before_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        let days = [
            "_catchment/quarantine/1970-01-02",
            "_catchment/quarantine/1970-01-03",
            "_catchment/quarantine/notes",
            "_catchment/dead-letter/d/cut_date=1970-01-01",
            "_catchment/dead-letter/d/cut_date=1970-01-04",
        ];
        for day in days {
            store.make_dirs(day, 0o700).await.unwrap();
        }
        let limits = Limits { quarantine: Some(2 * DAY_MS), dead_letters: None };
        assert_eq!(delete_old(&*store, limits).await, Ok(1));
        let limits = Limits { quarantine: None, dead_letters: Some(2 * DAY_MS) };
        assert_eq!(delete_old(&*store, limits).await, Ok(1));
        let mut left = Vec::new();
        for day in days {
            left.push(store.stat(day).await.unwrap().is_some());
        }
        assert_eq!(left, [false, true, true, false, true]);
        assert!(Limits::default().is_empty());
    }
}
