//! The pipeline's keys of a `[[sources]]` table, and `[mask]`.

use common::config::{Problems, Validate};
use common::event_time::{EventTime, TimeFormat};
use serde::{Deserialize, Serialize};

pub use crate::intercept::mask::{MaskConfig, MaskMode};
use crate::intercept::{InterceptorConfig, check_dataset, check_headers};

/// What is made of the lines of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineConfig {
    /// Where events go unless a route decides otherwise.
    pub dataset: String,
    /// Where their time stands. Default: `{ format = "log_format", log_format = "combined" }`.
    pub time: TimeFormat,
    /// What is done to them, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interceptors: Vec<InterceptorConfig>,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            dataset: String::new(),
            time: TimeFormat::LogFormat { log_format: "combined".to_owned() },
            interceptors: Vec::new(),
        }
    }
}

impl Validate for PipelineConfig {
    fn validate(&self, problems: &mut Problems) {
        check_dataset("dataset", &self.dataset, problems);
        if let Err(error) = EventTime::new(&self.time) {
            problems.add("time", error.to_string());
        }
        for (index, interceptor) in self.interceptors.iter().enumerate() {
            problems.within(format!("interceptors[{index}]"), |problems| interceptor.validate(problems));
        }
        check_headers(&self.interceptors, problems);
    }
}

impl Validate for MaskConfig {
    fn validate(&self, problems: &mut Problems) {
        match (self.mode, &self.key_file) {
            (MaskMode::Hmac, None) => {
                problems.add("key_file", "is missing: mode hmac needs a file with at least 16 random bytes")
            }
            (MaskMode::Replace, Some(_)) => {
                problems.add("key_file", "is only for mode = \"hmac\"; leave it out or set the mode")
            }
            _ => {}
        }
    }
}
