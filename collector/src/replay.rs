//! The start of an incarnation: make the own directory FIRST, then read the highest checkpoint, show a sign of life,
//! and read the tail of the log. The order matters: whoever cleans the log later reads the checkpoint first and lists
//! directories after, so a run that exists is always seen; and a directory that is still there when the checkpoint was
//! read is retired, if it is, by a record behind that checkpoint.
//!
//! Names are used once: a directory or format file whose creation was not answered gets another name.

use std::sync::Arc;
use std::time::Duration;

use crate::commit::{CommitId, Stop};
use crate::coordinator::Replayed;
use crate::housekeeping::seen::{Seen, Shown};
use crate::log::files::{LogError, LogFiles, ReadRecord, store_error, write_once};
use crate::log::view::Applied;
use crate::log::{Layout, View, layout};
use crate::store::{Renamed, Store, StoreError};

/// Between two signs of life while a long log is read.
const RENEW_EVERY: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// Where names and times come from.
pub trait Source: Send {
    /// Random bytes, other ones each time.
    fn random(&mut self) -> [u8; 16];
    /// Wall clock, milliseconds since the epoch.
    fn unix_ms(&mut self) -> i64;
}

/// A run that may begin.
#[derive(Debug)]
pub struct Begun {
    /// Its names.
    pub layout: Layout,
    /// The log, behind its checkpoint.
    pub log: LogFiles,
    /// What the log says.
    pub replayed: Replayed,
}

