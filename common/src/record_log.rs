//! The append-only record log under the agent's outbox and the aggregator's channel: segment files with group
//! fdatasync, sealed by a footer, recovered at start.
//!
//! It is synchronous and has one owner, who also guards the directory against a second process and decides when to
//! sync, seal and remove; readers are separate handles. Kept here:
//!
//! - a record counts as stored only after [`RecordLog::sync`] returned `Ok` (under invariant I1);
//! - the first storage error latches: every later call returns it, until the log is opened again (I6);
//! - damage is never dropped silently: recovery reports it ([`Corruption`]) and keeps what is valid around it;
//! - a segment id is never given twice, not even after all segments were removed and the process restarted.
//!
//! Files: `segment` has the bytes, `recovery` the start, `reader` the way back, `file` the disk, `survey` the look from
//! outside.

mod file;
mod reader;
mod recovery;
mod segment;
pub mod survey;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

pub use file::{FaultHook, StorageOp};
pub use reader::{ReadError, Record, RecordReader, is_of_medium};

use file::{Disk, SegmentFile};
use recovery::Found;
use segment::{FILE_HEADER_BYTES, Kind, RECORD_HEADER_BYTES, RecordHeader, TRAILER_BYTES};

/// Appended bytes that wait in memory for a sync, at most; past it they are written (not synced) at once.
const WRITE_BUFFER_BYTES: u64 = 4 * 1024 * 1024;

/// Where and how big.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of the segment files; made (mode 0700) if it is missing.
    pub dir: PathBuf,
    /// From this size on [`RecordLog::is_full`] says so.
    pub segment_bytes: u64,
    /// Largest meta and body together that an append takes. What lies on disk may be larger.
    pub max_record_bytes: u64,
}

/// Where a record lies. Ordered as appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordAt {
    /// The segment's id.
    pub segment: u64,
    /// Offset of the record's first byte in the file.
    pub offset: u64,
}

/// A record seen at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedRecord {
    /// Where it lies.
    pub at: RecordAt,
    /// Its small part.
    pub meta: Bytes,
    /// Length of its body.
    pub body_bytes: u32,
}

/// A segment seen at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadedSegment {
    /// Footer present, its CRC and the file's length verified; records not read.
    Sealed {
        /// The segment.
        id: u64,
        /// What was given at the seal.
        footer: Bytes,
        /// Length of the file.
        bytes: u64,
    },
    /// No footer: every record was read and checked, a torn tail cut off. The caller gives it a footer with
    /// [`RecordLog::seal_recovered`].
    Unsealed {
        /// The segment.
        id: u64,
        /// Its valid records, in order; at least one.
        records: Vec<LoadedRecord>,
        /// Length of the file after the cut.
        bytes: u64,
    },
}

/// Bytes that should be a record (or a footer) and are not, with valid records behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// The segment.
    pub segment: u64,
    /// Where the damage begins.
    pub offset: u64,
    /// The valid records behind it do not prove that the damaged bytes were ever synced: a power failure may have
    /// torn them, and then nobody was told that they, or the records behind them in this segment, are stored.
    pub maybe_unsynced: bool,
    /// For the alarm.
    pub detail: String,
}

/// What was found besides good segments. A file in which nothing can be read any more is renamed to
/// `<id>.seg.damaged`, which is no segment's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes cut off the ends of unsealed segments: writes that were never acknowledged.
    pub torn_bytes: u64,
    /// Damage; the owner raises an alarm for each.
    pub corrupt: Vec<Corruption>,
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The first storage error; it is returned by every later call too (I6).
    #[error(
        "{action} {path} failed: {reason}; nothing more is stored until this is repaired and the process started again"
    )]
    Storage {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's reason.
        reason: Arc<io::Error>,
    },
    /// Larger than the options allow. Nothing was stored, the log goes on.
    #[error("a record of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its meta and body.
        bytes: u64,
        /// `max_record_bytes`.
        limit: u64,
    },
    /// A newer release wrote this directory.
    #[error("{path} has format {found}, this release reads up to {newest}: start the newer release again")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        newest: u32,
    },
    /// A seal without any record to seal.
    #[error("there is no record to seal")]
    NothingToSeal,
    /// Not a segment this call can work on: unknown, sealed already, or the one being written.
    #[error("segment {segment:016x} cannot be {action}")]
    WrongSegment {
        /// Its id.
        segment: u64,
        /// What was asked.
        action: &'static str,
    },
}

