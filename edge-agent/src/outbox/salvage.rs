//! What damaged records still say of their batches, so that the voids which take their place are counted under the
//! right dataset, partition and hour. Damage mostly hits the payload, the bulk of a record; then the small part beside
//! it is whole. A CRC does not tell which, so it is believed only where its own sums agree; and only for counting: no
//! byte of it is sent, no position is taken from it.

use std::collections::HashMap;
use std::path::Path;

use common::record_log::survey;
use prost::Message;
use proto::header::{Header, Kind};
use proto::ids::Origin;

use super::entry::Entry;

/// Small parts of the records, damaged or not, that begin from `offset` on, with their offsets.
pub fn entries(dir: &Path, segment: u64, offset: u64) -> Vec<(u64, Entry)> {
    let path = dir.join(survey::segment_file_name(segment));
    let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    let records = survey::claimed_records(&path, segment, offset, bytes).unwrap_or_default();
    let decode = |record: survey::ClaimedRecord| Some((record.offset, Entry::decode(record.meta).ok()?));
    records.into_iter().filter_map(decode).filter(|(_, entry)| adds_up(entry)).collect()
}

/// What their batches are.
pub fn kinds(entries: &[(u64, Entry)]) -> HashMap<(Origin, u64), Kind> {
    let batches = entries.iter().flat_map(|(_, entry)| &entry.batches);
    let headers = batches.filter_map(|batch| Header::decode(batch.header.clone()).ok());
    headers.map(|header| ((header.origin, header.seq), header.kind)).collect()
}

/// Do the counts of a chunk agree with its batches?
fn adds_up(entry: &Entry) -> bool {
    let mut cut = 0u64;
    for count in &entry.audit {
        let fates = [count.filtered, count.published, count.dead_lettered];
        if fates.iter().try_fold(0u64, |sum, n| sum.checked_add(*n)) != Some(count.read) {
            return false;
        }
        cut = cut.saturating_add(count.published).saturating_add(count.dead_lettered);
    }
    let headers = entry.batches.iter().map(|batch| Header::decode(batch.header.clone()));
    let mut in_batches = 0u64;
    for header in headers {
        let Ok(header) = header else { return false };
        in_batches = in_batches.saturating_add(header.events());
    }
    cut == in_batches
}
