//! Opening the channel: footers are read, a segment without one is read whole, the ledger says what is answered.
//!
//! Damage is counted, named and kept, never skipped in silence; a missing or damaged ledger costs redelivery only. What
//! lies in a segment without a footer is in doubt until the owner has written it anew: an earlier sync of it may have
//! failed, in this process or in one before, and then it reads back from memory without being on the disk.

use std::collections::{HashMap, HashSet};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::record_log::{LoadedRecord, LoadedSegment, Options, RecordLog};
use proto::ids::AgentName;

use super::describe::{self, Description, Part};
use super::finding::Finding;
use super::index::{FooterError, IndexBuilder, NewEntry, Route, SegmentIndex, SeqKind};
use super::ledger::Ledger;
use super::lock::DirLock;
use super::meta::{self, MetaError};
use super::refusals::Refusals;
use super::salvage::{self, Damage, Seen};
use super::state::{OriginKey, Segment, State};
use super::{ChannelError, ChannelOptions, ChannelStats, Location};

/// Origins not heard of for this long are dropped from the ledger.
pub const ORIGIN_AGE_MS: u64 = 31 * 24 * 3600 * 1000;
const MAX_RECORD_BYTES: u64 = proto::MAX_MESSAGE_BYTES as u64 + 1024;

/// The opened parts.
pub struct Opened {
    pub log: RecordLog,
    pub ledger: Ledger,
    pub state: State,
    /// Segments without a footer; they get none.
    pub doubtful: Vec<u64>,
}

struct Found {
    id: u64,
    index: SegmentIndex,
    bytes: u64,
    sealed: bool,
    /// Some records are not ours: their ordinals are not those that the ledger means.
    damaged: bool,
}

/// Makes the data directory if it is missing, and keeps other processes out of it.
pub fn lock(data_dir: &Path) -> Result<DirLock, ChannelError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|source| ChannelError::Dir { path: data_dir.to_owned(), source })?;
    Ok(DirLock::take(data_dir)?)
}

/// Opens everything in the data directory, which is locked.
pub fn open(
    options: &ChannelOptions,
    stats: &ChannelStats,
    seen: &mut Seen,
    unix_ms: u64,
    now: u64,
) -> Result<Opened, ChannelError> {
    let log_options = Options {
        dir: options.data_dir.join("seg"),
        segment_bytes: options.segment_bytes,
        max_record_bytes: MAX_RECORD_BYTES,
    };
    salvage::before_open(&options.data_dir, options.unreadable_for, seen)?;
    let mut reader = FooterReader { unix_ms, found: Vec::new(), newer: None, names: HashSet::new() };
    let (log, recovery) = RecordLog::open(log_options, |segment| reader.take(segment))?;
    if let Some((segment, source)) = reader.newer {
        return Err(ChannelError::Newer { segment, source });
    }
    let (ledger, moved_aside) = Ledger::open(&options.data_dir.join("ledger"))?;
    if let Some(reason) = moved_aside {
        stats.ledger_resets.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            reason,
            "the ledger was damaged and is set aside as `ledger.damaged`; batches may be delivered again"
        );
    }
    // Bits are by ordinal. Where a record in the middle is lost, those behind it have moved up: no bit is believed then.
    let whole = |found: &&Found| !found.damaged && recovery.corrupt.iter().all(|corrupt| corrupt.segment != found.id);
    let live: HashSet<u64> = reader.found.iter().filter(whole).map(|found| found.id).collect();
    ledger.sweep(|segment| live.contains(&segment), unix_ms.saturating_sub(ORIGIN_AGE_MS))?;
    let mut state = State::new(options.max_bytes, ledger.broken_sends().into_iter().collect());
    state.refusals = Refusals::load(ledger.refusals());
    let mut doubtful = Vec::new();
    // Of a batch that lies in two segments the copy counts that is not in doubt.
    reader.found.sort_by_key(|found| !found.sealed);
    for mut found in reader.found {
        if !found.sealed {
            doubtful.push(found.id);
        }
        for (agent, origin) in &found.index.origins {
            know(&mut state, &ledger, &(found.index.agents[*agent as usize].clone(), *origin));
        }
        found.index.shrink();
        let bitmap = ledger.bitmap(found.id, found.index.entries.len() as u32);
        state.add_sealed(found.id, Arc::new(found.index), bitmap, found.bytes, now);
    }
    seen.take_new().iter().for_each(|damage| name(damage, &mut state, &ledger, stats));
    Ok(Opened { log, ledger, state, doubtful })
}

/// Loads an origin's row into the state unless it is there.
pub fn know(state: &mut State, ledger: &Ledger, key: &OriginKey) {
    if state.is_unknown(key) {
        state.know_origin(key.clone(), ledger.origin(&key.0, key.1).unwrap_or_default());
    }
}

