//! One event that could not be placed, as one JSON line. Read by people and tools, so its field names are stable.

use serde::{Deserialize, Serialize};

/// Longest body kept, in bytes; what is over is cut off and counted in `body_bytes`.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// Where on the path the event was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The edge agent's decode: too long, no usable time, dated too far ahead or too old.
    Decode,
    /// The edge agent's interceptors.
    Intercept,
    /// The collector's decode into columns.
    Columns,
}

/// A dead letter. `body` is masked exactly as it would have been in the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// When it was made, RFC 3339, UTC.
    pub time: String,
    /// Who read it.
    pub agent: String,
    /// Where it would have gone.
    pub dataset: String,
    /// The configured source.
    pub source: String,
    /// The file, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// Offset of its first byte in the file, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<u64>,
    /// Where on the path.
    pub stage: Stage,
    /// One constant phrase per cause, e.g. `no usable time`.
    pub reason: String,
    /// The masked body, at most [`MAX_BODY_BYTES`]; as base64 under `body_base64` instead when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body: Option<String>,
    /// The masked body when it is not UTF-8, standard base64.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body_base64: Option<String>,
    /// Length of the whole body before it was cut.
    pub body_bytes: u64,
}

impl DeadLetter {
    /// The line, ended by LF.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings and numbers always serialise");
        line.push(b'\n');
        line
    }
}
