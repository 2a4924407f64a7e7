//! The outbox: an agent's durable store of exact batches that need keeping, with the source positions after each chunk.
//!
//! Invariants: a chunk's batches, its source positions and its audit counts are ONE record, so a crash keeps all or
//! none of them; a batch is handed out for sending only after [`Outbox::commit`] made it durable (I2), and what is sent
//! again are the stored bytes; only a batch that was answered *wrong*, or whose stored copy is damaged, is replaced, by
//! a void under the same seq; after a storage error nothing is handed out any more (I6).
//!
//! Sealed segments end with the whole state, so old segments can go while positions survive.

pub mod entry;
mod error;
pub mod index;
pub mod look;
pub mod read;
pub mod rejected;
pub mod room;
pub mod salvage;
pub mod state_dir;
pub mod view;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use bytes::Bytes;
use common::record_log::{self, LoadedSegment, RecordLog};
use prost::Message;
use proto::header::{Header, Kind as HeaderKind};
use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;

pub use self::error::OutboxError;

use self::entry::{Entry, EntryBatch, FORMAT, Footer, Position};
use self::index::{Ended, Index, Place};
use crate::run::audit;

/// Where, and how large segments are.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the segments.
    pub dir: PathBuf,
    /// Where bytes go that became a void.
    pub rejected: PathBuf,
    /// Bytes after which a new segment is begun.
    pub segment_bytes: u64,
}

/// A durable batch that may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its run.
    pub origin: Origin,
    /// Its number there.
    pub seq: u64,
    /// Where it lies.
    pub place: Place,
}

/// What one chunk adds.
#[derive(Debug, Default)]
pub struct ChunkAppend {
    /// Data headers and payloads, in seq order.
    pub batches: Vec<(wire::Data, Bytes)>,
    /// Source positions after the chunk.
    pub positions: Vec<Position>,
    /// Counts of the chunk.
    pub audit: Vec<wire::AuditCount>,
    /// Bytes destroyed since the last append.
    pub destroyed: Vec<wire::Destroyed>,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Bytes of writes that were never completed.
    pub torn_bytes: u64,
    /// Damage found; each is an alarm.
    pub damage: Vec<String>,
    /// Seqs whose stored copy is gone; they were replaced by voids.
    pub voided: Vec<(Origin, u64)>,
}

/// The store. One owner.
#[derive(Debug)]
pub struct Outbox {
    log: RecordLog,
    index: Index,
    options: Options,
    /// Rows to write with the next record.
    dirty: BTreeSet<Origin>,
    /// Appended since the last commit.
    waiting: Vec<Stored>,
    /// Size of the last snapshot.
    snapshot_bytes: u64,
}

/// Largest record: a chunk with one event of the largest size, or a snapshot.
const MAX_RECORD_BYTES: u64 = 256 * 1024 * 1024;

