//! What must hold of a destination, read from its bytes alone.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use collector::ledger::committed::covers;
use collector::log::View;
use collector::log::view::partitions::State;
use proto::intervals::IntervalSet;
use proto::record::{decode_record, number_name};
use proto::wire;
use proto::wire::commit_record::Action;

use crate::store::Kept;

/// `agent/origin/seq`.
pub type Name = String;

/// What the log says of each batch: covered, and as data, quarantined or without a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    Data,
    Quarantined,
    WithoutFile,
    Expired,
}

/// All records, in order; panics on a gap or a damaged one.
#[allow(dead_code, reason = "not for a log that is cleaned")]
pub fn records(store: &impl Kept) -> Vec<wire::CommitRecord> {
    decode(store.files_below("_catchment/commits"))
}

/// Records by path, which must have no holes.
pub fn decode(files: Vec<(String, Bytes)>) -> Vec<wire::CommitRecord> {
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
        Some(Action::Publish(publish)) => Some(publish),
        _ => None,
    }
}

fn set(set: &Option<wire::IntervalSet>) -> IntervalSet {
    set.as_ref().map(|s| IntervalSet::try_from(s).unwrap()).unwrap_or_default()
}

/// I4: each batch is covered once at most.
pub fn covered(records: &[wire::CommitRecord]) -> BTreeMap<Name, As> {
    let mut all = BTreeMap::new();
    for (n, record) in records.iter().enumerate() {
        let Some(publish) = publish(record) else { continue };
        for (cover, wire_cover) in covers(n as u64, publish).unwrap().iter().zip(&publish.covers) {
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
            for seq in cover.expired.seqs() {
                let name = format!("{} expired", cover.key.batch(seq));
                assert_eq!(all.insert(name.clone(), As::Expired), None, "I4: {name} twice, again by record {n}");
            }
        }
    }
    all
}

/// Files that records put in place and none has taken away; I5: each is named by one record.
fn live_files(records: &[wire::CommitRecord]) -> BTreeMap<String, wire::PublishedFile> {
    let (mut live, mut named) = (BTreeMap::new(), BTreeSet::new());
    for record in records {
        let files = match &record.action {
            Some(Action::Publish(publish)) => &publish.files,
            Some(Action::Compact(compact)) => {
                for path in &compact.replaced {
                    assert!(live.remove(path).is_some(), "S1c: {path} is replaced twice");
                }
                assert!(compact.missing.is_empty(), "nobody removed {:?}", compact.missing);
                &compact.files
            }
            _ => continue,
        };
        for file in files {
            assert!(named.insert(file.r#final.clone()), "I5: {} is in two records", file.r#final);
            live.insert(file.r#final.clone(), file.clone());
        }
    }
    live
}

/// I5 and I8: every recorded file is in its place with its bytes, nothing else is; each batch's lines stand in
/// recorded files exactly once, where the log says; every sealed partition says what it holds. Returns what is published,
/// markers too.
pub fn files_match_the_log(store: &impl Kept, records: &[wire::CommitRecord]) -> BTreeSet<String> {
    let covered = covered(records);
    let live = live_files(records);
    let mut lines: BTreeMap<Name, u32> = BTreeMap::new();
    let mut quarantined: BTreeMap<Name, u32> = BTreeMap::new();
    for file in live.values() {
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
    let markers = markers_match_the_log(store, records);
    for (path, _) in store.files_below("") {
        let ours = path.starts_with("_catchment/") && !path.starts_with("_catchment/dead-letter/");
        let ours = ours && !path.starts_with("_catchment/quarantine/");
        let known = ours || live.contains_key(&path) || markers.contains(&path);
        assert!(known, "{path} is published and in no record, or replaced and still there");
    }
    let mut expected: BTreeMap<Name, u32> = BTreeMap::new();
    let mut set_aside: BTreeMap<Name, u32> = BTreeMap::new();
    for (name, kind) in &covered {
        match kind {
            As::Data => expected.extend([(format!("{name} one"), 1), (format!("{name} two"), 1)]),
            As::Quarantined => *set_aside.entry(name.clone()).or_default() += 1,
            As::Expired => *set_aside.entry(name.trim_end_matches(" expired").to_owned()).or_default() += 1,
            As::WithoutFile => {}
        }
    }
    assert_eq!(quarantined, set_aside, "each quarantined batch lies in one quarantine file");
    assert_eq!(lines, expected, "I4/I8: each event of a committed batch is in one published file");
    live.into_keys().chain(markers).collect()
}

/// Every sealed partition has one marker with the number of its last record and the counts of its files.
fn markers_match_the_log(store: &impl Kept, records: &[wire::CommitRecord]) -> BTreeSet<String> {
    let mut view = View::default();
    for (n, record) in records.iter().enumerate() {
        let applied = view.apply(n as u64, record).unwrap();
        assert_eq!(applied.twice, 0, "record {n}");
    }
    let mut markers = BTreeSet::new();
    for (key, row) in view.partitions().iter() {
        let State::Sealed(sealed) = &row.state else { continue };
        let marker = collector::seal::marker(&view, key).expect("it is sealed");
        let bytes = store.file(&marker.path()).unwrap_or_else(|| panic!("{} is missing", marker.path()));
        assert_eq!(bytes, marker.json, "{} is not what the log says", marker.path());
        let events: u64 = live_files(records)
            .values()
            .filter(|file| file.kind() == wire::FileKind::Data && file.r#final.starts_with(&format!("{}/", key.dir())))
            .map(|file| file.events)
            .sum();
        assert_eq!(events, sealed.seal.events + sealed.appended.events, "S6: {key}");
        markers.insert(marker.path());
    }
    markers
}
