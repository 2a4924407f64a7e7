//! From chunks to batches: partitions, dead letters, masking, routing, and what a chunk that cannot be cut leaves behind.

use std::sync::Arc;

use bytes::Bytes;
use edge_agent::intercept::InterceptorConfig;
use edge_agent::pipeline::{Cut, CutBatch, Declarations, MaskConfig, Pipeline, PipelineConfig, PipelineContext};
use edge_agent::tail::{Chunk, Piece, PieceKind};
use proto::dead_letter::DeadLetter;
use proto::ids::{AgentName, Partition};
use proto::wire;

/// 2026-11-21T09:00:00Z
const NOW_US: i64 = 1_795_251_600_000_000;

fn pipeline(config: &PipelineConfig, mask: bool) -> Pipeline {
    let agent = AgentName::new("web-17").unwrap();
    let mask = MaskConfig { enabled: mask, ..MaskConfig::default() };
    Pipeline::new(
        "nginx",
        config,
        PipelineContext { agent: &agent, host: "web-17.example", mask: &mask, compression_level: 1 },
    )
    .unwrap()
}

fn config() -> PipelineConfig {
    PipelineConfig { dataset: "clickstream".into(), ..PipelineConfig::default() }
}

fn declared(names: &[&str]) -> Declarations {
    let declare = |name: &&str| {
        let declaration = wire::DatasetDeclaration {
            name: (*name).to_owned(),
            zone: if *name == "berlin" { "Europe/Berlin" } else { "UTC" }.to_owned(),
            hourly: *name == "hourly",
            codec: if *name == "gzip" { wire::Codec::Gzip } else { wire::Codec::Zstd } as i32,
            oldest: (*name == "recent").then_some(20_000),
            ..Default::default()
        };
        ((*name).to_owned(), declaration)
    };
    Declarations { map: names.iter().map(declare).collect(), version: 1 }
}

fn piece(bytes: &[u8], kind: PieceKind) -> Piece {
    Piece { path: Arc::from("/var/log/nginx/access.log"), offset: 1000, bytes: Bytes::copy_from_slice(bytes), kind }
}

fn chunk(pieces: Vec<Piece>) -> Chunk {
    let raw_bytes = pieces.iter().map(|piece| piece.bytes.len()).sum();
    Chunk { pieces, raw_bytes, ..Chunk::default() }
}

fn lines(text: &str) -> Chunk {
    chunk(vec![piece(text.as_bytes(), PieceKind::Lines)])
}

fn line(time: &str, rest: &str) -> String {
    format!("203.0.113.7 - - [{time}] \"GET {rest} HTTP/1.1\" 200 12 \"-\" \"x\"")
}

fn raw(batch: &CutBatch) -> Vec<u8> {
    let mut out = Vec::new();
    let codec = wire::Codec::try_from(batch.data.codec).unwrap();
    common::frame::check(codec, &batch.payload, batch.data.raw_bytes).unwrap();
    common::frame::decode(codec, &batch.payload, batch.data.raw_bytes, &mut out).unwrap();
    assert_eq!(batch.data.payload_bytes, batch.payload.len() as u64);
    assert_eq!(batch.data.payload_crc32c, crc32c::crc32c(&batch.payload));
    assert_eq!(batch.data.events, out.iter().filter(|byte| **byte == b'\n').count() as u64);
    out
}

fn text(batch: &CutBatch) -> String {
    String::from_utf8(raw(batch)).unwrap()
}

fn path(batch: &CutBatch) -> String {
    Partition::try_from(batch.data.partition.as_ref().unwrap()).unwrap().path()
}

