//! `interceptors = [{ type = "...", ... }]` of a source: a closed list of kinds, applied in the order given.

use std::collections::BTreeMap;

use common::config::Problems;
use proto::ids::DatasetName;
use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

/// One interceptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum InterceptorConfig {
    /// Events without a usable time get the time at which they are cut; with `replace` all do.
    Timestamp {
        /// Also where the event has a time.
        #[serde(default)]
        replace: bool,
    },
    /// Another name or value for the header `host`, which every batch carries.
    Host {
        /// Name of the header.
        #[serde(default = "host_header")]
        header: String,
        /// In place of the host name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// A fixed header.
    Static {
        /// Its name.
        header: String,
        /// Its value.
        value: String,
        /// Only for events that this matches.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        when: Option<String>,
    },
    /// Only events that match are kept.
    Include {
        /// A regular expression over the body.
        pattern: String,
    },
    /// Events that match are dropped (and counted).
    Exclude {
        /// A regular expression over the body.
        pattern: String,
    },
    /// Every match is replaced.
    SearchReplace {
        /// A regular expression over the body.
        pattern: String,
        /// The replacement; `$1` and `${name}` are groups, `$$` a dollar sign. Without line breaks.
        replacement: String,
    },
    /// The place of masking; without it, masking stands before the first route, else last.
    Mask {},
    /// Events that match go to this dataset. The first route that applies decides.
    Route {
        /// A regular expression over the body.
        pattern: String,
        /// The dataset.
        dataset: String,
    },
    /// Events go to the dataset named for the value of a header. The first route that applies decides.
    RouteByHeader {
        /// The header.
        header: String,
        /// Value to dataset; other values change nothing.
        datasets: BTreeMap<String, String>,
    },
}

/// Bytes that all headers of a source may take together: what a batch header may have, less 8 KiB for its other fields.
const MAX_HEADERS_BYTES: usize = proto::MAX_HEADER_BYTES - 8 * 1024;
/// Counted for the header `host` where its value is the host's name.
const HOST_NAME_BYTES: usize = 255;

/// Adds a problem if the headers that an event can get together are more than a batch header can carry.
pub(crate) fn check_headers(interceptors: &[InterceptorConfig], problems: &mut Problems) {
    // A header that is set twice counts as the longer one.
    let mut headers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut set = |name, bytes: usize| {
        let longest = headers.entry(name).or_default();
        *longest = bytes.max(*longest);
    };
    if !interceptors.iter().any(|one| matches!(one, InterceptorConfig::Host { .. })) {
        set("host", HOST_NAME_BYTES);
    }
    for interceptor in interceptors {
        match interceptor {
            InterceptorConfig::Host { header, value } => {
                set(header, value.as_ref().map_or(HOST_NAME_BYTES, String::len));
            }
            InterceptorConfig::Static { header, value, .. } => set(header, value.len()),
            _ => {}
        }
    }
    // Names, values, and what the encoding puts around them.
    let sum: usize = headers.iter().map(|(name, bytes)| name.len() + bytes + 12).sum();
    if sum > MAX_HEADERS_BYTES {
        problems.add(
            "interceptors",
            format!(
                "set headers of {sum} bytes together, a batch can carry {MAX_HEADERS_BYTES}: shorten values or leave headers out"
            ),
        );
    }
}

fn host_header() -> String {
    "host".to_owned()
}

impl InterceptorConfig {
    /// Adds what is wrong with its values.
    pub(crate) fn validate(&self, problems: &mut Problems) {
        match self {
            Self::Timestamp { .. } | Self::Mask {} => {}
            Self::Host { header, value } => {
                check_header(header, value.as_deref().unwrap_or_default(), problems);
            }
            Self::Static { header, value, when } => {
                check_header(header, value, problems);
                if let Some(when) = when {
                    check_regex("when", when, problems);
                }
            }
            Self::Include { pattern } | Self::Exclude { pattern } => check_regex("pattern", pattern, problems),
            Self::SearchReplace { pattern, replacement } => {
                check_regex("pattern", pattern, problems);
                if replacement.contains('\n') {
                    problems.add("replacement", "must not hold a line break: an event is one line");
                }
            }
            Self::Route { pattern, dataset } => {
                check_regex("pattern", pattern, problems);
                check_dataset("dataset", dataset, problems);
            }
            Self::RouteByHeader { header, datasets } => {
                check_header(header, "", problems);
                for (value, dataset) in datasets {
                    check_dataset(&format!("datasets.{value}"), dataset, problems);
                }
            }
        }
    }

    /// The datasets it can route to.
    pub(crate) fn datasets(&self) -> Vec<&str> {
        match self {
            Self::Route { dataset, .. } => vec![dataset],
            Self::RouteByHeader { datasets, .. } => datasets.values().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }
}

pub(crate) fn check_dataset(key: &str, name: &str, problems: &mut Problems) {
    if let Err(error) = DatasetName::new(name) {
        problems.add(key, error.to_string());
    }
}

fn check_regex(key: &str, pattern: &str, problems: &mut Problems) {
    if let Err(error) = Regex::new(pattern) {
        problems.add(key, format!("is not a regular expression: {error}"));
    }
}

fn check_header(header: &str, value: &str, problems: &mut Problems) {
    if header.is_empty() || header.len() > 128 || header.chars().any(char::is_control) {
        problems.add("header", "must be 1 to 128 characters without control characters");
    }
    if value.len() > 1024 || value.chars().any(char::is_control) {
        problems.add("value", "must be at most 1024 bytes without control characters");
    }
}

#[cfg(test)]
mod tests {
    use crate::pipeline::PipelineConfig;

    fn problems(count: usize, same_name: bool) -> Option<String> {
        let mut text = "dataset = \"clickstream\"\n".to_owned();
        for n in 0..count {
            let name = if same_name { 0 } else { n };
            text += &format!(
                "[[interceptors]]\ntype = \"static\"\nheader = \"h{name:02}\"\nvalue = \"{}\"\n",
                "x".repeat(1024)
            );
        }
        common::config::parse::<PipelineConfig>(&text).err().map(|error| error.to_string())
    }

    #[test]
    fn headers_that_no_batch_can_carry_are_refused_with_limit_and_sum() {
        assert_eq!(problems(54, false), None);
        let error = problems(60, false).unwrap();
        let sum = 60 * (3 + 1024 + 12) + 4 + 255 + 12;
        assert!(error.contains(&sum.to_string()) && error.contains("57344"), "{error}");
        assert_eq!(problems(60, true), None, "set again and again it is one header");
    }
}
