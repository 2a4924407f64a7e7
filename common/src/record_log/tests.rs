//! The record log against a plain model, with reopening; damage and failures of every kind.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

fn options(dir: &Path) -> Options {
    Options { dir: dir.to_owned(), segment_bytes: 1000, max_record_bytes: 10_000 }
}

struct Opened {
    log: RecordLog,
    recovery: Recovery,
    sealed: BTreeMap<u64, Bytes>,
    unsealed: BTreeMap<u64, Vec<LoadedRecord>>,
}

fn open(dir: &Path) -> Opened {
    let (mut sealed, mut unsealed) = (BTreeMap::new(), BTreeMap::new());
    let (log, recovery) = RecordLog::open(options(dir), |segment| match segment {
        LoadedSegment::Sealed { id, footer, .. } => {
            sealed.insert(id, footer);
        }
        LoadedSegment::Unsealed { id, records, .. } => {
            unsealed.insert(id, records);
        }
    })
    .unwrap();
    Opened { log, recovery, sealed, unsealed }
}

/// Three synced records in one unsealed segment; returns its file and where they lie.
fn three_records(dir: &Path, sync_each: bool) -> (std::path::PathBuf, Vec<RecordAt>) {
    let mut log = open(dir).log;
    let mut at = Vec::new();
    for n in 0..3u8 {
        at.push(log.append(&[n; 7], &[n + 100; 50]).unwrap());
        if sync_each {
            log.sync().unwrap();
        }
    }
    log.sync().unwrap();
    (dir.join(segment::file_name(at[0].segment)), at)
}

#[derive(Debug, Clone)]
enum Op {
    Append { meta: Vec<u8>, parts: Vec<Vec<u8>> },
    Sync,
    Seal,
    Remove(usize),
    Crash { keep: usize },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
    prop_oneof![
        6 => (bytes(40), prop::collection::vec(bytes(300), 0..4)).prop_map(|(meta, parts)| Op::Append { meta, parts }),
        3 => Just(Op::Sync),
        1 => Just(Op::Seal),
        1 => any::<usize>().prop_map(Op::Remove),
        1 => any::<usize>().prop_map(|keep| Op::Crash { keep }),
        1 => Just(Op::Reopen),
    ]
}

/// What must be there: per segment its synced records, and its footer once it is sealed.
#[derive(Default)]
struct Model {
    synced: BTreeMap<RecordAt, (Vec<u8>, Vec<u8>)>,
    buffered: BTreeMap<RecordAt, (Vec<u8>, Vec<u8>)>,
    footers: BTreeMap<u64, Vec<u8>>,
    highest: u64,
}

impl Model {
    fn check(&self, opened: &Opened) -> Result<(), TestCaseError> {
        let reader = opened.log.reader();
        for (at, (meta, body)) in &self.synced {
            let record = reader.read(*at).unwrap();
            prop_assert_eq!((&record.meta[..], &record.body[..]), (&meta[..], &body[..]));
        }
        let footers: BTreeMap<u64, Vec<u8>> = opened.sealed.iter().map(|(&id, f)| (id, f.to_vec())).collect();
        prop_assert_eq!(&footers, &self.footers);
        prop_assert_eq!(&opened.recovery.corrupt, &vec![]);
        let found: Vec<RecordAt> = opened.unsealed.values().flatten().map(|r| r.at).collect();
        let expected: Vec<RecordAt> =
            self.synced.keys().copied().filter(|at| !self.footers.contains_key(&at.segment)).collect();
        prop_assert_eq!(found, expected);
        Ok(())
    }

