//! Partition writer: one task per group, which owns the group's data file and the dead-letter file that rolls with it.
//!
//! Batches are encoded in memory first; a file is opened past 8 MiB or at the close. A group is poisoned by its first
//! store error: nothing is written to it or closed again, every later call says so, and no draft may name it.
//! Invariant (I9): [`ClosedGroup`] names files that are closed, durable, and as long as what was written to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use proto::header::Header;
use proto::ids::{BatchId, Partition};
use proto::wire;
use tokio::sync::{mpsc, oneshot};

use crate::config::dataset::DatasetConfig;
use crate::format::FormatError;
use crate::quarantine::QuarantinedBatch;
use crate::store::Store;

mod memory;
mod names;
mod outlet;
mod task;

pub use memory::MemoryBudget;

/// What a group takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// Events of one dataset and partition. Rows that cannot be placed go to the dead-letter file beside it.
    Data,
    /// Batches of dead letters, as the edge made them, of one dataset and day.
    DeadLetters,
    /// Refused batches of any dataset.
    Quarantine,
}

/// A group to be opened. Its number is used once per incarnation.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// Number within the incarnation.
    pub number: u64,
    /// The run of this collector; safe as a file name.
    pub incarnation: String,
    /// What it takes.
    pub kind: GroupKind,
    /// Format, codec, modes. Quarantine looks at none of it.
    pub dataset: Arc<DatasetConfig>,
    /// Where data goes; for dead letters the UTC day they were made. Quarantine does not look at it.
    pub partition: Partition,
    /// Days since 1970-01-01, UTC, when the group was opened: dates quarantine and this collector's own dead letters.
    pub opened_day_utc: i32,
}

/// Everything a commit record says of the data file of such a group but its sizes and counts.
pub(crate) fn published_data(spec: &GroupSpec) -> wire::PublishedFile {
    names::published(spec, names::Which::Main)
}

/// One batch to be appended. Length and CRC of the payload were checked against the header.
#[derive(Debug, Clone)]
pub struct StageBatch {
    /// Its identity.
    pub id: BatchId,
    /// Its checked header, a data batch.
    pub header: Header,
    /// Its frame.
    pub payload: Bytes,
}

/// A batch is in its group: all of it, in one of the two files each event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Events in the data file (or, for batches of dead letters, in theirs).
    pub events: u64,
    /// Events that this collector made dead letters of.
    pub dead_letters: u64,
}

/// Why a batch was not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Nothing of it was appended and it never can be: quarantine it with this reason.
    #[error("the batch is refused: {0}")]
    Refused(String),
    /// The group is dead; the batch goes to a new one.
    #[error("the group is poisoned: {0}")]
    Poisoned(String),
}

/// The group is dead: its batches must be asked for again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the group is poisoned: {0}")]
pub struct Poisoned(pub String);

/// A group whose files are closed: what a commit record says of them. No file at all if nothing was appended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClosedGroup {
    /// Data file first, then the dead-letter file.
    pub files: Vec<wire::PublishedFile>,
}

enum Command {
    Append(Box<StageBatch>, Reply<Appended, AppendError>),
    Quarantine(Box<QuarantinedBatch>, Reply<Appended, AppendError>),
    Close(Reply<ClosedGroup, Poisoned>),
    /// Only wakes the task; the flag says the rest.
    Abandon,
}

/// What handle and task both see.
#[derive(Debug, Default)]
struct Shared {
    /// Payload bytes on their way to the task.
    queued_bytes: AtomicU64,
    /// Held in the task: encoded and not written, and what an encoder holds back.
    held_bytes: AtomicU64,
    /// Written to files.
    file_bytes: AtomicU64,
    /// Its staged files are to be deleted.
    abandoned: AtomicBool,
    /// Nobody holds the handle any more: nothing is waited for.
    given_up: AtomicBool,
}

/// The only way to a group; to be kept until its close is answered. Dropped without [`GroupHandle::abandon`] it leaves
/// its staged files where they are.
#[derive(Debug)]
pub struct GroupHandle {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
    memory: MemoryBudget,
}

