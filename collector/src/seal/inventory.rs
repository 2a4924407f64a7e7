//! The optional list of agents that are expected: one name per line, `#` begins a comment. With it an agent that was
//! never seen is waited for; if it is said to be complete, one that is missing from it for an hour is *departed*. Pure:
//! whoever owns it reads the file again when it changes.

use std::collections::{BTreeMap, BTreeSet};

use proto::ids::AgentName;

/// An agent that is missing from a complete inventory for this long has departed, milliseconds.
pub const DEPARTED_AFTER_MS: i64 = 3_600_000;

/// A file that is not taken: what was read before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// A line that holds no name.
    #[error("line {line}: {detail}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// Not one name.
    #[error("it names no agent; it may have been read while it was written. Without an inventory remove the setting")]
    Empty,
}

/// Names of a file.
pub fn parse(text: &str) -> Result<BTreeSet<AgentName>, InventoryError> {
    let mut names = BTreeSet::new();
    for (at, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if !name.is_empty() {
            let error = |error: proto::ids::IdError| InventoryError::Line { line: at + 1, detail: error.to_string() };
            names.insert(AgentName::new(name).map_err(error)?);
        }
    }
    if names.is_empty() { Err(InventoryError::Empty) } else { Ok(names) }
}

/// Agents that are expected. Without a file it is empty and says nothing of anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    names: BTreeSet<AgentName>,
    is_complete: bool,
    first_unix_ms: Option<i64>,
    gone: BTreeMap<AgentName, i64>,
}

impl Inventory {
    /// Before the file is read. `is_complete`: whoever is not in it does not exist any more.
    pub fn new(is_complete: bool) -> Self {
        Self { is_complete, ..Self::default() }
    }

    /// What was read just now, milliseconds since the epoch.
    pub fn update(&mut self, names: BTreeSet<AgentName>, now_unix_ms: i64) {
        for name in self.names.difference(&names) {
            self.gone.insert(name.clone(), now_unix_ms);
        }
        self.gone.retain(|name, _| !names.contains(name));
        self.names = names;
        self.first_unix_ms.get_or_insert(now_unix_ms);
    }

    /// Is this agent expected?
    pub fn contains(&self, agent: &AgentName) -> bool {
        self.names.contains(agent)
    }

    /// All names, in order.
    pub fn iter(&self) -> impl Iterator<Item = &AgentName> {
        self.names.iter()
    }

    /// Since when a complete inventory lacks this agent, as far as this process knows.
    pub fn missing_since_unix_ms(&self, agent: &AgentName) -> Option<i64> {
        if !self.is_complete || self.names.contains(agent) {
            return None;
        }
        self.first_unix_ms.map(|first| self.gone.get(agent).copied().unwrap_or(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> AgentName {
        AgentName::new(name).unwrap()
    }

    #[test]
    fn a_file_holds_names_and_comments() {
        let names = parse("# web tier\nweb-1\n\n  web-2  # spare\r\nk8s/node1\nweb-1\n").unwrap();
        assert_eq!(names, ["k8s/node1", "web-1", "web-2"].map(name).into());
        assert_eq!(
            parse("web-1\nweb 2\n").unwrap_err().to_string().split_once(':').map(|(at, _)| at.to_owned()),
            Some("line 2".into())
        );
        assert_eq!(parse("# nothing\n"), Err(InventoryError::Empty));
    }

    #[test]
    fn only_a_complete_inventory_lets_agents_depart() {
        let mut inventory = Inventory::new(true);
        assert_eq!(inventory.missing_since_unix_ms(&name("a")), None, "not read yet");
        inventory.update(["a", "b"].map(name).into(), 100);
        assert_eq!(inventory.missing_since_unix_ms(&name("a")), None);
        assert_eq!(inventory.missing_since_unix_ms(&name("c")), Some(100));
        inventory.update([name("b")].into(), 200);
        inventory.update([name("b")].into(), 300);
        assert_eq!(inventory.missing_since_unix_ms(&name("a")), Some(200));
        inventory.update(["a", "b"].map(name).into(), 400);
        assert_eq!(inventory.missing_since_unix_ms(&name("a")), None);
        let mut partial = Inventory::new(false);
        partial.update([name("b")].into(), 100);
        assert!(partial.contains(&name("b")) && partial.missing_since_unix_ms(&name("a")).is_none());
    }
}
