//! What the outbox holds, as a pure state: origins, kept batches, source positions, running counts. It is rebuilt at
//! start by applying the footers and entries of the log in order.
//!
//! Invariants: a seq below an origin's `next` is kept, released or (after damage) a hole that recovery reports; the
//! newest origin's row is never forgotten; a segment is removable only when none of its batches is kept.

use std::collections::{BTreeMap, BTreeSet};

use common::record_log::RecordAt;
use proto::header::{Header, Kind as HeaderKind};
use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;

use super::OutboxError;
use super::entry::{Entry, FORMAT, Footer, Kept, Position, Row};
use crate::run::audit::RunningAudit;

/// What a seq is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Seq 0.
    Open = 1,
    /// Events.
    Data = 2,
    /// What was lost.
    Void = 3,
    /// All noted is cut.
    Mark = 4,
    /// The last one.
    Close = 5,
}

impl Kind {
    fn of(kind: &HeaderKind) -> Self {
        match kind {
            HeaderKind::Open(_) => Self::Open,
            HeaderKind::Data(_) => Self::Data,
            HeaderKind::Void(_) => Self::Void,
            HeaderKind::Mark(_) => Self::Mark,
            HeaderKind::Close(_) => Self::Close,
        }
    }

    /// As tools show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Data => "data",
            Self::Void => "void",
            Self::Mark => "mark",
            Self::Close => "close",
        }
    }

    fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Open,
            3 => Self::Void,
            4 => Self::Mark,
            5 => Self::Close,
            _ => Self::Data,
        }
    }
}

/// How an origin ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It has no close.
    No,
    /// Closed by a drain.
    Closed,
    /// Closed for good: the agent left.
    Left,
}

/// Where a kept batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its record.
    pub at: RecordAt,
    /// Its number among the batches of that record.
    pub part: u32,
    /// Bytes of header and payload.
    pub bytes: u32,
    /// What it is.
    pub kind: Kind,
    /// An aggregator has stored it.
    pub durable: bool,
}

/// One origin.
#[derive(Debug, Clone)]
pub struct OriginRow {
    /// The run.
    pub origin: Origin,
    /// Its next seq.
    pub next: u64,
    /// Seqs that need not be kept any more.
    pub released: IntervalSet,
    /// Seqs seen committed.
    pub committed: IntervalSet,
    /// How it ended.
    pub ended: Ended,
    /// Its open names the end of the row before it.
    pub names_previous: bool,
    /// Batches that are kept.
    pub kept: BTreeMap<u64, Place>,
}

impl OriginRow {
    fn new(origin: Origin) -> Self {
        Self {
            origin,
            next: 0,
            released: IntervalSet::new(),
            committed: IntervalSet::new(),
            ended: Ended::No,
            names_previous: false,
            kept: BTreeMap::new(),
        }
    }

    fn to_entry(&self) -> Row {
        Row {
            origin: self.origin.to_bytes(),
            next: self.next,
            released: Some((&self.released).into()),
            committed: Some((&self.committed).into()),
            ended: match self.ended {
                Ended::No => 0,
                Ended::Closed => 1,
                Ended::Left => 2,
            },
            names_previous: self.names_previous,
        }
    }

    fn take(&mut self, row: &Row) -> Result<(), OutboxError> {
        let set = |set: &Option<wire::IntervalSet>| match set {
            Some(set) => IntervalSet::try_from(set).map_err(|e| OutboxError::Undecodable(e.to_string())),
            None => Ok(IntervalSet::new()),
        };
        self.next = self.next.max(row.next);
        self.released.union_with(&set(&row.released)?);
        self.committed.union_with(&set(&row.committed)?);
        match row.ended {
            0 => {}
            1 => self.ended = Ended::Closed,
            _ => self.ended = Ended::Left,
        }
        self.names_previous |= row.names_previous;
        Ok(())
    }
}