    /// Ids are never given twice.
    fn saw(&mut self, at: RecordAt) -> Result<(), TestCaseError> {
        prop_assert!(at.segment >= self.highest, "segment {} after {}", at.segment, self.highest);
        self.highest = at.segment;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_synced_is_there_after_any_history(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path());
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Append { meta, parts } => {
                    let body: Vec<Bytes> = parts.iter().cloned().map(Bytes::from).collect();
                    let at = opened.log.append_parts(&meta, &body).unwrap();
                    model.saw(at)?;
                    model.buffered.insert(at, (meta, parts.concat()));
                }
                Op::Sync => {
                    opened.log.sync().unwrap();
                    model.synced.append(&mut model.buffered);
                }
                Op::Seal => match opened.log.seal(b"the footer") {
                    Ok(id) => {
                        model.synced.append(&mut model.buffered);
                        model.footers.insert(id, b"the footer".to_vec());
                    }
                    Err(LogError::NothingToSeal) => prop_assert!(model.buffered.is_empty()),
                    Err(other) => panic!("{other}"),
                },
                Op::Remove(pick) => {
                    let ids: Vec<u64> = model.footers.keys().copied().collect();
                    if !ids.is_empty() {
                        let id = ids[pick % ids.len()];
                        opened.log.remove(id).unwrap();
                        model.footers.remove(&id);
                        model.synced.retain(|at, _| at.segment != id);
                    }
                }
                Op::Crash { keep } => {
                    // The process dies; of what was written and not synced any prefix may be there.
                    let active = opened.log.active.as_mut().map(|active| {
                        let synced = active.synced;
                        active.write().unwrap();
                        (active.id, synced, active.bytes)
                    });
                    drop(opened);
                    if let Some((id, synced, bytes)) = active {
                        let len = synced + keep as u64 % (bytes - synced + 1);
                        let file = fs::OpenOptions::new().write(true).open(dir.path().join(segment::file_name(id)));
                        file.unwrap().set_len(len).unwrap();
                        let kept = |at: &RecordAt, (meta, body): &(Vec<u8>, Vec<u8>)| {
                            at.offset + (RECORD_HEADER_BYTES + meta.len() + body.len()) as u64 <= len
                        };
                        model.buffered.retain(|at, record| kept(at, record));
                    }
                    model.synced.append(&mut model.buffered);
                    opened = reopen(dir.path(), &mut model)?;
                }
                Op::Reopen => {
                    opened.log.sync().unwrap();
                    model.synced.append(&mut model.buffered);
                    drop(opened);
                    opened = reopen(dir.path(), &mut model)?;
                }
            }
            let on_disk: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
            prop_assert!(opened.log.total_bytes() >= on_disk);
        }
    }
}

/// Opens, compares with the model, and gives what was unsealed its footer.
fn reopen(dir: &Path, model: &mut Model) -> Result<Opened, TestCaseError> {
    let mut opened = open(dir);
    model.check(&opened)?;
    for &id in opened.unsealed.keys() {
        opened.log.seal_recovered(id, b"late").unwrap();
        model.footers.insert(id, b"late".to_vec());
    }
    Ok(opened)
}

#[test]
fn golden_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).log;
    log.append(b"meta", b"body!").unwrap();
    log.seal(b"foot").unwrap();
    let hex: String =
        fs::read(dir.path().join("0000000000000000.seg")).unwrap().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

// File header, record, footer, trailer: a change here is a new format version.
const GOLDEN: &str = "43545347010000000000000000000000324fcb2d\
    435452430000000004000000050000001400000000000000f191dee3fe49ed2e6d657461626f647921\
    435452430100000004000000000000003d0000000000000051dfc64b5a22dbe1666f6f74\
    435446543d0000000000000079000000000000002b7a8c43";

