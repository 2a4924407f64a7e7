//! One TOML file per process. A file with mistakes is refused with all of them in one error, each with the path of its
//! key: unknown keys, values of a wrong type, missing keys, and what [`Validate`] finds.
//!
//! Unknown keys are seen everywhere but inside internally tagged enums and flattened structs, which serde buffers: put
//! `#[serde(deny_unknown_fields)]` on those, the rest works the same.

mod collect;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A configuration that can say what is wrong with its values.
pub trait Validate {
    /// Adds one problem per value that cannot be used; may read no file and change nothing.
    fn validate(&self, problems: &mut Problems);
}

/// What is wrong, by key path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    found: BTreeMap<String, Vec<String>>,
    prefix: String,
}

impl Problems {
    /// Adds one, e.g. `add("batch.linger", "must be at least 1s")`. Say what to write instead.
    pub fn add(&mut self, key: impl AsRef<str>, problem: impl Into<String>) {
        let key = join(&self.prefix, key.as_ref());
        let problem = problem.into();
        let of_key = self.found.entry(key).or_default();
        if !of_key.contains(&problem) {
            of_key.push(problem);
        }
    }

    /// Runs `inner` with every key it adds put behind `prefix`, e.g. `sources[2]`.
    pub fn within(&mut self, prefix: impl AsRef<str>, inner: impl FnOnce(&mut Self)) {
        let outer = self.prefix.clone();
        self.prefix = join(&outer, prefix.as_ref());
        inner(self);
        self.prefix = outer;
    }

    /// Nothing wrong?
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Each key path with one of its problems, in order of the paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.found
            .iter()
            .flat_map(|(key, problems)| problems.iter().map(move |problem| (key.as_str(), problem.as_str())))
    }
}

fn join(prefix: &str, key: &str) -> String {
    match (prefix, key) {
        ("", key) => key.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, key) => format!("{prefix}.{key}"),
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path} cannot be read: {reason}; name another with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// It is not TOML; `detail` shows the line.
    #[error("{file} is not valid TOML: {detail}")]
    Syntax {
        /// The file, or "the configuration".
        file: String,
        /// Where and what.
        detail: String,
    },
    /// It is TOML, but not a configuration of this process.
    #[error("{file} has {}:{list}\ncorrect the file and try again (`check --config FILE` tells without starting)", count(problems), list = List(problems))]
    Problems {
        /// The file, or "the configuration".
        file: String,
        /// All of them.
        problems: Problems,
    },
}

fn count(problems: &Problems) -> String {
    match problems.iter().count() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    }
}

struct List<'a>(&'a Problems);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(key, problem)| match key {
            "" => write!(f, "\n  {problem}"),
            key => write!(f, "\n  {key}: {problem}"),
        })
    }
}

/// Reads a file.
pub fn load<T: DeserializeOwned + Validate>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
    parse_as(&path.display().to_string(), &text)
}

/// Reads a text.
pub fn parse<T: DeserializeOwned + Validate>(text: &str) -> Result<T, ConfigError> {
    parse_as("the configuration", text)
}

fn parse_as<T: DeserializeOwned + Validate>(file: &str, text: &str) -> Result<T, ConfigError> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax { file: file.to_owned(), detail: error.to_string() })?;
    let mut problems = Problems::default();
    let config = collect::deserialize::<T>(table, &mut problems);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Problems { file: file.to_owned(), problems }),
    }
}

/// The configuration with every default filled in, as TOML; for `--dump-config`.
pub fn dump<T: Serialize>(config: &T) -> String {
    toml::to_string_pretty(config).unwrap_or_else(|error| format!("# this configuration has no TOML form: {error}\n"))
}

#[cfg(test)]
mod tests;
