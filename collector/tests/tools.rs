//! The tools for the person on call, on a real store: what a collector wrote, whole and then damaged. None of them
//! changes a byte of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use collector::cli::findings::Ended;
use collector::cli::{Cli, execute};
use collector::run::Collector;
use common::supervise::Shutdown;
use proto::header::Header;
use proto::ids::Origin;
use proto::wire::answer::Answer as Kinds;
use proto::wire::batch_header::Kind;
use proto::wire::collect_client::CollectClient;
use proto::wire::deliver_request::Message;
use proto::wire::deliver_response::Message as Reply;
use proto::wire::{self, DeliverRequest};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const PATIENCE: Duration = Duration::from_secs(60);
/// 2024-10-04T07:00Z.
const HOUR: i64 = 480_007;

fn origin() -> Origin {
    Origin::mint(1_763_700_000_000, 77)
}

fn data(payload: &str, change: impl FnOnce(&mut wire::Data)) -> Kind {
    let mut data = wire::Data {
        dataset: "d".into(),
        partition: Some(wire::Partition { date: 20_000, hour: None }),
        codec: wire::Codec::None as i32,
        framing: wire::Framing::Lines as i32,
        events: payload.lines().count() as u64,
        raw_bytes: payload.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(payload.as_bytes()),
        min_event_time_us: HOUR * 3_600_000_000,
        max_event_time_us: HOUR * 3_600_000_000 + 1,
        zone: "UTC".into(),
        source: "nginx".into(),
        ..Default::default()
    };
    change(&mut data);
    Kind::Data(data)
}

fn mark(rows: &[(Option<i64>, u64, u64)]) -> Kind {
    let count = |(hour, cut, dead): &(Option<i64>, u64, u64)| wire::AuditCount {
        dataset: "d".into(),
        event_hour: *hour,
        read: cut + dead,
        published: *cut,
        dead_lettered: *dead,
        ..Default::default()
    };
    let audit = Some(wire::Audit { counts: rows.iter().map(count).collect() });
    Kind::Mark(wire::Mark { at_unix_ms: 1_763_700_100_000, audit, destroyed: vec![] })
}

