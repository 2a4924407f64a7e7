//! What tools say about origins and batches of an outbox that was looked at. Pure.

use proto::header::{Header, Kind as HeaderKind};
use proto::ids::Partition;
use serde::Serialize;
use serde_json::{Value, json};

use super::index::{Ended, OriginRow, Place};
use super::look::Look;

/// One origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OriginView {
    /// The run.
    pub origin: String,
    /// When it was minted, milliseconds since the epoch.
    pub minted_unix_ms: u64,
    /// Its next seq.
    pub next_seq: u64,
    /// `open` (running, or ended without a close), `closed`, `left`.
    pub ended: &'static str,
    /// Seqs that are kept because they are not acked: `3..9, 12..13`, ends exclusive.
    pub unacked: String,
    /// How many.
    pub unacked_batches: u64,
}

/// One kept batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchView {
    /// The agent under whose name it travels.
    pub agent: String,
    /// Its run.
    pub origin: String,
    /// Its number.
    pub seq: u64,
    /// `open`, `data`, `void`, `mark`, `close`.
    pub kind: &'static str,
    /// Empty where it carries no events.
    pub dataset: String,
    /// `event_date=...`; for dead letters the day they were made.
    pub partition: String,
    /// It holds dead letters.
    pub dead_letters: bool,
    /// Events in it.
    pub events: u64,
    /// Bytes of header and payload.
    pub bytes: u64,
    /// Bytes of the decoded payload.
    pub raw_bytes: u64,
    /// Its segment file.
    pub file: String,
    /// Its record there.
    pub offset: u64,
    /// Aggregators that have stored it, as the running agent knows.
    pub stored_at: Vec<String>,
    /// Its record does not match its CRC.
    pub damaged: bool,
    /// What a batch without events says.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub says: Value,
}

/// All origins, oldest first.
pub fn origins(look: &Look) -> Vec<OriginView> {
    look.index.rows().iter().map(origin).collect()
}

fn origin(row: &OriginRow) -> OriginView {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for seq in row.kept.keys() {
        match spans.last_mut() {
            Some((_, end)) if *end == *seq => *end += 1,
            _ => spans.push((*seq, seq + 1)),
        }
    }
    let spans: Vec<String> = spans.iter().map(|(from, to)| format!("{from}..{to}")).collect();
    OriginView {
        origin: row.origin.to_string(),
        minted_unix_ms: row.origin.unix_ms(),
        next_seq: row.next,
        ended: match row.ended {
            Ended::No => "open",
            Ended::Closed => "closed",
            Ended::Left => "left",
        },
        unacked: if spans.is_empty() { "none".to_owned() } else { spans.join(", ") },
        unacked_batches: row.kept.len() as u64,
    }
}

/// All kept batches, oldest first. The look must be a deep one. `stored_at`: what `/status` of the running agent says.
pub fn batches(look: &Look, agent: &str, stored_at: Option<&Value>) -> Vec<BatchView> {
    let rows = look.index.rows().iter();
    rows.flat_map(|row| row.kept.iter().map(move |(seq, place)| (row, *seq, *place)))
        .map(|(row, seq, place)| {
            let origin = row.origin.to_string();
            let stored_at = nodes(stored_at, &origin, seq);
            batch(look, place, BatchName { agent: agent.to_owned(), origin, seq }, stored_at)
        })
        .collect()
}

struct BatchName {
    agent: String,
    origin: String,
    seq: u64,
}

fn batch(look: &Look, place: Place, name: BatchName, stored_at: Vec<String>) -> BatchView {
    let header = look.header(place);
    let data = header.as_ref().and_then(Header::data);
    BatchView {
        agent: name.agent,
        origin: name.origin,
        seq: name.seq,
        kind: place.kind.name(),
        dataset: data.map(|data| data.dataset.to_string()).unwrap_or_default(),
        partition: data.map(|data| data.partition.to_string()).unwrap_or_default(),
        dead_letters: data.is_some_and(|data| data.wire.dead_letters),
        events: data.map_or(0, |data| data.wire.events),
        bytes: u64::from(place.bytes),
        raw_bytes: data.map_or(0, |data| data.wire.raw_bytes),
        file: common::record_log::survey::segment_file_name(place.at.segment),
        offset: place.at.offset,
        stored_at,
        damaged: header.is_none(),
        says: header.as_ref().map_or(Value::Null, |header| says(&header.kind)),
    }
}

/// Nodes that hold a batch, by `stored_at` of `/status`: `[{"node", "origin", "seqs": [[from, to], ...]}, ...]`.
fn nodes(stored_at: Option<&Value>, origin: &str, seq: u64) -> Vec<String> {
    let holds = |entry: &&Value| {
        entry["origin"] == origin
            && entry["seqs"].as_array().into_iter().flatten().any(|span| {
                span[0].as_u64().is_some_and(|from| from <= seq) && span[1].as_u64().is_some_and(|to| seq < to)
            })
    };
    let entries = stored_at.and_then(Value::as_array).into_iter().flatten();
    entries.filter(holds).filter_map(|entry| Some(entry["node"].as_str()?.to_owned())).collect()
}

/// What a batch without events says, for people.
fn says(kind: &HeaderKind) -> Value {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match kind {
        HeaderKind::Data(_) => Value::Null,
        HeaderKind::Open(open) => json!({
            "previous": open.previous.as_ref().map(|p| json!({"origin": hex(&p.origin), "end": p.end})),
            "restored": open.restored,
            "after_left": open.after_left,
        }),
        HeaderKind::Void(void) => json!({
            "reason": void.reason().as_str_name(),
            "detail": void.detail,
            "dataset": void.dataset,
            "partition": void.partition.as_ref().and_then(|p| Partition::try_from(p).ok()).map(|p| p.to_string()),
            "events": void.events,
        }),
        HeaderKind::Mark(mark) => json!({"at_unix_ms": mark.at_unix_ms, "audit": audit(mark.audit.as_ref())}),
        HeaderKind::Close(close) => json!({
            "left": close.left, "at_unix_ms": close.at_unix_ms, "audit": audit(close.audit.as_ref()),
        }),
    }
}

fn audit(audit: Option<&proto::wire::Audit>) -> Value {
    let counts = audit.map(|audit| &audit.counts[..]).unwrap_or_default();
    let sum = |pick: fn(&proto::wire::AuditCount) -> u64| counts.iter().map(pick).sum::<u64>();
    json!({
        "read": sum(|count| count.read),
        "filtered": sum(|count| count.filtered),
        "published": sum(|count| count.published),
        "dead_lettered": sum(|count| count.dead_lettered),
        "voided": sum(|count| count.voided),
    })
}
