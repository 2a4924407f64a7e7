//! How far compactions are, for `/status`, metrics and the log; and which files were refused, so that each is reported
//! once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Most refused files that are remembered; past it all are forgotten, and reported again if met again.
const MOST_REFUSED: usize = 4096;

/// Shared counters of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, Running>,
    totals: Totals,
    /// Final paths with the reason; those that are gone have none.
    refused: BTreeMap<String, Option<String>>,
}

/// A compaction under way. Field names are stable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Running {
    /// The partition's directory.
    pub partition: String,
    /// Files that were read to their end.
    pub inputs_done: u64,
    /// Files to be read.
    pub inputs: u64,
    /// Bytes that were read.
    pub bytes_done: u64,
    /// Bytes to be read.
    pub bytes: u64,
    /// When it began, milliseconds since the epoch.
    pub since_unix_ms: i64,
}

/// Of all compactions of this run. Field names are stable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Rounds that were written, committed or not.
    pub done: u64,
    /// Rounds that were given up for a storage error or a stop.
    pub given_up: u64,
    /// Files that the written rounds replace.
    pub replaced_files: u64,
    /// Files that they put in their place.
    pub new_files: u64,
    /// Bytes read, given up or not.
    pub read_bytes: u64,
    /// Bytes written, given up or not.
    pub written_bytes: u64,
}

/// A file that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Its final path.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// A copy of everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Under way.
    pub running: Vec<Running>,
    /// Since the start.
    pub totals: Totals,
    /// Files that cannot be joined with others.
    pub refused: Vec<Refused>,
}

impl Progress {
    /// As things are.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let refused = state.refused.iter().filter_map(|(file, reason)| {
            reason.as_ref().map(|reason| Refused { file: file.clone(), reason: reason.clone() })
        });
        Snapshot {
            running: state.running.values().cloned().collect(),
            totals: state.totals,
            refused: refused.collect(),
        }
    }

    /// Was this final path refused before?
    pub fn is_refused(&self, file: &str) -> bool {
        self.lock().refused.get(file).is_some_and(Option::is_some)
    }

    pub(super) fn begin(&self, running: Running) -> Task {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.running.insert(id, running);
        Task { progress: self.clone(), id }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True for a path that was not reported before.
    fn first(&self, file: &str, reason: Option<&str>) -> bool {
        let mut state = self.lock();
        if state.refused.len() >= MOST_REFUSED {
            state.refused.clear();
        }
        state.refused.insert(file.to_owned(), reason.map(str::to_owned)).is_none()
    }
}

/// One compaction's part of it; gone from the list when dropped.
#[derive(Debug)]
pub(super) struct Task {
    progress: Progress,
    id: u64,
}

impl Task {
    pub fn read(&self, bytes: u64) {
        self.change(|state, id| {
            state.totals.read_bytes += bytes;
            if let Some(running) = state.running.get_mut(&id) {
                running.bytes_done = running.bytes.min(running.bytes_done + bytes);
            }
        });
    }

    pub fn wrote(&self, bytes: u64) {
        self.change(|state, _| state.totals.written_bytes += bytes);
    }

    pub fn input_done(&self) {
        self.change(|state, id| {
            if let Some(running) = state.running.get_mut(&id) {
                running.inputs_done = running.inputs.min(running.inputs_done + 1);
            }
        });
    }

    /// A file that was counted is read once more.
    pub fn again(&self, bytes: u64) {
        self.change(|state, id| {
            if let Some(running) = state.running.get_mut(&id) {
                running.inputs_done = running.inputs_done.saturating_sub(1);
                running.bytes_done = running.bytes_done.saturating_sub(bytes);
            }
        });
    }

    pub fn ended(&self, files: Option<(u64, u64)>) {
        self.change(|state, _| match files {
            Some((replaced, new)) => {
                state.totals.done += 1;
                state.totals.replaced_files += replaced;
                state.totals.new_files += new;
            }
            None => state.totals.given_up += 1,
        });
    }

    pub fn now(&self) -> Running {
        self.progress.lock().running.get(&self.id).cloned().unwrap_or_default()
    }

    pub fn is_refused(&self, file: &str) -> bool {
        self.progress.is_refused(file)
    }

    /// Says once that a file stays as it is.
    pub fn refuse(&self, file: &str, reason: &str) {
        if self.progress.first(file, Some(reason)) {
            tracing::error!(file, reason, "published file is left as it is: compaction cannot take it");
        }
    }

    /// Says once that a file is gone.
    pub fn missing(&self, file: &str) {
        if self.progress.first(file, None) {
            tracing::warn!(file, "published file is gone: its users removed it, or another collector replaced it");
        }
    }

    fn change(&self, change: impl FnOnce(&mut State, u64)) {
        change(&mut self.progress.lock(), self.id);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.change(|state, id| drop(state.running.remove(&id)));
    }
}
