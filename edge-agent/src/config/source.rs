//! One `[[sources]]` table: keys of the tail and keys of the pipeline side by side. They are told apart by name, so that
//! each part still reports its own unknown keys and problems.

use common::config::{ConfigError, Problems, Validate};
use serde::{Deserialize, Deserializer, Serialize};

use crate::pipeline::PipelineConfig;
use crate::tail::TailConfig;

/// Keys of the pipeline; all others are the tail's.
const PIPELINE_KEYS: &[&str] = &["dataset", "time", "interceptors"];

/// One source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceConfig {
    /// Its name, in metrics, headers and positions.
    pub name: String,
    /// `tail`.
    #[serde(rename = "type")]
    pub kind: SourceKind,
    /// What is read.
    #[serde(flatten)]
    pub tail: TailConfig,
    /// What is made of it.
    #[serde(flatten)]
    pub pipeline: PipelineConfig,
    /// Found while reading the table.
    #[serde(skip)]
    problems: Vec<(String, String)>,
}

/// Kinds of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Files that grow and rotate.
    Tail,
}

impl<'de> Deserialize<'de> for SourceConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut rest = toml::Table::deserialize(deserializer)?;
        let mut problems = Vec::new();
        let mut text = |key: &str| match rest.remove(key) {
            Some(toml::Value::String(text)) => text,
            Some(_) => {
                problems.push((key.to_owned(), "must be a text".to_owned()));
                String::new()
            }
            None => String::new(),
        };
        let (name, kind) = (text("name"), text("type"));
        if kind != "tail" {
            problems.push(("type".to_owned(), "must be \"tail\"".to_owned()));
        }
        let (pipeline, tail): (toml::Table, toml::Table) =
            rest.into_iter().partition(|(key, _)| PIPELINE_KEYS.contains(&key.as_str()));
        let tail = part::<TailConfig>(tail, &mut problems).unwrap_or_default();
        let pipeline = part::<PipelineConfig>(pipeline, &mut problems).unwrap_or_default();
        Ok(Self { name, kind: SourceKind::Tail, tail, pipeline, problems })
    }
}

/// Reads the keys of one part with all its problems.
fn part<T: serde::de::DeserializeOwned + Validate>(
    table: toml::Table,
    problems: &mut Vec<(String, String)>,
) -> Option<T> {
    let text = toml::to_string(&table).unwrap_or_default();
    match common::config::parse::<T>(&text) {
        Ok(part) => Some(part),
        Err(ConfigError::Problems { problems: found, .. }) => {
            problems.extend(found.iter().map(|(key, problem)| (key.to_owned(), problem.to_owned())));
            None
        }
        Err(error) => {
            problems.push((String::new(), error.to_string()));
            None
        }
    }
}

impl Validate for SourceConfig {
    fn validate(&self, problems: &mut Problems) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(allowed) {
            problems.add("name", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -");
        }
        for (key, problem) in &self.problems {
            problems.add(key, problem.clone());
        }
    }
}
