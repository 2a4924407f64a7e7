//! What a local cluster consists of, and the configuration files that say so to its processes.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use common::clock::Fast;

/// The three kinds of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Reads and cuts.
    EdgeAgent,
    /// Queues.
    Aggregator,
    /// Commits.
    Collector,
}

impl Tier {
    /// All of them, in the order of the path.
    pub const ALL: [Tier; 3] = [Tier::EdgeAgent, Tier::Aggregator, Tier::Collector];

    /// As in folder names and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Tier::EdgeAgent => "edge-agent",
            Tier::Aggregator => "aggregator",
            Tier::Collector => "collector",
        }
    }

    /// Name of its binary.
    pub fn binary(self) -> &'static str {
        match self {
            Tier::EdgeAgent => "catchment-edge-agent",
            Tier::Aggregator => "catchment-aggregator",
            Tier::Collector => "catchment-collector",
        }
    }

    /// As a key of a report.
    pub fn key(self) -> &'static str {
        match self {
            Tier::EdgeAgent => "edge_agent",
            other => other.name(),
        }
    }
}

/// What agents do about personal data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Masking {
    /// `<email>` and `<phone>`.
    Replace,
    /// Keyed tokens.
    Hmac {
        /// The file that holds the key.
        key_file: String,
    },
    /// Nothing.
    Off,
}

/// When an agent lets go of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// When an aggregator has it on disk.
    Durable,
    /// When it is committed.
    Committed,
}

/// The one dataset of a run.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Its name.
    pub name: String,
    /// `text` or `parquet`.
    pub format: String,
    /// `zstd`, `gzip` or `none`.
    pub compression: String,
    /// A name or a format string; also where the event time stands.
    pub log_format: String,
    /// Further lines of its declaration.
    pub extra: String,
}

impl Default for Dataset {
    fn default() -> Self {
        Self {
            name: "clickstream".into(),
            format: "text".into(),
            compression: "zstd".into(),
            log_format: "combined".into(),
            extra: String::new(),
        }
    }
}

/// When collectors close files.
#[derive(Debug, Clone, Copy)]
pub struct Roll {
    /// Size of a file.
    pub bytes: u64,
    /// Age of a group.
    pub age: Duration,
    /// Time without an append.
    pub idle: Duration,
}

/// A cluster, before it is started.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What each agent reads: patterns of paths, as its configuration has them.
    pub agents: Vec<Vec<String>>,
    /// Number of aggregators.
    pub aggregators: usize,
    /// Number of collectors.
    pub collectors: usize,
    /// `file:///DIR` or `hdfs://HOST:PORT/DIR`.
    pub dest: String,
    /// What is written.
    pub dataset: Dataset,
    /// What agents do about personal data.
    pub masking: Masking,
    /// When agents let go.
    pub ack: Ack,
    /// When collectors close files.
    pub roll: Roll,
    /// Longest time events wait in an agent for company.
    pub linger: Duration,
    /// Level of compression at the agents.
    pub level: i32,
    /// The clock that all processes live by; the system's if `None`.
    pub clock: Option<Fast>,
    /// Lines in each tier's configuration before everything else.
    pub top: Vec<(Tier, String)>,
    /// Lines appended to each tier's configuration, after everything else.
    pub extra: Vec<(Tier, String)>,
}

/// Addresses of one process.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Where the tier above connects; unused by agents.
    pub listen: SocketAddr,
    /// Status, health and metrics.
    pub admin: SocketAddr,
}

/// Name of process number `index` of a tier.
pub fn node_name(tier: Tier, index: usize) -> String {
    format!("{}-{}", tier.name(), index + 1)
}

