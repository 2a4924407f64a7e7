//! `edge-agent.toml`. Unknown keys and all problems are reported at once; `--dump-config` shows every default.

pub mod source;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use common::admin::AdminConfig;
use common::config::{Problems, Validate};
use common::peers::PeersConfig;
use common::units::{Size, Span};
use proto::ids::AgentName;
use serde::{Deserialize, Serialize};

pub use source::SourceConfig;

use crate::pipeline::MaskConfig;
use crate::ship::balance::Policy;

/// When a batch leaves the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// When an aggregator has stored it.
    Durable,
    /// When it is in HDFS: survives the loss of an aggregator's disk.
    #[default]
    Committed,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentConfig {
    /// Stable name of this agent; default: host name and 8 digits of a hash of the machine id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Directory of the outbox and the positions; one per agent.
    pub state_dir: PathBuf,
    /// When a batch leaves the outbox.
    pub ack: Ack,
    /// Longest drain after SIGTERM.
    pub drain_deadline: Span,
    /// A stop means that this agent does not come back (scale-in): partial lines are emitted and the seal does not
    /// wait for it.
    pub leave_on_stop: bool,
    /// Between marks, also while nothing is written: how far the seal of a day can lag behind this agent.
    pub mark_every: Span,
    /// Where batches go.
    pub aggregators: AggregatorsConfig,
    /// The outbox.
    pub outbox: OutboxConfig,
    /// How batches are cut.
    pub batch: BatchConfig,
    /// Health, readiness, metrics, status.
    pub admin: AdminConfig,
    /// Masking of personal data, for all sources.
    pub mask: MaskConfig,
    /// What is read.
    pub sources: Vec<SourceConfig>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: None,
            state_dir: "/var/lib/catchment/edge-agent".into(),
            ack: Ack::Committed,
            drain_deadline: Span::secs(30),
            leave_on_stop: false,
            mark_every: Span::secs(300),
            aggregators: AggregatorsConfig::default(),
            outbox: OutboxConfig::default(),
            batch: BatchConfig::default(),
            admin: AdminConfig::loopback(9464),
            mask: MaskConfig::default(),
            sources: Vec::new(),
        }
    }
}

/// `[aggregators]`: exactly one of `peers`, `file`, `dns`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AggregatorsConfig {
    /// `host:port` each; for `policy = "priority"` the first is preferred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// A file with one `host:port` per line, read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// `host:port` whose name resolves to all aggregators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// `home`, `spread` or `priority`.
    pub policy: Policy,
    /// Time-out of one request.
    pub timeout: Span,
    /// Bytes in flight at most.
    pub in_flight: Size,
}

impl Default for AggregatorsConfig {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            file: None,
            dns: None,
            policy: Policy::Home,
            timeout: Span::secs(30),
            in_flight: Size::mib(1),
        }
    }
}

impl AggregatorsConfig {
    /// Where the list comes from.
    pub fn source(&self) -> PeersConfig {
        PeersConfig { peers: self.peers.clone(), file: self.file.clone(), dns: self.dns.clone() }
    }
}

/// `[outbox]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutboxConfig {
    /// Bytes on disk at most; never more than a tenth of the file system.
    pub max_bytes: Size,
    /// Stops growing while less than this is free.
    pub min_free: Size,
    /// The same in per cent of the file system.
    pub min_free_percent: u64,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { max_bytes: Size::gib(1), min_free: Size::gib(1), min_free_percent: 10 }
    }
}

/// `[batch]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchConfig {
    /// Raw bytes of a chunk; one longer event alone may exceed it.
    pub max_raw_bytes: Size,
    /// Longest time an event waits for its chunk to fill.
    pub linger: Span,
    /// zstd or gzip level, unless the dataset's declaration gives one.
    pub compression_level: i32,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_raw_bytes: Size::mib(1), linger: Span::secs(15), compression_level: 1 }
    }
}