/// Delivers each group of batches and waits until it is committed: one record or more for each.
async fn deliver(collector: &Collector, groups: Vec<Vec<(u64, Kind, Vec<u8>)>>) {
    let url = format!("http://{}", collector.address);
    let open = async || {
        let mut client = CollectClient::connect(url.clone()).await.ok()?;
        let (out, requests) = mpsc::channel(64);
        let hello = wire::AggregatorHello { aggregator: "agg-1".into(), newest_format: 1 };
        out.send(DeliverRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
        let inbound = client.deliver(ReceiverStream::new(requests)).await.ok()?.into_inner();
        Some((out, inbound))
    };
    let (out, mut inbound) = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(opened) = open().await {
                return opened;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the collector takes streams");
    for group in groups {
        let mut waiting: Vec<u64> = group.iter().map(|(seq, ..)| *seq).collect();
        for (seq, kind, payload) in group {
            let header = Header::encode(origin(), seq, kind).unwrap().bytes;
            let delivery =
                wire::Delivery { agent: "web-1".into(), header, payload: Bytes::from(payload), suspect: false };
            out.send(DeliverRequest { message: Some(Message::Delivery(delivery)) }).await.unwrap();
        }
        while !waiting.is_empty() {
            let message = tokio::time::timeout(PATIENCE, inbound.message()).await.expect("an answer in time").unwrap();
            let Some(Reply::Answers(answers)) = message.and_then(|m| m.message) else { continue };
            for answer in answers.answers {
                if matches!(answer.answer, Some(Kinds::Committed(_) | Kinds::Refused(_))) {
                    waiting.retain(|seq| *seq != answer.key.as_ref().unwrap().seq);
                }
            }
        }
    }
}

fn letter(body: &str) -> String {
    format!(
        "{{\"time\":\"2026-11-20T09:00:00Z\",\"agent\":\"web-1\",\"dataset\":\"d\",\"source\":\"nginx\",\"stage\":\"decode\",\
         \"reason\":\"no usable time\",\"body\":\"{body}\",\"body_bytes\":{}}}\n",
        body.len()
    )
}

/// A store with records of every kind that a delivery makes. Checkpoints are written every record or two.
async fn store(root: &Path) {
    let text = format!(
        "name = \"col-1\"\nlisten = \"127.0.0.1:0\"\n[destination]\nurl = \"file://{}\"\n[roll]\nage = \"1s\"\nidle = \"1s\"\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n[[datasets]]\nname = \"d\"\ncompression = \"none\"\n",
        root.display()
    );
    let letters = letter("bad one") + &letter("bad two");
    let dead = |data: &mut wire::Data| {
        data.dead_letters = true;
        data.hours = vec![wire::HourCount { hour: None, events: 2 }];
    };
    let two_hours = |data: &mut wire::Data| {
        data.max_event_time_us += 3_600_000_000;
        let hour = |hour, events| wire::HourCount { hour: Some(hour), events };
        data.hours = vec![hour(HOUR, 1), hour(HOUR + 1, 2)];
    };
    let groups = vec![
        vec![
            (0, Kind::Open(wire::Open::default()), vec![]),
            (1, data("a\nb\n", |_| {}), b"a\nb\n".to_vec()),
            (2, data(&letters, dead), letters.into_bytes()),
        ],
        vec![
            (3, data("c\nd\ne\n", two_hours), b"c\nd\ne\n".to_vec()),
            // Quarantined: it says an hour, the dataset has none.
            (
                4,
                data("q1\nq2\n", |data| data.partition = Some(wire::Partition { date: 20_000, hour: Some(7) })),
                b"q1\nq2\n".to_vec(),
            ),
        ],
        vec![(5, mark(&[(Some(HOUR), 5, 0), (Some(HOUR + 1), 2, 0), (None, 0, 2)]), vec![])],
        vec![(6, data("f\n", |_| {}), b"f\n".to_vec())],
    ];
    let shutdown = Shutdown::new(Duration::from_secs(20));
    let collector = Collector::start(common::config::parse(&text).unwrap(), shutdown.clone()).await.unwrap();
    deliver(&collector, groups).await;
    shutdown.drain();
    collector.join().await.unwrap();
}

/// Exit code and standard output.
async fn tool(root: &Path, args: &[&str]) -> (u8, String) {
    let url = format!("file://{}", root.display());
    let line = ["catchment-collector"].iter().chain(args).copied().chain(["--dest", &url]);
    let out = RefCell::new(String::new());
    let print = |text: &str| {
        let mut out = out.borrow_mut();
        out.push_str(text);
        out.push('\n');
    };
    let code = match execute(Cli::try_parse_from(line).unwrap(), print).await {
        Ok(()) => 0,
        Err(error) => {
            let ended: Ended = error.downcast().unwrap();
            out.borrow_mut().push_str(&ended.message);
            ended.code
        }
    };
    (code, out.into_inner())
}

/// Every file below `root` with its bytes.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => _ = found.insert(path.clone(), std::fs::read(&path).unwrap()),
            }
        }
    }
    found
}

fn below(root: &Path, dir: &str, end: &str) -> Vec<PathBuf> {
    let wanted = root.join(dir);
    snapshot(root).into_keys().filter(|p| p.starts_with(&wanted) && p.to_string_lossy().ends_with(end)).collect()
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Runs the tools on a store that was damaged by `damage`; what `log verify` says.
async fn damaged(whole: &Path, damage: impl FnOnce(&Path), verify: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in snapshot(whole) {
        let to = dir.path().join(path.strip_prefix(whole).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, bytes).unwrap();
    }
    damage(dir.path());
    let before = snapshot(dir.path());
    let (code, said) = tool(dir.path(), verify).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    for others in [
        vec!["log", "show"],
        vec!["log", "replay"],
        vec!["log", "replay", "--finish", "--dry-run"],
        vec!["audit"],
        vec!["deadletter", "show"],
        vec!["quarantine", "show"],
    ] {
        tool(dir.path(), &others).await;
    }
    assert!(before == snapshot(dir.path()), "no tool changes a byte");
    said
}

fn commit(n: u64) -> String {
    format!("_catchment/commits/{n:020}")
}

#[tokio::test]
async fn a_whole_log_is_clean_and_says_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    store(root).await;
    let before = snapshot(root);
    let (code, said) = tool(root, &["log", "verify", "--checksums"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.ends_with("clean\n") && said.contains("read with their CRC32C compared"), "{said}");
    assert!(said.contains("run col-1-") || below(root, "_catchment/staging", "").is_empty(), "{said}");
    let (code, said) = tool(root, &["log", "replay", "--json"]).await;
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, json["folded_from"].as_u64()), (0, Some(0)), "{said}");
    assert_eq!(json["view"]["batches"].as_u64(), Some(7));
    assert_eq!(json["view"]["events"].as_u64(), Some(6));
    let (code, said) = tool(root, &["log", "replay", "--to", "1"]).await;
    assert_eq!(code, 0, "{said}");
    let (code, said) = tool(root, &["log", "show", "1"]).await;
    assert!(code == 0 && said.contains("web-1 run") && said.contains("CRC32C"), "{said}");
    let (code, said) = tool(root, &["log", "show", "--agent", "web-2"]).await;
    assert_eq!((code, said.as_str()), (0, ""));
    assert_eq!(tool(root, &["log", "show", "999"]).await.0, 2);
    assert!(before == snapshot(root));
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(tool(empty.path(), &["log", "verify"]).await.0, 2, "nothing to look at is not clean");
}