/// Begins a run of `collector`. Waits and tries again for as long as the store does not answer; `waiting` is told why.
pub async fn begin(
    store: Arc<dyn Store>,
    collector: &str,
    source: &mut dyn Source,
    mut waiting: impl FnMut(&str),
) -> Result<Begun, Stop> {
    let mut backoff = FIRST_BACKOFF;
    let mut own = None;
    loop {
        match attempt(&store, collector, source, &mut own).await {
            Ok(begun) => return Ok(begun),
            Err(LogError::Unavailable(error)) => {
                let reason = error.to_string();
                tracing::warn!(reason, "destination not usable yet");
                waiting(&reason);
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
            Err(LogError::Newer(what)) => {
                give_up(&*store, own).await;
                return Err(Stop::Newer(what));
            }
            Err(LogError::Broken(what)) => {
                give_up(&*store, own).await;
                return Err(Stop::Log(what));
            }
        }
    }
}

/// The run ends before it began: no draft ever lay in its directory. Left behind, there would be one for each start
/// until the log is repaired, with nobody who could retire them.
async fn give_up(store: &dyn Store, own: Option<Own>) {
    let Some(own) = own else { return };
    let staging = own.layout.staging();
    if let Err(error) = store.delete(&staging, true).await {
        tracing::info!(dir = %staging, %error, "own directory cannot be deleted now");
    }
}

/// The own directory, once its creation was answered, and what was shown in it.
struct Own {
    layout: Layout,
    seen: Seen,
}

async fn attempt(
    store: &Arc<dyn Store>,
    collector: &str,
    source: &mut dyn Source,
    kept: &mut Option<Own>,
) -> Result<Begun, LogError> {
    let mut own = match kept.take() {
        Some(own) => own,
        None => make_own(store, collector, source).await?,
    };
    let attempt = read(store, source, &mut own).await;
    if !matches!(attempt, Ok(None)) {
        *kept = Some(Own { layout: own.layout.clone(), seen: own.seen.clone() });
    }
    let retired = || StoreError::Unavailable {
        op: "begin",
        path: own.layout.staging(),
        detail: "this run was retired while it began; the next attempt takes another name".into(),
    };
    let (log, mut replayed) = attempt?.ok_or_else(|| LogError::Unavailable(retired()))?;
    tracing::info!(
        incarnation = own.layout.incarnation(),
        checkpoint = replayed.checkpoint,
        next = replayed.view.next(),
        origins = replayed.view.committed().origins(),
        "commit log read"
    );
    replayed.seen = own.seen;
    Ok(Begun { layout: own.layout, log, replayed })
}

async fn make_own(store: &Arc<dyn Store>, collector: &str, source: &mut dyn Source) -> Result<Own, LogError> {
    for (dir, mode) in [
        (layout::COMMITS, 0o750),
        (layout::CHECKPOINTS, 0o750),
        (layout::STAGING, 0o750),
        (layout::DEAD_LETTER, 0o700),
        (layout::QUARANTINE, 0o700),
    ] {
        store.make_dirs(dir, mode).await.map_err(store_error)?;
    }
    let random = u32::from_le_bytes(source.random()[..4].try_into().expect("4 of 16 bytes"));
    let layout = Layout::new(&layout::incarnation_name(collector, source.unix_ms(), random));
    match store.make_dir_new(&layout.staging(), 0o750).await {
        Ok(()) => Ok(Own { layout, seen: Seen::default() }),
        // Not ours, or not known to be ours: the next attempt takes another name.
        Err(error @ StoreError::AlreadyExists { .. }) => Err(LogError::Unavailable(error)),
        Err(error) => Err(store_error(error)),
    }
}

/// Reads the log. None: this run is retired already.
async fn read(
    store: &Arc<dyn Store>,
    source: &mut dyn Source,
    own: &mut Own,
) -> Result<Option<(LogFiles, Replayed)>, LogError> {
    if let Err(error) = check_format(store, &own.layout, source).await {
        // Of a run that was retired before it wrote the format.
        let gone = matches!(store.stat(&own.layout.staging()).await, Ok(None));
        return if gone { Ok(None) } else { Err(error) };
    }
    let log = LogFiles::new(Arc::clone(store), 0);
    let (begin, view) = match log.highest_checkpoint().await? {
        None => (0, View::default()),
        Some((n, checkpoint)) => {
            let view = View::from_checkpoint(n, &checkpoint);
            (n, view.map_err(|error| LogError::Broken(error.to_string()))?)
        }
    };
    match own.seen.show(&**store, &own.layout, begin).await {
        Shown::Done => {}
        Shown::Gone => return Ok(None),
        Shown::Later(detail) => {
            let path = own.layout.staging();
            return Err(LogError::Unavailable(StoreError::Unavailable { op: "show a sign of life in", path, detail }));
        }
    }
    let log = log.from(begin);
    let replayed = read_tail(&log, own, Replayed { view, checkpoint: begin, ..Replayed::default() }).await?;
    Ok(replayed.map(|replayed| (log, replayed)))
}

async fn read_tail(log: &LogFiles, own: &mut Own, mut replayed: Replayed) -> Result<Option<Replayed>, LogError> {
    let view = &mut replayed.view;
    let mut shown = tokio::time::Instant::now();
    while let ReadRecord::Record(record) = log.record(view.next()).await? {
        let n = view.next();
        let applied = view.apply(n, &record).map_err(|error| LogError::Broken(error.to_string()))?;
        let Applied { twice, finish, retired, .. } = applied;
        if retired.as_deref() == Some(own.layout.incarnation()) {
            return Ok(None);
        }
        if twice > 0 {
            tracing::error!(n, seqs = twice, "the log covers batches twice: report this, with this record");
        }
        replayed.records.push((n, finish));
        if shown.elapsed() >= RENEW_EVERY {
            shown = tokio::time::Instant::now();
            // One that is not renewed now is renewed later: only a very long silence matters.
            let _ = own.seen.show(&**log.store(), &own.layout, view.next()).await;
        }
    }
    log.check_end(view.next()).await?;
    Ok(Some(replayed))
}

/// Reads `_catchment/format`, and writes it on first use.
async fn check_format(store: &Arc<dyn Store>, layout: &Layout, source: &mut dyn Source) -> Result<(), LogError> {
    loop {
        match store.read(layout::FORMAT, 64).await {
            Ok(bytes) => return read_format(&bytes),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(store_error(error)),
        }
        let draft = layout.small("format", CommitId(source.random()));
        let text = format!("{}\n", proto::FORMAT);
        write_once(&**store, &draft, text.into()).await.map_err(store_error)?;
        match store.rename_new(&draft, layout::FORMAT).await.map_err(store_error)? {
            Renamed::Done | Renamed::TargetExists => {}
            Renamed::SourceMissing | Renamed::ParentMissing => {
                return Err(LogError::Broken(format!("{draft} vanished while the format was written")));
            }
        }
    }
}

fn read_format(bytes: &[u8]) -> Result<(), LogError> {
    let text = String::from_utf8_lossy(bytes);
    match text.trim().parse::<u32>() {
        Ok(format) if (1..=proto::FORMAT).contains(&format) => Ok(()),
        Ok(format) if format > proto::FORMAT => {
            Err(LogError::Newer(format!("{} {format}, this release reads up to {}", layout::FORMAT, proto::FORMAT)))
        }
        _ => Err(LogError::Broken(format!("{} holds {:?}, no format number", layout::FORMAT, text.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DestinationConfig, open};

    struct Pinned(u8);

    impl Source for Pinned {
        fn random(&mut self) -> [u8; 16] {
            self.0 += 1;
            [self.0; 16]
        }
        fn unix_ms(&mut self) -> i64 {
            1_700_000_000_000
        }
    }

    #[tokio::test]
    async fn starts_that_fail_leave_no_directories() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        let begun = begin(Arc::clone(&store), "col-1", &mut Pinned(0), |_| ()).await.unwrap();
        let staged = async || -> Vec<String> {
            store.list(layout::STAGING).await.unwrap().into_iter().map(|entry| entry.name).collect()
        };
        assert_eq!(staged().await, [begun.layout.incarnation()]);
        write_once(&*store, &layout::commit(0), "no record".into()).await.unwrap();
        let stop = begin(Arc::clone(&store), "col-1", &mut Pinned(7), |_| ()).await.unwrap_err();
        assert!(matches!(stop, Stop::Log(_)), "{stop}");
        assert_eq!(staged().await, [begun.layout.incarnation()], "that of the run that began stays");
        store.delete(layout::FORMAT, false).await.unwrap();
        write_once(&*store, layout::FORMAT, "99".into()).await.unwrap();
        let stop = begin(Arc::clone(&store), "col-1", &mut Pinned(9), |_| ()).await.unwrap_err();
        assert!(matches!(stop, Stop::Newer(_)), "{stop}");
        assert_eq!(staged().await, [begun.layout.incarnation()]);
    }
}