#[test]
fn a_tail_torn_at_every_byte_is_cut_off() {
    let source = tempfile::tempdir().unwrap();
    let (file, at) = three_records(source.path(), true);
    let whole = fs::read(&file).unwrap();
    for len in 0..whole.len() {
        for garbage in [0u8, 0xff] {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = whole[..len].to_vec();
            // A file may also have grown before its bytes came.
            bytes.resize(len + 3, garbage);
            let tail_was_lost = bytes[len..] != whole[len..whole.len().min(len + 3)] || len + 3 != whole.len();
            fs::write(dir.path().join(file.file_name().unwrap()), &bytes).unwrap();
            let opened = open(dir.path());
            assert_eq!(opened.recovery.corrupt, vec![], "cut at {len}");
            let survivors = at.iter().filter(|at| at.offset + 89 <= len as u64).count();
            let found: usize = opened.unsealed.values().map(Vec::len).sum();
            assert!(found == survivors || !tail_was_lost, "cut at {len}: {found} of {survivors}");
            let again = open(dir.path());
            assert_eq!(again.recovery.torn_bytes, 0, "cut at {len}");
        }
    }
}

#[test]
fn a_flipped_byte_before_valid_records_is_damage_and_costs_one_record() {
    for sync_each in [true, false] {
        let source = tempfile::tempdir().unwrap();
        let (file, at) = three_records(source.path(), sync_each);
        let whole = fs::read(&file).unwrap();
        for flip in 0..at[2].offset as usize {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = whole.clone();
            bytes[flip] ^= 0x10;
            fs::write(dir.path().join(file.file_name().unwrap()), &bytes).unwrap();
            let opened = open(dir.path());
            assert_eq!(opened.recovery.torn_bytes, 0, "byte {flip}");
            assert_eq!(opened.recovery.corrupt.len(), 1, "byte {flip}");
            let in_header = flip < at[0].offset as usize;
            assert_eq!(opened.recovery.corrupt[0].maybe_unsynced, !sync_each && !in_header, "byte {flip}");
            let hit = at.iter().position(|at| (at.offset as usize..at.offset as usize + 89).contains(&flip));
            let expected: Vec<RecordAt> =
                at.iter().enumerate().filter(|(n, _)| Some(*n) != hit).map(|(_, at)| *at).collect();
            let found: Vec<RecordAt> = opened.unsealed.values().flatten().map(|r| r.at).collect();
            assert_eq!(found, expected, "byte {flip}");
        }
    }
}

#[test]
fn a_record_behind_damage_is_found_wherever_the_search_buffer_ends() {
    let mebibyte = 1024 * 1024;
    for body in (mebibyte - 40)..(mebibyte - 24) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { max_record_bytes: u64::MAX, ..options(dir.path()) };
        let (mut log, _) = RecordLog::open(options, |_| {}).unwrap();
        let first = log.append(b"", &vec![7; body]).unwrap();
        log.sync().unwrap();
        let second = log.append(b"", b"CTRC CTRC").unwrap();
        log.sync().unwrap();
        drop(log);
        let path = dir.path().join(segment::file_name(first.segment));
        let mut bytes = fs::read(&path).unwrap();
        bytes[first.offset as usize + 40] = 0;
        fs::write(&path, bytes).unwrap();
        let opened = open(dir.path());
        assert_eq!(opened.recovery.corrupt.len(), 1, "body of {body}");
        assert!(!opened.recovery.corrupt[0].maybe_unsynced);
        let found: Vec<RecordAt> = opened.unsealed.values().flatten().map(|r| r.at).collect();
        assert_eq!(found, [second], "body of {body}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nothing_is_made_up_from_damaged_bytes(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..12),
        sealed in any::<bool>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).log;
        let mut appended = BTreeMap::new();
        for body in &bodies {
            appended.insert(log.append(body, body).unwrap(), Bytes::from(body.clone()));
            log.sync().unwrap();
        }
        if sealed {
            log.seal(b"footer").unwrap();
        }
        drop(log);
        let path = dir.path().join(segment::file_name(appended.keys().next().unwrap().segment));
        let mut bytes = fs::read(&path).unwrap();
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.map_or(bytes.len(), |index| index.index(bytes.len())));
        fs::write(&path, &bytes).unwrap();
        let opened = open(dir.path());
        let mut last_valid = 0;
        for record in opened.unsealed.values().flatten() {
            prop_assert_eq!(Some(&record.meta), appended.get(&record.at));
            prop_assert_eq!(&opened.log.reader().read(record.at).unwrap().body, &appended[&record.at]);
            last_valid = record.at.offset;
        }
        let before = appended.keys().filter(|at| at.offset <= last_valid).count();
        let found = opened.unsealed.values().flatten().count();
        // A record that is missing in front of a valid one was reported.
        prop_assert!(found == before || found == 0 || !opened.recovery.corrupt.is_empty());
        // What was cut off or reported once is not found a second time, and nothing more is lost.
        let again = open(dir.path());
        prop_assert_eq!(again.recovery.torn_bytes, 0);
        prop_assert_eq!(again.unsealed, opened.unsealed);
    }
}

