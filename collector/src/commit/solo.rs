//! A tool that commits: one short run of its own beside the collectors, or where none runs. It goes the same way as
//! they do: own directory, read the log, draft, rename without overwrite, finish what the record asks for, retire.
//!
//! Whatever record comes between its view and its rename, the action is made anew from the view that has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::wire;
use proto::wire::commit_record::Action;

use super::draft::Author;
use super::driver::Driver;
use super::{CommitId, Draft, Effect, Planner, Stop};
use crate::housekeeping::seen::{Seen, Shown};
use crate::log::files::{LogError, LogFiles, ReadRecord};
use crate::log::view::{Applied, Finish, PartitionKey, partitions};
use crate::log::{Layout, View};
use crate::publish::{self, DirModes};
use crate::replay::{self, Source};
use crate::seal::{self, Marker};
use crate::store::{Store, StoreError};

const POLL: Duration = Duration::from_millis(20);
/// Between two signs of life: far below the shortest sensible `housekeeping.retire_after`.
const SIGN_EVERY: Duration = Duration::from_secs(20);
/// Readings of a log that others clean meanwhile.
const READINGS: usize = 5;

/// Why a tool could not commit.
#[derive(Debug, thiserror::Error)]
pub enum SoloError {
    /// The log says that it cannot be done.
    #[error("{0}")]
    Refused(String),
    /// It showed no sign of life for so long that a collector retired it.
    #[error("a collector retired this command, since it showed no sign of life for long: call it again")]
    Retired,
    /// It was asked to go on after it had stopped.
    #[error("this command stopped before, and commits nothing more: call it again")]
    Stopped,
    /// This run cannot go on.
    #[error("{0}")]
    Stop(Stop),
    /// The record is in the log; something that it asks for is left to the collectors, or to the same command again.
    #[error("record {n} is written, and finished by the collectors or by the same command again: {left}")]
    Unfinished {
        /// Its number.
        n: u64,
        /// What is left.
        left: String,
    },
}

impl From<Stop> for SoloError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Retired(_) | Stop::RetiredBy { .. } => Self::Retired,
            Stop::Stale { .. } | Stop::Newer(_) | Stop::Log(_) => Self::Stop(stop),
        }
    }
}

/// What the log says at this moment; changes nothing.
pub async fn read_only(store: &Arc<dyn Store>) -> Result<View, LogError> {
    let mut reading = 1;
    loop {
        match read_once(store).await {
            // Numbers were freed after the checkpoint was read: there is a higher one by now.
            Err(LogError::Broken(_)) if reading < READINGS => reading += 1,
            done => return done,
        }
    }
}

async fn read_once(store: &Arc<dyn Store>) -> Result<View, LogError> {
    let log = LogFiles::new(Arc::clone(store), 0);
    let broken = |error: crate::ledger::committed::MergeError| LogError::Broken(error.to_string());
    let checkpoint = match log.highest_checkpoint().await {
        // No directory of checkpoints: nothing was ever written there.
        Err(LogError::Broken(_)) if matches!(store.stat(crate::log::layout::COMMITS).await, Ok(None)) => None,
        checkpoint => checkpoint?,
    };
    let mut view = match checkpoint {
        None => View::default(),
        Some((n, checkpoint)) => View::from_checkpoint(n, &checkpoint).map_err(broken)?,
    };
    let log = log.from(view.next());
    while let ReadRecord::Record(record) = log.record(view.next()).await? {
        view.apply(view.next(), &record).map_err(broken)?;
    }
    log.check_end(view.next()).await?;
    Ok(view)
}

/// A run of a tool.
pub struct Solo {
    log: LogFiles,
    layout: Layout,
    tool: String,
    planner: Planner,
    driver: Driver,
    modes: Arc<DirModes>,
    source: Box<dyn Source>,
    view: View,
    /// Records behind the checkpoint, and what each may still ask for.
    records: Vec<(u64, Finish)>,
    seen: Seen,
    sign_due: Instant,
    committed: bool,
    /// It cannot go on; whatever it left is the collectors'.
    stopped: bool,
}

