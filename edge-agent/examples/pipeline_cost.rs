//! What the pipeline costs: CPU-seconds per raw GB of each stage, on access lines that are made up here.
//!
//! `cargo run --release -p edge-agent --example pipeline_cost [MB]`

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::event_time::{EventTime, TimeFormat};
use common::frame::FrameEncoder;
use edge_agent::decode::Events;
use edge_agent::intercept::mask::{MaskConfig, MaskedLines, Masker};
use edge_agent::pipeline::{Declarations, Pipeline, PipelineConfig, PipelineContext};
use edge_agent::tail::{Chunk, Piece, PieceKind};
use proto::ids::AgentName;
use proto::wire;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Raw bytes of a chunk.
const CHUNK_BYTES: usize = 1 << 20;

const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
];

fn make_chunks(total: usize) -> Vec<Bytes> {
    let mut random = SmallRng::seed_from_u64(1);
    let mut chunks = Vec::new();
    let (mut second, mut made) = (0_u32, 0);
    while made < total {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES - 600 {
            make_line(&mut random, &mut second, &mut chunk);
        }
        made += chunk.len();
        chunks.push(Bytes::from(chunk));
    }
    chunks
}

fn make_line(random: &mut SmallRng, second: &mut u32, out: &mut Vec<u8>) {
    *second = (*second + u32::from(random.random_ratio(1, 8))) % 86_400;
    let (hour, minute, sec) = (*second / 3_600, *second / 60 % 60, *second % 60);
    let [a, b] = [random.random_range(1..250), random.random_range(1..250)];
    let query = match random.random_range(0..100) {
        0 => format!("?e=user{}%40example.com&s=1", random.random_range(0..100_000)),
        1 => format!("?tel=%2B4930{}", random.random_range(1_000_000..9_999_999)),
        2..=39 => format!("?id={}&ref=list&page={}", random.random_range(0..1_000_000), random.random_range(1..40)),
        _ => String::new(),
    };
    writeln!(
        out,
        "203.0.{a}.{b} - - [20/Nov/2026:{hour:02}:{minute:02}:{sec:02} +0000] \"GET /shop/{}/item-{}.html{query} HTTP/1.1\" {} {} \"https://www.example.com/shop/{}\" \"{}\"",
        ["shoes", "books", "garden", "music"][random.random_range(0..4)],
        random.random_range(0..5_000),
        if random.random_ratio(1, 12) { 404 } else { 200 },
        random.random_range(200..90_000),
        random.random_range(0..300),
        AGENTS[random.random_range(0..AGENTS.len())],
    )
    .expect("a vector takes every byte");
}

/// CPU time of this (only) thread, as Linux counts it.
fn cpu() -> Duration {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with /proc");
    let nanoseconds =
        counted.split(' ').next().and_then(|text| text.parse().ok()).expect("nanoseconds on the CPU first");
    Duration::from_nanos(nanoseconds)
}

/// Runs `stage` over all chunks; the best of three.
fn measure(name: &str, chunks: &[Bytes], mut stage: impl FnMut(&Bytes) -> u64) {
    let bytes: usize = chunks.iter().map(Bytes::len).sum();
    let mut best = f64::MAX;
    let mut result = 0;
    for _ in 0..3 {
        let before = cpu();
        result = chunks.iter().map(&mut stage).sum();
        best = best.min((cpu() - before).as_secs_f64());
    }
    let per_gb = best * 1e9 / bytes as f64;
    writeln!(std::io::stdout(), "{name:<44} {per_gb:>6.2} CPU-s/GB   ({result})").expect("stdout takes the report");
}

fn main() {
    let megabytes: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(200);
    let chunks = make_chunks(megabytes * 1_000_000);
    measure("split", &chunks, |chunk| Events::new(chunk).count() as u64);
    let mut time = EventTime::new(&TimeFormat::LogFormat { log_format: "combined".into() }).expect("a known format");
    measure("split, time", &chunks, |chunk| {
        Events::new(chunk).filter(|range| time.extract(&chunk[range.clone()]).is_some()).count() as u64
    });
    let mut masker = Masker::new(&MaskConfig::default()).expect("replacing needs no key");
    let mut out = Vec::new();
    measure("split, mask", &chunks, |chunk| {
        let mut lines = MaskedLines::new(chunk);
        Events::new(chunk).filter(|range| lines.mask(&mut masker, range.start, range.end, &mut out)).count() as u64
    });
    for (name, codec) in
        [("none (copy)", wire::Codec::None), ("zstd 1", wire::Codec::Zstd), ("gzip 1", wire::Codec::Gzip)]
    {
        let mut encoder = FrameEncoder::new(codec, 0);
        let mut frame = Vec::new();
        measure(&format!("compress, {name}"), &chunks, |chunk| {
            frame.clear();
            encoder.encode(chunk, &mut frame).expect("compressing to memory");
            frame.len() as u64
        });
    }
    for codec in [wire::Codec::None, wire::Codec::Zstd] {
        for mask in [false, true] {
            whole(&chunks, codec, mask);
        }
    }
}

fn whole(chunks: &[Bytes], codec: wire::Codec, mask: bool) {
    let agent = AgentName::new("bench").expect("a valid name");
    let mask = MaskConfig { enabled: mask, ..MaskConfig::default() };
    let context = PipelineContext { agent: &agent, host: "bench", mask: &mask, compression_level: 1 };
    let config = PipelineConfig { dataset: "clickstream".into(), ..PipelineConfig::default() };
    let mut pipeline = Pipeline::new("bench", &config, context).expect("a valid configuration");
    let declaration = wire::DatasetDeclaration { zone: "UTC".into(), codec: codec as i32, ..Default::default() };
    let declarations = Declarations { map: [("clickstream".to_owned(), declaration)].into(), version: 1 };
    let masked = if mask.enabled { "mask" } else { "no mask" };
    measure(&format!("whole pipeline, {masked}, {}", codec.as_str_name()), chunks, |chunk| {
        let piece = Piece { path: Arc::from("access.log"), offset: 0, bytes: chunk.clone(), kind: PieceKind::Lines };
        let chunk = Chunk { raw_bytes: chunk.len(), pieces: vec![piece], ..Chunk::default() };
        let cut = pipeline.run(&chunk, 1_795_251_600_000_000, &declarations).expect("declared");
        cut.batches.iter().map(|batch| batch.data.events).sum()
    });
}