#[test]
fn a_file_in_which_nothing_can_be_read_is_kept_under_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = three_records(dir.path(), true);
    let zeros = vec![0; fs::metadata(&file).unwrap().len() as usize];
    fs::write(&file, &zeros).unwrap();
    let opened = open(dir.path());
    assert_eq!((opened.recovery.torn_bytes, opened.recovery.corrupt.len()), (0, 1));
    assert_eq!(fs::read(file.with_extension("seg.damaged")).unwrap(), zeros);
    assert!(!file.exists());
    drop(opened);
    let again = open(dir.path());
    assert_eq!(again.recovery.corrupt, vec![], "reported once");
    assert!(again.log.next_id > 1, "no id is given twice");
}

#[test]
fn a_log_beside_others_takes_the_next_id_and_touches_none() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = three_records(dir.path(), true);
    let before = fs::read(&file).unwrap();
    let options = Options { dir: dir.path().to_owned(), segment_bytes: 1 << 20, max_record_bytes: 1 << 20 };
    let mut beside = RecordLog::beside(options).unwrap();
    let at = beside.append(b"meta", b"body").unwrap();
    assert_eq!((at.segment, beside.seal(b"foot").unwrap()), (1, 1));
    assert_eq!(fs::read(&file).unwrap(), before);
    let files = survey::segment_files(dir.path()).unwrap();
    let survey = survey::Survey::of(&files[1].1, 1, true).unwrap();
    assert!(matches!(&survey.seal, survey::Seal::Good { footer, offset: 60 } if &footer[..] == b"foot"));
    assert_eq!((survey.records.len(), survey.end), (1, 60));
}

#[test]
fn damaged_contents_still_say_what_they_claim_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let (file, at) = three_records(dir.path(), true);
    let mut bytes = fs::read(&file).unwrap();
    bytes[at[1].offset as usize + 60] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let survey = survey::Survey::of(&file, 0, false).unwrap();
    assert_eq!((survey.records.len(), &survey.seal, survey.sound), (2, &survey::Seal::None, true));
    let (from, to) = (survey.records[0].end(), survey.records[1].at.offset);
    assert_eq!((from, to), (at[1].offset, at[2].offset));
    let claimed = survey::claimed_records(&file, 0, from, to).unwrap();
    assert_eq!(claimed.iter().map(|claim| (claim.offset, claim.end)).collect::<Vec<_>>(), vec![(from, to)]);
}

#[test]
fn a_flipped_byte_in_the_last_record_is_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (file, at) = three_records(dir.path(), true);
    let mut bytes = fs::read(&file).unwrap();
    bytes[at[2].offset as usize + 60] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let opened = open(dir.path());
    assert_eq!((opened.recovery.torn_bytes, opened.recovery.corrupt.len()), (89, 0));
    assert_eq!(opened.unsealed.values().map(Vec::len).sum::<usize>(), 2);
}

