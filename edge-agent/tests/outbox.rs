//! The outbox under crashes: whatever was committed comes back with the same bytes and the positions that belong to it.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use edge_agent::outbox::entry::Position;
use edge_agent::outbox::index::Kind;
use edge_agent::outbox::look::look;
use edge_agent::outbox::{ChunkAppend, Options, Outbox, OutboxError, Recovered, Stored};
use proptest::prelude::*;
use proto::header::Header;
use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;

fn options(dir: &Path) -> Options {
    Options { dir: dir.join("outbox"), rejected: dir.join("rejected"), segment_bytes: 4_000 }
}

fn open(dir: &Path) -> (Outbox, Recovered) {
    Outbox::open(options(dir)).unwrap()
}

fn origin(n: u128) -> Origin {
    Origin::mint(1_793_500_000_000, n)
}

fn data(payload: &[u8]) -> wire::Data {
    wire::Data {
        dataset: "d".into(),
        partition: Some(wire::Partition { date: 20_000, hour: None }),
        codec: wire::Codec::None as i32,
        framing: wire::Framing::Lines as i32,
        events: 1,
        raw_bytes: payload.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(payload),
        ..Default::default()
    }
}

/// A chunk of `batches` batches that moves the position to `at`.
fn chunk(batches: usize, bytes: usize, at: u64) -> ChunkAppend {
    let payload = |n: usize| Bytes::from(vec![(at as u8).wrapping_add(n as u8); bytes]);
    ChunkAppend {
        batches: (0..batches).map(|n| (data(&payload(n)), payload(n))).collect(),
        positions: vec![Position { source: "s".into(), key: vec![1], value: Some(at.to_be_bytes().to_vec()) }],
        audit: vec![wire::AuditCount {
            dataset: "d".into(),
            read: batches as u64,
            published: batches as u64,
            ..Default::default()
        }],
        destroyed: Vec::new(),
    }
}

type Bytes2 = (Bytes, Bytes);

fn read(outbox: &Outbox, stored: &Stored) -> Bytes2 {
    let batch = outbox.reader().read(stored.place).unwrap();
    let header = Header::decode(batch.header.clone()).unwrap();
    header.check_payload(&batch.payload).unwrap();
    assert_eq!((header.origin, header.seq), (stored.origin, stored.seq));
    (batch.header, batch.payload)
}

fn position(outbox: &Outbox) -> u64 {
    let saved = outbox.index().positions("s");
    saved.first().map_or(0, |(_, value)| u64::from_be_bytes(value.as_slice().try_into().unwrap()))
}

#[derive(Debug, Clone)]
enum Step {
    Chunk {
        batches: usize,
        bytes: usize,
    },
    Commit,
    Release(u64, u64),
    CommitSeen(u64, u64),
    Mark,
    Tidy,
    /// The process dies: what was not committed may be gone. `tear` bytes are cut off the newest file.
    Crash {
        tear: u64,
    },
    NewOrigin,
    Void(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0usize..4, 0usize..1500).prop_map(|(batches, bytes)| Step::Chunk { batches, bytes }),
        5 => Just(Step::Commit),
        2 => (0u64..30, 1u64..10).prop_map(|(start, len)| Step::Release(start, start + len)),
        2 => (0u64..30, 1u64..30).prop_map(|(start, len)| Step::CommitSeen(start, start + len)),
        1 => Just(Step::Mark),
        2 => Just(Step::Tidy),
        2 => (0u64..3_000).prop_map(|tear| Step::Crash { tear }),
        1 => Just(Step::NewOrigin),
        1 => (0u64..30).prop_map(Step::Void),
    ];
    prop::collection::vec(step, 1..80)
}

/// What a correct outbox must hold.
#[derive(Debug, Default, Clone)]
struct Model {
    /// Committed (durable) batches and not released ones.
    kept: BTreeMap<(Origin, u64), Bytes2>,
    position: u64,
    read: u64,
}

fn newest_file(dir: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("outbox")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.pop().unwrap()
}

fn counted(outbox: &Outbox) -> u64 {
    outbox.index().audit.rows().0.iter().map(|count| count.read).sum()
}