#[tokio::test]
async fn every_kind_of_damage_is_told_by_file_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    store(root).await;
    let last = below(root, "_catchment/commits", "").len() as u64 - 1;
    assert!(last >= 3, "records enough to take one out of the middle");

    let said = damaged(root, |root| flip(&root.join(commit(1))), &["log", "verify"]).await;
    assert!(said.contains(&format!("FINDING {}: its CRC32C is", commit(1))), "{said}");
    let torn = |root: &Path| {
        let path = root.join(commit(last));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    };
    let said = damaged(root, torn, &["log", "verify"]).await;
    assert!(said.contains(&format!("FINDING {}: it is not a whole commit record", commit(last))), "{said}");

    // Whether a checkpoint covers a hole decides what it means.
    let without = |root: &Path| {
        _ = std::fs::remove_dir_all(root.join("_catchment/checkpoints"));
        std::fs::remove_file(root.join(commit(1))).unwrap();
    };
    let said = damaged(root, without, &["log", "verify"]).await;
    assert!(said.contains(&format!("FINDING {}: record 1 is missing, and record 2 is there", commit(1))), "{said}");
    assert!(said.contains("no collector can start"), "{said}");

    let file = below(root, "d", ".log").remove(0);
    let file = file.strip_prefix(root).unwrap();
    let name = file.display().to_string();
    let said = damaged(root, |root| flip(&root.join(file)), &["log", "verify", "--checksums"]).await;
    assert!(said.contains(&format!("FINDING {name}: its CRC32C is")), "{said}");
    let cut = |root: &Path| std::fs::write(root.join(file), b"a").unwrap();
    let said = damaged(root, cut, &["log", "verify"]).await;
    assert!(said.contains(&format!("FINDING {name}: it has 1 bytes")), "{said}");
    let said = damaged(root, |root| std::fs::remove_file(root.join(file)).unwrap(), &["log", "verify"]).await;
    assert!(said.contains(&format!("FINDING {name}: record")) && said.contains("it is not there"), "{said}");
}

/// Writes a checkpoint of the first records, as a collector does.
fn checkpoint(root: &Path, n: u64, change: impl FnOnce(&mut wire::Checkpoint)) -> PathBuf {
    let mut view = collector::log::View::default();
    for at in 0..n {
        let record = proto::record::decode_record(&std::fs::read(root.join(commit(at))).unwrap()).unwrap();
        view.apply(at, &record).unwrap();
    }
    let mut checkpoint = view.to_checkpoint();
    change(&mut checkpoint);
    let path = root.join(format!("_catchment/checkpoints/{n:020}"));
    std::fs::write(&path, proto::record::encode_checkpoint(&checkpoint)).unwrap();
    path
}

