//! `collector.toml`: everything that is set for one collector. Unknown keys are refused; every problem is listed.

pub mod compaction;
pub mod dataset;
pub mod housekeeping;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use common::admin::AdminConfig;
use common::config::{Problems, Validate};
use common::units::{Size, Span};
use serde::{Deserialize, Serialize};

use crate::partition_writer::GroupHandle;
use crate::store::DestinationConfig;
use compaction::CompactionConfig;
use dataset::DatasetConfig;
use housekeeping::HousekeepingConfig;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Names this collector in records, file names and logs; stable over restarts. Default: the host name.
    #[serde(default = "host_name")]
    pub name: String,
    /// Where aggregators connect.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Longest time from SIGTERM until everything is committed.
    #[serde(default = "drain_deadline")]
    pub drain_deadline: Span,
    /// Where files go.
    pub destination: DestinationConfig,
    /// When files are closed.
    #[serde(default)]
    pub roll: RollConfig,
    /// How records are written.
    #[serde(default)]
    pub commit: CommitConfig,
    /// What may be received.
    #[serde(default)]
    pub receive: ReceiveConfig,
    /// What is kept how long.
    #[serde(default)]
    pub housekeeping: HousekeepingConfig,
    /// How small files are joined before a seal.
    #[serde(default)]
    pub compaction: CompactionConfig,
    /// Declared datasets.
    #[serde(default)]
    pub datasets: Vec<DatasetConfig>,
    /// Health, metrics, status.
    #[serde(default = "admin")]
    pub admin: AdminConfig,
}

/// `[roll]`: a file is closed at the first of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RollConfig {
    /// Its size.
    pub bytes: Size,
    /// Its age.
    pub age: Span,
    /// Time since the last append.
    pub idle: Span,
    /// Events in it; 0: no limit.
    pub events: u64,
    /// Memory of all buffers together; past it the file written to least recently is closed.
    pub memory: Size,
    /// Files that are written at once.
    pub open_files: usize,
}

/// `[commit]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommitConfig {
    /// How long a commit waits for a file that is being closed; later the file joins the next commit.
    pub close_wait: Span,
    /// Records between two checkpoints.
    pub checkpoint_every: u64,
    /// How long files of a record are left to the collector that wrote it.
    pub finish_after: Span,
}

/// `[receive]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReceiveConfig {
    /// Bytes received and not yet staged, over all streams.
    pub memory: Size,
    /// The same for one stream, at most.
    pub stream_memory: Size,
}

fn host_name() -> String {
    let uname = rustix::system::uname();
    let name: String = uname.nodename().to_string_lossy().into_owned();
    let clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
    let clean = clean.trim_matches('-').to_owned();
    if clean.is_empty() { "collector".into() } else { clean }
}

fn listen() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7080)
}

fn drain_deadline() -> Span {
    Span::secs(60)
}

fn admin() -> AdminConfig {
    AdminConfig::loopback(9466)
}

impl Default for RollConfig {
    fn default() -> Self {
        Self {
            bytes: Size::mib(256),
            age: Span::secs(300),
            idle: Span::secs(60),
            events: 0,
            memory: Size::mib(256),
            open_files: 64,
        }
    }
}

impl Default for CommitConfig {
    fn default() -> Self {
        Self { close_wait: Span::secs(10), checkpoint_every: 64, finish_after: Span::secs(60) }
    }
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        Self { memory: Size::mib(256), stream_memory: Size::mib(32) }
    }
}

impl Config {
    /// The version of the declarations: grows with nothing, but differs whenever they do.
    pub fn declarations_version(&self) -> u64 {
        use prost::Message;
        let mut hash = Vec::new();
        for dataset in &self.datasets {
            hash.extend(dataset.declaration().encode_length_delimited_to_vec());
        }
        u64::from(crc32c::crc32c(&hash)).max(1)
    }
}

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        let name_ok = |name: &str| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
                && name.as_bytes()[0].is_ascii_alphanumeric()
        };
        if !name_ok(&self.name) {
            problems.add("name", "must be 1 to 64 letters, digits, `-` or `.`, beginning with a letter or digit");
        }
        self.destination.validate(problems);
        problems.within("roll", |problems| self.roll.validate(problems));
        problems.within("compaction", |problems| self.compaction.validate(problems));
        if self.commit.checkpoint_every == 0 {
            problems.add("commit.checkpoint_every", "must be at least 1");
        }
        if self.receive.stream_memory.bytes() < 1 << 20 || self.receive.memory < self.receive.stream_memory {
            problems.add("receive.stream_memory", "must be at least 1MiB and at most receive.memory");
        }
        problems.within("housekeeping", |problems| self.housekeeping.validate(problems));
        if self.datasets.is_empty() {
            problems.add("datasets", "declare at least one [[datasets]]: nothing can be written without");
        }
        let mut names = BTreeSet::new();
        for (at, dataset) in self.datasets.iter().enumerate() {
            problems.within(format!("datasets[{at}]"), |problems| {
                let before = problems.iter().count();
                dataset.validate(problems);
                if !names.insert(&dataset.name) {
                    problems.add("name", format!("{:?} is declared twice", dataset.name));
                }
                if problems.iter().count() == before
                    && let Err(error) = GroupHandle::check(dataset)
                {
                    problems.add("format", error.to_string());
                }
            });
        }
    }
}

impl RollConfig {
    fn validate(&self, problems: &mut Problems) {
        if self.bytes.bytes() < 1024 {
            problems.add("bytes", "must be at least 1KiB");
        }
        for (key, span) in [("age", self.age), ("idle", self.idle)] {
            if span.get().is_zero() {
                problems.add(key, "must be more than zero");
            }
        }
        if self.memory.bytes() < 32 << 20 {
            problems.add("memory", "must be at least 32MiB");
        }
        if !(1..=1024).contains(&self.open_files) {
            problems.add("open_files", "must be 1 to 1024");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../examples/collector.toml");

    #[test]
    fn the_example_is_valid_and_survives_a_dump() {
        let config: Config = common::config::parse(EXAMPLE).unwrap();
        assert_eq!(config.datasets.len(), 2);
        let again: Config = common::config::parse(&common::config::dump(&config)).unwrap();
        assert_eq!(common::config::dump(&again), common::config::dump(&config));
        assert_eq!(again.declarations_version(), config.declarations_version());
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let text = "name = \"a b\"\nlisten = \"127.0.0.1:0\"\nsurprise = 1\n[destination]\nurl = \"s3://x\"\n\
                    [roll]\nage = \"0s\"\n[[datasets]]\nname = \"d\"\n[[datasets]]\nname = \"d\"\nzone = \"Nowhere\"\n";
        let error = common::config::parse::<Config>(text).unwrap_err().to_string();
        for key in ["name", "surprise", "destination.url", "roll.age", "datasets[1].name", "datasets[1].zone"] {
            assert!(error.contains(key), "{key} is not in: {error}");
        }
    }
}
