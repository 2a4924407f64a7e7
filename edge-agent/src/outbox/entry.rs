//! What the records of the outbox say, as they lie on disk. Payloads are the body of a record; everything else is its
//! meta part, one [`Entry`].
//!
//! Rows and positions are full values, so that applying an entry twice changes nothing; only audit counts add up.

use bytes::Bytes;
use proto::wire;

/// Format version of entries and footers.
pub const FORMAT: u32 = 1;

/// The meta part of one record: one durable append.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// Format version.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Replaces rows, positions and counts instead of adding to them.
    #[prost(bool, tag = "2")]
    pub snapshot: bool,
    /// Batches of this append; their payloads stand in the body in this order.
    #[prost(message, repeated, tag = "3")]
    pub batches: Vec<EntryBatch>,
    /// Source positions after this append.
    #[prost(message, repeated, tag = "4")]
    pub positions: Vec<Position>,
    /// Origins whose row changed.
    #[prost(message, repeated, tag = "5")]
    pub rows: Vec<Row>,
    /// Audit counts to add.
    #[prost(message, repeated, tag = "6")]
    pub audit: Vec<wire::AuditCount>,
    /// Destroyed bytes to add.
    #[prost(message, repeated, tag = "7")]
    pub destroyed: Vec<wire::Destroyed>,
    /// A mark or close in `batches` took all counts so far.
    #[prost(bool, tag = "8")]
    pub audit_taken: bool,
    /// Newest time seen, milliseconds since the epoch.
    #[prost(int64, tag = "9")]
    pub newest_unix_ms: i64,
    /// T of the last mark, milliseconds since the epoch; only snapshots say it.
    #[prost(int64, tag = "10")]
    pub last_mark_unix_ms: i64,
}

/// One batch of an entry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EntryBatch {
    /// The encoded batch header, as it is sent.
    #[prost(bytes = "bytes", tag = "1")]
    pub header: Bytes,
    /// Bytes of its payload in the body.
    #[prost(uint64, tag = "2")]
    pub payload_bytes: u64,
}

/// A source position; opaque.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Position {
    /// Name of the source.
    #[prost(string, tag = "1")]
    pub source: String,
    /// Key within the source.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    /// Absent: forget the key.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub value: Option<Vec<u8>>,
}

/// What is known of one origin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Row {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub origin: Bytes,
    /// Its next seq.
    #[prost(uint64, tag = "2")]
    pub next: u64,
    /// Seqs that need not be kept any more.
    #[prost(message, optional, tag = "3")]
    pub released: Option<wire::IntervalSet>,
    /// Seqs seen committed.
    #[prost(message, optional, tag = "4")]
    pub committed: Option<wire::IntervalSet>,
    /// How it ended: 0 not, 1 closed, 2 left.
    #[prost(uint32, tag = "5")]
    pub ended: u32,
    /// Its open names the end of the row before it.
    #[prost(bool, tag = "6")]
    pub names_previous: bool,
}

/// The footer of a sealed segment: its batches that were still kept, and the whole state after it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Footer {
    /// Format version.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// State after the last record of this segment; without batches.
    #[prost(message, optional, tag = "2")]
    pub state: Option<Entry>,
    /// Batches of this segment that were kept when it was sealed.
    #[prost(message, repeated, tag = "3")]
    pub kept: Vec<Kept>,
}

/// Where a kept batch lies.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Kept {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub origin: Bytes,
    /// Its number.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// Offset of its record in the segment.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Its place among the record's batches.
    #[prost(uint32, tag = "4")]
    pub part: u32,
    /// Bytes of header and payload.
    #[prost(uint32, tag = "5")]
    pub bytes: u32,
    /// Its kind, as [`super::index::Kind`] numbers it.
    #[prost(uint32, tag = "6")]
    pub kind: u32,
}
