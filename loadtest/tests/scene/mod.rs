//! What the whole-system tests share: small runs of real processes, and a search for bytes that must be nowhere.

pub mod day;
pub mod python;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use loadtest::cluster::Program;
use loadtest::cluster::spec::{Ack, Dataset, Masking, Roll, Spec};

/// The load tester as it was built for these tests.
pub fn program() -> Program {
    Program::at(env!("CARGO_BIN_EXE_catchment-loadtest"))
}

/// A dataset of a format.
#[allow(dead_code, reason = "not every test binary chooses")]
pub fn dataset(format: &str, compression: &str) -> Dataset {
    Dataset { format: format.into(), compression: compression.into(), ..Dataset::default() }
}

#[allow(dead_code, reason = "not every test binary makes its own cluster")]
/// One agent that reads `paths`, one aggregator, one collector, fast rolls, a local destination below `dir`.
pub fn small_spec(dir: &Path, paths: Vec<String>) -> Spec {
    Spec {
        agents: vec![paths],
        aggregators: 1,
        collectors: 1,
        dest: destination(dir),
        dataset: Dataset::default(),
        masking: Masking::Replace,
        ack: Ack::Committed,
        roll: Roll { bytes: 64 << 20, age: Duration::from_secs(1), idle: Duration::from_millis(500) },
        linger: Duration::from_millis(200),
        level: 1,
        clock: None,
        top: Vec::new(),
        extra: Vec::new(),
    }
}

#[allow(dead_code, reason = "not every test binary makes its own cluster")]
/// Where tests publish.
pub fn destination(dir: &Path) -> String {
    format!("file://{}", dir.join("data").display())
}

/// Files below `dir` that hold one of `needles`, as they are or inside any zstd frame or gzip member in them.
#[allow(dead_code, reason = "not every test binary searches")]
pub fn files_with(dir: &Path, needles: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, needles));
        } else if let Ok(bytes) = fs::read(&path)
            && holds(&bytes, needles)
        {
            found.push(path);
        }
    }
    found
}

#[allow(dead_code, reason = "not every test binary searches")]
fn holds(bytes: &[u8], needles: &[&str]) -> bool {
    let has = |bytes: &[u8]| needles.iter().any(|needle| memchr::memmem::find(bytes, needle.as_bytes()).is_some());
    has(bytes) || frames(bytes).iter().any(|frame| has(frame))
}

/// Everything that decodes, wherever it begins.
#[allow(dead_code, reason = "not every test binary searches")]
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for at in memchr::memmem::find_iter(bytes, b"\x28\xb5\x2f\xfd") {
        let mut raw = Vec::new();
        if let Ok(decoder) = zstd::stream::read::Decoder::new(&bytes[at..]) {
            // A frame that is followed by something else decodes up to there, which is all that is wanted.
            let _ = decoder.single_frame().take(64 << 20).read_to_end(&mut raw);
        }
        frames.push(raw);
    }
    for at in memchr::memmem::find_iter(bytes, b"\x1f\x8b\x08") {
        let mut raw = Vec::new();
        let _ = flate2::read::GzDecoder::new(&bytes[at..]).take(64 << 20).read_to_end(&mut raw);
        frames.push(raw);
    }
    frames
}
