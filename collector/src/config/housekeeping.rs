//! `[housekeeping]`: how long what is kept, and when a run that shows no sign of life is retired.

use std::path::PathBuf;
use std::time::Duration;

use common::config::Problems;
use common::units::Span;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HousekeepingConfig {
    /// How often a run shows that it lives, and looks at the others.
    pub heartbeat: Span,
    /// A run that shows nothing new for this long, while the store answers, is retired by the others.
    pub retire_after: Span,
    /// Records of the commit log are kept at least this long.
    pub log_retention: Span,
    /// Runs of agents that are complete or abandoned are forgotten this long after their last commit.
    pub horizon: Span,
    /// Quarantined batches of days that ended longer ago are deleted. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine_retention: Option<Span>,
    /// Dead letters of days that ended longer ago are deleted. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter_retention: Option<Span>,
    /// A file with one expected agent per line; read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<PathBuf>,
    /// An agent that is not in the inventory has departed: named in seals, not waited for.
    pub inventory_is_complete: bool,
}

impl Default for HousekeepingConfig {
    fn default() -> Self {
        Self {
            heartbeat: Span::secs(30),
            retire_after: Span::secs(600),
            log_retention: Span::secs(24 * 3600),
            horizon: Span::secs(30 * 24 * 3600),
            quarantine_retention: None,
            dead_letter_retention: None,
            inventory: None,
            inventory_is_complete: false,
        }
    }
}

impl HousekeepingConfig {
    /// Adds what is wrong with it.
    pub fn validate(&self, problems: &mut Problems) {
        let hour = Duration::from_secs(3600);
        let day = 24 * hour;
        if self.heartbeat.get() < Duration::from_secs(1) {
            problems.add("heartbeat", "must be at least 1s");
        }
        if self.retire_after.get() < self.heartbeat.get() * 4 {
            problems
                .add("retire_after", "must be at least 4 times housekeeping.heartbeat: one lost renewal is no death");
        }
        if self.log_retention.get() < hour {
            problems.add("log_retention", "must be at least 1h");
        }
        if self.log_retention.get() < self.retire_after.get() * 4 {
            problems.add("log_retention", "must be at least 4 times housekeeping.retire_after");
        }
        if self.horizon.get() < day || self.horizon.get() < self.log_retention.get() {
            problems.add(
                "horizon",
                "must be at least 1day and at least housekeeping.log_retention: batches of an agent that was off for longer are quarantined",
            );
        }
        for (key, span) in
            [("quarantine_retention", self.quarantine_retention), ("dead_letter_retention", self.dead_letter_retention)]
        {
            if span.is_some_and(|span| span.get() < day) {
                problems.add(key, "must be at least 1day; leave it out to keep everything");
            }
        }
        if self.inventory_is_complete && self.inventory.is_none() {
            problems.add("inventory_is_complete", "needs housekeeping.inventory, the file with all agents");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named() {
        let config = HousekeepingConfig {
            heartbeat: Span::millis(10),
            retire_after: Span::millis(20),
            log_retention: Span::secs(60),
            horizon: Span::secs(60),
            quarantine_retention: Some(Span::secs(1)),
            inventory_is_complete: true,
            ..HousekeepingConfig::default()
        };
        let mut problems = Problems::default();
        config.validate(&mut problems);
        assert_eq!(problems.iter().count(), 6, "{problems:?}");
        let mut none = Problems::default();
        HousekeepingConfig::default().validate(&mut none);
        assert_eq!(none.iter().count(), 0, "{none:?}");
    }
}
