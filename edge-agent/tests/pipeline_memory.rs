//! The pipeline's memory: measured on the process, so it is alone in its test binary.

use std::sync::Arc;

use bytes::Bytes;
use edge_agent::pipeline::{Declarations, MaskConfig, Pipeline, PipelineConfig, PipelineContext};
use edge_agent::tail::{Chunk, Piece, PieceKind};
use proto::ids::AgentName;
use proto::wire;

/// 2026-11-21T09:00:00Z
const NOW_US: i64 = 1_795_251_600_000_000;

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn dead_letters_of_short_lines_take_little_memory() {
    const LINES: usize = 250_000;
    let agent = AgentName::new("web-17").unwrap();
    let config = PipelineConfig { dataset: "clickstream".into(), ..PipelineConfig::default() };
    let context = PipelineContext { agent: &agent, host: "web-17", mask: &MaskConfig::default(), compression_level: 1 };
    let mut pipeline = Pipeline::new("nginx", &config, context).unwrap();
    let declaration = wire::DatasetDeclaration {
        name: "clickstream".into(),
        zone: "UTC".into(),
        codec: wire::Codec::Zstd as i32,
        ..Default::default()
    };
    let declared = Declarations { map: [("clickstream".to_owned(), declaration)].into(), version: 1 };
    let bytes = Bytes::from(vec![b'\n'; LINES]);
    let piece = Piece { path: Arc::from("/var/log/blank.log"), offset: 0, bytes, kind: PieceKind::Lines };
    let chunk = Chunk { pieces: vec![piece], raw_bytes: LINES, ..Chunk::default() };
    let before = peak_bytes();
    let cut = pipeline.run(&chunk, NOW_US, &declared).unwrap();
    let grown = peak_bytes() - before;
    assert_eq!(cut.batches.iter().map(|batch| batch.data.events).sum::<u64>(), LINES as u64);
    let raw: u64 = cut.batches.iter().map(|batch| batch.data.raw_bytes).sum();
    assert!(raw > 30 << 20, "only {raw} bytes of dead letters: the test shows nothing");
    assert!(grown < 16 << 20, "grew by {grown} bytes for {raw} bytes of dead letters");
}
