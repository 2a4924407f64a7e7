//! What must hold of a destination, read from its bytes alone.

use std::collections::{BTreeMap, BTreeSet};

use collector::ledger::committed::covers;
use proto::intervals::IntervalSet;
use proto::record::{decode_record, number_name};
use proto::wire;

use crate::store::MemStore;

/// `agent/origin/seq`.
pub type Name = String;

/// What the log says of each batch: covered, and as data, quarantined or without a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    Data,
    Quarantined,
    WithoutFile,
}

/// All records, in order; panics on a gap or a damaged one.
pub fn records(store: &MemStore) -> Vec<wire::CommitRecord> {
    let files = store.files_below("_catchment/commits");
    files
        .iter()
        .enumerate()
        .map(|(n, (path, bytes))| {
            assert!(path.ends_with(&number_name(n as u64)), "the log has no holes: {path} is at {n}");
            decode_record(bytes).expect("a record is whole (TORN)")
        })
        .collect()
}

fn publish(record: &wire::CommitRecord) -> Option<&wire::Publish> {
    match &record.action {
        Some(wire::commit_record::Action::Publish(publish)) => Some(publish),
        Some(wire::commit_record::Action::Retire(_)) => None,
        other => panic!("{other:?}"),
    }
}

/// I4: each batch is covered once at most.
pub fn covered(store: &MemStore) -> BTreeMap<Name, As> {
    let mut all = BTreeMap::new();
    for (n, record) in records(store).iter().enumerate() {
        let Some(publish) = publish(record) else { continue };
        for (cover, wire_cover) in covers(n as u64, publish).unwrap().iter().zip(&publish.covers) {
            let set = |set: &Option<wire::IntervalSet>| {
                set.as_ref().map(|s| IntervalSet::try_from(s).unwrap()).unwrap_or_default()
            };
            let (data, quarantined) = (set(&wire_cover.data), set(&wire_cover.quarantined));
            for seq in cover.seqs.seqs() {
                let kind = match (data.contains(seq), quarantined.contains(seq)) {
                    (true, false) => As::Data,
                    (false, true) => As::Quarantined,
                    (false, false) => As::WithoutFile,
                    (true, true) => panic!("{seq} is data and quarantined in record {n}"),
                };
                let name = cover.key.batch(seq).to_string();
                assert_eq!(all.insert(name.clone(), kind), None, "I4: {name} is covered twice, again by record {n}");
            }
        }
    }
    all
}

/// I5 and I8: every recorded file is in its place with its bytes, nothing else is; each batch's lines stand in
/// recorded files exactly once, where the log says.
pub fn files_match_the_log(store: &MemStore) {
    let covered = covered(store);
    let mut recorded = BTreeSet::new();
    let mut lines: BTreeMap<Name, u32> = BTreeMap::new();
    let mut quarantined: BTreeMap<Name, u32> = BTreeMap::new();
    for record in records(store) {
        for file in publish(&record).iter().flat_map(|publish| &publish.files) {
            assert!(recorded.insert(file.r#final.clone()), "I5: {} is in two records", file.r#final);
            assert!(store.file(&file.staged).is_none(), "{} is still staged", file.staged);
            let bytes = store.file(&file.r#final).unwrap_or_else(|| panic!("S3: {} is not in its place", file.r#final));
            assert_eq!(bytes.len() as u64, file.bytes, "{}", file.r#final);
            if file.kind() == wire::FileKind::Quarantine {
                for batch in collector::quarantine::read(bytes) {
                    *quarantined.entry(batch.unwrap().id.to_string()).or_default() += 1;
                }
            } else {
                for line in std::str::from_utf8(&bytes).unwrap().lines() {
                    *lines.entry(line.to_owned()).or_default() += 1;
                }
            }
        }
    }
    for (path, _) in store.files_below("") {
        let ours = path.starts_with("_catchment/") && !path.starts_with("_catchment/dead-letter/");
        let ours = ours && !path.starts_with("_catchment/quarantine/");
        assert!(ours || recorded.contains(&path), "{path} is published and in no record");
    }
    let of = |kind: As| {
        let names = covered.iter().filter(move |(_, k)| **k == kind).map(|(name, _)| (name.clone(), 1));
        names.collect::<BTreeMap<_, u32>>()
    };
    assert_eq!(quarantined, of(As::Quarantined), "each quarantined batch lies in one quarantine file");
    let mut expected: BTreeMap<Name, u32> = BTreeMap::new();
    for name in of(As::Data).keys() {
        expected.extend([(format!("{name} one"), 1), (format!("{name} two"), 1)]);
    }
    assert_eq!(lines, expected, "I4/I8: each event of a committed batch is in one published file");
}
