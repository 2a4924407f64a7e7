//! Numbers of a running agent, shared with the admin endpoint: every one is written by its one owner and read by
//! metrics and `/status`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use proto::ids::Origin;
use proto::intervals::IntervalSet;
use serde::Serialize;

/// One number.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Replaces.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Sends by answer.
#[derive(Debug, Default)]
pub struct Sends {
    /// Stored.
    pub durable: Number,
    /// Busy.
    pub busy: Number,
    /// Elsewhere.
    pub retry: Number,
    /// Called wrong: it goes elsewhere, or becomes a void.
    pub wrong: Number,
    /// Newer format than the aggregator reads.
    pub unsupported: Number,
    /// No answer.
    pub failed: Number,
}

/// A batch that a collector refused for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantinedBatch {
    /// Its dataset; empty for one without data.
    pub dataset: String,
    /// Its origin.
    pub origin: String,
    /// Its number.
    pub seq: u64,
    /// Why.
    pub reason: String,
}

/// Quarantined batches that `/status` shows.
const QUARANTINED_SHOWN: usize = 16;

/// Batches that one aggregator holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredAt {
    /// The aggregator.
    pub node: String,
    /// Their origin.
    pub origin: String,
    /// How many.
    pub batches: u64,
    /// Their seqs, ends exclusive; the first 200 spans.
    pub seqs: Vec<[u64; 2]>,
}

/// All numbers, and what is wrong.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Events read.
    pub read_events: Number,
    /// Events cut as data.
    pub published_events: Number,
    /// Events cut as dead letters.
    pub dead_lettered_events: Number,
    /// Events filtered out.
    pub filtered_events: Number,
    /// Raw bytes read.
    pub read_bytes: Number,
    /// Payload bytes cut.
    pub cut_bytes: Number,
    /// Batches cut.
    pub cut_batches: Number,
    /// Batches without data: open, mark, void, close.
    pub other_batches: Number,
    /// Batches that are not acked.
    pub unacked_batches: Number,
    /// Batches that no aggregator has stored.
    pub undelivered_batches: Number,
    /// Bytes in flight.
    pub in_flight_bytes: Number,
    /// Bytes of the outbox on disk.
    pub outbox_bytes: Number,
    /// Bytes it may take.
    pub outbox_capacity_bytes: Number,
    /// Durable batches let go at 80 % before they were committed.
    pub let_go_batches: Number,
    /// Batches that became voids.
    pub voided_batches: Number,
    /// Bytes under `rejected/`.
    pub rejected_bytes: Number,
    /// Marks appended.
    pub marks: Number,
    /// T of the last mark, milliseconds since the epoch; 0: none of this run.
    pub last_mark_unix_ms: Number,
    /// 1: this state directory was found to be restored or copied, and no mark counts.
    pub restored_or_copied: Number,
    /// Bytes in files that were not read yet.
    pub unread_bytes: Number,
    /// Bytes of deleted files that are held open.
    pub held_bytes: Number,
    /// Bytes destroyed before they could be read.
    pub destroyed_bytes: Number,
    /// Files being tailed.
    pub files: Number,
    /// How long the oldest held file with unread bytes has been gone.
    pub oldest_held_seconds: Number,
    /// Until `hold_deleted.age` lets the oldest of them go; `u64::MAX` while there is none.
    pub seconds_to_loss: Number,
    /// Sends by answer.
    pub sends: Sends,
    /// Ejections of aggregators.
    pub ejections: Number,
    /// Batches of this agent that collectors refused for good, as far as it was told.
    pub quarantined_batches: Number,
    quarantined: Mutex<VecDeque<QuarantinedBatch>>,
    stored_at: Mutex<Vec<StoredAt>>,
    words: Mutex<BTreeMap<&'static str, String>>,
    problems: Mutex<Vec<String>>,
}

impl Gauges {
    /// Says (or takes back) one thing about the agent, such as its origin or a problem.
    pub fn say(&self, what: &'static str, text: Option<String>) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => drop(words.insert(what, text)),
            None => drop(words.remove(what)),
        }
    }

    /// What was said.
    pub fn words(&self) -> BTreeMap<&'static str, String> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One more batch was refused for good; the newest 16 are kept.
    pub fn quarantine(&self, batch: QuarantinedBatch) {
        let mut shown = self.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.len() >= QUARANTINED_SHOWN {
            shown.pop_front();
        }
        shown.push_back(batch);
    }

    /// The newest of those, oldest first.
    pub fn quarantined(&self) -> Vec<QuarantinedBatch> {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Which aggregator holds what, as of now.
    pub fn set_stored_at(&self, stored: Vec<(Arc<str>, Origin, IntervalSet)>) {
        let entry = |(node, origin, seqs): (Arc<str>, Origin, IntervalSet)| StoredAt {
            node: node.to_string(),
            origin: origin.to_string(),
            batches: seqs.count(),
            seqs: seqs.iter().take(200).map(|(from, to)| [from, to]).collect(),
        };
        let stored = stored.into_iter().map(entry).collect();
        *self.stored_at.lock().unwrap_or_else(PoisonError::into_inner) = stored;
    }

    /// Which aggregator holds what, as of the last seconds.
    pub fn stored_at(&self) -> Vec<StoredAt> {
        self.stored_at.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What keeps files from being read, one text each.
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces them.
    pub fn set_problems(&self, problems: Vec<String>) {
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}
