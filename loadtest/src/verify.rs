//! The verifier: reads what went in, reads what lies at the destination, and compares the two event by event. It believes
//! no tier: no counter, no commit record and no masking code of the product takes part.

pub mod columns;
pub mod found;
pub mod input;
pub mod lines;
pub mod masker;
pub mod placement;
pub mod quarantine;
pub mod report;
pub mod tally;
pub mod tree;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;

use found::Found;
use masker::Masker;
use tally::{Sums, Tally};
use tree::Tree;

/// What to compare.
#[derive(Debug, Clone)]
pub struct Options {
    /// The files that went in.
    pub logs: Vec<PathBuf>,
    /// `file:///DIR` or `hdfs://HOST:PORT/DIR`.
    pub dest: String,
    /// Only this dataset; all of them if `None`.
    pub dataset: Option<String>,
    /// How the agents masked.
    pub masker: Masker,
    /// Needed to put lines together from Parquet columns.
    pub log_format: Option<String>,
    /// Paths below the destination that were there before and do not count.
    pub known: BTreeSet<String>,
}

/// What came out of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The counts.
    pub sums: Sums,
    /// What lies at the destination.
    pub found: Found,
    /// Bytes of the files that went in.
    pub bytes_in: u64,
    /// Some of the events that were not found once.
    pub samples: Vec<String>,
}

impl Outcome {
    /// Every event is published once or dead-lettered once, in the right partition, and nothing else is there.
    pub fn is_exact(&self) -> bool {
        let sums = &self.sums;
        [sums.lost, sums.duplicated, sums.unexpected, sums.quarantined, self.found.misplaced].iter().all(|n| *n == 0)
    }
}

/// Paths that lie below a destination now.
pub fn snapshot(dest: &str) -> Result<BTreeSet<String>> {
    Ok(Tree::open(dest)?.files()?.into_iter().map(|file| file.path).collect())
}

/// Reads both sides and compares.
pub fn verify(options: &Options) -> Result<Outcome> {
    let mut tally = Tally::default();
    let bytes_in = input::count(&options.logs, &options.masker, &mut tally)?;
    let tree = Tree::open(&options.dest)?;
    let found =
        found::count(&tree, options.dataset.as_deref(), &options.known, options.log_format.as_deref(), &mut tally)?;
    Ok(Outcome { sums: tally.sums(), found, bytes_in, samples: tally.samples(10) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{self, Rotate};
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::sync::atomic::AtomicU64;

    fn generated(dir: &Path) -> Vec<PathBuf> {
        let options = generate::Options {
            bytes: 1_000_000,
            hosts: 2,
            first_host: 0,
            out: dir.to_owned(),
            seed: 4,
            rate: None,
            rotate: Rotate::None,
            rotate_bytes: u64::MAX,
            odd_per_million: 1_000,
            end: jiff::civil::date(2026, 11, 20),
        };
        generate::generate(&options, &AtomicU64::new(0)).unwrap();
        input::matched_files(&[format!("{}/*/access.log", dir.display())]).unwrap()
    }

    /// A destination as the tiers would leave it: partitions by UTC day, undated lines among the dead letters.
    fn publish(logs: &[PathBuf], dest: &Path, change: impl Fn(u64, &[u8]) -> u32) {
        let mut files: std::collections::HashMap<String, Vec<u8>> = std::collections::HashMap::new();
        let days: Vec<jiff::civil::Date> =
            (0..60).map(|back| jiff::civil::date(2026, 11, 21) - jiff::Span::new().days(back)).collect();
        let mut number = 0;
        for log in logs {
            lines::for_each(&fs::read(log).unwrap()[..], |line| {
                number += 1;
                for _ in 0..change(number, line.bytes) {
                    let day = days.iter().find(|day| {
                        line.bytes.contains(&b'[')
                            && !placement::Placement.is_wrong(line.bytes, &format!("event_date={day}"))
                    });
                    let (path, text) = match day {
                        Some(day) => (format!("clicks/event_date={day}/a-1.log.zst"), line.bytes.to_vec()),
                        None => {
                            let letter = serde_json::json!({"time": "t", "agent": "a", "dataset": "clicks",
                                "source": "s", "stage": "decode", "reason": "no usable time", "offset": 7,
                                "body": String::from_utf8_lossy(line.bytes), "body_bytes": 3});
                            let path = "_catchment/dead-letter/clicks/cut_date=2026-11-21/a-1.jsonl.zst".to_owned();
                            (path, serde_json::to_vec(&letter).unwrap())
                        }
                    };
                    let out = files.entry(path).or_default();
                    out.extend_from_slice(&text);
                    out.push(b'\n');
                }
            })
            .unwrap();
        }
        for (path, text) in files {
            let path = dest.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut file = fs::File::create(path).unwrap();
            // Two frames, as concatenated batches are.
            let half = text.len() / 2;
            file.write_all(&zstd::bulk::compress(&text[..half], 1).unwrap()).unwrap();
            file.write_all(&zstd::bulk::compress(&text[half..], 1).unwrap()).unwrap();
        }
    }

    fn outcome(change: impl Fn(u64, &[u8]) -> u32) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        let logs = generated(&dir.path().join("logs"));
        let dest = dir.path().join("dest");
        publish(&logs, &dest, change);
        let options = Options {
            logs,
            dest: format!("file://{}", dest.display()),
            dataset: Some("clicks".into()),
            masker: Masker::Replace,
            log_format: None,
            known: BTreeSet::new(),
        };
        verify(&options).unwrap()
    }

    #[test]
    fn a_whole_destination_is_exact() {
        let outcome = outcome(|_, _| 1);
        assert!(outcome.is_exact(), "{outcome:?}");
        assert!(outcome.sums.events_in > 4_000 && outcome.sums.dead_lettered > 0, "{outcome:?}");
        assert_eq!(outcome.sums.events_in, outcome.sums.published + outcome.sums.dead_lettered);
        assert!(outcome.found.partitions.len() >= 3);
        assert!(outcome.found.reasons["decode: no usable time"].sample.ends_with("at byte 7"));
    }

    #[test]
    fn one_lost_and_one_doubled_line_are_seen() {
        let outcome = outcome(|number, _| match number {
            100 => 0,
            200 => 2,
            _ => 1,
        });
        assert_eq!((outcome.sums.lost, outcome.sums.duplicated, outcome.sums.unexpected), (1, 1, 0));
        assert!(!outcome.is_exact());
        assert_eq!(outcome.samples.len(), 2);
    }
}