impl LogError {
    fn storage(action: &'static str, path: &Path, reason: io::Error) -> Self {
        Self::Storage { action, path: path.to_owned(), reason: Arc::new(reason) }
    }

    /// Nothing but room for more bytes was missing. A sync that says so is another matter.
    pub fn is_full(&self) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Storage { action: "writing" | "creating", reason, .. } if full(reason.kind()))
    }
}

/// The log. See the module for its rules.
#[derive(Debug)]
pub struct RecordLog {
    options: Options,
    disk: Disk,
    /// Closed segments: id to length.
    closed: BTreeMap<u64, ClosedSegment>,
    active: Option<Active>,
    next_id: u64,
    latch: Latch,
    reader: RecordReader,
}

#[derive(Debug, Default)]
struct Latch {
    error: Option<LogError>,
    /// A full file system does not count.
    waits_for_space: bool,
}

impl Latch {
    fn take(&mut self, error: LogError) -> LogError {
        if self.waits_for_space && error.is_full() {
            return error;
        }
        self.error.get_or_insert(error).clone()
    }
}

#[derive(Debug, Clone, Copy)]
struct ClosedSegment {
    bytes: u64,
    sealed: bool,
}

#[derive(Debug)]
struct Active {
    id: u64,
    file: SegmentFile,
    /// Length with everything appended.
    bytes: u64,
    /// Exclusive end of what is written.
    written: u64,
    /// Exclusive end of what is durable.
    synced: u64,
    /// Appended and not yet written.
    pending: Vec<Bytes>,
    pending_bytes: u64,
}

impl RecordLog {
    /// Opens the directory and gives every segment to `on_segment`, in id order. Torn tails are cut off, unsealed
    /// files without any record are removed. Appends go to a new segment.
    pub fn open(options: Options, on_segment: impl FnMut(LoadedSegment)) -> Result<(Self, Recovery), LogError> {
        let disk = Disk::open(&options.dir)?;
        let reader = RecordReader::new(options.dir.clone());
        let (closed, latch) = (BTreeMap::new(), Latch::default());
        let mut log = Self { options, disk, closed, active: None, next_id: 0, latch, reader };
        let recovery = log.recover(on_segment)?;
        Ok((log, recovery))
    }

    fn recover(&mut self, mut on_segment: impl FnMut(LoadedSegment)) -> Result<Recovery, LogError> {
        let mut recovery = Recovery::default();
        let mut empty = Vec::new();
        for id in self.disk.segment_ids()? {
            self.next_id = id + 1;
            match recovery::inspect(&self.disk.path(id), id)? {
                Found::Sealed { footer, bytes } => {
                    self.closed.insert(id, ClosedSegment { bytes, sealed: true });
                    on_segment(LoadedSegment::Sealed { id, footer, bytes });
                }
                Found::Unsealed(scan) => {
                    let damaged = !scan.corrupt.is_empty();
                    recovery.corrupt.extend(scan.corrupt);
                    if scan.records.is_empty() {
                        // Damage is kept for who looks into it; what was never begun goes.
                        recovery.torn_bytes += if damaged { 0 } else { scan.torn_bytes };
                        empty.push((id, damaged));
                        continue;
                    }
                    recovery.torn_bytes += scan.torn_bytes;
                    if scan.torn_bytes > 0 {
                        self.disk.truncate(id, scan.end)?;
                    }
                    self.closed.insert(id, ClosedSegment { bytes: scan.end, sealed: false });
                    on_segment(LoadedSegment::Unsealed { id, records: scan.records, bytes: scan.end });
                }
            }
        }
        self.remove_empty(&empty)?;
        Ok(recovery)
    }

    /// Files without a record go, but a file with a higher id is there first: it carries the next id over restarts.
    fn remove_empty(&mut self, empty: &[(u64, bool)]) -> Result<(), LogError> {
        if empty.is_empty() {
            return Ok(());
        }
        self.open_active()?;
        empty.iter().try_for_each(|&(id, damaged)| match damaged {
            true => self.disk.set_aside(id),
            false => self.disk.remove(id),
        })
    }

