//! The `type = "tail"` part of a source's configuration.
//!
//! Invariant: what passes `validate` can be opened: every glob compiles, every limit leaves room to work.

use std::time::Duration;

use common::config::{Problems, Validate};
use common::units::{Size, Span};
use serde::{Deserialize, Serialize};

use super::listing::compile;

/// Where reading begins in files that exist at the very first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// At their first byte.
    #[default]
    Beginning,
    /// Behind their last complete line.
    End,
}

/// How much is kept readable after it was rotated away or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HoldConfig {
    /// Unread bytes in all such files together.
    pub bytes: Size,
    /// Time since a file went away.
    pub age: Span,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self { bytes: Size::gib(1), age: Span::secs(24 * 3600) }
    }
}

/// Configuration of a tail source. See the module [`crate::tail`] for the rules behind the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TailConfig {
    /// Absolute globs of the files to read; `*` stays within a directory, `**` spans any number of them.
    pub paths: Vec<String>,
    /// Globs of files to leave out.
    pub exclude: Vec<String>,
    /// Also read files whose names end in .gz .zst .bz2 .xz, byte for byte as they are (they are not decompressed).
    pub include_compressed: bool,
    /// Where reading begins in files that exist at the very first start.
    pub start: Start,
    /// The longest event; longer ones are reported with their first 64 KiB. At least 1 KiB, at most 8 MiB (what fits into one
    /// batch).
    pub max_event_bytes: Size,
    /// How long nobody may have written before an event without LF at the end of a file is emitted; 0: only in files that were renamed away or
    /// deleted (then after 5 s), and at close.
    pub partial_idle: Span,
    /// How much stays readable after rotation or deletion.
    pub hold_deleted: HoldConfig,
    /// How often known files are looked at.
    pub poll: Span,
    /// How often directories are listed, at most (walks that take long are spread out).
    pub rescan: Span,
    /// How long a new file must be quiet before one that equals another file counts as a file of its own, and how long the rest of a truncated
    /// file is looked for in copies.
    pub copy_wait: Span,
    /// How long a file that no glob leads to any more is kept open after its last byte was read.
    pub close_gone: Span,
    /// Descriptors kept open, except for rotated and deleted files with unread bytes.
    pub max_open_files: usize,
    /// Bytes read from one file before it is the next one's turn.
    pub quantum: Size,
}

impl Default for TailConfig {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            exclude: Vec::new(),
            include_compressed: false,
            start: Start::Beginning,
            max_event_bytes: Size::mib(2),
            partial_idle: Span::secs(5),
            hold_deleted: HoldConfig::default(),
            poll: Span::millis(250),
            rescan: Span::secs(1),
            copy_wait: Span::secs(5),
            close_gone: Span::secs(30),
            max_open_files: 512,
            quantum: Size::kib(256),
        }
    }
}

impl Validate for TailConfig {
    fn validate(&self, problems: &mut Problems) {
        if self.paths.is_empty() {
            problems.add("paths", "must name at least one file or glob");
        }
        for (key, globs) in [("paths", &self.paths), ("exclude", &self.exclude)] {
            for glob in globs {
                if let Err(reason) = compile(glob) {
                    problems.add(key, format!("`{glob}` {reason}"));
                } else if !glob.starts_with('/') {
                    problems.add(key, format!("`{glob}` must be absolute: begin it with `/`"));
                }
            }
        }
        let mut within = |key: &str, value: Size, low: Size, high: Size| {
            if !(low.bytes()..=high.bytes()).contains(&value.bytes()) {
                problems.add(key, format!("must be between {low} and {high}"));
            }
        };
        within("max_event_bytes", self.max_event_bytes, Size::kib(1), Size::mib(8));
        within("quantum", self.quantum, Size::kib(4), Size::mib(4));
        if self.max_open_files < 16 {
            problems.add("max_open_files", "must be at least 16");
        }
        let spans = [("poll", self.poll), ("rescan", self.rescan), ("copy_wait", self.copy_wait)];
        for (key, span) in spans.into_iter().chain([("hold_deleted.age", self.hold_deleted.age)]) {
            if span.get() < Duration::from_millis(1) {
                problems.add(key, "must be at least 1ms");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_listed() {
        let text =
            "paths = [\"relative/*.log\", \"/a/[\"]\nmax_event_bytes = \"1B\"\npoll = \"0s\"\nmax_open_files = 1\n";
        let error = common::config::parse::<TailConfig>(text).unwrap_err().to_string();
        for part in ["relative/*.log", "/a/[", "max_event_bytes", "poll", "max_open_files"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn defaults_are_complete() {
        let config: TailConfig = common::config::parse("paths = [\"/var/log/**/*.log\"]").unwrap();
        assert_eq!(config.max_event_bytes, Size::mib(2));
        assert_eq!(config.hold_deleted.bytes, Size::gib(1));
        assert_eq!(config.start, Start::Beginning);
    }
}