fn letters(cut: &Cut) -> Vec<DeadLetter> {
    let dead = cut.batches.iter().filter(|batch| batch.data.dead_letters);
    dead.flat_map(|batch| text(batch).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn events_are_split_by_the_day_of_their_time() {
    let (a, b) = (line("20/Nov/2026:23:59:59 +0000", "/a"), line("21/Nov/2026:00:30:00 +0100", "/b"));
    let c = line("21/Nov/2026:00:00:00 +0000", "/c");
    let cut = pipeline(&config(), true)
        .run(&lines(&format!("{a}\n{c}\r\n{b}\n")), NOW_US, &declared(&["clickstream"]))
        .unwrap();
    assert_eq!(cut.batches.len(), 2);
    let (first, second) = (&cut.batches[0], &cut.batches[1]);
    assert_eq!((path(first).as_str(), text(first)), ("event_date=2026-11-20", format!("{a}\n{b}\n")));
    assert_eq!((path(second).as_str(), text(second)), ("event_date=2026-11-21", format!("{c}\n")), "without its CR");
    let data = &first.data;
    assert_eq!((data.dataset.as_str(), data.source.as_str(), data.zone.as_str()), ("clickstream", "nginx", "UTC"));
    assert_eq!(data.headers["host"], "web-17.example");
    assert_eq!((data.events, data.dead_letters), (2, false));
    assert_eq!(data.max_event_time_us - data.min_event_time_us, 29 * 60 * 1_000_000 + 59 * 1_000_000);
    let read: u64 = cut.audit.0.iter().map(|row| row.read).sum();
    let published: u64 = cut.audit.0.iter().map(|row| row.published).sum();
    assert_eq!((read, published, cut.audit.0.len()), (3, 3, 2));
}

#[test]
fn days_and_hours_are_those_of_the_dataset() {
    let event = line("20/Nov/2026:23:30:00 +0000", "/a");
    for (dataset, expected) in [
        ("clickstream", "event_date=2026-11-20"),
        ("berlin", "event_date=2026-11-21"),
        ("hourly", "event_date=2026-11-20/event_hour=23"),
    ] {
        let config = PipelineConfig { dataset: dataset.into(), ..PipelineConfig::default() };
        let cut = pipeline(&config, true).run(&lines(&format!("{event}\n")), NOW_US, &declared(&[dataset])).unwrap();
        assert_eq!(path(&cut.batches[0]), expected);
    }
}

#[test]
fn what_cannot_be_placed_is_a_masked_dead_letter() {
    let config = PipelineConfig { dataset: "recent".into(), ..PipelineConfig::default() };
    let text = [
        "no time jane.doe@example.com".to_owned(),
        line("23/Nov/2026:00:00:00 +0000", "/future?to=+14156667777"),
        line("22/Nov/2026:08:59:00 +0000", "/soon"),
        line("01/Jan/1990:00:00:00 +0000", "/old"),
    ]
    .join("\n");
    let half = "GET /?tel=%2B1%20415-666-7777&e=jane.doe@exam";
    let pieces = vec![
        piece(format!("{text}\n").as_bytes(), PieceKind::Lines),
        piece(half.as_bytes(), PieceKind::TooLong { total_bytes: 99_000_000 }),
        piece(b"\xff jane.doe@example.com", PieceKind::Partial),
    ];
    let cut = pipeline(&config, true).run(&chunk(pieces), NOW_US, &declared(&["recent"])).unwrap();
    let letters = letters(&cut);
    let seen: Vec<_> = letters.iter().map(|letter| (letter.reason.as_str(), letter.offset.unwrap())).collect();
    assert_eq!(
        seen,
        [
            ("no usable time", 1000),
            ("dated more than 24 h ahead", 1029),
            ("dated before the oldest day of the dataset", 1000 + text.rfind('\n').unwrap() as u64 + 1),
            ("longer than the maximum event size", 1000),
            ("no usable time", 1000),
        ]
    );
    assert_eq!(letters[0].body.as_deref(), Some("no time <email>"));
    assert!(letters[1].body.as_ref().unwrap().contains("to=<phone> HTTP"));
    assert_eq!(letters[3].body.as_deref(), Some("GET /?tel=<phone>&e="), "no half of an address");
    assert_eq!(letters[3].body_bytes, 99_000_000);
    assert_eq!(letters[4].body_base64.as_deref(), Some("/yA8ZW1haWw+"));
    let dead = cut.batches.iter().find(|batch| batch.data.dead_letters).unwrap();
    assert_eq!(path(dead), "event_date=2026-11-21", "the UTC day they were made");
    let dead_lettered: u64 = cut.audit.0.iter().map(|row| row.dead_lettered).sum();
    assert_eq!((dead_lettered, cut.batches.len()), (5, 2));
}

#[test]
fn an_undeclared_dataset_leaves_the_chunk_to_be_cut_later() {
    let route = InterceptorConfig::Route { pattern: "/api".into(), dataset: "gzip".into() };
    let config = PipelineConfig { interceptors: vec![route], ..config() };
    let mut pipeline = pipeline(&config, true);
    let text =
        format!("{}\n{}\n", line("20/Nov/2026:10:00:00 +0000", "/a"), line("20/Nov/2026:10:00:00 +0000", "/api"));
    let chunk = lines(&text);
    let refused = pipeline.run(&chunk, NOW_US, &declared(&["clickstream"])).unwrap_err();
    assert_eq!(refused.0, "gzip");
    let cut = pipeline.run(&chunk, NOW_US, &declared(&["clickstream", "gzip"])).unwrap();
    let datasets: Vec<_> = cut.batches.iter().map(|batch| (batch.data.dataset.as_str(), batch.data.events)).collect();
    assert_eq!(datasets, [("clickstream", 1), ("gzip", 1)], "nothing of the failed attempt is left");
    assert_eq!(raw(&cut.batches[1]), format!("{}\n", line("20/Nov/2026:10:00:00 +0000", "/api")).as_bytes());
    assert_eq!(cut.audit.0.iter().map(|row| row.read).sum::<u64>(), 2);
}

#[test]
fn the_same_chunk_gives_the_same_bytes() {
    let text: String =
        (0..500).map(|n| line("20/Nov/2026:10:00:00 +0000", &format!("/{n}?e=a{n}@b.co")) + "\n").collect();
    let mut pipeline = pipeline(&config(), true);
    let first = pipeline.run(&lines(&text), NOW_US, &declared(&["clickstream"])).unwrap();
    let second = pipeline.run(&lines(&text), NOW_US, &declared(&["clickstream"])).unwrap();
    assert_eq!(first, second);
    assert!(!String::from_utf8(raw(&first.batches[0])).unwrap().contains('@'));
}

#[test]
fn a_long_event_stands_alone_and_batches_stay_small() {
    let long = line("20/Nov/2026:10:00:00 +0000", &"a".repeat(2_000_000));
    let short = line("20/Nov/2026:10:00:00 +0000", "/a");
    let cut = pipeline(&config(), true)
        .run(&lines(&format!("{short}\n{long}\n{short}\n")), NOW_US, &declared(&["clickstream"]))
        .unwrap();
    let events: Vec<_> = cut.batches.iter().map(|batch| batch.data.events).collect();
    assert_eq!(events, [1, 1, 1]);
}

#[test]
fn an_event_that_interceptors_blow_up_is_set_aside() {
    let grow = InterceptorConfig::SearchReplace { pattern: "a".into(), replacement: "b".repeat(100) };
    let config = PipelineConfig { interceptors: vec![grow], ..config() };
    let event = line("20/Nov/2026:10:00:00 +0000", &"a".repeat(100_000));
    let cut = pipeline(&config, true).run(&lines(&format!("{event}\n")), NOW_US, &declared(&["clickstream"])).unwrap();
    let letters = letters(&cut);
    assert_eq!(letters[0].reason, "longer than 8 MiB after interceptors");
    assert_eq!(letters[0].body_bytes, event.len() as u64);
}

#[test]
fn masking_can_be_switched_off() {
    let event = line("20/Nov/2026:10:00:00 +0000", "/?e=jane@example.com");
    let cut =
        pipeline(&config(), false).run(&lines(&format!("{event}\n")), NOW_US, &declared(&["clickstream"])).unwrap();
    assert_eq!(text(&cut.batches[0]), format!("{event}\n"));
}

#[test]
fn every_mistake_is_named_with_its_key() {
    let text = r#"
        dataset = "Upper"
        time = { format = "pattern", pattern = "%H" }
        interceptors = [{ type = "include", pattern = "(" }, { type = "route", pattern = "x", dataset = "../x" }]
    "#;
    let error = common::config::parse::<PipelineConfig>(text).unwrap_err().to_string();
    for key in ["dataset", "time", "interceptors[0].pattern", "interceptors[1].dataset"] {
        assert!(error.contains(key), "{key} in {error}");
    }
    let unknown = r#"dataset = "a"
        interceptors = [{ type = "mask", x = 1 }]"#;
    assert!(common::config::parse::<PipelineConfig>(unknown).is_err());
    let all = r#"dataset = "a"
        time = { format = "iso8601", zone = "Europe/Berlin" }
        interceptors = [{ type = "timestamp" }, { type = "host", header = "node" }, { type = "static", header = "a", value = "b" },
          { type = "exclude", pattern = "x" }, { type = "search_replace", pattern = "x", replacement = "y" }, { type = "mask" },
          { type = "route_by_header", header = "a", datasets = { b = "c" } }]"#;
    let parsed = common::config::parse::<PipelineConfig>(all).unwrap();
    assert_eq!(common::config::parse::<PipelineConfig>(&common::config::dump(&parsed)).unwrap(), parsed);
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that does not run has to say so")]
fn the_adversarial_lines_where_they_are_at_hand() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/adversarial");
    use base64::Engine;
    let Ok(cases) = std::fs::read_to_string(folder.join("access_adversarial.jsonl")) else {
        eprintln!("SKIPPED: no sample data at {}", folder.display());
        return;
    };
    let engine = base64::engine::general_purpose::STANDARD;
    let format = common::log_format::LogFormat::compile("combined").unwrap();
    let mut pipeline = pipeline(&config(), false);
    let (mut placed, mut dead, mut rows) = (0, 0, 0);
    for case in cases.lines() {
        let case: serde_json::Value = serde_json::from_str(case).unwrap();
        let mut bytes = engine.decode(case["b64"].as_str().unwrap()).unwrap();
        bytes.push(b'\n');
        let cut =
            pipeline.run(&chunk(vec![piece(&bytes, PieceKind::Lines)]), NOW_US, &declared(&["clickstream"])).unwrap();
        for batch in &cut.batches {
            if batch.data.dead_letters {
                dead += batch.data.events;
                continue;
            }
            placed += batch.data.events;
            assert_eq!(
                path(batch),
                format!("event_date={}", case["event_date_utc"].as_str().unwrap()),
                "{}",
                case["why"]
            );
            for line in raw(batch).split_inclusive(|byte| *byte == b'\n') {
                rows += u64::from(format.parse(&line[..line.len() - 1]).is_some());
            }
        }
    }
    assert_eq!((placed, dead), (131, 37));
    assert_eq!(rows, 104, "as Parquet");
}