fn check(outbox: &Outbox, model: &Model, tolerant: bool) -> Result<(), TestCaseError> {
    let kept: BTreeMap<_, _> = outbox.kept().iter().map(|s| ((s.origin, s.seq), read(outbox, s))).collect();
    for (id, bytes) in &model.kept {
        prop_assert_eq!(kept.get(id), Some(bytes), "lost or other bytes: {:?}", id);
    }
    // Released ones may come back after a crash (they are only sent again); others may not appear.
    if !tolerant {
        prop_assert_eq!(kept.len(), model.kept.len());
    }
    prop_assert_eq!(position(outbox), model.position);
    prop_assert_eq!(counted(outbox), model.read);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_committed_comes_back(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let (mut outbox, _) = open(dir.path());
        let mut durable = Model::default();
        let mut model = Model::default();
        let (mut run, mut next_position) = (1u128, 1u64);
        outbox.append_open(origin(run), wire::Open::default()).unwrap();
        let mut tolerant = false;
        for step in steps {
            match step {
                Step::Chunk { batches, bytes } => {
                    outbox.append_chunk(origin(run), chunk(batches, bytes, next_position)).unwrap();
                    model.position = next_position;
                    model.read += batches as u64;
                    next_position += 1;
                }
                Step::Mark => {
                    outbox.append_mark(origin(run), 5).unwrap();
                    model.read = 0;
                }
                Step::Commit => {
                    for stored in outbox.commit().unwrap() {
                        model.kept.insert((stored.origin, stored.seq), read(&outbox, &stored));
                    }
                    durable = model.clone();
                }
                Step::Release(start, end) | Step::CommitSeen(start, end) => {
                    // Only what was handed out can be released.
                    let seqs: IntervalSet = (start..end).filter(|seq| model.kept.contains_key(&(origin(run), *seq))).collect();
                    match step {
                        Step::Release(..) => outbox.release(origin(run), &seqs),
                        _ => outbox.committed(origin(run), &seqs),
                    };
                    for seq in seqs.seqs() {
                        model.kept.remove(&(origin(run), seq));
                        durable.kept.remove(&(origin(run), seq));
                    }
                }
                Step::Void(seq) => {
                    if seq > 0 && model.kept.contains_key(&(origin(run), seq)) {
                        prop_assert!(outbox.void(origin(run), seq, wire::VoidReason::Rejected, "test", None).unwrap());
                        for stored in outbox.commit().unwrap() {
                            model.kept.insert((stored.origin, stored.seq), read(&outbox, &stored));
                        }
                        durable = model.clone();
                        prop_assert_eq!(outbox.place(origin(run), seq).unwrap().kind, Kind::Void);
                    }
                }
                Step::Tidy => {
                    for stored in outbox.commit().unwrap() {
                        model.kept.insert((stored.origin, stored.seq), read(&outbox, &stored));
                    }
                    outbox.tidy().unwrap();
                    durable = model.clone();
                }
                Step::Crash { tear } => {
                    let committed = outbox.total_bytes();
                    drop(outbox);
                    let (size, file) = (std::fs::metadata(newest_file(dir.path())).map_or(0, |m| m.len()), newest_file(dir.path()));
                    // Uncommitted bytes may be on disk in part: whatever stands behind the last sync can be torn. Nothing
                    // is written before a sync here, so garbage is put behind it instead.
                    if tear > 0 && size > 0 && committed > 0 {
                        let mut bytes = std::fs::read(&file).unwrap();
                        bytes.extend(std::iter::repeat_n(0xA5, tear as usize));
                        std::fs::write(&file, bytes).unwrap();
                    }
                    let reopened = open(dir.path());
                    outbox = reopened.0;
                    prop_assert!(reopened.1.voided.is_empty(), "holes: {:?}", reopened.1);
                    tolerant = true;
                    model = durable.clone();
                    check(&outbox, &model, tolerant)?;
                    run += 1;
                    outbox.append_open(origin(run), wire::Open::default()).unwrap();
                }
                Step::NewOrigin => {
                    run += 1;
                    outbox.append_open(origin(run), wire::Open::default()).unwrap();
                }
            }
        }
        for stored in outbox.commit().unwrap() {
            model.kept.insert((stored.origin, stored.seq), read(&outbox, &stored));
        }
        check(&outbox, &model, tolerant)?;
    }
}

