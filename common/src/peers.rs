//! Who to talk to: a list in the configuration, a file that is read again when it changes, or a DNS name that is
//! resolved again. A source that fails or turns up empty leaves the last good list in force: peers that were there a
//! moment ago are a better guess than none.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::Problems;
use crate::supervise::TaskResult;

/// How often a file is looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(2);
/// How often a name is resolved.
const DNS_INTERVAL: Duration = Duration::from_secs(30);

/// Exactly one of three. Not to be flattened into another struct (serde would stop seeing unknown keys there): a table
/// with further keys repeats these and puts them together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersConfig {
    /// `host:port` each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// A file with one `host:port` per line; empty lines and `#` lines are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// `host:port` whose name resolves to all peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
}

impl PeersConfig {
    /// Adds what is wrong, under the keys `peers`, `file` and `dns`.
    pub fn validate(&self, problems: &mut Problems) {
        let given = [!self.peers.is_empty(), self.file.is_some(), self.dns.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            problems.add("peers", "give exactly one of `peers` (a list of host:port), `file` and `dns`");
        }
        for (n, peer) in self.peers.iter().enumerate() {
            if !is_peer(peer) {
                problems.add(format!("peers[{n}]"), format!("{peer:?} is not host:port"));
            }
        }
        if let Some(name) = self.dns.as_ref().filter(|name| !is_peer(name)) {
            problems.add("dns", format!("{name:?} is not host:port"));
        }
    }

    /// The list as of now and later, and the work that keeps it so: a service to spawn. Each peer is
    /// there once: of a list or file in the order given, of a name sorted. A file or name that cannot be read yet gives an empty list at first.
    pub fn watch(&self) -> (PeerList, impl Future<Output = TaskResult> + Send + 'static) {
        let mut source = Source::new(self);
        let (sender, receiver) = watch::channel(Arc::new(source.now_without_waiting()));
        let keep = async move {
            loop {
                let found = source.read().await;
                publish(&sender, found);
                match source.interval() {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            }
        };
        (receiver, keep)
    }
}

/// The current list; [`watch::Receiver::changed`] tells of the next.
pub type PeerList = watch::Receiver<Arc<Vec<String>>>;

enum Source {
    Fixed(Vec<String>),
    File(PathBuf),
    Dns(String),
}

impl Source {
    fn new(config: &PeersConfig) -> Self {
        match (&config.file, &config.dns) {
            (Some(file), _) => Self::File(file.clone()),
            (None, Some(name)) => Self::Dns(name.clone()),
            (None, None) => Self::Fixed(distinct(config.peers.clone())),
        }
    }

    /// For the first value: a list or a file is there at once, a name is not.
    fn now_without_waiting(&mut self) -> Vec<String> {
        match self {
            Self::Fixed(peers) => peers.clone(),
            Self::File(path) => {
                std::fs::read_to_string(path).ok().and_then(|text| parse_lines(&text).ok()).unwrap_or_default()
            }
            Self::Dns(_) => Vec::new(),
        }
    }

    async fn read(&mut self) -> Result<Vec<String>, String> {
        match self {
            Self::Fixed(peers) => Ok(peers.clone()),
            Self::File(path) => {
                let text = tokio::fs::read_to_string(&*path).await;
                text.map_err(|error| format!("{}: {error}", path.display())).and_then(|text| parse_lines(&text))
            }
            Self::Dns(name) => {
                let found = tokio::net::lookup_host(&*name).await.map_err(|error| format!("{name}: {error}"))?;
                let mut found = distinct(found.map(|address| address.to_string()).collect());
                // Resolvers rotate their answers; that is no change.
                found.sort_unstable();
                if found.is_empty() { Err(format!("{name}: resolves to nothing")) } else { Ok(found) }
            }
        }
    }

    fn interval(&self) -> Option<Duration> {
        match self {
            Self::Fixed(_) => None,
            Self::File(_) => Some(FILE_INTERVAL),
            Self::Dns(_) => Some(DNS_INTERVAL),
        }
    }
}

fn publish(sender: &watch::Sender<Arc<Vec<String>>>, found: Result<Vec<String>, String>) {
    match found {
        Ok(found) => {
            sender.send_if_modified(|list| {
                let changed = **list != found;
                if changed {
                    tracing::info!(peers = found.len(), before = list.len(), "peer list changed");
                    *list = Arc::new(found);
                }
                changed
            });
        }
        Err(reason) => {
            tracing::warn!(reason, kept = sender.borrow().len(), "peer list cannot be read, the last one stays")
        }
    }
}

fn parse_lines(text: &str) -> Result<Vec<String>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let peers = distinct(lines.map(str::to_owned).collect());
    match peers.iter().find(|peer| !is_peer(peer)) {
        Some(bad) => Err(format!("{bad:?} is not host:port")),
        None if peers.is_empty() => Err("no peer is listed".to_owned()),
        None => Ok(peers),
    }
}

fn is_peer(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Each once, in the order given.
fn distinct(mut peers: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    peers.retain(|peer| seen.insert(peer.clone()));
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(config: &PeersConfig) -> Vec<String> {
        let mut problems = Problems::default();
        config.validate(&mut problems);
        problems.iter().map(|(key, _)| key.to_owned()).collect()
    }

    #[test]
    fn exactly_one_source() {
        let list = PeersConfig { peers: vec!["a:1".into(), "b:70000".into(), "c".into()], ..Default::default() };
        assert_eq!(keys(&list), ["peers[1]", "peers[2]"]);
        assert_eq!(keys(&PeersConfig::default()), ["peers"]);
        assert_eq!(
            keys(&PeersConfig { dns: Some("a:1".into()), file: Some("x".into()), ..Default::default() }),
            ["peers"]
        );
        assert_eq!(keys(&PeersConfig { dns: Some("[::1]:7070".into()), ..Default::default() }), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_file_is_followed_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers");
        std::fs::write(&path, "# ours\nb:2\na:1\n\nb:2\n").unwrap();
        let (mut list, keep) = PeersConfig { file: Some(path.clone()), ..Default::default() }.watch();
        assert_eq!(**list.borrow_and_update(), ["b:2", "a:1"]);
        tokio::spawn(keep);
        std::fs::write(&path, "a:1\nc:3\n").unwrap();
        list.changed().await.unwrap();
        assert_eq!(**list.borrow_and_update(), ["a:1", "c:3"]);
        for broken in ["", "not a peer"] {
            let (sender, receiver) = watch::channel(list.borrow().clone());
            publish(&sender, parse_lines(broken));
            assert_eq!(**receiver.borrow(), ["a:1", "c:3"]);
        }
    }

    #[tokio::test]
    async fn a_name_is_resolved() {
        let (mut list, keep) = PeersConfig { dns: Some("127.0.0.1:7070".into()), ..Default::default() }.watch();
        tokio::spawn(keep);
        list.changed().await.unwrap();
        assert_eq!(**list.borrow(), ["127.0.0.1:7070"]);
    }
}
