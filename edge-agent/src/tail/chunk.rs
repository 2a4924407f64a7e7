//! What the tail hands to the pipeline: slices of read buffers, with the positions that are reached with them.
//!
//! Invariant: storing the events of a chunk together with its `updates` in one append makes a restart continue exactly
//! behind it; a chunk that is thrown away must not have its updates stored.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

/// The most bytes that are kept of an event that is too long.
pub const TOO_LONG_KEPT: usize = 64 * 1024;

/// A change of one saved position; key and value are opaque to whoever keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateUpdate {
    /// Names the record.
    pub key: Vec<u8>,
    /// The new record; `None`: the file is forgotten.
    pub value: Option<Vec<u8>>,
}

/// What a piece holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Whole events, each ended by LF (a CR before it is still there).
    Lines,
    /// One event whose LF never came: emitted when the file was renamed away or deleted, at close, or after it was idle.
    Partial,
    /// One event longer than the limit; `bytes` holds its first 64 KiB at most.
    TooLong {
        /// Length of the whole event in the file, without its LF.
        total_bytes: u64,
    },
}

/// Consecutive bytes of one file.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The file, as it was named when they were read.
    pub path: Arc<str>,
    /// Where `bytes` begin in the file.
    pub offset: u64,
    /// The bytes; a slice of a read buffer.
    pub bytes: Bytes,
    /// How events lie in them.
    pub kind: PieceKind,
}

/// What a source gave since its last append.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Pieces in the order they were read; those of one file are in file order.
    pub pieces: Vec<Piece>,
    /// Bytes held by all pieces together.
    pub raw_bytes: usize,
    /// Saved positions after this chunk, one per changed file. There may be some without any piece: store them too.
    pub updates: Vec<StateUpdate>,
    /// When the first piece was read.
    pub first_read: Option<Instant>,
}

impl Chunk {
    /// True if there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.updates.is_empty()
    }

    pub(super) fn push(&mut self, piece: Piece, now: Instant) {
        self.raw_bytes += piece.bytes.len();
        self.first_read.get_or_insert(now);
        self.pieces.push(piece);
    }

    /// Adds an update in place of an earlier one of the same key, which `slot` points at if it is in this chunk.
    pub(super) fn update(&mut self, update: StateUpdate, slot: &mut usize) {
        match self.updates.get_mut(*slot) {
            Some(earlier) if earlier.key == update.key => *earlier = update,
            _ => {
                *slot = self.updates.len();
                self.updates.push(update);
            }
        }
    }
}