impl Outbox {
    /// Opens or creates it and rebuilds its state. Unsealed segments are sealed; holes left by damage become voids.
    pub fn open(options: Options) -> Result<(Self, Recovered), OutboxError> {
        let log_options = record_log::Options {
            dir: options.dir.clone(),
            segment_bytes: options.segment_bytes,
            max_record_bytes: MAX_RECORD_BYTES,
        };
        // Before the log cuts or seals anything: after that a crash, or a full disk, would leave nothing to keep.
        for damage in record_log::survey::damage(&options.dir)?.iter().filter(|damage| !damage.maybe_unsynced) {
            keep_segment(&options, damage.segment)?;
        }
        let mut segments = Vec::new();
        let (log, recovery) = RecordLog::open(log_options, |segment| segments.push(segment))?;
        let (dirty, waiting) = (BTreeSet::new(), Vec::new());
        let mut outbox = Self { log, index: Index::default(), options, dirty, waiting, snapshot_bytes: 0 };
        let mut recovered = Recovered { torn_bytes: recovery.torn_bytes, ..Default::default() };
        let mut unsealed = Vec::new();
        for segment in segments {
            unsealed.extend(outbox.load(segment, &recovery)?);
        }
        let mut claimed = HashMap::new();
        for damage in &recovery.corrupt {
            let entries = salvage::entries(&outbox.options.dir, damage.segment, damage.offset);
            // Counts of a damaged mark are still among the running ones: it was not applied.
            claimed
                .extend(salvage::kinds(&entries).into_iter().filter(|(_, kind)| matches!(kind, HeaderKind::Data(_))));
            recovered.damage.push(format!("segment {:016x} at {}: {}", damage.segment, damage.offset, damage.detail));
        }
        for (origin, seq) in outbox.index.settle() {
            let (reason, lost) = (wire::VoidReason::Damaged, claimed.get(&(origin, seq)));
            outbox.put_void(origin, seq, reason, "its record in the outbox is damaged", lost)?;
            recovered.voided.push((origin, seq));
        }
        // Only when the voids are durable does a footer say that a damaged segment is well.
        outbox.log.sync()?;
        for (id, footer) in unsealed {
            outbox.log.seal_recovered(id, &footer)?;
        }
        outbox.commit()?;
        outbox.waiting.clear();
        outbox.tidy()?;
        outbox.log.wait_for_space();
        Ok((outbox, recovered))
    }

    /// Takes a segment over; returns the footer of one that has none yet.
    fn load(
        &mut self,
        segment: LoadedSegment,
        recovery: &record_log::Recovery,
    ) -> Result<Option<(u64, Vec<u8>)>, OutboxError> {
        match segment {
            LoadedSegment::Sealed { id, footer, .. } => {
                let footer = Footer::decode(footer).map_err(|e| OutboxError::Undecodable(e.to_string()))?;
                self.index.apply_footer(id, &footer).map(|()| None)
            }
            LoadedSegment::Unsealed { id, records, .. } => {
                // What stands behind bytes that were perhaps never synced was never sent and is not counted as stored:
                // else a later position would stand for a lost batch.
                let unsynced = recovery.corrupt.iter().filter(|c| c.segment == id && c.maybe_unsynced);
                let end = unsynced.map(|c| c.offset).min().unwrap_or(u64::MAX);
                let damage = recovery.corrupt.iter().filter(|c| c.segment == id && !c.maybe_unsynced);
                let first = damage.map(|c| c.offset).min();
                let mut claimed = first.map(|at| salvage::entries(&self.options.dir, id, at)).unwrap_or_default();
                claimed.retain(|(at, _)| records.iter().all(|record| record.at.offset != *at));
                let mut claimed = claimed.into_iter().peekable();
                for record in records.iter().filter(|record| record.at.offset < end) {
                    while let Some((_, entry)) = claimed.next_if(|(at, _)| *at < record.at.offset) {
                        // In its place: a mark behind it has taken its counts.
                        self.index.audit.add(&entry.audit, &entry.destroyed);
                    }
                    let entry =
                        Entry::decode(record.meta.clone()).map_err(|e| OutboxError::Undecodable(e.to_string()))?;
                    self.index.apply(record.at, &entry)?;
                }
                Ok(Some((id, self.index.footer(id).encode_to_vec())))
            }
        }
    }

    /// What it holds.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// A handle that reads stored batches.
    pub fn reader(&self) -> read::BatchReader {
        read::BatchReader::new(self.log.reader())
    }

    /// Everything that is kept, oldest origin first: what a new run sends again.
    pub fn kept(&self) -> Vec<Stored> {
        let rows = self.index.rows().iter();
        rows.flat_map(|row| row.kept.iter().map(|(seq, place)| Stored { origin: row.origin, seq: *seq, place: *place }))
            .collect()
    }

    /// Bytes on disk.
    pub fn total_bytes(&self) -> u64 {
        self.log.total_bytes()
    }

