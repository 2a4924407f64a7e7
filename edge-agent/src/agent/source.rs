//! One source on the owner thread: its tail, its pipeline, and the chunk in hand.
//!
//! Invariant: a chunk leaves here only as a whole, with the positions after it; one whose dataset is not declared stays
//! as it is, and nothing more is read meanwhile: the log is the buffer.

use std::time::{Duration, Instant};

use proto::wire;

use crate::outbox::ChunkAppend;
use crate::outbox::entry::Position;
use crate::pipeline::{Declarations, Pipeline, Undeclared};
use crate::tail::{Chunk, Note, TailProblem, TailSource, TailStats};

/// When a chunk is cut.
#[derive(Debug, Clone, Copy)]
pub struct Batching {
    /// Raw bytes of a chunk.
    pub max_raw_bytes: usize,
    /// Longest time an event waits in a chunk.
    pub linger: Duration,
}

/// A source and its chunk.
#[derive(Debug)]
pub struct Source {
    name: String,
    tail: TailSource,
    pipeline: Pipeline,
    chunk: Chunk,
    /// When the chunk got its first content.
    since: Option<Instant>,
    full: bool,
    at_end: bool,
    destroyed: Vec<wire::Destroyed>,
    note: Option<Note>,
    note_is_cut: bool,
    hold_age: Duration,
}

impl Source {
    /// A source that was opened.
    pub fn new(name: &str, tail: TailSource, pipeline: Pipeline, hold_age: Duration) -> Self {
        Self {
            name: name.to_owned(),
            tail,
            pipeline,
            chunk: Chunk::default(),
            since: None,
            full: false,
            at_end: false,
            destroyed: Vec::new(),
            note: None,
            note_is_cut: true,
            hold_age,
        }
    }

    /// Its configured name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads into the chunk; true if that brought something. A chunk that is due only looks after rotated files.
    pub fn poll(&mut self, batching: Batching, due: bool, now: Instant) -> bool {
        let budget = if due { 0 } else { batching.max_raw_bytes };
        let outcome = self.tail.poll(&mut self.chunk, budget, now);
        if !due {
            self.full = outcome.full;
            self.at_end = outcome.at_end;
        }
        self.take_destroyed(now);
        outcome.progressed && !due
    }

    /// What is known to be destroyed goes with the next chunk, so that the mark which does not wait for those bytes any
    /// more names them.
    fn take_destroyed(&mut self, now: Instant) {
        let gone = self.tail.take_destroyed();
        if !gone.is_empty() {
            let bytes = gone.iter().map(|gone| gone.bytes).sum();
            let (source, files) = (self.name.clone(), gone.len() as u64);
            tracing::warn!(source, bytes, files, "bytes were destroyed before they could be read");
            self.destroyed.push(wire::Destroyed { source, bytes, files });
        }
        if self.has_content() {
            self.since.get_or_insert(now);
        }
    }

    fn has_content(&self) -> bool {
        !self.chunk.is_empty() || !self.destroyed.is_empty()
    }

    /// Is the chunk to be cut now?
    pub fn is_due(&self, batching: Batching, flush: bool, now: Instant) -> bool {
        let Some(since) = self.since else { return false };
        flush
            || self.full
            || self.chunk.raw_bytes >= batching.max_raw_bytes
            || now.saturating_duration_since(since) >= batching.linger
            || (self.note.is_some() && !self.note_is_cut && self.is_noted_in_hand())
    }

    /// When the chunk becomes due by time alone.
    pub fn due_at(&self, batching: Batching) -> Option<Instant> {
        self.since.map(|since| since + batching.linger)
    }

    /// Raw bytes in hand.
    pub fn raw_bytes(&self) -> usize {
        self.chunk.raw_bytes
    }

    /// Cuts the chunk. On an error it stays as it is.
    pub fn cut(&mut self, now_us: i64, declarations: &Declarations) -> Result<ChunkAppend, Undeclared> {
        let cut = self.pipeline.run(&self.chunk, now_us, declarations)?;
        let chunk = std::mem::take(&mut self.chunk);
        self.since = None;
        self.full = false;
        let position = |update: crate::tail::StateUpdate| Position {
            source: self.name.clone(),
            key: update.key,
            value: update.value,
        };
        Ok(ChunkAppend {
            batches: cut.batches.into_iter().map(|batch| (batch.data, batch.payload)).collect(),
            positions: chunk.updates.into_iter().map(position).collect(),
            audit: cut.audit.0,
            destroyed: std::mem::take(&mut self.destroyed),
        })
    }

    /// Nothing more to read now, and nothing in hand.
    pub fn is_done(&self) -> bool {
        self.at_end && !self.has_content()
    }

    /// Nothing more to read now; a chunk may be in hand.
    pub fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Nothing is in hand that is not stored.
    pub fn is_stored(&self) -> bool {
        self.note_is_cut && !self.has_content()
    }

    /// Lists and stats all files afresh.
    pub fn note(&mut self, now: Instant) -> Result<(), Vec<TailProblem>> {
        self.note = None;
        self.note_is_cut = false;
        let note = self.tail.note(now);
        self.take_destroyed(now);
        self.note = Some(note?);
        Ok(())
    }

    /// No note is waited for any more.
    pub fn forget_note(&mut self) {
        self.note = None;
        self.note_is_cut = true;
    }

    fn is_noted_in_hand(&self) -> bool {
        self.note.as_ref().is_none_or(|note| self.tail.is_cut(note))
    }

    /// Was everything noted cut AND stored? To be asked when the chunk before was stored.
    pub fn check_note(&mut self) -> bool {
        if !self.note_is_cut && !self.has_content() && self.is_noted_in_hand() {
            self.note_is_cut = true;
        }
        self.note_is_cut
    }

    /// The last partial lines are emitted by the next polls.
    pub fn finish(&mut self) {
        self.tail.finish();
        self.at_end = false;
    }

    /// How long a deleted file with unread bytes is held.
    pub fn hold_age(&self) -> Duration {
        self.hold_age
    }

    /// Numbers of the tail.
    pub fn stats(&self) -> TailStats {
        self.tail.stats()
    }
}
