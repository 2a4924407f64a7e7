//! The durable queue: payloads in segment files of the record log, and a small ledger of what has been answered.
//!
//! One thread owns it ([`owner`]); everybody else has a [`ChannelHandle`]. It takes what is queued, appends all of it,
//! syncs once, makes it visible to the forward side and only then answers (I1). Capacity is counted in bytes (I7), and
//! after the first storage error nothing is acknowledged until the whole channel was opened again (I6).

pub mod bitmap;
pub mod describe;
mod disk;
pub mod export;
pub mod finding;
mod giving_up;
mod held;
pub mod index;
mod ledger;
mod ledger_copy;
pub mod lock;
mod meta;
mod owner;
mod recover;
mod refusals;
pub mod repair;
mod rows;
mod salvage;
mod segment_view;
mod state;
pub mod survey;
#[cfg(test)]
mod tests;
pub mod unreadable;
mod upkeep;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::record_log::{LogError, RecordReader};
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use tokio::sync::{OwnedSemaphorePermit, mpsc as async_mpsc, oneshot};

use bitmap::Bitmap;
pub use disk::free_bytes;
use index::{NewEntry, SegmentIndex};
pub use meta::{MetaError, decode_meta};

/// Most batches in one segment: keeps its bitmap far below the ledger's largest value.
pub const MAX_SEGMENT_BATCHES: u32 = 262_144;

/// Where and how much.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// The data directory; segments lie in `seg/`, the ledger in `ledger/`, the reserve in `reserve`.
    pub data_dir: PathBuf,
    /// Capacity in bytes of segment files.
    pub max_bytes: u64,
    /// Size from which a segment is sealed.
    pub segment_bytes: u64,
    /// Bytes of the file system that the channel leaves free.
    pub keep_free_bytes: u64,
    /// How often answers go to the ledger, finished segments are unlinked and pinned ones copied.
    pub tick: Duration,
    /// How long a pinned segment must have been without an answer before it is copied forward.
    pub pinned_after: Duration,
    /// How long opening must have failed to read a segment before what can be read of it takes its place.
    pub unreadable_for: Duration,
}

/// Where a batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// Id of the segment.
    pub segment: u64,
    /// Number of the batch in it.
    pub ordinal: u32,
}

/// Why the channel cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The segments.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The ledger, even after it was moved aside.
    #[error(transparent)]
    Ledger(#[from] ledger::LedgerError),
    /// Another process has it.
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    /// The data directory.
    #[error("the data directory {path} cannot be used: {source}")]
    Dir {
        /// It.
        path: PathBuf,
        /// The fact.
        source: std::io::Error,
    },
    /// The disk does not give all of a segment back, and may yet.
    #[error(
        "the disk does not give all of {path} back: it is read again every 5 s, and when that has failed for a minute \
         what can be read takes its place"
    )]
    Unreadable {
        /// Its file.
        path: PathBuf,
    },
    /// A segment of a newer release.
    #[error("segment {segment:016x}: {source}")]
    Newer {
        /// Its id.
        segment: u64,
        /// The fact.
        source: index::FooterError,
    },
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// Stored with fsync, or held or committed already.
    Durable,
    /// No room; ask again later.
    Full,
    /// This agent holds more than its share of a channel that is more than half full.
    Share,
    /// Nothing is stored: the storage failed, or the process stops.
    Failed(String),
}

/// The answer to an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendAnswer {
    /// What became of it.
    pub appended: Appended,
    /// Committed intervals of its origin.
    pub committed: wire::IntervalSet,
    /// Batches of its origin that were refused for good.
    pub quarantined: Vec<wire::QuarantinedBatch>,
}

/// What is known of an origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressAnswer {
    /// What the log covers, as collectors have said.
    pub committed: wire::IntervalSet,
    /// What lies here, not answered.
    pub held: wire::IntervalSet,
    /// Batches of it that were refused for good.
    pub quarantined: Vec<wire::QuarantinedBatch>,
}