#[test]
fn a_damaged_footer_is_reported_and_the_records_are_kept() {
    let source = tempfile::tempdir().unwrap();
    let mut log = open(source.path()).log;
    log.append(b"a", &[1; 100]).unwrap();
    let end = log.active().unwrap().1 as usize;
    let id = log.seal(b"footer").unwrap();
    let whole = fs::read(source.path().join(segment::file_name(id))).unwrap();
    for flip in end..whole.len() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        bytes[flip] ^= 4;
        fs::write(dir.path().join(segment::file_name(id)), bytes).unwrap();
        let mut opened = open(dir.path());
        let in_footer = flip < whole.len() - TRAILER_BYTES;
        assert_eq!(opened.recovery.corrupt.len(), usize::from(in_footer), "byte {flip}");
        assert_eq!(opened.unsealed[&id].len(), 1, "byte {flip}");
        opened.log.seal_recovered(id, b"again").unwrap();
        assert_eq!(open(dir.path()).sealed[&id], b"again"[..]);
    }
}

#[test]
fn a_body_that_holds_a_copied_record_is_not_taken_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = three_records(dir.path(), true);
    let copied = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let mut log = open(dir.path()).log;
    let at = log.append(b"", &copied).unwrap();
    log.sync().unwrap();
    drop(log);
    let path = dir.path().join(segment::file_name(at.segment));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let opened = open(dir.path());
    assert_eq!(opened.recovery.corrupt, vec![]);
    assert!(opened.unsealed.is_empty());
}

#[test]
fn the_first_storage_error_latches() {
    for failing in [StorageOp::Create, StorageOp::Write, StorageOp::SyncData, StorageOp::SyncAll, StorageOp::SyncDir] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).log;
        let broken = Arc::new(AtomicBool::new(false));
        let switch = broken.clone();
        let hook = move |op| match op == failing && switch.load(Ordering::Relaxed) {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => Ok(()),
        };
        log.set_fault_hook(Arc::new(hook));
        log.append(b"kept", b"").unwrap();
        log.sync().unwrap();
        let sealed = log.seal(b"").unwrap();
        broken.store(true, Ordering::Relaxed);
        let failed = log.append(b"lost", b"").and_then(|_| log.sync()).unwrap_err();
        assert!(matches!(failed, LogError::Storage { .. }), "{failing:?}: {failed}");
        broken.store(false, Ordering::Relaxed);
        // The disk works again, yet nothing is answered until the log was opened anew.
        for later in [log.append(b"", b"").map(drop), log.sync(), log.seal(b"").map(drop), log.remove(sealed)] {
            assert_eq!(later.unwrap_err().to_string(), failed.to_string(), "{failing:?}");
        }
        drop(log);
        assert!(open(dir.path()).sealed.contains_key(&sealed));
    }
}

#[test]
fn a_full_file_system_is_waited_for() {
    for failing in [StorageOp::Create, StorageOp::Write] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).log;
        log.wait_for_space();
        let full = Arc::new(AtomicBool::new(false));
        let switch = full.clone();
        log.set_fault_hook(Arc::new(move |op| match op == failing && switch.load(Ordering::Relaxed) {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => Ok(()),
        }));
        let first = log.append(b"first", b"1").unwrap();
        log.sync().unwrap();
        full.store(true, Ordering::Relaxed);
        if failing == StorageOp::Write {
            assert!(log.seal(b"footer").unwrap_err().is_full());
            // What was appended stays, also more than is written at once, and is stored when there is room.
            let second = log.append(b"second", &[2; 100]).unwrap();
            assert!(log.sync().unwrap_err().is_full() && log.sync().unwrap_err().is_full());
            assert_eq!(fs::metadata(dir.path().join(segment::file_name(0))).unwrap().len(), second.offset);
            full.store(false, Ordering::Relaxed);
            log.sync().unwrap();
            assert_eq!(log.reader().read(second).unwrap().body, vec![2; 100]);
        }
        full.store(false, Ordering::Relaxed);
        log.seal(b"footer").unwrap();
        full.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            let failed = log.append(b"third", b"").and_then(|_| log.sync()).unwrap_err();
            assert!(failed.is_full(), "{failing:?}: {failed}");
        }
        full.store(false, Ordering::Relaxed);
        let third = log.append(b"third", b"3").unwrap();
        log.sync().unwrap();
        drop(log);
        let opened = open(dir.path());
        assert_eq!(opened.recovery, Recovery::default(), "{failing:?}");
        assert_eq!(opened.sealed[&first.segment], b"footer"[..]);
        assert_eq!(opened.unsealed[&third.segment].last().unwrap().meta, b"third"[..], "{failing:?}");
    }
}

