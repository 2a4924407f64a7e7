//! `[compaction]`: when small files of a partition are joined before its seal, and what that may cost.

use common::config::Problems;
use common::units::Size;
use serde::{Deserialize, Serialize};

/// `[compaction]`. What it never does: touch a sealed partition, or replace a file that the log does not name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompactionConfig {
    /// Join small files before the seal at all.
    pub enabled: bool,
    /// Size of the files that are made; one of half of it or more stays as it is.
    pub target_bytes: Size,
    /// Fewer small files than this stay as they are.
    pub min_files: usize,
    /// Most bytes that one commit replaces; what is left waits for the next round.
    pub round_bytes: Size,
    /// Most files that one commit replaces.
    pub round_files: usize,
    /// Bytes per second, those read and those written together.
    pub bandwidth: Size,
    /// Files that are made at once, and threads that may work for it.
    pub parallel: usize,
}

impl Default for CompactionConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            target_bytes: Size::mib(256),
            min_files: 2,
            round_bytes: Size::gib(4),
            round_files: 2000,
            bandwidth: Size::mib(32),
            parallel: 1,
        }
    }
}

/// Where one dataset differs from `[compaction]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompactionOverrides {
    /// Join small files at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Size of the files that are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<Size>,
}

const LEAST_TARGET: Size = Size::kib(1);

impl CompactionConfig {
    /// Adds what is wrong with it. Keys are those below `compaction`.
    pub fn validate(&self, problems: &mut Problems) {
        if self.target_bytes < LEAST_TARGET {
            problems.add("target_bytes", format!("must be at least {LEAST_TARGET}"));
        }
        if self.min_files < 2 {
            problems.add("min_files", "must be at least 2: one file alone cannot be joined with another");
        }
        if self.round_bytes < self.target_bytes {
            problems.add("round_bytes", "must be at least compaction.target_bytes");
        }
        if !(2..=10_000).contains(&self.round_files) {
            problems.add("round_files", "must be 2 to 10000: a commit record names every one of them");
        }
        if self.bandwidth < Size::kib(64) {
            problems
                .add("bandwidth", "must be at least 64KiB; set compaction.enabled = false to leave files as they are");
        }
        if !(1..=64).contains(&self.parallel) {
            problems.add("parallel", "must be 1 to 64");
        }
    }
}

impl CompactionOverrides {
    /// Adds what is wrong with it. Keys are those below the dataset's `compaction`.
    pub fn validate(&self, problems: &mut Problems) {
        if self.target_bytes.is_some_and(|target| target < LEAST_TARGET) {
            problems.add("target_bytes", format!("must be at least {LEAST_TARGET}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named() {
        let mut problems = Problems::default();
        CompactionConfig::default().validate(&mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let wrong = CompactionConfig {
            enabled: true,
            target_bytes: Size::new(1023),
            min_files: 1,
            round_bytes: Size::new(0),
            round_files: 10_001,
            bandwidth: Size::new(0),
            parallel: 0,
        };
        wrong.validate(&mut problems);
        problems.within("dataset", |problems| {
            CompactionOverrides { enabled: None, target_bytes: Some(Size::new(0)) }.validate(problems);
        });
        let keys: Vec<&str> = problems.iter().map(|(key, _)| key).collect();
        let own = [
            "bandwidth",
            "dataset.target_bytes",
            "min_files",
            "parallel",
            "round_bytes",
            "round_files",
            "target_bytes",
        ];
        assert_eq!(keys, own);
    }
}