/// A batch to be stored. Dropping the reply means that nobody waits; the batch is stored all the same.
#[derive(Debug)]
pub struct AppendJob {
    /// Who sends it, as the transport says.
    pub agent: AgentName,
    /// Its checked header.
    pub header: Header,
    /// Its checked payload.
    pub payload: Bytes,
    /// The bytes it holds of the ingest pool until it is answered.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Who waits.
    pub reply: oneshot::Sender<AppendAnswer>,
}

/// A batch that a collector answered for good.
#[derive(Debug, Clone)]
pub struct Released {
    /// Where it lies.
    pub at: Location,
    /// Its identity.
    pub id: BatchId,
    /// Committed intervals of its origin, as the log has them.
    pub intervals: IntervalSet,
    /// It was refused for good, and lies in quarantine.
    pub refused: Option<Refused>,
}

/// Why a batch was refused for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The batch's dataset; empty for one without data.
    pub dataset: String,
    /// What the collector said.
    pub reason: String,
}

/// What the owner is asked for.
#[derive(Debug)]
enum Command {
    Append(Box<AppendJob>),
    Progress { agent: AgentName, origin: Origin, reply: oneshot::Sender<ProgressAnswer> },
    Release(Vec<Released>),
    Broken(Vec<(BatchId, u32)>),
    GiveUp { at: Location, id: BatchId },
    Describe { reply: oneshot::Sender<describe::Description> },
    Stop { reply: oneshot::Sender<()> },
}

/// A batch, and its old place if it is a copy.
pub type StoredEntry = (NewEntry, Option<Location>);

/// What the owner tells the forward side, in the order it happened.
#[derive(Debug)]
pub enum ChannelEvent {
    /// Everything from the start: the channel was (re)opened.
    Reset(Box<Snapshot>),
    /// Batches were stored in this order behind those the segment has.
    Appended {
        /// The segment.
        segment: u64,
        /// The batches; one that was copied out of a pinned segment with its old place, which is void from now on.
        entries: Vec<StoredEntry>,
    },
    /// The segment is sealed; this is its index for good.
    Sealed {
        /// The segment.
        segment: u64,
        /// What lies in it.
        index: Arc<SegmentIndex>,
    },
    /// The segment is gone.
    Removed {
        /// The segment.
        segment: u64,
    },
}

/// Id, index, and the bits of answered batches of a segment.
pub type OpenedSegment = (u64, Arc<SegmentIndex>, Bitmap);

/// The channel as it was opened.
#[derive(Debug)]
pub struct Snapshot {
    /// Segments in order, each with the bits of its answered batches.
    pub segments: Vec<OpenedSegment>,
    /// Reads payloads back.
    pub reader: RecordReader,
    /// Broken sends of every batch that has any.
    pub broken: HashMap<BatchId, u32>,
}

/// Numbers that anybody may look at; written by the owner.
#[derive(Debug, Default)]
pub struct ChannelStats {
    /// Batches not answered.
    pub held_batches: AtomicU64,
    /// Their header and payload bytes.
    pub held_bytes: AtomicU64,
    /// Bytes of segment files.
    pub segment_bytes: AtomicU64,
    /// Milliseconds since the epoch at which the oldest segment with an unanswered batch was begun; 0: none.
    pub oldest_unix_ms: AtomicU64,
    /// Batches stored since the start.
    pub stored_batches: AtomicU64,
    /// Batches answered from what is held or committed, since the start.
    pub duplicate_batches: AtomicU64,
    /// Batches released by a collector's answer, since the start.
    pub released_batches: AtomicU64,
    /// Reasons of refused batches that had to go before their agents may have asked, since the channel was opened.
    pub dropped_reasons: AtomicU64,
    /// Damaged records or footers found, since the start.
    pub corruptions: AtomicU64,
    /// Batches whose payload could not be read back, since the start.
    pub given_up_batches: AtomicU64,
    /// Times the ledger had to be opened anew or started empty.
    pub ledger_resets: AtomicU64,
    /// Batches copied out of pinned segments, since the start.
    pub copied_batches: AtomicU64,
    /// A storage error is latched.
    pub failed: AtomicBool,
    /// It was opened since the start: what is counted here says something.
    pub opened: AtomicBool,
}