#[test]
fn what_is_sealed_at_start_was_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (file, at) = three_records(dir.path(), true);
    let before = fs::read(&file).unwrap();
    let id = at[0].segment;
    for failing in [StorageOp::Rewrite, StorageOp::SyncData] {
        let mut log = open(dir.path()).log;
        log.set_fault_hook(Arc::new(move |op| match op == failing {
            true => Err(io::Error::other("injected")),
            false => Ok(()),
        }));
        let failed = log.seal_recovered(id, b"footer").unwrap_err();
        assert!(failed.to_string().contains("rewriting"), "{failing:?}: {failed}");
        assert_eq!(fs::read(&file).unwrap(), before, "{failing:?}: sealed what may be in memory only");
    }
    let mut opened = open(dir.path());
    opened.log.seal_recovered(id, b"footer").unwrap();
    assert_eq!(fs::read(&file).unwrap()[..before.len()], before);
    assert_eq!(open(dir.path()).sealed[&id], b"footer"[..]);
}

#[test]
fn damage_is_seen_before_anything_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, at) = three_records(dir.path(), true);
    let mut bytes = fs::read(&file).unwrap();
    bytes[at[0].offset as usize + RECORD_HEADER_BYTES + 3] ^= 1;
    bytes.extend_from_slice(b"torn");
    fs::write(&file, &bytes).unwrap();
    let seen = survey::damage(dir.path()).unwrap();
    assert_eq!(fs::read(&file).unwrap(), bytes);
    assert_eq!(seen, open(dir.path()).recovery.corrupt);
    assert_eq!(seen.len(), 1);
    assert_eq!(survey::damage(&dir.path().join("missing")).unwrap(), []);
}

#[test]
fn limits_and_wrong_calls_do_not_latch() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).log;
    assert!(matches!(log.append(b"x", &[0; 10_000]), Err(LogError::TooLarge { bytes: 10_001, limit: 10_000 })));
    assert!(matches!(log.seal(b""), Err(LogError::NothingToSeal)));
    assert!(matches!(log.remove(0), Err(LogError::WrongSegment { .. })));
    assert!(matches!(log.seal_recovered(0, b""), Err(LogError::WrongSegment { .. })));
    let at = log.append(b"x", &[0; 9_999]).unwrap();
    assert!(log.is_full());
    log.sync().unwrap();
    assert_eq!(log.reader().read(at).unwrap().body.len(), 9_999);
    let id = log.seal(b"").unwrap();
    assert!(!log.is_full());
    assert!(matches!(log.reader().read(RecordAt { segment: id, offset: 21 }), Err(ReadError::Corrupt { .. })));
    log.remove(id).unwrap();
    assert!(matches!(log.reader().read(at), Err(ReadError::NotFound { .. })));
}

#[test]
fn ids_are_not_reused_after_everything_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    for _ in 0..4 {
        let mut log = open(dir.path()).log;
        let at = log.append(b"x", b"y").unwrap();
        assert!(Some(at.segment) > last, "{at:?} after {last:?}");
        last = Some(at.segment);
        let id = log.seal(b"").unwrap();
        log.remove(id).unwrap();
    }
}

#[test]
fn a_newer_format_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut header = segment::encode_file_header(0);
    header[4] = 2;
    let crc = crc32c::crc32c(&header[..16]).to_le_bytes();
    header[16..].copy_from_slice(&crc);
    fs::write(dir.path().join(segment::file_name(0)), header).unwrap();
    let error = RecordLog::open(options(dir.path()), |_| {}).unwrap_err();
    assert!(matches!(error, LogError::NewerFormat { found: 2, newest: 1, .. }), "{error}");
}
