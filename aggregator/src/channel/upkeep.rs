//! What the owner does on each tick: answers go to the ledger in one batch, finished segments are unlinked, a pinned one
//! is copied forward.
//!
//! Invariant: a segment is unlinked only when every batch of it is answered, or durably stored in another segment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::record_log::survey::segment_file_name;
use common::record_log::{LogError, RecordAt};

use super::owner::{Owner, unix_ms};
use super::unreadable::Fault;
use super::{ChannelEvent, Location, recover};

/// Bytes of an active segment whose batches are all answered, from which it is given up although batches still come.
const IDLE_SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// How often rows of old origins are looked for.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long nothing was appended to or answered in an active segment before it is given up when all is answered.
const IDLE_AFTER: Duration = Duration::from_secs(1);

impl Owner {
    /// The regular work.
    pub(super) fn tick(&mut self) {
        if let Some((_, due)) = &self.failed {
            let due = Instant::now() >= *due;
            // Answers still come in, and the ledger has a reserve of its own.
            self.write_ledger();
            if due {
                self.reopen();
            }
            return;
        }
        self.look_at_disk();
        self.give_up_again();
        self.write_ledger();
        if Instant::now() >= self.next_sweep {
            self.next_sweep = Instant::now() + SWEEP_EVERY;
            self.sweep_ledger();
        }
        if let Err(error) = self.drop_finished() {
            return self.fail(&error);
        }
        let quiet_since = self.now().checked_sub(self.options.pinned_after.as_millis() as u64);
        let Some(opened) = &self.opened else { return };
        let crowded = opened.log.total_bytes() > self.options.max_bytes / 2;
        let pinned = match quiet_since {
            _ if crowded => opened.state.pinned(None),
            Some(since) => opened.state.pinned(Some(since)),
            None => None,
        };
        if let Some(segment) = pinned {
            self.copy_forward(segment);
        }
    }

    /// Rows of origins that are long gone. A start drops them too, but a process may run for a year.
    fn sweep_ledger(&mut self) {
        let Some(opened) = &self.opened else { return };
        let oldest = unix_ms().saturating_sub(recover::ORIGIN_AGE_MS);
        let state = &opened.state;
        match opened.ledger.sweep_old(|key| state.held(key).is_some_and(|held| !held.is_empty()), oldest) {
            Ok(rows) => tracing::debug!(rows, "rows of old origins were dropped from the ledger"),
            // The next write of the ledger meets the same error, and deals with it.
            Err(error) => tracing::warn!(%error, "rows of old origins stay in the ledger"),
        }
    }

    /// One batch of rows, made durable. On failure the reserve is given up and the ledger opened anew, whole.
    pub(super) fn write_ledger(&mut self) {
        let Some(opened) = &mut self.opened else { return };
        let changes = opened.state.take_changes();
        if changes.is_empty() {
            return;
        }
        let Err(error) = opened.ledger.apply(changes) else { return };
        let freed = self.reserve.release();
        self.stats.ledger_resets.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, reserve_freed = freed, "the ledger could not be written; it is opened again");
        opened.state.dirty_all();
        if let Err(error) = opened.ledger.reopen() {
            tracing::error!(%error, "the ledger stays unwritten: after a restart batches are delivered again");
            return;
        }
        let changes = opened.state.take_changes();
        if let Err(error) = opened.ledger.apply(changes) {
            opened.state.dirty_all();
            tracing::error!(%error, "the ledger stays unwritten: after a restart batches are delivered again");
        }
    }

    /// Unlinks segments without unanswered batches; an idle active one is sealed first.
    fn drop_finished(&mut self) -> Result<(), LogError> {
        let now = self.now();
        let Some(opened) = &mut self.opened else { return Ok(()) };
        if let Some((id, bytes)) = opened.log.active()
            && let Some(segment) = opened.state.segment(id)
            && segment.live() == 0
            && (bytes >= IDLE_SEGMENT_BYTES || segment.touched_ms + (IDLE_AFTER.as_millis() as u64) < now)
        {
            self.seal(id)?;
        }
        self.unlink_finished()
    }

    /// Unlinks segments that are not written and have nothing unanswered.
    pub(super) fn unlink_finished(&mut self) -> Result<(), LogError> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        let finished = opened.state.finished();
        for &segment in &finished {
            opened.log.remove(segment)?;
            opened.state.remove(segment);
            self.unreadable.forget_segment(segment);
        }
        for segment in finished {
            self.tell(ChannelEvent::Removed { segment });
        }
        Ok(())
    }

    /// Stores the unanswered batches of a sealed segment again, in the one that is written, so that its file can go.
    pub(super) fn copy_forward(&mut self, segment: u64) {
        match self.try_copy_forward(segment) {
            Ok(copied) => {
                self.stats.copied_batches.fetch_add(copied, Ordering::Relaxed);
                tracing::info!(segment, batches = copied, "batches were copied out of a pinned segment");
            }
            Err(error) => self.fail(&error),
        }
    }

    pub(super) fn try_copy_forward(&mut self, segment: u64) -> Result<u64, LogError> {
        let places = self.opened.as_ref().map(|opened| recover::unanswered(&opened.state, segment)).unwrap_or_default();
        let mut copied = 0;
        for (from, offset) in places {
            self.roll_if_full()?;
            copied += u64::from(self.copy_one(from, offset)?);
        }
        self.sync();
        self.publish();
        Ok(copied)
    }

    /// What is left in a doubtful segment because it cannot be read now must not be said to be held.
    pub(super) fn none_left(&self, segment: u64) -> Result<(), LogError> {
        let left = self.opened.as_ref().and_then(|opened| opened.state.segment(segment)).map_or(0, |left| left.live());
        if left == 0 {
            return Ok(());
        }
        let path = self.options.data_dir.join("seg").join(segment_file_name(segment));
        let reason = io::Error::other(format!("{left} batches that may not be on the disk cannot be read now"));
        Err(LogError::Storage { action: "writing anew the batches of", path, reason: Arc::new(reason) })
    }

    fn copy_one(&mut self, from: Location, offset: u64) -> Result<bool, LogError> {
        let now = self.now();
        let Some(opened) = &mut self.opened else { return Ok(false) };
        let record = match opened.log.reader().read(RecordAt { segment: from.segment, offset }) {
            Ok(record) => record,
            Err(error) => {
                self.unreadable.read_well(opened.log.reader().read_well());
                let gone = match Fault::from(&error) {
                    Fault::Damaged => true,
                    Fault::Medium => self.unreadable.failed(from, Instant::now()),
                    Fault::Passing => false,
                };
                if !gone {
                    tracing::warn!(%error, "a pinned batch cannot be read now; it stays where it is");
                    return Ok(false);
                }
                let id = opened.state.segment(from.segment).map(|found| found.index().id(from.ordinal));
                // Where it cannot be given up now, the next attempt does it.
                if let Some(id) = id {
                    self.give_up(from, &id);
                }
                return Ok(false);
            }
        };
        let at = opened.log.append_parts(&record.meta, std::slice::from_ref(&record.body))?;
        let Ok(entry) = recover::entry_of(&record.meta, record.body.len() as u32, at.offset) else {
            unreachable!("the record was indexed from the same bytes");
        };
        let created = opened.state.segment(from.segment).map_or(0, |found| found.index().created_unix_ms);
        opened.state.copy(from, at.segment, &entry, created, now);
        self.stored.push((at.segment, entry, Some(from)));
        Ok(true)
    }
}