impl std::fmt::Debug for Solo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Solo").field("incarnation", &self.layout.incarnation()).finish_non_exhaustive()
    }
}

impl Solo {
    /// Begins; `tool` stands in names and records where collectors have theirs. `waiting` is told why it waits.
    pub async fn begin(
        store: Arc<dyn Store>,
        tool: &str,
        modes: DirModes,
        mut source: Box<dyn Source>,
        waiting: impl FnMut(&str),
    ) -> Result<Self, SoloError> {
        let begun = replay::begin(store, tool, &mut *source, waiting).await?;
        let modes = Arc::new(modes);
        let driver = Driver::new(begun.log.clone(), begun.layout.clone(), Arc::clone(&modes));
        Ok(Self {
            planner: Planner::new(begun.replayed.view.next(), begun.layout.staging()),
            driver,
            log: begun.log,
            layout: begun.layout,
            tool: tool.to_owned(),
            modes,
            source,
            view: begun.replayed.view,
            records: begun.replayed.records,
            seen: begun.replayed.seen,
            sign_due: Instant::now() + SIGN_EVERY,
            committed: false,
            stopped: false,
        })
    }

    /// What the log said when it was read last.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Names of this run.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Commits what `make` says on the newest view, asked again after every record that came between. Its `Err` ends
    /// it with nothing written.
    pub async fn commit(
        &mut self,
        mut make: impl FnMut(&View, i64) -> Result<Action, String>,
    ) -> Result<u64, SoloError> {
        if self.stopped {
            return Err(SoloError::Stopped);
        }
        loop {
            let time_unix_ms = self.source.unix_ms();
            let action = make(&self.view, time_unix_ms).map_err(SoloError::Refused)?;
            let incarnation = self.layout.incarnation().to_owned();
            let author = Author { collector: self.tool.clone(), incarnation, time_unix_ms };
            self.planner.begin(Draft::of_action(CommitId(self.source.random()), &author, action));
            let driven = self.drive().await;
            self.stopped |= driven.is_err();
            if let Some(n) = driven? {
                self.committed = true;
                return Ok(n);
            }
        }
    }

