//! The tail source: follows log files through every kind of rotation and hands out each line exactly once.
//!
//! # What operators should know
//!
//! **Which files.** Globs are matched against whole paths; `*` stays within a directory, `**` spans any number of them. Symbolic links are followed.
//! A directory that does not exist yet is picked up when it appears. Names ending in .gz .zst .bz2 .xz are left out unless
//! `include_compressed` is set; then their bytes are read as they are, nothing is decompressed.
//!
//! **Which file is which.** A file is known by its inode together with its content: the first KiB, and the bytes before the
//! position. The device number is a hint. So:
//! - *renamed*: reading continues; a file renamed out of reach of the globs is read to its end while it is open;
//! - *copied and truncated*: the copy, if a glob matches it, continues where the original stopped; the original starts anew, also when it
//!   was refilled beyond the old position before we looked. A new file that equals another is therefore not read before it has been quiet for `copy_wait`:
//!   two equal files are two files, and both are read;
//! - *deleted and made anew*, also with the same inode: the old file is read to its end, the new one from its beginning;
//! - *link switched*: the old target is read to its end, the new one from its beginning.
//!
//! A file that is deleted and made anew with *identical* content while the old one is still remembered (`close_gone` and `copy_wait`) counts as
//! a copy of the old one and is continued.
//!
//! **What is held.** Rotated and deleted files with unread bytes stay open up to `hold_deleted` (1 GiB of unread bytes, 24 h). Beyond that the oldest are let
//! go. Their unread bytes, and unread bytes that were truncated away without a copy, were never events: they are counted as
//! *destroyed*, per file. Bytes written and destroyed between two looks cannot be known to anyone.
//!
//! **Lines.** An event ends at LF; a CR before it stays in the bytes. A last line without LF is emitted after the file was renamed
//! away or deleted and quiet, after `partial_idle`, and at close; if the writer completes it later, the rest is another event.
//! An event longer than `max_event_bytes` is reported with its first 64 KiB and its length, and never held in memory.
//!
//! **Limits.** About `max_open_files` descriptors; one read buffer per turn plus the chunk; a few hundred bytes per file, which
//! are freed some time after a file is gone and read.
//!
//! Path of a line: [`listing`] finds files, `identity` tells which is which, [`cursor`] decides, `reading` reads, `source` schedules.

mod check;
pub mod chunk;
pub mod config;
pub mod cursor;
mod files;
pub mod fingerprint;
mod identity;
pub mod listing;
pub mod position;
mod problem;
mod reading;
mod source;
pub mod split;

use std::time::Duration;

pub use check::{Matched, MatchedFile};
pub use chunk::{Chunk, Piece, PieceKind, StateUpdate, TOO_LONG_KEPT};
pub use config::{HoldConfig, Start, TailConfig};
pub use files::{Destroyed, DestroyedBy};
pub use problem::TailProblem;
pub use source::TailSource;

/// Why a source could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The configuration does not validate.
    #[error("source {name}: {reason}")]
    Config {
        /// The source.
        name: String,
        /// Key and problem.
        reason: String,
    },
    /// A saved position cannot be used.
    #[error("source {name}: {reason}")]
    Saved {
        /// The source.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a poll achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollOutcome {
    /// Bytes were handed out or searched through.
    pub progressed: bool,
    /// The chunk has no room for the next event: cut it, then poll with an empty one.
    pub full: bool,
    /// Nothing more can be read now.
    pub at_end: bool,
}

/// How far every file reached at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    ends: Vec<(u64, u64)>,
    shrinks: u64,
}

/// Numbers of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TailStats {
    /// Matched files.
    pub files: usize,
    /// New files that may be copies in the making and are not read yet.
    pub waiting_files: usize,
    /// Bytes in matched and held files that have not been handed out.
    pub unread_bytes: u64,
    /// Files without a matched path that are kept open.
    pub held_files: usize,
    /// Unread bytes in them.
    pub held_bytes: u64,
    /// Since when the oldest of them with unread bytes is held: `hold_deleted.age` minus this is the time to loss.
    pub oldest_held: Option<Duration>,
    /// Unread bytes of contents that were truncated or deleted and are still looked for.
    pub lost_bytes: u64,
    /// Open descriptors.
    pub open_files: usize,
    /// What cannot be read; the source is not ready while there is any.
    pub problems: Vec<TailProblem>,
}
