//! What a run is written down as: a JSON file for machines, sentences for people.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::Finished;
use crate::verify::report::group;

/// The report as JSON.
pub fn json(finished: &Finished) -> Value {
    let outcome = &finished.outcome;
    let sums = &outcome.sums;
    let partitions: Map<String, Value> =
        outcome.found.partitions.iter().map(|(name, count)| (name.clone(), count.events.into())).collect();
    let files: u64 = outcome.found.partitions.values().map(|count| count.files).sum();
    let reasons: Map<String, Value> =
        outcome.found.reasons.iter().map(|(reason, found)| (reason.clone(), found.events.into())).collect();
    let mut cpu = Map::new();
    let mut peak = Map::new();
    for (tier, usage) in &finished.usage {
        cpu.insert(tier.key().to_owned(), rounded(usage.cpu_seconds));
        peak.insert(tier.key().to_owned(), usage.peak_rss_bytes.into());
    }
    json!({
        "events_in": sums.events_in,
        "published": sums.published,
        "dead_lettered": sums.dead_lettered,
        "lost": sums.lost,
        "duplicated": sums.duplicated,
        "unexpected": sums.unexpected,
        "quarantined": sums.quarantined,
        "misplaced": outcome.found.misplaced,
        "partitions": partitions,
        "dead_letter_reasons": reasons,
        "files": files,
        "seconds": rounded(finished.seconds),
        "cpu_seconds": cpu,
        "peak_rss_bytes": peak,
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.found.bytes,
    })
}

/// Writes the report to a file.
pub fn write(report: &Value, path: &Path) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("cannot write the report to {}", path.display()))
}

/// Speed and cost, one line each.
pub fn cost(finished: &Finished) -> String {
    let outcome = &finished.outcome;
    let events = outcome.sums.published + outcome.sums.dead_lettered;
    let gigabytes = (outcome.bytes_in as f64 / 1e9).max(1e-9);
    let mut text = format!(
        "{} events/s, {} bytes in, {} bytes out, {:.1} s\n",
        group((events as f64 / finished.seconds.max(1e-3)) as u64),
        group(outcome.bytes_in),
        group(outcome.found.bytes),
        finished.seconds
    );
    for (tier, usage) in &finished.usage {
        let line = format!(
            "{:<10} {:>8.2} CPU s ({:.2} per GB), {:.0} MiB at most\n",
            tier.name(),
            usage.cpu_seconds,
            usage.cpu_seconds / gigabytes,
            usage.peak_rss_bytes as f64 / (1 << 20) as f64
        );
        text.push_str(&line);
    }
    text
}

fn rounded(number: f64) -> Value {
    json!((number * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::spec::Tier;
    use crate::cluster::usage::Usage;
    use crate::verify::Outcome;
    use crate::verify::found::{Found, PartitionCount};
    use crate::verify::tally::Sums;

    #[test]
    fn the_promised_fields_are_there() {
        let mut found = Found { bytes: 7, ..Found::default() };
        found.partitions.insert("event_date=2026-11-20".into(), PartitionCount { events: 3, files: 1, bytes: 7 });
        let sums = Sums { events_in: 3, published: 3, ..Sums::default() };
        let outcome = Outcome { sums, found, bytes_in: 20, samples: Vec::new() };
        let usage = Tier::ALL.map(|tier| (tier, Usage { cpu_seconds: 0.5, peak_rss_bytes: 9 }));
        let report = json(&Finished { outcome, seconds: 1.25, usage });
        for key in ["events_in", "published", "dead_lettered", "lost", "duplicated", "seconds", "bytes_in", "bytes_out"]
        {
            assert!(report[key].is_number(), "{key}");
        }
        assert_eq!(report["partitions"]["event_date=2026-11-20"], 3);
        assert_eq!(report["cpu_seconds"]["edge_agent"], 0.5);
        assert_eq!(report["peak_rss_bytes"]["collector"], 9);
    }
}
