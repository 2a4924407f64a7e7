//! The channel in numbers, for a person: segments, what each agent and dataset holds, the oldest batch. Pure.

use std::collections::BTreeMap;

use proto::ids::BatchId;
use serde::{Deserialize, Serialize};

use super::bitmap::Bitmap;
use super::index::{Route, SegmentIndex};

/// Seqs without events (open, mark, void, close) stand under this name among the datasets.
pub const CONTROL: &str = "(control)";

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Its id as in the file's name.
    pub segment: String,
    /// Length of the file.
    pub bytes: u64,
    /// It has its footer.
    pub sealed: bool,
    /// Batches in it.
    pub batches: u64,
    /// Batches not answered; absent when that is not known.
    pub held_batches: Option<u64>,
    /// Batches answered; absent when that is not known.
    pub answered_batches: Option<u64>,
}

/// What is held of one agent or dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Batches.
    pub batches: u64,
    /// Their header and payload bytes.
    pub bytes: u64,
}

/// The held batch whose origin is the oldest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oldest {
    /// Its agent.
    pub agent: String,
    /// Its origin.
    pub origin: String,
    /// Its seq.
    pub seq: u64,
    /// When its origin was minted, milliseconds since the epoch.
    pub minted_unix_ms: u64,
    /// Its dataset, or [`CONTROL`].
    pub dataset: String,
    /// Its partition, if it has one.
    pub partition: Option<String>,
    /// Id of its segment.
    pub segment: u64,
    /// Where its record begins.
    pub offset: u64,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Segments in order.
    pub segments: Vec<SegmentInfo>,
    /// Held batches in all.
    pub held_batches: u64,
    /// Their header and payload bytes.
    pub held_bytes: u64,
    /// By agent, most bytes first.
    pub agents: Vec<Held>,
    /// By dataset, most bytes first.
    pub datasets: Vec<Held>,
    /// The oldest held batch.
    pub oldest: Option<Oldest>,
}

/// One segment to be described.
#[derive(Debug)]
pub struct Part<'a> {
    /// Its id.
    pub id: u64,
    /// Length of its file.
    pub bytes: u64,
    /// It has its footer.
    pub sealed: bool,
    /// What lies in it.
    pub index: &'a SegmentIndex,
    /// Bits of answered batches, and of those that cannot be read.
    pub answered: &'a Bitmap,
    /// False: nothing is known of answers.
    pub known: bool,
}

/// Counts.
pub fn describe<'a>(parts: impl Iterator<Item = Part<'a>>) -> Description {
    let mut all = Description::default();
    let (mut agents, mut datasets) = (BTreeMap::new(), BTreeMap::new());
    let mut oldest: Option<(BatchId, u64, u64, &Route)> = None;
    for part in parts {
        let answered = u64::from(part.answered.count());
        let batches = part.index.entries.len() as u64;
        all.segments.push(SegmentInfo {
            segment: format!("{:016x}", part.id),
            bytes: part.bytes,
            sealed: part.sealed,
            batches,
            held_batches: part.known.then_some(batches - answered),
            answered_batches: part.known.then_some(answered),
        });
        let mut next = part.answered.next_clear(0);
        while let Some(ordinal) = next {
            next = part.answered.next_clear(ordinal + 1);
            let entry = &part.index.entries[ordinal as usize];
            let (agent, origin) = part.index.origin_of(entry);
            let route = part.index.route_of(entry);
            all.held_batches += 1;
            all.held_bytes += entry.bytes();
            add(&mut agents, agent.as_str(), entry.bytes());
            add(&mut datasets, dataset(route), entry.bytes());
            let older = oldest.as_ref().is_none_or(|(id, ..)| {
                (origin.unix_ms(), agent, origin, entry.seq) < (id.origin.unix_ms(), &id.agent, id.origin, id.seq)
            });
            if older {
                oldest = Some((part.index.id(ordinal), part.id, u64::from(entry.offset), route));
            }
        }
    }
    (all.agents, all.datasets) = (sorted(agents), sorted(datasets));
    all.oldest = oldest.map(|(id, segment, offset, route)| Oldest {
        agent: id.agent.to_string(),
        origin: id.origin.to_string(),
        seq: id.seq,
        minted_unix_ms: id.origin.unix_ms(),
        dataset: dataset(route).to_owned(),
        partition: match route {
            Route::Data { partition, .. } => Some(partition.path()),
            Route::Control => None,
        },
        segment,
        offset,
    });
    all
}

/// The name under which a route is counted.
pub fn dataset(route: &Route) -> &str {
    match route {
        Route::Data { dataset, .. } => dataset.as_str(),
        Route::Control => CONTROL,
    }
}

fn add(counts: &mut BTreeMap<String, (u64, u64)>, name: &str, bytes: u64) {
    if !counts.contains_key(name) {
        counts.insert(name.to_owned(), (0, 0));
    }
    if let Some(count) = counts.get_mut(name) {
        *count = (count.0 + 1, count.1 + bytes);
    }
}

fn sorted(counts: BTreeMap<String, (u64, u64)>) -> Vec<Held> {
    let mut held: Vec<Held> =
        counts.into_iter().map(|(name, (batches, bytes))| Held { name, batches, bytes }).collect();
    held.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    held
}