    /// Begins an origin with its open (seq 0).
    pub fn append_open(&mut self, origin: Origin, open: wire::Open) -> Result<(), OutboxError> {
        let header = Header::encode(origin, 0, wire::batch_header::Kind::Open(open))?;
        self.put(Entry { batches: vec![bare(header)], ..Default::default() }, &[])
    }

    /// Appends a chunk to the newest origin: batches, positions and counts in one record.
    pub fn append_chunk(&mut self, origin: Origin, chunk: ChunkAppend) -> Result<(), OutboxError> {
        let first = self.next_seq(origin);
        let mut entry = Entry {
            positions: chunk.positions,
            audit: chunk.audit,
            destroyed: chunk.destroyed,
            batches: Vec::with_capacity(chunk.batches.len()),
            ..Default::default()
        };
        let mut body = Vec::with_capacity(chunk.batches.len());
        for (seq, (data, payload)) in (first..).zip(chunk.batches) {
            let header = Header::encode(origin, seq, wire::batch_header::Kind::Data(data))?;
            entry.batches.push(EntryBatch { header: header.bytes, payload_bytes: payload.len() as u64 });
            body.push(payload);
        }
        self.put(entry, &body)
    }

    /// Appends mark(T) with all counts since the last one (as several marks of the same T if they do not fit one).
    pub fn append_mark(&mut self, origin: Origin, at_unix_ms: i64) -> Result<(), OutboxError> {
        self.append_counts(origin, |part| {
            wire::batch_header::Kind::Mark(wire::Mark {
                at_unix_ms,
                audit: Some(part.audit),
                destroyed: part.destroyed,
            })
        })
    }

    /// Appends the close. `left`: the agent has left for good.
    pub fn append_close(&mut self, origin: Origin, at_unix_ms: i64, left: bool) -> Result<(), OutboxError> {
        // What does not fit the close has to be said before it; such marks claim nothing (T = 0).
        let mut parts = self.index.audit.parts();
        let last = parts.pop().unwrap_or_default();
        let mut kinds: Vec<_> = parts
            .into_iter()
            .map(|part| {
                let (audit, destroyed) = (Some(part.audit), part.destroyed);
                wire::batch_header::Kind::Mark(wire::Mark { at_unix_ms: 0, audit, destroyed })
            })
            .collect();
        kinds.push(wire::batch_header::Kind::Close(wire::Close {
            left,
            at_unix_ms,
            audit: Some(last.audit),
            destroyed: last.destroyed,
        }));
        self.put_kinds(origin, kinds)
    }

    fn append_counts(
        &mut self,
        origin: Origin,
        kind: impl FnMut(crate::run::audit::AuditPart) -> wire::batch_header::Kind,
    ) -> Result<(), OutboxError> {
        let kinds = self.index.audit.parts().into_iter().map(kind).collect();
        self.put_kinds(origin, kinds)
    }

    fn put_kinds(&mut self, origin: Origin, kinds: Vec<wire::batch_header::Kind>) -> Result<(), OutboxError> {
        let first = self.next_seq(origin);
        let headers: Result<Vec<_>, _> =
            (first..).zip(kinds).map(|(seq, kind)| Header::encode(origin, seq, kind).map(bare)).collect();
        self.put(Entry { batches: headers?, audit_taken: true, ..Default::default() }, &[])
    }

    /// Replaces a kept batch by a void. Its bytes must lie under `rejected/` already, or be damaged. `lost`: what it was,
    /// as far as is known; the counts of a mark or close go into the next one. False if the batch is not kept any more.
    pub fn void(
        &mut self,
        origin: Origin,
        seq: u64,
        reason: wire::VoidReason,
        detail: &str,
        lost: Option<&HeaderKind>,
    ) -> Result<bool, OutboxError> {
        if !self.index.row(origin).is_some_and(|row| row.kept.contains_key(&seq)) {
            return Ok(false);
        }
        self.put_void(origin, seq, reason, detail, lost)?;
        Ok(true)
    }