    /// Does long work between two commits, and shows meanwhile that this run lives.
    pub async fn while_alive<T>(&mut self, work: impl Future<Output = T>) -> Result<T, SoloError> {
        let mut work = std::pin::pin!(work);
        loop {
            let until = tokio::time::Instant::from_std(self.sign_due);
            match tokio::time::timeout_at(until, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) => self.show_sign().await?,
            }
        }
    }

    /// Shows a sign of life if one is due.
    async fn show_sign(&mut self) -> Result<(), SoloError> {
        if Instant::now() < self.sign_due {
            return Ok(());
        }
        self.sign_due = Instant::now() + SIGN_EVERY;
        match self.seen.show(&**self.log.store(), &self.layout, self.planner.read()).await {
            Shown::Done => Ok(()),
            Shown::Gone => {
                self.stopped = true;
                Err(SoloError::Retired)
            }
            Shown::Later(reason) => {
                tracing::info!(reason, "no sign of life could be shown now");
                Ok(())
            }
        }
    }

    /// Until the draft is a record (its number) or dead.
    async fn drive(&mut self) -> Result<Option<u64>, SoloError> {
        loop {
            self.show_sign().await?;
            let now = Instant::now();
            let Some(step) = self.planner.poll(now) else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            let outcome = self.driver.perform(step).await;
            match self.planner.on(outcome, Instant::now()) {
                Effect::Nothing | Effect::Published(_) => {}
                Effect::Merge { n, record } => {
                    self.apply(n, &record)?;
                    self.planner.touch();
                }
                Effect::Committed { n, draft } => {
                    self.apply(n, &draft.record)?;
                    return Ok(Some(n));
                }
                Effect::Dead(_) => return Ok(None),
                Effect::Stop(stop) => return Err(stop.into()),
            }
            if let Some(trouble) = self.planner.trouble() {
                tracing::warn!(trouble, "waiting for the destination");
            }
        }
    }

    fn apply(&mut self, n: u64, record: &wire::CommitRecord) -> Result<Applied, SoloError> {
        let applied = self.view.apply(n, record).map_err(|error| Stop::Log(error.to_string()))?;
        let own = self.layout.incarnation();
        if applied.retired.as_deref() == Some(own) && record.incarnation != own {
            return Err(Stop::RetiredBy { n, incarnation: record.incarnation.clone() }.into());
        }
        self.records.push((n, applied.finish.clone()));
        Ok(applied)
    }

    /// Brings the files that records named for a partition to their places, and deletes what was replaced there; what
    /// is still left then.
    pub async fn finish_files(&self, key: &PartitionKey) -> Result<(), String> {
        let store = &**self.log.store();
        let dir = format!("{}/", key.dir());
        for (n, finish) in &self.records {
            let of = |file: &&wire::PublishedFile| {
                partitions::key(*n, &file.dataset, file.partition.as_ref()).is_ok_and(|of| of == *key)
            };
            let bring: Vec<_> = finish.bring.iter().filter(of).cloned().collect();
            let brought = publish::bring_all(store, &self.modes, bring).await;
            if let Some(file) = brought.again.first().or(brought.stuck.first()) {
                let reason = brought.reason.unwrap_or_else(|| "the store refuses it, see the log above".into());
                return Err(format!("{} is not in its place: {reason}", file.r#final));
            }
            for path in finish.remove.iter().filter(|path| path.starts_with(&dir)) {
                store.delete(path, false).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Writes the marker of a sealed partition.
    pub async fn finish_marker(
        &mut self,
        n: u64,
        key: &PartitionKey,
        readable: impl FnOnce(Marker) -> Marker,
    ) -> Result<(), SoloError> {
        let Some(marker) = seal::marker(&self.view, key).map(readable) else { return Ok(()) };
        let id = CommitId(self.source.random());
        let done = seal::finish_marker(&**self.log.store(), &self.layout, id, &marker).await;
        done.map_err(|error| SoloError::Unfinished { n, left: error.to_string() })
    }

    /// Ends: this run never commits again. Its directory goes only when everything that its records name is in its
    /// place; else it stays, and the collectors finish it and retire this run like any other that fell silent.
    pub async fn end(mut self) -> Result<(), SoloError> {
        if self.stopped {
            return Ok(());
        }
        self.nothing_staged().await?;
        if self.committed {
            let incarnation = self.layout.incarnation().to_owned();
            let retire = wire::Retire { incarnation, reason: "the tool is done".into() };
            match self.commit(|_, _| Ok(Action::Retire(retire.clone()))).await {
                // Somebody else said so first.
                Ok(_) | Err(SoloError::Retired) => {}
                Err(error) => return Err(error),
            }
        }
        let staging = self.layout.staging();
        if let Err(error) = self.log.store().delete(&staging, true).await {
            // A collector deletes it later.
            tracing::info!(dir = %staging, %error, "own directory cannot be deleted now");
        }
        Ok(())
    }

    async fn nothing_staged(&self) -> Result<(), SoloError> {
        let store = &**self.log.store();
        for (n, finish) in self.records.iter().filter(|(_, finish)| finish.incarnation == self.layout.incarnation()) {
            let brought = publish::bring_all(store, &self.modes, finish.bring.clone()).await;
            if let Some(file) = brought.again.first().or(brought.stuck.first()) {
                let left = format!("{} is not in its place yet", file.r#final);
                return Err(SoloError::Unfinished { n: *n, left });
            }
        }
        match store.list(&self.layout.staging()).await {
            Ok(entries) => match entries.into_iter().find(|entry| entry.name.starts_with(seal::marker::TAKEN)) {
                None => Ok(()),
                Some(entry) => {
                    let left = format!("the marker in {} is not back in its place", entry.name);
                    Err(SoloError::Unfinished { n: self.view.next().saturating_sub(1), left })
                }
            },
            Err(error) => Err(SoloError::Unfinished { n: self.view.next().saturating_sub(1), left: error.to_string() }),
        }
    }
}

/// Real time and chance.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Source for System {
    fn random(&mut self) -> [u8; 16] {
        rand::random()
    }
    fn unix_ms(&mut self) -> i64 {
        common::clock::unix_ms()
    }
}

/// Where nothing was ever written: no log, nothing to seal.
pub async fn is_in_use(store: &dyn Store) -> Result<bool, StoreError> {
    match store.read(crate::log::layout::FORMAT, 64).await {
        Ok(bytes) => Ok(bytes != Bytes::new()),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::housekeeping::seen::{self, Sign};
    use crate::store::{DestinationConfig, open};

    async fn solo(store: &Arc<dyn Store>) -> Solo {
        Solo::begin(Arc::clone(store), "tool", DirModes::default(), Box::new(System), |_| ()).await.unwrap()
    }

    fn store(dir: &tempfile::TempDir) -> Arc<dyn Store> {
        open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap()
    }

    fn forget(agent: &str) -> Action {
        Action::Forget(wire::Forget { agent: agent.into(), reason: String::new() })
    }

    async fn retire(store: &Arc<dyn Store>, other: &Solo) {
        let mut by = solo(store).await;
        let retire =
            wire::Retire { incarnation: other.layout().incarnation().to_owned(), reason: "it fell silent".into() };
        by.commit(|_, _| Ok(Action::Retire(retire.clone()))).await.unwrap();
        by.end().await.unwrap();
    }

    #[tokio::test]
    async fn one_that_was_retired_commits_nothing_more_whatever_it_committed_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let mut tool = solo(&store).await;
        tool.commit(|_, _| Ok(forget("web-1"))).await.unwrap();
        retire(&store, &tool).await;
        let records = read_only(&store).await.unwrap().next();
        let error = tool.commit(|_, _| Ok(forget("web-2"))).await.unwrap_err();
        assert!(matches!(error, SoloError::Retired), "{error}");
        assert!(error.to_string().contains("call it again"));
        assert_eq!(read_only(&store).await.unwrap().next(), records);
        tool.end().await.unwrap();
    }

    #[tokio::test]
    async fn one_that_is_retired_when_all_is_done_has_done_its_work() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let mut tool = solo(&store).await;
        tool.commit(|_, _| Ok(forget("web-1"))).await.unwrap();
        retire(&store, &tool).await;
        tool.end().await.unwrap();
        assert_eq!(store.list(crate::log::layout::STAGING).await.unwrap(), Vec::new());
    }

    #[tokio::test]
    async fn long_work_shows_that_it_lives_and_ends_when_its_directory_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let mut tool = solo(&store).await;
        let staging = tool.layout().staging();
        let sign = async |store: &Arc<dyn Store>| -> Option<Sign> {
            let entries = store.list(&staging).await.unwrap();
            seen::highest(entries.iter().map(|entry| entry.name.as_str()))
        };
        let first = sign(&store).await.unwrap();
        tool.sign_due = Instant::now();
        tool.while_alive(tokio::time::sleep(Duration::from_millis(5))).await.unwrap();
        assert!(sign(&store).await.unwrap() > first);
        store.delete(&staging, true).await.unwrap();
        tool.sign_due = Instant::now();
        let work = tool.while_alive(std::future::pending::<()>()).await;
        assert!(matches!(work, Err(SoloError::Retired)));
    }
}