#[tokio::test]
async fn checkpoints_are_compared_with_the_records_below_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    store(root).await;
    checkpoint(root, 2, |_| {});
    let (code, said) = tool(root, &["log", "verify"]).await;
    assert!(code == 0 && said.contains("checkpoint 2: equals the records below it"), "{said}");

    let other = |root: &Path| _ = checkpoint(root, 2, |checkpoint| checkpoint.origins.clear());
    let said = damaged(root, other, &["log", "verify"]).await;
    assert!(said.contains("it differs from the records below it in origin web-1"), "{said}");
    let said = damaged(root, |root| flip(&checkpoint(root, 2, |_| {})), &["log", "replay"]).await;
    assert!(said.contains("checkpoint 2: DAMAGED") && said.contains("move this file out"), "{said}");

    // Freed records are no hole, and the fold begins at the checkpoint.
    std::fs::remove_file(root.join(commit(0))).unwrap();
    let (code, said) = tool(root, &["log", "verify"]).await;
    assert!(code == 0 && said.contains("folded: from 2"), "{said}");
}

#[tokio::test]
async fn staged_files_of_committed_records_are_finished_when_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    store(root).await;
    for path in below(root, "_catchment/checkpoints", "") {
        std::fs::remove_file(path).unwrap();
    }
    let whole = snapshot(root);
    let file = below(root, "d", ".log").remove(0);
    let (_, said) = tool(root, &["log", "show", "--json"]).await;
    let json: Value = serde_json::from_str(&said).unwrap();
    let mut named = json["records"].as_array().unwrap().iter().flat_map(|record| record["files"].as_array().unwrap());
    let named = named.find(|named| file.ends_with(named["final"].as_str().unwrap())).unwrap();
    let staged = root.join(named["staged"].as_str().unwrap());
    std::fs::create_dir_all(staged.parent().unwrap()).unwrap();
    std::fs::rename(&file, &staged).unwrap();
    let (code, said) = tool(root, &["log", "verify", "--checksums"]).await;
    assert!(code == 0 && said.contains("1 still staged"), "{said}");
    let (code, said) = tool(root, &["log", "replay", "--finish", "--dry-run"]).await;
    assert!(code == 0 && said.contains("would be brought") && !file.exists(), "{said}");
    let (code, said) = tool(root, &["log", "replay", "--finish"]).await;
    assert!(code == 0 && said.contains("brought: ") && file.exists(), "{said}");
    assert!(whole == snapshot(root));
}

/// Adds a record of two more agents: batch 2 of web-2 is missing; of web-3 an event is.
fn add_agents(root: &Path) {
    let cover = |agent: &str, mark_seq: u64| {
        let Kind::Mark(mark) = mark(&[(Some(HOUR), 4, 0)]) else { unreachable!() };
        let count =
            wire::EventCount { dataset: "d".into(), event_hour: Some(HOUR), published: 3, ..Default::default() };
        wire::OriginCover {
            agent: agent.into(),
            origin: origin().to_bytes(),
            data: Some(wire::IntervalSet { bounds: vec![1, 2] }),
            opens: vec![wire::SeqOpen { seq: 0, open: Some(wire::Open::default()) }],
            marks: vec![wire::SeqMark { seq: mark_seq, mark: Some(mark) }],
            counts: vec![count],
            ..Default::default()
        }
    };
    let publish = wire::Publish { files: vec![], covers: vec![cover("web-2", 3), cover("web-3", 2)] };
    let record = wire::CommitRecord {
        format: 1,
        commit_id: vec![9; 16].into(),
        incarnation: "col-2-20261121T000000Z-00000000".into(),
        collector: "col-2".into(),
        time_unix_ms: 1_763_700_200_000,
        action: Some(wire::commit_record::Action::Publish(publish)),
    };
    let n = below(root, "_catchment/commits", "").len() as u64;
    std::fs::write(root.join(commit(n)), proto::record::encode_record(&record)).unwrap();
}