#[test]
fn space_comes_back_and_positions_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    for at in 1..=60 {
        outbox.append_chunk(origin(1), chunk(2, 1_000, at)).unwrap();
        outbox.commit().unwrap();
    }
    assert!(outbox.total_bytes() > 120_000);
    let all: IntervalSet = (0..121).collect();
    assert_eq!(outbox.release(origin(1), &all), 121);
    outbox.tidy().unwrap();
    assert!(outbox.total_bytes() < 10_000, "{}", outbox.total_bytes());
    drop(outbox);
    let (outbox, recovered) = open(dir.path());
    assert!(recovered.voided.is_empty() && outbox.kept().is_empty());
    assert_eq!(position(&outbox), 60);
    assert_eq!(outbox.newest_origin().unwrap().1, 121, "the end of the origin is still known");
}

#[test]
fn rows_go_when_the_next_open_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    let previous = wire::PreviousOrigin { origin: origin(1).to_bytes(), end: 1 };
    outbox.append_open(origin(2), wire::Open { previous: Some(previous), ..Default::default() }).unwrap();
    outbox.commit().unwrap();
    outbox.release(origin(1), &[0].into_iter().collect());
    outbox.tidy().unwrap();
    assert_eq!(outbox.index().rows().len(), 2, "nobody knows yet that the end was named");
    outbox.committed(origin(2), &[0].into_iter().collect());
    outbox.tidy().unwrap();
    assert_eq!(outbox.index().rows().len(), 1);
    drop(outbox);
    let (outbox, _) = open(dir.path());
    assert_eq!(outbox.newest_origin().unwrap().0, origin(2));
}

#[test]
fn a_damaged_record_becomes_voids_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    let mut places = Vec::new();
    for at in 1..=3 {
        outbox.append_chunk(origin(1), chunk(1, 500, at)).unwrap();
        places.extend(outbox.commit().unwrap());
    }
    drop(outbox);
    let file = newest_file(dir.path());
    let mut bytes = std::fs::read(&file).unwrap();
    let at = places.iter().find(|stored| stored.seq == 2).unwrap().place.at.offset as usize;
    bytes[at + 300] ^= 0xff;
    std::fs::write(&file, bytes).unwrap();
    let (outbox, recovered) = open(dir.path());
    assert_eq!(recovered.voided, [(origin(1), 2)]);
    assert_eq!(recovered.damage.len(), 1);
    let kinds: Vec<Kind> = outbox.kept().iter().map(|stored| stored.place.kind).collect();
    assert_eq!(kinds, [Kind::Open, Kind::Data, Kind::Void, Kind::Data]);
    assert_eq!(position(&outbox), 3);
    // Its events are counted as read, cut and void: the header beside the damaged payload still says how many.
    let void = outbox.reader().read(outbox.place(origin(1), 2).unwrap()).unwrap();
    let proto::header::Kind::Void(void) = Header::decode(void.header).unwrap().kind else { panic!("no void") };
    assert_eq!((void.dataset.as_str(), void.events), ("d", 1));
    assert_eq!(counted(&outbox), 3);
    let voided: u64 = outbox.index().audit.rows().0.iter().map(|count| count.voided).sum();
    assert_eq!(voided, 1);
    assert_eq!(std::fs::read_dir(dir.path().join("rejected")).unwrap().count(), 1);
    drop(outbox);
    assert!(open(dir.path()).1.voided.is_empty(), "once");
}

#[test]
fn a_damaged_segment_is_kept_before_anything_in_it_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    for at in 1..=3 {
        outbox.append_chunk(origin(1), chunk(1, 500, at)).unwrap();
        outbox.commit().unwrap();
    }
    let at = outbox.place(origin(1), 2).unwrap().at.offset as usize;
    drop(outbox);
    let file = newest_file(dir.path());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at + 300] ^= 0xff;
    bytes.extend_from_slice(b"the beginning of a record that was torn");
    std::fs::write(&file, &bytes).unwrap();
    // As on a full disk: nothing can be kept.
    let rejected = dir.path().join("rejected");
    std::fs::write(&rejected, b"").unwrap();
    for _ in 0..2 {
        let failed = Outbox::open(options(dir.path())).unwrap_err();
        assert!(matches!(failed, OutboxError::Rejected { .. }), "{failed}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "cut or sealed before it was kept");
    }
    std::fs::remove_file(&rejected).unwrap();
    let (_, recovered) = open(dir.path());
    assert_eq!((recovered.damage.len(), recovered.voided), (1, vec![(origin(1), 2)]));
    let kept = rejected.join(file.file_name().unwrap());
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
}