    /// A log that appends to a new segment behind all that lie in the directory and looks into none of them: for tools,
    /// while nobody else has it open. The new segment's file is there, durably, when this returns. A segment that ends
    /// with its last record and has no footer can be given one with [`seal_recovered`](Self::seal_recovered).
    pub fn beside(options: Options) -> Result<Self, LogError> {
        let disk = Disk::open(&options.dir)?;
        let mut closed = BTreeMap::new();
        for id in disk.segment_ids()? {
            let path = disk.path(id);
            let found = std::fs::metadata(&path).map_err(|e| LogError::storage("reading", &path, e))?;
            closed.insert(id, ClosedSegment { bytes: found.len(), sealed: false });
        }
        let next_id = closed.last_key_value().map_or(0, |(last, _)| last + 1);
        let reader = RecordReader::new(options.dir.clone());
        let latch = Latch::default();
        let mut log = Self { options, disk, closed, active: None, next_id, latch, reader };
        log.open_active()?;
        Ok(log)
    }

    /// Appends a record; it is durable after the next [`sync`](Self::sync). Copies both parts.
    pub fn append(&mut self, meta: &[u8], body: &[u8]) -> Result<RecordAt, LogError> {
        self.append_parts(meta, &[Bytes::copy_from_slice(body)])
    }

    /// Appends a record whose body is the concatenation of `body`; the parts are kept until written, not copied.
    pub fn append_parts(&mut self, meta: &[u8], body: &[Bytes]) -> Result<RecordAt, LogError> {
        self.check()?;
        let body_bytes: u64 = body.iter().map(|part| part.len() as u64).sum();
        let (bytes, limit) = (meta.len() as u64 + body_bytes, self.options.max_record_bytes.min(u64::from(u32::MAX)));
        if bytes > limit {
            return Err(LogError::TooLarge { bytes, limit });
        }
        if self.active.is_none() {
            self.open_active().map_err(|error| self.latch.take(error))?;
        }
        let active = self.active.as_mut().expect("opened above");
        let at = active.push(Kind::Record, meta, body, body_bytes as u32);
        if active.pending_bytes >= WRITE_BUFFER_BYTES
            && let Err(error) = active.write().map_err(|error| self.latch.take(error))
            && self.latch.error.is_some()
        {
            return Err(error);
        }
        Ok(at)
    }

    /// Writes what is buffered and makes it durable with one fdatasync. Nothing to do: no system call.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.check()?;
        match &mut self.active {
            Some(active) => active.sync().map_err(|error| self.latch.take(error)),
            None => Ok(()),
        }
    }

    /// Syncs, then writes the footer and makes that durable. The next append begins a new segment. Returns the id.
    pub fn seal(&mut self, footer: &[u8]) -> Result<u64, LogError> {
        self.check()?;
        let Some(active) = self.active.as_mut().filter(|active| active.bytes > FILE_HEADER_BYTES) else {
            return Err(LogError::NothingToSeal);
        };
        active.seal(footer).map_err(|error| self.latch.take(error))?;
        let (id, bytes) = (active.id, active.bytes);
        self.active = None;
        self.closed.insert(id, ClosedSegment { bytes, sealed: true });
        Ok(id)
    }

    /// Gives a segment that was found unsealed at start its footer, durably. Its records are written over themselves
    /// first: what could be read at start may have been in memory only, if the run before ended after a failed fsync.
    pub fn seal_recovered(&mut self, id: u64, footer: &[u8]) -> Result<(), LogError> {
        self.check()?;
        let Some(&ClosedSegment { bytes, sealed: false }) = self.closed.get(&id) else {
            return Err(LogError::WrongSegment { segment: id, action: "sealed" });
        };
        let rewritten = self.disk.rewrite(id, bytes).and_then(|()| self.disk.reopen(id));
        let file = rewritten.map_err(|error| self.latch.take(error))?;
        let mut active =
            Active { id, file, bytes, written: bytes, synced: bytes, pending: Vec::new(), pending_bytes: 0 };
        active.seal(footer).map_err(|error| self.latch.take(error))?;
        self.closed.insert(id, ClosedSegment { bytes: active.bytes, sealed: true });
        Ok(())
    }

    /// Id and length of the segment that is written, if it has a record.
    pub fn active(&self) -> Option<(u64, u64)> {
        let active = self.active.as_ref()?;
        (active.bytes > FILE_HEADER_BYTES).then_some((active.id, active.bytes))
    }

    /// Has the active segment reached `segment_bytes`? Then the owner seals it before the next append.
    pub fn is_full(&self) -> bool {
        self.active().is_some_and(|(_, bytes)| bytes >= self.options.segment_bytes)
    }

    /// Unlinks a segment that is not being written, durably. Readers that are inside it may finish.
    pub fn remove(&mut self, segment: u64) -> Result<(), LogError> {
        self.check()?;
        if !self.closed.contains_key(&segment) {
            return Err(LogError::WrongSegment { segment, action: "removed" });
        }
        if segment + 1 == self.next_id {
            // The highest id on disk is what the next run continues from: never without a successor.
            self.open_active().map_err(|error| self.latch.take(error))?;
        }
        self.reader.forget(segment);
        self.disk.remove(segment).map_err(|error| self.latch.take(error))?;
        self.closed.remove(&segment);
        Ok(())
    }

    /// Length of all segments with what is buffered.
    pub fn total_bytes(&self) -> u64 {
        let closed: u64 = self.closed.values().map(|segment| segment.bytes).sum();
        closed + self.active.as_ref().map_or(0, |active| active.bytes)
    }

    /// A handle that reads synced records.
    pub fn reader(&self) -> RecordReader {
        self.reader.clone()
    }

    /// From now on a full file system is no storage error: a call that meets it may be made again, and what was appended
    /// stays in memory until a [`sync`](Self::sync) stores it; the caller appends no more than it can keep there.
    pub fn wait_for_space(&mut self) {
        self.latch.waits_for_space = true;
    }

    /// Calls `hook` before each storage operation from now on; an error it returns counts as the operation's own.
    /// For tests and fault drills.
    pub fn set_fault_hook(&mut self, hook: FaultHook) {
        self.disk.set_hook(hook.clone());
        if let Some(active) = &mut self.active {
            active.file.set_hook(hook);
        }
    }

    fn open_active(&mut self) -> Result<(), LogError> {
        let id = self.next_id;
        let file = self.disk.create(id).and_then(|mut file| {
            file.write_all(&mut [Bytes::copy_from_slice(&segment::encode_file_header(id))])?;
            file.sync(StorageOp::SyncAll)?;
            Ok(file)
        });
        if file.as_ref().is_err_and(LogError::is_full) {
            // Else its name would be in the way of the next attempt.
            self.disk.remove(id)?;
        }
        let file = file?;
        self.disk.sync_dir()?;
        self.next_id = id + 1;
        let bytes = FILE_HEADER_BYTES;
        self.active =
            Some(Active { id, file, bytes, written: bytes, synced: bytes, pending: Vec::new(), pending_bytes: 0 });
        Ok(())
    }

    fn check(&self) -> Result<(), LogError> {
        self.latch.error.clone().map_or(Ok(()), Err)
    }
}