/// The entry of a stored record.
pub fn entry_of(meta: &bytes::Bytes, body_bytes: u32, offset: u64) -> Result<NewEntry, MetaError> {
    let (agent, header) = meta::decode_header(meta)?;
    Ok(NewEntry {
        offset: u32::try_from(offset).map_err(|_| MetaError::Malformed)?,
        payload_bytes: body_bytes,
        header_bytes: header.bytes.len() as u32,
        kind: SeqKind::of(&header),
        route: Route::of(&header),
        id: proto::ids::BatchId { agent, origin: header.origin, seq: header.seq },
    })
}

/// Names damage in the log: where it is, which batch it hit, and whether that is lost here.
fn name(damage: &Damage, state: &mut State, ledger: &Ledger, stats: &ChannelStats) {
    let Finding { file, offset, bytes, what, meaning, id, .. } = &damage.finding;
    let batch = match (&damage.finding.agent, &damage.finding.origin, damage.finding.seq) {
        (Some(agent), Some(origin), Some(seq)) => format!("{agent}/{origin}/{seq}"),
        _ => String::new(),
    };
    if !damage.counts {
        tracing::warn!(file, offset, bytes, batch, what, meaning, "a segment is not whole, as a crash leaves it");
        return;
    }
    stats.corruptions.fetch_add(1, Ordering::Relaxed);
    let elsewhere = id.as_ref().is_some_and(|id| {
        let key = (id.agent.clone(), id.origin);
        know(state, ledger, &key);
        state.committed(&key).is_some_and(|seqs| seqs.contains(id.seq))
            || state.held(&key).is_some_and(|seqs| seqs.contains(id.seq))
    });
    tracing::error!(
        file,
        offset,
        bytes,
        batch,
        what,
        delivered_or_held_elsewhere = elsewhere,
        "a segment is damaged: what was lost comes again only from an agent that still has it; `catchment-aggregator \
         channel check` says more"
    );
}

/// Reads what the log finds; agent names are shared between segments.
struct FooterReader {
    unix_ms: u64,
    found: Vec<Found>,
    newer: Option<(u64, FooterError)>,
    names: HashSet<AgentName>,
}

impl FooterReader {
    fn take(&mut self, segment: LoadedSegment) {
        match segment {
            LoadedSegment::Sealed { id, footer, bytes } => match SegmentIndex::decode(&footer) {
                Ok(index) => {
                    let index = self.share_names(index);
                    self.found.push(Found { id, index, bytes, sealed: true, damaged: false });
                }
                Err(newer @ FooterError::Newer(_)) => self.newer = Some((id, newer)),
                Err(error) => {
                    tracing::error!(segment = id, %error, "a segment cannot be used; its file is kept: see `catchment-aggregator channel check`");
                }
            },
            LoadedSegment::Unsealed { id, records, bytes } => {
                let (index, damaged) = self.index_of(&records);
                let index = self.share_names(index);
                self.found.push(Found { id, index, bytes, sealed: false, damaged });
            }
        }
    }

    /// What is no batch of ours was named before the log was opened.
    fn index_of(&self, records: &[LoadedRecord]) -> (SegmentIndex, bool) {
        let mut builder = IndexBuilder::new(self.unix_ms);
        let mut damaged = false;
        for record in records {
            match entry_of(&record.meta, record.body_bytes, record.at.offset) {
                Ok(entry) => {
                    builder.push(&entry);
                }
                Err(_) => damaged = true,
            }
        }
        (builder.finish(), damaged)
    }

    fn share_names(&mut self, mut index: SegmentIndex) -> SegmentIndex {
        for agent in &mut index.agents {
            match self.names.get(agent) {
                Some(known) => *agent = known.clone(),
                None => {
                    self.names.insert(agent.clone());
                }
            }
        }
        index
    }
}

/// Everything for the forward side; right after opening, when no segment grows.
pub fn snapshot(state: &State, reader: common::record_log::RecordReader) -> super::Snapshot {
    let sealed = |(id, segment): (u64, &Segment)| Some((id, segment.sealed()?, segment.answered().clone()));
    let broken: HashMap<_, _> = state.broken().clone();
    super::Snapshot { segments: state.segments().filter_map(sealed).collect(), reader, broken }
}

/// The channel in numbers; `active`: id and length of the segment that is written.
pub fn describe(state: &State, active: Option<(u64, u64)>) -> Description {
    describe::describe(state.segments().map(|(id, segment)| Part {
        id,
        bytes: active.filter(|(active, _)| *active == id).map_or(segment.file_bytes, |(_, bytes)| bytes),
        sealed: !segment.is_growing(),
        index: segment.index(),
        answered: segment.answered(),
        known: true,
    }))
}

/// A batch and its place, for every unanswered batch of a segment.
pub fn unanswered(state: &State, segment: u64) -> Vec<(Location, u64)> {
    let Some(found) = state.segment(segment) else { return Vec::new() };
    let mut places = Vec::new();
    let mut next = found.answered().next_clear(0);
    while let Some(ordinal) = next {
        places.push((Location { segment, ordinal }, u64::from(found.index().entries[ordinal as usize].offset)));
        next = found.answered().next_clear(ordinal + 1);
    }
    places
}
