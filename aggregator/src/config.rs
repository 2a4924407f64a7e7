//! The configuration file of an aggregator. Every problem is listed at once; unknown keys are refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use common::admin::AdminConfig;
use common::config::{Problems, Validate};
use common::peers::PeersConfig;
use common::units::{Size, Span};
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// This aggregator's name, as agents and collectors see it.
    #[serde(default = "host_name")]
    pub name: String,
    /// Where agents connect.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Where the channel lies.
    pub data_dir: PathBuf,
    /// Longest time from SIGTERM until what was taken is answered.
    #[serde(default = "drain_deadline")]
    pub drain_deadline: Span,
    /// The durable queue.
    #[serde(default)]
    pub channel: ChannelConfig,
    /// What may be taken in at once.
    #[serde(default)]
    pub ingest: IngestConfig,
    /// Collectors.
    pub collectors: PeersConfig,
    /// How batches go to them.
    #[serde(default)]
    pub forward: ForwardConfig,
    /// Health, metrics, status, drain.
    #[serde(default = "admin")]
    pub admin: AdminConfig,
}

/// `[channel]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelConfig {
    /// Capacity: agents are answered *busy* when segment files hold so much.
    pub max_bytes: Size,
    /// Size from which a segment file is closed.
    pub segment_bytes: Size,
    /// Space of the file system that is left free.
    pub keep_free: Size,
    /// How often the ledger is written.
    pub tick: Span,
    /// How long a segment with few unanswered batches waits before those are copied out of it.
    pub pinned_after: Span,
}

/// `[ingest]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngestConfig {
    /// Bytes of requests that are in memory at once.
    pub memory: Size,
}

/// `[forward]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForwardConfig {
    /// How long a collector may be unreachable before its batches go to the next one.
    pub failover_after: Span,
    /// Most batches of one collector that are sent and not committed.
    pub max_unreleased: usize,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            max_bytes: Size::gib(10),
            segment_bytes: Size::mib(128),
            keep_free: Size::mib(256),
            tick: Span::millis(200),
            pinned_after: Span::secs(60),
        }
    }
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self { memory: Size::mib(64) }
    }
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self { failover_after: Span::secs(3), max_unreleased: 32_768 }
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 7070))
}

fn drain_deadline() -> Span {
    Span::secs(30)
}

fn admin() -> AdminConfig {
    AdminConfig::loopback(9465)
}

/// One request of the largest size must fit.
const LEAST_MEMORY: u64 = proto::MAX_MESSAGE_BYTES as u64;
const LARGEST_SEGMENT: Size = Size::gib(1);

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        if self.name.is_empty() || self.name.len() > 128 {
            problems.add("name", "must be 1 to 128 characters");
        }
        if self.data_dir.as_os_str().is_empty() {
            problems.add("data_dir", "must name a directory");
        }
        problems.within("collectors", |problems| self.collectors.validate(problems));
        problems.within("channel", |problems| {
            let segment = self.channel.segment_bytes;
            if segment < Size::mib(1) || segment > LARGEST_SEGMENT {
                problems.add("segment_bytes", format!("must be between 1MiB and {LARGEST_SEGMENT}"));
            }
            if self.channel.max_bytes.bytes() < segment.bytes().saturating_mul(4) {
                problems.add("max_bytes", format!("must be at least four segments of {segment}"));
            }
            if self.channel.tick.get().is_zero() {
                problems.add("tick", "must be more than 0; 200ms is usual");
            }
        });
        if self.ingest.memory.bytes() < LEAST_MEMORY {
            problems.add("ingest.memory", format!("must be at least {LEAST_MEMORY} bytes, so that one request fits"));
        }
        if self.forward.max_unreleased == 0 {
            problems.add("forward.max_unreleased", "must be at least 1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "data_dir = \"data\"\n[collectors]\npeers = [\"127.0.0.1:7080\"]\n";

    #[test]
    fn a_short_file_is_enough_and_dumps_back() {
        let config: Config = common::config::parse(LEAST).unwrap();
        assert_eq!(config.channel.max_bytes, Size::gib(10));
        let again: Config = common::config::parse(&common::config::dump(&config)).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn the_example_is_valid() {
        let text = include_str!("../examples/aggregator.toml");
        let config: Config = common::config::parse(text).unwrap();
        assert_eq!(config.name, "agg-1");
    }

    #[test]
    fn every_problem_is_listed() {
        let text = "data_dir = \"\"\ncolour = 1\n[collectors]\npeers = [\"nowhere\"]\n[channel]\nsegment_bytes = 5\n\
                    [ingest]\nmemory = \"1KiB\"\n";
        let error = common::config::parse::<Config>(text).unwrap_err().to_string();
        for key in ["data_dir", "colour", "collectors.peers[0]", "channel.segment_bytes", "ingest.memory"] {
            assert!(error.contains(key), "{key} is missing in: {error}");
        }
    }
}
