//! What goes into the coordinator and what comes out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use proto::header::Header;
use proto::ids::{AgentName, BatchId};
use proto::wire;
use tokio::sync::OwnedSemaphorePermit;

use super::in_flight::Credit;
use crate::chores::{Chore, Done};
use crate::commit::{Outcome, Step, Stop};
use crate::compact::{CompactError, Plan};
use crate::config::dataset::DatasetConfig;
use crate::housekeeping::seen::{Seen, Shown};
use crate::ledger::{GroupKey, StreamId};
use crate::log::view::PartitionKey;
use crate::roll::Reason;

/// The time of an event.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For durations.
    pub instant: Instant,
    /// Wall clock, milliseconds since the epoch: for records and names only.
    pub unix_ms: i64,
}

/// A batch as it was delivered and checked.
#[derive(Debug)]
pub struct Delivery {
    /// Its identity.
    pub id: BatchId,
    /// Exact header bytes.
    pub header: Bytes,
    /// Exact payload.
    pub payload: Bytes,
    /// The decoded header, or why the batch goes into quarantine.
    pub content: Result<Box<Header>, Arc<str>>,
    /// Its bytes in the pools of what is received and not staged; given back when dropped.
    pub hold: Vec<OwnedSemaphorePermit>,
}

/// How an append ended.
#[derive(Debug)]
pub enum AppendAnswer {
    /// It is in the group; what became of its events.
    Appended(Vec<wire::EventCount>),
    /// Nothing of it is in the group: it goes into quarantine for this reason.
    Refused(String, Box<Delivery>),
    /// The group is given up.
    Poisoned(String),
}

/// What a group weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepGroup {
    /// Which.
    pub number: u64,
    /// Bytes in files and buffers.
    pub bytes: u64,
    /// Bytes in buffers.
    pub buffered: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A batch came.
    Arrived {
        /// On this stream.
        stream: StreamId,
        /// The batch.
        delivery: Box<Delivery>,
    },
    /// Batches an earlier stream was not answered for.
    Unanswered {
        /// On this stream.
        stream: StreamId,
        /// Which.
        keys: Vec<BatchId>,
    },
    /// An early roll is asked for.
    Roll {
        /// By this stream.
        stream: StreamId,
    },
    /// A stream ended: what waits on it is listed by its next one.
    Gone {
        /// Which.
        stream: StreamId,
    },
    /// An append was answered.
    Appended {
        /// By this group.
        group: u64,
        /// For this batch.
        id: BatchId,
        /// How it ended.
        answer: AppendAnswer,
    },
    /// A close was answered: the files, or why the group is given up.
    Closed {
        /// By this group.
        group: u64,
        /// How it ended.
        result: Result<Vec<wire::PublishedFile>, String>,
    },
    /// The step on the log ended.
    Stepped(Box<Outcome>),
    /// The chore ended.
    Chored(Box<Done>),
    /// A compaction ended.
    Compacted {
        /// Of this partition.
        key: PartitionKey,
        /// How.
        result: Result<wire::Compact, CompactError>,
    },
    /// The inventory was read.
    Inventory(BTreeSet<AgentName>),
    /// The sign of life was renewed, or not.
    Shown {
        /// What is shown now.
        seen: Seen,
        /// How it ended.
        shown: Shown,
    },
    /// The own directory was looked at after the sign of life was renewed.
    StoreClock {
        /// When the sign was asked for.
        asked: Now,
        /// When it changed last by the store's clock, milliseconds since the epoch.
        unix_ms: i64,
    },
    /// What groups weigh.
    Measured {
        /// Each.
        groups: Vec<StepGroup>,
        /// All together hold more memory than they may.
        over: bool,
        /// What may be received and not staged now.
        credit: Credit,
    },
    /// Time went on.
    Tick,
    /// The process stops: take nothing more, commit everything.
    Drain,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Answer on a stream.
    Answer {
        /// Which.
        stream: StreamId,
        /// What.
        answer: wire::Answer,
    },
    /// Make a group.
    Open {
        /// Its number, used once.
        group: u64,
        /// What it holds.
        key: GroupKey,
        /// The declaration; none for quarantine.
        dataset: Option<Arc<DatasetConfig>>,
        /// UTC day, days since the epoch.
        day: i32,
    },
    /// Append to a group.
    Append {
        /// Which.
        group: u64,
        /// The batch.
        delivery: Box<Delivery>,
        /// Why, for quarantine.
        refused: Option<Arc<str>>,
    },
    /// Close a group, once.
    Close {
        /// Which.
        group: u64,
        /// Why it rolled.
        reason: Reason,
    },
    /// Delete the staged files of a group that no record names or will name.
    Abandon {
        /// Which.
        group: u64,
    },
    /// Forget a group: its files are committed, or it is poisoned and stays as it is.
    Forget {
        /// Which.
        group: u64,
    },
    /// A step on the log.
    Step(Step),
    /// A chore; one at a time.
    Chore(Box<Chore>),
    /// Join files; one at a time.
    Compact {
        /// Which.
        plan: Box<Plan>,
        /// The first of many numbers of groups that are used for nothing else.
        numbers: u64,
    },
    /// Delete what a compaction staged that is not committed and never will be.
    AbandonCompaction(Box<wire::Compact>),
    /// Show a sign of life.
    Show {
        /// What is shown now.
        seen: Seen,
        /// Records below this were read.
        read: u64,
    },
    /// Look when the own directory changed last, by the store's clock.
    ReadClock {
        /// When the sign of life was asked for.
        asked: Now,
    },
    /// A record of this run is in the log.
    Committed {
        /// Its number.
        n: u64,
        /// Its files.
        files: Vec<wire::PublishedFile>,
        /// Since the draft was begun.
        since: std::time::Duration,
    },
    /// Tell all streams the status now.
    Announce,
    /// Everything is committed; the process may end.
    Drained,
    /// This run ends.
    Stop(Stop),
}