/// The configuration of one process, whose files lie under `dir`; `peers` are the listeners of the tier below it.
pub fn config_text(
    spec: &Spec,
    tier: Tier,
    index: usize,
    addresses: Addresses,
    dir: &Path,
    peers: &[SocketAddr],
) -> String {
    let mut text = format!("name = {}\n", quoted(&node_name(tier, index)));
    for (_, top) in spec.top.iter().filter(|(of, _)| *of == tier) {
        let _ = writeln!(text, "{top}");
    }
    match tier {
        Tier::EdgeAgent => agent(&mut text, spec, index, dir, peers),
        Tier::Aggregator => aggregator(&mut text, addresses, dir, peers),
        Tier::Collector => collector(&mut text, spec, addresses),
    }
    let _ = write!(text, "\n[admin]\nlisten = \"{}\"\n", addresses.admin);
    for (_, extra) in spec.extra.iter().filter(|(of, _)| *of == tier) {
        text.push_str(extra);
        text.push('\n');
    }
    text
}

/// The outbox may fill a nearly full disk, unlike in production: a run must not stand still for the rest of the disk.
fn agent(text: &mut String, spec: &Spec, index: usize, dir: &Path, peers: &[SocketAddr]) {
    let ack = match spec.ack {
        Ack::Durable => "durable",
        Ack::Committed => "committed",
    };
    let paths: Vec<String> = spec.agents[index].iter().map(|path| quoted(path)).collect();
    let log_format = quoted(&spec.dataset.log_format);
    let mask = match &spec.masking {
        Masking::Replace => "enabled = true".to_owned(),
        Masking::Hmac { key_file } => format!("enabled = true\nmode = \"hmac\"\nkey_file = {}", quoted(key_file)),
        Masking::Off => "enabled = false".to_owned(),
    };
    let _ = write!(
        text,
        "state_dir = {state}\nack = \"{ack}\"\n\n[aggregators]\npeers = {peers}\n\n\
         [outbox]\nmin_free = \"256MiB\"\nmin_free_percent = 0\n\n\
         [batch]\nlinger = \"{linger}ms\"\ncompression_level = {level}\n\n[mask]\n{mask}\n\n\
         [[sources]]\nname = \"logs\"\ntype = \"tail\"\npaths = [{paths}]\ndataset = {dataset}\n\
         time = {{ format = \"log_format\", log_format = {log_format} }}\n",
        state = quoted_path(&dir.join("state")),
        peers = list(peers),
        linger = spec.linger.as_millis(),
        level = spec.level,
        paths = paths.join(", "),
        dataset = quoted(&spec.dataset.name),
    );
}

fn aggregator(text: &mut String, addresses: Addresses, dir: &Path, peers: &[SocketAddr]) {
    let _ = write!(
        text,
        "listen = \"{}\"\ndata_dir = {}\n\n[collectors]\npeers = {}\n",
        addresses.listen,
        quoted_path(&dir.join("data")),
        list(peers)
    );
}

fn collector(text: &mut String, spec: &Spec, addresses: Addresses) {
    let dataset = &spec.dataset;
    let _ = write!(
        text,
        "listen = \"{listen}\"\ndrain_deadline = \"4m\"\n\n[destination]\nurl = {url}\n\n\
         [roll]\nbytes = {bytes}\nage = \"{age}ms\"\nidle = \"{idle}ms\"\n\n\
         [[datasets]]\nname = {name}\nzone = \"UTC\"\nformat = {format}\ncompression = {compression}\nlog_format = {log_format}\n{extra}\n",
        listen = addresses.listen,
        url = quoted(&spec.dest),
        bytes = spec.roll.bytes,
        age = spec.roll.age.as_millis(),
        idle = spec.roll.idle.as_millis(),
        name = quoted(&dataset.name),
        format = quoted(&dataset.format),
        compression = quoted(&dataset.compression),
        log_format = quoted(&dataset.log_format),
        extra = dataset.extra,
    );
}

fn list(peers: &[SocketAddr]) -> String {
    let peers: Vec<String> = peers.iter().map(|peer| format!("\"{peer}\"")).collect();
    format!("[{}]", peers.join(", "))
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A TOML basic string: what JSON escapes, TOML reads.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_and_formats_are_quoted() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\n""#);
    }
}