    fn put_void(
        &mut self,
        origin: Origin,
        seq: u64,
        reason: wire::VoidReason,
        detail: &str,
        lost: Option<&HeaderKind>,
    ) -> Result<(), OutboxError> {
        let data = match lost {
            Some(HeaderKind::Data(data)) => Some(&data.wire),
            _ => None,
        };
        let detail: String = detail.chars().take(500).collect();
        let kind = match (seq, data) {
            // Seq 0 is an open whatever happens: one that names nothing and says restored claims nothing.
            (0, _) => wire::batch_header::Kind::Open(wire::Open { restored: true, ..Default::default() }),
            (_, data) => wire::batch_header::Kind::Void(wire::Void {
                reason: reason as i32,
                detail,
                dataset: data.map(|d| d.dataset.clone()).unwrap_or_default(),
                partition: data.and_then(|d| d.partition),
                events: data.map_or(0, |d| d.events),
                raw_bytes: data.map_or(0, |d| d.raw_bytes),
                hours: data.map(audit::hours_of).unwrap_or_default(),
                dead_letters: data.is_some_and(|d| d.dead_letters),
            }),
        };
        let (audit, destroyed) = lost.map(audit::of_lost).unwrap_or_default();
        let header = Header::encode(origin, seq, kind)?;
        self.put(Entry { batches: vec![bare(header)], audit, destroyed, ..Default::default() }, &[])
    }

    fn next_seq(&self, origin: Origin) -> u64 {
        self.index.row(origin).map_or(0, |row| row.next)
    }

    fn put(&mut self, mut entry: Entry, body: &[Bytes]) -> Result<(), OutboxError> {
        self.begin_if_needed()?;
        entry.format = FORMAT;
        entry.newest_unix_ms = self.index.newest_unix_ms;
        entry.rows.extend(std::mem::take(&mut self.dirty).into_iter().filter_map(|o| self.index.row_entry(o)));
        let at = self.log.append_parts(&entry.encode_to_vec(), body)?;
        let placed = self.index.apply(at, &entry)?;
        self.waiting.extend(placed.into_iter().map(|(origin, seq, place)| Stored { origin, seq, place }));
        Ok(())
    }

    /// Begins a segment if none is being written. Only that can find no room: what is appended to one stays in memory
    /// until a commit finds some.
    pub fn begin_if_needed(&mut self) -> Result<(), OutboxError> {
        if self.log.active().is_none() {
            self.begin_segment()?;
        }
        Ok(())
    }

    /// Makes everything appended durable and returns the batches that may be sent now.
    pub fn commit(&mut self) -> Result<Vec<Stored>, OutboxError> {
        self.log.sync()?;
        if self.log.active().is_some_and(|(_, bytes)| bytes >= self.worth_sealing()) {
            match self.rotate() {
                // The next commit tries again.
                Err(error) if error.is_full() => {}
                rotated => rotated?,
            }
        }
        Ok(std::mem::take(&mut self.waiting))
    }

