//! The tools on a channel that was made by the real code and then damaged: they say what is wrong and where, change
//! nothing unless told to, and a repair loses exactly what is damaged.

mod fakes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aggregator::channel::bitmap::Bitmap;
use aggregator::channel::index::SegmentIndex;
use aggregator::channel::{AppendJob, Appended, ChannelEvent, ChannelHandle, ChannelOptions, Location, Released};
use aggregator::tools::{At, CLEAN, FAILED, FOUND, Tool, execute};
use bytes::Bytes;
use common::record_log::RecordAt;
use common::record_log::survey::{Seal, Survey, segment_files};
use fakes::{Agent, Collector, Script, batch, eventually};
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// What lies in a channel.
type Batches = BTreeMap<BatchId, Bytes>;

struct Built {
    dir: TempDir,
    /// Not answered.
    held: Batches,
}

struct Open {
    channel: ChannelHandle,
    events: mpsc::UnboundedReceiver<ChannelEvent>,
    places: BTreeMap<BatchId, Location>,
    counts: BTreeMap<u64, u32>,
}

fn options(dir: &Path) -> ChannelOptions {
    ChannelOptions {
        data_dir: dir.to_owned(),
        max_bytes: 1 << 30,
        segment_bytes: 16 * 1024,
        keep_free_bytes: 0,
        tick: Duration::from_millis(5),
        pinned_after: Duration::from_secs(3600),
        unreadable_for: Duration::ZERO,
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

impl Open {
    fn at(dir: &Path) -> Self {
        let (channel, events) = ChannelHandle::open(options(dir), Arc::new(|_| {})).unwrap();
        Self { channel, events, places: BTreeMap::new(), counts: BTreeMap::new() }
    }

    fn append(&mut self, id: &BatchId, payload: &Bytes) {
        let kind = match id.seq {
            0 => wire::batch_header::Kind::Open(wire::Open::default()),
            _ => wire::batch_header::Kind::Data(wire::Data {
                min_event_time_us: 1_795_132_800_000_000,
                max_event_time_us: 1_795_132_860_000_000,
                ..fakes::data_of(&format!("d{}", id.seq % 2), payload)
            }),
        };
        let header = Header::encode(id.origin, id.seq, kind).unwrap();
        let (reply, answer) = oneshot::channel();
        let job = AppendJob { agent: id.agent.clone(), header, payload: payload.clone(), permit: None, reply };
        self.channel.append(job);
        assert_eq!(answer.blocking_recv().unwrap().appended, Appended::Durable);
        while let Ok(event) = self.events.try_recv() {
            if let ChannelEvent::Appended { segment, entries } = event {
                for (entry, _) in entries {
                    let ordinal = self.counts.entry(segment).or_insert(0);
                    self.places.insert(entry.id, Location { segment, ordinal: *ordinal });
                    *ordinal += 1;
                }
            }
        }
    }

    fn release(&self, ids: &[BatchId]) {
        let released = ids.iter().map(|id| Released {
            at: self.places[id],
            id: id.clone(),
            intervals: IntervalSet::from_iter([id.seq]),
            refused: None,
        });
        self.channel.release(released.collect());
    }

    fn stop(self) {
        block_on(self.channel.stop());
    }
}

fn id(agent: u8, seq: u64) -> BatchId {
    let origin = Origin::mint(1_795_000_000_000 + u64::from(agent), u128::from(agent));
    BatchId { agent: AgentName::new(&format!("web-{agent}")).unwrap(), origin, seq }
}

fn payload(id: &BatchId) -> Bytes {
    let bytes = if id.seq == 0 { Vec::new() } else { vec![id.seq as u8; 900 + id.seq as usize] };
    bytes.into()
}

/// Two agents, 30 batches each, three full segments and one that is written; seqs 1 and 2 of the first are answered.
fn build() -> Built {
    let dir = tempfile::tempdir().unwrap();
    let mut open = Open::at(dir.path());
    let mut held = Batches::new();
    for seq in 0..30 {
        for agent in [1, 2] {
            let id = id(agent, seq);
            open.append(&id, &payload(&id));
            held.insert(id.clone(), payload(&id));
        }
    }
    let answered = [id(1, 1), id(1, 2)];
    open.release(&answered);
    open.stop();
    held.retain(|id, _| !answered.contains(id));
    assert!(segments(dir.path()).len() >= 4);
    Built { dir, held }
}

fn segments(dir: &Path) -> Vec<(u64, PathBuf)> {
    segment_files(&dir.join("seg")).unwrap()
}

/// Footer of a sealed segment, and where it begins.
fn footer(dir: &Path, nth: usize) -> (SegmentIndex, u64, PathBuf) {
    let (id, path) = segments(dir)[nth].clone();
    let Seal::Good { footer, offset } = Survey::of(&path, id, false).unwrap().seal else { panic!("not sealed") };
    (SegmentIndex::decode(&footer).unwrap(), offset, path)
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Every file with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn at(dir: &Path) -> At {
    At { data_dir: Some(dir.to_owned()), json: true }
}

fn tool(tool: Tool) -> (u8, Value) {
    let mut out = Vec::new();
    let code = execute(tool, Path::new("no.toml"), &mut out);
    (code, serde_json::from_slice(&out).unwrap())
}

fn text(tool: Tool) -> String {
    let mut out = Vec::new();
    execute(tool, Path::new("no.toml"), &mut out);
    String::from_utf8(out).unwrap()
}

/// Checks without changing anything; the findings.
fn check(dir: &Path) -> (u8, Vec<Value>) {
    let before = files(dir);
    let (code, report) = tool(Tool::Check { at: at(dir) });
    assert_eq!(files(dir), before, "a check changes nothing");
    let findings = report["findings"].as_array().unwrap().clone();
    assert_eq!(report["clean"].as_bool(), Some(findings.is_empty()));
    // As text, too.
    let plain = At { json: false, ..at(dir) };
    let said = text(Tool::Check { at: plain });
    assert!(findings.iter().all(|finding| said.contains(finding["what"].as_str().unwrap())), "{said}");
    (code, findings)
}

fn kinds(findings: &[Value]) -> Vec<&str> {
    findings.iter().map(|finding| finding["kind"].as_str().unwrap()).collect()
}

fn seqs_lost(report: &Value) -> BTreeSet<(String, u64)> {
    let mut lost = BTreeSet::new();
    for loss in report["losses"].as_array().unwrap() {
        for range in loss["seqs"].as_array().unwrap() {
            let (first, last) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
            lost.extend((first..=last).map(|seq| (loss["agent"].as_str().unwrap().to_owned(), seq)));
        }
    }
    lost
}

/// A dry run that changes nothing, then a repair after which nothing is wrong. What it says is lost.
fn repair(dir: &Path) -> Value {
    let before = files(dir);
    let (code, planned) = tool(Tool::Repair { at: at(dir), dry_run: true });
    assert_eq!((code, files(dir) == before), (FOUND, true), "a dry run changes nothing: {planned}");
    let (code, report) = tool(Tool::Repair { at: at(dir), dry_run: false });
    assert_eq!(code, CLEAN, "{report:#}");
    assert_eq!((&planned["steps"], &planned["losses"]), (&report["steps"], &report["losses"]));
    assert_eq!(check(dir), (CLEAN, vec![]), "a repaired channel is clean");
    report
}

/// Opens the channel as an aggregator does: what it holds, with the bytes that it would send.
fn held(dir: &Path) -> Batches {
    let mut open = Open::at(dir);
    let Ok(ChannelEvent::Reset(snapshot)) = open.events.try_recv() else { panic!("no snapshot") };
    let mut found = Batches::new();
    for (segment, index, answered) in &snapshot.segments {
        for ordinal in (0..index.entries.len() as u32).filter(|ordinal| !answered.get(*ordinal)) {
            let offset = u64::from(index.entries[ordinal as usize].offset);
            let record = snapshot.reader.read(RecordAt { segment: *segment, offset }).unwrap();
            found.insert(index.id(ordinal), record.body);
        }
    }
    open.stop();
    found
}

/// Bytes that were taken out are all kept.
fn damaged(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir.join("damaged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_sound_channel_is_clean_and_described() {
    let built = build();
    let dir = built.dir.path();
    assert_eq!(check(dir), (CLEAN, vec![]));
    let before = files(dir);
    let (code, status) = tool(Tool::Status { at: at(dir) });
    assert_eq!(code, CLEAN);
    assert_eq!(status["source"], "directory");
    assert_eq!(status["held_batches"].as_u64(), Some(built.held.len() as u64));
    assert_eq!(status["agents"][0]["name"], "web-2", "the one without answers holds more");
    assert_eq!(status["agents"][1]["batches"].as_u64(), Some(28));
    assert_eq!(status["datasets"].as_array().unwrap().len(), 3, "two, and the opens");
    assert_eq!((status["oldest"]["agent"].as_str(), status["oldest"]["seq"].as_u64()), (Some("web-1"), Some(0)));
    assert_eq!(status["answers_known"], true);
    assert!(status["disk"]["reserve_bytes"].as_u64().unwrap() > 0);
    let (code, report) = tool(Tool::Repair { at: at(dir), dry_run: false });
    assert_eq!((code, report["steps"].as_array().unwrap().len()), (CLEAN, 0));
    assert_eq!(files(dir), before, "nothing to repair, nothing changed");
}

#[test]
fn a_flipped_byte_in_a_payload_costs_that_batch() {
    let mut built = build();
    let dir = built.dir.path();
    let (index, _, path) = footer(dir, 1);
    let victim = index.id(3);
    let entry = index.entries[3];
    let payload_at = u64::from(entry.offset) + 32 + 2 + 5 + u64::from(entry.header_bytes) + 10;
    flip(&path, payload_at);
    let broken = fs::read(&path).unwrap();

    let (code, findings) = check(dir);
    assert_eq!((code, kinds(&findings)), (FOUND, vec!["record_contents"]));
    let finding = &findings[0];
    assert_eq!(finding["file"], format!("seg/{}", path.file_name().unwrap().to_str().unwrap()));
    assert_eq!(finding["offset"].as_u64(), Some(u64::from(entry.offset)));
    assert_eq!(finding["agent"], victim.agent.as_str());
    assert_eq!(finding["origin"], victim.origin.to_string());
    assert_eq!((finding["seq"].as_u64(), finding["fate"].as_str()), (Some(victim.seq), Some("lost")));

    let report = repair(dir);
    assert_eq!(seqs_lost(&report), BTreeSet::from([(victim.agent.to_string(), victim.seq)]));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(damaged(dir), vec![name]);
    assert_eq!(fs::read(dir.join("damaged").join(name)).unwrap(), broken, "the bytes are kept");
    built.held.remove(&victim);
    assert_eq!(held(dir), built.held);
}

#[test]
fn a_flipped_byte_in_a_record_header_costs_that_batch_and_an_answered_one_costs_nothing() {
    let mut built = build();
    let dir = built.dir.path();
    let (index, _, path) = footer(dir, 0);
    let ordinal = |wanted: &BatchId| (0..).find(|ordinal| index.id(*ordinal) == *wanted).unwrap();
    let (answered, victim) = (id(1, 2), id(2, 2));
    for batch in [&answered, &victim] {
        flip(&path, u64::from(index.entries[ordinal(batch) as usize].offset) + 9);
    }
    let (code, findings) = check(dir);
    assert_eq!((code, kinds(&findings)), (FOUND, vec!["record_header", "record_header"]));
    let fates: Vec<_> = findings.iter().map(|finding| finding["fate"].as_str().unwrap()).collect();
    assert_eq!(fates, vec!["delivered", "lost"]);
    assert_eq!(seqs_lost(&repair(dir)), BTreeSet::from([("web-2".to_owned(), 2)]));
    built.held.remove(&victim);
    assert_eq!(held(dir), built.held, "what was answered is not delivered again");
}

#[test]
fn a_damaged_footer_trailer_or_file_header_costs_nothing() {
    for place in ["footer", "trailer", "file_header"] {
        let built = build();
        let dir = built.dir.path();
        let (_, offset, path) = footer(dir, 1);
        flip(
            &path,
            match place {
                "footer" => offset + 50,
                "trailer" => fs::metadata(&path).unwrap().len() - 10,
                _ => 6,
            },
        );
        let (code, findings) = check(dir);
        assert_eq!(code, FOUND, "{place}");
        assert!(kinds(&findings).contains(&place), "{place}: {findings:?}");
        assert!(findings.iter().all(|finding| finding["fate"] == "nothing_lost"), "{place}: {findings:#?}");
        let report = repair(dir);
        assert_eq!((seqs_lost(&report).len(), report["unknown_bytes"].as_u64()), (0, Some(0)), "{place}");
        assert_eq!(held(dir), built.held, "{place}");
    }
}

#[test]
fn a_hole_in_a_segment_that_is_written_costs_what_lay_in_it() {
    let mut built = build();
    let dir = built.dir.path();
    let (id, path) = segments(dir).pop().unwrap();
    let records = Survey::of(&path, id, true).unwrap().records;
    assert!(records.len() >= 3);
    flip(&path, records[1].end() - 5);
    let (code, findings) = check(dir);
    assert_eq!((code, kinds(&findings)), (FOUND, vec!["record_contents"]));
    let victim = (findings[0]["agent"].as_str().unwrap().to_owned(), findings[0]["seq"].as_u64().unwrap());
    assert_eq!(findings[0]["fate"], "lost");
    assert_eq!(seqs_lost(&repair(dir)), BTreeSet::from([victim.clone()]));
    built.held.retain(|id, _| (id.agent.to_string(), id.seq) != victim);
    assert_eq!(held(dir), built.held);
}

#[test]
fn a_torn_tail_is_measured_cut_and_kept() {
    let built = build();
    let dir = built.dir.path();
    let (_, path) = segments(dir).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let whole = bytes.len() as u64;
    bytes.extend_from_slice(&[7; 123]);
    fs::write(&path, bytes).unwrap();
    let (code, findings) = check(dir);
    assert_eq!((code, kinds(&findings)), (FOUND, vec!["torn_tail"]));
    assert_eq!((findings[0]["offset"].as_u64(), findings[0]["bytes"].as_u64()), (Some(whole), Some(123)));
    assert!(findings[0]["meaning"].as_str().unwrap().contains("may have been acknowledged"));
    repair(dir);
    assert_eq!(fs::metadata(&path).unwrap().len(), whole);
    let kept = damaged(dir);
    assert_eq!(kept.len(), 1);
    assert_eq!(fs::read(dir.join("damaged").join(&kept[0])).unwrap(), vec![7; 123]);
    assert_eq!(held(dir), built.held);
}

#[test]
fn a_damaged_last_record_is_named_and_the_ledger_proves_that_it_was_stored() {
    let mut built = build();
    let dir = built.dir.path();
    let (_, path) = segments(dir).pop().unwrap();
    let len = fs::metadata(&path).unwrap().len();
    flip(&path, len - 5);
    let (code, findings) = check(dir);
    assert_eq!((code, kinds(&findings)), (FOUND, vec!["torn_tail", "missing_bytes"]));
    assert_eq!((findings[0]["agent"].as_str(), findings[0]["seq"].as_u64()), (Some("web-2"), Some(29)));
    assert_eq!((findings[1]["agent"].as_str(), findings[1]["fate"].as_str()), (Some("web-2"), Some("lost")));
    assert_eq!(seqs_lost(&repair(dir)), BTreeSet::from([("web-2".to_owned(), 29)]));
    built.held.remove(&id(2, 29));
    assert_eq!(held(dir), built.held);
}

#[test]
fn a_missing_segment_is_named_by_what_the_ledger_knows() {
    // The first has answered batches, so the ledger has a row of it; the second has none.
    for (nth, kind) in [(0, "missing_segment"), (1, "missing_bytes")] {
        let mut built = build();
        let dir = built.dir.path();
        let (index, _, path) = footer(dir, nth);
        fs::remove_file(&path).unwrap();
        let (code, findings) = check(dir);
        assert_eq!(code, FOUND);
        assert!(kinds(&findings).contains(&kind), "{findings:#?}");
        if kind == "missing_segment" {
            assert_eq!(findings[0]["file"], format!("seg/{}", path.file_name().unwrap().to_str().unwrap()));
            assert!(findings[0]["what"].as_str().unwrap().contains(&format!("{} of its", index.entries.len() - 2)));
        }
        let agents: BTreeSet<_> = findings.iter().filter_map(|finding| finding["agent"].as_str()).collect();
        assert_eq!(agents, BTreeSet::from(["web-1", "web-2"]));
        repair(dir);
        (0..index.entries.len() as u32).for_each(|ordinal| {
            built.held.remove(&index.id(ordinal));
        });
        assert_eq!(held(dir), built.held);
    }
}

#[test]
fn a_missing_or_damaged_ledger_costs_redelivery_only() {
    for damage in ["removed", "overwritten"] {
        let mut built = build();
        let dir = built.dir.path();
        match damage {
            "removed" => fs::remove_dir_all(dir.join("ledger")).unwrap(),
            _ => fs::write(dir.join("ledger/conf"), b"no configuration").unwrap(),
        }
        let (code, findings) = check(dir);
        let kind = if damage == "removed" { "ledger_missing" } else { "ledger_unreadable" };
        assert_eq!((code, kinds(&findings)), (FOUND, vec![kind]));
        let (_, status) = tool(Tool::Status { at: at(dir) });
        assert_eq!(status["answers_known"], false);
        assert!(status["segments"][0]["held_batches"].is_null(), "unknown is said, not guessed");
        let report = repair(dir);
        assert_eq!(seqs_lost(&report).len(), 0);
        for again in [id(1, 1), id(1, 2)] {
            let bytes = payload(&again);
            built.held.insert(again, bytes);
        }
        assert_eq!(held(dir), built.held, "{damage}");
    }
}

#[test]
fn a_segment_of_zeros_is_kept_and_named_before_and_after_a_start() {
    let mut built = build();
    let dir = built.dir.path();
    let (index, _, path) = footer(dir, 1);
    let zeros = vec![0; fs::metadata(&path).unwrap().len() as usize];
    fs::write(&path, &zeros).unwrap();
    let (code, findings) = check(dir);
    assert_eq!(code, FOUND);
    assert!(kinds(&findings).contains(&"file_header"), "{findings:#?}");
    (0..index.entries.len() as u32).for_each(|ordinal| {
        built.held.remove(&index.id(ordinal));
    });
    // The aggregator starts on it and goes on with the rest.
    assert_eq!(held(dir), built.held);
    let (_, findings) = check(dir);
    assert_eq!(kinds(&findings), vec!["set_aside"]);
    repair(dir);
    let kept = damaged(dir);
    assert_eq!(fs::read(dir.join("damaged").join(&kept[0])).unwrap(), zeros);
    assert_eq!(held(dir), built.held);
}

/// A start on damage; how many corruptions it counted.
fn start(dir: &Path) -> u64 {
    let open = Open::at(dir);
    let counted = open.channel.stats().corruptions.load(Ordering::Relaxed);
    open.stop();
    counted
}

/// The named findings, without what a start changes of them: file and place.
fn named(findings: &[Value]) -> Vec<Value> {
    let named = findings.iter().filter(|finding| !finding["seq"].is_null());
    named.map(|finding| serde_json::json!([finding["agent"], finding["origin"], finding["seq"]])).collect()
}

#[test]
fn a_start_keeps_and_counts_what_it_lost_and_a_check_after_it_still_names_it() {
    let mut built = build();
    let dir = built.dir.path();
    let (segment, path) = segments(dir).pop().unwrap();
    let records = Survey::of(&path, segment, true).unwrap().records;
    flip(&path, records[1].end() - 5);
    let broken = fs::read(&path).unwrap();
    let before = check(dir).1;
    assert_eq!(kinds(&before), vec!["record_contents"]);
    assert_eq!(start(dir), 1);
    assert!(!path.exists(), "what is good in it was written anew");
    for round in 0..2 {
        let (code, findings) = check(dir);
        assert_eq!((code, kinds(&findings)), (FOUND, vec!["set_aside", "record_contents"]));
        assert_eq!(named(&findings), named(&before));
        assert_eq!(findings[1]["fate"], "lost");
        assert_eq!(start(dir), 0, "start {round}: counted once");
    }
    let victim = (before[0]["agent"].as_str().unwrap().to_owned(), before[0]["seq"].as_u64().unwrap());
    assert_eq!(seqs_lost(&repair(dir)), BTreeSet::from([victim.clone()]));
    let kept = damaged(dir);
    assert_eq!((kept.len(), fs::read(dir.join("damaged").join(&kept[0])).unwrap() == broken), (1, true));
    built.held.retain(|id, _| (id.agent.to_string(), id.seq) != victim);
    assert_eq!(held(dir), built.held);
}

#[test]
fn an_end_that_is_missing_in_front_of_newer_batches_is_damage_and_no_unfinished_write() {
    let mut built = build();
    let dir = built.dir.path();
    let (index, offset, path) = footer(dir, 1);
    let last = index.entries.len() as u32 - 1;
    // Footer and trailer are gone, and the last record is damaged.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(offset).unwrap();
    flip(&path, offset - 5);
    let broken = fs::read(&path).unwrap();
    let (_, before) = check(dir);
    assert!(kinds(&before).contains(&"cut_short"), "{before:#?}");
    assert_eq!(start(dir), 1);
    let (code, findings) = check(dir);
    assert_eq!((code, kinds(&findings)), (FOUND, vec!["set_aside", "torn_tail"]));
    let victim = index.id(last);
    assert_eq!(findings[1]["offset"].as_u64(), Some(u64::from(index.entries[last as usize].offset)));
    assert_eq!(
        (findings[1]["agent"].as_str(), findings[1]["seq"].as_u64()),
        (Some(victim.agent.as_str()), Some(victim.seq))
    );
    repair(dir);
    assert_eq!(fs::read(dir.join("damaged").join(&damaged(dir)[0])).unwrap(), broken);
    built.held.remove(&victim);
    assert_eq!(held(dir), built.held);
}

#[test]
fn an_unfinished_write_at_the_end_is_no_damage() {
    let built = build();
    let dir = built.dir.path();
    let (_, path) = segments(dir).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&[7; 123]);
    fs::write(&path, bytes).unwrap();
    assert_eq!(start(dir), 0);
    assert_eq!(check(dir), (CLEAN, vec![]));
    assert_eq!(held(dir), built.held);
}

#[test]
fn a_last_record_that_claims_to_be_whole_is_kept_and_named_by_a_start() {
    let mut built = build();
    let dir = built.dir.path();
    let (_, path) = segments(dir).pop().unwrap();
    flip(&path, fs::metadata(&path).unwrap().len() - 5);
    assert_eq!(start(dir), 1);
    let (code, findings) = check(dir);
    assert_eq!((code, kinds(&findings)), (FOUND, vec!["set_aside", "torn_tail"]));
    assert_eq!((findings[1]["agent"].as_str(), findings[1]["seq"].as_u64()), (Some("web-2"), Some(29)));
    assert_eq!(seqs_lost(&repair(dir)), BTreeSet::from([("web-2".to_owned(), 29)]));
    built.held.remove(&id(2, 29));
    assert_eq!(held(dir), built.held);
}

/// A directory can be opened and none of its bytes can be read, like a file on a disk that fails.
#[test]
fn a_segment_that_can_be_opened_and_not_read_is_set_aside_by_a_start_and_by_a_repair() {
    for repaired in [false, true] {
        let mut built = build();
        let dir = built.dir.path();
        let (index, _, path) = footer(dir, 1);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let (code, findings) = check(dir);
        assert_eq!(code, FOUND);
        assert!(kinds(&findings).contains(&"unreadable"), "{findings:#?}");
        if !repaired {
            assert!(start(dir) > 0);
            assert!(kinds(&check(dir).1).contains(&"set_aside"));
        }
        let report = repair(dir);
        assert!(report["unknown_bytes"].as_u64() > Some(0) || report["losses"].as_array().unwrap().len() > 1);
        (0..index.entries.len() as u32).for_each(|ordinal| {
            built.held.remove(&index.id(ordinal));
        });
        assert_eq!(held(dir), built.held, "the rest");
    }
}

/// Opens the channel without a repair; how many batches it holds.
fn starts_with(dir: &Path) -> usize {
    let mut open = Open::at(dir);
    let Ok(ChannelEvent::Reset(snapshot)) = open.events.try_recv() else { panic!("no snapshot") };
    let held =
        |(_, index, answered): &(u64, Arc<SegmentIndex>, Bitmap)| index.entries.len() - answered.count() as usize;
    let held = snapshot.segments.iter().map(held).sum();
    open.stop();
    held
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn a_flipped_byte_anywhere_in_a_segment_is_found_and_costs_at_most_one_batch() {
    let built = build();
    let all = segments(built.dir.path());
    let bytes: u64 = all.iter().map(|(_, path)| fs::metadata(path).unwrap().len()).sum();
    // A prime, so that every kind of place comes up.
    for at in (0..bytes).step_by(1381) {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(built.dir.path(), copy.path());
        let mut rest = at;
        for (_, path) in segments(copy.path()) {
            let len = fs::metadata(&path).unwrap().len();
            if rest < len {
                flip(&path, rest);
                break;
            }
            rest -= len;
        }
        let started = tempfile::tempdir().unwrap();
        copy_dir(copy.path(), started.path());
        assert!(starts_with(started.path()) + 1 >= built.held.len(), "byte {at}: a start does without the tools");
        let (code, findings) = check(copy.path());
        assert!(code == FOUND && !findings.is_empty(), "byte {at} is not found");
        let report = repair(copy.path());
        let mut held = held(copy.path());
        let kept = held.len();
        held.retain(|id, bytes| built.held.get(id).is_some_and(|before| before == bytes));
        assert_eq!(held.len(), kept, "byte {at}: what was answered is not delivered again, and no byte is made up");
        let lost = seqs_lost(&report).len().max(usize::from(report["unknown_bytes"].as_u64() > Some(0)));
        assert!(built.held.len() - kept <= lost.min(1), "byte {at}: {} lost, {report:#}", built.held.len() - kept);
    }
}

#[test]
fn a_flipped_byte_anywhere_in_the_ledger_costs_no_batch() {
    let built = build();
    let len = fs::metadata(built.dir.path().join("ledger/db")).unwrap().len();
    for at in (0..len.min(4096)).step_by(193).chain((4096..len).step_by(60_013)) {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(built.dir.path(), copy.path());
        flip(&copy.path().join("ledger/db"), at);
        let (code, findings) = check(copy.path());
        if code == FOUND {
            assert!(findings.iter().all(|finding| finding["fate"] != "lost"), "byte {at}: {findings:#?}");
            repair(copy.path());
        }
        let held = held(copy.path());
        assert!(built.held.keys().all(|id| held.contains_key(id)), "byte {at}: a batch is gone");
    }
}

#[test]
fn a_repair_that_was_cut_off_is_made_again() {
    let mut built = build();
    let dir = built.dir.path();
    let (index, _, path) = footer(dir, 1);
    flip(&path, u64::from(index.entries[0].offset) + 60);
    let broken = fs::read(&path).unwrap();
    repair(dir);
    // As if it had ended between the new segment and the move.
    fs::rename(dir.join("damaged").join(path.file_name().unwrap()), &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), broken);
    repair(dir);
    built.held.remove(&index.id(0));
    assert_eq!(held(dir), built.held);
}

#[test]
fn tools_beside_a_running_channel_look_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = Open::at(dir.path());
    for seq in 0..40 {
        open.append(&id(1, seq), &payload(&id(1, seq)));
    }
    let (code, report) = tool(Tool::Check { at: at(dir.path()) });
    assert_eq!((code, &report["findings"]), (CLEAN, &Value::Array(vec![])));
    assert_eq!(report["process"], std::process::id().to_string());
    let (code, status) = tool(Tool::Status { at: at(dir.path()) });
    assert_eq!((code, status["held_batches"].as_u64()), (CLEAN, Some(40)));
    for dry_run in [true, false] {
        let (code, report) = tool(Tool::Repair { at: at(dir.path()), dry_run });
        assert_eq!(code, FAILED);
        assert!(report["error"].as_str().unwrap().contains("stop that aggregator first"), "{report}");
    }
    // A second owner is refused before it touches anything.
    let error = ChannelHandle::open(options(dir.path()), Arc::new(|_| {})).unwrap_err().to_string();
    assert!(error.contains("in use by process"), "{error}");
    open.append(&id(1, 40), &payload(&id(1, 40)));
    open.stop();
    assert_eq!(held(dir.path()).len(), 41);
}

#[test]
fn a_check_finds_nothing_in_what_only_moves() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = Open::at(dir.path());
    open.append(&id(1, 0), &payload(&id(1, 0)));
    let writer = std::thread::spawn(move || {
        for seq in 1..300 {
            for agent in [1, 2] {
                let id = id(agent, seq);
                open.append(&id, &vec![seq as u8; 3000].into());
                if seq % 7 != 0 {
                    open.release(&[id]);
                }
            }
        }
        open.stop();
    });
    let mut rounds = 0;
    while !writer.is_finished() {
        rounds += 1;
        let (code, report) = tool(Tool::Check { at: at(dir.path()) });
        assert_eq!((code, &report["findings"]), (CLEAN, &Value::Array(vec![])), "round {rounds}");
    }
    writer.join().unwrap();
    assert!(rounds > 2, "they ran at the same time");
    assert_eq!(check(dir.path()), (CLEAN, vec![]));
}

#[test]
fn an_export_gives_exact_payloads_and_says_what_it_left_out() {
    let built = build();
    let dir = built.dir.path();
    let (index, _, path) = footer(dir, 1);
    let victim =
        (0..).map(|ordinal| (ordinal, index.id(ordinal))).find(|(_, id)| id.agent.as_str() == "web-2").unwrap();
    flip(&path, u64::from(index.entries[victim.0 as usize].offset) + 200);
    let to = tempfile::tempdir().unwrap();
    let out = to.path().join("out");
    let export = |agent: Option<&str>, all: bool| Tool::Export {
        at: at(dir),
        to: out.clone(),
        agent: agent.map(str::to_owned),
        dataset: None,
        all,
        held: false,
    };
    let before = files(dir);
    let (code, report) = tool(export(Some("web-2"), false));
    assert_eq!(files(dir), before, "an export changes nothing");
    assert_eq!((code, report["skipped"].as_u64(), report["batches"].as_u64()), (FOUND, Some(1), Some(30)));
    let lines: Vec<Value> = fs::read_to_string(out.join("index.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 30);
    for line in &lines {
        let id = id(2, line["seq"].as_u64().unwrap());
        match line["file"].as_str() {
            Some(file) => assert_eq!(fs::read(out.join(file)).unwrap(), payload(&id)),
            None => assert!(id.seq == 0 || (id == victim.1 && line["crc"] != "good"), "{line}"),
        }
    }
    let (code, report) = tool(export(None, true));
    assert_eq!(code, FAILED);
    assert!(report["error"].as_str().unwrap().contains("is not empty"));
    fs::remove_dir_all(&out).unwrap();
    let (_, report) = tool(export(None, true));
    assert_eq!(report["batches"].as_u64(), Some(60), "answered ones too");
}

#[test]
fn an_export_of_a_batch_that_lies_in_two_segments_goes_on_to_the_end() {
    let built = build();
    let dir = built.dir.path();
    let (_, path) = segments(dir).pop().unwrap();
    // As a start leaves it that was killed between writing a segment anew and unlinking it.
    let kept = fs::read(&path).unwrap();
    start(dir);
    fs::write(&path, kept).unwrap();
    let to = tempfile::tempdir().unwrap();
    let out = to.path().join("out");
    let (agent, dataset) = (None, None);
    let (code, report) = tool(Tool::Export { at: at(dir), to: out.clone(), agent, dataset, all: true, held: false });
    assert_eq!(code, FOUND, "the copy is found: {report}");
    let lines = fs::read_to_string(out.join("index.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 60, "both copies have a line");
    let mut ids = BTreeSet::new();
    for line in &lines {
        let id = id(line["agent"].as_str().unwrap()[4..].parse().unwrap(), line["seq"].as_u64().unwrap());
        if let Some(file) = line["file"].as_str() {
            assert_eq!(fs::read(out.join(file)).unwrap(), payload(&id));
        }
        ids.insert(id);
    }
    assert_eq!((ids.len(), report["files"].as_u64()), (60, Some(58)), "all; opens have no file");
}

#[test]
fn what_is_no_channel_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for tool_of in [Tool::Check { at: at(dir.path()) }, Tool::Status { at: at(dir.path()) }] {
        let (code, report) = tool(tool_of);
        assert_eq!(code, FAILED);
        assert!(report["error"].as_str().unwrap().contains("there is no channel in"), "{report}");
    }
    let none = At { data_dir: None, json: true };
    let (code, report) = tool(Tool::Check { at: none });
    assert_eq!(code, FAILED);
    assert!(report["error"].as_str().unwrap().contains("--data-dir"), "{report}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_repair_the_aggregator_delivers_the_rest_and_the_agent_gives_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(Script::Stage).await;
    let config = fakes::config(dir.path(), &[collector.at]);
    let running = fakes::start(&config).await;
    running.knows_datasets().await;
    let mut agent = Agent::connect("web-1", running.listen).await;
    for seq in 0..20 {
        agent.append_durable(fakes::origin(1), seq, format!("event {seq} of the run\n").as_bytes()).await;
    }
    collector.kill();
    running.stop().await;

    let (segment, path) = segments(dir.path()).pop().unwrap();
    let records = Survey::of(&path, segment, true).unwrap().records;
    flip(&path, records[7].end() - 3);
    let report = repair(dir.path());
    assert_eq!(seqs_lost(&report), BTreeSet::from([("web-1".to_owned(), 7)]));

    let running = fakes::start(&config).await;
    assert_eq!(running.sources.status().held_batches, 19);
    let again = Collector::start_at(collector.at, Script::Commit, collector.seen.clone()).await;
    eventually("the rest is committed", || running.sources.status().held_batches == 0).await;
    let committed: BTreeSet<u64> = again.seen.lock().unwrap().committed.iter().map(|id| id.seq).collect();
    assert_eq!(committed, (0..20).filter(|seq| *seq != 7).collect());
    let mut agent = Agent::connect("web-1", running.listen).await;
    let (header, payload) = batch(fakes::origin(1), 7, b"event 7 of the run\n");
    agent.append(header, payload).await;
    eventually("what was lost here is committed too", || again.seen.lock().unwrap().committed.len() == 20).await;
    running.stop().await;
}

/// An admin endpoint that gives these answers, and the configuration that names it.
fn admin(dir: &Path, status: Value, channel: &'static str) -> PathBuf {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = std::io::BufReader::new(stream.unwrap());
            let mut asked = String::new();
            stream.read_line(&mut asked).unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let body = if asked.contains("/channel") { channel.to_owned() } else { status.to_string() };
            write!(stream.get_mut(), "HTTP/1.1 200 OK\r\n\r\n{body}").unwrap();
        }
    });
    write_config(dir, at)
}

fn write_config(dir: &Path, admin: std::net::SocketAddr) -> PathBuf {
    let config = dir.join("aggregator.toml");
    let text = format!(
        "name = \"agg-1\"\nlisten = \"127.0.0.1:0\"\ndata_dir = \"{}\"\n[collectors]\npeers = [\"127.0.0.1:9\"]\n\
         [admin]\nlisten = \"{admin}\"\n",
        dir.display()
    );
    fs::write(&config, text).unwrap();
    config
}

/// Of the process that a configuration names: JSON, text, and the code of both.
fn status_of(config: &Path) -> (u8, Value, String) {
    let mut told = Vec::new();
    let code = execute(Tool::Status { at: At { data_dir: None, json: true } }, config, &mut told);
    let mut text = Vec::new();
    let again = execute(Tool::Status { at: At::default() }, config, &mut text);
    assert_eq!(code, again);
    (code, serde_json::from_slice(&told).unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn a_status_says_that_the_storage_of_the_process_it_asked_has_failed() {
    let built = build();
    let running = Open::at(built.dir.path());
    let status = serde_json::json!({
        "storage_failed": true, "corruptions": 2, "given_up_batches": 3, "collectors": [], "held_batches": 0
    });
    let (code, report, text) = status_of(&admin(built.dir.path(), status, "null"));
    assert_eq!((code, report["source"].as_str()), (FOUND, Some("directory")), "it does not know what it holds");
    assert_eq!(report["running"]["storage_failed"], true);
    assert_eq!(report["findings"], 3);
    for said in ["its storage has failed", "2 damaged places", "3 batches could not be read back", "was asked"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("was not asked"), "{text}");
    running.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_of_a_running_aggregator_has_what_it_found_wrong() {
    let built = tokio::task::block_in_place(build);
    let (_, path) = segments(built.dir.path()).pop().unwrap();
    let collector = Collector::start(Script::Stage).await;
    let config = fakes::config(built.dir.path(), &[collector.at]);
    let sound = fakes::start(&config).await;
    let (code, report, text) = tokio::task::block_in_place(|| status_of(&write_config(built.dir.path(), sound.admin)));
    assert_eq!((code, report["source"].as_str(), &report["findings"]), (CLEAN, Some("process"), &Value::from(0)));
    assert!(!text.contains("damaged"), "{text}");
    sound.stop().await;

    let built = tokio::task::block_in_place(build);
    flip(&built.dir.path().join("seg").join(path.file_name().unwrap()), 20 + 9);
    let running = fakes::start(&fakes::config(built.dir.path(), &[collector.at])).await;
    let (code, report, text) =
        tokio::task::block_in_place(|| status_of(&write_config(built.dir.path(), running.admin)));
    assert_eq!((code, report["source"].as_str()), (FOUND, Some("process")));
    assert_eq!((&report["running"]["corruptions"], &report["findings"]), (&Value::from(1), &Value::from(1)));
    assert!(text.contains("1 damaged places were found since it started"), "{text}");
    running.stop().await;
}