#[test]
fn damage_in_a_group_that_was_synced_costs_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    outbox.commit().unwrap();
    // Two records under one sync: the second does not prove that the first was durable, the third does.
    outbox.append_chunk(origin(1), chunk(1, 500, 1)).unwrap();
    outbox.append_chunk(origin(1), chunk(1, 500, 2)).unwrap();
    let group = outbox.commit().unwrap();
    outbox.append_chunk(origin(1), chunk(1, 500, 3)).unwrap();
    outbox.commit().unwrap();
    drop(outbox);
    let file = newest_file(dir.path());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[group[0].place.at.offset as usize + 300] ^= 0xff;
    std::fs::write(&file, bytes).unwrap();
    let (outbox, recovered) = open(dir.path());
    assert_eq!(recovered.voided, [(origin(1), 1)], "{:?}", recovered.damage);
    assert_eq!(position(&outbox), 3);
    assert_eq!(outbox.newest_origin().unwrap().1, 4);
}

#[test]
fn a_look_counts_what_a_start_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    outbox.commit().unwrap();
    // The second record does not prove that the first was durable: neither was ever told to be stored.
    outbox.append_chunk(origin(1), chunk(1, 500, 1)).unwrap();
    outbox.append_chunk(origin(1), chunk(1, 500, 2)).unwrap();
    let group = outbox.commit().unwrap();
    drop(outbox);
    let file = newest_file(dir.path());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[group[0].place.at.offset as usize + 300] ^= 0xff;
    std::fs::write(&file, bytes).unwrap();
    for deep in [false, true] {
        let look = look(&options(dir.path()).dir, deep).unwrap();
        assert_eq!((look.index.rows().last().unwrap().next, look.holes), (1, vec![]), "deep: {deep}");
    }
    let (outbox, recovered) = open(dir.path());
    assert_eq!((outbox.newest_origin().unwrap().1, recovered.voided), (1, vec![]));
}

#[test]
fn a_segment_without_anything_valid_stops_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    outbox.append_chunk(origin(1), chunk(1, 500, 1)).unwrap();
    outbox.commit().unwrap();
    let first = newest_file(dir.path());
    drop(outbox);
    // Opening again seals the first segment.
    drop(open(dir.path()));
    let mut bytes = std::fs::read(&first).unwrap();
    let (header, trailer) = (20, bytes.len() - 24);
    bytes[header..trailer].fill(0xA5);
    std::fs::write(&first, bytes).unwrap();
    assert!(!open(dir.path()).1.damage.is_empty());
    assert!(open(dir.path()).1.damage.is_empty(), "said once");
}

#[test]
fn a_forgotten_origin_never_comes_back_as_voids() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path());
    outbox.append_open(origin(1), wire::Open::default()).unwrap();
    outbox.append_chunk(origin(1), chunk(3, 2_000, 1)).unwrap();
    outbox.commit().unwrap();
    drop(outbox);
    let (mut outbox, _) = open(dir.path());
    let previous = Some(wire::PreviousOrigin { origin: origin(1).to_bytes(), end: 4 });
    outbox.append_open(origin(2), wire::Open { previous, ..Default::default() }).unwrap();
    outbox.commit().unwrap();
    // The last batches of the old run are released in the same moment in which the open that names its end is committed.
    outbox.committed(origin(2), &[0].into_iter().collect());
    outbox.release(origin(1), &(0..4).collect());
    outbox.tidy().unwrap();
    drop(outbox);
    let (mut outbox, recovered) = open(dir.path());
    assert_eq!(recovered.voided, []);
    assert_eq!(outbox.kept(), []);
    outbox.tidy().unwrap();
    assert_eq!(outbox.index().rows().iter().map(|row| row.origin).collect::<Vec<_>>(), [origin(2)]);
}