    /// Is everything that was appended durable, and handed out by a commit?
    pub fn is_stored(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Seals the active segment; the next one begins with the whole state.
    fn rotate(&mut self) -> Result<(), OutboxError> {
        let Some((id, _)) = self.log.active() else { return Ok(()) };
        self.log.seal(&self.index.footer(id).encode_to_vec())?;
        self.begin_segment()?;
        self.log.sync()?;
        self.remove_released()
    }

    /// The first record of a segment is the whole state, so that the segments before it are needed for nothing but
    /// their batches.
    fn begin_segment(&mut self) -> Result<(), OutboxError> {
        let snapshot = self.index.snapshot();
        self.dirty.clear();
        let meta = snapshot.encode_to_vec();
        self.snapshot_bytes = meta.len() as u64;
        let at = self.log.append(&meta, &[])?;
        self.index.apply(at, &snapshot)?;
        Ok(())
    }

    /// Removes segments that hold nothing kept. Releases must be durable, and the active segment begun.
    fn remove_released(&mut self) -> Result<(), OutboxError> {
        let Some((active, _)) = self.log.active() else { return Ok(()) };
        for segment in self.index.removable(active) {
            self.log.remove(segment)?;
            self.index.removed(segment);
        }
        Ok(())
    }

    /// Writes down releases and gives back the space of released segments. To be called now and then, and at the end.
    pub fn tidy(&mut self) -> Result<(), OutboxError> {
        self.give_back()?;
        // Only now: a row forgotten before its releases are durable would come back with holes, and holes become voids.
        self.index.forget_rows();
        Ok(())
    }

    /// Would [`tidy`](Self::tidy) give back space?
    pub fn gives_back(&self) -> bool {
        !self.index.removable(self.log.active().map_or(u64::MAX, |(id, _)| id)).is_empty()
    }

    fn give_back(&mut self) -> Result<(), OutboxError> {
        let active = self.log.active();
        if self.index.kept().0 == 0 && active.is_some_and(|(_, bytes)| bytes > self.worth_sealing() / 4) {
            return self.rotate();
        }
        if self.gives_back() || !self.dirty.is_empty() {
            self.put(Entry::default(), &[])?;
            self.log.sync()?;
            self.remove_released()?;
        }
        Ok(())
    }

    /// A segment must be worth the state at its ends.
    fn worth_sealing(&self) -> u64 {
        self.options.segment_bytes.max(16 * self.snapshot_bytes)
    }

    /// An aggregator has stored (or lost) a batch.
    pub fn set_durable(&mut self, origin: Origin, seq: u64, durable: bool) {
        self.index.durable(origin, seq, durable);
    }

    /// Seqs need not be kept any more. Returns the number of batches let go.
    pub fn release(&mut self, origin: Origin, seqs: &IntervalSet) -> u64 {
        self.dirty.insert(origin);
        self.index.release(origin, seqs)
    }

    /// Seqs were seen committed. Returns the number of batches let go.
    pub fn committed(&mut self, origin: Origin, seqs: &IntervalSet) -> u64 {
        self.dirty.insert(origin);
        self.index.committed(origin, seqs)
    }

    /// Remembers a time seen, so that a host whose clock is wrong does not mint origins in the past.
    pub fn saw_time(&mut self, unix_ms: i64) {
        self.index.newest_unix_ms = self.index.newest_unix_ms.max(unix_ms);
    }

    /// The newest origin with its end, for the next open.
    pub fn newest_origin(&self) -> Option<(Origin, u64, Ended)> {
        self.index.rows().last().map(|row| (row.origin, row.next, row.ended))
    }

    /// Where a kept batch lies.
    pub fn place(&self, origin: Origin, seq: u64) -> Option<Place> {
        self.index.row(origin)?.kept.get(&seq).copied()
    }

    /// What a batch was, as far as its damaged record still says it.
    pub fn claimed_kind(&self, origin: Origin, seq: u64) -> Option<HeaderKind> {
        let at = self.place(origin, seq)?.at;
        let entries = salvage::entries(&self.options.dir, at.segment, at.offset);
        salvage::kinds(&entries).remove(&(origin, seq))
    }

    /// Keeps the stored file of a damaged batch.
    pub fn keep_damaged(&self, place: Place) -> Result<(), OutboxError> {
        keep_segment(&self.options, place.at.segment)
    }

    /// The directory of what became a void.
    pub fn rejected_dir(&self) -> &std::path::Path {
        &self.options.rejected
    }
}

fn bare(header: Header) -> EntryBatch {
    EntryBatch { header: header.bytes, payload_bytes: 0 }
}

fn keep_segment(options: &Options, segment: u64) -> Result<(), OutboxError> {
    let name = record_log::survey::segment_file_name(segment);
    rejected::keep_copy(&options.rejected, &options.dir.join(&name), &name)
        .map_err(|error| OutboxError::Rejected { path: options.rejected.clone(), error })
}