impl Active {
    fn push(&mut self, kind: Kind, meta: &[u8], body: &[Bytes], body_bytes: u32) -> RecordAt {
        let at = RecordAt { segment: self.id, offset: self.bytes };
        let crc = body.iter().fold(crc32c::crc32c(meta), |crc, part| crc32c::crc32c_append(crc, part));
        let header = RecordHeader { kind, meta_bytes: meta.len() as u32, body_bytes, synced: self.synced, crc };
        let mut head = Vec::with_capacity(RECORD_HEADER_BYTES + meta.len());
        head.extend_from_slice(&header.encode(at));
        head.extend_from_slice(meta);
        self.pending.push(head.into());
        self.pending.extend(body.iter().filter(|part| !part.is_empty()).cloned());
        self.pending_bytes += header.total();
        self.bytes += header.total();
        at
    }

    /// Writes what is pending. If there is no room for it, it stays pending, and the file is as before.
    fn write(&mut self) -> Result<(), LogError> {
        if let Err(error) = self.file.write_all(&mut self.pending) {
            if error.is_full() {
                self.file.cut(self.written)?;
            }
            return Err(error);
        }
        self.pending.clear();
        self.pending_bytes = 0;
        self.written = self.bytes;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.synced < self.bytes {
            self.write()?;
            self.file.sync(StorageOp::SyncData)?;
            self.synced = self.bytes;
        }
        Ok(())
    }

    /// Records first, footer second: a valid footer then proves that the records before it were durable.
    fn seal(&mut self, footer: &[u8]) -> Result<(), LogError> {
        self.sync()?;
        let footer_offset = self.push(Kind::Footer, footer, &[], 0).offset;
        self.bytes += TRAILER_BYTES as u64;
        let trailer = segment::encode_trailer(self.id, footer_offset, self.bytes);
        self.pending.push(Bytes::copy_from_slice(&trailer));
        if let Err(error) = self.write() {
            // Not sealed: the next record goes where the footer would have been.
            self.pending.clear();
            (self.pending_bytes, self.bytes) = (0, footer_offset);
            return Err(error);
        }
        self.file.sync(StorageOp::SyncAll)?;
        self.synced = self.bytes;
        Ok(())
    }
}