/// The state of an outbox.
#[derive(Debug, Default)]
pub struct Index {
    /// In the order they were begun; the last is the newest.
    rows: Vec<OriginRow>,
    positions: BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Counts since the last mark.
    pub audit: RunningAudit,
    /// Newest time seen, milliseconds since the epoch.
    pub newest_unix_ms: i64,
    /// T of the last mark, milliseconds since the epoch; 0: none yet.
    pub last_mark_unix_ms: i64,
    /// Kept batches per segment.
    segments: BTreeMap<u64, u64>,
    kept_batches: u64,
    kept_bytes: u64,
}

impl Index {
    /// All origins, oldest first.
    pub fn rows(&self) -> &[OriginRow] {
        &self.rows
    }

    /// One origin.
    pub fn row(&self, origin: Origin) -> Option<&OriginRow> {
        self.rows.iter().rev().find(|row| row.origin == origin)
    }

    fn row_mut(&mut self, origin: Origin) -> &mut OriginRow {
        let at = self.rows.iter().rposition(|row| row.origin == origin).unwrap_or_else(|| {
            self.rows.push(OriginRow::new(origin));
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Older origins whose end the open of the next one names, with that end.
    pub fn named_ends(&self) -> Vec<(Origin, u64)> {
        let named = |pair: &[OriginRow]| pair[1].names_previous.then_some((pair[0].origin, pair[0].next));
        self.rows.windows(2).filter_map(named).collect()
    }

    /// Batches kept, and their bytes.
    pub fn kept(&self) -> (u64, u64) {
        (self.kept_batches, self.kept_bytes)
    }

    /// Saved positions of one source.
    pub fn positions(&self, source: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.positions
            .get(source)
            .map(|keys| keys.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            .unwrap_or_default()
    }

    /// Applies one record; returns the batches it placed.
    pub fn apply(&mut self, at: RecordAt, entry: &Entry) -> Result<Vec<(Origin, u64, Place)>, OutboxError> {
        if entry.format > FORMAT {
            return Err(OutboxError::NewerFormat { found: entry.format });
        }
        if entry.snapshot {
            self.replace(entry)?;
        } else {
            self.add(entry)?;
        }
        self.segments.entry(at.segment).or_default();
        let mut placed = Vec::with_capacity(entry.batches.len());
        for (part, batch) in entry.batches.iter().enumerate() {
            let header = Header::decode(batch.header.clone()).map_err(|e| OutboxError::Undecodable(e.to_string()))?;
            let place = Place {
                at,
                part: part as u32,
                bytes: (batch.header.len() as u64 + batch.payload_bytes) as u32,
                kind: Kind::of(&header.kind),
                durable: false,
            };
            if let HeaderKind::Open(open) = &header.kind {
                self.row_mut(header.origin).names_previous = open.previous.is_some();
            }
            if let HeaderKind::Close(close) = &header.kind {
                self.row_mut(header.origin).ended = if close.left { Ended::Left } else { Ended::Closed };
            }
            if let HeaderKind::Mark(mark) = &header.kind {
                self.last_mark_unix_ms = self.last_mark_unix_ms.max(mark.at_unix_ms);
            }
            self.place(header.origin, header.seq, place);
            placed.push((header.origin, header.seq, place));
        }
        Ok(placed)
    }

    fn add(&mut self, entry: &Entry) -> Result<(), OutboxError> {
        for row in &entry.rows {
            let origin = Origin::from_bytes(&row.origin).map_err(|e| OutboxError::Undecodable(e.to_string()))?;
            self.row_mut(origin).take(row)?;
        }
        for Position { source, key, value } in &entry.positions {
            let keys = self.positions.entry(source.clone()).or_default();
            match value {
                Some(value) => {
                    keys.insert(key.clone(), value.clone());
                }
                None => {
                    keys.remove(key);
                }
            }
        }
        if entry.audit_taken {
            self.audit.clear();
        }
        self.audit.add(&entry.audit, &entry.destroyed);
        self.newest_unix_ms = self.newest_unix_ms.max(entry.newest_unix_ms);
        self.last_mark_unix_ms = self.last_mark_unix_ms.max(entry.last_mark_unix_ms);
        Ok(())
    }

    /// Takes over a snapshot; kept batches of origins that it still knows stay.
    fn replace(&mut self, entry: &Entry) -> Result<(), OutboxError> {
        let mut old = std::mem::take(&mut self.rows);
        self.positions.clear();
        self.audit.clear();
        self.add(entry)?;
        for row in &mut self.rows {
            if let Some(was) = old.iter_mut().find(|was| was.origin == row.origin) {
                row.kept = std::mem::take(&mut was.kept);
            }
        }
        for (_, place) in old.into_iter().flat_map(|row| row.kept) {
            self.unplace(place);
        }
        Ok(())
    }

    /// Applies the footer of a sealed segment.
    pub fn apply_footer(&mut self, segment: u64, footer: &Footer) -> Result<(), OutboxError> {
        if footer.format > FORMAT {
            return Err(OutboxError::NewerFormat { found: footer.format });
        }
        if let Some(state) = &footer.state {
            self.replace(state)?;
        }
        self.segments.entry(segment).or_default();
        for kept in &footer.kept {
            let origin = Origin::from_bytes(&kept.origin).map_err(|e| OutboxError::Undecodable(e.to_string()))?;
            let place = Place {
                at: RecordAt { segment, offset: kept.offset },
                part: kept.part,
                bytes: kept.bytes,
                kind: Kind::from_number(kept.kind),
                durable: false,
            };
            self.place(origin, kept.seq, place);
        }
        Ok(())
    }

    fn place(&mut self, origin: Origin, seq: u64, place: Place) {
        let row = self.row_mut(origin);
        row.next = row.next.max(seq + 1);
        let before = row.kept.insert(seq, place);
        *self.segments.entry(place.at.segment).or_default() += 1;
        self.kept_batches += 1;
        self.kept_bytes += u64::from(place.bytes);
        if let Some(before) = before {
            self.unplace(before);
        }
    }

    fn unplace(&mut self, place: Place) {
        if let Some(count) = self.segments.get_mut(&place.at.segment) {
            *count = count.saturating_sub(1);
        }
        self.kept_batches -= 1;
        self.kept_bytes -= u64::from(place.bytes);
    }

    /// After recovery: drops what is released, and returns the holes (seqs that are neither kept nor released).
    pub fn settle(&mut self) -> Vec<(Origin, u64)> {
        let mut holes = Vec::new();
        let mut gone = Vec::new();
        for row in &mut self.rows {
            let released = &row.released;
            row.kept.retain(|seq, place| {
                let keep = !released.contains(*seq);
                if !keep {
                    gone.push(*place);
                }
                keep
            });
            holes.extend(
                (row.released.first_missing()..row.next)
                    .filter(|seq| !row.released.contains(*seq) && !row.kept.contains_key(seq))
                    .map(|seq| (row.origin, seq)),
            );
        }
        for place in gone {
            self.unplace(place);
        }
        holes
    }

    /// Marks a batch as stored by an aggregator.
    pub fn durable(&mut self, origin: Origin, seq: u64, durable: bool) {
        let row = self.rows.iter_mut().rev().find(|row| row.origin == origin);
        if let Some(place) = row.and_then(|row| row.kept.get_mut(&seq)) {
            place.durable = durable;
        }
    }

    /// Releases seqs; returns how many batches that let go. Unknown origins and seqs not yet appended are ignored.
    pub fn release(&mut self, origin: Origin, seqs: &IntervalSet) -> u64 {
        let Some(row) = self.rows.iter_mut().rev().find(|row| row.origin == origin) else { return 0 };
        let mut gone = Vec::new();
        for (start, end) in seqs.iter() {
            row.released.insert_range(start, end.min(row.next));
            let keys: Vec<u64> = row.kept.range(start..end).map(|(seq, _)| *seq).collect();
            gone.extend(keys.into_iter().filter_map(|seq| row.kept.remove(&seq)));
        }
        let count = gone.len() as u64;
        for place in gone {
            self.unplace(place);
        }
        count
    }

    /// Notes seqs as committed (and so released); returns the number of batches let go.
    pub fn committed(&mut self, origin: Origin, seqs: &IntervalSet) -> u64 {
        if let Some(row) = self.rows.iter_mut().rev().find(|row| row.origin == origin) {
            for (start, end) in seqs.iter() {
                row.committed.insert_range(start, end.min(row.next));
            }
        }
        self.release(origin, seqs)
    }

    /// Forgets rows that nobody can ask for any more: all batches released, and the next run's open, which names their
    /// end, is committed. The newest row stays.
    pub fn forget_rows(&mut self) -> Vec<Origin> {
        let mut forgotten = BTreeSet::new();
        for pair in self.rows.windows(2) {
            let (row, next) = (&pair[0], &pair[1]);
            if row.kept.is_empty()
                && row.released.contains_range(0, row.next)
                && next.names_previous
                && next.committed.contains(0)
            {
                forgotten.insert(row.origin);
            }
        }
        self.rows.retain(|row| !forgotten.contains(&row.origin));
        forgotten.into_iter().collect()
    }

    /// The oldest batches that an aggregator has stored, up to `bytes` of them.
    pub fn oldest_durable(&self, bytes: u64) -> Vec<(Origin, u64)> {
        let mut left = bytes;
        let mut found = Vec::new();
        let durable = self.rows.iter().flat_map(|row| row.kept.iter().map(move |(seq, place)| (row, *seq, place)));
        for (row, seq, place) in durable.filter(|(_, _, place)| place.durable && place.kind != Kind::Open) {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(u64::from(place.bytes));
            found.push((row.origin, seq));
        }
        found
    }

    /// The whole state without batches.
    pub fn snapshot(&self) -> Entry {
        let (audit, destroyed) = self.audit.rows();
        Entry {
            format: FORMAT,
            snapshot: true,
            batches: Vec::new(),
            positions: self
                .positions
                .iter()
                .flat_map(|(source, keys)| {
                    keys.iter().map(|(key, value)| Position {
                        source: source.clone(),
                        key: key.clone(),
                        value: Some(value.clone()),
                    })
                })
                .collect(),
            rows: self.rows.iter().map(OriginRow::to_entry).collect(),
            audit,
            destroyed,
            audit_taken: false,
            newest_unix_ms: self.newest_unix_ms,
            last_mark_unix_ms: self.last_mark_unix_ms,
        }
    }

    /// The row of an origin, as an entry carries it.
    pub fn row_entry(&self, origin: Origin) -> Option<Row> {
        self.row(origin).map(OriginRow::to_entry)
    }

    /// The footer for a segment that is to be sealed now.
    pub fn footer(&self, segment: u64) -> Footer {
        let kept = self.rows.iter().flat_map(|row| {
            row.kept.iter().filter(|(_, place)| place.at.segment == segment).map(|(seq, place)| Kept {
                origin: row.origin.to_bytes(),
                seq: *seq,
                offset: place.at.offset,
                part: place.part,
                bytes: place.bytes,
                kind: place.kind as u32,
            })
        });
        Footer { format: FORMAT, state: Some(self.snapshot()), kept: kept.collect() }
    }

    /// Segments below `newest` that hold no kept batch.
    pub fn removable(&self, newest: u64) -> Vec<u64> {
        self.segments.iter().filter(|(id, live)| **id < newest && **live == 0).map(|(id, _)| *id).collect()
    }

    /// A segment was removed.
    pub fn removed(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }
}