/// Called by the owner with the seconds of each fsync.
pub type SyncObserver = Arc<dyn Fn(f64) + Send + Sync>;

/// A way to the owner. Cloned freely.
#[derive(Debug, Clone)]
pub struct ChannelHandle {
    commands: mpsc::Sender<Command>,
    stats: Arc<ChannelStats>,
}

impl ChannelHandle {
    /// Opens the channel and starts its owner. The receiver gets a [`ChannelEvent::Reset`] first,
    /// later where the disk does not give all segments back yet.
    pub fn open(
        options: ChannelOptions,
        on_sync: SyncObserver,
    ) -> Result<(Self, async_mpsc::UnboundedReceiver<ChannelEvent>), ChannelError> {
        let (commands, queue) = mpsc::channel();
        // Unbounded, but what lies in it is index entries of batches that are held anyway: 32 bytes and a name each.
        let (events, receiver) = async_mpsc::unbounded_channel();
        let stats = Arc::new(ChannelStats::default());
        let owner = owner::Owner::open(options, queue, events, stats.clone(), on_sync)?;
        std::thread::Builder::new()
            .name("channel".into())
            .spawn(move || owner.run())
            .map_err(|source| ChannelError::Dir { path: PathBuf::from("channel thread"), source })?;
        Ok((Self { commands, stats }, receiver))
    }

    /// Stores a batch. The answer comes through the job's reply, after the fsync.
    pub fn append(&self, job: AppendJob) {
        if let Err(mpsc::SendError(Command::Append(job))) = self.commands.send(Command::Append(Box::new(job))) {
            let appended = Appended::Failed("the channel has stopped".into());
            // Nobody waits any more: nothing to tell.
            let answer = AppendAnswer { appended, committed: wire::IntervalSet::default(), quarantined: Vec::new() };
            let _ = job.reply.send(answer);
        }
    }

    /// What is known of an origin; none when the owner has stopped.
    pub async fn progress(&self, agent: AgentName, origin: Origin) -> Option<ProgressAnswer> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Progress { agent, origin, reply }).ok()?;
        answer.await.ok()
    }

    /// What is held, by segment, agent and dataset; none when the owner has stopped.
    pub async fn describe(&self) -> Option<describe::Description> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Describe { reply }).ok()?;
        answer.await.ok()
    }

    /// Collectors have answered these for good.
    pub fn release(&self, released: Vec<Released>) {
        self.send(Command::Release(released));
    }

    /// Streams broke while these were sent; each with its new count.
    pub fn set_broken(&self, counts: Vec<(BatchId, u32)>) {
        self.send(Command::Broken(counts));
    }

    /// The payload at this place is damaged, or cannot be read: the batch is let go, uncommitted.
    pub fn give_up(&self, at: Location, id: BatchId) {
        self.send(Command::GiveUp { at, id });
    }

    /// Writes the ledger and ends the owner.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        self.send(Command::Stop { reply });
        // An owner that is gone has nothing left to write.
        let _ = done.await;
    }

    /// The owner's numbers.
    pub fn stats(&self) -> &ChannelStats {
        &self.stats
    }

    /// An owner that has stopped takes nothing any more; what is lost then costs redelivery only.
    fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::debug!("the channel has stopped, a late message to it is dropped");
        }
    }
}

impl ChannelStats {
    /// Is everything delivered?
    pub fn is_empty(&self) -> bool {
        self.opened.load(Ordering::Relaxed) && self.held_batches.load(Ordering::Relaxed) == 0
    }
}
