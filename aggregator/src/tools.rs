//! `channel status | check | export | repair`: the tools for who is on call. They print facts about batches and bytes,
//! never contents of events; only `repair` changes anything in the data directory.

mod check;
mod export;
mod repair;
mod status;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use common::config;
use serde::Serialize;

use crate::channel::finding::Finding;
use crate::config::Config;

/// All is well.
pub const CLEAN: u8 = 0;
/// Something was found.
pub const FOUND: u8 = 1;
/// It could not be looked at, or what was asked could not be done.
pub const FAILED: u8 = 2;

/// Most findings in a text.
const FINDINGS: usize = 200;

/// Which channel, and how to print.
#[derive(Debug, Clone, Default, Args)]
pub struct At {
    /// The data directory, instead of the one that the configuration names.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What to do with a channel.
#[derive(Debug, Clone, Subcommand)]
pub enum Tool {
    /// What is held, where, and for whom: from the running aggregator, else from its directory. Changes nothing.
    Status {
        #[command(flatten)]
        #[allow(missing_docs)]
        at: At,
    },
    /// Read every byte and say what is wrong, where, and what that means. Changes nothing; safe beside a running
    /// aggregator.
    Check {
        #[command(flatten)]
        #[allow(missing_docs)]
        at: At,
    },
    /// Write stored batches into files of their own. Changes nothing in the channel.
    Export {
        #[command(flatten)]
        #[allow(missing_docs)]
        at: At,
        /// Where to; has to be empty or missing.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Only batches of this agent.
        #[arg(long)]
        agent: Option<String>,
        /// Only batches of this dataset.
        #[arg(long)]
        dataset: Option<String>,
        /// Answered batches too, as far as they still lie there.
        #[arg(long, conflicts_with = "held")]
        all: bool,
        /// Only batches that are not answered; this is the default.
        #[arg(long)]
        held: bool,
    },
    /// Set a channel right whose aggregator is stopped: only what is damaged is taken out, and its bytes are kept.
    Repair {
        #[command(flatten)]
        #[allow(missing_docs)]
        at: At,
        /// Say what would be done, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Where a tool looks.
struct Target {
    data_dir: PathBuf,
    /// None: only a directory was given.
    config: Option<Config>,
}

/// Does what is asked, prints to `out`; the exit code of the process.
pub fn run(tool: Tool, config: &Path, out: &mut dyn Write) -> ExitCode {
    ExitCode::from(execute(tool, config, out))
}

/// As [`run`], for who compares codes.
pub fn execute(tool: Tool, config: &Path, out: &mut dyn Write) -> u8 {
    let at = match &tool {
        Tool::Status { at } | Tool::Check { at } | Tool::Export { at, .. } | Tool::Repair { at, .. } => at.clone(),
    };
    let done = target(&at, config).and_then(|target| match tool {
        Tool::Status { .. } => status::status(&target, at.json, out),
        Tool::Check { .. } => check::check(&target.data_dir, at.json, out),
        Tool::Export { to, agent, dataset, all, .. } => {
            export::export(&target.data_dir, export::Wanted { to, agent, dataset, all }, at.json, out)
        }
        Tool::Repair { dry_run, .. } => repair::repair(&target.data_dir, dry_run, at.json, out),
    });
    done.unwrap_or_else(|error| {
        let told = match at.json {
            true => print(out, &serde_json::json!({ "error": format!("{error:#}") })),
            false => writeln!(out, "error: {error:#}").map_err(anyhow::Error::from),
        };
        // Nobody reads: the code still says it.
        let _ = told;
        FAILED
    })
}

fn target(at: &At, path: &Path) -> anyhow::Result<Target> {
    if let Some(data_dir) = &at.data_dir {
        return Ok(Target { data_dir: data_dir.clone(), config: None });
    }
    let config: Config = config::load(path).map_err(|error| {
        anyhow::anyhow!("{error}\ngive the aggregator's file with --config, or its data directory with --data-dir")
    })?;
    Ok(Target { data_dir: config.data_dir.clone(), config: Some(config) })
}

/// One JSON document.
fn print(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

/// `2026-11-20T12:34:56Z`.
fn utc(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let date = proto::ids::date_text(i32::try_from(day).unwrap_or(i32::MAX));
    format!("{date}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// `batch` or `batches`.
fn batches(count: u64) -> String {
    format!("{count} {}", if count == 1 { "batch" } else { "batches" })
}

/// As text, the first of many.
fn print_findings(out: &mut dyn Write, findings: &[Finding]) -> anyhow::Result<()> {
    for finding in findings.iter().take(FINDINGS) {
        writeln!(out, "{finding}")?;
    }
    if findings.len() > FINDINGS {
        writeln!(out, "and {} more findings: see --json", findings.len() - FINDINGS)?;
    }
    Ok(())
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(1_763_700_000_000), "2025-11-21T04:40:00Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
    }
}