#[tokio::test]
async fn the_audit_closes_says_what_is_open_and_whom_to_ask() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    store(root).await;
    let (code, said) = tool(root, &["audit", "--since", "3650d", "--json"]).await;
    let json: Value = serde_json::from_str(&said).unwrap();
    let row = |hour: &str| {
        let rows = json["rows"].as_array().unwrap();
        let of = |row: &&Value| row["hour"].as_str().unwrap_or("none") == hour;
        let row = rows.iter().find(of).unwrap_or_else(|| panic!("{hour}: {said}"));
        let number = |name: &str| row[name].as_i64().unwrap();
        (
            row["state"].as_str().unwrap().to_owned(),
            [number("cut"), number("published"), number("dead_lettered"), number("quarantined"), number("under_way")],
        )
    };
    // One event came after the mark.
    assert_eq!(row("2024-10-04T07:00:00.000Z"), ("open".into(), [5, 4, 0, 2, -1]));
    assert_eq!(row("2024-10-04T08:00:00.000Z"), ("closes".into(), [2, 2, 0, 0, 0]));
    assert_eq!(row("none"), ("closes".into(), [0, 0, 2, 0, 0]));
    assert_eq!(code, 0, "open rows are no findings");
    let (_, said) = tool(root, &["audit", "--since", "3650d", "--agent", "web-2"]).await;
    assert!(said.contains("0 rows close"), "{said}");

    add_agents(root);
    let (code, said) = tool(root, &["audit", "--since", "3650d", "--agent", "web-2"]).await;
    assert!(code == 0 && said.contains("web-2 d 2024-10-04T07:00:00.000Z: open"), "{said}");
    assert!(said.contains(&format!("ASK web-2: run {}, batches 2 are not in the log", origin())), "{said}");
    assert!(said.contains("on web-2: `catchment-edge-agent outbox show`"), "{said}");
    let (code, said) = tool(root, &["audit", "--since", "3650d"]).await;
    assert!(code == 1 && said.contains("web-3 d 2024-10-04T07:00:00.000Z: DOES NOT CLOSE"), "{said}");
    assert!(said.contains("1 do not close"), "{said}");
}

#[tokio::test]
async fn dead_letters_and_quarantine_are_shown_and_replayed_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    store(root).await;
    let before = snapshot(root);
    let (code, said) = tool(root, &["deadletter", "show"]).await;
    assert!(code == 0 && said.contains("2 at decode: no usable time"), "{said}");
    let (_, said) = tool(root, &["deadletter", "show", "--lines", "--dataset", "d"]).await;
    assert_eq!(said, letter("bad one") + &letter("bad two"));
    let (_, said) = tool(root, &["quarantine", "show"]).await;
    assert!(said.contains("batch 4: ") && said.contains("2 events") && !said.contains("q1"), "{said}");

    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name).display().to_string();
    for (what, lines) in [("deadletter", "bad one\nbad two\n"), ("quarantine", "q1\nq2\n")] {
        let to = path(&format!("{what}.log"));
        let replay = |to: &str, more: &[&str]| {
            let args = [&[what, "replay", "--dataset", "d", "--to", to], more].concat();
            args.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let run = async |args: Vec<String>| tool(root, &args.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let (code, said) = run(replay(&to, &["--dry-run"])).await;
        assert!(code == 0 && said.contains("2 lines") && !Path::new(&to).exists(), "{said}");
        let (code, said) = run(replay(&to, &[])).await;
        assert_eq!((code, std::fs::read_to_string(&to).unwrap().as_str()), (0, lines), "{said}");
        assert_eq!(run(replay(&to, &[])).await.0, 2, "nothing is overwritten");
        let other = path(&format!("{what}-2.log"));
        let (_, said) = run(replay(&other, &[])).await;
        assert!(said.contains("nothing to replay") && said.contains("replayed before"), "{said}");
        assert!(!Path::new(&other).exists());
        let (code, _) = run(replay(&other, &["--again"])).await;
        assert_eq!((code, std::fs::read_to_string(&other).unwrap().as_str()), (0, lines));
    }
    let payloads = out.path().join("payloads");
    std::fs::create_dir(&payloads).unwrap();
    tool(root, &["quarantine", "show", "--payload-to", &payloads.display().to_string()]).await;
    assert!(snapshot(&payloads).values().any(|bytes| bytes == b"q1\nq2\n"));
    assert!(before == snapshot(root));

    let file = below(root, "_catchment/quarantine", ".cq").remove(0);
    let said =
        damaged(root, |copy| flip(&copy.join(file.strip_prefix(root).unwrap())), &["log", "verify", "--checksums"]);
    assert!(said.await.contains(".cq: its CRC32C is"));
    flip(&file);
    let (code, said) = tool(root, &["quarantine", "show"]).await;
    assert!(code == 1 && said.contains("the entry at offset 8 is damaged"), "{said}");
}

#[tokio::test]
#[ignore = "makes the store that docs/on-call.md shows, in the directory that STORE names"]
async fn the_store_of_the_examples() {
    let root = PathBuf::from(std::env::var_os("STORE").expect("STORE names an empty directory"));
    store(&root).await;
    add_agents(&root);
}