impl Validate for AgentConfig {
    fn validate(&self, problems: &mut Problems) {
        if let Some(Err(error)) = self.name.as_deref().map(AgentName::new) {
            problems.add("name", error.to_string());
        }
        if self.state_dir.as_os_str().is_empty() || self.state_dir.is_relative() {
            problems.add("state_dir", "must be an absolute path");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.mark_every.get()) {
            problems.add("mark_every", "must be between 1s and 1h: days are sealed by marks");
        }
        problems.within("aggregators", |problems| {
            self.aggregators.source().validate(problems);
            if self.aggregators.timeout.get() < Duration::from_millis(100) {
                problems.add("timeout", "must be at least 100ms");
            }
            if self.aggregators.in_flight.bytes() < 64 * 1024 {
                problems.add("in_flight", "must be at least 64KiB");
            }
        });
        if self.outbox.max_bytes.bytes() < 4 * 1024 * 1024 {
            problems.add("outbox.max_bytes", "must be at least 4MiB");
        }
        if self.outbox.min_free_percent > 90 {
            problems.add("outbox.min_free_percent", "must be at most 90");
        }
        let raw = self.batch.max_raw_bytes.bytes();
        if !(4 * 1024..=8 * 1024 * 1024).contains(&raw) {
            problems.add("batch.max_raw_bytes", "must be between 4KiB and 8MiB");
        }
        if self.batch.linger.get() < Duration::from_millis(10) {
            problems.add("batch.linger", "must be at least 10ms");
        }
        if !(-7..=19).contains(&self.batch.compression_level) {
            problems.add("batch.compression_level", "must be between -7 and 19");
        }
        problems.within("mask", |problems| self.mask.validate(problems));
        if self.sources.is_empty() {
            problems.add("sources", "must name at least one source: add a [[sources]] table");
        }
        for (at, source) in self.sources.iter().enumerate() {
            problems.within(format!("sources[{at}]"), |problems| source.validate(problems));
            if self.sources[..at].iter().any(|before| before.name == source.name) {
                problems.add(format!("sources[{at}].name"), format!("{:?} is used twice", source.name));
            }
        }
    }
}

impl AgentConfig {
    /// The agent's name: as configured, or made from the host.
    pub fn agent_name(&self) -> Result<AgentName, proto::ids::IdError> {
        match &self.name {
            Some(name) => AgentName::new(name),
            None => AgentName::new(&default_name(&host_name(), &machine_id())),
        }
    }

    /// Where the admin endpoint listens.
    pub fn admin_listen(&self) -> SocketAddr {
        self.admin.listen
    }
}

/// This host's name.
pub fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

fn machine_id() -> String {
    let files = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
    files.iter().find_map(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
}

fn default_name(host: &str, machine_id: &str) -> String {
    let mut name: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(100)
        .collect();
    if name.is_empty() {
        name.push_str("host");
    }
    let hash = xxhash_rust::xxh3::xxh3_64(machine_id.trim().as_bytes());
    format!("{name}-{:08x}", hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../examples/edge-agent.toml");

    #[test]
    fn the_example_is_valid_and_dumps_to_itself() {
        let config: AgentConfig = common::config::parse(EXAMPLE).unwrap();
        let dumped: AgentConfig = common::config::parse(&common::config::dump(&config)).unwrap();
        assert_eq!(dumped, config);
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let text = "state_dir = \"relative\"\nmark_every = \"0s\"\nwhat = 1\nack = \"sometimes\"\n[batch]\nlinger = \"0s\"\n\
                    [aggregators]\n[[sources]]\nname = \"a\"\ntype = \"tail\"\npathz = [\"/x\"]\ndataset = \"D!\"\n";
        let error = common::config::parse::<AgentConfig>(text).unwrap_err().to_string();
        for part in [
            "state_dir",
            "mark_every",
            "what",
            "ack",
            "batch.linger",
            "aggregators.peers",
            "sources[0].pathz",
            "sources[0].dataset",
        ] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn default_names_are_valid() {
        for host in ["web-17.example.org", "", "_x", "héé b"] {
            AgentName::new(&default_name(host, "abc\n")).unwrap();
        }
        assert_ne!(default_name("a", "1"), default_name("a", "2"));
    }
}
