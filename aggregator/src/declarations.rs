//! What collectors say of datasets, on its way up to the agents; kept on disk so that an aggregator that starts while no
//! collector can be reached still takes data in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use proto::ids::{AgentName, DatasetName};
use proto::wire::{CollectorStatus, DatasetDeclaration, NodeStatus};
use tokio::sync::watch;

const MAGIC: [u8; 4] = *b"CTDC";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 12;
/// Roll age told to agents until a collector has said one.
const DEFAULT_ROLL_AGE_MS: u64 = 300_000;

/// Everything known of datasets.
#[derive(Debug, Clone, PartialEq)]
pub struct Declarations {
    /// 0: nothing is known yet.
    pub version: u64,
    /// Roll age of the collectors, in milliseconds.
    pub roll_age_ms: u64,
    by_name: BTreeMap<String, DatasetDeclaration>,
}

impl Default for Declarations {
    fn default() -> Self {
        Self { version: 0, roll_age_ms: DEFAULT_ROLL_AGE_MS, by_name: BTreeMap::new() }
    }
}

impl Declarations {
    /// May this agent write this dataset? The reason if not.
    pub fn check(&self, dataset: &DatasetName, agent: &AgentName) -> Result<(), String> {
        if self.version == 0 {
            return Err("no collector has been reached yet, so no dataset is known".to_owned());
        }
        let Some(declaration) = self.by_name.get(dataset.as_str()) else {
            return Err(format!("dataset {dataset} is not declared at the collectors; declare it there"));
        };
        if declaration.writers.is_empty() || declaration.writers.iter().any(|writer| matches(writer, agent)) {
            return Ok(());
        }
        Err(format!("agent {agent} is not among the writers of dataset {dataset}; add it at the collectors"))
    }

    /// All of them, in order of name.
    pub fn list(&self) -> Vec<DatasetDeclaration> {
        self.by_name.values().cloned().collect()
    }

    /// Takes over what a collector says, if it says anything new.
    fn update(&mut self, status: &CollectorStatus) -> bool {
        let mut changed = false;
        if status.roll_age_ms > 0 && status.roll_age_ms != self.roll_age_ms {
            self.roll_age_ms = status.roll_age_ms;
            changed = true;
        }
        // A version tells declarations apart, it does not order them: what was heard last is meant.
        if !status.declarations.is_empty() && status.declarations_version != self.version {
            let named = status.declarations.iter().map(|d| (d.name.clone(), d.clone()));
            self.by_name = named.collect();
            self.version = status.declarations_version;
            changed = true;
        }
        changed
    }

    /// The part of an answer to an agent that holds version `known`.
    pub fn status(&self, node: &str, known: u64, time_unix_ms: i64) -> NodeStatus {
        NodeStatus {
            node: node.to_owned(),
            time_unix_ms,
            roll_age_ms: self.roll_age_ms,
            declarations_version: self.version,
            declarations: if known == self.version { Vec::new() } else { self.list() },
        }
    }
}

/// An exact name, or a prefix followed by `*`.
fn matches(writer: &str, agent: &AgentName) -> bool {
    match writer.strip_suffix('*') {
        Some(prefix) => agent.as_str().starts_with(prefix),
        None => agent.as_str() == writer,
    }
}

/// The owner of the declarations.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    sender: watch::Sender<Arc<Declarations>>,
}

impl Keeper {
    /// Reads what the last run kept in `data_dir`; a damaged file counts as missing.
    pub fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("declarations");
        let kept = match fs::read(&path) {
            Ok(bytes) => decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Declarations::default()),
            Err(_) => None,
        };
        if kept.is_none() {
            tracing::warn!("the kept dataset declarations cannot be read; waiting for a collector");
        }
        Self { path, sender: watch::Sender::new(Arc::new(kept.unwrap_or_default())) }
    }

    /// Always the newest.
    pub fn watch(&self) -> watch::Receiver<Arc<Declarations>> {
        self.sender.subscribe()
    }

    /// A collector has spoken. What is new is kept on disk before it is used.
    pub fn heard(&self, status: &CollectorStatus) {
        let mut next = (**self.sender.borrow()).clone();
        if !next.update(status) {
            return;
        }
        tracing::info!(version = next.version, datasets = next.by_name.len(), "dataset declarations changed");
        if let Err(error) = store(&self.path, &encode(&next)) {
            tracing::warn!(%error, "dataset declarations cannot be kept on disk; a restart has to reach a collector first");
        }
        self.sender.send_replace(Arc::new(next));
    }
}

/// Magic, format, CRC32C of the rest, then the same message that agents get.
fn encode(declarations: &Declarations) -> Vec<u8> {
    let body = declarations.status("", u64::MAX, 0).encode_to_vec();
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

fn decode(bytes: &[u8]) -> Option<Declarations> {
    let (head, body) = bytes.split_at_checked(HEAD_BYTES)?;
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
    if head[..4] != MAGIC || word(4) != FORMAT || word(8) != crc32c::crc32c(body) {
        return None;
    }
    let status = NodeStatus::decode(body).ok()?;
    let named = status.declarations.into_iter().map(|d| (d.name.clone(), d));
    Some(Declarations {
        version: status.declarations_version,
        roll_age_ms: status.roll_age_ms,
        by_name: named.collect(),
    })
}

fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: u64, writers: &[&str]) -> CollectorStatus {
        CollectorStatus {
            roll_age_ms: 10_000,
            declarations_version: version,
            declarations: vec![DatasetDeclaration {
                name: "clickstream".into(),
                zone: "UTC".into(),
                writers: writers.iter().map(|w| w.to_string()).collect(),
                ..DatasetDeclaration::default()
            }],
            ..CollectorStatus::default()
        }
    }

    #[test]
    fn writers_are_names_or_prefixes() {
        let mut known = Declarations::default();
        let dataset = DatasetName::new("clickstream").unwrap();
        let agent = |name: &str| AgentName::new(name).unwrap();
        assert!(known.check(&dataset, &agent("web-1")).is_err(), "nothing known yet");
        assert!(known.update(&status(3, &["web-*", "db-1"])));
        assert!(known.check(&dataset, &agent("web-1")).is_ok());
        assert!(known.check(&dataset, &agent("db-1")).is_ok());
        assert!(known.check(&dataset, &agent("db-12")).is_err());
        assert!(known.check(&DatasetName::new("other").unwrap(), &agent("web-1")).is_err());
        assert!(!known.update(&status(3, &["web-*", "db-1"])), "nothing new");
        assert!(known.update(&status(2, &[])), "another version, whatever its number");
        assert!(known.check(&dataset, &agent("db-12")).is_ok());
    }

    #[test]
    fn they_survive_a_restart_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(dir.path());
        keeper.heard(&status(3, &["web-*"]));
        let kept = keeper.watch().borrow().clone();
        assert_eq!((kept.version, kept.roll_age_ms), (3, 10_000));
        assert_eq!(*Keeper::open(dir.path()).watch().borrow(), kept);
        let path = dir.path().join("declarations");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(Keeper::open(dir.path()).watch().borrow().version, 0);
    }

    #[test]
    fn declarations_travel_only_when_the_version_differs() {
        let mut known = Declarations::default();
        known.update(&status(3, &[]));
        assert!(known.status("a", 3, 1).declarations.is_empty());
        assert_eq!(known.status("a", 2, 1).declarations.len(), 1);
    }
}