impl GroupHandle {
    /// Starts the task of a new group, on the current tokio runtime. Touches the store only when a file is opened.
    pub fn spawn(spec: GroupSpec, store: Arc<dyn Store>, memory: MemoryBudget) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        tokio::spawn(task::run(spec, store, memory.clone(), shared.clone(), inbox));
        Self { commands, shared, memory }
    }

    /// Is everything set in this dataset such that groups of it can be written? To be asked at start.
    pub fn check(dataset: &DatasetConfig) -> Result<(), FormatError> {
        crate::format::GroupEncoder::new(GroupKind::Data, dataset).map(drop)
    }

    /// Appends a batch, after all earlier ones. Answered when it is encoded and what had to be written is written: so
    /// a slow store holds back the byte credit of its own partitions and of nothing else. The queue is bounded by
    /// that credit.
    pub fn append(&self, batch: StageBatch) -> oneshot::Receiver<Result<Appended, AppendError>> {
        self.queued(batch.payload.len() + batch.header.bytes.len());
        self.send(|reply| Command::Append(Box::new(batch), reply))
    }

    /// Appends a refused batch to a quarantine group.
    pub fn append_quarantined(&self, batch: QuarantinedBatch) -> oneshot::Receiver<Result<Appended, AppendError>> {
        self.queued(batch.payload.len() + batch.header.len());
        self.send(|reply| Command::Quarantine(Box::new(batch), reply))
    }

    /// Closes the group's files after everything appended before. Exactly once: a second call is answered poisoned.
    pub fn close(&self) -> oneshot::Receiver<Result<ClosedGroup, Poisoned>> {
        self.send(Command::Close)
    }

    /// Gives the group up and deletes its staged files, as far as that works. Never after a commit named them.
    pub fn abandon(self) {
        self.shared.abandoned.store(true, Ordering::Release);
        // A task that has ended has nothing left to delete.
        let _ = self.commands.send(Command::Abandon);
    }

    /// Memory this group holds, in bytes.
    pub fn buffered_bytes(&self) -> u64 {
        self.shared.queued_bytes.load(Ordering::Relaxed) + self.shared.held_bytes.load(Ordering::Relaxed)
    }

    /// Bytes in its files and encoded for them so far: what a roll by size looks at. Above
    /// [`GroupHandle::written_bytes`] by what is still in memory.
    pub fn file_bytes(&self) -> u64 {
        self.written_bytes() + self.shared.held_bytes.load(Ordering::Relaxed)
    }

    /// Bytes written to the store; 0 while no file is open.
    pub fn written_bytes(&self) -> u64 {
        self.shared.file_bytes.load(Ordering::Relaxed)
    }

    fn queued(&self, bytes: usize) {
        self.shared.queued_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.memory.add(bytes as u64);
    }

    fn send<T, E: From<Poisoned>>(
        &self,
        command: impl FnOnce(Reply<T, E>) -> Command,
    ) -> oneshot::Receiver<Result<T, E>> {
        let (sender, receiver) = oneshot::channel();
        // A command that cannot be sent is dropped here, and its reply answers by that.
        let _ = self.commands.send(command(Reply(Some(sender))));
        receiver
    }
}

impl Drop for GroupHandle {
    fn drop(&mut self) {
        self.shared.given_up.store(true, Ordering::Release);
    }
}

impl From<Poisoned> for AppendError {
    fn from(Poisoned(reason): Poisoned) -> Self {
        Self::Poisoned(reason)
    }
}

/// Answers even when dropped: then the task has ended.
struct Reply<T, E: From<Poisoned>>(Option<oneshot::Sender<Result<T, E>>>);

impl<T, E: From<Poisoned>> Reply<T, E> {
    fn answer(mut self, result: Result<T, E>) {
        if let Some(sender) = self.0.take() {
            // Nobody waits for it any more.
            let _ = sender.send(result);
        }
    }
}

impl<T, E: From<Poisoned>> Drop for Reply<T, E> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(Err(Poisoned("its task has ended".into()).into()));
        }
    }
}

#[cfg(test)]
mod tests;
